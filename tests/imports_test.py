"""Imports go one way, in the order in which data flows."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ORDER = (  # each imports those before it alone
    *("types", "usage", "files", "readers", "processes", "leaves", "results", "keys", "intervals"),
    "effects",
    "precision",
    "digests",
    *(
        "data",
        "rows",
        "models",
        "objectives",
        "block_diffusion",
        "decoding",
        "metrics",
        "likelihood",
    ),
    *("training", "sharding", "compile", "devices", "seeds", "checkpoints"),
    *("histories", "finetuning", "stopping", "run_arguments", "progress", "workdir", "pieces"),
    *("recipes", "plans", "runs", "analysis"),
    "pretraining",
    *(
        "world_a",
        "last_word",
        "report",
        "reading_figure",
        "reading",
        "networks",
        "measuring",
        "collecting",
    ),
)
FORBIDDEN = {  # though they come before it
    "models": ["data"],
    # It trains nothing.
    "analysis": [
        *("training", "compile", "checkpoints", "workdir", "pieces", "recipes", "plans", "runs")
    ],
    "report": [part for part in ORDER if part not in ("files", "intervals")],
}


def _imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


MODULES = sorted(set((ROOT / "dirasym").rglob("*.py")) - {ROOT / "dirasym/__init__.py"})


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path):
    part = path.relative_to(ROOT / "dirasym").parts[0].removesuffix(".py")
    for module in _imported_modules(path):
        if module.startswith("dirasym."):
            target = module.split(".")[1]
            if target != part and target in ORDER:  # else a name of the package itself
                assert ORDER.index(target) < ORDER.index(part), f"{path} imports {module}"
                assert target not in FORBIDDEN.get(part, []), f"{path} imports {module}"
        assert not module.startswith("experiments"), f"{path} imports {module}"
        assert not (part == "report" and module.split(".")[0] in ("jax", "flax")), path


def _public_classes(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name


def test_no_class_of_the_experiments_has_the_name_of_the_librarys():
    assert not {*_public_classes("dirasym")} & {*_public_classes("experiments")}


def test_absl_flags_live_in_experiments_alone():
    for path in (ROOT / "dirasym").rglob("*.py"):
        assert "absl.flags" not in set(_imported_modules(path)), path
