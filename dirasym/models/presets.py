"""Configurations of known transformers. Each takes overrides by field name."""

import dataclasses
from typing import Any

from dirasym.models import layers
from dirasym.models.transformer import TransformerConfig

GPT2_SIZES: dict[str, dict[str, int]] = {
    "gpt2": dict(num_layers=12, width=768, num_heads=12),
    "gpt2-medium": dict(num_layers=24, width=1024, num_heads=16),
    "gpt2-large": dict(num_layers=36, width=1280, num_heads=20),
    "gpt2-xl": dict(num_layers=48, width=1600, num_heads=25),
}


def radd(vocab_size: int, **overrides) -> TransformerConfig:
    """RADD's encoder (Ou et al., 2025) at the size of the toy task: one layer, width 256.

    Bidirectional, RoPE, LayerNorm, tanh-GELU MLP of ratio 4, no biases in attention. As in
    RADD's code LayerNorm biases start at one and the embedding uniform on ±1/√width. Its
    zero output head may sit at the marginals for all of the toy task's 3000 steps (see
    docs/toy_reversal.md); here the head starts as a linear layer: head_init="zeros" for RADD's.
    """
    preset = TransformerConfig(
        vocab_size=vocab_size,
        num_layers=1,
        width=256,
        num_heads=1,
        causal=False,
        positions="rope",
        head_bias=True,
        norm_bias_init=1.0,
        dropout=0.02,
    )
    return _override(preset, overrides)


def gpt2(vocab_size: int = 50_257, dropout: float = 0.1, **overrides) -> TransformerConfig:
    """GPT-2 (Radford et al., 2019), by default small: 124,439,808 parameters."""
    preset = TransformerConfig(
        vocab_size=vocab_size,
        num_layers=12,
        width=768,
        num_heads=12,
        causal=True,
        positions="learned",
        max_len=1024,
        qkv_bias=True,
        out_bias=True,
        tied_head=True,
        dropout=dropout,
        embed_dropout=dropout,
        attention_dropout=dropout,
        init="normal",
    )
    return _override(preset, overrides)


def llama(vocab_size: int = 128_256, **overrides) -> TransformerConfig:
    """LLaMA (Grattafiori et al., 2024), by default 3.1-8B: 8,030,261,248 parameters.

    With a `width` or `num_heads` of your own, give `num_kv_heads` and `mlp_width` too: they
    fall back to `num_heads` and 4 · width.
    """
    preset = TransformerConfig(
        vocab_size=vocab_size,
        num_layers=32,
        width=4096,
        num_heads=32,
        num_kv_heads=8,
        mlp_width=14_336,
        causal=True,
        max_len=131_072,
        rope_base=500_000.0,
        rope_scaling=layers.RopeScaling(8.0, 1.0, 4.0, 8192),
        norm="rmsnorm",
        mlp="swiglu",
        mlp_bias=False,
        init="normal",
    )
    return _override(preset, overrides)


def qwen2(vocab_size: int = 152_064, **overrides) -> TransformerConfig:
    """Qwen2 (Yang et al., 2024), by default 2.5-7B: 7,615,616,512 parameters. See `llama`."""
    preset = llama(
        vocab_size=vocab_size,
        num_layers=28,
        width=3584,
        num_heads=28,
        num_kv_heads=4,
        mlp_width=18_944,
        max_len=32_768,
        rope_base=1_000_000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        qkv_bias=True,
    )
    return _override(preset, overrides)


def llada(vocab_size: int = 126_464, **overrides) -> TransformerConfig:
    """LLaDA (Nie et al., 2025), LLaMA without the causal mask, by default 8B. See `llama`.

    8,015,581,184 parameters; its mask token has id 126336.
    """
    preset = llama(
        vocab_size=vocab_size,
        num_kv_heads=32,
        mlp_width=12_288,
        causal=False,
        max_len=4096,
        rope_scaling=None,
    )
    return _override(preset, overrides)


def attention_only(vocab_size: int, **overrides) -> TransformerConfig:
    """The minimal encoder of arXiv 2602.02133 §5.2: embedding, RoPE attention, head."""
    preset = TransformerConfig(
        vocab_size=vocab_size,
        num_layers=1,
        width=256,
        num_heads=1,
        causal=False,
        positions="rope",
        norm="none",
        attention_only=True,
    )
    return _override(preset, overrides)


def _override(preset: TransformerConfig, overrides: dict[str, Any]) -> TransformerConfig:
    """`preset` with fields replaced; with a new width or head count, derived sizes follow."""
    derived = {}
    if {"width", "num_heads"} & overrides.keys():
        derived = {name: None for name in ("num_kv_heads", "head_dim", "mlp_width")}
    return dataclasses.replace(preset, **(derived | overrides))
