"""What counts as a fault, and how those that change nothing are told apart from those unseen."""

import ast

import mutants
import pytest


def _faults(source):
    found = []
    for number, kind, which in mutants.sites(source):
        _, _, before, after = mutants.mutate(source, number, which)
        found.append((kind, before, after))
    return found


@pytest.mark.parametrize("entry", mutants.EQUIVALENT, ids=lambda entry: ":".join(entry[:2]))
def test_what_changes_nothing_is_still_there_and_has_a_reason(entry):
    """An entry whose line was written anew is out of date."""
    assert mutants.matches(entry) > 0 and entry[4]


def test_a_swap_of_what_is_the_same_is_no_fault():
    assert _faults("f(a, a)") == [] == _faults("min(a, b)") == _faults("max(a, b)")
    assert _faults("f(a, b)") == [("swap", "f(a, b)", "f(b, a)")]


def test_places_on_paper_are_left_alone_and_the_same_words_elsewhere_are_not():
    on_paper = "SMALL = 8.5", "room = [max(n, 6)]", "report.beside(ax, 0.2 * n - 0.05)"
    assert [_faults(source) for source in (*on_paper, "f(fontsize=8)", "ax.grid(False)")] == [
        []
    ] * 5
    for source in ("rows = 2", "left = 2", "f(level=2)", "size: int = 2", "f(2)"):
        assert len(_faults(source)) == 1, source


def test_a_summary_counts_what_changes_nothing_apart(monkeypatch):
    entry = ("a.py", "x = f(1)", "1", "2", "f is constant")
    monkeypatch.setattr(mutants, "EQUIVALENT", [entry])
    base = dict(file="a.py", kind="constant", line=3, text="x = f(1)", before="1", after="2")
    results = [
        base | {"outcome": "survived"},
        base | {"outcome": "survived", "text": "y = g(1)", "line": 4},
        *[base | {"outcome": "killed", "text": "z = 1", "line": 5}] * 3,
    ]
    told = list(mutants.summary(results))
    assert told[1] == "all: 3 of 5 killed (60 %)"
    assert told[2].startswith("of the others 1 change nothing")
    assert told[2].endswith("without them 3 of 4 killed (75 %)")
    assert told[3:6] == ["  a.py:4 constant, survived: 1", "    became 2",
                         "  a.py:3 constant, survived: 1"]  # fmt: skip
    assert told[-1] == "    changes nothing: f is constant"
    (*_, last) = mutants.summary([base | {"outcome": "killed"}])
    assert last.startswith("killed, so it does change something")


def test_each_operator_changes_what_it_says():
    source = "if a < b and not c:\n    x = y[i - 1] / np.sqrt(z[1:].mean(axis=1)) + 0.5"
    kinds = [kind for kind, before, after in _faults(source)]
    assert {"comparison", "condition", "sign", "index", "normalisation", "axis", "constant"} == (
        set(kinds)
    )
    assert all(before != after for _, before, after in _faults(source))
    for number, _, which in mutants.sites(source):
        ast.parse(mutants.mutate(source, number, which)[0])
