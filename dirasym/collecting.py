"""Many work directories as one table: what differs between them, and seeds put together.

lines = collecting.collect(pathlib.Path("runs").glob("*"))
collecting.over_seeds(lines)
"""

import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dirasym import intervals, results, usage
from dirasym.workdir import WorkDirError, stored_config

# Of a sweep, not of a run: directories that differ in these alone hold more seeds of one thing.
_SEEDS = {"seeds", "seed"}
_OF_DIRECTORY = {"workdir", "exp_id"}
TIMES = {"run_wall_time_sec", "wall_time_sec", "seconds"}  # no two runs share them


def collect(paths: Iterable[str | os.PathLike]) -> list[dict[str, Any]]:
    """The result lines of work directories, each with the flags that tell the directories apart.

    A flag is a column where those configurations that have it differ in it, flags of seeds apart.
    A line that is known by a value of that name keeps it; a flag that is named as a result of any
    of the lines is in the column `--NAME` (see `flag_columns`).

    Args:
      paths: work directories of any versions, devices and configurations; each counts once.

    Raises:
      TypeError, ValueError: no list of paths, or an empty one.
      WorkDirError: a path holds no configuration, or no result lines that can be read.

    Examples:
      >>> import tempfile
      >>> from dirasym.workdir import WorkDir
      >>> from dirasym.pieces import Piece, compute
      >>> folders = {n: tempfile.mkdtemp() for n in (2, 3)}
      >>> for n, folder in folders.items():
      ...     piece = Piece({}, lambda n=n: ({"square": n**2}, {}), has_curves=False)
      ...     _ = compute([piece], WorkDir(folder, {"n": n}))
      >>> [(line["n"], line["square"]) for line in collect(folders.values())]
      [(2, 4), (3, 9)]
    """
    configs, lines = {}, []
    places: dict[pathlib.Path, pathlib.Path] = {}
    for path in _paths(paths):
        if places.setdefault(path.resolve(), path) is not path:
            continue  # given twice, as `runs/*` gives a link among them
        configs[path], found = _read(path)
        lines += [(path, line) for line in found]
    told = [
        name for name in _differing(list(configs.values()), missing=False) if name not in _SEEDS
    ]
    columns = flag_columns(told, [line for _, line in lines])
    return [
        {"workdir": str(path), **{columns[n]: configs[path].get(n) for n in told}, **line}
        for path, line in lines
    ]


def flag_columns(names: Iterable[str], lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The column of each flag in a table with these lines: `--NAME` where a result has its name.

    Examples:
      >>> flag_columns(["width", "loss"], [dict(run="a", seed=0, loss=0.5)])
      {'width': 'width', 'loss': '--loss'}
    """
    of_results = {name for line in lines for name in _results(line)}
    return {name: f"--{name}" if name in of_results else name for name in names}


def _results(line: Mapping[str, Any]) -> list[str]:
    """Names of what was found, behind the seed; without a seed, behind what the run is known by."""
    names = list(line)
    if "seed" in line:
        return names[names.index("seed") + 1 :]
    known = {part.partition("=")[0] for part in str(line.get("run", "")).split(",")}
    return [name for name in names if name not in known | _OF_DIRECTORY | {"run"}]


def flags_that_differ(paths: Iterable[str | os.PathLike]) -> dict[str, tuple[Any, ...]]:
    """The flags in which work directories differ, each with its value in each of them, or None.

    Raises:
      TypeError, ValueError: no list of paths, or an empty one.
      WorkDirError: a path holds no configuration that can be read.
    """
    return _differing([stored_config(path)[0] for path in _paths(paths)])


def _paths(paths: Any) -> list[pathlib.Path]:
    given = usage.listed("paths", paths, "work directories")
    for path in given:
        usage.check_path("paths", path)
    return [pathlib.Path(path).expanduser() for path in given]


def _differing(
    configs: Sequence[Mapping[str, Any]], *, missing: bool = True
) -> dict[str, tuple[Any, ...]]:
    """What differs, and its value in each; with `missing`, what one lacks counts as None there."""
    found = {}
    for name in dict.fromkeys(name for config in configs for name in config):
        compared = [config.get(name) for config in configs if missing or name in config]
        if len({json.dumps(value) for value in compared}) > 1:
            found[name] = tuple(config.get(name) for config in configs)
    return found


def over_seeds(lines: Iterable[Mapping[str, Any]], level: float = 0.95) -> list[dict[str, Any]]:
    """One line for all seeds of a run: Student intervals where numbers differ between them.

    Lines belong together that agree in all that stands before their seed: the flags and what
    the run is known by. A number which differs behind it becomes an `intervals.Interval`; lists
    and words that differ are left out. A line that stands in two directories, one a copy of the
    other, counts once.

    Returns:
      Lines with `seeds`, how many there are.

    Raises:
      WorkDirError: a run and seed have two results, which are no two seeds.

    Examples:
      >>> lines = [dict(run="a", seed=seed, loss=seed + 1.0, steps=3) for seed in (0, 2)]
      >>> (line,) = over_seeds(lines)
      >>> line["seeds"], line["steps"], line["loss"].mean
      (2, 3, 2.0)
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in usage.listed("lines", lines, "result lines", some=False):
        keys = itertools.takewhile(lambda key: key not in _SEEDS, line)
        known = {key: line[key] for key in keys if key not in _OF_DIRECTORY | TIMES}
        groups.setdefault(json.dumps(known, sort_keys=True), []).append(line)
    return [_merged(_each_seed(group), level) for group in groups.values()]


def differences(
    one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Of lines that both have (run and seed): what differs, as (in one, in the other).

    Args:
      one: lines of a work directory.
      other: of another one.
    """

    def by_run(lines):
        return {(line.get("run"), line.get("seed")): line for line in lines}

    first, second, found = by_run(one), by_run(other), []
    for key in first:
        if key in second:
            names = {**first[key], **second[key]}
            pairs = {name: (first[key].get(name), second[key].get(name)) for name in names}
            pairs = {
                name: pair
                for name, pair in pairs.items()
                if pair[0] != pair[1] and name not in _OF_DIRECTORY | TIMES
            }
            found.append({"run": key[0], "seed": key[1], **pairs})
    return found


def _each_seed(group: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of a run with each seed once."""
    of_seed: dict[Any, Mapping[str, Any]] = {}
    for line in group:
        other = of_seed.setdefault(line.get("seed"), line)  # without one, all but times agree
        differing = {key for key in {*line, *other} if line.get(key) != other.get(key)}
        if named := sorted(differing - _OF_DIRECTORY - TIMES):
            raise WorkDirError(
                f"{line.get('run')}, seed {line.get('seed')}: {other.get('workdir')} and "
                f"{line.get('workdir')} differ in {', '.join(named[:5])}, and are no two seeds"
            )
    return list(of_seed.values())


def _merged(group: Sequence[Mapping[str, Any]], level: float) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key, first in group[0].items():
        values: list[Any] = [line.get(key) for line in group]
        if key not in _OF_DIRECTORY | _SEEDS:
            if all(value == first for value in values):
                merged[key] = first
            elif all(isinstance(value, int | float) for value in values):
                merged[key] = intervals.student_interval(values, level)
    return {**merged, "seeds": len(group)}


def _read(path: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config, owner = stored_config(path)
    try:
        lines = results.read_results(path / "results.jsonl")
        return config, [line for line in lines if line.get("exp_id") == owner]
    except OSError as error:
        raise WorkDirError(f"{path} has no results: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise WorkDirError(f"{path} is damaged: its results are unreadable") from None
