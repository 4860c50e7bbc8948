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
# .. and of one architecture's alone.
_IRRELEVANT_TO: dict[str, frozenset[str]] = {
    "bert": frozenset(
        "classifier_dropout directionality pooler_fc_size pooler_num_attention_heads "
        "pooler_num_fc_layers pooler_size_per_head pooler_type".split()
    ),
    "roberta": frozenset({"classifier_dropout"}),
    "modernbert": frozenset(
        "classifier_dropout classifier_pooling cls_token_id deterministic_flash_attn "
        "initializer_cutoff_factor layer_norm_eps position_embedding_type reference_compile "
        "repad_logits_with_grad sparse_pred_ignore_index sparse_prediction".split()
    ),
}
# Fields with the only value that is implemented; absent means that value.
_FIXED: dict[str, dict[str, tuple]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
    },
    "llama": {"hidden_act": ("silu",), "pretraining_tp": (1,)},
    "mistral": {"hidden_act": ("silu",)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "qwen3": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "Dream": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
    "bert": {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)},
    "roberta": {"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)},
    "modernbert": {
        "hidden_activation": ("gelu",),
        "classifier_activation": ("gelu",),
        "attention_dropout": (0.0,),
        "mlp_dropout": (0.0,),
    },
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
    "bert": {
        "vocab_size": "vocab_size",
        "num_layers": "num_hidden_layers",
        "width": "hidden_size",
        "num_heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "max_len": "max_position_embeddings",
        "token_types": "type_vocab_size",
        "norm_eps": "layer_norm_eps",
        "dropout": "hidden_dropout_prob",
        "embed_dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "tied_head": "tie_word_embeddings",
    },
    "modernbert": {
        "vocab_size": "vocab_size",
        "num_layers": "num_hidden_layers",
        "width": "hidden_size",
        "num_heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "max_len": "max_position_embeddings",
        "norm_eps": "norm_eps",
        "norm_bias": "norm_bias",
        "qkv_bias": "attention_bias",
        "out_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "head_bias": "decoder_bias",
        "embed_dropout": "embedding_dropout",
        "tied_head": "tie_word_embeddings",
    },
}
_BIASES = {"out_bias": "attention_bias", "qkv_bias": "attention_bias", "mlp_bias": "mlp_bias"}
_FIELDS["llama"] = _FIELDS["qwen2"] | _BIASES
_FIELDS["mistral"] = _FIELDS["qwen2"] | {"window": "sliding_window"}
_FIELDS["qwen3"] = _FIELDS["qwen2"] | {name: "attention_bias" for name in ("out_bias", "qkv_bias")}
_FIELDS["Dream"], _FIELDS["roberta"] = _FIELDS["qwen2"], _FIELDS["bert"]
_ROPE = ("llama", "mistral", "qwen2", "qwen3", "Dream")  # one base, in fields of one form
_LAYER_TYPES = ("qwen2", "qwen3", "Dream")  # which name the kind of each layer
_ENCODERS = ("bert", "roberta", "modernbert")  # never causal
_TYPES = {field.name: field.type for field in dataclasses.fields(TransformerConfig)}
# What an absent field means, where that is not our own default.
_ABSENT: dict[str, dict[str, Any]] = {
    "gpt2": {"tied_head": True, "dropout": 0.1, "embed_dropout": 0.1, "attention_dropout": 0.1},
    "llama": {"norm_eps": 1e-6},
    "mistral": {"norm_eps": 1e-6, "num_kv_heads": 8, "window": 4096},
    "qwen2": {"norm_eps": 1e-6},
    "qwen3": {"norm_eps": 1e-6, "num_kv_heads": 32, "head_dim": 128},
    "Dream": {"norm_eps": 1e-6},
    "llada": {"norm_eps": 1e-5},
    "bert": {
        "mlp_width": 3072,
        "token_types": 2,
        "norm_eps": 1e-12,
        "dropout": 0.1,
        "embed_dropout": 0.1,
        "attention_dropout": 0.1,
        "tied_head": True,
    },
    "modernbert": {
        "mlp_width": 1152,
        "norm_bias": False,
        "mlp_bias": False,
        "head_bias": True,
        "tied_head": True,
    },
}
_ABSENT["roberta"] = _ABSENT["bert"]
_NULL = ("num_kv_heads", "head_dim", "mlp_width", "window")  # null has a meaning of its own
# Fields of ours that all models of an architecture share.
_SHARED: dict[str, dict[str, Any]] = {
    "gpt2": dict(causal=True, positions="learned", qkv_bias=True, out_bias=True, init="normal"),
    "llama": dict(causal=True, norm="rmsnorm", mlp="swiglu", mlp_bias=False, init="normal"),
}
_SHARED["mistral"] = _SHARED["llama"]
_SHARED["qwen2"] = _SHARED["llama"] | {"qkv_bias": True}
_SHARED["qwen3"] = _SHARED["llama"] | {"qk_norm": True}
_SHARED["Dream"] = _SHARED["qwen2"] | {"causal": False, "shift_logits": True}
_SHARED["llada"] = _SHARED["llama"] | {"causal": False}
_SHARED["bert"] = _SHARED["gpt2"] | dict(
    causal=False,
    norm_place="post",
    embed_norm=True,
    mlp="gelu_exact",
    head_transform=True,
    head_bias=True,
)
_SHARED["roberta"] = _SHARED["bert"]
_SHARED["modernbert"] = dict(
    causal=False, embed_norm=True, mlp="geglu", head_transform=True, init="normal"
)
_CLASS = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "Dream": "DreamModel",
    "llada": "LLaDAModelLM",
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
}
_KINDS = ("full_attention", "sliding_attention")
_MODERNBERT_BASES = {"global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
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
        elif theirs in fields and ours in _NULL:
            config.pop(ours, None)
    fixed = _FIXED[architecture] | _FIXED_ANYWHERE
    if architecture in _ENCODERS:
        fixed |= {"is_causal": (None, False)}
    for name, allowed in fixed.items():
        if name in fields and fields[name] not in allowed:
            raise ValueError(f"config.json: {_shown(fields, name)} is not implemented")
    handled = {"is_causal", *names.values(), *fixed, *_read_rest(architecture, fields, config)}
    handled |= _IRRELEVANT | _IRRELEVANT_TO.get(architecture, frozenset())
    for name in sorted(fields.keys() - handled):
        if not name.startswith(_IRRELEVANT_PREFIX):
            raise ValueError(f"config.json: unknown field {_shown(fields, name)}")
    return architecture, TransformerConfig(**(config | overrides))


def _read_rest(architecture: str, fields: Mapping[str, Any], config: dict[str, Any]) -> set[str]:
    """Puts into `config` what no table says of an architecture; the fields that it has read."""
    if architecture == "modernbert":
        return _read_modernbert(fields, config)
    if architecture in _ROPE:
        config["rope_base"], config["rope_scaling"] = _read_rope(fields, config["max_len"])
        if config.get("window") and not config["causal"]:
            config["window"] += 1  # both ways, transformers counts the distance itself in
        named = fields.get("layer_types") or () if architecture in _LAYER_TYPES else ()
        if set(named) - {"full_attention"}:
            shown = _shown(fields, "layer_types")
            raise ValueError(f"config.json: {shown} is not implemented")
        return {"rope_theta", "rope_scaling", "rope_parameters"}
    if architecture == "roberta":
        pad_id = fields.get("pad_token_id", 1)
        if not (type(pad_id) is int and 0 <= pad_id < config["max_len"] - 1):
            raise ValueError(f"config.json: pad_token_id={pad_id!r} cannot be")
        config["first_position"] = pad_id + 1
        config["max_len"] -= pad_id + 1
    if architecture == "llada":
        size = "embedding_size" if fields.get("embedding_size") else "vocab_size"
        if fields.get(size) is None:
            raise ValueError("config.json lacks vocab_size")
        config["vocab_size"] = _typed(fields, size, int)
        ratio = _typed(fields, "mlp_ratio", int) if "mlp_ratio" in fields else 4
        config.setdefault("mlp_width", ratio * config["width"])
        return {"vocab_size", "embedding_size"}
    return set()


def _read_modernbert(fields: Mapping[str, Any], config: dict[str, Any]) -> set[str]:
    """Windows, the two bases of RoPE, and the bias of the head's linear layer."""
    given = {"local_attention": 128, "global_attn_every_n_layers": 3, **fields}
    every = _typed(given, "global_attn_every_n_layers", int)
    kinds = fields.get("layer_types")
    if kinds is None:
        kinds = [_KINDS[n % every > 0] for n in range(config["num_layers"])]
    if len(kinds) != config["num_layers"] or set(kinds) - set(_KINDS):
        raise ValueError(f"config.json: {_shown(fields, 'layer_types')} is not implemented")
    config["window"] = _typed(given, "local_attention", int) // 2 + 1
    config["window_layers"] = tuple(n for n, kind in enumerate(kinds) if kind == _KINDS[1])
    bases: list[float] = []
    rope = _typed(fields, "rope_parameters", dict) if fields.get("rope_parameters") else {}
    for kind, (theirs, base) in zip(_KINDS, _MODERNBERT_BASES.items(), strict=True):
        if fields.get(theirs, 0) is None:  # as in transformers 4: the other one
            base = bases[0] if bases else base
        if fields.get(theirs) is not None:
            base = _typed(fields, theirs, float)
        found, scaling = _read_rope({"rope_parameters": rope.get(kind)}, config["max_len"], base)
        if scaling is not None:
            raise ValueError(f"config.json: {_shown(fields, 'rope_parameters')} is not implemented")
        bases.append(found)
    config["rope_base"], config["window_rope_base"] = bases
    if bool(fields.get("classifier_bias")) != config["mlp_bias"]:
        raise ValueError("config.json: classifier_bias that is not mlp_bias is not implemented")
    read = {"layer_types", "rope_parameters", "classifier_bias", *_MODERNBERT_BASES}
    return read | {"local_attention", "global_attn_every_n_layers"}


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
        lowest = 0.0 if "drop" in name else math.nextafter(0, 1)
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
    if config.causal != _SHARED[architecture]["causal"] and architecture not in _ENCODERS:
        fields["is_causal"] = config.causal  # as transformers has it
    if architecture == "roberta":
        fields["pad_token_id"] = config.first_position - 1
        fields["max_position_embeddings"] = config.max_len + config.first_position
    if architecture == "modernbert":
        fields |= _modernbert_fields(config)
    if architecture in _ROPE:
        fields["rope_theta"] = config.rope_base
        if config.window and not config.causal and "sliding_window" in fields:
            fields["sliding_window"] = config.window - 1
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
    check(fields, config)
    return fields


def check(fields: Mapping[str, Any], config: TransformerConfig) -> None:
    """Raises ValueError, naming a field of ours, if a config.json is not that of `config`."""
    architecture, back = read(fields)
    for field in dataclasses.fields(config):
        ours, stored = getattr(config, field.name), getattr(back, field.name)
        if field.name not in _NOT_STORED and ours != stored:
            raise ValueError(f"{architecture} has {field.name}={stored!r}, the model {ours!r}")


def _modernbert_fields(config: TransformerConfig) -> dict[str, Any]:
    """What `_read_modernbert` reads, for transformers 4 too where it has fields for that."""
    kinds = [_KINDS[config.has_window(n)] for n in range(config.num_layers)]
    bases = [config.rope_base, config.window_rope_base or config.rope_base]
    return {
        "local_attention": 2 * (config.window - 1) if config.window else 128,
        "layer_types": kinds,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": base}
            for kind, base in zip(_KINDS, bases, strict=True)
        },
        "classifier_bias": config.mlp_bias,
        **dict(zip(_MODERNBERT_BASES, bases, strict=True)),
        # Absent they are ids of the large vocabulary, which a small one lacks.
        **{f"{name}_token_id": None for name in ("bos", "cls", "eos", "pad", "sep")},
    }


