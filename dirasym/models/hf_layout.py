"""Hugging Face's names of tensors ↔ paths of parameters: one table an architecture."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

from dirasym.models.transformer import TransformerConfig
from dirasym.types import Params


class Weight(NamedTuple):
    """One tensor of a checkpoint and the parameters that it holds.

    Attributes:
      key: its name after the architecture's prefix, with `{n}` for the layer.
      params: paths below a layer (or the root), `.`-free; several are joined along the outputs.
      transposed: stored [out, in], as torch's Linear does; ours and Conv1D's are [in, out].
    """

    key: str
    params: tuple[str, ...]
    transposed: bool = False


def _linear(key: str, *params: str, transposed: bool = True) -> tuple[Weight, Weight]:
    """The kernel and the bias of a linear layer."""
    return (
        Weight(f"{key}.weight", tuple(f"{path}/kernel" for path in params), transposed),
        Weight(f"{key}.bias", tuple(f"{path}/bias" for path in params)),
    )


_QKV = ("attention/query", "attention/key", "attention/value")
# The prefix may be absent, as in directories saved from the model without its head.
PREFIX = {
    "gpt2": "transformer.",
    "llama": "model.",
    "qwen2": "model.",
    "llada": "model.transformer.",
}
_OUTSIDE_PREFIX = ("lm_head.",)
TABLES: dict[str, tuple[Weight, ...]] = {
    "gpt2": (
        Weight("wte.weight", ("embed/embedding",)),
        Weight("wpe.weight", ("position_embed/embedding",)),
        Weight("h.{n}.ln_1.weight", ("attention_norm/scale",)),
        Weight("h.{n}.ln_1.bias", ("attention_norm/bias",)),
        *_linear("h.{n}.attn.c_attn", *_QKV, transposed=False),
        *_linear("h.{n}.attn.c_proj", "attention/out", transposed=False),
        Weight("h.{n}.ln_2.weight", ("mlp_norm/scale",)),
        Weight("h.{n}.ln_2.bias", ("mlp_norm/bias",)),
        *_linear("h.{n}.mlp.c_fc", "mlp/up", transposed=False),
        *_linear("h.{n}.mlp.c_proj", "mlp/down", transposed=False),
        Weight("ln_f.weight", ("final_norm/scale",)),
        Weight("ln_f.bias", ("final_norm/bias",)),
        Weight("lm_head.weight", ("head/kernel",), True),
    ),
    "llama": (
        Weight("embed_tokens.weight", ("embed/embedding",)),
        Weight("layers.{n}.input_layernorm.weight", ("attention_norm/scale",)),
        *_linear("layers.{n}.self_attn.q_proj", "attention/query"),
        *_linear("layers.{n}.self_attn.k_proj", "attention/key"),
        *_linear("layers.{n}.self_attn.v_proj", "attention/value"),
        *_linear("layers.{n}.self_attn.o_proj", "attention/out"),
        Weight("layers.{n}.post_attention_layernorm.weight", ("mlp_norm/scale",)),
        *_linear("layers.{n}.mlp.gate_proj", "mlp/gate"),
        *_linear("layers.{n}.mlp.up_proj", "mlp/up"),
        *_linear("layers.{n}.mlp.down_proj", "mlp/down"),
        Weight("norm.weight", ("final_norm/scale",)),
        Weight("lm_head.weight", ("head/kernel",), True),
    ),
    "llada": (
        Weight("wte.weight", ("embed/embedding",)),
        Weight("blocks.{n}.attn_norm.weight", ("attention_norm/scale",)),
        *_linear("blocks.{n}.q_proj", "attention/query"),
        *_linear("blocks.{n}.k_proj", "attention/key"),
        *_linear("blocks.{n}.v_proj", "attention/value"),
        *_linear("blocks.{n}.attn_out", "attention/out"),
        Weight("blocks.{n}.ff_norm.weight", ("mlp_norm/scale",)),
        *_linear("blocks.{n}.ff_proj", "mlp/gate"),
        *_linear("blocks.{n}.up_proj", "mlp/up"),
        *_linear("blocks.{n}.ff_out", "mlp/down"),
        Weight("ln_f.weight", ("final_norm/scale",)),
        Weight("ff_out.weight", ("head/kernel",), True),
    ),
}
TABLES["qwen2"] = TABLES["llama"]
# Constants that old versions of transformers saved; recomputed here.
BUFFERS = {
    "gpt2": ("h.{n}.attn.bias", "h.{n}.attn.masked_bias"),
    "llama": ("layers.{n}.self_attn.rotary_emb.inv_freq",),
    "qwen2": ("layers.{n}.self_attn.rotary_emb.inv_freq",),
    "llada": (),
}


class Layout:
    """Where each key of a checkpoint lies in the parameters of one model.

    Attributes:
      weights: name (a key without the prefix) -> (its row of the table, layer or None).
      buffers: names to skip.
      tied: names that repeat the embedding, if the head is tied to it.
    """

    def __init__(self, architecture: str, config: TransformerConfig, shapes: Params):
        self._prefix = PREFIX[architecture]
        self._scanned = config.scan_layers
        self._shapes = flax.traverse_util.flatten_dict(shapes, sep="/")
        numbers = range(config.num_layers)
        self.weights: dict[str, tuple[Weight, int | None]] = {}
        for row in TABLES[architecture]:
            for layer in numbers if "{n}" in row.key else (None,):
                if self._path(row.params[0], layer) in self._shapes:
                    self.weights[row.key.format(n=layer)] = (row, layer)
        self.buffers = {name.format(n=n) for name in BUFFERS[architecture] for n in numbers}
        heads = {row.key for row in TABLES[architecture] if row.params == ("head/kernel",)}
        self.tied = heads - self.weights.keys()

    def bare(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    def prefixed(self, name: str) -> str:
        return name if name.startswith(_OUTSIDE_PREFIX) else self._prefix + name

    def _path(self, path: str, layer: int | None) -> str:
        if layer is None:
            return path
        return f"blocks/block/{path}" if self._scanned else f"blocks_{layer}/{path}"

    def _shape(self, path: str, layer: int | None) -> tuple[int, ...]:
        """Of one layer's parameter."""
        shape = self._shapes[self._path(path, layer)].shape
        return shape[1:] if layer is not None and self._scanned else shape

    def _flat_shape(self, path: str, layer: int | None) -> tuple[int, ...]:
        """Kernels as [in, out], biases as [out]."""
        shape = self._shape(path, layer)
        if path.endswith("/bias"):
            return (math.prod(shape),)
        if path.endswith("/kernel"):
            num_in = 2 if path == "attention/out/kernel" else 1
            return math.prod(shape[:num_in]), math.prod(shape[num_in:])
        return shape

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape in the checkpoint."""
        row, layer = self.weights[name]
        parts = [self._flat_shape(path, layer) for path in row.params]
        shape = (*parts[0][:-1], sum(part[-1] for part in parts))
        return shape[::-1] if row.transposed else shape

    def split(self, name: str, tensor: np.ndarray) -> Iterator[tuple[str, int | None, np.ndarray]]:
        """(parameter, its layer if layers are stacked, value) of each part of a tensor."""
        row, layer = self.weights[name]
        if row.transposed:
            tensor = tensor.T
        ends = np.cumsum([self._flat_shape(path, layer)[-1] for path in row.params])
        for path, part in zip(row.params, np.split(tensor, ends[:-1], axis=-1), strict=True):
            stacked_layer = layer if self._scanned else None
            yield self._path(path, layer), stacked_layer, part.reshape(self._shape(path, layer))

    def join(self, name: str, flat: dict[str, Any]) -> np.ndarray:
        """The checkpoint's tensor, from flattened parameters."""
        row, layer = self.weights[name]
        parts = []
        for path in row.params:
            value = flat[self._path(path, layer)]
            if layer is not None and self._scanned:
                value = value[layer]
            parts.append(np.asarray(value).reshape(self._flat_shape(path, layer)))
        tensor = np.concatenate(parts, axis=-1)
        return np.ascontiguousarray(tensor.T if row.transposed else tensor)
