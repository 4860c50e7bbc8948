"""Table and figure of `dial`, from its result lines."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import report, runs
from dirasym.intervals import Bounds
from dirasym.workdir import WorkDir
from experiments.reports import verdicts
from experiments.reports.verdicts import bounds, said, verdict

Line = Mapping[str, Any]
COLUMNS = {
    "forward %": "percent_forward",
    "reverse %": "percent_reverse",
    "reverse within: P(true) %": "p_reverse_within",
    "choice %": "choice_reverse_within",
    "reverse across: P(true) %": "p_reverse_across",
    "choice, across %": "choice_reverse_across",
    "cosine *order*, storage, within": "cosine_order_within_storage",
    "across": "cosine_order_across_storage",
}
MARKS = {"anywhere": "o-", "within": "^:", "across": "s--"}


def by_cell(lines: Sequence[Line]) -> dict[tuple[str, int], list[Line]]:
    """Result lines of (placed, block), by seed."""
    cells: dict[tuple[str, int], list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line["block"], line["seed"])):
        cells.setdefault((line["placed"], line["block"]), []).append(line)
    return cells


def table(lines: Sequence[Line]) -> str:
    """A row a cell: mean over seeds ± interval; a cell has no placements of the kind left empty."""
    rows = []
    for (placed, block), of_cell in by_cell(lines).items():
        values = ([x[key] for x in of_cell if x.get(key) is not None] for key in COLUMNS.values())
        digits = (2 if "cosine" in key else 1 for key in COLUMNS.values())
        cells = [report.mean_interval(v, d) if v else "" for v, d in zip(values, digits)]  # noqa: B905
        rows.append([placed, block, len(of_cell), *cells])
    return report.table(["pairs", "block", "seeds", *COLUMNS], rows)


def border_ratio(of_cell: Sequence[Line]) -> Bounds:
    """P(true) of the reverse across borders over that within blocks, over seeds."""
    return bounds([line["p_reverse_across"] / line["p_reverse_within"] for line in of_cell])


def claims(lines: Sequence[Line]) -> list[list[str]]:
    """(claim, statistic, verdict) by the thresholds of docs/causes.md, of what was run."""
    cells, rows = by_cell(lines), []
    for (placed, block), of_cell in cells.items():
        if placed == "anywhere" and {"p_reverse_across", "p_reverse_within"}.issubset(of_cell[0]):
            ratio = border_ratio(of_cell)
            for claim, holds, fails in (
                ("dies across borders", ratio.high < 0.25, ratio.low > 0.25),
                ("rival: answers across borders", ratio.low > 0.5, ratio.high < 0.5),
            ):
                word = verdict([ratio], holds, fails)
                rows.append([f"{claim}, block {block}", f"ratio {said(ratio)}", word])
        if placed == "across":
            reverse = bounds([line["percent_reverse"] for line in of_cell])
            word = verdict([reverse], reverse.high < 5, reverse.low > 5)
            claim = f"none from pairs across borders, block {block}"
            rows.append([claim, f"reverse {said(reverse, 1)} %", word])
    return rows


def claim_table(lines: Sequence[Line]) -> str:
    """`claims` as a table."""
    return verdicts.table(claims(lines))


def figure(lines: Sequence[Line]):
    """Accuracy, P(true) within and across, and the theorem's gradient, against block size."""
    drawn, axes = report.new_figure(3, 1, (7.2, 1.9))
    first, *others = axes[:, 0]
    for ax in others:
        ax.sharex(first)
    panels = {
        "accuracy (%)": ["percent_forward", "percent_reverse"],
        "reverse: P(true) (%)": ["p_reverse_within", "p_reverse_across"],
        "storage cosine, order": ["cosine_order_within_storage", "cosine_order_across_storage"],
    }
    for ax, (label, keys) in zip(axes[:, 0], panels.items(), strict=True):
        for number, key in enumerate(keys, 0 if "percent_forward" in keys else 2):
            draw_curves(ax, lines, key, number)
        top = 1 if "cosine" in label else 100
        ax.set(ylabel=label, ylim=(-0.05 * top, 1.05 * top))
        ax.set_xticks(sorted({line["block"] for line in lines}))
    ax.set_xlabel("block size (tokens)")  # of the last panel
    names = ["forward", "reverse", "asked within a block", "asked across a border"]
    color = report.color
    keys = [ax.plot([], [], color=color(n), label=name) for n, name in enumerate(names)]
    keys += [
        ax.plot([], [], style, color="gray", label=f"trained on pairs {placed}")
        for placed, style in MARKS.items()
    ]
    handles = [key[0] for key in keys]
    drawn.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=report.SMALL)
    return drawn


def draw_curves(ax, lines: Sequence[Line], key: str, number: int) -> None:
    """A curve over block sizes for each kind of training pairs, with intervals over seeds."""
    for kind_number, (placed, mark) in enumerate(MARKS.items()):
        found = {
            block: bounds([line[key] for line in of if line.get(key) is not None])
            for (kind, block), of in by_cell(lines).items()
            if kind == placed
        }
        found = {block: of for block, of in found.items() if np.isfinite(of.estimate)}
        if found:
            aside = report.beside(ax, 0.2 * (0, -1, 1)[kind_number] + 0.1 * (number % 2) - 0.05)
            style = dict(fmt=mark, color=report.color(number), transform=aside)
            report.plot_bounds(ax, list(found), [*found.values()], None, **style)


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run]) -> None:
    """Writes the figure and report.md, and prints the tables and their paths."""
    del all_runs
    lines = workdir.results()
    printed = "\n\n".join([table(lines), claim_table(lines)])
    text = (
        f"# The block-size dial\n\nL = {config.length}, {config.steps} steps of "
        f"{config.batch_size}; design, words and thresholds: docs/causes.md.\n\n{printed}"
    )
    report.write(workdir.path, text, {"dial": functools.partial(figure, lines)}, printed=printed)
