"""Any set of training runs over seeds: recorded, skipped when done, killed and resumed anywhere.

    lines = runs.sweep([run, ..], seeds=range(3), workdir="runs/mine")

A `Run` says what is trained, for any seed; `sweep` does the rest. It has no flags, and serves a
script of your own as it serves the experiments.

A line's `run_wall_time_sec` is from the run's beginning to the end of its last checkpoint: its
states, compilation where that falls to this run, steps, evaluations and checkpoints; not `data`
and `finish`. Seeds that train together have one time. Of a run that was broken off it is that of
each part up to the checkpoint which the next part goes on from, whose own writing is left out.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from dirasym import models, plans, recipes, run_arguments, sharding, training, usage
from dirasym.checkpoints import Checkpoints, History, NonFiniteStateError
from dirasym.compile import Backend, check_divisible, compile_scan, make_room
from dirasym.histories import check_still_finite, extended, scalars, timed
from dirasym.progress import Progress
from dirasym.seeds import by_seed, joined, part, stack
from dirasym.stopping import Stopping
from dirasym.training import Data, StepFn, TrainState
from dirasym.types import Array
from dirasym.workdir import WorkDir, full_name, name_of, opened

Shard = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, for any seed.

    Attributes:
      identity: what its result line is known by, the seed apart: JSON scalars; {} for a run alone.
      data: from a seed to examples, a dict of `Batch` fields [n, ...]. Seeds that get the same
        object share it.
      step: pure, (state, batch) -> (state, metrics). Runs with one step object, equal shapes
        and equal `apply_fn` and `tx` objects in their states share a compiled program.
      num_steps: in all; a multiple of `eval_every`.
      eval_every: steps between evaluations and checkpoints.
      batch_size: examples a step. Of fewer examples some stand in it more than once.
      init: from a seed to the state at step 0.
      evaluate: from a state to arrays, of one seed: at step 0 and after `eval_every` steps. Their
        names are other than those of the step's metrics.
      summarize: from the history of one seed to its result line (JSON values), under other names
        than those of the identity, "seed", "run", "exp_id" and "run_wall_time_sec".
      finish: called with the last state and a folder of the run's own, into which it may write.
        The arrays that it returns join the history.
      whole_epochs: whether an epoch ends with a smaller batch (see `training.scan_steps`).
      network: what is trained; if given, its result line says its `models.sizes`.
    """

    identity: Mapping[str, Any]
    data: Callable[[int], Data]
    step: StepFn
    num_steps: int
    eval_every: int
    batch_size: int
    init: Callable[[int], TrainState]
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None
    summarize: Callable[[History], Mapping[str, Any]] = lambda history: {}
    finish: Callable[[TrainState, pathlib.Path], Mapping[str, Array]] | None = None
    whole_epochs: bool = False
    network: Any = None
    has_curves: ClassVar[bool] = True  # the losses of its steps

    def __post_init__(self):
        run_arguments.check_identity(self.identity)
        counts = ("num_steps", "eval_every", "batch_size")
        usage.check_counts(**{name: getattr(self, name) for name in counts})
        if self.num_steps % self.eval_every:
            raise ValueError(
                f"num_steps={self.num_steps} is not a multiple of eval_every={self.eval_every}"
            )

    @functools.cached_property
    def name(self) -> str:
        """The identity as a file name: `model=mdm,length=10`."""
        return name_of(self.identity)


def parse_shard(text: str) -> Shard:
    """(I, N) of "I/N". Raises ValueError for any other text."""
    part, slash, parts = text.partition("/")
    if slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts):
        return int(part), int(parts)
    raise ValueError(f"shard={text} is not I/N with 0 <= I < N")


