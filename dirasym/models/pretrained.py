"""Hugging Face model directories ↔ parameters, strict: each key accounted for, by name.

GPT-2, LLaMA, Qwen2 and LLaDA, from `config.json` and one or several safetensors files.
Needs the extra `[hf]` (safetensors).
"""

import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dirasym import readers
from dirasym.models import hf_config
from dirasym.models.transformer import Transformer, TransformerConfig
from dirasym.types import Params

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CONFIG = "config.json"


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
_BUFFERS = {
    "gpt2": ("h.{n}.attn.bias", "h.{n}.attn.masked_bias"),
    "llama": ("layers.{n}.self_attn.rotary_emb.inv_freq",),
    "qwen2": ("layers.{n}.self_attn.rotary_emb.inv_freq",),
    "llada": (),
}


def load_pretrained(
    directory: str | os.PathLike,
    *,
    param_dtype: Any = jnp.float32,
    shardings: Callable[[Params], Params] | None = None,
    **overrides: Any,
) -> tuple[Transformer, Params]:
    """The model of a Hugging Face directory: `model.apply({"params": params}, tokens_BL)`.

    Tensors are read one at a time, cast, and put on their devices before the next is read, so
    host memory holds the pages of one shard and one tensor beyond what the devices hold.

    Args:
      directory: has config.json and model.safetensors, or model.safetensors.index.json and
        the shards that it names.
      param_dtype: of the parameters.
      shardings: from the tree of the parameters' shapes to one of their shardings; the
        default device when None.
      **overrides: fields of `TransformerConfig`, e.g. dtype, dropout, remat, scan_layers.

    Raises:
      ValueError: a file is missing, truncated or no safetensors file; config.json has a field
        that is unknown or asks for what is not implemented; a key is unknown, missing, held
        twice, of the wrong shape or not of floats. The message names it; of missing keys, all.
    """
    directory = pathlib.Path(directory)
    fields = readers.read_json(directory / _CONFIG)
    return assemble(
        fields, _tensors(directory), directory, shardings, param_dtype=param_dtype, **overrides
    )


