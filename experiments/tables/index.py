"""The table of docs/results/README.md, from the `about.json` of each folder."""

import json
from collections.abc import Mapping
from typing import Any

from experiments.tables.common import RESULTS, table

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
        rows.append([f"[{name}]({name})", commands, when, device(about), about.get("notes", "")])
    return table("folder, files and commands, recorded, device, notes", rows)
