"""What all pages share: result lines, means with intervals, and text of 100 columns.

A page of docs/ says `cog.outl(..)` in a comment, and `cog` writes the result below it:

    PAGES="README.md docs/*.md docs/claims/*.md docs/results/README.md"
    python -m cogapp -r $PAGES        # write
    python -m cogapp --check $PAGES   # as the tests do
"""

import functools
import json
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import intervals, report, results

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PAGES = ("README.md", "docs/*.md", "docs/claims/*.md", "docs/results/*.md")
Line = Mapping[str, Any]


@functools.cache
def _read(name: str) -> tuple[Line, ...]:
    path = RESULTS / f"{name}.jsonl"
    if not path.exists():
        raise FileNotFoundError(path)
    return tuple(results.read_results(path))


def lines(*names: str, **values: Any) -> list[Line]:
    """Result lines of docs/results/NAME.jsonl with these values, in the order of seeds."""
    read = report.select([line for name in names for line in _read(name)], **values)
    if not read:
        raise LookupError(f"no line of {names} has {values}")
    return sorted(read, key=lambda line: line.get("seed", 0))


def column(of: Iterable[Line], key: str) -> list[Any]:
    """One value a line."""
    return [line[key] for line in of]


@functools.cache
def history(name: str) -> Mapping[str, Any]:
    """A JSON file of docs/results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


@functools.cache
def curves(name: str) -> Mapping[str, np.ndarray]:
    """The curves of one run and seed, docs/results/NAME.npz."""
    with np.load(RESULTS / f"{name}.npz") as stored:
        return dict(stored)


def number(value: float, digits: int = 2) -> str:
    """`−0.05`: with a minus sign, and no sign on zero."""
    text = f"{value:.{digits}f}"
    return text[1:] if float(text) == 0 and text[0] == "-" else text.replace("-", "−")


def mean(values: Sequence[float], digits: int = 2) -> str:
    """The mean with Student's 95 % interval, `0.63 ± 0.11`; alone where there is one value."""
    center, half_width = intervals.student_interval(values)
    spread = "" if np.isnan(half_width) else f" ± {half_width:.{digits}f}"
    return number(center, digits) + spread


def share(successes: float, count: int, digits: int = 1) -> str:
    """A share in percent with its 95 % Wilson interval: `96.8 (93.8 to 98.4)`."""
    of = intervals.wilson_interval(round(successes), count)
    center, low, high = (f"{100 * x:.{digits}f}" for x in of)
    return f"{center} ({low} to {high})"


def span(values: Iterable[float], digits: int = 2) -> str:
    """`0.91 to 0.96`, or one number where both ends are written alike."""
    values = list(values)
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"


def each(values: Iterable[float], digits: int = 1) -> str:
    """All values, in order: `53.8, 52.3, 55.4`."""
    return ", ".join(number(value, digits) for value in values)


def table(header: str | Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a header may be words between commas."""
    return report.table(header.split(", ") if isinstance(header, str) else header, list(rows))


def say(text: str) -> str:
    """A paragraph of at most 100 columns; list items begin with `- ` on lines of their own.

    No line goes on with a number and a full stop, which would begin a list.
    """
    parts = re.split(r"\n(?=- )", text.strip())
    wrapped = []
    for part in parts:
        indent = "  " if part.startswith("- ") else ""
        words = " ".join(part.split()).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        words = re.sub(r" (?=\d+\. )", "\N{NO-BREAK SPACE}", words)
        whole = dict(break_long_words=False, break_on_hyphens=False)
        wrapped.append(textwrap.fill(words, 100, subsequent_indent=indent, **whole))
    return "\n".join(wrapped).replace("\N{NO-BREAK SPACE}", " ")


def groups(of: Iterable[Line], *keys: str) -> dict[tuple, list[Line]]:
    """Lines by their values of `keys`, in the order in which these come first."""
    found: dict[tuple, list[Line]] = {}
    for line in of:
        found.setdefault(tuple(line[key] for key in keys), []).append(line)
    return found


def means(of: Sequence[Line], keys: Iterable[str], digits: int = 3) -> list[str]:
    """`mean` of several keys."""
    return [mean(column(of, key), digits) for key in keys]


def at(line: Line, curve: str, moment: float, moments: str) -> float:
    """A curve of a line at one of its moments."""
    return line[curve][line[moments].index(moment)]


def peak(curve: Sequence[float], pick: Callable = np.argmax) -> int:
    """Where a curve is greatest."""
    return int(pick(np.asarray(curve)))


def show(text: str) -> None:
    """Writes a text below the comment of a page that calls it."""
    import cog  # of the running cogapp alone

    cog.out(f"\n{text}\n\n")
