"""A user's own facts: pairs of names from a file or a table, and how they are worded."""

import dataclasses
import os
import pathlib
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from dirasym import readers
from dirasym.data.facts import FactSet, Query, Statement
from dirasym.data.text import normalise


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A user's own facts: pairs of names, and the wording of either direction.

    Attributes:
      names: (a, b) of each fact.
      forward: the template that asks for b, such as "The capital of {a} is {b}".
      reverse: the template that asks for a, such as "{b} is the capital of {a}".
      several: whether a name may stand in several pairs; each of its partners is then a right
        answer to one question.
      also: from a name to its other names: right answers too, and never told nor asked about.

    Each template holds {a} and {b}, what it asks for once and last, after a space; text may
    follow, such as a full stop.

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
        of none of the names, or blank ones; text that is not valid Unicode.
    """

    names: tuple[tuple[str, str], ...]
    forward: str
    reverse: str
    several: bool = False
    also: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        places = [f"pair {number}" for number in range(1, len(self.names) + 1)]
        _check_names(self.names, places, self.several)
        self._wording("forward"), self._wording("reverse")
        known = {name for pair in self.names for name in pair}
        for name, others in self.also.items():
            if name not in known:
                raise ValueError(f"also: {name!r} is in no pair")
            if isinstance(others, str) or not all(map(_is_name, others)):
                raise ValueError(f"also: {name!r} has {others!r}, no names")

    def _wording(self, name: Literal["forward", "reverse"]) -> tuple[str, str]:
        """(template of the prompt, what follows the answer)."""
        template: str = getattr(self, name)
        known, asked = ("a", "b") if name == "forward" else ("b", "a")
        source = f"the {name} template {template!r}"
        if not readers.is_unicode(template):
            raise ValueError(f"{source} is not valid Unicode")
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
        if not before[-1:].isspace():
            raise ValueError(f"{source} needs a space before {{{asked}}}")
        return before.rstrip(), "".join(text for text, *_ in parts[last + 1 :])

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
        return cls._from_rows(rows, f"{path}: row", a, b, forward, reverse, several, aliases)

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
          ValueError: no such column, or as `Pairs`; the row is named.
        """
        rows = ((number, {a: x, b: y}) for number, (x, y) in enumerate(_cells(frame, a, b)))
        return cls._from_rows(rows, "row", a, b, forward, reverse, several, aliases)

    @classmethod
    def _from_rows(
        cls,
        rows: Iterable[tuple[int, Any]],
        source: str,
        a: str,
        b: str,
        forward: str,
        reverse: str,
        several: bool,
        aliases: str | None,
    ) -> "Pairs":
        if a == b:
            raise ValueError(f"a and b are one column, {a!r}")
        if aliases == "":
            raise ValueError("aliases must be what stands between names, or None")
        names, places = [], []
        also: dict[str, tuple[str, ...]] = {}
        for number, row in rows:
            for column in (a, b):
                cell = row.get(column) if isinstance(row, Mapping) else None
                if not isinstance(cell, str) or not cell.strip():
                    raise ValueError(f"{source} {number} has no {column}")
            pair = []
            for column in (a, b):
                first, *others = _split(row[column], aliases, f"{source} {number} has", column)
                pair.append(first)
                if others:
                    also[first] = tuple(dict.fromkeys((*also.get(first, ()), *others)))
            names.append((pair[0], pair[1]))
            places.append(f"{source} {number}")
        if not names:
            raise ValueError(f"{source.removesuffix('row')}there are no pairs")
        _check_names(names, places, several)
        return cls(tuple(names), forward, reverse, several, also)

    def fact_set(self, trained: Literal["forward", "reverse"] = "forward") -> FactSet:
        """Trains one direction and asks both; the direction trained is the set's forward one.

        A name with several partners is one question. Where text follows the answer, it counts
        with that text and without.
        """
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


def _split(cell: str, aliases: str | None, place: str, column: str) -> list[str]:
    names = [name.strip() for name in (cell.split(aliases) if aliases else [cell])]
    if not all(names):
        raise ValueError(f"{place} an empty name in {column}: {cell!r}")
    return names


def _cells(frame: Any, a: str, b: str) -> Iterable[tuple[Any, Any]]:
    for column in (a, b):
        if column not in frame:
            raise ValueError(f"the table has no column {column!r}")
        if isinstance(frame[column], str) or getattr(frame[column], "ndim", 1) != 1:
            raise ValueError(f"the table has no single column {column!r}")
    one, other = list(frame[a]), list(frame[b])
    if len(one) != len(other):
        raise ValueError(f"{a!r} has {len(one)} rows, {b!r} {len(other)}")
    return zip(one, other, strict=True)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and readers.is_unicode(name) and normalise(name) != ""


def _check_names(names: Sequence[tuple[str, str]], places: Sequence[str], several: bool) -> None:
    """Raises ValueError for names that cannot be, saying in which of the `places`."""
    if not names:
        raise ValueError("there are no pairs")
    where: dict[tuple[str, str], str] = {}
    written: dict[str, str] = {}
    for pair, place in zip(names, places, strict=True):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{place} is {pair!r}, not two names")
        for side, name in zip("ab", pair, strict=True):
            if not _is_name(name):
                raise ValueError(f"{place}: {side} is {name!r}, no name")
            if written.setdefault(normalise(name), name) != name:
                other = written[normalise(name)]
                raise ValueError(f"{place}: {name!r} is {other!r}, written otherwise")
        for what in [pair] if several else [("a", pair[0]), ("b", pair[1])]:
            if what in where:
                named = " and ".join(map(repr, pair)) if several else repr(what[1])
                raise ValueError(f"{place} repeats {named} of {where[what]}")
            where[what] = place
