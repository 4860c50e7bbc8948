"""Every column of a table of results has its entry in docs/glossary.md, or on its page."""

import itertools
import pathlib
import re

import pytest

from experiments.tables import common

ROOT = pathlib.Path(__file__).parent.parent
GENERATED = re.compile(r"\[\[\[cog.*?\]\]\] -->(.*?)<!-- \[\[\[end\]\]\]", re.DOTALL)
ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)


def cells(row):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)]


def headers(text):
    """The header of each table."""
    lines = text.splitlines()
    for above, below in itertools.pairwise(lines):
        if below.startswith("| ---"):
            yield from cells(above)[1:-1]


def known():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    terms = set()
    for row in ROW.findall(text):
        for name in [cells(row)[0], *cells(row)[0].split(",")]:
            terms.add(plain(name))
    return terms


def plain(name):
    return re.sub(r"[`*%]|\(see below\)|\(nats\)", "", name).strip().lower()


def unexplained(header, terms):
    """The parts of a column's name that have no entry."""
    if not header or plain(header) in terms:
        return []
    parts = [plain(part) for part in re.split(SEPARATORS, header)]
    return [x for x in parts if x and x not in terms and not re.fullmatch(NUMBER, x)]


SEPARATORS = r": |, | / | = | at (?=t |the )| (?=[FR]\b)|(?<=lowest) "
NUMBER = r"(step )?[\d.e⁴-]+( \([\d,]+\))?"


def pages():
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        is_report = path.parent.parent == common.RESULTS or path.name == "benchmarks_h100.md"
        tables = text if is_report else "\n\n".join(GENERATED.findall(text))
        here = {plain(name) for name in re.findall(r"\*+([^*\n]+?)\*+(?::| is\b)", text)}
        if any(headers(tables)):
            yield pytest.param(tables, here, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize(("tables", "here"), list(pages()))
def test_every_column_is_explained(tables, here):
    """In the glossary, or on its page as *name*: or **Name** is."""
    terms = known() | here
    missing = {name: found for name in headers(tables) if (found := unexplained(name, terms))}
    assert not missing


def test_a_column_that_nobody_explained_is_seen():
    terms = known()
    assert unexplained("reverse: zeal", terms) == ["zeal"]
    assert unexplained("its lowest", terms) == unexplained("step 3000", terms) == []
