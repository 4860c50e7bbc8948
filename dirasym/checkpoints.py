"""Exact resume: the state and history of a run, in checkpoints that prove themselves whole.

A run's checkpoints are the folders RUN/STEP, each made by one rename:

    state/       JAX's arrays of the state, by Orbax
    values       NumPy's arrays of the state and the history, one after the other
    record.json  whose it is, each leaf's shape and dtype, the history, and the size and
                 SHA-256 of every file; it holds a digest of itself too

`RUN/.STEP.partial` is what a killed writer left, and `RUN/damaged/` holds what was set aside.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging as python_logging
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from dirasym import files, processes
from dirasym.leaves import Leaves, decode, encode

History = dict[str, Any]
RECORD = "record.json"
_FORMAT = 1
_LARGEST_RECORD = 2**28  # bytes; a million leaves take fewer


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read, and is not proven damaged; it is left as it was."""


class NonFiniteStateError(CheckpointError):
    """The state to be saved holds NaN or infinity. Nothing was written."""

    def __init__(self, step: int, name: str):
        super().__init__(f"{name} is not finite at step {step}")
        self.step = step


class _DamagedError(Exception):
    """A file fails its digest, or is cut short or missing."""


def jax_settings() -> dict[str, Any]:
    """The settings of JAX that change a run's bits, to be part of a checkpoint's owner."""
    names = (
        "jax_default_prng_impl",
        "jax_threefry_partitionable",
        "jax_enable_x64",
        "jax_default_matmul_precision",
    )
    return {name: getattr(jax.config, name) for name in names}


_everywhere = functools.partial(processes.everywhere, error=CheckpointError)
_on_process_0 = functools.partial(processes.on_process_0, error=CheckpointError)