def assemble(
    fields: dict[str, Any],
    tensors: Iterable[tuple[pathlib.Path, str, np.ndarray]],
    source: pathlib.Path,
    shardings: Callable[[Params], Params] | None = None,
    **overrides: Any,
) -> tuple[Transformer, Params]:
    """`load_pretrained` of a parsed config.json and of (file, key, tensor) in any order."""
    try:
        architecture, config = hf_config.read(fields, **overrides)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}") from None
    model = Transformer(config)
    shapes = param_shapes(model)
    layout = _Layout(architecture, config, shapes)
    abstract = flax.traverse_util.flatten_dict(shapes, sep="/")
    placed = dict.fromkeys(abstract)
    if shardings is not None:
        placed = flax.traverse_util.flatten_dict(shardings(shapes), sep="/")

    params: dict[str, jax.Array] = {}
    key_of: dict[str, str] = {}
    tied_key, tied_value = None, None
    for path, key, tensor in tensors:
        name = layout.bare(key)
        if name in layout.buffers:
            continue
        if name in layout.tied:
            tied_key, tied_value = key, tensor
            continue
        if name not in layout.weights:
            raise ValueError(f"{path}: unknown key {key}")
        if name in key_of:
            raise ValueError(f"{path}: key {key} repeats {key_of[name]}")
        key_of[name] = key
        shape = layout.stored_shape(name)
        if tensor.shape != shape:
            raise ValueError(f"{path}: {key} has shape {tensor.shape}, the model needs {shape}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(f"{path}: {key} has dtype {tensor.dtype}, not a float")
        for target, layer, value in layout.split(name, tensor):
            value = value.astype(abstract[target].dtype)
            if layer is None:
                params[target] = jax.block_until_ready(_put(value, placed[target]))
                continue
            if target not in params:
                stacked = abstract[target]
                params[target] = jnp.zeros(stacked.shape, stacked.dtype, device=placed[target])
            params[target] = jax.block_until_ready(_set_layer(params[target], layer, value))
    missing = [layout.prefixed(name) for name in layout.weights if name not in key_of]
    if missing:
        keys = "key" if len(missing) == 1 else "keys"
        raise ValueError(f"{source}: missing {keys} {', '.join(missing)}")
    if tied_key is not None:
        embedding = np.asarray(params["embed/embedding"])
        if not np.array_equal(embedding, tied_value.astype(embedding.dtype)):
            raise ValueError(f"{source}: {tied_key} differs from the embedding that it is tied to")
    return model, flax.traverse_util.unflatten_dict(params, sep="/")


def save_pretrained(
    directory: str | os.PathLike,
    model: Transformer,
    params: Params,
    *,
    max_shard_bytes: int = 5 * 10**9,
    more_fields: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and safetensors that `load_pretrained` and transformers read.

    Files are written beside their place and moved there when all are whole. `more_fields` go
    into config.json too: those that do not change the computation, such as eos_token_id.

    Raises:
      ValueError: the model is none of the four architectures (the field in the way is named),
        `params` is not a tree of its parameters, or one of `more_fields` is unknown.
    """
    directory = pathlib.Path(directory)
    fields = hf_config.write(model.config)
    fields |= {"torch_dtype": str(jnp.dtype(model.config.param_dtype)), **(more_fields or {})}
    hf_config.read(fields)
    layout = _Layout(fields["model_type"], model.config, param_shapes(model))
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    shapes = flax.traverse_util.flatten_dict(param_shapes(model), sep="/")
    for path in sorted(flat.keys() ^ shapes.keys()):
        raise ValueError(f"{'missing' if path in shapes else 'unknown'} parameter {path}")
    for path, shape in shapes.items():
        if flat[path].shape != shape.shape:
            raise ValueError(f"{path} has shape {flat[path].shape}, the model needs {shape.shape}")

    itemsize = jnp.dtype(model.config.param_dtype).itemsize
    shards, size = [[]], 0
    for name in layout.weights:
        num_bytes = math.prod(layout.stored_shape(name)) * itemsize
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".partial-") as partial:
        partial = pathlib.Path(partial)
        weight_map = {}
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            file = file if len(shards) > 1 else _SINGLE
            tensors = {layout.prefixed(name): layout.join(name, flat) for name in names}
            write_safetensors(partial / file, tensors)
            weight_map |= dict.fromkeys(tensors, file)
        if len(shards) > 1:
            index = {"metadata": {}, "weight_map": weight_map}
            (partial / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
        (partial / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
        # The configuration goes first and comes last: where it is, the weights are.
        (directory / _CONFIG).unlink(missing_ok=True)
        for stale in (*directory.glob("model*.safetensors"), directory / _INDEX):
            stale.unlink(missing_ok=True)
        for file in sorted(partial.iterdir(), key=lambda file: (file.name == _CONFIG, file)):
            shutil.move(file, directory / file.name)


def param_shapes(model: Transformer) -> Params:
    """The parameters' shapes and dtypes, from `jax.eval_shape`: nothing is computed."""
    tokens_BL = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens_BL)["params"]


class _Layout:
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
        self.buffers = {name.format(n=n) for name in _BUFFERS[architecture] for n in numbers}
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


def read_safetensors(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """(key, tensor) by key, each read when its turn comes. Raises ValueError, naming the file."""
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="numpy") as tensors:
            for key in sorted(tensors.keys()):
                yield key, _tensor(path, tensors, key)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _tensor(path: pathlib.Path, tensors: Any, key: str) -> np.ndarray:
    try:
        return tensors.get_tensor(key)
    except (AttributeError, TypeError) as error:  # a dtype that NumPy does not know
        raise ValueError(f"{path}: {key} cannot be read: {error}") from None


def write_safetensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes the file as transformers and peft expect it."""
    _safetensors().numpy.save_file(tensors, path, metadata={"format": "pt"})


def _safetensors():
    """The library, imported late: an optional dependency."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("safetensors is missing: pip install 'dirasym[hf]'") from None
    return safetensors


def _tensors(directory: pathlib.Path) -> Iterator[tuple[pathlib.Path, str, np.ndarray]]:
    """(file, key, tensor) of all weights, checked against the index if there is one."""
    index, single = directory / _INDEX, directory / _SINGLE
    if not index.exists():
        if not single.exists():
            raise ValueError(f"{directory} has no weights: neither {_SINGLE} nor {_INDEX}")
        yield from ((single, key, tensor) for key, tensor in read_safetensors(single))
        return
    weight_map = readers.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map")
    for file in sorted(set(weight_map.values())):
        wanted = {key for key in weight_map if weight_map[key] == file}
        path = directory / file
        for key, tensor in read_safetensors(path):
            if key not in wanted:
                raise ValueError(f"{path}: key {key} is not in {_INDEX}")
            wanted.remove(key)
            yield path, key, tensor
        for key in sorted(wanted):
            raise ValueError(f"{path}: missing key {key}, which {_INDEX} says is there")


def _put(value: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jnp.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _set_layer(stacked: jax.Array, layer: int, value: np.ndarray) -> jax.Array:
    """`stacked` with one layer's value in place; its buffer is reused."""
    return _layer_setter(stacked.sharding)(stacked, value, layer)


@functools.cache
def _layer_setter(sharding: Any):
    # A slice update, not a scatter: on CPU a bfloat16 scatter copies the whole stack.
    update = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return jax.jit(update, donate_argnums=0, out_shardings=sharding)
