"""The table and figure of `closure`: means over seeds, a panel a closure."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import effects, intervals, report, runs
from dirasym.intervals import Bounds
from dirasym.workdir import WorkDir
from experiments.reports import verdicts
from experiments.reports.verdicts import bounds, said, verdict

COLUMNS = {  # header -> key; shares are printed in percent
    "told %": "train_accuracy",
    "forward %": "forward_accuracy",
    "reverse %": "reverse_accuracy",
    "choice %": "reverse_choice",
    "family %": "reverse_family",
    "asymmetry": "asymmetry",
    "probe hits %": "probe_hits",
    "transpose cosine": "probe_transpose",
}
DRAWN = {"told": "train_accuracy", "reverse": "reverse_accuracy", "own family": "reverse_family"}
LEARNED = 0.95  # of what is told, at least
Lines = Sequence[Mapping[str, Any]]


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run]) -> None:
    """A table of all cells, curves against weight decay and the phase diagram."""
    del all_runs
    lines = workdir.results()
    printed = table(lines)
    for width in values_of(lines, "width"):
        printed += f"\n\nWidth {width}:\n\n{claim_table(report.select(lines, width=width))}"
    text = (
        f"# Weight decay and closure (arXiv 2509.21993)\n\n{printed}\n\nMean over seeds ± 95 % "
        f"Student interval, after {config.num_steps} steps of AdamW {config.lr:g} on "
        f"{config.num_families} families; {', '.join(config.withheld)} is withheld from "
        f"{config.withheld_share:.0%} of them and asked there; its inverse is told."
    )
    figures = {"decay": functools.partial(decay_figure, lines)}
    if len({line["closure"] for line in lines}) > 1:
        figures["phase"] = functools.partial(phase_figure, lines)
    report.write(workdir.path, text, figures, printed=printed)


def values_of(lines: Lines, key: str) -> list:
    """All values of an axis of the diagram, in order."""
    return sorted({line[key] for line in lines}, key=float)


def cell(lines: Lines, key: str) -> str:
    """Mean and interval; a share in percent."""
    values = np.array([line[key] for line in lines if key in line])
    if not len(values):
        return "none"
    is_share = key.endswith(("accuracy", "choice", "family", "hits"))
    return report.mean_interval(100 * values, 1) if is_share else report.mean_interval(values, 2)


def table(lines: Lines) -> str:
    """A row a width, closure and weight decay."""
    rows = []
    for width in values_of(lines, "width"):
        for closure in values_of(lines, "closure"):
            for decay in values_of(lines, "weight_decay"):
                of = report.select(lines, width=width, closure=closure, weight_decay=decay)
                if of:
                    rows.append([width, closure, decay, len(of), *(cell(of, k) for k in
                                                                   COLUMNS.values())])  # fmt: skip
    return report.table(["width", "closure", "weight decay", "seeds", *COLUMNS], rows)


def claims(lines: Lines) -> list[list[str]]:
    """(claim, statistic, verdict) by the thresholds of docs/closure.md, of one width's cells."""
    found: dict[tuple[int, float], Lines] = {
        (closure, float(decay)): of
        for closure in values_of(lines, "closure")
        for decay in values_of(lines, "weight_decay")
        if (of := report.select(lines, closure=closure, weight_decay=decay))
    }

    def share(of: Lines, key: str = "reverse_accuracy") -> Bounds:
        # Shares of answers, whose float32 is off by 1e-6: a tie with a threshold is a tie.
        return bounds([round(100 * line[key], 3) for line in of])

    learned = {
        c: of for c, of in found.items() if share(of, "train_accuracy").estimate >= 100 * LEARNED
    }

    def less(one, other) -> Bounds:
        values = ({line["seed"]: line["reverse_accuracy"] for line in learned.get(cell, ())}
                  for cell in (one, other))  # fmt: skip
        more, fewer = values
        seeds = sorted(more.keys() & fewer)
        return bounds([round(100 * (more[seed] - fewer[seed]), 3) for seed in seeds])

    reverse = {cell: share(of) for cell, of in learned.items()}
    isolated, whole = (
        {decay: x for (closure, decay), x in reverse.items() if closure == which}
        for which in (0, 6)
    )
    none = Bounds(np.nan, np.nan, np.nan)
    free = whole.get(0.0, none)
    decayed = [x for decay, x in whole.items() if decay >= 1]
    against = [less((6, 3.0), other) for other in ((0, 3.0), (6, 0.0))]
    # Ranked are means of thousandths, rounded: in another order their sum may be another.
    hits = [round(share(of, "probe_hits").estimate, 6) for of in learned.values()]
    rank = none
    if len(hits) > 2:
        rank = effects.rank_correlation(hits, [round(x.estimate, 6) for x in reverse.values()])

    def stated(of: Mapping[float, Bounds]) -> str:
        return "; ".join(f"decay {decay:g}: {said(x, 1)}" for decay, x in of.items())

    missing = [cell for cell in ((6, 3.0), (0, 3.0), (6, 0.0)) if cell not in learned]
    both = "; ".join(f"closure {closure}, decay {decay:g} has not learned"
                     for closure, decay in missing)  # fmt: skip
    if not missing:
        points = f"{said(against[0], 1)}; less decay 0: {said(against[1], 1)} points"
        both = f"closure 6, decay 3, less closure 0: {points}"
    decided = [*isolated.values(), free, *decayed]
    return [
        ["1. isolated pairs stay one-way", f"reverse at closure 0, {stated(isolated)}",
         verdict(isolated.values(), all(x.high < 10 for x in isolated.values()),
                 any(x.low > 20 for x in isolated.values()))],
        ["2. decay reverses a closed graph", f"reverse at closure 6, {stated(whole)}",
         verdict(decided, free.high < 30 and all(x.low > 50 for x in decayed),
                 not any(x.low > 50 for x in whole.values()))],
        ["3. it takes both", both,
         verdict(against, all(x.low > 40 for x in against),
                 any(x.high < 10 for x in against))],
        ["4. the structure goes with it",
         f"rank correlation of probe hits over {len(hits)} cells: {said(rank)}",
         verdict([rank], rank.estimate > 0.7, rank.estimate < 0.3)],
    ]  # fmt: skip


