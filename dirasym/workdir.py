"""A work directory: configuration, result lines and curves of any set of runs, safe to kill.

    DIR/config.json      what the runs are known by, and with what they were made
    DIR/results.jsonl    a line a finished run and seed
    DIR/curves/          NAME,seed=S.npz and .csv: everything logged of a run and seed
    DIR/checkpoints/     NAME,seed=S/STEP: its newest checkpoints
    DIR/files/           NAME,seed=S/: what `Run.finish` wrote

Several processes of one run share it: process 0 writes, all read.
"""

import contextlib
import csv
import datetime
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from dirasym import files, histories, results
from dirasym.checkpoints import Checkpoints, History, jax_settings
from dirasym.usage import UsageError, check_path, listed

_LONGEST_NAME = 150  # bytes; file systems take 255, and ",seed=S.npz" follows
PACKAGES = ("dirasym", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class WorkDirError(UsageError):
    """A directory that these runs cannot use; one line says why."""


def name_of(identity: Mapping[str, Any]) -> str:
    """An identity as a file name: `model=mdm,length=10`."""
    name = ",".join(f"{key}={value}" for key, value in identity.items())
    name = re.sub(r"[^\w=,.+-]", "_", name) or "run"
    if len(name.encode()) > _LONGEST_NAME:
        digest = hashlib.sha256(json.dumps(dict(identity)).encode()).hexdigest()
        name = f"{name.encode()[: _LONGEST_NAME - 9].decode(errors='ignore')}-{digest[:8]}"
    return name


def experiment_id(config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Eight digits that tell apart what was configured, and the settings of JAX it ran under."""
    known = {"config": config, "jax": settings}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


class Known(Protocol):
    """What a work directory knows of a run: see `runs.Run`."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its result lines are known by, the seed apart."""
        ...

    @property
    def name(self) -> str:
        """The same as a file name: "model=mdm,length=10"."""
        ...

    @property
    def has_curves(self) -> bool:
        """Whether it logs any."""
        ...


def full_name(run: Known, seed: int | str | None) -> str:
    """`model=mdm,length=10,seed=0`; the run's name alone of what has no seed."""
    return run.name if seed is None else f"{run.name},seed={seed}"


Pair = tuple[Any, Any]  # a `Known`, and a seed or None


class WorkDir:
    """An open work directory; made if it is not there.

    Attributes:
      path: the directory.
      config: what all of its runs have in common, as JSON. Another configuration is refused.
      exp_id: eight digits of its hash; they mark its result lines.
      results_path: DIR/results.jsonl, or the file given: others' lines may be there too.

    Raises:
      WorkDirError: the directory holds another configuration (the differing entries are
        named), a damaged one, or cannot be written; nothing has been written then.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: Mapping[str, Any] | None = None,
        *,
        results_path: str | os.PathLike | None = None,
    ):
        check_path("workdir", path)
        self.path = pathlib.Path(path).expanduser()
        # Through JSON and back, so that it compares equal to what a file holds.
        self.config = json.loads(json.dumps(dict(config or {})))
        settings = jax_settings()
        wanted = {"config": self.config, "jax": settings}
        self.exp_id = experiment_id(self.config, settings)
        self.owner = {"exp_id": self.exp_id, **settings}
        self.results_path = pathlib.Path(results_path or self.path / "results.jsonl").expanduser()
        try:
            folder = pathlib.Path(os.path.realpath(self.results_path)).parent
            if folder != self.path.resolve() and not folder.is_dir():
                raise FileNotFoundError(f"no directory for {self.results_path}")
            _check_results(self.results_path)
            _check_places(self.path)
            config_path = self.path / "config.json"
            if config_path.exists():
                _refuse_other(config_path, wanted)
            elif jax.process_index() == 0:
                self.path.mkdir(parents=True, exist_ok=True)
                text = json.dumps(wanted | {"made_with": made_with()}, indent=2)
                files.write_atomically(config_path, text + "\n")
            # Other processes may come before process 0 has made it.
            if jax.process_index() == 0 and not os.access(self.path, os.W_OK):
                raise PermissionError("not writable")
        except OSError as error:
            raise WorkDirError(f"{self.path} cannot be used: {error.strerror or error}") from None

    # -----------------------------------------------------------------------------------
    # Result lines

    def results(self) -> list[dict[str, Any]]:
        """Lines of finished runs of this configuration: of each run and seed the last one."""
        lines = results.read_results(self.results_path)
        ours = [line for line in lines if line.get("exp_id") == self.exp_id]
        return list({(line.get("run"), line.get("seed")): line for line in ours}.values())

    def line(self, run: Known, seed: int | None) -> dict[str, Any] | None:
        """The result line of a run and seed (None for what has no seed), or None."""
        return self.lines([(run, seed)])[0]

    def lines(self, pairs: Iterable[Pair]) -> list[dict[str, Any] | None]:
        """The result lines of runs and seeds, None where there is none, by one reading."""
        there = {(line.get("run"), line.get("seed")): line for line in reversed(self.results())}
        return [there.get((run.name, seed)) for run, seed in pairs]

    def missing(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Runs and seeds whose result line, or curves if any, are not there to be read."""
        pairs = list(pairs)
        return [
            (run, seed)
            for (run, seed), line in zip(pairs, self.lines(pairs), strict=True)
            if line is None or (run.has_curves and self._read_curves(run, seed) is None)
        ]

    def record(self, run: Known, seed: int | None, line: Mapping[str, Any]) -> None:
        """Adds a result line, in place of an earlier one of the same run and seed.

        No process goes on before it, and the curves saved before it, can be read.
        """
        if jax.process_index() == 0:
            known = {"exp_id": self.exp_id, "run": run.name, **run.identity}
            line = known | ({} if seed is None else {"seed": seed}) | dict(line)
            results.replace_results(self.results_path, [line], ("exp_id", "run", "seed"))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("recorded")

    # -----------------------------------------------------------------------------------
    # Curves, checkpoints, files

    def curves_path(self, run: Known, seed: int | None) -> pathlib.Path:
        """DIR/curves/NAME,seed=S.npz, or NAME.npz of what has no seed."""
        return self.path / "curves" / f"{full_name(run, seed)}.npz"

    def save_curves(self, run: Known, seed: int | None, history: History) -> None:
        """Writes the curves of a run, and its scalars as CSV, each in one piece."""
        if jax.process_index() == 0:
            path = self.curves_path(run, seed)
            path.parent.mkdir(exist_ok=True)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **history)
            files.write_atomically(path, buffer.getvalue())
            files.write_atomically(path.with_suffix(".csv"), _csv(history))

    def curves(self, run: Known, seed: int | None) -> History:
        """What `save_curves` wrote.

        Raises:
          WorkDirError: it is not there, or cannot be read.
        """
        history = self._read_curves(run, seed)
        if history is None:
            raise WorkDirError(f"{self.curves_path(run, seed)} is missing or damaged")
        return history

    def _read_curves(self, run: Known, seed: int | None) -> History | None:
        try:
            files.check_regular(self.curves_path(run, seed))
            with np.load(self.curves_path(run, seed), allow_pickle=False) as file:
                history = dict(file)
        except Exception:  # zip, zlib and NumPy raise a dozen kinds; the checkpoint makes it again
            return None
        # What is no array comes as bytes.
        return history if all(isinstance(x, np.ndarray) for x in history.values()) else None

    def stacked(
        self,
        run: Known,
        seeds: Sequence[int],
        *,
        shared: tuple[str, ...] = ("eval_step",),
        seeds_first: tuple[str, ...] = (),
    ) -> History:
        """Curves of several seeds side by side: arrays [time, seed, ..].

        Args:
          run: the run.
          seeds: of it.
          shared: keys that all seeds have alike; the first's are taken.
          seeds_first: prefixes of keys without a time axis, which become [seed, ..].
        """
        of_seeds = [self.curves(run, seed) for seed in seeds]
        return histories.side_by_side(of_seeds, shared, seeds_first)

    def checkpoints(
        self, run: Known, seed: int, *, keep: int | None = 2, digest: str = ""
    ) -> Checkpoints:
        """Its checkpoints; `digest` is that of the data it is trained on."""
        name = full_name(run, seed)
        owner, folder = self.owner | {"run": name, "data": digest}, self.path / "checkpoints" / name
        return Checkpoints(folder, owner=owner, keep=keep)

    def folder(self, run: Known, seed: int) -> pathlib.Path:
        """DIR/files/NAME,seed=S, made: for what a run writes at its end."""
        path = self.path / "files" / full_name(run, seed)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def locked(self, shard: tuple[int, int] | None = None) -> Iterator[None]:
        """Keeps other processes out; shards keep out others of the same number alone.

        Raises:
          LockedError: another process works here.
        """
        if jax.process_index() > 0:
            yield
        elif shard is None:
            with files.locked(self.path / ".lock"):
                yield
        else:
            with (
                files.locked(self.path / ".lock", shared=True),
                files.locked(self.path / f".lock-{shard[0]}-of-{shard[1]}"),
            ):
                yield


def made_with() -> dict[str, Any]:
    """Versions, device, date and command, to be written beside results."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": sys.version.split()[0],
        "versions": versions,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }


def opened(workdir: WorkDir | str | os.PathLike) -> WorkDir:
    """The work directory itself, or that of a path and of no configuration."""
    return workdir if isinstance(workdir, WorkDir) else WorkDir(workdir)


def merge(parts: Sequence[WorkDir | str | os.PathLike], into: WorkDir | str | os.PathLike) -> None:
    """Copies result lines and curves of parts (shards) that ran in directories of their own.

    Args:
      parts: work directories, or their paths.
      into: another one, or its path; one that is not there is made, of the first part's
        configuration.

    Raises:
      TypeError: other things than these.
      ValueError: no parts.
      WorkDirError: a part of another configuration, or a path that is no work directory.
    """
    all_parts = [_there(part) for part in listed("parts", parts, "work directories")]
    if not isinstance(into, WorkDir):
        check_path("into", into)
        is_there = (pathlib.Path(into).expanduser() / "config.json").exists()
        into = _there(into) if is_there else WorkDir(into, all_parts[0].config)
    for part in all_parts:
        if part.exp_id != into.exp_id:
            raise WorkDirError(f"{part.path} holds another configuration than {into.path}")
    for part in all_parts:
        (into.path / "curves").mkdir(exist_ok=True)
        for path in sorted((part.path / "curves").glob("[!.]*")):
            files.check_regular(path)
            files.write_atomically(into.path / "curves" / path.name, path.read_bytes())
        there = into.results()
        new = [line for line in part.results() if line not in there]
        results.replace_results(into.results_path, new, ("exp_id", "run", "seed"))


def _there(workdir: WorkDir | str | os.PathLike) -> WorkDir:
    """The work directory, or that which stands at a path."""
    if isinstance(workdir, WorkDir):
        return workdir
    check_path("parts", workdir)
    config, _ = stored_config(pathlib.Path(workdir).expanduser())
    return WorkDir(workdir, config)


def _csv(history: History) -> str:
    """The scalars of a history, a row a moment: at evaluations, and the loss up to them."""
    moments = history.get("eval_step")
    if moments is None:
        return ""
    names = sorted(
        key for key, x in history.items() if x.shape == moments.shape and key != "eval_step"
    )
    steps = [key for key in ("loss", "grad_norm") if key in history]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["step", *steps, *names])
    for row, moment in enumerate(moments):
        before = moments[row - 1] if row else 0
        means = [history[key][before:moment].mean() if moment > before else "" for key in steps]
        writer.writerow([moment, *means, *(history[name][row] for name in names)])
    return text.getvalue()


def _check_places(path: pathlib.Path) -> None:
    """Raises WorkDirError for what stands where results will go, and is found before training."""
    for name in ("curves", "checkpoints", "files", "recipes", "figures"):
        if os.path.lexists(path / name) and not (path / name).is_dir():
            raise WorkDirError(f"{path / name} cannot be used: it is no folder")
    is_lock = re.compile(r"\.lock(-.*)?|\..*\.lock").fullmatch
    locks = [one for one in path.glob(".*lock*") if is_lock(one.name)]
    for one in filter(os.path.lexists, (path / "report.md", *locks)):
        target = pathlib.Path(os.path.realpath(one))  # a link may name a file not yet made
        if not (target.is_file() or (not target.exists() and target.parent.is_dir())):
            raise WorkDirError(f"{one} cannot be used: it is no file")


def _check_results(path: pathlib.Path) -> None:
    """Raises WorkDirError for a file that result lines cannot be added to."""
    try:
        lines = results.read_results(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file of JSON lines"
        raise WorkDirError(f"{path} cannot be used: {reason}") from None
    if not all(isinstance(line, dict) for line in lines):
        raise WorkDirError(f"{path} cannot be used: not a file of result lines")


def stored_config(path: pathlib.Path) -> tuple[dict[str, Any], str]:
    """The configuration that a work directory holds, and its `exp_id`.

    Raises:
      WorkDirError: there is none, or it is damaged.
    """
    try:
        files.check_regular(path / "config.json")
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return dict(found["config"]), experiment_id(found["config"], found["jax"])
    except OSError as error:
        raise WorkDirError(f"{path} is no work directory: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise WorkDirError(f"{path} is damaged: it holds no configuration") from None


def _refuse_other(path: pathlib.Path, wanted: dict[str, Any]) -> None:
    try:
        files.check_regular(path)
        found = json.loads(path.read_text(encoding="utf-8"))
        of = found["config"].get("experiment")
        sections = [(found[name], wanted[name]) for name in ("config", "jax")]
        differing = [
            f"{key}={there.get(key)!r} there, {here.get(key)!r} here"
            for there, here in sections
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise WorkDirError(f"{path} is damaged: it holds no configuration") from None
    if of is not None and of != wanted["config"].get("experiment"):
        raise WorkDirError(f"{path.parent} is of `{of}`: choose another --workdir")
    if differing:
        raise WorkDirError(
            f"{path.parent} holds another configuration ({'; '.join(differing)}): "
            "choose another --workdir"
        )
