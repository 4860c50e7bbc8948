"""LoRA (Hu et al., 2022) around any linen model, by intercepting its linear layers.

    y = W x + b + (α/r) B A dropout(x)

The model's own parameters keep their names, in the collection "params"; the adapters have
the collection "lora" to themselves: `a` [in, r] and `b` [r, out] under the layer's path, both
seen as matrices (out = heads · head width, say). B starts at zero, so that outputs start
identical.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from dirasym import rows
from dirasym.models import transformer
from dirasym.models.layers import dropout, uniform_fan_in
from dirasym.types import ApplyFn, Params

QKV = ("query", "key", "value")
# Every c_attn and c_proj of GPT-2: the MLP's down projection is a c_proj too.
GPT2_TARGETS = r"attention/(query|key|value|out)$|mlp/down$"
FUSED_A = "fused_a"  # beside the layers that share it


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Hyperparameters.

    Attributes:
      rank: r.
      alpha: the update's scale is alpha / rank.
      targets: a regex, searched for in layers' paths, e.g. "blocks_0/attention/query"
        ("blocks/block/attention/query" where layers are scanned).
      dropout: rate on the adapters' input.
      fused: names of sibling layers that share one A and one dropout mask, as if they were
        one layer with joined outputs: `QKV` for GPT-2's c_attn, () for LLaMA's q_proj, k_proj
        and v_proj.

    Raises:
      ValueError: a rank below 1, an alpha that is not finite, a rate outside [0, 1), or no regex.
    """

    rank: int
    alpha: float
    targets: str
    dropout: float = 0.0
    fused: tuple[str, ...] = ()

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank must be positive, got {self.rank}")
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be a finite number, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"targets={self.targets!r} is not a regex: {error}") from None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoRA(nn.Module):
    """`model` with adapters: variables {"params": the model's own, "lora": adapters}.

    Takes what `model` takes, in calls and in `extend`. `rngs={"dropout": key}` turns the
    adapters' dropout on.

    Raises:
      ValueError: on a call, if the targets match no linear layer, or the head of a model that
        has none of its own, or the rank exceeds a layer's smaller side.
    """

    model: nn.Module
    config: LoRAConfig

    def setup(self):
        nn.share_scope(self, self.model)

    def __call__(self, *args, **kwargs):
        return self._adapted(self.model, *args, **kwargs)

    def extend(self, *args, **kwargs):
        """`Transformer.extend` with adapters."""
        return self._adapted(self.model.extend, *args, **kwargs)

    def _adapted(self, method, *args, **kwargs):
        interceptor = _Interceptor(self.config)
        with nn.intercept_methods(interceptor):
            outputs = method(*args, **kwargs)
        if not interceptor.matched:
            raise ValueError(f"LoRA targets {self.config.targets!r} match no linear layer")
        return outputs


class _Interceptor:
    """Adds the adapter's output to each targeted layer's."""

    def __init__(self, config: LoRAConfig):
        self._config = config
        # Inputs of fused layers and their products with A, by path: the siblings reuse them.
        self._products: dict[tuple[str, ...], tuple[Any, Any]] = {}
        self.matched = False

    def __call__(self, next_fun, args, kwargs, context):
        layer, config = context.module, self._config
        y = next_fun(*args, **kwargs)
        is_tied_head = isinstance(layer, nn.Embed) and context.method_name == "attend"
        if is_tied_head and re.search(config.targets, "head"):
            raise ValueError(
                f"LoRA targets {config.targets!r} match the head, which is the embedding here"
            )
        if not isinstance(layer, nn.Dense | nn.DenseGeneral) or context.method_name != "__call__":
            return y
        if not re.search(config.targets, "/".join(layer.path)):
            return y
        self.matched = True
        (x,) = args
        x = x.reshape(*x.shape[: x.ndim - _num_inputs(layer)], -1)
        features = math.prod(layer.features) if _is_general(layer) else layer.features
        if config.rank > min(x.shape[-1], features):
            size = f"{x.shape[-1]} × {features}"
            raise ValueError(f"LoRA rank {config.rank} exceeds {'/'.join(layer.path)}, {size}")
        product = self._product(layer, args[0], x)
        b = _variable(layer.scope, "b", nn.initializers.zeros, (config.rank, features))
        return y + (config.scale * (product @ b)).reshape(y.shape).astype(y.dtype)

    def _product(self, layer: nn.Module, layer_input: jax.Array, x: jax.Array) -> jax.Array:
        """dropout(x) A, computed once for fused layers that are given the same input."""
        config, name = self._config, "a"
        scope: Any = layer.scope
        fused = layer.name in config.fused
        if fused:
            scope, name = scope.parent, FUSED_A
            seen, product = self._products.get(scope.path, (None, None))
            if seen is layer_input:
                return product
        a = _variable(scope, name, uniform_fan_in(x.shape[-1]), (x.shape[-1], config.rank))
        key = scope.make_rng("dropout") if config.dropout and scope.has_rng("dropout") else None
        product = dropout(x.astype(a.dtype), config.dropout, key) @ a
        if fused:
            self._products[scope.path] = (layer_input, product)
        return product


