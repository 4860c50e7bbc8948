"""Imports go one way: data, models, objectives, training, analysis, report, experiments."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FORBIDDEN = {
    "types": ["*"],
    "data": ["models", "objectives", "decoding", "metrics", "training", "analysis", "report"],
    "models": ["data", "objectives", "decoding", "metrics", "training", "analysis", "report"],
    "rows": ["data", "models", "objectives", "training", "analysis", "report"],
    "objectives": ["data", "models", "decoding", "metrics", "training", "analysis", "report"],
    "decoding": ["data", "models", "metrics", "training", "analysis", "report"],
    "metrics": ["data", "models", "training", "analysis", "report"],
    "training": ["models", "decoding", "compile", "analysis", "report"],
    "compile": ["models", "decoding", "analysis", "report"],
    "analysis": ["training", "report", "checkpoints"],
    "report": ["*"],
}


def _imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "dirasym").rglob("*.py")), ids=str)
def test_imports_go_one_way(path):
    part = path.relative_to(ROOT / "dirasym").parts[0].removesuffix(".py")
    for module in _imported_modules(path):
        if module.startswith("dirasym."):
            target = module.split(".")[1]
            if target not in ("types", part):
                assert target not in FORBIDDEN.get(part, []), f"{path} imports {module}"
                assert FORBIDDEN.get(part) != ["*"], f"{path} imports {module}"
        assert not module.startswith("experiments"), f"{path} imports {module}"
        assert not (part == "report" and module.split(".")[0] in ("jax", "flax")), path


def test_absl_flags_live_in_experiments_alone():
    for path in (ROOT / "dirasym").rglob("*.py"):
        assert "absl.flags" not in set(_imported_modules(path)), path
