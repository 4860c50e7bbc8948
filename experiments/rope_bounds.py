"""How strongly does RoPE tie the score of a key ahead to that of a key behind?

Question  Theorem 4.1 of arXiv 2602.02133 in numbers: its Cantelli bound (Table 3), the trace
          at finite widths beside the integral and the 0.435 line, the correlation sampled
          under its assumptions beside the exact one, and unequal distances.
Command   python -m experiments.rope_bounds --preset=quick
Cost      quick: seconds on a CPU.
Expected  All 60 cells of Table 3; the trace below 0.435 at widths up to 256; sampled and exact
          correlations within their standard error; the bound broken at unequal distances.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dirasym.analysis import rope
from dirasym.pieces import Piece
from dirasym.workdir import WorkDir
from experiments import flags, work
from experiments.flags import flag
from experiments.reports import rope_bounds

PRESETS = {
    "smoke": dict(num_queries=64, num_keys=256),
    "quick": {},
    "paper": dict(num_queries=4096, num_keys=4096),
}
UNEQUAL = (5, 34)  # distances where the bound of equal ones fails
UNEQUAL_WIDTH = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    widths: tuple[int, ...] = flag((16, 32, 64, 128, 256), "Head widths D.")
    max_distance: int = flag(100, "Largest distance.", 1, 10**6)
    sampled_width: int = flag(64, "Head width of the sampled correlations.", 2)
    sampled_distances: tuple[int, ...] = flag((1, 2, 5, 10, 20, 50), "Distances sampled.", 1)
    rhos: tuple[int, ...] = flag((0, 50, 100), "Alignments ρ of (A2), in percent.")
    num_queries: int = flag(1024, "Queries sampled.", 2, 10**5)
    num_keys: int = flag(1024, "Keys sampled for each query.", 2, 10**5)
    seed: int = flag(0, "Of the samples.", kind="seed")

    def __post_init__(self):
        for width in (*self.widths, self.sampled_width):
            if not 2 <= width <= 10_000 or width % 2:
                raise ValueError(f"head width {width} is not even, from 2 to 10000")
        if not all(0 <= rho <= 100 for rho in self.rhos):
            raise ValueError(f"--rhos={self.rhos} are percentages, 0 to 100")


def pieces(config: Config) -> list[Piece]:
    """A piece a cell of Table 3, and one a sampled correlation."""
    cells = [
        Piece(
            {"what": "table_3", "delta": delta, "m": m, "threshold": threshold},
            functools.partial(cell, delta, m, threshold, paper),
            has_curves=False,
        )
        for (delta, m), published in rope_bounds.PAPER_TABLE_3.items()
        for threshold, paper in zip(rope_bounds.THRESHOLDS, published, strict=True)
    ]
    equal = [
        Piece(
            {"what": "equal", "delta": delta, "rho": rho / 100},
            functools.partial(sample, config, delta, delta, rho / 100),
            has_curves=False,
        )
        for rho in config.rhos
        for delta in config.sampled_distances
    ]
    small = dataclasses.replace(config, sampled_width=UNEQUAL_WIDTH)
    unequal = Piece(
        {"what": "unequal", "delta": "{}, {}".format(*UNEQUAL), "rho": 1.0},
        functools.partial(sample, small, *UNEQUAL, 1.0),
        has_curves=False,
    )
    return [*cells, *equal, unequal]


def cell(delta: int, m: int, threshold: float, paper: float) -> tuple[dict[str, Any], dict]:
    """Table 3: the bound, as the paper prints it, and what the paper prints."""
    value = float(rope.cantelli_lower_bound(delta, threshold, 2 * m))
    return {"bound": value, "printed": as_printed(value), "paper": paper}, {}


def as_printed(value: float) -> float:
    """Rounded to four decimals, then truncated to three: what all of Table 3 shows."""
    return float(np.floor(round(1e4 * value) / 10) / 1e3)


def sample(
    config: Config, delta_fwd: int, delta_rev: int, rho: float
) -> tuple[dict[str, Any], dict]:
    """E_q[Corr] by sampling, by the exact formula over sampled q, and the trace bound."""
    width = config.sampled_width
    sampled = rope.monte_carlo_correlation(
        jax.random.key(config.seed),
        delta_fwd,
        delta_rev,
        width,
        rho=rho,
        num_queries=config.num_queries,
        num_keys=config.num_keys,
    )
    # w of q ~ N(0, I) is uniform on the simplex.
    w = np.random.default_rng(config.seed).dirichlet(np.ones(width // 2), size=100_000)
    exact = rope.conditional_correlation(w, rho, delta_fwd, delta_rev)
    line = {
        "head_dim": width,
        "sampled": float(sampled.mean),
        "sampled_error": float(sampled.standard_error),
        "exact": float(exact.mean()),
        "exact_error": float(exact.std(ddof=1) / np.sqrt(len(exact))),
        "bound": float(rope.trace(delta_fwd + delta_rev, width)),
    }
    return line, {}


def compute(workdir: WorkDir, config: Config, planned: Sequence) -> None:
    """Computes what is missing, and reports."""
    del planned
    if work.all_done(pieces(config), workdir):
        rope_bounds.write(workdir, config)


if __name__ == "__main__":
    flags.main("rope_bounds", Config, PRESETS, compute)