class Writer(Protocol):
    """Takes runs' scalars while they train: to TensorBoard, Weights & Biases, or elsewhere.

    A run with a seed has a name, `model=mdm,length=10,seed=0`. Those of seeds that train
    together are open at the same time.
    """

    def open(self, name: str, config: Mapping[str, Any]) -> None:
        """It begins, or goes on from a checkpoint."""
        ...

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Its loss and scalar evaluations after `step` steps."""
        ...

    def close(self, name: str) -> None:
        """It is done, stopped, or failed."""
        ...


def sweep(
    all_runs: Iterable[Run],
    seeds: Iterable[int],
    workdir: WorkDir | str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    backend: Backend = "jit",
    together: bool | Literal["auto"] = "auto",
    time_limit: float | None = None,
    shard: Shard | None = None,
    dry_run: bool = False,
    writers: Sequence[Writer] = (),
    checkpoint_every: int = 1,
    keep_checkpoints: bool = False,
    progress: bool = True,
    recipe: bool = True,
) -> list[dict[str, Any]]:
    """Trains every run with every seed, as far as it is not done, and returns the result lines.

    A line goes to WORKDIR/results.jsonl and a history to WORKDIR/curves as soon as a run is done.
    Killed, it goes on from its last checkpoints, in the same bits if seeds are grouped as before.

    Args:
      all_runs: of different identities.
      seeds: one training each.
      workdir: a path, or an open `WorkDir`.
      mesh: devices that share batches (axis "data") and weights ("model"), see `sharding`; or None.
      backend: "jit" or "pmap".
      together: whether the seeds of a run train in one program; "auto": on accelerators.
      time_limit: minutes after which it stops, or earlier if what comes next would not fit.
      shard: (i, n) does the i-th of n parts of the runs and seeds, i from 0. Parts may share
        a work directory, or be joined by `workdir.merge`.
      dry_run: trains nothing, and returns a line a run: steps, parameters, FLOPs.
      writers: take scalars during training. WORKDIR/curves has them as CSV in any case.
      checkpoint_every: evaluations between checkpoints. A run that stops or ends is saved too.
      keep_checkpoints: keep them all, not the last two.
      progress: a bar on a terminal, plain lines elsewhere.
      recipe: whether a run begun with another step or other sizes is refused (see `recipes`).

    Returns:
      A line a run and seed of this part: identity, seed, what `summarize` says, and its time.

    Raises:
      TypeError, ValueError: an argument, or what a function of a `Run` returns, that cannot be.
      WorkDirError, LockedError: see `WorkDir`, and `recipe`.
      NonFiniteLossError, NonFiniteStateError: the loss, a weight or a scalar evaluation stopped
        being finite; names run, step and last good checkpoint.
      Stopped: SIGTERM, Ctrl-C or the time limit; all is saved, and the same call goes on.

    Examples:
      See `docs/runs.md`.
    """
    all_runs, seeds = usage.listed("all_runs", all_runs, "runs"), run_arguments.check_seeds(seeds)
    writers = run_arguments.check_options(writers, checkpoint_every, time_limit)
    together = check(all_runs, seeds, mesh, backend, together, shard)
    if dry_run:
        return plans.lines(all_runs, seeds)
    workdir = opened(workdir)
    first, every = shard or (0, 1)
    mine = [(run, seed) for run in all_runs for seed in seeds][first::every]
    programs = _Programs(backend, mesh)
    keep = None if keep_checkpoints else 2
    with workdir.locked(shard), Stopping(time_limit) as stopping:
        recipes.check(workdir, all_runs if recipe else (), seeds)
        for run, pairs in itertools.groupby(workdir.missing(mine), key=lambda pair: pair[0]):
            missing = [seed for _, seed in pairs]
            for group in [missing] if together else [[seed] for seed in missing]:
                one = _Group(run, group, workdir, keep, checkpoint_every, writers, progress)
                one.train(programs, stopping)
    return [line for line in workdir.lines(mine) if line is not None]


def check(
    all_runs: Sequence[Run],
    seeds: Sequence[int],
    mesh: Mesh | None = None,
    backend: Backend = "jit",
    together: bool | Literal["auto"] = "auto",
    shard: Shard | None = None,
) -> bool:
    """Whether the seeds of this sweep train together; raises its ValueErrors."""
    if other := [run for run in all_runs if not hasattr(run, "identity")]:
        raise TypeError(f"all_runs must be a list of runs, and holds {other[0]!r:.80}")
    if not any(together is way for way in (True, False)) and together != "auto":
        raise ValueError(f"together must be True, False or 'auto', got {together!r}")
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be 'jit' or 'pmap', got {backend!r}")
    run_arguments.check_shard(shard)
    names = [run.name for run in all_runs]
    for what, values in (("runs of one identity", names), ("seeds", seeds)):
        if len(set(values)) < len(values):
            raise ValueError(f"repeated {what}: {sorted(map(str, values))}")
    shares = sharding.num_shares(mesh)
    for run in all_runs:
        check_divisible(run.batch_size, shares)
    splits_weights = mesh is not None and mesh.shape.get(sharding.MODEL, 1) > 1
    if together is True and (backend == "pmap" or splits_weights):
        raise ValueError("seeds together need backend 'jit', and a mesh without axis 'model'")
    if together == "auto":
        accelerated = jax.default_backend() != "cpu"
        return accelerated and backend == "jit" and not splits_weights
    return together


class _Programs:
    """Compiled segments of training, one for all runs that can share it."""

    def __init__(self, backend: Backend, mesh: Mesh | None):
        self._how: dict[str, Any] = dict(backend=backend, mesh=mesh)
        if mesh is not None and mesh.shape.get(sharding.MODEL, 1) > 1:
            self._how["shardings"] = functools.partial(sharding.shardings, mesh)
        self._made: dict[Any, Callable] = {}
        self._logged: dict[Any, frozenset[str]] = {}

    def logged(self, run: Run, state: TrainState, data: Data) -> frozenset[str]:
        """Names of what the run's step logs; traced once for all runs of a step."""
        if run.step not in self._logged:
            batch = recipes.abstract_batch(run, data)
            self._logged[run.step] = run_arguments.metric_names(run.step, state, batch)
        return self._logged[run.step]

    def get(self, run: Run, **seeds: Any) -> Callable:
        """`eval_every` steps of the run; `seeds` as `compile_scan` takes them."""
        key = run.step, run.eval_every, run.batch_size, run.whole_epochs, *seeds.items()
        if key not in self._made:
            self._made[key] = compile_scan(
                run.step,
                num_steps=run.eval_every,
                batch_size=run.batch_size,
                whole_epochs=run.whole_epochs,
                donate=True,
                **seeds,
                **self._how,
            )
        return self._made[key]


