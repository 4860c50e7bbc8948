"""The numbers of docs/theory.md that no training makes: errors, draws and minima.

Question  How close are Theorem B.1's closed form and autodiff, how much does it leave out, how
          often does Proposition B.8 fail, and how low do the trace and its integral go?
Command   python -m experiments.tools.theory_numbers --output=docs/results/theory/results.jsonl
Cost      a minute of one core.
Expected  closed form within 1e-11 of autodiff in float64; Proposition B.8 fails at width 16.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import results
from dirasym.analysis import lemmas, neglected, rope, theorem_b1
from experiments.flags import flag
from experiments.tools import command

WIDTHS, VOCABULARIES = (2, 6, 16, 64), (2, 40)
UNEQUAL = dict(head_dim=16, rho=1.0, delta_fwd=5, delta_rev=34)
KEYS = ("what", "width", "block", "dtype")


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    output: str = flag("docs/results/theory/results.jsonl", "The file of lines.", kind="path")
    draws: int = flag(25, "Of parameters, a width and vocabulary.", 1)
    b8_draws: int = flag(4000, "Of Proposition B.8, a width.", 1)


def draw(
    rng: np.random.Generator, width: int, vocab: int, dtype, scale: float | None = None
) -> theorem_b1.OneLayer:
    """Parameters of one scale, or of two orders of magnitude: flat to saturated softmaxes."""
    scale = 10 ** rng.uniform(-1.5, 0.5) if scale is None else scale
    shapes = [(width, width)] * 3 + [(vocab, width), (width,), (width,)]
    arrays = [rng.normal(size=s) * (scale if len(s) == 2 else 1) for s in shapes]
    return theorem_b1.OneLayer(*(jnp.asarray(x, dtype) for x in arrays))


def closed_form_errors(draws: int, dtype: str) -> dict:
    """Largest |closed form − autodiff| of a block, over the value and over its natural scale."""
    closed, auto = jax.jit(theorem_b1.theorem_b1), jax.jit(theorem_b1.theorem_b1_autodiff)
    rng, of_value, of_scale = np.random.default_rng(0), [], []
    for width in WIDTHS:
        for vocab in VOCABULARIES:
            for _ in range(draws):
                asked = (*rng.integers(1, 300, 2).tolist(), int(rng.integers(vocab)))
                params = draw(rng, width, vocab, jnp.dtype(dtype))
                got, want = closed(params, *asked), np.array(auto(params, *asked))
                error, scale = np.abs(np.array(got.inner) - want), np.array(got.scale)
                seen = scale > np.finfo(dtype).tiny / np.finfo(dtype).eps
                of_value += (error / np.where(want == 0, np.inf, np.abs(want)))[seen].tolist()
                of_scale += (error / np.where(seen, scale, np.inf))[seen].tolist()
    largest = dict(error_of_value=max(of_value), error_of_scale=max(of_scale))
    return dict(what="closed_form", dtype=dtype, draws=len(of_value), **largest)


def left_out(draws: int) -> Iterator[dict]:
    """|what the score of [M] on itself adds| over the theorem's value, of W_Q and W_K.

    At weights of variance 1/D, as at an initialisation.
    """
    measure, rng = jax.jit(neglected.neglected_terms), np.random.default_rng(1)
    found: dict[str, list[float]] = {"W_Q": [], "W_K": []}
    for width in WIDTHS[1:]:
        for vocab in VOCABULARIES:
            for _ in range(draws):
                fwd, rev = rng.integers(1, 50, 2).tolist()
                params = draw(rng, width, vocab, jnp.float64, width**-0.5)
                parts = measure(params, fwd, rev, int(rng.integers(vocab)))
                for block, ratios in found.items():
                    theirs = float(getattr(parts.theorem, block))
                    ratios.append(abs(float(getattr(parts.own_score, block)) / theirs))
    for block, ratios in found.items():
        low, middle, high = np.percentile(ratios, [25, 50, 75]).tolist()
        counted = dict(draws=len(ratios), lower_quartile=low, median=middle, upper_quartile=high)
        yield dict(what="left_out", block=block, **counted)


def proposition_b8(width: int, draws: int) -> dict:
    """How many draws end with ⟨Pa, Pb⟩ ≤ 0 under the drift that lowers it most."""
    done = lemmas.simulate_proposition_b8(
        jax.random.key(0), width, 54, adversarial=True, num_draws=draws
    )
    failed = int((np.asarray(done.inner) <= 0).sum())
    return dict(what="proposition_b8", width=width, draws=draws, failed=failed, bound=done.bound)


def minima() -> Iterator[dict]:
    """Smallest (1/D) Tr R(Δ) over Δ = 1..100, and that of its limit D → ∞."""
    deltas = np.arange(1, 101)
    integral = rope.cosine_integral_approximation(deltas)
    where = dict(smallest=float(integral.min()), delta=int(deltas[integral.argmin()]))
    yield dict(what="integral", **where)
    for width in (16, 32, 64, 128, 256):
        yield dict(what="trace", width=width, smallest=float(rope.trace(deltas, width).min()))


def unequal_distances(draws: int = 200_000) -> dict:
    """How far the mean correlation stays below (1/D) Tr R(Δ₁ + Δ₂)."""
    head_dim, rho, *deltas = UNEQUAL.values()
    w = np.random.default_rng(3).dirichlet(np.ones(head_dim // 2), size=draws)
    short = rope.trace(sum(deltas), head_dim) - rope.conditional_correlation(w, rho, *deltas)
    error = float(short.std(ddof=1) / np.sqrt(draws))
    return dict(what="unequal", **UNEQUAL, below=float(short.mean()), standard_error=error)


def write(config: Config) -> None:
    """Writes the lines and prints them."""
    path = pathlib.Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [closed_form_errors(config.draws, "float32"), *minima(), unequal_distances()]
    lines += [proposition_b8(width, config.b8_draws) for width in (16, 32, 64)]
    with jax.enable_x64(True):
        lines += [closed_form_errors(config.draws, "float64"), *left_out(config.draws)]
    results.replace_results(path, lines, KEYS)
    for line in lines:
        print(line)


if __name__ == "__main__":
    command.main(Config, write)
