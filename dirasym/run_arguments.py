"""What a sweep is given, checked before it trains: one sentence that names the argument."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import usage
from dirasym.stopping import check_limit
from dirasym.training import Data, TrainState
from dirasym.types import Batch, check_scored

# Names of a result line that the library writes itself, beside those of the identity.
RESERVED = ("exp_id", "run", "seed", "run_wall_time_sec")
# Of a history, beside the names of a step's metrics.
_LOGGED = ("eval_step", "wall_time_sec")
_FIELDS = {f.name for f in dataclasses.fields(Batch)} - {"index_B", "global_size", "size_B"}
_SEEDS = 2**32  # `jax.random.key` takes others for one of these


def check_identity(identity: Any) -> None:
    """Raises TypeError or ValueError for what no result line can be known by."""
    if not isinstance(identity, Mapping):
        raise TypeError(f"identity must be a dict, got {identity!r:.80}")
    for name, value in identity.items():
        if not isinstance(name, str):
            raise TypeError(f"identity: the name {name!r:.80} is no string")
        if name in RESERVED:
            raise ValueError(f"identity: {name!r} is a name that result lines have for their own")
        if not isinstance(value, str | int | float | np.generic | None):
            raise TypeError(f"identity: {name} must be a JSON scalar, got a {type(value).__name__}")
        if isinstance(value, float | np.floating) and not math.isfinite(value):
            raise ValueError(f"identity: {name} is {value}, for which JSON has no word")


def check_seeds(seeds: Any) -> list[int]:
    """The seeds as a list; raises TypeError or ValueError for what are none."""
    seeds = usage.listed("seeds", seeds, "whole numbers")
    for seed in seeds:
        usage.check_counts(0, seeds=seed)
        if seed >= _SEEDS:
            raise ValueError(f"seeds must be below 2**32, got {seed}")
    return seeds


def check_shard(shard: Any) -> None:
    """Raises ValueError for what is no (i, n) with 0 <= i < n, nor None."""
    if shard is None:
        return
    try:
        part, parts = shard
        usage.check_counts(0, part=part)
        usage.check_counts(parts=parts)
        fits = not isinstance(shard, str) and part < parts
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"shard must be (i, n) with 0 <= i < n, got {shard!r:.80}")


def check_options(writers: Any, checkpoint_every: Any, time_limit: Any) -> list[Any]:
    """The writers as a list; raises TypeError or ValueError for what are none, or no numbers."""
    usage.check_counts(checkpoint_every=checkpoint_every)
    check_limit(time_limit)
    writers = usage.listed("writers", writers, "writers", some=False)
    for writer in writers:
        lacking = [n for n in ("open", "scalars", "close") if not hasattr(writer, n)]
        if lacking:
            raise TypeError(f"writers: {writer!r:.80} has no {lacking[0]}()")
    return writers


def check_data(data: Any) -> Data:
    """The examples; raises TypeError or ValueError for what are no `Batch` fields."""
    if not isinstance(data, Mapping):
        raise TypeError(f"data must return a dict of Batch fields, got a {type(data).__name__}")
    if unknown := sorted(set(data) - _FIELDS):
        raise ValueError(f"data: {unknown[0]!r} is none of {', '.join(sorted(_FIELDS))}")
    if "tokens_BL" not in data:
        raise ValueError("data lacks tokens_BL")
    dtype = np.asarray(data["tokens_BL"]).dtype
    if not np.issubdtype(dtype, np.integer):
        raise ValueError(f"data: tokens_BL must be integers, got {dtype}")
    masks = {name: data.get(name) for name in ("scored_BL", "valid_BL")}
    if all(x is None or np.shape(x) == np.shape(data["tokens_BL"]) for x in masks.values()):
        check_scored(Batch(data["tokens_BL"], np.zeros(0), 0, **masks))
    return data


def check_state(state: Any) -> TrainState:
    """The state; raises TypeError for another thing."""
    if not isinstance(state, TrainState):
        kind = type(state).__name__
        raise TypeError(f"init must return a TrainState, as create_state does, got a {kind}")
    return state


def metric_names(step: Any, state: TrainState, batch: Batch) -> frozenset[str]:
    """What a step logs; raises TypeError for a step that returns no (state, metrics)."""
    if not callable(step):
        raise TypeError(f"step must be a function of (state, batch), got {step!r:.80}")
    made = jax.eval_shape(step, state, batch)
    is_pair = isinstance(made, tuple) and len(made) == 2
    if not (is_pair and isinstance(made[0], TrainState) and isinstance(made[1], Mapping)):
        raise TypeError(f"step must return (state, metrics), got a {type(made).__name__}")
    if "loss" not in made[1]:
        raise ValueError("step: its metrics lack loss")
    return frozenset(made[1])


def check_evaluated(values: Any, logged: frozenset[str]) -> None:
    """Raises TypeError or ValueError for other than arrays under names that steps do not log."""
    if not isinstance(values, Mapping):
        raise TypeError(f"evaluate must return a dict of arrays, got a {type(values).__name__}")
    for name, value in values.items():
        dtype = np.asarray(value).dtype
        if not (jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)):
            raise TypeError(f"evaluate: {name} must be an array of numbers, got {value!r:.80}")
        if name in logged.union(_LOGGED):
            raise ValueError(
                f"evaluate: {name!r} is a curve of the steps, which it would be mixed with: "
                "give it another name"
            )


def check_line(line: Any, identity: Mapping[str, Any], by: str = "summarize") -> dict[str, Any]:
    """What `by` says of a run; raises TypeError or ValueError for what would overwrite the rest."""
    if not isinstance(line, Mapping):
        raise TypeError(f"{by} must return a dict, got a {type(line).__name__}")
    for name, value in line.items():
        if name in RESERVED or (name in identity and identity[name] != value):
            raise ValueError(f"{by}: {name!r} is what the run is known by: name it otherwise")
    return dict(line)