class Checkpoints:
    """The last checkpoints of one run, each a (state, history) pair.

    The state is any pytree: arrays of any dtype and sharding, PRNG keys of any implementation
    and Python numbers are stored; its structure, and leaves of other types such as functions,
    come from the state that `restore` is given. Several processes call each method together;
    process 0 decides what is damaged.

    One process (of each run) writes at a time: hold `files.locked` meanwhile.

    Attributes:
      directory: where they are, one folder a step. The newest `keep` stay; all for None.
      owner: what the run is known by, JSON-like: its name, seed, a digest of its data,
        `jax_settings()`. A checkpoint of another owner is refused; {} takes any.

    Examples:
      >>> import tempfile
      >>> import jax.numpy as jnp, numpy as np
      >>> run = Checkpoints(tempfile.mkdtemp(), owner={"name": "toy", "seed": 0})
      >>> run.save(10, {"w": jnp.ones(3)}, {"loss": np.zeros(10), "note": "warm"})
      >>> step, state, history = run.restore(like={"w": jnp.zeros(3)})
      >>> step, float(state["w"].sum()), history["note"]
      (10, 3.0, 'warm')
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        owner: Mapping[str, Any] | None = None,
        keep: int | None = 2,
    ):
        if keep is not None and keep < 1:
            raise ValueError(f"{keep=} must be at least 1, or None")
        self.directory = pathlib.Path(directory).absolute()
        self.owner = json.loads(json.dumps(dict(owner or {})))  # compares equal to a file's
        self._keep = keep
        self._orbax = ocp.PyTreeCheckpointHandler()

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._orbax.close()

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, whole or damaged, in order."""
        try:
            names = [entry.name for entry in os.scandir(self.directory) if entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self.directory, error) from error
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def save(self, step: int, state: Any, history: Mapping[str, Any]) -> None:
        """Writes the state of the run after `step` steps, and everything logged until then.

        Args:
          step: later than all that are saved.
          state: any pytree, finite. (A scalar may be infinite outside a part called "params":
            optimizers begin a search for the lowest loss there.)
          history: nested dicts of str, lists, arrays, numbers, strings and None. Tuples and
            JAX arrays come back as lists and NumPy arrays, all else as it was.

        Raises:
          NonFiniteStateError: names the first leaf with NaN or infinity.
          CheckpointError: the step is not later than the newest, or a file cannot be written.
          TypeError: a history of other types.
        """
        leaves = Leaves.of(state)
        buffers: list[bytes] = []
        record = {
            "format": _FORMAT,
            "step": int(step),
            "owner": self.owner,
            "leaves": leaves.described,
            "values": encode(leaves.values, buffers, "state"),
            "history": encode(history, buffers, "history"),
        }
        partial = self.directory / f".{step}.partial"
        for name in processes.gather(leaves.non_finite()):
            if name is not None:
                raise NonFiniteStateError(step, name)
        _on_process_0(lambda: self._begin(step, partial))
        try:
            _everywhere(lambda: self._write_arrays(partial / "state", leaves))
            _on_process_0(lambda: self._write_record(partial, record, buffers))
        except BaseException:
            if jax.process_index() == 0:
                shutil.rmtree(partial, ignore_errors=True)  # what is half written fills a disk
            raise

    def _begin(self, step: int, partial: pathlib.Path) -> None:
        newest = max(self.steps(), default=-1)
        if step <= newest:
            raise CheckpointError(
                f"{self.directory}: step {step} is not later than the newest saved, {newest}"
            )
        with _named_errors(f"{self.directory} cannot be written"):
            self.directory.mkdir(parents=True, exist_ok=True)
            for pattern in (".*.partial", ".*.removed"):  # of writers that were killed
                for path in self.directory.glob(pattern):
                    shutil.rmtree(path)
            (partial / "state").mkdir(parents=True)

    def _write_arrays(self, path: pathlib.Path, leaves: Leaves) -> None:
        if leaves.arrays:
            with _named_errors(f"{path} cannot be written"), _quiet():
                self._orbax.save(epath.Path(path), args=ocp.args.PyTreeSave(leaves.arrays))

    def _write_record(self, partial: pathlib.Path, record: dict, buffers: Sequence[bytes]) -> None:
        with _named_errors(f"{partial} cannot be written"), _quiet():
            if any((partial / "state").iterdir()):
                self._orbax.finalize(epath.Path(partial / "state"))
            with (partial / "values").open("wb") as file:
                file.writelines(buffers)
            _finish(partial, record)
        for step in self.steps()[: -self._keep] if self._keep else ():
            _remove(self.directory / str(step))

    def restore(self, like: Any, last: int | None = None) -> tuple[int, Any, History] | None:
        """The newest whole checkpoint as (step, state, history), or None if there is none.

        Newer ones that fail their digests are moved to DIRECTORY/damaged/, under a name that
        is not taken, unless the directory is read-only.

        Args:
          like: a state of the wanted structure, shapes, dtypes and shardings; arrays may be
            `jax.ShapeDtypeStruct`s.
          last: the latest step that will do; any when None.

        Raises:
          CheckpointError: it is another owner's, or of another structure, which names what
            differs, or it cannot be read now. No file is touched.
        """
        wanted = Leaves.of(like)
        record = _on_process_0(lambda: self._choose(wanted, last))
        return None if record is None else self._read(record, wanted)

    def states(self, like: Any) -> Iterator[tuple[int, Any]]:
        """Every kept (step, state), oldest first. Raises CheckpointError for a damaged one."""
        wanted = Leaves.of(like)
        for step in _on_process_0(self.steps):
            whole = functools.partial(self._whole, self.directory / str(step), wanted)
            record = _on_process_0(whole)
            yield self._read(record, wanted)[:2]

    def _whole(self, folder: pathlib.Path, wanted: Leaves) -> dict:
        try:
            return _checked(folder, self.owner, wanted)
        except _DamagedError as error:
            raise CheckpointError(f"{folder} is damaged: {error}") from error

    def _choose(self, wanted: Leaves, last: int | None) -> dict | None:
        """The record of the newest whole checkpoint; sets newer ones aside."""
        damaged, record = [], None
        for step in reversed(self.steps()):
            if last is not None and step > last:
                continue
            try:
                record = _checked(self.directory / str(step), self.owner, wanted)
                break
            except _DamagedError as error:
                damaged.append((step, error))
        for step, reason in damaged:  # only now, for a template that does not fit touches none
            _set_aside(self.directory / str(step), reason)
        return record

    def _read(self, record: dict, wanted: Leaves) -> tuple[int, Any, History]:
        folder = self.directory / str(record["step"])

        def read():
            with _named_errors(f"{folder} cannot be read"), _quiet():
                arrays = {}
                if wanted.arrays:
                    args = ocp.checkpoint_utils.construct_restore_args(wanted.arrays)
                    args = ocp.args.PyTreeRestore(item=wanted.arrays, restore_args=args)
                    arrays = self._orbax.restore(epath.Path(folder / "state"), args=args)
                data = (folder / "values").read_bytes()
                state = wanted.filled(arrays, decode(record["values"], data))
                return state, decode(record["history"], data)

        return record["step"], *_everywhere(read)


