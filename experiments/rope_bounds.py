"""How strongly does RoPE tie the score of a key ahead to that of a key behind?

Question  Theorem 4.1 of arXiv 2602.02133 in numbers: its Cantelli bound (Table 3), the trace
          at finite widths beside the integral and the 0.435 line, the correlation sampled
          under its assumptions beside the exact one, and unequal distances.
Command   python -m experiments.rope_bounds --preset=quick
Cost      seconds on a CPU.
Expected  All 60 cells of Table 3; the trace below 0.435 at widths up to 256; sampled and exact
          correlations within their standard error; the bound broken at unequal distances.
"""

import dataclasses

import jax
import numpy as np

from dirasym import report
from dirasym.analysis import rope
from experiments import harness
from experiments.flags import flag

PRESETS = {
    "smoke": dict(num_queries=64, num_keys=256),
    "quick": {},
    "paper": dict(num_queries=4096, num_keys=4096),
}
THRESHOLDS = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30)
# Table 3: lower bounds of Pr[Corr >= c], by Δ and m = D/2, for the thresholds above.
PAPER_TABLE_3 = {
    (10, 64): (0.981, 0.977, 0.972, 0.965, 0.956, 0.941),
    (10, 128): (0.990, 0.988, 0.986, 0.982, 0.977, 0.970),
    (20, 64): (0.967, 0.958, 0.947, 0.930, 0.903, 0.858),
    (20, 128): (0.985, 0.981, 0.976, 0.969, 0.957, 0.938),
    (30, 64): (0.958, 0.947, 0.930, 0.905, 0.863, 0.790),
    (30, 128): (0.981, 0.976, 0.969, 0.958, 0.939, 0.906),
    (40, 64): (0.955, 0.942, 0.923, 0.893, 0.843, 0.752),
    (40, 128): (0.979, 0.974, 0.965, 0.952, 0.928, 0.885),
    (50, 64): (0.965, 0.956, 0.942, 0.921, 0.887, 0.827),
    (50, 128): (0.979, 0.973, 0.963, 0.949, 0.923, 0.874),
}
PAPER_LINE = 0.435  # for Δ up to 100


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    widths: tuple[int, ...] = flag((16, 32, 64, 128, 256), "Head widths D.")
    max_distance: int = flag(100, "Largest distance.", 1)
    sampled_width: int = flag(64, "Head width of the sampled correlations.", 2)
    sampled_distances: tuple[int, ...] = flag((1, 2, 5, 10, 20, 50), "Distances sampled.")
    rhos: tuple[int, ...] = flag((0, 50, 100), "Alignments ρ of (A2), in percent.")
    num_queries: int = flag(1024, "Queries sampled.", 2)
    num_keys: int = flag(1024, "Keys sampled for each query.", 2)
    seed: int = flag(0, "Of the samples.")

    def __post_init__(self):
        for width in (*self.widths, self.sampled_width):
            rope.trace(1, width)  # an odd width raises
        if not all(delta >= 1 for delta in self.sampled_distances):
            raise ValueError(f"--sampled_distances={self.sampled_distances} must be at least 1")
        if not all(0 <= rho <= 100 for rho in self.rhos):
            raise ValueError(f"--rhos={self.rhos} are percentages, 0 to 100")


def run(experiment: harness.Experiment, config: Config) -> None:
    """Computes, records every number, and reports."""
    cells = table_3()
    samples = sample_equal_distances(config)
    unequal = sample_unequal_distances(config)
    experiment.record(cells + samples + [unequal], keys=("what", "delta", "m", "threshold", "rho"))
    figure = plot(config, samples)
    path = report.save_figure(figure, experiment.workdir / "figures", "rope_bounds")
    text = describe(config, cells, samples, unequal)
    experiment.write_report(text, [path], printed=text)


def table_3() -> list[dict]:
    """One line a cell: the bound, as the paper prints it, and what the paper prints."""
    lines = []
    for (delta, m), published in PAPER_TABLE_3.items():
        for threshold, paper in zip(THRESHOLDS, published, strict=True):
            value = float(rope.cantelli_lower_bound(delta, threshold, 2 * m))
            lines.append(
                {
                    "what": "table_3",
                    "delta": delta,
                    "m": m,
                    "threshold": threshold,
                    "bound": value,
                    "printed": as_printed(value),
                    "paper": paper,
                }
            )
    return lines


def as_printed(value: float) -> float:
    """Rounded to four decimals, then truncated to three: what all of Table 3 shows."""
    return np.floor(round(1e4 * value) / 10) / 1e3


def sample_equal_distances(config: Config) -> list[dict]:
    """E_q[Corr] at Δ₁ = Δ₂ by sampling, by the exact formula over sampled q, and the bound."""
    lines = []
    for rho in config.rhos:
        for delta in config.sampled_distances:
            lines.append({"what": "equal", "delta": delta, **_sample(config, delta, delta, rho)})
    return lines


