"""The tutorials run as they stand, and print what they show."""

import pathlib
import re

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
PRINTED = {"theorem_b1": 3, "world_a_units": 2}  # notebooks of arithmetic alone, and their digits


def _read(path):
    return nbformat.read(path, nbformat.NO_CONVERT)


def _printed(book):
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    return "".join(o.text for cell in cells for o in cell.outputs if o.get("name") == "stdout")


def _numbers(text, digits):
    found = re.findall(r"-?\d+\.\d+(?:e[-+]\d+)?", text)
    return [float(f"{float(x):.{digits}g}") for x in found]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_says_what_it_shows(path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    for name in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS"):  # the suite's own
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shown, book = _read(path), _read(path)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    where = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3", resources=where).execute()
    if path.stem in PRINTED:
        digits = PRINTED[path.stem]
        want = _numbers(_printed(shown), digits)
        assert want and _numbers(_printed(book), digits) == pytest.approx(want, rel=0.02)


def test_tutorials_are_on_file_as_they_were_run():
    """Every cell of code has run, without an error, and pictures are small."""
    assert len(NOTEBOOKS) >= 5
    for path in NOTEBOOKS:
        code = [cell for cell in _read(path).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), path
        kinds = {output.output_type for cell in code for output in cell.outputs}
        assert kinds <= {"stream", "execute_result", "display_data"}, path
        assert path.stat().st_size < 300_000, path


def test_lines_of_tutorials_fit():
    """A hundred characters, in prose as in code."""
    for path in NOTEBOOKS:
        lines = "\n".join(cell.source for cell in _read(path).cells).splitlines()
        assert not [line for line in lines if len(line) > 100], path


def test_every_tutorial_is_in_the_sites_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert {f"tutorials/{path.stem}.md" for path in NOTEBOOKS} == set(
        re.findall(r"tutorials/\w+\.md", menu)
    )
