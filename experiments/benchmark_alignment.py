"""What do per-example gradient inner products cost, with and without the gradients?

Question  `analysis.alignment.alignment` at width 512, 4 layers, 64 examples of 32 tokens: the
          factored way against `vmap(grad)` and a `lax.map` loop over examples, alternating in
          one process, with XLA's count of temporary memory; and the full cross matrix.
Command   python -m experiments.benchmark_alignment
Cost      about 2 minutes on 2 CPU cores for the dense layers; the transformer needs 10 GB.
Expected  at least twice as fast as the faster of the two, in a quarter of vmap's memory.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dirasym import models, report
from dirasym.analysis import alignment
from experiments import benchmark, harness
from experiments.flags import flag

PRESETS = {"smoke": dict(width=16, layers=1, examples=4, rounds=1), "quick": {}, "paper": {}}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    model: Literal["dense", "transformer"] = flag("dense", "Dense layers alone, or attention too.")
    width: int = flag(512, "Of every layer.", 2)
    layers: int = flag(4, "Dense layers or transformer blocks.", 1)
    examples: int = flag(64, "Compared one by one.", 2)
    length: int = flag(32, "Tokens an example.", 2)
    vocab_size: int = flag(512, "Tokens and classes.", 2)
    rounds: int = flag(6, "Alternations; the fastest of each contender counts.", 1)


class _Dense(nn.Module):
    """Embedding, dense layers with GELU, head: every token by itself."""

    config: Config

    @nn.compact
    def __call__(self, tokens_BL):
        x_BLD = nn.Embed(self.config.vocab_size, self.config.width)(tokens_BL)
        for _ in range(self.config.layers):
            x_BLD = nn.gelu(nn.Dense(self.config.width, use_bias=False)(x_BLD))
        return nn.Dense(self.config.vocab_size, use_bias=False)(x_BLD)


def run(experiment: harness.Experiment, config: Config) -> None:
    """Times, checks that all agree, prints the table."""
    loss_fwd, loss_rev, params, examples = problem(config)
    count = config.examples
    ways = {
        "vmap(grad)": dict(chunk_size=count),
        "lax.map over examples": dict(chunk_size=1),
        "direct, chunks of 8": dict(chunk_size=8),
        "factored, chunks of 8": dict(method="factored", chunk_size=8),
    }
    compiled = {
        name: jax.jit(functools.partial(alignment.alignment, loss_fwd, loss_rev, **how))
        .lower(params, examples=examples)
        .compile()
        for name, how in ways.items()
    }
    compiled["cross matrix, factored"] = (
        jax.jit(functools.partial(alignment.cross_alignment, loss_fwd, loss_rev, method="factored"))
        .lower(params, examples)
        .compile()
    )
    calls = {
        name: functools.partial(program, params, examples=examples)
        for name, program in compiled.items()
        if "cross" not in name
    } | {"cross matrix, factored": lambda: compiled["cross matrix, factored"](params, examples)}
    seconds = benchmark.alternate(
        {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()},
        config.rounds,
    )
    want = calls["vmap(grad)"]()
    error = max(
        float(jnp.abs(calls[name]().cosine["total"] - want.cosine["total"]).max()) for name in ways
    )
    diagonal = jnp.diagonal(calls["cross matrix, factored"]()["total"])
    scale = want.norm_fwd["total"] * want.norm_rev["total"]
    error = max(error, float(jnp.abs((diagonal - want.inner["total"]) / scale).max()))
    rows = [
        [
            name,
            f"{1e3 * best:.0f}",
            f"{min(seconds['vmap(grad)'], seconds['lax.map over examples']) / best:.2f}",
            f"{compiled[name].memory_analysis().temp_size_in_bytes / 1e6:.0f}",
        ]
        for name, best in seconds.items()
    ]
    header = ["way", "ms", "times the faster of the first two", "temporary memory (MB)"]
    text = (
        f"{report.table(header, rows)}\n\n{config.model}, width {config.width}, {config.layers} "
        f"layers, {count} examples of {config.length} tokens; largest difference of a cosine "
        f"{error:.1e}."
    )
    experiment.write_report(f"# Alignment\n\n{text}", [], printed=text)


def problem(config: Config):
    """Two losses of (params, example), parameters, and examples."""
    if config.model == "dense":
        model = _Dense(config)
    else:
        model = models.Transformer(
            models.TransformerConfig(
                vocab_size=config.vocab_size,
                num_layers=config.layers,
                width=config.width,
                num_heads=max(1, config.width // 64),
                causal=False,
                mlp_bias=False,
            )
        )
    rng = np.random.default_rng(0)
    tokens_EL = rng.integers(0, config.vocab_size, (config.examples, config.length))
    params = jax.jit(model.init)(jax.random.key(0), tokens_EL[:1])["params"]

    def loss(params, tokens_L, shift):
        """Cross-entropy of the tokens `shift` places on, mean over positions."""
        logits_LV = model.apply({"params": params}, tokens_L[None])[0]
        targets_L = jnp.roll(tokens_L, shift)
        return optax.softmax_cross_entropy_with_integer_labels(logits_LV, targets_L).mean()

    losses = [functools.partial(loss, shift=shift) for shift in (-1, 1)]
    return *losses, params, jnp.asarray(tokens_EL)


if __name__ == "__main__":
    harness.main("benchmark_alignment", Config, PRESETS, run)
