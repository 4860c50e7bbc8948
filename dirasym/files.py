"""Files that several processes share, and that a crash may not cut."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import IO

from absl import logging

_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class LockedError(RuntimeError):
    """Another process holds the lock; the message, one line, says which."""


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file so that it holds either its old or its new content, never a part.

    Text is written in UTF-8.
    A symbolic link stays one: the file that it names is written.

    Raises:
      OSError: the file cannot be written, or is there and is no regular file.
    """
    path = pathlib.Path(os.path.realpath(path))
    check_regular(path)  # a rename would replace a device or a pipe
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        shutil.copymode(path, partial)
    os.replace(partial, path)
    _sync(path.parent)


@contextlib.contextmanager
def partial_folder(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """DIRECTORY/.partial, to write into and to move out of; what a killed process left goes first.

    Examples:
      >>> import tempfile
      >>> directory = pathlib.Path(tempfile.mkdtemp())
      >>> with partial_folder(directory) as partial:
      ...     os.replace(partial, directory / "whole")
      >>> [path.name for path in directory.iterdir()]
      ['whole']
    """
    partial = directory / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_regular(path: str | os.PathLike) -> None:
    """Raises OSError for what is there and is no regular file: a pipe or a device never ends."""
    path = pathlib.Path(path)
    if path.exists() and not path.is_file():
        what = "Is a directory, no regular file" if path.is_dir() else "Is no regular file"
        raise OSError(errno.EISDIR if path.is_dir() else errno.EINVAL, what, str(path))


def rename(path: pathlib.Path, name: str) -> None:
    """Gives a folder its name once all that is below it, and then the name, is on the disk.

    Whatever comes, power loss too, the name is that of the whole folder.
    """
    for one in path.rglob("*"):
        _sync(one)
    _sync(path)
    path.rename(path.with_name(name))
    _sync(path.parent)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of folders, on file systems that have no such thing
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: str | os.PathLike, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Holds a lock on the file `path`, made where it is absent and never removed.

    The lock ends with the block, or with the process however it dies. On a file system
    without locks the block runs all the same, after one warning.

    Args:
      path: the lock file, which holds who has it. For a work directory, WORKDIR/.lock.
      shared: several may hold it at once, while nobody holds it alone. It needs no right to
        write: where the file can be neither made nor opened, nothing is locked.
      wait: until it is free.

    Raises:
      LockedError: it is taken, and `wait` is False.

    Examples:
      >>> import tempfile
      >>> with locked(tempfile.mkdtemp() + "/.lock"):
      ...     pass  # the only process here
    """
    path = pathlib.Path(path)
    with contextlib.ExitStack() as stack:
        file = _open_lock(path, shared)
        if file is None:
            yield
            return
        stack.enter_context(file)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = " ".join(file.read(200).split()) or "another process"
            raise LockedError(f"{path.parent} is in use by {holder} ({path.name})") from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            message = "%s: this file system has no locks: run one process at a time"
            logging.log_first_n(logging.WARNING, message, 1, path.parent)
            yield
            return
        if shared:
            yield
            return
        _write_holder(file, f"process {os.getpid()} on {socket.gethostname()}\n")
        try:
            yield
        finally:
            _write_holder(file, "")


def _open_lock(path: pathlib.Path, shared: bool) -> IO[str] | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        return os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
    except OSError as error:
        if not shared or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    try:
        return path.open(encoding="utf-8", errors="replace")
    except (FileNotFoundError, PermissionError):
        return None


def _write_holder(file: IO[str], text: str) -> None:
    """Says in the file who holds it; on a full disk nothing, for the lock holds without."""
    with contextlib.suppress(OSError):
        file.seek(0)
        file.truncate()
        file.write(text)
        file.flush()