def _architecture(config: TransformerConfig) -> str:
    """What a model made here could be; `write` proves that it is."""
    if config.norm_place == "post":
        return "roberta" if config.first_position else "bert"
    if config.embed_norm:
        return "modernbert"
    if config.positions == "learned":
        return "gpt2"
    if config.shift_logits or config.qk_norm:
        return "Dream" if config.shift_logits else "qwen3"
    if not config.causal:
        return "llada"
    if config.window:
        return "mistral"
    return "qwen2" if config.qkv_bias and not config.out_bias else "llama"


def _read_rope(
    fields: Mapping[str, Any], max_len: int, default: float = 10_000.0
) -> tuple[float, RopeScaling | None]:
    """(base, scaling) from transformers 5's `rope_parameters` or 4's two fields."""
    for theirs in ("rope_parameters", "rope_scaling"):
        if fields.get(theirs):
            _typed(fields, theirs, dict)
    rope = fields.get("rope_parameters") or {}
    scaling = dict(fields.get("rope_scaling") or rope)
    bases = scaling.pop("rope_theta", None), fields.get("rope_theta"), default
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
    low, high = scaling.get("low_freq_factor", 0.0), scaling.get("high_freq_factor", math.inf)
    if low >= high:  # no plane lies between them
        raise ValueError(f"config.json: low_freq_factor={low} is not below high_freq_factor={high}")
    try:
        return base, RopeScaling(original_max_len=original, **scaling)
    except TypeError as error:
        raise ValueError(f"config.json: RoPE of type 'llama3': {error}") from None
