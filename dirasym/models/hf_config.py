"""Hugging Face's config.json ↔ `TransformerConfig`, field by field; an unknown one is an error."""

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from dirasym.models.layers import RopeScaling
from dirasym.models.transformer import TransformerConfig

_ORIGINAL = "original_max_position_embeddings"
_SHORT = reprlib.Repr()
_SHORT.maxlong = _SHORT.maxstring = 60
# Fields of any config.json that say nothing about the function from tokens to logits.
_IRRELEVANT = frozenset(
    "_attn_implementation _name_or_path _num_labels architectures auto_map bos_token_id dtype "
    "eos_token_id id2label initializer_range label2id mask_token_id model_type output_attentions "
    "output_hidden_states pad_token_id problem_type return_dict task_specific_params "
    "tokenizer_class torch_dtype transformers_version use_cache "
    # of one architecture each
    "summary_activation summary_first_dropout summary_proj_to_labels summary_type "
    "summary_use_proj n_ctx is_llama_config rope_interleaved transformers.js_config "
    "n_special predict_special_tokens output_past gradient_checkpointing "
    "max_window_layers sliding_window layer_types "
    "init_cutoff_factor init_device init_fn init_std flash_attention precision "
    "rope_full_precision alibi_bias_max attention_layer_norm_with_affine "
    "block_group_size mlp_ratio "
    # what transformers writes, or wrote, of every model
    "_attn_implementation_autoset _attn_implementation_internal _commit_hash "
    "_flash_attn_2_enabled attn_implementation cross_attention_hidden_size finetuning_task "
    "neftune_noise_alpha output_scores prefix tf_legacy_loss tie_encoder_decoder torchscript "
    "use_bfloat16 use_return_dict "
    # how to sample
    "bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample "
    "early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty "
    "forced_bos_token_id forced_eos_token_id length_penalty max_length min_length "
    "no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values "
    "repetition_penalty return_dict_in_generate sep_token_id suppress_tokens temperature top_k "
    "top_p typical_p".split()
)
_IRRELEVANT_PREFIX = "unsloth_"
# Fields with the only value that is implemented; absent means that value.
_FIXED: dict[str, dict[str, tuple]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
    },
    "llama": {"hidden_act": ("silu",), "pretraining_tp": (1,)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "llada": {
        "activation_type": ("silu",),
        "block_type": ("llama",),
        "layer_norm_type": ("rms",),
        "rope": (True,),
        "alibi": (False,),
        "attention_layer_norm": (False,),
        "bias_for_layer_norm": (False,),
        "include_bias": (False,),
        "input_emb_norm": (False,),
        "layer_norm_with_affine": (True,),
        "multi_query_attention": (None, False),
        "scale_logits": (False,),
    },
}
_FIXED_ANYWHERE: dict[str, tuple] = {
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "partial_rotary_factor": (None, 1),
    "pruned_heads": ({}, None),
    "use_mrope": (False,),
}
# Our field -> theirs. `None` fields of theirs fall back as ours do.
_FIELDS = {
    "gpt2": {
        "vocab_size": "vocab_size",
        "num_layers": "n_layer",
        "width": "n_embd",
        "num_heads": "n_head",
        "mlp_width": "n_inner",
        "max_len": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "dropout": "resid_pdrop",
        "embed_dropout": "embd_pdrop",
        "attention_dropout": "attn_pdrop",
        "tied_head": "tie_word_embeddings",
    },
    "qwen2": {
        "vocab_size": "vocab_size",
        "num_layers": "num_hidden_layers",
        "width": "hidden_size",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "mlp_width": "intermediate_size",
        "max_len": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "attention_dropout": "attention_dropout",
        "tied_head": "tie_word_embeddings",
    },
    "llada": {
        "num_layers": "n_layers",
        "width": "d_model",
        "num_heads": "n_heads",
        "num_kv_heads": "n_kv_heads",
        "mlp_width": "mlp_hidden_size",
        "max_len": "max_sequence_length",
        "norm_eps": "rms_norm_eps",
        "rope_base": "rope_theta",
        "dropout": "residual_dropout",
        "embed_dropout": "embedding_dropout",
        "attention_dropout": "attention_dropout",
        "tied_head": "weight_tying",
        "qkv_bias": "include_qkv_bias",
    },
}
_BIASES = {"out_bias": "attention_bias", "qkv_bias": "attention_bias", "mlp_bias": "mlp_bias"}
_FIELDS["llama"] = _FIELDS["qwen2"] | _BIASES
_TYPES = {field.name: field.type for field in dataclasses.fields(TransformerConfig)}
# What an absent field means, where that is not our own default.
_ABSENT: dict[str, dict[str, Any]] = {
    "gpt2": {"tied_head": True, "dropout": 0.1, "embed_dropout": 0.1, "attention_dropout": 0.1},
    "llama": {"norm_eps": 1e-6},
    "qwen2": {"norm_eps": 1e-6},
    "llada": {"norm_eps": 1e-5},
}
# Fields of ours that all models of an architecture share.
_SHARED: dict[str, dict[str, Any]] = {
    "gpt2": dict(causal=True, positions="learned", qkv_bias=True, out_bias=True, init="normal"),
    "llama": dict(causal=True, norm="rmsnorm", mlp="swiglu", mlp_bias=False, init="normal"),
}
_SHARED["qwen2"] = _SHARED["llama"] | {"qkv_bias": True}
_SHARED["llada"] = _SHARED["llama"] | {"causal": False}
_CLASS = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llada": "LLaDAModelLM",
}
# Fields of ours that say how to compute, or how to start, but not what.
_NOT_STORED = {
    "dtype", "param_dtype", "remat", "scan_layers", "init", "embed_std", "head_init",
    "norm_bias_init", "model_type",
}  # fmt: skip


