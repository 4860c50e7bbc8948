"""Lists the experiments, what each asks and costs: `python -m experiments`."""

import ast
import pathlib
import re
import textwrap

HERE = pathlib.Path(__file__).parent
BESIDE = {"__init__", "__main__", "flags", "work"}


def experiments() -> dict[str, tuple[str, str]]:
    """Question and cost of all pages, by name, as their docstrings say them."""
    paths = [*HERE.glob("*.py"), *HERE.glob("benchmarks/*.py"), *HERE.glob("tools/*.py")]
    found = {}
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        source = path.read_text(encoding="utf-8")
        if path.stem not in BESIDE and '__name__ == "__main__"' in source:
            name = ".".join(path.relative_to(HERE).with_suffix("").parts)
            text = ast.get_docstring(ast.parse(source)) or ""
            cost = re.search(r"^Cost +(.*(?:\n +.*)*)", text, re.MULTILINE)
            found[name] = text.splitlines()[0], " ".join(cost[1].split()) if cost else ""
    return found


if __name__ == "__main__":
    found = experiments()
    width = max(map(len, found))
    print("python -m experiments.NAME --help\n")
    for name, (question, cost) in found.items():
        print(f"  {name:{width}}  {question}")
        print(textwrap.indent(textwrap.fill(cost, 96 - width), " " * (width + 4)))
