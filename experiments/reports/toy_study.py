"""The figure and table of `toy_study`, from its result lines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import report

WEIGHTS = ("raw", "ema")
Lines = Sequence[Mapping[str, Any]]


def figure(lines: Lines, inits: Sequence[str], orders: Sequence[str]):
    """Reverse accuracy over training; seeds of one initialisation are equally long."""
    drawn, axes = report.new_figure(2, len(inits), (3.2, 2.6))
    for column, init in enumerate(inits):
        of_init = report.select(lines, init=init)
        for ax, weights in zip(axes[:, column], WEIGHTS, strict=True):
            for order in orders:
                reverse_TS = curves(of_init, "reverse", order, weights)
                report.plot_seeds(ax, of_init[0]["eval_step"], reverse_TS, order)
            ax.set(title=f"{init}, {weights}", xlabel="step", ylabel="reverse (%)", ylim=(-2, 102))
    axes[0, 0].legend(fontsize="x-small")
    return drawn


def table(lines: Lines, inits: Sequence[str], orders: Sequence[str]) -> str:
    """Accuracy at the last step with its interval, and the range over evaluations and seeds."""
    header = ["initialisation", "order", "weights", "forward %", "reverse %", "reverse, any step"]
    return report.table(header, _rows(lines, inits, orders))


def _rows(lines: Lines, inits: Sequence[str], orders: Sequence[str]) -> Iterator[list[str]]:
    for init in inits:
        of_init = report.select(lines, init=init)
        for weights in WEIGHTS:
            for order in orders:
                reverse_TS, forward_TS = (
                    curves(of_init, direction, order, weights)
                    for direction in ("reverse", "forward")
                )
                yield [
                    init,
                    order,
                    weights,
                    report.mean_interval(forward_TS[-1], 1),
                    report.mean_interval(reverse_TS[-1], 1),
                    f"{reverse_TS[1:].min():.0f} to {reverse_TS[1:].max():.0f}",
                ]


def curves(lines: Lines, direction: str, order: str, weights: str) -> np.ndarray:
    """[evaluations, seeds]."""
    return np.array([line[f"{direction}/{order}/{weights}"] for line in lines]).T
