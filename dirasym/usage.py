"""Between a program and who runs it: errors of what was given, apart from our own; help."""

import contextlib
import errno
import importlib
import itertools
import numbers
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

# What a disk or its owner refuses, or what stands where a file or folder should be.
_ENVIRONMENT = {
    errno.EACCES, errno.EDQUOT, errno.EINVAL, errno.EIO, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR,
    errno.EPERM, errno.EROFS,
}  # fmt: skip


class UsageError(ValueError):
    """A value or file that a program was given and cannot use; the message is one line."""


def install(extra: str) -> str:
    """What a user types for the packages of an extra: this one is on no index, but in a clone.

    Examples:
      >>> install("hf")
      "in the clone: pip install -e '.[hf]'"
    """
    return f"in the clone: pip install -e '.[{extra}]'"


def optional(name: str, extra: str) -> Any:
    """A package of an extra, imported late; of `package.module` both, and the package is given.

    Raises:
      ImportError: it is missing; says what to type.
    """
    package = name.partition(".")[0]
    try:
        importlib.import_module(name)
    except ImportError:
        raise ImportError(f"{package} is missing: {install(extra)}") from None
    return sys.modules[package]


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


def asks_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks for help, before a `--`.

    Examples:
      >>> asks_help(["study.py", "--steps=4", "--help"]), asks_help(["study.py", "--", "--help"])
      (True, False)
    """
    own = itertools.takewhile("--".__ne__, argv)
    return not {"-h", "--help", "--helpshort", "--helpfull"}.isdisjoint(own)


def joined_lists(argv: Sequence[str], is_list: Callable[[str], bool]) -> list[str]:
    """`--modes a b` as `--modes=a,b`, for flags whose names are those of lists.

    Examples:
      >>> joined_lists(["study.py", "--modes", "a", "b", "--steps=4"], {"modes"}.__contains__)
      ['study.py', '--modes=a,b', '--steps=4']
    """
    joined: list[str] = []
    in_list = False
    for word in argv:
        if in_list and not word.startswith("-"):
            joined[-1] += ("," if "=" in joined[-1] else "=") + word
        else:
            in_list = is_list(word.removeprefix("--").partition("=")[0])
            joined.append(word)
    return joined


def help_text(
    flags: Iterable[Any], presets: Mapping[str, Mapping[str, Any]], usual: str = "quick"
) -> str:
    """The program's own first lines and its flags, with what each preset makes of them.

    Args:
      flags: as absl has them, in the order in which they are listed.
      presets: by name, the flags that each sets.
      usual: the preset that is taken if none is named.
    """
    lines = [str(sys.modules["__main__"].__doc__)]
    lines.append("Flags [default; where another preset differs]:\n")
    for flag in flags:
        ours = {preset: values.get(flag.name, flag.default) for preset, values in presets.items()}
        default = _written(ours.get(usual, flag.default))
        others = [f"; {preset}: {x}" for preset, v in ours.items() if (x := _written(v)) != default]
        text = f"--{'[no]' * flag.boolean}{flag.name}: {flag.help} [{default}{''.join(others)}]"
        text = textwrap.fill(text.removesuffix(" []"), 98, subsequent_indent="    ")
        lines.append(textwrap.indent(text, "  "))
    return "\n".join(lines)


def _written(value: Any) -> str:
    """A flag's value as a command line has it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python or NumPy; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_counts(least: int = 1, /, **counts: Any) -> None:
    """Raises ValueError, naming it, for a value that is no whole number from `least`."""
    for name, value in counts.items():
        if not is_whole(value) or value < least:
            raise ValueError(f"{name} must be a whole number from {least}, got {value!r}")


def check_number(name: str, value: Any) -> None:
    """Raises TypeError, naming it, for what is no real number, nor an array of one."""
    is_one = isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()
    if isinstance(value, bool) or not is_one:
        raise TypeError(f"{name} must be a number, got {value!r:.80}")


def listed(name: str, values: Any, what: str, *, some: bool = True) -> list[Any]:
    """Values of an argument as a list.

    Examples:
      >>> listed("paths", "runs/a", "work directories")
      Traceback (most recent call last):
      TypeError: paths must be a list of work directories, got 'runs/a'

    Raises:
      TypeError: it cannot be gone through, or is a string, a path or a dict: one thing, not many.
      ValueError: there are none, where there must be `some`.
    """
    if isinstance(values, str | bytes | os.PathLike | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of {what}, got {values!r:.80}")
    values = list(values)
    if some and not values:
        raise ValueError(f"{name} is empty: give at least one of {what}")
    return values


def check_path(name: str, value: Any) -> None:
    """Raises TypeError, naming it, for what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {value!r:.80}")
