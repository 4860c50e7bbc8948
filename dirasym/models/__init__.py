"""Linen modules. They know no data and no loss."""

from dirasym.models.baselines import GRU, PrefixMLP
from dirasym.models.bilinear import Bilinear, ReparameterisedAttention
from dirasym.models.lora import LoRA, LoRAConfig
from dirasym.models.mlp import StringMLP
from dirasym.models.peft import check_adapters, load_adapters, save_adapters
from dirasym.models.presets import attention_only, gpt2, llada, llama, qwen2, radd
from dirasym.models.pretrained import load_pretrained, save_pretrained
from dirasym.models.sizes import sizes
from dirasym.models.transformer import (
    Transformer,
    TransformerConfig,
    make_apply_fn,
    make_extend_fn,
    make_internals_fn,
    make_tokens_apply_fn,
)

__all__ = [
    "GRU",
    "Bilinear",
    "LoRA",
    "LoRAConfig",
    "PrefixMLP",
    "ReparameterisedAttention",
    "StringMLP",
    "Transformer",
    "TransformerConfig",
    "attention_only",
    "check_adapters",
    "gpt2",
    "llada",
    "llama",
    "load_adapters",
    "load_pretrained",
    "make_apply_fn",
    "make_extend_fn",
    "make_internals_fn",
    "make_tokens_apply_fn",
    "qwen2",
    "radd",
    "save_adapters",
    "save_pretrained",
    "sizes",
]
