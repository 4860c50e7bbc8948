"""Linen modules. They know no data and no loss."""

from dirasym.models.transformer import (
    Transformer,
    TransformerConfig,
    attention_only,
    gpt2,
    make_apply_fn,
    make_internals_fn,
    radd,
)

__all__ = [
    "Transformer",
    "TransformerConfig",
    "attention_only",
    "gpt2",
    "make_apply_fn",
    "make_internals_fn",
    "radd",
]