def _is_general(layer: nn.Module) -> bool:
    return isinstance(layer, nn.DenseGeneral) and not isinstance(layer.features, int)


def _num_inputs(layer: nn.Module) -> int:
    """How many trailing axes of its input a layer contracts."""
    axis = getattr(layer, "axis", -1)
    return 1 if isinstance(axis, int) else len(axis)


def _variable(scope: Any, name: str, init, shape: tuple[int, ...]) -> jax.Array:
    """An adapter of float32, made where there is none yet."""
    if not scope.has_variable("lora", name):
        scope.put_variable("lora", name, init(scope.make_rng("params"), shape, jnp.float32))
    return scope.get_variable("lora", name)


def make_apply_fn(lora: LoRA) -> ApplyFn:
    """The adapted model as an `ApplyFn` of its variables {"params": base, "lora": adapters}.

    To train the adapters alone, give `training.create_state` the parameters
    {"lora": adapters} and frozen={"params": base}.
    """

    def apply_fn(variables: Params, tokens_BL, *, valid_BL=None, rows_R=None, rngs=None):
        return lora.apply(variables, tokens_BL, valid_BL=valid_BL, rows_R=rows_R, rngs=rngs)

    return rows.knowing(apply_fn, lora.model.config.vocab_size)


def make_extend_fn(lora: LoRA) -> Callable[..., tuple[jax.Array, Any]]:
    """As `transformer.make_extend_fn`, with the variables {"params": base, "lora": adapters}."""
    return functools.partial(transformer.apply_extend, lora)


def make_internals_fn(lora: LoRA) -> Callable[[Params, Any], dict[str, jax.Array]]:
    """As `transformer.make_internals_fn`, with the variables {"params": base, "lora": adapters}."""
    internals = functools.partial(transformer.apply_internals, lora, lora.model.config)
    return rows.knowing(internals, lora.model.config.vocab_size)


def init_adapters(lora: LoRA, params: Params, key: jax.Array) -> Params:
    """Adapters for a model with these parameters: A uniform on ±1/√in, as in PEFT, B zero."""
    tokens_BL = jnp.zeros((1, 1), jnp.int32)

    @jax.jit  # of the adapters alone, so that no forward pass is compiled or run
    def init(params):
        _, variables = lora.apply(
            {"params": params}, tokens_BL, rngs={"params": key}, mutable="lora"
        )
        return variables["lora"]

    return init(params)


def merge(params: Params, adapters: Params, config: LoRAConfig) -> Params:
    """The model's parameters with W + (α/r) B A in place of W, in W's dtype.

    Scanned layers, whose adapters have a leading layer axis, included.
    """
    flat = flax.traverse_util.flatten_dict(params)
    flat_adapters = flax.traverse_util.flatten_dict(adapters)
    for path, b in flat_adapters.items():
        if path[-1] != "b":
            continue
        layer = path[:-1]
        a = flat_adapters.get((*layer, "a"))
        if a is None:
            a = flat_adapters[(*layer[:-1], FUSED_A)]
        kernel = flat[(*layer, "kernel")]
        update = config.scale * (a @ b)
        flat[(*layer, "kernel")] = (kernel + update.reshape(kernel.shape)).astype(kernel.dtype)
    return flax.traverse_util.unflatten_dict(flat)
