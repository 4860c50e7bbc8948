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
    "choice_given": "trained choice %",
    "choice_withheld": "withheld choice %",
}
DRAWN = {
    "NLL (nats)": ("train_nll", "validation_nll", "validation_nll_when_learned"),
    "asymmetry": ("asymmetry_trained", "asymmetry_withheld"),
    "choice (%)": ("choice_given", "choice_withheld"),
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
FRESH_KEYS = {
    "train_nll": "training NLL",
    "validation_nll": "withheld NLL",
    "accuracy": "withheld accuracy",
}
# What a guess among the facts told costs, and how often it is right.
GUESSES = lambda line: np.log(line["num_facts"]), lambda line: 1 / line["num_facts"]
BASE_FACTS, BASE_NAMES = 2, 50  # of in_context_fresh, where they do not vary
DISTANCES = (2, None), (4, None), (4, 2)  # facts told and asked in training, drawn by place
CHOICE = "choice_withheld"
KINDS = {  # of network, in the figure of choice: factor and value
    "tied": ("head", "tied"),
    "untied": ("head", "untied"),
    "frozen": ("head", "tied, frozen embeddings"),
    "MLP": ("family", "mlp"),
    "GRU": ("family", "gru"),
    "bidirectional": ("family", "masked"),
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


def fresh_table(lines: Lines, factor: str, values: Iterable[str]) -> str:
    """A row a cell of the facts drawn anew: means and intervals over seeds."""
    rows = []
    for value in values:
        of = report.select(lines, factor=factor, value=value)
        cells = [interval(of, key) for key in FRESH_KEYS]
        rows.append([value, *cells, *(f"{guess(of[0]):.3f}" for guess in GUESSES)])
    header = [factor, *FRESH_KEYS.values(), "a guess among the told", "its accuracy"]
    return report.table(header, rows)


def tables(factor: str) -> Callable[[Lines, str, Iterable[str]], str]:
    """What tabulates a factor."""
    return fresh_table if factor == "in_context_fresh" else table


def figures(factor: str) -> Callable[[Lines, str, Iterable[str]], Any]:
    """What draws a factor."""
    if factor == "in_context_fresh":
        return fresh_figure
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


def fresh_figure(lines: Lines, factor: str, values: Iterable[str]):
    """Accuracy on withheld sentences against facts told, the distance of the one, and names."""
    del values
    drawn, (axes,) = report.new_figure(1, 3, (2.4, 3.0))
    lines = report.select(lines, factor=factor)
    everywhere = report.select(lines, num_asked=None)
    for ax, color, key, alike in (  # 0: two told, as in the middle
        (axes[0], report.color(3), "num_facts", dict(num_names=BASE_NAMES)),
        (axes[2], report.color(0), "num_names", dict(num_facts=BASE_FACTS)),
    ):
        seeds_X: dict[int, list[Mapping[str, Any]]] = {}
        for line in report.select(everywhere, **alike):
            seeds_X.setdefault(line[key], []).append(line)
        x = sorted(seeds_X)
        of = [intervals.student_interval([line["accuracy"] for line in seeds_X[n]]) for n in x]
        report.plot_intervals(ax, x, of, "asked at any place", color=color)
        ax.plot(x, [1 / seeds_X[n][0]["num_facts"] for n in x], "k:", label="guess among the told")
        ax.set_xscale("log", base=2)
        ax.set_xticks(x, [str(n) for n in x])
    _draw_distance(axes[1], report.select(lines, num_names=BASE_NAMES))
    for ax, xlabel in zip(axes, ("facts told", "fact asked (1: nearest)", "names A"), strict=True):
        ax.set(xlabel=xlabel, ylim=(-0.06, 1.1))
    axes[0].set_ylabel("accuracy, withheld sentences")
    report.legend(axes[1], loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn


def _draw_distance(ax, lines: Lines) -> None:
    """Accuracy by the place of the fact asked for, the last told first."""
    for number, (told, asked) in enumerate(DISTANCES):
        of = report.select(lines, num_facts=told, num_asked=asked)
        right_SF = [line["accuracy_by_place"] for line in of]
        means = [intervals.student_interval(column) for column in zip(*right_SF, strict=True)]
        label = f"{told} told" + (f", nearest {asked} trained" if asked else "")
        distances, style = range(1, told + 1), dict(transform=report.beside(ax, 0.06 * number))
        report.plot_intervals(ax, distances, means[::-1], label, **style)
        if not asked:
            label = "guess among the told" if not number else None
            ax.plot(distances, [1 / told] * told, "k:", label=label)
    ax.set_xticks(distances)


def figure(lines: Lines, factor: str, values: Iterable[str]):
    """NLL, asymmetry and choice against the factor; categories are not joined by lines."""
    values = list(values)
    lines_V = [report.select(lines, factor=factor, value=value) for value in values]
    known = {key for seeds in lines_V for line in seeds for key in line}
    panels = {label: keys for label, keys in DRAWN.items() if known.intersection(keys)}
    drawn, axes = report.new_figure(1, len(panels), (3.6, 3.4))
    is_number = all(value.replace(".", "").isdigit() for value in values)
    place, marks = np.arange(len(lines_V)), "osD"
    for ax, (ylabel, keys) in zip(axes[0], panels.items(), strict=True):
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
    axes[0, 0].axhline(lines_V[0][0]["uniform_nll"], color="black", ls=":", label="uniform guess")
    for ax in axes[0]:
        report.legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return drawn


def choice_figure(lines: Lines, guess: Callable[[float], float]):
    """Choice of the withheld answer against rate, share and kind of network: mean, and seeds.

    Args:
      lines: of the factors.
      guess: from a share of pairs trained both ways to the choice by guessing, in percent.
    """

    def numbers(factor):
        values = {line["value"] for line in report.select(lines, factor=factor)}
        return sorted((x for x in values if "," not in x), key=float)

    def draw(ax, x_V, cells, label, **style):
        of_V = [report.select(lines, factor=factor, value=value) for factor, value in cells]
        seeds_VS = [[line[CHOICE] for line in of] for of in of_V]
        for x, seeds in zip(x_V, seeds_VS, strict=True):
            ax.plot([x] * len(seeds), seeds, "_", color=style["color"], ms=9, label="_nolegend_")
        ax.plot(x_V, list(map(np.mean, seeds_VS)), marker="o", ms=4, label=label, **style)

    drawn, (axes,) = report.new_figure(1, 3, (3.2, 3.2))
    rates = sorted({*numbers("learning_rate"), *numbers("learning_rate_24")}, key=float)
    for layers, factor in ((2, "learning_rate"), (24, "learning_rate_24")):
        values = numbers(factor)
        style = dict(label=f"{layers} layers", color=report.color(layers > 2))
        draw(axes[0], [rates.index(x) for x in values], [(factor, x) for x in values], **style)
    axes[0].set(xticks=range(len(rates)), xticklabels=rates, xlabel="learning rate")
    axes[0].set_ylabel("choice of the withheld answer (%)")
    shares = numbers("share_both_ways")
    share_V, of_shares = list(map(float, shares)), [("share_both_ways", x) for x in shares]
    draw(axes[1], share_V, of_shares, "2 layers", color=report.color(0))
    axes[1].set(xticks=share_V, xlabel="share of pairs trained both ways")
    draw(axes[2], range(len(KINDS)), KINDS.values(), "2 layers", color=report.color(0), ls="none")
    axes[2].set(xticks=range(len(KINDS)), xlabel="head, network", xlim=(-0.5, len(KINDS) - 0.5))
    axes[2].set_xticklabels(KINDS, rotation=30, ha="right")
    for ax in axes:
        x_V = share_V if ax is axes[1] else list(ax.get_xlim())
        by_guess = [guess(x) if ax is axes[1] else guess(0.7) for x in x_V]
        ax.plot(x_V, by_guess, "k:", label="guess")
        ax.set_ylim(-4, 104)
    report.legend(axes[0])
    return drawn
