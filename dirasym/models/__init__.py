"""Linen modules. They know no data and no loss."""

from dirasym.models.lora import LoRA, LoRAConfig
from dirasym.models.mlp import StringMLP
from dirasym.models.pretrained import load_pretrained, save_pretrained
from dirasym.models.transformer import (
    Transformer,
    TransformerConfig,
    attention_only,
    gpt2,
    llada,
    llama,
    make_apply_fn,
    make_internals_fn,
    qwen2,
    radd,
)

__all__ = [
    "LoRA",
    "LoRAConfig",
    "StringMLP",
    "Transformer",
    "TransformerConfig",
    "attention_only",
    "gpt2",
    "llada",
    "llama",
    "load_pretrained",
    "make_apply_fn",
    "make_internals_fn",
    "qwen2",
    "radd",
    "save_pretrained",
]
