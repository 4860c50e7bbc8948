"""PEFT's adapter format (`adapter_config.json`, `adapter_model.safetensors`) ↔ LoRA adapters."""

import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dirasym import files, readers
from dirasym.models import hf_config, hf_layout, lora, pretrained
from dirasym.models.lora import LoRA, LoRAConfig
from dirasym.models.transformer import Transformer
from dirasym.types import Params

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<layer>.*)\.lora_(?P<side>[AB])(\.default)?\.weight")
# Settings of PEFT's LoRA with the values that are implemented.
_FIXED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Others than these change the base weights too.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
# Settings of any value; others, such as use_dora or rank_pattern, must be off.
_FREE = frozenset(
    "r lora_alpha lora_dropout target_modules exclude_modules fan_in_fan_out task_type "
    "inference_mode auto_mapping base_model_name_or_path peft_version revision eva_config "
    "megatron_core qalora_group_size".split()
)


def load_adapters(directory: str | os.PathLike, model: Transformer) -> tuple[LoRAConfig, Params]:
    """(settings, adapters) for `LoRA(model, settings)` from a directory that PEFT wrote.

    Raises:
      ValueError: a file is missing or cannot be read, a setting asks for what is not
        implemented, or a key is unknown, missing or misshapen. The message names it.
    """
    directory = pathlib.Path(directory)
    fields = readers.read_json(directory / _CONFIG)
    for name, allowed in _FIXED.items():
        if name in fields and fields[name] not in allowed:
            raise ValueError(f"{directory / _CONFIG}: {name}={fields[name]!r} is not implemented")
    for name in sorted(fields.keys() - _FIXED.keys() - _FREE):
        if fields[name]:
            raise ValueError(f"{directory / _CONFIG}: {name}={fields[name]!r} is not implemented")
    rank, alpha, dropout = _settings(directory / _CONFIG, fields)
    layers = _layers(model)
    found: dict[str, dict[str, np.ndarray]] = {}
    path = directory / _WEIGHTS
    for key, tensor in pretrained.read_safetensors(path):
        match = _KEY.fullmatch(key)
        if match is None or match["layer"] not in layers:
            raise ValueError(f"{path}: unknown key {key}")
        sides = found.setdefault(match["layer"], {})
        if match["side"] in sides:
            raise ValueError(f"{path}: {key} is there twice, with .default and without")
        sides[match["side"]] = tensor
    kinds = sorted({params for layer in found for params, _ in [layers[layer]]})
    if not kinds:
        raise ValueError(f"{path} holds no adapter")
    config = LoRAConfig(
        rank=rank,
        alpha=alpha,
        targets="(" + "|".join(path for params in kinds for path in params) + ")$",
        dropout=dropout,
        fused=tuple(name for params in kinds for name in _fused(params)),
    )
    shapes = _shapes_of(directory / _CONFIG, model, config)
    stacked: dict[str, dict[int, np.ndarray]] = {}
    for layer, (params, number) in layers.items():
        if params not in kinds:
            continue
        for side, name in (("A", "a"), ("B", "b")):
            key = f"base_model.model.{layer}.lora_{side}.weight"
            if side not in found.get(layer, {}):
                raise ValueError(f"{path}: missing key {key}")
            tensor = found[layer][side].T
            targets = _paths(model, params, number, name)
            widths = [shapes[target].shape[-1] for target in targets]
            shape = (*shapes[targets[0]].shape[-2:-1], sum(widths))
            if not jnp.issubdtype(tensor.dtype, jnp.floating):
                raise ValueError(f"{path}: {key} has dtype {tensor.dtype}, not a float")
            if tensor.shape != shape:
                raise ValueError(
                    f"{path}: {key} has shape {tensor.shape[::-1]}, the model needs {shape[::-1]}"
                )
            parts = np.split(tensor, np.cumsum(widths)[:-1], axis=-1)
            for target, part in zip(targets, parts, strict=True):
                stacked.setdefault(target, {})[number] = part
    flat = {}
    for target, of_layer in stacked.items():
        value = [np.asarray(of_layer[number], np.float32) for number in sorted(of_layer)]
        flat[target] = jnp.asarray(np.stack(value) if model.config.scan_layers else value[0])
    return config, flax.traverse_util.unflatten_dict(flat, sep="/")


def _settings(path: pathlib.Path, fields: dict[str, Any]) -> tuple[int, float, float]:
    """(rank, alpha, dropout). Raises ValueError for a value that cannot be."""
    for name in ("r", "lora_alpha"):
        if name not in fields:
            raise ValueError(f"{path} lacks {name}")
    rank, alpha, dropout = fields["r"], fields["lora_alpha"], fields.get("lora_dropout", 0.0)
    can_be = {
        "r": type(rank) is int and 1 <= rank < 2**31,
        "lora_alpha": type(alpha) in (int, float) and 0 < alpha < math.inf,
        "lora_dropout": type(dropout) in (int, float) and 0 <= dropout < 1,
    }
    for name, can in can_be.items():
        if not can:
            raise ValueError(f"{path}: {name}={fields[name]!r} cannot be")
    return rank, alpha, dropout


class _Module(NamedTuple):
    """A layer of PEFT's format: its name, its number in the stack, and where its values are."""

    layer: str
    number: int
    sources: dict[str, list[str]]  # paths of a and b; several are one module there


