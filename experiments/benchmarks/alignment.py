"""What do per-example gradient inner products cost, with and without the gradients?

Question  `analysis.alignment.alignment` at width 512, 4 layers, 64 examples of 32 tokens: the
          factored way against `vmap(grad)` and a `lax.map` loop over examples, alternating in
          one process, with XLA's count of temporary memory; and the full cross matrix.
Command   python -m experiments.benchmarks.alignment
Cost      about 2 minutes on 2 CPU cores for the dense layers; the transformer needs 10 GB.
Expected  at least twice as fast as the faster of the two, in a quarter of vmap's memory.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dirasym import models, report
from dirasym.analysis import alignment
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.benchmarks import common
from experiments.flags import flag

PRESETS = {"smoke": dict(width=16, layers=1, examples=4, rounds=1), "quick": {}, "paper": {}}
CROSS = "cross matrix, factored"


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    model: Literal["dense", "transformer"] = flag("dense", "Dense layers alone, or attention too.")
    width: int = flag(512, "Of every layer.", 2, 10**5)
    layers: int = flag(4, "Dense layers or transformer blocks.", 1, 1000)
    examples: int = flag(64, "Compared one by one.", 2, 10**5)
    length: int = flag(32, "Tokens an example.", 2, 10**5)
    vocab_size: int = flag(512, "Tokens and classes.", 2, 10**6)
    rounds: int = flag(6, "Alternations; the fastest of each contender counts.", 1)

    def __post_init__(self):
        if self.model == "transformer":
            self.transformer()

    def transformer(self) -> models.TransformerConfig:
        """Heads of 64. Raises ValueError, naming the flag."""
        try:
            return models.TransformerConfig(
                vocab_size=self.vocab_size,
                num_layers=self.layers,
                width=self.width,
                num_heads=max(1, self.width // 64),
                causal=False,
                mlp_bias=False,
            )
        except ValueError as error:
            raise ValueError(f"--width={self.width}: {error}") from None


class _Dense(nn.Module):
    """Embedding, dense layers with GELU, head: every token by itself."""

    config: Config

    @nn.compact
    def __call__(self, tokens_BL):
        x_BLD = nn.Embed(self.config.vocab_size, self.config.width)(tokens_BL)
        for _ in range(self.config.layers):
            x_BLD = nn.gelu(nn.Dense(self.config.width, use_bias=False)(x_BLD))
        return nn.Dense(self.config.vocab_size, use_bias=False)(x_BLD)


def time_all(workdir: WorkDir, config: Config, planned: list) -> None:
    """Times, checks that all agree, prints the table."""
    del planned
    loss_fwd, loss_rev, params, examples = problem(config)
    ways = {
        "vmap(grad)": dict(chunk_size=config.examples),
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
    calls = {
        name: functools.partial(program, params, examples=examples)
        for name, program in compiled.items()
    }
    cross = functools.partial(alignment.cross_alignment, loss_fwd, loss_rev, method="factored")
    compiled[CROSS] = jax.jit(cross).lower(params, examples).compile()
    difference = largest_difference(
        {name: call() for name, call in calls.items()},
        jnp.diagonal(compiled[CROSS](params, examples).inner["total"]),
    )
    calls[CROSS] = functools.partial(compiled[CROSS], params, examples)
    seconds = common.alternate(
        {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()},
        config.rounds,
    )
    megabytes = {
        name: program.memory_analysis().temp_size_in_bytes / 1e6
        for name, program in compiled.items()
    }
    text = (
        f"{table(seconds, megabytes)}\n\n{config.model}, width {config.width}, {config.layers} "
        f"layers, {config.examples} examples of {config.length} tokens; largest difference of a "
        f"cosine {difference:.1e}."
    )
    report.write(workdir.path, f"# Alignment\n\n{text}", {}, printed=text)


def table(seconds: Mapping[str, float], megabytes: Mapping[str, float]) -> str:
    """Time and memory of each way, beside the faster of the two that form gradients."""
    formed = min(seconds["vmap(grad)"], seconds["lax.map over examples"])
    rows = [
        [name, f"{1e3 * best:.0f}", f"{formed / best:.2f}", f"{megabytes[name]:.0f}"]
        for name, best in seconds.items()
    ]
    header = ["way", "ms", "times the faster of the first two", "temporary memory (MB)"]
    return report.table(header, rows)


def largest_difference(results: Mapping[str, alignment.Alignment], diagonal_E) -> float:
    """Of a cosine by any way from that of `vmap(grad)`, the cross matrix's diagonal included."""
    want = results["vmap(grad)"]
    differences = [x.cosine["total"] - want.cosine["total"] for x in results.values()]
    scale_E = want.norm_fwd["total"] * want.norm_rev["total"]
    differences.append((diagonal_E - want.inner["total"]) / scale_E)
    return max(float(jnp.abs(x).max()) for x in differences)


def problem(config: Config):
    """Two losses of (params, example), parameters, and examples."""
    if config.model == "dense":
        model = _Dense(config)
    else:
        model = models.Transformer(config.transformer())
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
    flags.main("benchmark_alignment", Config, PRESETS, time_all)