def _checked(folder: pathlib.Path, owner: Mapping[str, Any], wanted: Leaves) -> dict:
    """A checkpoint's record, if all its files are as recorded and it is what is wanted."""
    record = _read_record(folder / RECORD)
    with _named_errors(f"{folder / RECORD} is not one of ours"):
        if str(record["step"]) != folder.name:
            raise CheckpointError(f"{folder} is the checkpoint of step {record['step']}, renamed")
        if (found := _differences(dict(record["owner"]), owner)) and owner:
            raise CheckpointError(f"{folder} belongs to another run: {found}")
        if found := _differences(record["leaves"], wanted.described):
            raise CheckpointError(f"{folder} holds another state: {found}")
        for name, (size, digest) in record["files"].items():
            _check_file(folder, name, size, digest)
    return record


def _set_aside(folder: pathlib.Path, reason: Exception) -> None:
    """Moves a damaged checkpoint to damaged/STEP, damaged/STEP-2, ... beside it."""
    logging.warning("checkpoint %s is damaged (%s)", folder, reason)
    place, number = folder.parent / "damaged" / folder.name, 1
    while os.path.lexists(place):
        number += 1
        place = place.with_name(f"{folder.name}-{number}")
    try:
        place.parent.mkdir(exist_ok=True)
        folder.rename(place)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CheckpointError(f"{folder} cannot be set aside: {error.strerror}") from error
        logging.warning("%s is read-only: it stays there", folder.parent)


def _finish(partial: pathlib.Path, record: dict) -> None:
    """Describes the files of a checkpoint in its record, and gives it its name."""
    paths = sorted(path for path in partial.rglob("*") if path.is_file())
    record["files"] = {
        path.relative_to(partial).as_posix(): [path.stat().st_size, _digest(path)] for path in paths
    }
    text = json.dumps({"record": record, "sha256": _digest_of_record(record)})
    files.write_atomically(partial / RECORD, text + "\n")
    files.rename(partial, str(record["step"]))


def _remove(folder: pathlib.Path) -> None:
    removed = folder.with_name(f".{folder.name}.removed")  # in one piece, whatever comes
    try:
        folder.rename(removed)
        shutil.rmtree(removed)
    except OSError as error:  # an old checkpoint too many does no harm
        logging.warning("%s stays: %s", folder, error)


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_record(path: pathlib.Path) -> dict:
    try:
        files.check_regular(path)
        if path.stat().st_size > _LARGEST_RECORD:
            raise CheckpointError(f"{path} is larger than a record can be")
        held = json.loads(path.read_bytes())
        whole = held["sha256"] == _digest_of_record(held["record"])
    except FileNotFoundError:
        raise _DamagedError(f"{path.name} is missing") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise _DamagedError(f"{path.name} fails its digest")
    record = held["record"]
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is of another version")
    return record


def _check_file(folder: pathlib.Path, name: str, size: int, digest: str) -> None:
    parts = pathlib.PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise CheckpointError(f"{folder / RECORD} names a file outside: {name!r}")
    path = folder / name
    try:
        files.check_regular(path)
        if path.stat().st_size != size:
            raise _DamagedError(f"{name} has {path.stat().st_size} bytes of {size}")
        if _digest(path) != digest:
            raise _DamagedError(f"{name} fails its digest")
    except (FileNotFoundError, NotADirectoryError):
        raise _DamagedError(f"{name} is missing") from None
    except OSError as error:
        raise _unreadable(path, error) from error


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Where two flat mappings differ, in words; empty if nowhere."""
    absent = object()
    found = []
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = stored.get(name, absent), wanted.get(name, absent)
        if there != here or isinstance(there, bool) != isinstance(here, bool):
            there, here = ("none" if x is absent else f"{x}" for x in (there, here))
            found.append(f"{name} is {there} there, {here} here")
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return "; ".join(found[:5]) + more


def _unreadable(path: pathlib.Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}")


@contextlib.contextmanager
def _named_errors(what: str) -> Iterator[None]:
    """Any error as a CheckpointError of one line: Orbax and TensorStore raise many types."""
    try:
        yield
    except (CheckpointError, _DamagedError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{what}: {reason or type(error).__name__}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's log, which tells an error that is raised as well in forty lines.

    After an error TensorStore's other writers find Orbax's event loop closed, one after another,
    and would say so in five lines each, for as long as they last; those that failed too have nobody
    who asks for their error, and asyncio would tell it.
    """
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook

    def told(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = told
    try:
        yield
        sys.unraisablehook = hook
    except BaseException:
        asyncio_log = python_logging.getLogger("asyncio")
        asyncio_log.addFilter(lambda record: "never retrieved" not in record.getMessage())
        raise
    finally:
        logging.set_verbosity(verbosity)
