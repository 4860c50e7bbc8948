"""What every experiment shares: flags, presets, work directory, resume, progress, exit codes.

An experiment is a module with a configuration, whose fields become absl flags, a table of
presets and a function that trains and reports:

    @dataclasses.dataclass(frozen=True)
    class Config:
        steps: int = harness.flag(3000, "Train steps.", lower_bound=1)
        ...            # __post_init__ raises ValueError for values that do not fit

    PRESETS = {"smoke": {"steps": 40}, ...}

    def run(experiment: harness.Experiment, config: Config) -> None: ...

    if __name__ == "__main__":
        harness.main("name", Config, PRESETS, run)

Exit status: 0 done, or stopped by SIGTERM with its state saved; 2 a bad flag or file, said
in one line, nothing written; 3 the loss stopped being finite.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dirasym import checkpoints, devices, files, results, sharding, training
from dirasym.compile import check_divisible
from experiments import flags
from experiments.flags import FLAGS, UsageError


class _Stopped(Exception):
    """SIGTERM arrived and the run is saved."""


def main(
    name: str,
    config_type: type,
    presets: Mapping[str, Mapping[str, Any]],
    run: Callable[["Experiment", Any], None],
) -> None:
    """Parses flags, opens the work directory, runs, and exits with the status above."""
    flags.define(config_type)

    def absl_main(argv):
        del argv
        try:
            if not FLAGS["verbosity"].present:
                logging.set_verbosity(logging.WARNING)  # Orbax tells every rename
            try:
                devices.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
                mesh = devices.mesh(FLAGS.num_devices, FLAGS.model_devices, FLAGS.backend)
                config = flags.read(config_type)
                if FLAGS.backend == "pmap" and FLAGS.seeds_together == "yes":
                    raise ValueError("--seeds_together=yes needs --backend=jit")
                if mesh is not None and hasattr(config, "batch_size"):
                    check_divisible(config.batch_size, mesh.shape[sharding.DATA])
            except ValueError as error:
                raise UsageError(str(error)) from None
            experiment = Experiment.open(name, config, mesh)
            try:
                run(experiment, config)
            except Exception:
                experiment.withdraw()
                raise
        except UsageError as error:
            flags.leave(2, f"error: {error}")
        except _Stopped as stopped:
            flags.leave(0, f"\n{stopped}")
        except training.NonFiniteLossError as error:
            flags.leave(3, f"\nerror: {error}")

    app.run(absl_main, flags_parser=lambda argv: flags.parse(argv, presets))


def seed_groups(seeds: Sequence[int]) -> list[list[int]]:
    """Seeds that train as one program: all on an accelerator, one each on CPU."""
    together = FLAGS.seeds_together == "yes" or (
        FLAGS.seeds_together == "auto" and jax.default_backend() != "cpu" and FLAGS.backend == "jit"
    )
    return [list(seeds)] if together else [[seed] for seed in seeds]


def stack_seeds(states: Sequence[training.TrainState], together: bool) -> training.TrainState:
    """States of a seed group as one: with a leading axis if they train together, else the only.

    What is frozen must be the same for all, and gets no axis.
    """
    if together:  # by their leaves: each state has an optimizer of its own, and no two are equal
        apart = [state.replace(frozen=None) for state in states]
        leaves = zip(*map(jax.tree.leaves, apart), strict=True)
        structure = jax.tree.structure(apart[0])
        stacked = jax.tree.unflatten(structure, [jnp.stack(leaf) for leaf in leaves])
        return stacked.replace(frozen=states[0].frozen)
    (state,) = states
    return state


def over_seeds(function: Callable, together: bool) -> Callable:
    """`function(state, ..)`, compiled, with a leading axis of seeds on its results.

    Arguments beyond the state are shared by the seeds.
    """
    if together:
        return jax.jit(
            lambda state, *shared: jax.vmap(
                lambda seed: function(seed.replace(frozen=state.frozen), *shared),
            )(state.replace(frozen=None))
        )
    return jax.jit(lambda state, *shared: jax.tree.map(lambda x: x[None], function(state, *shared)))


def take_seed(state: training.TrainState, place: int) -> training.TrainState:
    """The state of one seed of several that train together."""
    one = jax.tree.map(lambda x: x[place], state.replace(frozen=None))
    return one.replace(frozen=state.frozen)


@dataclasses.dataclass
class Experiment:
    """An open work directory.

    Attributes:
      workdir: holds config.json, results.jsonl, curves/, figures/, checkpoints/, report.md.
      exp_id: hash of the configuration.
      mesh: devices that share each batch; None for the default device.
      results_path: WORKDIR/results.jsonl, or where a configuration's `output` says. Other
        experiments' lines may be there too.
    """

    workdir: pathlib.Path
    exp_id: str
    mesh: Mesh | None
    results_path: pathlib.Path
    _stop: bool = False
    _is_new: bool = False

    @classmethod
    def open(cls, name: str, config: Any, mesh: Mesh | None) -> "Experiment":
        """Makes the directory or checks that it holds this configuration."""
        workdir = pathlib.Path(FLAGS.workdir or f"runs/{name}")
        # Through JSON and back, so that it compares equal to what a file holds.
        wanted = {"experiment": name, "backend": FLAGS.backend, **dataclasses.asdict(config)}
        for field in dataclasses.fields(config):
            if field.metadata.get("report_only"):
                del wanted[field.name]
        wanted = json.loads(json.dumps(wanted))
        path = workdir / "config.json"
        results_path = pathlib.Path(getattr(config, "output", "") or workdir / "results.jsonl")
        try:
            if results_path.parent != workdir and not results_path.parent.is_dir():
                raise FileNotFoundError(f"no directory for --output={results_path}")
            _check_results(results_path)
            is_new = not path.exists()
            if not is_new:
                _refuse_other_config(path, json.loads(path.read_text()), wanted)
            elif jax.process_index() == 0:
                workdir.mkdir(parents=True, exist_ok=True)
                files.write_atomically(path, json.dumps(wanted, indent=2) + "\n")
            # Others may come before process 0 has made it.
            if jax.process_index() == 0 and not os.access(workdir, os.W_OK):
                raise PermissionError("not writable")
        except (OSError, json.JSONDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"--workdir={workdir} cannot be used: {reason}") from None
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compilation").absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        experiment = cls(workdir, digest[:8], mesh, results_path, _is_new=is_new)
        signal.signal(signal.SIGTERM, lambda *_: setattr(experiment, "_stop", True))
        return experiment

    def withdraw(self) -> None:
        """Removes what `open` made, unless a run has written since: a refusal leaves nothing."""
        made = {"config.json", "compilation"}
        if self._is_new and jax.process_index() == 0 and set(os.listdir(self.workdir)) <= made:
            shutil.rmtree(self.workdir, ignore_errors=True)

    def results(self) -> list[dict[str, Any]]:
        """Lines of finished runs of this configuration."""
        lines = results.read_results(self.results_path)
        return [line for line in lines if line.get("exp_id") == self.exp_id]

    def is_done(self, **identity: Any) -> bool:
        """Whether a finished run has these values."""
        return any(
            all(line.get(key) == value for key, value in identity.items())
            for line in self.results()
        )

    def record(self, lines: Sequence[Mapping[str, Any]], keys: tuple[str, ...]) -> None:
        """Adds result lines in one piece, in place of earlier ones equal on `keys`.

        No process goes on before they, and the curves saved before them, can be read.
        """
        if jax.process_index() == 0:
            lines = [{"exp_id": self.exp_id, **line} for line in lines]
            results.replace_results(self.results_path, lines, ("exp_id", *keys))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("recorded")

    def save_curves(self, name: str, curves: Mapping[str, np.ndarray]) -> None:
        """Writes curves/NAME.npz in one piece."""
        if jax.process_index() == 0:
            path = self.workdir / "curves" / f"{name}.npz"
            path.parent.mkdir(exist_ok=True)
            partial = path.with_name(f".{name}.partial.npz")
            np.savez(partial, **curves)
            os.replace(partial, path)

    def load_curves(
        self,
        *names: str,
        shared: tuple[str, ...] = ("eval_step",),
        seeds_first: tuple[str, ...] = (),
    ) -> dict[str, np.ndarray]:
        """Curves of several runs with their seeds side by side, however they were grouped.

        Args:
          names: as given to `save_curves`, or patterns of them such as "L10-mdm-seeds*".
          shared: keys that all runs have alike; the first run's are taken.
          seeds_first: prefixes of keys whose axes begin with seeds, and not with time.
        """
        paths = [p for n in names for p in sorted((self.workdir / "curves").glob(f"{n}.npz"))]
        runs = []
        for path in paths:
            with np.load(path) as file:
                runs.append(dict(file))
        merged = {
            key: np.concatenate(
                [run[key] for run in runs], axis=0 if key.startswith(seeds_first) else 1
            )
            for key in runs[0]
            if key not in (*shared, "wall_time_sec")
        }
        return merged | {key: runs[0][key] for key in shared if key in runs[0]}

    def write_report(self, text: str, figures: Sequence[pathlib.Path], *, printed: str) -> None:
        """Writes report.md, `text` and then the figures, and prints `printed` and all paths."""
        if jax.process_index() > 0:
            return
        parts = [text, "\n".join(f"![{path.stem}](figures/{path.name})" for path in figures)]
        report = self.workdir / "report.md"
        files.write_atomically(report, "\n\n".join(filter(None, parts)) + "\n")
        print(printed)
        for path in [*figures, report]:
            print(path)

    def train(
        self,
        name: str,
        state: training.TrainState,
        steps: Callable,
        data: training.Data,
        *,
        num_steps: int,
        steps_per_call: int,
        evaluate: Callable[[training.TrainState], Mapping[str, Any]] | None = None,
    ) -> tuple[training.TrainState, checkpoints.History]:
        """Trains to `num_steps`, from the last checkpoint if there is one.

        After every call of `steps` it evaluates, saves state and history in one checkpoint,
        and stops if SIGTERM came, to this process or to another of the run. What it returns is
        the same bits whether or not, and wherever, earlier processes were killed.

        Args:
          name: of the run; names its checkpoints.
          state: at step 0, with a leading axis if it holds several seeds.
          steps: `compile_scan(..., num_steps=steps_per_call)`.
          data: its second argument.
          num_steps: in all; a multiple of `steps_per_call`.
          steps_per_call: between evaluations and checkpoints.
          evaluate: state -> arrays with a leading axis of seeds (see `over_seeds`).

        Returns:
          The final state, and a history of arrays with axes (time, seed, ...): per step
          "loss", "grad_norm" and the objective's sums; per evaluation what `evaluate` gives;
          and "eval_step" (time alone) and "wall_time_sec" (a scalar), the seconds spent.

        Raises:
          NonFiniteLossError: names the step and the last good checkpoint.
        """
        if num_steps % steps_per_call:
            raise ValueError(f"{num_steps=} is not a multiple of {steps_per_call=}")
        keep = None if FLAGS.keep_checkpoints else 2
        owner = {"exp_id": self.exp_id, "name": name, **checkpoints.jax_settings()}
        directory = self.workdir / "checkpoints" / name
        saved = checkpoints.Checkpoints(directory, owner=owner, keep=keep)
        history: checkpoints.History = {}
        frozen = state.frozen  # not in checkpoints: it never changes
        restored = saved.restore(state.replace(frozen=None))
        step = 0
        if restored is not None:
            step, state, history = restored
            state = state.replace(frozen=frozen)
        elif evaluate is not None:
            history = _append(history, {"eval_step": 0, **jax.device_get(evaluate(state))})
        bar = _ProgressBar(name, step, num_steps)
        while step < num_steps:
            start = time.time()
            state, metrics = steps(state, data)
            metrics = {  # time first, then seeds
                key: np.moveaxis(np.atleast_2d(x), -1, 0)
                for key, x in jax.device_get(metrics).items()
            }
            step += steps_per_call
            try:
                training.check_finite(metrics, step)
            except training.NonFiniteLossError as error:
                good = step - steps_per_call
                error.args = (
                    f"{error} of {name}; last good checkpoint: "
                    + (f"{saved.directory / str(good)}" if good else "none, it failed at once"),
                )
                raise
            history = _extend(history, metrics)
            if evaluate is not None:
                history = _append(history, {"eval_step": step, **jax.device_get(evaluate(state))})
            spent = history.get("wall_time_sec", np.zeros(())) + time.time() - start
            history["wall_time_sec"] = spent
            saved.save(step, state.replace(frozen=None), history)
            bar.update(step)
            if step < num_steps and self._is_stopping():
                saved.close()
                raise _Stopped(
                    f"stopped by SIGTERM: {name} is saved at step {step} of {num_steps}; "
                    "the same command resumes it"
                )
        bar.close()
        saved.close()
        return state, history

    def _is_stopping(self) -> bool:
        """Whether SIGTERM came to any process: all must stop at the same step."""
        if jax.process_count() == 1:
            return self._stop
        return bool(multihost_utils.process_allgather(np.array(self._stop)).any())


def _extend(history, arrays):
    """History with arrays that have a time axis, one entry a step, put at its end."""
    return {
        **history,
        **{
            key: np.concatenate([history[key], x]) if key in history else np.asarray(x)
            for key, x in arrays.items()
        },
    }


def _append(history, values):
    """History with one more entry of each value."""
    return _extend(history, {key: np.asarray(x)[None] for key, x in values.items()})


def _check_results(path: pathlib.Path) -> None:
    """Raises UsageError for a file that result lines cannot be added to."""
    try:
        lines = results.read_results(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file of JSON lines"
        raise UsageError(f"--output={path} cannot be used: {reason}") from None
    if not all(isinstance(line, dict) for line in lines):
        raise UsageError(f"--output={path} cannot be used: not a file of result lines")


def _refuse_other_config(path: pathlib.Path, found: dict, wanted: dict) -> None:
    differing = [
        f"{key}={found.get(key)!r} there, {wanted.get(key)!r} here"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise UsageError(
            f"{path.parent} holds another configuration ({'; '.join(differing)}): "
            "choose another --workdir"
        )


class _ProgressBar:
    """`L10-mdm [#####.....]  1500/3000  21.4 steps/s  1:10 left`, on one line of stderr."""

    def __init__(self, name: str, step: int, num_steps: int):
        self._name, self._first, self._num_steps = name, step, num_steps
        self._start = time.time()
        self._shown = FLAGS.progress and jax.process_index() == 0
        self._draw(step, "compiling")

    def update(self, step: int) -> None:
        rate = (step - self._first) / max(time.time() - self._start, 1e-9)
        left = (self._num_steps - step) / rate
        self._draw(step, f"{rate:.1f} steps/s  {int(left // 60)}:{int(left % 60):02d} left")

    def _draw(self, step: int, text: str) -> None:
        if self._shown:
            filled = 20 * step // self._num_steps
            bar = "#" * filled + "." * (20 - filled)
            line = f"\r{self._name} [{bar}] {step}/{self._num_steps}  {text}\x1b[K"
            print(line, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._shown:
            print(file=sys.stderr, flush=True)