def read(fields: Mapping[str, Any], **overrides: Any) -> tuple[str, TransformerConfig]:
    """(architecture, configuration) of a parsed config.json, with fields of ours replaced.

    Raises:
      ValueError: an unknown architecture, a required field missing, a field that is not
        known here, or one whose value cannot be or asks for a computation that is not
        implemented.
    """
    architecture = fields.get("model_type")
    if not isinstance(architecture, str) or architecture not in _FIELDS:
        raise ValueError(
            f"model_type must be one of {', '.join(sorted(_FIELDS))}, got {architecture!r}"
        )
    names = _FIELDS[architecture]
    config = _SHARED[architecture] | _ABSENT[architecture] | {"model_type": architecture}
    if fields.get("is_causal") is not None:
        config["causal"] = _typed(fields, "is_causal", bool)
    for ours, theirs in names.items():
        if fields.get(theirs) is not None:
            config[ours] = _typed(fields, theirs, _TYPES[ours])
        elif ours in ("vocab_size", "num_layers", "width", "num_heads", "max_len"):
            raise ValueError(f"config.json lacks {theirs}")
    handled = {"is_causal", *names.values()}
    fixed = _FIXED[architecture] | _FIXED_ANYWHERE
    for name, allowed in fixed.items():
        if name in fields and fields[name] not in allowed:
            raise ValueError(f"config.json: {_shown(fields, name)} is not implemented")
    handled |= fixed.keys()
    if architecture in ("llama", "qwen2"):
        handled |= {"rope_theta", "rope_scaling", "rope_parameters"}
        config["rope_base"], config["rope_scaling"] = _read_rope(fields, config["max_len"])
    if architecture == "qwen2" and set(fields.get("layer_types") or ()) - {"full_attention"}:
        raise ValueError(f"config.json: layer_types={fields['layer_types']!r} is not implemented")
    if architecture == "llada":
        handled |= {"vocab_size", "embedding_size"}
        size = "embedding_size" if fields.get("embedding_size") else "vocab_size"
        if fields.get(size) is None:
            raise ValueError("config.json lacks vocab_size")
        config["vocab_size"] = _typed(fields, size, int)
        ratio = _typed(fields, "mlp_ratio", int) if "mlp_ratio" in fields else 4
        config.setdefault("mlp_width", ratio * config["width"])
    for name in sorted(fields.keys() - handled - _IRRELEVANT):
        if not name.startswith(_IRRELEVANT_PREFIX):
            raise ValueError(f"config.json: unknown field {_shown(fields, name)}")
    return architecture, TransformerConfig(**(config | overrides))


