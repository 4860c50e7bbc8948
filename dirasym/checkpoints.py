"""Exact resume: Orbax checkpoints of a run's state and history, and a crash-safe results file."""

import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

History = dict[str, np.ndarray]


class Checkpoints:
    """The last checkpoints of one run, each a (state, history) pair written in one piece.

    However its writer ended, a checkpoint is either whole or absent: Orbax writes beside it
    and renames. One that was damaged afterwards (a file shorter than it was written, or
    anything that Orbax cannot read) is set aside, and the one before it is used.

    Attributes:
      directory: where they are, one folder a step. The newest `keep` stay; all for None.
    """

    def __init__(self, directory: str | os.PathLike, keep: int | None = 2):
        self.directory = pathlib.Path(directory).absolute()
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, enable_async_checkpointing=False, create=True
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: Any, history: History) -> None:
        """Writes the state of the run after `step` steps, and everything logged until then."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_without_keys(state)),
                history=ocp.args.StandardSave(dict(history)),
            ),
        )
        if jax.process_index() == 0:
            write_atomically(self._sizes_path(step), json.dumps(self._file_sizes(step)))
            for path in self.directory.glob("*.sizes.json"):
                if not (self.directory / path.name.split(".")[0]).exists():
                    path.unlink()

    def _sizes_path(self, step: int) -> pathlib.Path:
        return self.directory / f"{step}.sizes.json"

    def _file_sizes(self, step: int) -> dict[str, int]:
        root = self.directory / str(step)
        files = (path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): path.stat().st_size for path in files}

    def _is_truncated(self, step: int) -> bool:
        """Whether files are missing or shorter than recorded; False without a readable record."""
        try:
            recorded = json.loads(self._sizes_path(step).read_text())
        except (OSError, ValueError):
            return False
        return recorded != self._file_sizes(step)

    def restore(self, like: Any) -> tuple[int, Any, History] | None:
        """The newest readable checkpoint as (step, state, history), or None.

        Args:
          like: a state of the wanted structure, shapes, dtypes and shardings.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            if self._is_truncated(step):
                self._set_aside(step, "a file is truncated or missing")
                continue
            try:
                return self._read(step, like)
            except Exception as error:  # Orbax and TensorStore raise many types for bad files.
                self._set_aside(step, str(error).partition("\n")[0])
        return None

    def states(self, like: Any) -> Iterator[tuple[int, Any]]:
        """Every kept (step, state), oldest first."""
        for step in sorted(self._manager.all_steps()):
            yield self._read(step, like)[:2]

    def _read(self, step: int, like: Any) -> tuple[int, Any, History]:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_abstract(_without_keys(like))),
                history=ocp.args.StandardRestore(),
            ),
        )
        history = jax.tree.map(np.asarray, restored["history"])
        return step, _with_keys(restored["state"], like), history

    def _set_aside(self, step: int, reason: str) -> None:
        self._manager.close()
        damaged = self.directory.parent / f"{self.directory.name}-damaged-{step}"
        logging.warning("checkpoint %s/%d is damaged (%s)", self.directory, step, reason)
        shutil.rmtree(damaged, ignore_errors=True)
        (self.directory / str(step)).rename(damaged)
        self._manager = self._open()

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._manager.close()


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _without_keys(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def _with_keys(tree: Any, like: Any) -> Any:
    def restore(template, x):
        if _is_key(template):
            return jax.random.wrap_key_data(x, impl=jax.random.key_impl(template))
        return x

    return jax.tree.map(restore, like, tree)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Lines of a results file; a truncated last line, left by a crash, is dropped."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    *lines, last = path.read_text(errors="replace").split("\n")  # a cut may split a character
    results = [json.loads(line) for line in lines if line]
    try:
        results += [json.loads(last)] if last else []
    except json.JSONDecodeError:
        logging.warning("%s: dropped a truncated last line", path)
    return results


def replace_results(
    path: str | os.PathLike, results: Iterable[Mapping[str, Any]], keys: tuple[str, ...]
) -> None:
    """Puts `results` into the file, in place of lines that agree with one on `keys`.

    The file is replaced as a whole, so a reader or a crash sees all of the group or none,
    and writing a group twice leaves one copy. Processes that write to one file take turns.
    """
    path = pathlib.Path(path)
    results = list(results)

    def identity(line):
        return tuple(line.get(key) for key in keys)

    replaced = {identity(line) for line in results}
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by close, and by the death of its holder
        kept = [line for line in read_results(path) if identity(line) not in replaced]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept + results))


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a file so that it holds either its old or its new content, never a part."""
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