def sample_unequal_distances(config: Config) -> dict:
    """The trace bound does not carry over: D = 16, ρ = 1, Δ = (5, 34)."""
    small = dataclasses.replace(config, sampled_width=16)
    return {"what": "unequal", "delta": "5, 34", **_sample(small, 5, 34, 100)}


def _sample(config: Config, delta_fwd: int, delta_rev: int, rho_percent: int) -> dict:
    width, rho = config.sampled_width, rho_percent / 100
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
    return {
        "rho": rho,
        "head_dim": width,
        "sampled": float(sampled.mean),
        "sampled_error": float(sampled.standard_error),
        "exact": float(exact.mean()),
        "exact_error": float(exact.std(ddof=1) / np.sqrt(len(exact))),
        "bound": float(rope.trace(delta_fwd + delta_rev, width)),
    }


def describe(config: Config, cells, samples, unequal) -> str:
    """report.md without its figure."""
    agree = sum(line["printed"] == line["paper"] for line in cells)
    rows = [
        [delta, m, *(f"{as_printed(rope.cantelli_lower_bound(delta, c, 2 * m)):.3f} ({p:.3f})"
                     for c, p in zip(THRESHOLDS, published, strict=True))]
        for (delta, m), published in PAPER_TABLE_3.items()
    ]  # fmt: skip
    deltas = np.arange(1, config.max_distance + 1)
    integral = rope.cosine_integral_approximation(deltas)
    traces = [
        [
            width,
            f"{trace.min():.3f}",
            deltas[trace.argmin()],
            f"{np.abs(trace - integral).max():.3f}",
        ]
        for width in config.widths
        for trace in [rope.trace(deltas, width)]
    ]
    header = ["ρ", "Δ₁, Δ₂", "sampled", "exact, over q", "difference in standard errors", "bound"]
    errors = [np.hypot(line["sampled_error"], line["exact_error"]) for line in [*samples, unequal]]
    correlations = [
        [
            line["rho"],
            line["delta"],
            report.with_interval(line["sampled"], line["sampled_error"], 4),
            report.with_interval(line["exact"], line["exact_error"], 4),
            f"{(line['sampled'] - line['exact']) / error:.1f}",
            f"{line['bound']:.4f}",
        ]
        for line, error in zip([*samples, unequal], errors, strict=True)
    ]
    return "\n\n".join(
        [
            "# RoPE ties attention ahead to attention behind",
            f"Table 3 of arXiv 2602.02133, ours (paper): {agree} of {len(cells)} cells agree.",
            report.table(["Δ", "m", *(f"c = {c}" for c in THRESHOLDS)], rows),
            f"Smallest (1/D) Tr R(Δ) for Δ = 1..{config.max_distance}; the integral's smallest is "
            f"{integral.min():.5f}, and {PAPER_LINE} is a bound of the integral, not of the trace.",
            report.table(["D", "smallest trace", "at Δ", "largest distance to integral"], traces),
            f"Correlation of S_fwd and S_rev (± standard error); D = {config.sampled_width} at "
            "equal distances, D = 16 at unequal ones, where the bound of equal distances fails by "
            f"{unequal['bound'] - unequal['exact']:.4f}.",
            report.table(header, correlations),
        ]
    )


def plot(config: Config, samples):
    """Left: the trace against distance. Right: sampled and exact correlation over the bound."""
    figure, axes = report.new_figure(1, 2, (5.0, 3.4))
    deltas = np.arange(1, config.max_distance + 1)
    ax = axes[0, 0]
    for width in config.widths:
        ax.plot(deltas, rope.trace(deltas, width), lw=1, label=f"D = {width}")
    ax.plot(deltas, rope.cosine_integral_approximation(deltas), "k--", label="integral")
    ax.axhline(PAPER_LINE, color="tab:red", ls=":", label=f"{PAPER_LINE}")
    ax.set(xlabel="distance Δ (tokens)", ylabel="(1/D) Tr R(Δ)")
    ax.legend(fontsize="x-small", ncols=2)
    ax, distances = axes[0, 1], np.array(config.sampled_distances)
    for rho in config.rhos:
        lines = report.select(samples, rho=rho / 100)
        ax.errorbar(
            distances,
            [line["sampled"] for line in lines],
            [1.96 * line["sampled_error"] for line in lines],
            fmt="o",
            ms=4,
            color=f"C{config.rhos.index(rho)}",
            label=f"sampled, ρ = {rho / 100:g}",
        )
        ax.plot(distances, [line["exact"] for line in lines], color=f"C{config.rhos.index(rho)}")
    ax.plot(distances, rope.trace_bound(distances, config.sampled_width), "k--", label="bound")
    ax.set(xscale="log", xlabel="Δ₁ = Δ₂ (tokens)", ylabel="E[Corr(S_fwd, S_rev | q)]")
    ax.legend(fontsize="x-small")
    return figure


if __name__ == "__main__":
    harness.main("rope_bounds", Config, PRESETS, run)