class _Group:
    """One run with the seeds that train in one program, from its last checkpoints to its lines."""

    def __init__(self, run: Run, seeds: list[int], workdir: WorkDir, keep, every, writers, shown):
        self.run, self.seeds, self.workdir = run, seeds, workdir
        self.writers = writers
        self.save_every = every * run.eval_every
        self.data = [run_arguments.check_data(run.data(seed)) for seed in seeds]
        digests = [training.digest(data) for data in self.data]
        self.saved = [
            workdir.checkpoints(run, seed, keep=keep, digest=digest)
            for seed, digest in zip(seeds, digests, strict=True)
        ]
        self.names = [full_name(run, seed) for seed in seeds]
        self.title = full_name(run, ",".join(map(str, seeds)))
        self.progress = Progress(self.title, run.num_steps, shown=shown)

    def train(self, programs: _Programs, stopping: Stopping) -> None:
        """Goes on to the last step, saving on the way, and records the result lines."""
        make_room()
        self._last = time.monotonic()
        step, state, histories = self._start(programs, stopping)
        try:
            for name in self.names:
                for writer in self.writers:
                    writer.open(name, dict(self.run.identity))
            state, histories = self._trained(step, state, histories, programs, stopping)
            self._record(state, histories)
        finally:
            self.progress.close()
            for saved in self.saved:
                saved.close()
            for name in self.names:
                for writer in self.writers:
                    writer.close(name)

    def _trained(self, step: int, state, histories, programs: _Programs, stopping: Stopping):
        """(state, histories) after the last step."""
        steps, data = self._program(programs)
        if not step:
            self._tell(step, histories)
        self.progress.start(step)
        while step < self.run.num_steps:
            with stopping.segment():
                state, metrics = steps(state, data)
                metrics = by_seed(stopping.fetch(metrics), len(self.seeds))
                step += self.run.eval_every
                self._check(metrics, step)
                histories = [
                    self._evaluated(extended(history, logged), self._part(state, place), step)
                    for place, (history, logged) in enumerate(zip(histories, metrics, strict=True))
                ]
                histories = self._timed(histories)
            ends = step == self.run.num_steps or bool(stopping.reason())
            is_due = ends or step % self.save_every == 0
            each = enumerate(zip(self.names, self.saved, histories, strict=True))
            for place, (name, saved, history) in each:
                with _named(name, saved), stopping.unbroken():
                    check_still_finite(history, step)
                    # If there is one, a twin of its group was killed before it saved.
                    if is_due and step not in saved.steps():
                        # Under no name, which would hold it while training goes on.
                        saved.save(step, self._part(state, place).replace(frozen=None), history)
            self.progress.update(step, histories[0])
            self._tell(step, histories)
            if ends and step < self.run.num_steps:
                where = f"{self.title} is saved at step {step} of {self.run.num_steps}"
                stopping.check(where)
        return state, histories

    def _part(self, state: TrainState, place: int) -> TrainState:
        """Of one seed; taken when it is wanted, so that no second copy of all lies in memory."""
        return part(state, place, len(self.seeds))

    def _tell(self, step: int, histories: list[History]) -> None:
        for name, history in zip(self.names, histories, strict=True):
            for writer in self.writers:
                writer.scalars(name, step, scalars(history))

    def _start(self, programs: _Programs, stopping: Stopping):
        """(step, state of all seeds, histories) of the newest step that all seeds have."""
        states = [run_arguments.check_state(self.run.init(seed)) for seed in self.seeds]
        self.logged = programs.logged(self.run, states[0], self.data[0])
        bare = [state.replace(frozen=None) for state in states]
        last = min(max(saved.steps(), default=0) for saved in self.saved)
        while last:
            found = [
                saved.restore(like, last) for saved, like in zip(self.saved, bare, strict=True)
            ]
            whole = [one for one in found if one is not None]
            if len(whole) < len(found):
                break
            steps = [step for step, _, _ in whole]
            if len(set(steps)) == 1:
                states = [
                    restored.replace(frozen=state.frozen)
                    for (_, restored, _), state in zip(whole, states, strict=True)
                ]
                return steps[0], stack(states), [history for _, _, history in whole]
            last = min(steps)  # one of them is damaged, or was killed before the others
        with stopping.segment():
            histories = [self._evaluated({}, state, 0) for state in states]
        return 0, stack(states), histories

    def _program(self, programs: _Programs):
        data, per_seed = joined(self.data)
        how = dict(over_seeds=True, data_per_seed=per_seed) if len(self.seeds) > 1 else {}
        return programs.get(self.run, **how), data

    def _check(self, metrics, step: int) -> None:
        for name, of_seed, saved in zip(self.names, metrics, self.saved, strict=True):
            with _named(name, saved):
                training.check_finite(of_seed, step)

    def _timed(self, histories: list[History]) -> list[History]:
        """With the time since this was asked last, or the group began, in each."""
        before, self._last = self._last, time.monotonic()
        return [timed(history, self._last - before) for history in histories]

    def _evaluated(self, history: History, state: TrainState, step: int) -> History:
        if self.run.evaluate is None:
            return history
        found = jax.device_get(self.run.evaluate(state))
        run_arguments.check_evaluated(found, self.logged)
        values = {"eval_step": step, **found}
        return extended(history, {key: np.asarray(x)[None] for key, x in values.items()})

    def _record(self, all_states: TrainState, histories) -> None:
        whole = self._timed(histories)  # with the last checkpoint, which the curves leave out
        for place, (seed, history) in enumerate(zip(self.seeds, histories, strict=True)):
            state = self._part(all_states, place)
            if self.run.finish is not None:
                folder = self.workdir.folder(self.run, seed)
                history = history | jax.device_get(dict(self.run.finish(state, folder)))
            self.workdir.save_curves(self.run, seed, history)
            summary = run_arguments.check_line(self.run.summarize(history), self.run.identity)
            line = self._sizes(state) | summary
            line["run_wall_time_sec"] = float(whole[place]["wall_time_sec"])
            self.workdir.record(self.run, seed, line)

    def _sizes(self, state: TrainState) -> dict[str, Any]:
        if self.run.network is None:
            return {}
        return models.sizes(self.run.network, state.params, state.frozen)


@contextlib.contextmanager
def _named(name: str, saved: Checkpoints) -> Iterator[None]:
    """Says of which run a number stopped being finite, and which checkpoint is good."""
    try:
        yield
    except (training.NonFiniteLossError, NonFiniteStateError) as error:
        good = max(saved.steps(), default=0)
        where = str(saved.directory / str(good)) if good else "none, it failed at once"
        error.args = (f"{error} of {name}; last good checkpoint: {where}",)
        raise
