"""What a run logs, as it grows: arrays by name, those of steps and of evaluations."""

from collections.abc import Mapping, Sequence

import numpy as np

from dirasym.checkpoints import History, NonFiniteStateError


def extended(history: History, arrays: Mapping[str, np.ndarray]) -> History:
    """History with arrays that have a time axis put at its end."""
    longer = {
        key: np.concatenate([history[key], x]) if key in history else np.asarray(x)
        for key, x in arrays.items()
    }
    return {**history, **longer}


def side_by_side(
    of_seeds: Sequence[History],
    shared: tuple[str, ...] = ("eval_step",),
    seeds_first: tuple[str, ...] = (),
) -> History:
    """Histories of several seeds as one; see `WorkDir.stacked`."""
    stacked = {}
    for key, first in of_seeds[0].items():
        if key in shared:
            stacked[key] = first
        else:
            axis = 0 if first.ndim == 0 or key.startswith(seeds_first) else 1
            stacked[key] = np.stack([history[key] for history in of_seeds], axis=axis)
    return stacked


def scalars(history: History) -> dict[str, float]:
    """The last of each series of numbers."""
    series = {key: x for key, x in history.items() if x.ndim == 1 and len(x)}
    return {key: float(x[-1]) for key, x in series.items() if key != "eval_step"}


def timed(history: History, seconds: float) -> History:
    """History with so much more of the run's wall time: see `runs.sweep`."""
    spent = history.get("wall_time_sec", np.zeros(())) + seconds
    return history | {"wall_time_sec": np.asarray(spent)}


def check_still_finite(history: History, step: int) -> None:
    """Raises NonFiniteStateError for a scalar that was evaluated to be finite, and is not now.

    What is not finite from the start could not be measured, which ruins nothing.
    """
    count = len(history.get("eval_step", ()))
    for name, x in history.items():
        if x.shape == (count,) and np.isfinite(x[0]) and not np.isfinite(x[-1]):
            raise NonFiniteStateError(step, f"the evaluation {name}")
