"""Errors of what a user gave, apart from our own."""

import contextlib
from collections.abc import Iterator


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
