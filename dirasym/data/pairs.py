"""A user's own facts: pairs of names from a file or a table, and how they are worded."""

import collections
import dataclasses
import os
import pathlib
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dirasym import readers
from dirasym.data.facts import FactSet, Query, Statement
from dirasym.data.text import normalise


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A user's own facts: pairs of names, and the wording of either direction.

    Attributes:
      names: (a, b) of each fact, or an array [n, 2].
      forward: the template that asks for b, such as "The capital of {a} is {b}".
      reverse: the template that asks for a, such as "{b} is the capital of {a}".
      several: whether a name may stand in several pairs; each of its partners is then a right
        answer to one question.
      also: from a name to its other names: right answers too, and never told nor asked about.

    Each template holds {a} and {b}, what it asks for once and last, after one plain space, as
    an answer is told and asked after a space; text may follow, such as a full stop. Blanks around
    a name are no part of it, and a whole number counts as its text.

    Examples:
      >>> pairs = Pairs((("France", "Paris"),), "The capital of {a} is {b}", "{b} is in {a}")
      >>> pairs.fact_set().reverse
      (Query(prompt='Paris is in', answers=('France',)),)
      >>> pairs = dataclasses.replace(pairs, also={"France": ("la France",)})
      >>> pairs.fact_set().reverse[0].answers
      ('France', 'la France')

    Raises:
      ValueError: a template of another form, no pairs, a blank name, a pair that is there
        twice, one name written in two ways, or, unless `several`, a name in two pairs; other names
        of none of the names, or blank ones, or one that would make the name of another pair a
        right answer; text that is not valid Unicode, or holds NUL.
    """

    names: tuple[tuple[str, str], ...]
    forward: str
    reverse: str
    several: bool = False
    also: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        if not isinstance(self.names, Iterable):
            raise ValueError(f"names must be pairs of names, got {self.names!r}")
        names = tuple(self.names)
        places = [f"pair {number}" for number in range(1, len(names) + 1)]
        trimmed, also = _trimmed(names, places), _trimmed_also(self.also)
        _check_names(trimmed, places, self.several)
        _check_also(trimmed, places, also)
        object.__setattr__(self, "names", trimmed)
        object.__setattr__(self, "also", also)
        self._wording("forward"), self._wording("reverse")

    def __repr__(self) -> str:
        (a, b), *more = self.names
        others = f" and {len(more)} more" * bool(more)
        return f"Pairs(({a!r}, {b!r}){others}, {self.forward!r}, {self.reverse!r})"

    def several_partners(self) -> int:
        """How many names stand in several pairs, of both sides together."""
        sides = [collections.Counter(side) for side in zip(*self.names, strict=True)]
        return sum(count > 1 for side in sides for count in side.values())

    def _wording(self, name: Literal["forward", "reverse"]) -> tuple[str, str]:
        """(template of the prompt, what follows the answer)."""
        template: str = getattr(self, name)
        known, asked = ("a", "b") if name == "forward" else ("b", "a")
        source = f"the {name} template {template!r}"
        if not isinstance(template, str):
            raise ValueError(f"{source} is no text")
        if not _is_clean(template):
            raise ValueError(f"{source} is not valid Unicode, or holds NUL")
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"{source} is none: {error}") from None
        fields = [field for _, field, _, _ in parts if field is not None]
        for field in fields:
            if field not in ("a", "b"):
                raise ValueError(f"{source} holds {{{field}}}; it takes {{a}} and {{b}}")
        if any(spec or conversion for _, _, spec, conversion in parts):
            raise ValueError(f"{source} holds more than {{a}} and {{b}} in its braces")
        for field in (known, asked):
            if field not in fields:
                raise ValueError(f"{source} lacks {{{field}}}")
        if fields.count(asked) > 1 or fields[-1] != asked:
            raise ValueError(f"{source} asks for {{{asked}}}, which must stand once and last")
        last = [field for _, field, _, _ in parts].index(asked)
        before = "".join(
            text.replace("{", "{{").replace("}", "}}") + ("{name}" if field == known else "")
            for text, field, _, _ in parts[: last + 1]
        )
        if before.rstrip() + " " != before:
            raise ValueError(f"{source} needs one plain space, and no more, before {{{asked}}}")
        return before[:-1], "".join(text for text, *_ in parts[last + 1 :])

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike,
        *,
        a: str,
        b: str,
        forward: str,
        reverse: str,
        several: bool = False,
        aliases: str | None = None,
        encoding: str = "utf-8",
    ) -> "Pairs":
        """Pairs of two columns of a table: see `readers.read_table` for what it may look like.

        Args:
          path: the file; JSON lines if its name ends in .jsonl or .json, a table otherwise.
          a: the column of the names a, or the key of JSON.
          b: the column of the names b.
          forward: as of `Pairs`.
          reverse: as of `Pairs`.
          several: as of `Pairs`.
          aliases: what stands between the names of one thing in a cell, such as "|" in
            "Netherlands|Holland": the first is the name, the others are `Pairs.also`.
          encoding: the file's.

        Raises:
          ValueError: the file cannot be read, or as `Pairs`; file and row are named.
        """
        if pathlib.Path(path).suffix.lower() in (".jsonl", ".json"):
            rows: Iterable[tuple[int, Any]] = readers.read_json_lines(path, encoding)
        else:
            rows = readers.read_table(path, (a, b), encoding)
        read = _read(rows, f"{path}: row", (a, b), several, aliases)
        return cls(read[0], forward, reverse, several, read[1])

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        a: str,
        b: str,
        forward: str,
        reverse: str,
        several: bool = False,
        aliases: str | None = None,
    ) -> "Pairs":
        """Pairs of two columns of a DataFrame, or of a mapping of columns; rows count from 0.

        Arguments as of `from_csv`.

        Raises:
          ValueError: no such column, a cell that is neither text nor a whole number, or as
            `Pairs`; the row is named.
        """
        rows = ((number, {a: x, b: y}) for number, (x, y) in enumerate(_cells(frame, a, b)))
        read = _read(rows, "row", (a, b), several, aliases)
        return cls(read[0], forward, reverse, several, read[1])

    def fact_set(self, trained: Literal["forward", "reverse"] = "forward") -> FactSet:
        """Trains one direction and asks both; the direction trained is the set's forward one.

        A name with several partners is one question. Where text follows the answer, it counts
        with that text and without.
        """
        if trained not in ("forward", "reverse"):
            raise ValueError(f"trained must be 'forward' or 'reverse', got {trained!r}")
        sides = []
        for direction in ("forward", "reverse"):
            prompt, tail = self._wording(direction)
            partners: dict[str, list[str]] = {}
            for a, b in self.names:
                name, answer = (a, b) if direction == "forward" else (b, a)
                partners.setdefault(name, []).append(answer)
            statements = tuple(
                Statement(prompt.format(name=name), answer + tail)
                for name, answers in partners.items()
                for answer in answers
            )
            queries = tuple(
                Query(prompt.format(name=name), self._right(answers, tail))
                for name, answers in partners.items()
            )
            sides.append((statements, queries))
        (told, asked), (_, back) = sides if trained == "forward" else sides[::-1]
        return FactSet(told, asked, back)

    def _right(self, answers: Sequence[str], tail: str) -> tuple[str, ...]:
        """All that is right where these are, each once."""
        names = [name for answer in answers for name in (answer, *self.also.get(answer, ()))]
        return tuple(dict.fromkeys(text for name in names for text in (name + tail, name)))


def fact_set(pairs: Any) -> FactSet:
    """What pairs ask; a `FactSet` as it is. Raises TypeError for anything else."""
    if isinstance(pairs, Pairs):
        return pairs.fact_set()
    if not isinstance(pairs, FactSet):
        raise TypeError(f"pairs must be Pairs or a FactSet, got a {type(pairs).__name__}")
    return pairs


def _read(
    rows: Iterable[tuple[int, Any]],
    source: str,
    columns: tuple[Any, Any],
    several: bool,
    aliases: str | None,
) -> tuple[tuple[tuple[str, str], ...], dict[str, tuple[str, ...]]]:
    """(names, also) of `Pairs`, checked here too, where the rows are known."""
    if columns[0] == columns[1]:
        raise ValueError(f"a and b are one column, {columns[0]!r}")
    if aliases is not None and (not isinstance(aliases, str) or not aliases):
        raise ValueError(f"aliases must be what stands between names, or None, got {aliases!r}")
    names, places = [], []
    also: dict[str, tuple[str, ...]] = {}
    for number, row in rows:
        place = f"{source} {number}"
        if not isinstance(row, Mapping):
            raise ValueError(f"{place} is a {type(row).__name__}, not an object of names")
        pair = []
        for column in columns:
            cell = row.get(column)
            if _is_missing(cell):
                raise ValueError(f"{place} has no {column}")
            first, *others = _split(_text(cell, f"{place}: {column}"), aliases, place, column)
            pair.append(first)
            if others:
                also[first] = tuple(dict.fromkeys((*also.get(first, ()), *others)))
        names.append((pair[0], pair[1]))
        places.append(place)
    if not names:
        raise ValueError(f"{source.removesuffix('row')}there are no pairs")
    _check_names(names, places, several, same=True)
    _check_also(names, places, also)
    return tuple(names), also


def _is_missing(cell: Any) -> bool:
    """Blank text, None, NaN, and what pandas has for them."""
    if isinstance(cell, str):
        return not cell.strip()
    is_nan = isinstance(cell, float | np.floating) and bool(np.isnan(cell))
    return cell is None or is_nan or type(cell).__name__ in ("NAType", "NaTType")


def _text(name: Any, what: str) -> str:
    """A name without the blanks around it; a whole number counts as its text."""
    if isinstance(name, int | np.integer) and not isinstance(name, bool):
        return str(int(name))
    if not isinstance(name, str):
        kind = type(name).__name__
        raise ValueError(f"{what} is {name!r}, a {kind}: no name, neither text nor a whole number")
    return str(name).strip()


def _split(cell: str, aliases: str | None, place: str, column: Any) -> list[str]:
    names = [name.strip() for name in (cell.split(aliases) if aliases else [cell])]
    if not all(names):
        raise ValueError(f"{place} has an empty name in {column}: {cell!r}")
    return names


def _cells(frame: Any, a: str, b: str) -> Iterable[tuple[Any, Any]]:
    if not isinstance(frame, Mapping) and not hasattr(frame, "columns"):
        kind = type(frame).__name__
        raise ValueError(f"frame must be a DataFrame or a mapping of columns, got a {kind}")
    for column in (a, b):
        if column not in frame:
            raise ValueError(f"the table has no column {column!r}")
        if isinstance(frame[column], str) or getattr(frame[column], "ndim", 1) != 1:
            raise ValueError(f"the table has no single column {column!r}")
    one, other = list(frame[a]), list(frame[b])
    if len(one) != len(other):
        raise ValueError(f"{a!r} has {len(one)} rows, {b!r} {len(other)}")
    return zip(one, other, strict=True)


def _is_clean(text: str) -> bool:
    return readers.is_unicode(text) and "\0" not in text


def _is_name(text: str) -> bool:
    return _is_clean(text) and normalise(text) != ""


def _trimmed(names: Sequence[Any], places: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of text. Raises ValueError for what is no pair, saying in which of the `places`."""
    trimmed = []
    for pair, place in zip(names, places, strict=True):
        if not isinstance(pair, tuple | list | np.ndarray) or len(pair) != 2:
            raise ValueError(f"{place} is {pair!r}, not two names")
        a, b = (_text(x, f"{place}: {side}") for side, x in zip("ab", pair, strict=True))
        trimmed.append((a, b))
    return tuple(trimmed)


