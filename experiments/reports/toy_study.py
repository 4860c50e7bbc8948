"""The figure and table of `toy_study`, from its result lines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import report

WEIGHTS = {"raw": "raw weights", "ema": "moving average"}
NAMES = {  # of initialisations, short
    "default": "default",
    "bias_zero": "biases 0",
    "bias_zero+embed_small": "small embedding",
    "bias_zero+embed_unit": "unit embedding",
    "head_zero": "zero head",
    "bias_zero+head_zero": "zero head, biases 0",
}
Lines = Sequence[Mapping[str, Any]]


def figure(lines: Lines, inits: Sequence[str], orders: Sequence[str]):
    """Reverse accuracy over training, a row an initialisation; its seeds are equally long."""
    drawn, axes = report.new_figure(len(inits), 2, (3.6, 1.9))
    for row, init in zip(axes, inits, strict=True):
        of_init = report.select(lines, init=init)
        for ax, (weights, name) in zip(row, WEIGHTS.items(), strict=True):
            for order in orders:
                reverse_TS = curves(of_init, "reverse", order, weights)
                label = order.replace("_", " ")
                report.plot_seeds(ax, of_init[0]["eval_step"], reverse_TS, label)
            ax.set_title(f"{NAMES.get(init, init)}: {name}", fontsize="medium")
            ax.set_ylim(-2, 102)
        row[0].set_ylabel("reverse (%)")
    for ax in axes[-1]:
        ax.set_xlabel("step")
    handles = ax.get_legend_handles_labels()  # those of every panel
    drawn.legend(*handles, loc="outside upper center", ncols=4, fontsize=report.SMALL)
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
