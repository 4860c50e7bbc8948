"""A crash-safe file of result lines: JSON, one object a line."""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from dirasym import files


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Lines of a results file, each once; [] without a file.

    A truncated last line, left by a crash, is dropped.

    Raises:
      ValueError: a line before the last is no JSON (NaN and Infinity are none) or no UTF-8.
      OSError: the file cannot be read.
    """
    files.check_regular(path)
    try:
        *lines, last = pathlib.Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    results = [_parse(line) for line in lines if line.strip()]
    try:
        results += [_parse(last)] if last.strip() else []
    except ValueError:
        logging.warning("%s: dropped a truncated last line", path)
    once = {json.dumps(line, sort_keys=True): line for line in results}
    return list(once.values())


def replace_results(
    path: str | os.PathLike, results: Iterable[Mapping[str, Any]], keys: tuple[str, ...]
) -> None:
    """Puts `results` into the file, in place of lines that agree with one on `keys`.

    The file is replaced as a whole, so a reader or a crash sees all of the group or none,
    and writing a group twice leaves one copy. Processes that write to one file take turns.
    NumPy and JAX scalars are written as numbers, arrays as lists.

    Raises:
      ValueError: a value is not finite, for which JSON has no word; it names the key.
      TypeError: a value that JSON cannot hold.
    """
    path = pathlib.Path(os.path.realpath(path))
    results = [json.loads(json.dumps(line, default=_plain)) for line in results]
    for line in results:
        _refuse_non_finite(line, "")

    def identity(line):
        return [line.get(key) for key in keys]

    replaced = [identity(line) for line in results]
    with files.locked(path.with_name(f".{path.name}.lock"), wait=True):
        kept = [line for line in read_results(path) if identity(line) not in replaced]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept + results)
        files.write_atomically(path, text)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _finite(word: str) -> float:
    if not math.isfinite(value := float(word)):
        raise ValueError(f"{word} is no finite number")
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # of NumPy or JAX
        return value.tolist()
    raise TypeError(f"a result line cannot hold {value!r}")


def _refuse_non_finite(value: Any, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}: a result line holds finite numbers")
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, child in value.items():
            _refuse_non_finite(child, f"{name}.{key}" if name else str(key))
