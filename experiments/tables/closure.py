"""Numbers of docs/closure.md that are in none of the report's tables."""

import numpy as np

from experiments.tables.common import column, groups, lines


def unlearned(*closures: int) -> str:
    """The least weight decay at which less than 95 % of what is told is known, at any of these."""
    of = groups(lines("closure/results"), "closure", "weight_decay")
    decays = [
        float(decay)
        for (closure, decay), cell in of.items()
        if closure in closures and np.mean(column(cell, "train_accuracy")) < 0.95
    ]
    return f"{min(decays):g}"
