"""Lists the experiments and what each asks: `python -m experiments`."""

import ast
import os
import pathlib
import re
import textwrap

HERE = pathlib.Path(__file__).parent
IS_PAGE = re.compile(r"^    (flags|command)\.main\(", re.MULTILINE)


def first_sentences(folder: str) -> dict[str, str]:
    """What each page of a folder of experiments/ asks, by name."""
    found = {}
    for path in sorted((HERE / folder).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if IS_PAGE.search(source):
            name = ".".join(path.relative_to(HERE).with_suffix("").parts)
            line = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
            found[name] = re.split(r"(?<=[.?]) ", line)[0]
    return found


def listed() -> str:
    """A line of at most 100 columns a page; experiments, benchmarks and tools apart."""
    lines = ["Flags and costs: python -m experiments.NAME --help"]
    for folder in ("", "benchmarks", "tools"):
        found = first_sentences(folder)
        width = max(map(len, found)) + 2
        lines.append("")
        for name, says in found.items():
            lines.append(f"  {name:{width}}{textwrap.shorten(says, 98 - width, placeholder=' …')}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(listed(), flush=True)
    except BrokenPipeError:
        os._exit(0)  # its reader has seen enough