def check_adapters(model: Transformer, config: LoRAConfig) -> None:
    """Whether `save_adapters` could write adapters of `LoRA(model, config)`.

    From names and shapes alone, so that training need not have run, nor weights be loaded.

    Raises:
      ValueError: as `save_adapters`, or as `LoRA` for targets that match no layer.
    """
    _modules(model, _adapter_shapes(model, config))


def save_adapters(
    directory: str | os.PathLike, model: Transformer, adapters: Params, config: LoRAConfig
) -> None:
    """Writes adapters of `LoRA(model, config)` as PEFT would.

    Raises:
      ValueError: the model has no Hugging Face architecture, layers that are one there
        (GPT-2's c_attn) are not fused here, or the other way round, or a layer has adapters
        that the same layer of another block lacks (PEFT's layers_to_transform).
    """
    directory = pathlib.Path(directory)
    flat = flax.traverse_util.flatten_dict(adapters, sep="/")
    tensors, names = {}, set()
    for module in _modules(model, flat):
        for side, name in (("A", "a"), ("B", "b")):
            parts = [np.asarray(flat[path]) for path in module.sources[name]]
            if model.config.scan_layers:
                parts = [part[module.number] for part in parts]
            joined = np.concatenate(parts, axis=-1)
            key = f"base_model.model.{module.layer}.lora_{side}.weight"
            tensors[key] = np.ascontiguousarray(joined.T)
        names.add(".".join(module.layer.split(f".{module.number}.")[1:]))
    theirs = hf_config.write(model.config)
    is_encoder = theirs["architectures"][0].endswith("ForMaskedLM")
    fields = {
        "peft_type": "LORA",
        "task_type": None if is_encoder else "CAUSAL_LM",  # which asks for a generator
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(names),
        "bias": "none",
        "fan_in_fan_out": theirs["model_type"] == "gpt2",
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    with files.partial_folder(directory) as partial:
        pretrained.write_safetensors(partial / _WEIGHTS, tensors)
        text = json.dumps(fields, indent=2) + "\n"
        (partial / _CONFIG).write_text(text, encoding="utf-8")
        for name in (_WEIGHTS, _CONFIG):
            os.replace(partial / name, directory / name)


def _modules(model: Transformer, flat: Mapping[str, Any]) -> list[_Module]:
    """The adapted layers of adapters by path. Raises ValueError as `save_adapters`."""
    modules: list[_Module] = []
    adapted: dict[tuple[str, ...], bool] = {}
    for layer, (params, number) in _layers(model).items():
        sources = {name: _paths(model, params, number, name) for name in ("a", "b")}
        has_adapter = any(path in flat for path in sources["b"])
        if adapted.setdefault(params, has_adapter) != has_adapter:
            raise ValueError(f"some layers' {'/'.join(params)} have adapters and some have none")
        if not has_adapter:
            continue
        for path in (*sources["a"], *sources["b"]):
            if path not in flat:
                needed = f"{layer} needs fused={_fused(params)}"
                raise ValueError(f"adapter {path} is missing: {needed}")
        modules.append(_Module(layer, number, sources))
    used = {path for module in modules for paths in module.sources.values() for path in paths}
    for path in sorted(flat.keys() - used):
        raise ValueError(f"adapter {path} has no place in PEFT's format")
    return modules


def _layers(model: Transformer) -> dict[str, tuple[tuple[str, ...], int]]:
    """Linear layers by their name in transformers -> (our layers that it joins, layer number)."""
    architecture = hf_config.write(model.config)["model_type"]
    layers = {}
    for row in hf_layout.TABLES[architecture]:
        if "{n}" in row.key and row.params[0].endswith("/kernel"):
            params = tuple(path.removesuffix("/kernel") for path in row.params)
            for number in range(model.config.num_layers):
                key = row.key.removesuffix(".weight").format(n=number)
                layers[hf_layout.PREFIX[architecture] + key] = (params, number)
    return layers


def _fused(params: tuple[str, ...]) -> tuple[str, ...]:
    """Names of our layers that are one layer in transformers, where they are several."""
    return tuple(path.rpartition("/")[2] for path in params) if len(params) > 1 else ()


def _paths(model: Transformer, params: tuple[str, ...], number: int, name: str) -> list[str]:
    """Paths of the adapters `a` or `b` of layers that are one layer in transformers."""
    block = "blocks/block" if model.config.scan_layers else f"blocks_{number}"
    if name == "a" and len(params) > 1:
        return [f"{block}/{params[0].rpartition('/')[0]}/{lora.FUSED_A}"]
    return [f"{block}/{path}/{name}" for path in params]


def _shapes_of(path: pathlib.Path, model: Transformer, config: LoRAConfig) -> dict[str, Any]:
    """`_adapter_shapes`. Raises ValueError, naming the file, for a rank beyond a layer's sizes."""
    try:
        return _adapter_shapes(model, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _adapter_shapes(model: Transformer, config: LoRAConfig) -> dict[str, Any]:
    tokens_BL = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(LoRA(model, config).init, jax.random.key(0), tokens_BL)
    return flax.traverse_util.flatten_dict(variables["lora"], sep="/")
