"""Tables of docs/theory.md."""

from collections.abc import Mapping

import numpy as np

from experiments.tables.common import Line, column, curves, each, groups, lines, mean, number, table

ALIGNMENT = ("full", "full_L40")


def known(what: str, **values) -> Line:
    """A line of docs/results/theory."""
    (line,) = lines("theory/results", what=what, **values)
    return line


def power(value: float) -> str:
    """`2.4e-13`."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def traces() -> str:
    """The smallest (1/D) Tr R(Δ), a width each."""
    found = {line["width"]: line["smallest"] for line in lines("theory/results", what="trace")}
    return ", ".join(f"{number(found[width], 3)} at D = {width}" for width in sorted(found))


def left_out(block: str) -> str:
    """What the score of [M] on itself adds to a block, in percent of the theorem's value."""
    line = known("left_out", block=block)
    low, middle, high = (100 * line[k] for k in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle:.0f} % (quartiles {low:.0f} and {high:.0f})"


def table_3_agrees() -> tuple[int, int]:
    """Cells of Table 3 that come out, and all."""
    of = lines("rope_bounds/results", what="table_3")
    return sum(line["printed"] == line["paper"] for line in of), len(of)


def table_3_otherwise() -> tuple[int, int]:
    """Cells that would agree by cutting to 3 decimals alone, and by rounding alone."""
    of = lines("rope_bounds/results", what="table_3")
    cut = sum(np.floor(1000 * x["bound"]) == round(1000 * x["paper"]) for x in of)
    return int(cut), sum(round(x["bound"], 3) == x["paper"] for x in of)


def minimal(model: str, key: str) -> list[float]:
    """A measure of two letters, a seed each."""
    return column(lines("gradient_alignment/minimal", model=model), key)


def full(length: int) -> list[Line]:
    """The toy task's MDM of one layer at one length."""
    names = [f"gradient_alignment/{name}" for name in ALIGNMENT]
    return lines(*names, length=length)


WITH_CURVES = 10, 20, 40  # lengths


def full_curves(length: int) -> list[Mapping[str, np.ndarray]]:
    """The curves of the toy task's MDM of one layer at one of `WITH_CURVES`, a seed each."""
    name = "gradient_alignment/curves/part=full,model=mdm,length={},layers=1,seed={}"
    return [curves(name.format(length, seed)) for seed in range(3)]


def lowest_correlations(length: int) -> list[float]:
    """The lowest correlation of scores over heads and total distances, a seed each."""
    return [float(np.min(of["correlation_mean"])) for of in full_curves(length)]


def last_cosines(length: int) -> list[float]:
    """The median cosine at the end of the runs with curves, a seed each."""
    return [float(np.median(of["cosine/total"][-1])) for of in full_curves(length)]


def weights(side: str, moment: int) -> list[float]:
    """[M]'s weight on the uppercase at one evaluation, all lengths with curves and seeds."""
    of = [x for length in WITH_CURVES for x in full_curves(length)]
    return [float(np.mean(x[f"weight_{side}_all"][moment])) for x in of]


def length_table() -> str:
    """Alignment and attention by length."""
    rows = []
    for length in (10, 20, 30, 40):
        of = full(length)
        cosine, scores = column(of, "median_cosine_last"), column(of, "score_correlation_mean")
        p = [column(of, f"final_p_{side}") for side in ("forward", "reverse")]
        rows.append([length, mean(cosine), each(cosine, 2), mean(scores), *map(mean, p)])
    header = ["L", "median cosine at the end", "each seed", "Corr(S_fwd, S_rev)"]
    return table([*header, "P(true): forward", "reverse"], rows)


def depth_table() -> str:
    """Alignment by depth at L = 10, each seed."""
    rows = []
    for (layers,), of in groups(lines("gradient_alignment/depth"), "layers").items():
        keys = "median_cosine_last", "cosine_of_means_min", "score_correlation_mean"
        cells = [each(column(of, key), 2) for key in keys]
        cells += [each(column(of, f"final_p_{side}"), 2) for side in ("forward", "reverse")]
        rows.append([layers, *cells])
    header = "layers, median cosine at the end, lowest cosine of mean gradients, score correlation"
    return table(header + ", P(true): forward, reverse", rows)


LEVELS = 0.25, 0.5, 0.75


def at_level(layers: int, seed: int, level: float) -> float | None:
    """The median cosine where P(true) forward first reaches a level; None if it never does.

    Between the two evaluations around that moment, in a straight line.
    """
    name = f"part=full,model=mdm,length=10,layers={layers},seed={seed}"
    of = curves(f"gradient_alignment/depth_curves/{name}")
    (there,) = np.nonzero(of["p_forward"] >= level)
    if not there.size:
        return None
    cosine_T = np.median(of["cosine/total"], axis=1)
    last = there[0]
    if last == 0:
        return float(cosine_T[0])
    around = slice(last - 1, last + 1)
    return float(np.interp(level, of["p_forward"][around], cosine_T[around]))


def equal_depth_table() -> str:
    """Alignment by depth at equal forward probability, each seed."""
    rows = []
    for (layers,), of in groups(lines("gradient_alignment/depth"), "layers").items():
        cells = []
        for level in LEVELS:
            found = [at_level(layers, seed, level) for seed in column(of, "seed")]
            cells.append(", ".join("–" if x is None else number(x, 2) for x in found))
        rows.append([layers, *cells])
    return table(["layers", *(f"median cosine at P(true) = {x:g}" for x in LEVELS)], rows)


def slopes(*names: str) -> list[float]:
    """Slopes of the first-order error, of all masked runs."""
    of = lines(*(f"gradient_alignment/{name}" for name in names), model="mdm")
    return column(of, "first_order_slope")


def lowest_cosine() -> float:
    """Of the minimal setting: the median over letters at its lowest, of any seed."""
    return float(np.min(minimal("mdm", "median_cosine_min")))


def b8_table() -> str:
    """Proposition B.8 by width: draws that fail, and the bound on their share."""
    rows = []
    for line in sorted(lines("theory/results", what="proposition_b8"), key=lambda x: x["width"]):
        failed, draws = line["failed"], line["draws"]
        bound = "vacuous" if line["bound"] <= 0 else f"{1 - line['bound']:.2f}"
        rows.append([line["width"], draws, failed, f"{100 * failed / draws:.2f}", bound])
    return table(["D", "draws", "⟨Pa, Pb⟩ ≤ 0", "in %", "the bound"], rows)
