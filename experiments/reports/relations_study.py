"""The tables and figures of `relations_study`, from its result lines."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
FACTORS = {  # how axes call them
    "depth": "layers",
    "dropout": "dropout rate",
    "family": "network",
    "l2": "coefficient of L2",
    "loss": "what is scored",
}
VALUES = {
    "gpt2": "GPT-2",
    "mlp": "MLP",
    "gru": "GRU",
    "masked": "bidirectional",
    "whole": "whole\nsentence",
    "masked, whole": "whole,\nbidirectional",
}
LOWEST = "lowest_validation_nll"
Lines = Sequence[Mapping[str, Any]]


def table(lines: Lines, factor: str, values: Iterable[str]) -> str:
    """A row a value of the factor: means and intervals over seeds."""
    rows = [
        [value, *(interval(report.select(lines, factor=factor, value=value), key) for key in KEYS)]
        for value in values
    ]
    return report.table([factor, *KEYS.values()], rows)


def guesses(lines: Lines) -> str:
    """What a uniform guess among the candidates costs, of all sentences that there are."""
    return " or ".join(f"{x:.3f}" for x in sorted({line["uniform_nll"] for line in lines}))


def figures(factor: str) -> Callable[[Lines, str, Iterable[str]], Any]:
    """What draws a factor."""
    return in_context_figure if factor.startswith("in_context") else figure


def depth_and_told(value: str) -> tuple[int, int]:
    """(1, 2) of "depth 1, 2 told", a value of the factor in_context."""
    depth, told = map(int, re.findall(r"\d+", value))
    return depth, told


def in_context_figure(lines: Lines, factor: str, values: Iterable[str]):
    """Lowest withheld NLL against the facts told, a line a depth, and a guess among them."""
    drawn, ((ax,),) = report.new_figure(1, 1, (5.0, 3.0))
    cells = [(value, *depth_and_told(value)) for value in values]
    told = sorted({m for _, _, m in cells})
    for depth in sorted({n for _, n, _ in cells}):
        of = [
            intervals.student_interval(
                [r[LOWEST] for r in report.select(lines, factor=factor, value=value)]
            )
            for value, n, _ in cells
            if n == depth
        ]
        label = f"{depth} layer" + "s" * (depth > 1)
        report.plot_intervals(ax, [m for _, n, m in cells if n == depth], of, label)
    ax.plot(told, np.log(told), "k:", label="guess among those told")
    ax.set(xlabel="facts told in the prompt", ylabel="lowest withheld NLL (nats)", xticks=told)
    report.legend(ax)
    return drawn


def figure(lines: Lines, factor: str, values: Iterable[str]):
    """NLL and asymmetry against the factor; categories are not joined by lines."""
    drawn, axes = report.new_figure(1, 2, (3.6, 3.4))
    values = list(values)
    lines_V = [report.select(lines, factor=factor, value=value) for value in values]
    is_number = all(value.replace(".", "").isdigit() for value in values)
    place, marks = np.arange(len(lines_V)), "osD"
    for ax, (ylabel, keys) in zip(axes[0], DRAWN.items(), strict=True):
        for number, key in enumerate(keys):
            of_seeds_V = [[r[key] for r in seeds if r.get(key) is not None] for seeds in lines_V]
            mean, half = np.array(
                [intervals.student_interval(v) if v else (np.nan, np.nan) for v in of_seeds_V]
            ).T
            at = place + 0.16 * (number - (len(keys) - 1) / 2) * (not is_number)
            style = dict(marker=marks[number], ms=5, capsize=3, ls="-" if is_number else "none")
            aside = report.beside(ax, 0.06 * number * is_number)
            half = np.nan_to_num(half)
            ax.errorbar(at, mean, half, label=KEYS[key], transform=aside, **style)
        names = [VALUES.get(value, value) for value in values]
        xlabel = FACTORS.get(factor, factor.replace("_", " "))
        ax.set(xticks=place, xticklabels=names, xlabel=xlabel, ylabel=ylabel)
        ax.set_ylim(bottom=-0.03 * ax.get_ylim()[1])
        if not is_number:
            ax.set_xlim(-0.5, len(values) - 0.5)
    axes[0, 0].axhline(lines[0]["uniform_nll"], color="black", ls=":", label="uniform guess")
    for ax in axes[0]:
        report.legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn
