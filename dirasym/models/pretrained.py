"""Hugging Face model directories ↔ parameters, strict: each key accounted for, by name.

GPT-2, LLaMA, Mistral, Qwen2, Qwen3, LLaDA, Dream, BERT, RoBERTa and ModernBERT, from
`config.json` and one or several safetensors files. Needs the extra `[hf]` (safetensors).
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dirasym import files, readers, usage
from dirasym.models import hf_config
from dirasym.models.hf_layout import Layout
from dirasym.models.transformer import Transformer
from dirasym.types import Params

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_CONFIG = "config.json"
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")  # what `save_pretrained` writes
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model",
    "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")


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
      directory: has config.json and model.safetensors, or else model.safetensors.index.json
        and the shards that it names.
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
    fields = readers.read_model_config(directory)
    keys = _keys_by_file(directory)
    return assemble(
        fields,
        _tensors(keys),
        directory,
        shardings,
        num_tensors=sum(map(len, keys.values())),
        param_dtype=param_dtype,
        **overrides,
    )


def assemble(
    fields: dict[str, Any],
    tensors: Iterable[tuple[pathlib.Path, str, np.ndarray]],
    source: pathlib.Path,
    shardings: Callable[[Params], Params] | None = None,
    *,
    num_tensors: int,
    **overrides: Any,
) -> tuple[Transformer, Params]:
    """`load_pretrained` of a parsed config.json and of (file, key, tensor) in any order.

    Raises:
      ValueError: as `load_pretrained`, or fewer tensors, `num_tensors`, than layers.
    """
    try:
        architecture, config = hf_config.read(fields, **overrides)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}") from None
    if config.num_layers > num_tensors:  # before memory is asked for each of them
        raise ValueError(f"{source}: {config.num_layers} layers, but {num_tensors} tensors")
    model = Transformer(config)
    shapes = param_shapes(model)
    layout = Layout(architecture, config, shapes)
    abstract = flax.traverse_util.flatten_dict(shapes, sep="/")
    placed = dict.fromkeys(abstract)
    if shardings is not None:
        placed = flax.traverse_util.flatten_dict(shardings(shapes), sep="/")

    params: dict[str, jax.Array] = {}
    key_of: dict[str, str] = {}
    tied: list[tuple[str, np.ndarray, str]] = []
    for path, key, tensor in tensors:
        name = layout.bare(key)
        if name in layout.skipped:
            continue
        if name in layout.tied:
            tied.append((key, tensor, layout.tied[name]))
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
    for key, tensor, target in tied:
        stored = np.asarray(params[target])
        if not np.array_equal(stored, tensor.astype(stored.dtype)):
            what = "the embedding" if target == "embed/embedding" else "the bias"
            raise ValueError(f"{source}: {key} differs from {what} that it is tied to")
    return model, flax.traverse_util.unflatten_dict(params, sep="/")


def save_pretrained(
    directory: str | os.PathLike,
    model: Transformer,
    params: Params,
    *,
    tokenizer_from: str | os.PathLike | None = None,
    max_shard_bytes: int = 5 * 10**9,
    more_fields: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json and safetensors that `load_pretrained` and transformers read.

    The model type is the one that was read (`TransformerConfig.model_type`); an attention mask
    that is not the type's own is written as `is_causal`. Files are written beside their place
    and moved there when all are whole; those of an earlier save are replaced, others stay.

    Args:
      directory: made if it is not there.
      model: its configuration is written.
      params: the model's parameters.
      tokenizer_from: a Hugging Face directory, whose tokenizer files and special ids are kept.
      max_shard_bytes: of a file of weights.
      more_fields: of config.json, such as eos_token_id: none that change the computation.

    Raises:
      ValueError: the model is none of the architectures (the field in the way is named),
        `params` is not a tree of its parameters, one of `more_fields` is unknown, or
        `tokenizer_from` has no tokenizer.
    """
    directory = pathlib.Path(directory)
    fields = hf_config.write(model.config)
    fields["torch_dtype"] = str(jnp.dtype(model.config.param_dtype))
    copied: list[pathlib.Path] = []
    if tokenizer_from is not None:
        source = readers.read_json(pathlib.Path(tokenizer_from) / _CONFIG)
        fields |= {name: source[name] for name in _SPECIAL_IDS if source.get(name) is not None}
        copied = [pathlib.Path(tokenizer_from) / name for name in _TOKENIZER_FILES]
        copied = [path for path in copied if path.is_file()]
        if not copied:
            raise ValueError(f"{tokenizer_from} has no tokenizer")
    fields |= more_fields or {}
    hf_config.check(fields, model.config)
    shapes = param_shapes(model)
    flat = _checked(params, shapes)
    layout = Layout(fields["model_type"], model.config, shapes)
    itemsize = jnp.dtype(model.config.param_dtype).itemsize
    directory.mkdir(parents=True, exist_ok=True)
    with files.partial_folder(directory) as partial:
        _write_shards(partial, layout, flat, max_shard_bytes // itemsize)
        for path in copied:
            shutil.copyfile(path, partial / path.name)
        (partial / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        # The configuration goes first and comes last: where it is, the weights are.
        (directory / _CONFIG).unlink(missing_ok=True)
        for stale in directory.iterdir():
            if _OURS.fullmatch(stale.name) or stale.name == _INDEX:
                stale.unlink()
        for file in sorted(partial.iterdir(), key=lambda file: (file.name == _CONFIG, file)):
            shutil.move(file, directory / file.name)


def _checked(params: Params, shapes: Params) -> dict[str, Any]:
    """`params` by path. Raises ValueError if they are not of these shapes."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    wanted = flax.traverse_util.flatten_dict(shapes, sep="/")
    for path in sorted(flat.keys() ^ wanted.keys()):
        raise ValueError(f"{'missing' if path in wanted else 'unknown'} parameter {path}")
    for path, shape in wanted.items():
        if flat[path].shape != shape.shape:
            raise ValueError(f"{path} has shape {flat[path].shape}, the model needs {shape.shape}")
    return flat


def _write_shards(
    folder: pathlib.Path, layout: Layout, flat: dict[str, Any], max_size: int
) -> None:
    """The weights, in one file or in shards of so many numbers with an index."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in layout.weights:
        numbers = math.prod(layout.stored_shape(name))
        if shards[-1] and size + numbers > max_size:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += numbers
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = file if len(shards) > 1 else _SINGLE
        tensors = {layout.prefixed(name): layout.join(name, flat) for name in names}
        write_safetensors(folder / file, tensors)
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2)
        (folder / _INDEX).write_text(index + "\n", encoding="utf-8")


def param_shapes(model: Transformer) -> Params:
    """The parameters' shapes and dtypes, from `jax.eval_shape`: nothing is computed."""
    tokens_BL = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens_BL)["params"]