def _trimmed_also(also: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(also, Mapping):
        raise ValueError(f"also must be a mapping from a name to its other names, got {also!r}")
    trimmed: dict[str, tuple[str, ...]] = {}
    for name, others in also.items():
        what = f"also: of {name!r}"
        if not isinstance(others, tuple | list | np.ndarray):
            raise ValueError(f"{what} the other names are {others!r}, no tuple of names")
        name = _text(name, "also: a key")
        found = [_text(other, f"{what} another name") for other in others]
        trimmed[name] = tuple(dict.fromkeys((*trimmed.get(name, ()), *found)))
    return trimmed


def _check_names(
    names: Sequence[tuple[str, str]], places: Sequence[str], several: bool, same: bool = False
) -> None:
    """Raises ValueError for names that cannot be, saying in which of the `places`.

    With `same` also for a pair of one name twice: a file's is a slip, a program's is meant.
    """
    if not names:
        raise ValueError("there are no pairs")
    where: dict[tuple[str, str], str] = {}
    written: dict[str, str] = {}
    for pair, place in zip(names, places, strict=True):
        for side, name in zip("ab", pair, strict=True):
            if not _is_name(name):
                raise ValueError(f"{place}: {side} is {name!r}, no name")
            if written.setdefault(normalise(name), name) != name:
                other = written[normalise(name)]
                raise ValueError(f"{place}: {name!r} is {other!r}, written otherwise")
        if same and pair[0] == pair[1]:
            raise ValueError(f"{place}: both names are {pair[0]!r}, which copying answers: drop it")
        for what in [pair] if several else [("a", pair[0]), ("b", pair[1])]:
            if what in where:
                named = " and ".join(map(repr, pair)) if several else repr(what[1])
                raise ValueError(f"{place} repeats {named} of {where[what]}")
            where[what] = place


def _check_also(
    names: Sequence[tuple[str, str]], places: Sequence[str], also: Mapping[str, tuple[str, ...]]
) -> None:
    """Raises ValueError for other names that are none, or that make a wrong answer right.

    If France is also called Spain, "Spain" answers what France answers: that is right only
    where Spain has the same partner in a pair of its own.
    """
    known = {name for pair in names for name in pair}
    for name, others in also.items():
        if name not in known:
            raise ValueError(f"also: {name!r} is in no pair")
        for other in others:
            if not _is_name(other):
                raise ValueError(f"also: {name!r} has {other!r}, no name")
    for side in (0, 1):
        rows: dict[str, list[int]] = {}  # of a name on this side
        for row, pair in enumerate(names):
            rows.setdefault(normalise(pair[side]), []).append(row)
        for row, pair in enumerate(names):
            for other in also.get(pair[side], ()):
                found = rows.get(normalise(other), [row])
                if all(names[place][1 - side] != pair[1 - side] for place in found):
                    raise ValueError(
                        f"{places[row]} pairs {pair[side]!r}, which is also called {other!r}, with "
                        f"{pair[1 - side]!r}, and {places[found[0]]} {names[found[0]][side]!r} "
                        f"with {names[found[0]][1 - side]!r}"
                    )
