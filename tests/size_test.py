"""What a reader must hold in mind at once stays small: functions, classes, files, experiments."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MAX_FUNCTION, MAX_CLASS, MAX_FILE, MAX_PAGE = 70, 200, 450, 200
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("dirasym", "experiments")
    for path in (ROOT / package).rglob("*.py")
)
# Lines of `experiments/` to read before one experiment is understood.
TO_READ = {
    "toy_reversal": 550,
    "world_a": 850,
    "facts": 750,
    "relations": 550,
    "gradient_alignment": 700,
    "causes": 1100,
}


def _length(node):
    return node.end_lineno - min([node.lineno, *(d.lineno for d in node.decorator_list)]) + 1


def _definitions(node, prefix=""):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + child.name, child
            yield from _definitions(child, f"{prefix}{child.name}.")
        else:
            yield from _definitions(child, prefix)


def _is_literal(node):
    if isinstance(node, ast.Dict | ast.List | ast.Tuple | ast.Set):
        return all(map(_is_literal, filter(None, ast.iter_child_nodes(node))))
    return isinstance(node, ast.Constant | ast.expr_context | ast.Name | ast.Attribute)


def _table_lines(tree):
    """Lines of tables of data: literal dicts, lists, tuples and sets that a module assigns."""
    return sum(
        node.end_lineno - node.lineno + 1
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Dict | ast.List | ast.Tuple | ast.Set)
        and _is_literal(node.value)
    )


def _too_long(source, name):
    tree = ast.parse(source)
    if len(source.splitlines()) - _table_lines(tree) > MAX_FILE:
        yield name
    for path, node in _definitions(tree):
        limit = MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION
        if _length(node) > limit:
            yield f"{name}:{path}"


def test_lengths_are_counted_to_the_line():
    body = "    x = 1\n"
    assert not list(_too_long("def f():\n" + body * 69, "m"))
    assert list(_too_long("@cache\ndef f():\n" + body * 69, "m")) == ["m:f"]
    inner = "class A:\n    def f(self):\n" + "        x = 1\n" * 70
    assert list(_too_long(inner, "m")) == ["m:A.f"]
    assert list(_too_long("class A:\n" + body * 200, "m")) == ["m:A"]
    assert list(_too_long("x = 1\n" * 451, "m")) == ["m"]
    assert not list(_too_long("x = 1\n" * 449 + "T = {\n    'a': [1, 2],\n}\n", "m"))


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_too_long(file):
    assert not list(_too_long((ROOT / file).read_text(encoding="utf-8"), file))


def _imported(path):
    """The files of `experiments/` that one imports itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            if name.startswith("experiments.") and file.exists():
                yield file


def _files_to_read(page):
    seen, left = set(), [ROOT / "experiments" / f"{page}.py"]
    while left:
        path = left.pop()
        if path not in seen:
            seen.add(path)
            left += _imported(path)
    return seen


@pytest.mark.parametrize("page", TO_READ)
def test_an_experiment_is_soon_read(page):
    counts = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in _files_to_read(page)
    }
    assert counts[f"experiments/{page}.py"] <= MAX_PAGE
    assert sum(counts.values()) <= TO_READ[page], counts
