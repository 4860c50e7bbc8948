"""The tables and the figure of `rope_bounds`, from its result lines."""

import functools

import numpy as np

from dirasym import report
from dirasym.analysis import rope
from dirasym.workdir import WorkDir

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


def write(workdir: WorkDir, config) -> None:
    """Writes the figure and report.md, and prints the tables."""
    results = workdir.results()
    samples = report.select(results, what="equal")
    (unequal,) = report.select(results, what="unequal")
    deltas = np.arange(1, config.max_distance + 1)
    integral = rope.cosine_integral_approximation(deltas)
    cells = report.select(results, what="table_3")
    agree = sum(line["printed"] == line["paper"] for line in cells)
    text = "\n\n".join(
        [
            "# RoPE ties attention ahead to attention behind",
            f"Table 3 of arXiv 2602.02133, ours (paper): {agree} of {len(cells)} cells agree.",
            table_3(cells),
            f"Smallest (1/D) Tr R(Δ) for Δ = 1..{config.max_distance}; the integral's smallest is "
            f"{integral.min():.5f}, and {PAPER_LINE} is a bound of the integral, not of the trace.",
            trace_table(config, deltas, integral),
            f"Correlation of S_fwd and S_rev (± standard error); D = {config.sampled_width} at "
            f"equal distances, D = {unequal['head_dim']} at unequal ones, where the bound of equal "
            f"distances fails by {unequal['bound'] - unequal['exact']:.4f}.",
            correlation_table([*samples, unequal]),
        ]
    )
    figures = {"rope_bounds": functools.partial(figure, config, samples)}
    report.write(workdir.path, text, figures, printed=text)


def table_3(cells) -> str:
    """A row a distance and width: ours as the paper prints it, and the paper's."""
    rows = []
    for delta, m in PAPER_TABLE_3:
        lines = [
            report.select(cells, delta=delta, m=m, threshold=threshold)[0]
            for threshold in THRESHOLDS
        ]
        rows.append([delta, m, *(f"{line['printed']:.3f} ({line['paper']:.3f})" for line in lines)])
    return report.table(["Δ", "m", *(f"c = {c}" for c in THRESHOLDS)], rows)


def trace_table(config, deltas, integral) -> str:
    """The smallest trace of each width, and how far it strays from the integral."""
    rows = [
        [
            width,
            f"{trace.min():.3f}",
            deltas[trace.argmin()],
            f"{np.abs(trace - integral).max():.3f}",
        ]
        for width in config.widths
        for trace in [rope.trace(deltas, width)]
    ]
    return report.table(["D", "smallest trace", "at Δ", "largest distance to integral"], rows)


def correlation_table(lines) -> str:
    """Sampled and exact correlations, and their difference in standard errors."""
    header = ["ρ", "Δ₁, Δ₂", "sampled", "exact, over q", "difference in standard errors", "bound"]
    rows = []
    for line in lines:
        error = np.hypot(line["sampled_error"], line["exact_error"])
        rows.append(
            [
                line["rho"],
                line["delta"],
                report.with_interval(line["sampled"], line["sampled_error"], 4),
                report.with_interval(line["exact"], line["exact_error"], 4),
                f"{(line['sampled'] - line['exact']) / error:.1f}",
                f"{line['bound']:.4f}",
            ]
        )
    return report.table(header, rows)


def figure(config, samples):
    """Above: the trace against distance. Below: the correlation, sampled, exact and bounded."""
    drawn, ((above,), (below,)) = report.new_figure(2, 1, (7.2, 3.0))
    deltas = np.arange(1, config.max_distance + 1)
    for number, width in enumerate(config.widths):
        style = dict(lw=1, color=report.color(number))
        above.plot(deltas, rope.trace(deltas, width), label=f"D = {width}", **style)
    above.plot(deltas, rope.cosine_integral_approximation(deltas), "k--", label="D → ∞")
    above.axhline(PAPER_LINE, color="black", ls=":", lw=1)
    report.note(above, 1, PAPER_LINE - 0.02, f"paper: {PAPER_LINE}", va="top")
    above.set(xlabel="distance Δ (tokens)", ylabel="(1/D) Tr R(Δ)")
    report.label_ends(above)
    distances = np.array(config.sampled_distances)
    bound = rope.trace_bound(distances, config.sampled_width)
    below.plot(distances, bound, color="0.6", lw=6, label="Theorem 4.1's bound")
    for number, rho in enumerate(config.rhos):
        lines = [report.select(samples, rho=rho / 100, delta=delta)[0] for delta in distances]
        means, errors = ([x[k] for x in lines] for k in ("sampled", "sampled_error"))
        color = report.color(number)
        below.errorbar(distances, means, 1.96 * np.array(errors), fmt="o", ms=4, color=color)
        exact = [line["exact"] for line in lines]
        below.plot(distances, exact, color=color, label=f"ρ = {rho / 100:g}")
    below.set(xscale="log", xlabel="Δ₁ = Δ₂ (tokens)", ylabel="mean Corr(S_fwd, S_rev) given q")
    below.set_xticks(distances, distances)
    below.minorticks_off()
    report.label_ends(below)
    return drawn
