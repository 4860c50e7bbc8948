"""What a run trains, beside its identity: so that another's results are not taken for its own."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from dirasym import digests, files, run_arguments
from dirasym.training import Data
from dirasym.types import Batch
from dirasym.workdir import WorkDir, WorkDirError, full_name, made_with

PROGRAM = "program"  # of a step: model, objective and optimizer


def recipe(run: Any, seed: int) -> dict[str, Any]:
    """What determines a `Run`, its identity, data and initial values apart.

    The step is known by `digests.of_program`: learning rates and the like are its constants.
    """
    state, batch = abstract(run, seed)
    program = digests.of_program(jax.make_jaxpr(run.step)(state, batch))
    sizes = {
        name: getattr(run, name)
        for name in ("num_steps", "eval_every", "batch_size", "whole_epochs")
    }
    return sizes | {PROGRAM: program[:16]}


def abstract(run: Any, seed: int) -> tuple[Any, Batch]:
    """Shapes and dtypes of a `Run`'s state and of a batch."""
    data = run_arguments.check_data(run.data(seed))
    state = run_arguments.check_state(jax.eval_shape(lambda: run.init(seed)))
    return state, abstract_batch(run, data)


def abstract_batch(run: Any, data: Data) -> Batch:
    """Shapes and dtypes of a batch of a `Run`."""
    rows: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((run.batch_size, *np.shape(x)[1:]), np.asarray(x).dtype)
        for name, x in data.items()
    }
    index_B: Any = jax.ShapeDtypeStruct((run.batch_size,), np.int32)
    return Batch(**rows, index_B=index_B, global_size=run.batch_size)


def check(workdir: WorkDir, runs: Iterable[Any], seeds: Sequence[int]) -> None:
    """Refuses runs that were begun by another recipe, and notes those of which none was begun.

    Not needed where the work directory's configuration says all that determines a run, as flags
    do. Recipes of other versions of JAX or of this library cannot be compared, and are let pass.

    Raises:
      WorkDirError: what is there was trained otherwise; what differs is named.
    """
    for run in runs if seeds else ():
        _check(workdir, run, seeds)


def _check(workdir: WorkDir, run: Any, seeds: Sequence[int]) -> None:
    path = workdir.path / "recipes" / f"{run.name}.json"
    wanted = recipe(run, seeds[0])
    versions = {n: v for n, v in made_with()["versions"].items() if n in ("jax", "dirasym")}
    begun = any(line is not None for line in workdir.lines((run, seed) for seed in seeds))
    folders = (workdir.path / "checkpoints" / full_name(run, seed) for seed in seeds)
    if not begun and not any(folder.is_dir() for folder in folders):
        if jax.process_index() == 0:
            path.parent.mkdir(exist_ok=True)
            files.write_atomically(path, json.dumps(versions | wanted, indent=2) + "\n")
        return
    try:
        files.check_regular(path)
        found = json.loads(path.read_text(encoding="utf-8"))
        is_known = all(found[name] == version for name, version in versions.items())
        differing = [name for name, x in wanted.items() if is_known and found.get(name, x) != x]
    except (OSError, ValueError, TypeError, KeyError):
        return  # of a directory that was begun without one
    if differing:
        what = ["step (model, objective or optimizer)" if n == PROGRAM else n for n in differing]
        raise WorkDirError(
            f"{workdir.path}: {run.name} was trained with another {', '.join(what)}: put what you "
            "vary into its identity, or begin another directory"
        )
