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


def _norm(key: str, param: str) -> tuple[Weight, Weight]:
    """The scale and the bias of a norm."""
    return Weight(f"{key}.weight", (f"{param}/scale",)), Weight(f"{key}.bias", (f"{param}/bias",))


def _bert(*head: Weight) -> tuple[Weight, ...]:
    """BERT's encoder with a head of its own names."""
    layer = "encoder.layer.{n}"
    return (
        Weight("embeddings.word_embeddings.weight", ("embed/embedding",)),
        Weight("embeddings.position_embeddings.weight", ("position_embed/embedding",)),
        Weight("embeddings.token_type_embeddings.weight", ("type_embed/embedding",)),
        *_norm("embeddings.LayerNorm", "embed_norm"),
        *_linear(f"{layer}.attention.self.query", "attention/query"),
        *_linear(f"{layer}.attention.self.key", "attention/key"),
        *_linear(f"{layer}.attention.self.value", "attention/value"),
        *_linear(f"{layer}.attention.output.dense", "attention/out"),
        *_norm(f"{layer}.attention.output.LayerNorm", "attention_norm"),
        *_linear(f"{layer}.intermediate.dense", "mlp/up"),
        *_linear(f"{layer}.output.dense", "mlp/down"),
        *_norm(f"{layer}.output.LayerNorm", "mlp_norm"),
        *head,
    )


_QKV = ("attention/query", "attention/key", "attention/value")
# The prefix may be absent, as in directories saved from the model without its head.
PREFIX = {
    "gpt2": "transformer.",
    "llama": "model.",
    "qwen2": "model.",
    "qwen3": "model.",
    "mistral": "model.",
    "Dream": "model.",
    "llada": "model.transformer.",
    "bert": "bert.",
    "roberta": "roberta.",
    "modernbert": "model.",
}
_OUTSIDE_PREFIX = ("lm_head.", "cls.", "head.", "decoder.")
TABLES: dict[str, tuple[Weight, ...]] = {
    "gpt2": (
        Weight("wte.weight", ("embed/embedding",)),
        Weight("wpe.weight", ("position_embed/embedding",)),
        *_norm("h.{n}.ln_1", "attention_norm"),
        *_linear("h.{n}.attn.c_attn", *_QKV, transposed=False),
        *_linear("h.{n}.attn.c_proj", "attention/out", transposed=False),
        *_norm("h.{n}.ln_2", "mlp_norm"),
        *_linear("h.{n}.mlp.c_fc", "mlp/up", transposed=False),
        *_linear("h.{n}.mlp.c_proj", "mlp/down", transposed=False),
        *_norm("ln_f", "final_norm"),
        Weight("lm_head.weight", ("head/kernel",), True),
    ),
    "llama": (
        Weight("embed_tokens.weight", ("embed/embedding",)),
        Weight("layers.{n}.input_layernorm.weight", ("attention_norm/scale",)),
        *_linear("layers.{n}.self_attn.q_proj", "attention/query"),
        *_linear("layers.{n}.self_attn.k_proj", "attention/key"),
        *_linear("layers.{n}.self_attn.v_proj", "attention/value"),
        *_linear("layers.{n}.self_attn.o_proj", "attention/out"),
        Weight("layers.{n}.self_attn.q_norm.weight", ("attention/query_norm/scale",)),
        Weight("layers.{n}.self_attn.k_norm.weight", ("attention/key_norm/scale",)),
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
    "bert": _bert(
        *_linear("cls.predictions.transform.dense", "head_dense"),
        *_norm("cls.predictions.transform.LayerNorm", "head_norm"),
        Weight("cls.predictions.bias", ("head_bias",)),
        *_linear("cls.predictions.decoder", "head"),
    ),
    "roberta": _bert(
        *_linear("lm_head.dense", "head_dense"),
        *_norm("lm_head.layer_norm", "head_norm"),
        Weight("lm_head.bias", ("head_bias",)),
        *_linear("lm_head.decoder", "head"),
    ),
    "modernbert": (
        Weight("embeddings.tok_embeddings.weight", ("embed/embedding",)),
        *_norm("embeddings.norm", "embed_norm"),
        *_norm("layers.{n}.attn_norm", "attention_norm"),
        *_linear("layers.{n}.attn.Wqkv", *_QKV),
        *_linear("layers.{n}.attn.Wo", "attention/out"),
        *_norm("layers.{n}.mlp_norm", "mlp_norm"),
        *_linear("layers.{n}.mlp.Wi", "mlp/gate", "mlp/up"),
        *_linear("layers.{n}.mlp.Wo", "mlp/down"),
        *_norm("final_norm", "final_norm"),
        *_linear("head.dense", "head_dense"),
        *_norm("head.norm", "head_norm"),
        Weight("decoder.bias", ("head_bias",)),
        *_linear("decoder", "head"),
    ),
}
_LIKE_LLAMA = ("qwen2", "qwen3", "mistral", "Dream")
TABLES |= dict.fromkeys(_LIKE_LLAMA, TABLES["llama"])
# What no logit depends on: constants that old versions of transformers saved, and other heads.
_SKIPPED: dict[str, tuple[str, ...]] = {
    "gpt2": ("h.{n}.attn.bias", "h.{n}.attn.masked_bias"),
    "llama": ("layers.{n}.self_attn.rotary_emb.inv_freq",),
    "llada": (),
    "bert": (
        "embeddings.position_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    ),
    "roberta": ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"),
    "modernbert": (),
}
_SKIPPED |= dict.fromkeys(_LIKE_LLAMA, _SKIPPED["llama"])
# What a tied head repeats, and what an untied one has beside the bias that it adds.
_TIED_TO = {"head/kernel": "embed/embedding", "head/bias": "head_bias"}
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Layout:
    """Where each key of a checkpoint lies in the parameters of one model.

    Attributes:
      weights: name (a key without the prefix) -> (its row of the table, layer or None).
      skipped: names that no logit depends on.
      tied: names that repeat a parameter, where the head is tied to the embedding -> its path.
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
        self.skipped = {name.format(n=n) for name in _SKIPPED[architecture] for n in numbers}
        self.tied: dict[str, str] = {}
        for row in TABLES[architecture]:
            if row.key in self.weights or "{n}" in row.key:
                continue
            if _TIED_TO.get(row.params[0]) in self._shapes:
                self.tied[row.key] = _TIED_TO[row.params[0]]
            elif row.params == ("head_bias",) and "head/bias" in self._shapes:
                self.skipped.add(row.key)  # transformers adds the linear layer's

    def bare(self, key: str) -> str:
        """A key without its prefix, under the name that the table has."""
        name = key.removeprefix(self._prefix)
        for old, new in _OLD_NAMES.items():
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name

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
