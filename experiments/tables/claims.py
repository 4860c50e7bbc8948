"""The pages of docs/claims: what a paper claims, what we measured, and the verdict.

A claim is a table of docs/claims/PAPER.toml:

    place    where the paper says it
    says     what it says, in our words
    ours     our number, with {expressions} over the modules of `experiments.tables`
    holds    the verdict's rule, an expression that must be true ("" for what has not been run)
    verdict  one of `VERDICTS`
    why      for `MUST_SAY_WHY`, and where more is to be said
    command  what makes the number
    file     in docs/results
    test     PATH::NAME of what holds the number's oracle; all that was run has one
"""

import collections
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dirasym import intervals
from experiments.tables import choice, common, dynamics, facts, theory, toy, world_a

CLAIMS = common.ROOT / "docs" / "claims"
VERDICTS = (
    "reproduced",
    "reproduced in part",
    "reproduced at another size",
    "measured at another size",  # of a question
    "contradicted",
    "not run",
)
MUST_SAY_WHY = "reproduced in part", "contradicted", "not run"
FIELDS = "place", "says", "ours", "holds", "verdict", "why", "command", "file", "test"
WORDS: dict[str, Any] = {
    **{module.__name__.rpartition(".")[2]: module for module in (choice, common, dynamics)},
    **{module.__name__.rpartition(".")[2]: module for module in (facts, theory, toy, world_a)},
    "c": common,
    "np": np,
    "interval": intervals.student_interval,
}
Claim = Mapping[str, str]


def read(paper: str) -> list[Claim]:
    """The claims of a paper, checked: fields, verdicts, files, tests, and that each rule holds."""
    path = CLAIMS / f"{paper}.toml"
    claims = tomllib.loads(path.read_text(encoding="utf-8"))["claim"]
    for claim in claims:
        check(claim)
    return [dict.fromkeys(FIELDS, "") | claim for claim in claims]


def check(claim: Claim) -> None:
    """Raises ValueError, naming the claim, where one is not as it must be."""
    name = f"{claim.get('place')}: {claim.get('says')}"
    if unknown := set(claim) - set(FIELDS):
        raise ValueError(f"{name} has {unknown}")
    if claim["verdict"] not in VERDICTS:
        raise ValueError(f"{name} has the verdict {claim['verdict']!r}")
    is_run = claim["verdict"] != "not run"
    if is_run and not claim.get("test"):
        raise ValueError(f"{name} has no test")
    if claim["verdict"] in MUST_SAY_WHY and not claim.get("why"):
        raise ValueError(f"{name} does not say why")
    if claim.get("holds") and not evaluate(claim["holds"]):
        raise ValueError(f"{name} is no longer {claim['verdict']}: {claim['holds']} is false")
    if claim.get("file") and not (common.RESULTS / claim["file"]).exists():
        raise ValueError(f"{name}: no {claim['file']} in docs/results")
    if claim.get("test"):
        file, _, function = claim["test"].partition("::")
        path = common.ROOT / file
        if not path.exists() or not re.search(rf"^def {function}\(", path.read_text(), re.M):
            raise ValueError(f"{name}: no test {claim['test']}")


def evaluate(expression: str) -> Any:
    """An expression of a claim."""
    return eval(expression, dict(WORDS))


def filled(text: str) -> str:
    """A text with its {expressions} in place."""
    return re.sub(r"\{([^{}]+)\}", lambda match: str(evaluate(match[1])), text)


def page(paper: str) -> str:
    """The table of a paper."""
    rows = []
    for claim in read(paper):
        verdict = f"**{claim['verdict']}**"
        if claim["why"]:
            verdict += f": {filled(claim['why'])}"
        links = []
        if claim["file"]:
            links.append(f"[{claim['file']}](../results/{claim['file']})")
        if claim["test"]:
            file, _, function = claim["test"].partition("::")
            links.append(f"[`{function}`](../../{file})")
        command = f"`{claim['command']}`" if claim["command"] else ""
        ours = filled(claim["ours"])
        rows.append([claim["place"], claim["says"], ours, verdict, command, ", ".join(links)])
    cells = [[cell.strip().replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    header = "place, the paper says, ours, verdict, command, file and test"
    return common.table(header, cells)


def papers() -> list[str]:
    """All that have a file of claims."""
    return sorted(path.stem for path in pathlib.Path(CLAIMS).glob("*.toml"))


def summary_table() -> str:
    """How many claims of each paper have which verdict."""
    rows = []
    for paper in papers():
        count = collections.Counter(claim["verdict"] for claim in read(paper))
        rows.append([f"[{paper}]({paper}.md)", *(count[verdict] for verdict in VERDICTS)])
    return common.table(["arXiv", *VERDICTS], rows)
