"""The tables and figures of `relations_study`, from its result lines."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import intervals, report
from experiments.reports.relations import interval

KEYS = {  # what is reported of a run, and how it is called
    "train_nll": "training NLL",
    "validation_nll": "withheld NLL",
    "lowest_validation_nll": "its lowest",
    "validation_nll_when_learned": "when training < 0.05",
    "gap_given": "trained gap",
    "gap_withheld": "withheld gap",
    "asymmetry_trained": "asymmetry, trained both ways",
    "asymmetry_withheld": "asymmetry, withheld",
}
DRAWN = {
    "NLL (nats)": ("train_nll", "validation_nll", "validation_nll_when_learned"),
    "asymmetry": ("asymmetry_trained", "asymmetry_withheld"),
}
Lines = Sequence[Mapping[str, Any]]


def table(lines: Lines, factor: str, values: Iterable[str]) -> str:
    """A row a value of the factor: means and intervals over seeds."""
    rows = [
        [value, *(interval(report.select(lines, factor=factor, value=value), key) for key in KEYS)]
        for value in values
    ]
    return report.table([factor, *KEYS.values()], rows)


def figure(lines: Lines, factor: str, values: Iterable[str]):
    """NLL and asymmetry against the factor."""
    drawn, axes = report.new_figure(1, 2, (4.2, 3.2))
    lines_V = [report.select(lines, factor=factor, value=value) for value in values]
    place = np.arange(len(lines_V))
    for ax, (ylabel, keys) in zip(axes[0], DRAWN.items(), strict=True):
        for key in keys:
            of_seeds_V = [[r[key] for r in seeds if r.get(key) is not None] for seeds in lines_V]
            mean, half = np.array(
                [intervals.student_interval(v) if v else (np.nan, np.nan) for v in of_seeds_V]
            ).T
            ax.errorbar(place, mean, np.nan_to_num(half), marker="o", capsize=3, label=KEYS[key])
        ax.set(xticks=place, xticklabels=list(values), xlabel=factor, ylabel=ylabel)
        ax.set_ylim(bottom=0)
    axes[0, 0].axhline(lines[0]["uniform_nll"], color="black", ls=":", label="uniform guess")
    for ax in axes[0]:
        ax.legend(fontsize="x-small")
    return drawn