def _typed(fields: Mapping[str, Any], name: str, kind: Any) -> Any:
    """fields[name]; an int may stand for a float.

    Raises:
      ValueError: another type, a number that is not finite, or one that no field of ours can
        have: a size below 1 or beyond int32, a base or epsilon that is not positive.
    """
    value = fields[name]
    allowed = int | float if kind is float else kind
    if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
        wanted = getattr(kind, "__name__", str(kind))
        raise ValueError(f"config.json: {_shown(fields, name)} is not of type {wanted}")
    if kind is float:
        lowest = 0.0 if name.endswith(("dropout", "pdrop")) else math.nextafter(0, 1)
        if not lowest <= value < math.inf:
            raise ValueError(f"config.json: {_shown(fields, name)} cannot be")
    elif isinstance(value, int) and kind is not bool and not 1 <= value < 2**31:
        raise ValueError(f"config.json: {_shown(fields, name)} cannot be")
    return value


def _shown(fields: Mapping[str, Any], name: str) -> str:
    return f"{name}={_SHORT.repr(fields[name])}"


def write(config: TransformerConfig) -> dict[str, Any]:
    """The config.json that `read` takes back to `config`.

    Raises:
      ValueError: no known architecture computes what `config` does; a field in its way is named.
    """
    architecture = config.model_type or _architecture(config)
    if architecture not in _FIELDS:
        raise ValueError(f"model_type {architecture!r} is none of {', '.join(sorted(_FIELDS))}")
    if config.max_len is None:
        raise ValueError(f"{architecture} needs a max_len, the model has none")
    fields = {theirs: getattr(config, ours) for ours, theirs in _FIELDS[architecture].items()}
    fields |= {name: allowed[0] for name, allowed in _FIXED[architecture].items()}
    fields |= {"model_type": architecture, "architectures": [_CLASS[architecture]]}
    if config.causal != _SHARED[architecture]["causal"]:
        fields["is_causal"] = config.causal  # as transformers has it
    if architecture in ("llama", "qwen2"):
        fields["rope_theta"] = config.rope_base
        fields["rope_scaling"] = None
        if config.rope_scaling is not None:
            scaling = dataclasses.asdict(config.rope_scaling)
            length = scaling.pop("original_max_len")
            fields["rope_scaling"] = {
                "rope_type": "llama3",
                _ORIGINAL: length,
                **scaling,
            }
    if architecture == "llada":
        fields |= {"vocab_size": config.vocab_size, "embedding_size": config.vocab_size}
    _, back = read(fields)
    for field in dataclasses.fields(config):
        ours, stored = getattr(config, field.name), getattr(back, field.name)
        if field.name not in _NOT_STORED and ours != stored:
            raise ValueError(f"{architecture} has {field.name}={stored!r}, the model {ours!r}")
    return fields


def _architecture(config: TransformerConfig) -> str:
    """What a model made here could be; `write` proves that it is."""
    if config.positions == "learned":
        return "gpt2"
    if not config.causal:
        return "llada"
    return "qwen2" if config.qkv_bias and not config.out_bias else "llama"


def _read_rope(fields: Mapping[str, Any], max_len: int) -> tuple[float, RopeScaling | None]:
    """(base, scaling) from transformers 5's `rope_parameters` or 4's two fields."""
    for theirs in ("rope_parameters", "rope_scaling"):
        if fields.get(theirs):
            _typed(fields, theirs, dict)
    rope = fields.get("rope_parameters") or {}
    scaling = dict(fields.get("rope_scaling") or rope)
    bases = scaling.pop("rope_theta", None), fields.get("rope_theta"), 10_000.0
    given = [_typed({"rope_theta": x}, "rope_theta", float) for x in bases if x is not None]
    base = given[0]
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if scaling.get("partial_rotary_factor") == 1:
        del scaling["partial_rotary_factor"]
    if (kind, scaling) in (("default", {}), ("linear", {"factor": 1.0})):
        return base, None
    if kind != "llama3":
        raise ValueError(f"config.json: RoPE of type {kind!r} with {scaling} is not implemented")
    original = _typed({_ORIGINAL: max_len} | scaling, _ORIGINAL, int)
    scaling.pop(_ORIGINAL, None)
    for theirs in scaling:
        _typed(scaling, theirs, float)
    try:
        return base, RopeScaling(original_max_len=original, **scaling)
    except TypeError as error:
        raise ValueError(f"config.json: RoPE of type 'llama3': {error}") from None
