"""The table and figure of `cures`: a row a remedy and matching, means over seeds."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import intervals, report, runs
from dirasym.workdir import WorkDir

COLUMNS = {  # header -> key
    "forward %": "forward",
    "forward NLL": "forward_nll",
    "reverse %": "reverse",
    "choice %": "choice",
    "copying %": "copying",
    "incorrect %": "incorrect",
}
Lines = Sequence[Mapping[str, Any]]


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run]) -> None:
    """The table and the figure."""
    del all_runs
    lines, num = workdir.results(), 26 - config.lone
    printed = table(lines)
    text = (
        f"# Remedies on one footing\n\n{printed}\n\nMean over seeds ± 95 % Student interval. "
        f"Toy pairs, L = {config.length}, {num} pairs and {config.lone} letters without a partner; "
        f"one layer × {config.width}. Chance of choice is {100 / num:.1f} %."
    )
    figures = {"remedies": functools.partial(figure, lines)}
    report.write(workdir.path, text, figures, printed=printed)


def cells(lines: Lines) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Lines by (matching, remedy), in the order in which they come first."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault((line["matching"], line["remedy"]), []).append(line)
    return found


def table(lines: Lines) -> str:
    """Outcomes of every cell, with the remedy's share of rows and its steps."""
    rows = []
    for (matching, remedy), of in cells(lines).items():
        values = [
            report.mean_interval([line[key] for line in of], 2 if key.endswith("nll") else 1)
            for key in COLUMNS.values()
        ]
        told = f"{of[0]['share']:.2f}", of[0]["steps"]
        rows.append([matching, remedy, *told, len(of), *values])
    header = ["equal", "remedy", "share", "steps", "seeds", *COLUMNS]
    return report.table(header, rows)


def figure(lines: Lines):
    """Forward, reverse and incorrect inference by remedy: a panel a matching."""
    found = cells(lines)
    matchings = list(dict.fromkeys(matching for matching, _ in found))
    drawn, axes = report.new_figure(1, len(matchings), (4.6, 3.6))
    for ax, matching in zip(axes[0], matchings, strict=True):
        remedies = [remedy for which, remedy in found if which == matching]
        place = np.arange(len(remedies))
        for shift, key in ((-0.2, "forward"), (0.0, "reverse"), (0.2, "incorrect")):
            of = [
                intervals.student_interval([line[key] for line in found[matching, remedy]])
                for remedy in remedies
            ]
            mean, half = np.array(of).T
            ax.errorbar(
                place + shift, mean, np.nan_to_num(half), fmt="o", ms=4, capsize=3, label=key
            )
        ax.set_xticks(place, remedies, rotation=60, ha="right")
        ax.set(title=f"equal {matching}", ylabel="%", ylim=(-5, 105))
    axes[0, 0].legend(fontsize="x-small")
    return drawn
