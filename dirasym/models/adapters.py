"""PEFT's adapter format (`adapter_config.json`, `adapter_model.safetensors`) ↔ LoRA adapters."""

import json
import os
import pathlib
import re
import tempfile
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from dirasym import readers
from dirasym.models import hf_config, lora, pretrained
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
    for name in ("r", "lora_alpha"):
        if name not in fields:
            raise ValueError(f"{directory / _CONFIG} lacks {name}")

    layers = _layers(model)
    found: dict[str, dict[str, np.ndarray]] = {}
    path = directory / _WEIGHTS
    for key, tensor in pretrained.read_safetensors(path):
        match = _KEY.fullmatch(key)
        if match is None or match["layer"] not in layers:
            raise ValueError(f"{path}: unknown key {key}")
        found.setdefault(match["layer"], {})[match["side"]] = tensor
    kinds = sorted({params for layer in found for params, _ in [layers[layer]]})
    if not kinds:
        raise ValueError(f"{path} holds no adapter")
    config = LoRAConfig(
        rank=fields["r"],
        alpha=fields["lora_alpha"],
        targets="(" + "|".join(path for params in kinds for path in params) + ")$",
        dropout=fields.get("lora_dropout", 0.0),
        fused=lora.QKV if any(len(params) > 1 for params in kinds) else (),
    )
    shapes = _adapter_shapes(model, config)
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
    tensors, modules, used, adapted = {}, set(), set(), {}
    for layer, (params, number) in _layers(model).items():
        sources = {name: _paths(model, params, number, name) for name in ("a", "b")}
        has_adapter = any(path in flat for path in sources["b"])
        if adapted.setdefault(params, has_adapter) != has_adapter:
            raise ValueError(f"some layers' {'/'.join(params)} have adapters and some have none")
        if not has_adapter:
            continue
        for side, name in (("A", "a"), ("B", "b")):
            for path in sources[name]:
                if path not in flat:
                    fused = lora.QKV if len(params) > 1 else ()
                    raise ValueError(f"adapter {path} is missing: {layer} needs fused={fused}")
            parts = [np.asarray(flat[path]) for path in sources[name]]
            parts = [part[number] for part in parts] if model.config.scan_layers else parts
            joined = np.concatenate(parts, axis=-1)
            key = f"base_model.model.{layer}.lora_{side}.weight"
            tensors[key] = np.ascontiguousarray(joined.T)
            used.update(sources[name])
        modules.add(".".join(layer.split(f".{number}.")[1:]))
    for path in sorted(flat.keys() - used):
        raise ValueError(f"adapter {path} has no place in PEFT's format")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": hf_config.write(model.config)["model_type"] == "gpt2",
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".partial-") as partial:
        pretrained.write_safetensors(pathlib.Path(partial) / _WEIGHTS, tensors)
        (pathlib.Path(partial) / _CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
        for name in (_WEIGHTS, _CONFIG):
            os.replace(pathlib.Path(partial) / name, directory / name)


def _layers(model: Transformer) -> dict[str, tuple[tuple[str, ...], int]]:
    """Linear layers by their name in transformers -> (our layers that it joins, layer number)."""
    architecture = hf_config.write(model.config)["model_type"]
    layers = {}
    for row in pretrained.TABLES[architecture]:
        if "{n}" in row.key and row.params[0].endswith("/kernel"):
            params = tuple(path.removesuffix("/kernel") for path in row.params)
            for number in range(model.config.num_layers):
                key = row.key.removesuffix(".weight").format(n=number)
                layers[pretrained.PREFIX[architecture] + key] = (params, number)
    return layers


def _paths(model: Transformer, params: tuple[str, ...], number: int, name: str) -> list[str]:
    """Paths of the adapters `a` or `b` of layers that are one layer in transformers."""
    block = "blocks/block" if model.config.scan_layers else f"blocks_{number}"
    if name == "a" and len(params) > 1:
        return [f"{block}/{params[0].rpartition('/')[0]}/{lora.FUSED_A}"]
    return [f"{block}/{path}/{name}" for path in params]


def _adapter_shapes(model: Transformer, config: LoRAConfig) -> dict[str, Any]:
    tokens_BL = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(LoRA(model, config).init, jax.random.key(0), tokens_BL)
    return flax.traverse_util.flatten_dict(variables["lora"], sep="/")
