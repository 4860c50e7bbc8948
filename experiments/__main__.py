"""Lists the experiments, a line each: `python -m experiments`."""

import ast
import pathlib

HERE = pathlib.Path(__file__).parent
BESIDE = {"__init__", "__main__", "flags", "work"}


def experiments() -> dict[str, str]:
    """Names and questions of all pages, by the first line of their docstrings."""
    paths = [*HERE.glob("*.py"), *HERE.glob("benchmarks/*.py"), *HERE.glob("tools/*.py")]
    found = {}
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        source = path.read_text(encoding="utf-8")
        if path.stem not in BESIDE and '__name__ == "__main__"' in source:
            name = ".".join(path.relative_to(HERE).with_suffix("").parts)
            found[name] = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    return found


if __name__ == "__main__":
    found = experiments()
    width = max(map(len, found))
    print("python -m experiments.NAME --help\n")
    for name, question in found.items():
        print(f"  {name:{width}}  {question}")
