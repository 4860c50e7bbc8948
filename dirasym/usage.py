"""Errors of what a user gave, apart from our own."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

import numpy as np

# What a disk or its owner refuses, or what stands where a file or folder should be.
_ENVIRONMENT = {
    errno.EACCES, errno.EDQUOT, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR,
    errno.EPERM, errno.EROFS,
}  # fmt: skip


class UsageError(ValueError):
    """A value or file that a program was given and cannot use; the message is one line."""


@contextlib.contextmanager
def blamed(what: str = "") -> Iterator[None]:
    """Around what reads a user's values and files: its errors are the user's, said of `what`.

    Any other ValueError is a fault of the program, and should end in a traceback.

    Raises:
      UsageError: for a ValueError, or for an ImportError of a package that is not installed.

    Examples:
      >>> with blamed("--steps"):
      ...     int("four")
      Traceback (most recent call last):
      dirasym.usage.UsageError: --steps: invalid literal for int() with base 10: 'four'
    """
    try:
        yield
    except (ValueError, ImportError) as error:
        raise UsageError(f"{what}: {error}" if what else str(error)) from error


@contextlib.contextmanager
def disk() -> Iterator[None]:
    """Around a whole program: a full disk or a place that it may not use is no fault of its own.

    Raises:
      UsageError: for an OSError of that kind; others pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def printing(status: int) -> Iterator[None]:
    """Around what prints: the process ends in silence if its reader has gone, as `head` does.

    Args:
      status: of the process that ends so.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:
            os._exit(status)  # what is left in the buffer would be flushed, and fail, at any other
        raise  # another pipe than that of standard output


def check_counts(**counts: int) -> None:
    """Raises ValueError, naming it, for a value that is no whole number from 1."""
    for name, value in counts.items():
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
