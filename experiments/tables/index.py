"""What is on file, by the `about.json` of each folder, and what each experiment costs."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from experiments.__main__ import first_sentences
from experiments.tables.common import RESULTS, ROOT, table

NEEDED = "commands", "commit", "recorded_in", "device", "versions", "sum_of_run_wall_time_sec"


def folders() -> dict[str, Mapping[str, Any]]:
    """What each folder says of itself."""
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RESULTS.glob("*/about.json"))
    }


def device(about: Mapping[str, Any]) -> str:
    """One device, or which files are of which."""
    said = about["device"]
    if isinstance(said, str):
        return said
    return "; ".join(f"{files}: {name}" for files, name in said.items())


def index_table() -> str:
    """A row a folder."""
    rows, escaped = [], r"\*"  # a name may stand for several: *_at_once
    for name, about in folders().items():
        said = about["commands"].items()
        commands = "<br>".join(f"*{k.replace('*', escaped)}*: `{v}`" for k, v in said)
        dates = sorted(x["date"].partition(" ")[0] for x in about["recorded_in"].values())
        when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
        took = "<br>".join(f"*{k}*: {v}" for k, v in about["sum_of_run_wall_time_sec"].items())
        notes = about.get("notes", "")
        rows.append([f"[{name}]({name})", commands, when, device(about), took, notes])
    return table("folder, files and commands, recorded, device, seconds of all runs, notes", rows)


def cost(docstring: str) -> str:
    r"""The paragraph `Cost` of an experiment's first lines, on one line.

    Examples:
      >>> cost("Why?\n\nCost      quick: a\n          minute.\nExpected  Yes.")
      'quick: a minute.'
    """
    (found,) = re.findall(r"^Cost +(.*(?:\n +.*)*)", docstring, re.MULTILINE)
    return " ".join(found.split())


def costs_table() -> str:
    """A row an experiment, in the words of its own file."""
    rows = []
    for name in first_sentences(""):
        source = (ROOT / "experiments" / f"{name}.py").read_text(encoding="utf-8")
        rows.append([f"`{name}`", cost(ast.get_docstring(ast.parse(source)) or "")])
    return table("experiment, what a preset costs", rows)
