"""The table of likelihoods in docs/models.md."""

import numpy as np

from experiments.benchmarks.likelihood import TEXTS
from experiments.tables.common import column, lines, table

NAMES = {
    "monte_carlo": "`monte_carlo`: independent levels, as LLaDA's 128 draws",
    "random_order": "`random_order`: the chain rule in random orders",
    "stratified": "`stratified`: one level in each of as many equal cells",
}


def draws() -> int:
    """Of each text and kind."""
    (found,) = set(column(lines("likelihood/results"), "repeats"))
    return found


def known_to() -> float:
    """Standard error, in percent, of a variance of normal draws that is a mean over the texts."""
    return 100 * float(np.sqrt(2 / (draws() - 1) / TEXTS))


def variance(kind: str) -> float:
    """Of a text over draws, in squared nats, at the passes of that kind."""
    (line,) = lines("likelihood/results", kind=kind)
    return line["variance"]


def relative(kind: str) -> float:
    """The variance at equal passes: times its passes, as a share of independent levels'."""
    (line,), (first,) = (lines("likelihood/results", kind=x) for x in (kind, "monte_carlo"))
    return line["variance"] * line["passes"] / (first["variance"] * first["passes"])


def variance_table() -> str:
    """A row a kind."""
    rows = []
    for kind, name in NAMES.items():
        (line,) = lines("likelihood/results", kind=kind)
        cells = f"{line['passes']:.0f}", f"{variance(kind):.2f}", f"{relative(kind):.2f}"
        rows.append([name, *cells, f"{line['reported']:.2f}"])
    header = ["kind", "passes", "variance of a text, nats²", "relative, at equal passes"]
    return table([*header, "reported error²"], rows)
