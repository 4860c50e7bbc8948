"""Linen modules. They know no data and no loss."""

from dirasym.models.baselines import GRU, PrefixMLP
from dirasym.models.bilinear import Bilinear, OneLayer
from dirasym.models.transformer import (
    Transformer,
    TransformerConfig,
    attention_only,
    gpt2,
    make_apply_fn,
    make_internals_fn,
    make_tokens_apply_fn,
    radd,
)

__all__ = [
    "GRU",
    "Bilinear",
    "OneLayer",
    "PrefixMLP",
    "Transformer",
    "TransformerConfig",
    "attention_only",
    "gpt2",
    "make_apply_fn",
    "make_internals_fn",
    "make_tokens_apply_fn",
    "radd",
]
