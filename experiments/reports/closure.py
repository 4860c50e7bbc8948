"""The table and figure of `closure`: means over seeds, a panel a closure."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import intervals, report, runs
from dirasym.workdir import WorkDir

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
Lines = Sequence[Mapping[str, Any]]


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run]) -> None:
    """A table of all cells, curves against weight decay and the phase diagram."""
    del all_runs
    lines = workdir.results()
    printed = table(lines)
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
        ax.set(title=f"reverse accuracy (%), width {width}", xlabel="weight decay")
        ax.set(ylabel="composing relations", xticks=range(len(decays)), xticklabels=decays)
        ax.set_yticks(range(len(closures)), closures)
        ax.grid(False)
        drawn.colorbar(image, ax=ax)
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