def claim_table(lines: Lines) -> str:
    """`claims` as a table."""
    return verdicts.table(claims(lines))


def decay_figure(lines: Lines):
    """Shares against weight decay: a panel a closure, a row a width."""
    widths, closures = values_of(lines, "width"), values_of(lines, "closure")
    drawn, axes = report.new_figure(len(widths), len(closures), (3.0, 2.6))
    for row, width in zip(axes, widths, strict=True):
        for ax, closure in zip(row, closures, strict=True):
            of = report.select(lines, width=width, closure=closure)
            decays = values_of(of, "weight_decay")
            for label, key in DRAWN.items():
                found = [
                    intervals.student_interval(
                        [100 * line[key] for line in report.select(of, weight_decay=decay)]
                    )
                    for decay in decays
                ]
                report.plot_intervals(ax, list(map(float, decays)), found, label)
            ax.set(title=f"closure {closure}, width {width}", xlabel="weight decay", ylabel="%")
            ax.set_ylim(-3, 103)
    axes[0, 0].legend(fontsize="x-small")
    return drawn


def width_figure(lines: Lines, closures: Sequence[int] = (2, 4, 6)):
    """Reverse against weight decay, of cells that learn: a panel a closure, a line a width."""
    drawn, axes = report.new_figure(1, len(closures), (2.4, 2.8))
    for ax, closure in zip(axes[0], closures, strict=True):
        for place, width in enumerate(values_of(report.select(lines, closure=closure), "width")):
            cells = {
                decay: report.select(lines, width=width, closure=closure, weight_decay=decay)
                for decay in values_of(report.select(lines, width=width), "weight_decay")
            }
            learned = {
                float(decay) + 0.03 * place: [100 * line["reverse_accuracy"] for line in of]
                for decay, of in cells.items()
                if of and np.mean([line["train_accuracy"] for line in of]) >= LEARNED
            }
            means = [np.mean(values) for values in learned.values()]
            color = report.color(place)
            ax.plot(list(learned), means, "o-", color=color, ms=4, label=f"width {width}")
            for decay, values in learned.items():
                ax.plot([decay] * len(values), values, ".", color=color, ms=3, alpha=0.5)
        ax.set(title=f"closure {closure}", xlabel="weight decay", ylim=(-3, 108))
    axes[0, 0].set_ylabel("reverse accuracy (%)")
    axes[0, -1].legend(fontsize="x-small")
    return drawn


def phase_figure(lines: Lines):
    """Reverse accuracy over weight decay and closure, a panel a width; blank: not run."""
    widths = values_of(lines, "width")
    decays, closures = values_of(lines, "weight_decay"), values_of(lines, "closure")
    drawn, axes = report.new_figure(1, len(widths), (4.2, 3.0))
    for ax, width in zip(axes[0], widths, strict=True):
        share_CW = phase(lines, width)
        image = ax.imshow(share_CW, vmin=0, vmax=100, origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(share_CW):
            if np.isfinite(value):
                color = "white" if value < 60 else "black"
                ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
        ax.set(title=f"width {width}", xlabel="weight decay")
        ax.set(ylabel="composing relations told", xticks=range(len(decays)), xticklabels=decays)
        ax.set_yticks(range(len(closures)), closures)
        ax.grid(False)
        drawn.colorbar(image, ax=ax, label="reverse accuracy (%)")
    return drawn


def phase(lines: Lines, width: int) -> np.ndarray:
    """Mean reverse accuracy in percent: [closures, decays], NaN where nothing was run."""
    decays, closures = values_of(lines, "weight_decay"), values_of(lines, "closure")
    share_CW = np.full((len(closures), len(decays)), np.nan)
    for row, closure in enumerate(closures):
        for column, decay in enumerate(decays):
            of = report.select(lines, width=width, closure=closure, weight_decay=decay)
            if of:
                share_CW[row, column] = 100 * np.mean([line["reverse_accuracy"] for line in of])
    return share_CW