def read_safetensors(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """(key, tensor) by key, each read when its turn comes. Raises ValueError, naming the file."""
    with _opened(path) as tensors:
        for key in sorted(tensors.keys()):
            yield key, _tensor(path, tensors, key)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """A safetensors file. Raises ValueError, naming it."""
    safetensors = usage.optional("safetensors.numpy", "hf")
    try:
        files.check_regular(path)
        with safetensors.safe_open(path, framework="numpy") as tensors:
            yield tensors
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
    safetensors = usage.optional("safetensors.numpy", "hf")
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def _keys_by_file(directory: pathlib.Path) -> dict[pathlib.Path, set[str]]:
    """The files of weights, and the keys of each: its own, or those that the index names.

    As in transformers, an index counts only where there is no whole file.
    """
    index, single = directory / _INDEX, directory / _SINGLE
    if single.exists():
        with _opened(single) as tensors:
            return {single: set(tensors.keys())}
    if not index.exists():
        raise ValueError(f"{directory} has no weights: neither {_SINGLE} nor {_INDEX}")
    weight_map = readers.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map")
    keys: dict[pathlib.Path, set[str]] = {}
    for key, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\]*[^/\\.][^/\\]*", file):
            raise ValueError(f"{index}: {file!r} of {key} is no file of this directory")
        keys.setdefault(directory / file, set()).add(key)
    for path in keys:
        if not path.exists():
            raise ValueError(f"{path} is missing")
    return dict(sorted(keys.items()))


def _tensors(
    keys: Mapping[pathlib.Path, set[str]],
) -> Iterator[tuple[pathlib.Path, str, np.ndarray]]:
    """(file, key, tensor) of all weights, checked against the keys that should be there."""
    for path, wanted in keys.items():
        left = set(wanted)
        for key, tensor in read_safetensors(path):
            if key not in left:
                raise ValueError(f"{path}: key {key} is not in {_INDEX}")
            left.remove(key)
            yield path, key, tensor
        for key in sorted(left):
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
