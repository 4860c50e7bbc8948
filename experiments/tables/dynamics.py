"""Tables of docs/training_dynamics.md."""

import math

import numpy as np

from experiments.reports.relations_study import depth_and_told
from experiments.tables.common import (
    Line,
    column,
    each,
    groups,
    lines,
    mean,
    means,
    number,
    span,
    table,
)

TASKS = "reversal", "chain", "chain_related", "icl"
ONE_LAYER = {  # cases of the one-layer model
    "one_way": "every pair A → B alone",
    "others_both_ways": "B ← A too, for the other pairs",
    "attends_to_itself": "the same, and the query attends to itself",
    "symmetric": "weights held symmetric",
    "both_ways": "every pair in both directions",
    "symmetric_loss": "every pair A → B alone, by a loss symmetric in A and B",
}
REMARKS = {
    "one_way": "exactly 1/M",
    "others_both_ways": "exactly 1/M",
    "attends_to_itself": "the row of ← learns the other pairs' answers; Z moves",
    "symmetric": "the reverse is learned with the forward",
    "both_ways": "each row learns its own",
    "symmetric_loss": "of the weight from B to A, which nothing trains; see below",
}
EXACT = "one_way", "others_both_ways", "chain", "both_ways"  # cases that the closed form covers
STUDY = {  # columns of a table of the study
    "training NLL": "train_nll",
    "withheld NLL": "validation_nll",
    "trained gap": "gap_given",
    "withheld gap": "gap_withheld",
    "asymmetry, trained": "asymmetry_trained",
    "asymmetry, withheld": "asymmetry_withheld",
}


def one_layer(case: str) -> Line:
    """The one-layer model's line of a case."""
    files = "training_dynamics/quick", "training_dynamics/breaks"
    (line,) = lines(*files, part="one_layer", case=case)
    return line


def break_table() -> str:
    """What breaks the curse in the one-layer model."""
    rows = [
        [name, *(f"{one_layer(case)[key]:.4f}" for key in ("forward", "reverse")), REMARKS[case]]
        for case, name in ONE_LAYER.items()
    ]
    return table("what trains, p(B\\|A) at t = 10⁴, p(A\\|B), ", rows)


def worst(key: str) -> str:
    """The flow's largest error against the closed form, in the cases that it covers."""
    return f"{max(one_layer(case)[key] for case in EXACT):.0e}".replace("e-0", "e-")


def power(value: float) -> str:
    """`3e-5`."""
    return f"{value:.0e}".replace("e-0", "e-")


def bilinear(width: int) -> list[Line]:
    """Draws of the embeddings of one width."""
    return lines("training_dynamics/quick", part="bilinear", width=width)


def widths() -> list[int]:
    """All, in order."""
    return sorted({x["width"] for x in lines("training_dynamics/quick", part="bilinear")})


def bilinear_table() -> str:
    """ε, reverse loss and asymmetry by width."""
    rows = []
    for width in widths():
        of = bilinear(width)
        ratio = [line["time"] / line["predicted_time"] for line in of]
        rows.append(
            [
                width,
                mean(column(of, "epsilon"), 4),
                *means(of, ("reverse_loss", "reverse_deviation", "asymmetry")),
                mean(ratio),
            ]
        )
    header = "width d, ε, L_rev at the end, max \\|L_rev/ln M − 1\\|, asymmetry"
    return table(header + ", time to 1e-3 / predicted", rows)


def width_within(share: float) -> int:
    """The least width from which on every draw's reverse loss stays within `share` of ln M."""
    inside = [w for w in widths() if max(column(bilinear(w), "reverse_deviation")) <= share]
    assert inside == widths()[-len(inside) :], "not from a width on"
    return inside[0]


def relations(task: str, **values) -> list[Line]:
    """Result lines of a task."""
    return lines(f"relations/{task}_quick", **values)


def nll_table() -> str:
    """Training and withheld NLL of all tasks."""
    rows = []
    for task in TASKS:
        for (num,), of in groups(relations(task), "num_train").items():
            keys = "train_nll", "validation_nll", "lowest_validation_nll"
            rows.append([task, num or "", *means(of, keys, 4), number(of[0]["uniform_nll"], 3)])
    header = "task, training triples, training NLL, withheld NLL, its lowest, uniform guess"
    return table(header, rows)


def gap_table() -> str:
    """Logit of the right answer above the others', by where the pair was trained."""
    reversal, chain, icl = (relations(task) for task in ("reversal", "chain", "icl"))
    rows = [
        ["reversal", "A → B, both directions train", *means(reversal, ["gap_a_to_b"])],
        ["", "B ← A, both directions train", *means(reversal, ["gap_b_to_a"])],
        ["", "the direction given of a pair", *means(reversal, ["gap_given"])],
        ["", "its withheld direction", *means(reversal, ["gap_withheld"])],
        ["chain", "A → B", *means(chain, ["gap_a_to_b"])],
        ["", "B → C", *means(chain, ["gap_b_to_c"])],
        ["", "A ⇒ C, trained", *means(chain, ["gap_a_to_c"])],
        ["", "A ⇒ C, withheld", *means(chain, ["gap_withheld"])],
        ["in context", "trained sentences", *means(icl, ["gap_given"])],
        ["", "withheld sentences", *means(icl, ["gap_withheld"])],
    ]
    return table("task, pairs, gap (nats)", rows)


def study(factor: str) -> dict[tuple, list[Line]]:
    """A factor's lines by its values."""
    files = ("results", "l2", "in_context", "in_context_more")
    of = [line for file in files for line in lines(f"relations_study/{file}")]
    return groups([line for line in of if line["factor"] == factor], "value")


def study_table(factor: str) -> str:
    """A row a value of the factor."""
    rows = [[value, *means(of, STUDY.values())] for (value,), of in study(factor).items()]
    return table([factor.replace("_", " "), *STUDY], rows)


SENTENCES = {"in_context": 700, "in_context_more": 7000}  # that train


def in_context(told: int, key: str = "lowest_validation_nll", **where) -> list[float]:
    """Of the runs with so many facts in the prompt, a value a run; `where`: sentences, layers."""
    found = []
    for factor, sentences in SENTENCES.items():
        for (value,), of in study(factor).items():
            layers, of_told = depth_and_told(value)
            known = {"sentences": sentences, "layers": layers}
            if of_told == told and where.items() <= known.items():
                found += column(of, key)
    return found


def in_context_table() -> str:
    """Training and withheld NLL by facts told; what a guess among those told costs."""
    rows = []
    for factor, sentences in SENTENCES.items():
        for (value,), of in study(factor).items():
            layers, told = depth_and_told(value)
            cells = means(of, ("train_nll", "validation_nll", "lowest_validation_nll"))
            rows.append([sentences, layers, told, *cells, number(math.log(told))])
    header = "training sentences, layers, facts told, training NLL, withheld NLL, its lowest"
    return table(f"{header}, a guess among the told", rows)


FRESH_CELLS = (
    *(f"{m} told" for m in (1, 2, 4, 8)),
    "4 told, 2 asked",
    *(f"{n} names" for n in (12, 200, 800)),
)


def fresh(value: str) -> list[Line]:
    """Runs of a cell of in_context_fresh: `2 told`, `12 names`."""
    return lines("relations_study/in_context_fresh", value=value)


def fresh_mean(value: str, key: str = "accuracy") -> float:
    """Over a cell's seeds."""
    return float(np.mean(column(fresh(value), key)))


def fresh_percent(*values: str) -> str:
    """Accuracy of cells in percent, `100, 96, 7`."""
    return each([100 * fresh_mean(value) for value in values], 0)


def fresh_places(value: str) -> list[float]:
    """Accuracy on each place, mean of seeds; the place nearest to the question first."""
    return np.mean(column(fresh(value), "accuracy_by_place"), axis=0)[::-1].tolist()


def fresh_table() -> str:
    """A row a cell: what its prompts are like, NLL, accuracy and when it answered."""
    rows = []
    for of in groups(lines("relations_study/in_context_fresh"), "value").values():
        told, names, asked = (of[0][key] for key in ("num_facts", "num_names", "num_asked"))
        cells = means(of, ("train_nll", "validation_nll", "accuracy"))
        steps = [x for x in column(of, "steps_to_answer") if x is not None]
        when = f"{len(steps)} of {len(of)}" + (f", from {span(steps, 0)}" if steps else "")
        rows.append([told, asked or told, names, *cells, number(math.log(told)), when])
    header = "facts told, nearest asked in training, names A, training NLL, withheld NLL"
    header += ", withheld accuracy, a guess among the told, seeds that answer"
    return table(header, rows)


def seconds(task: str) -> str:
    """Wall time of a run."""
    return span(column(relations(task), "run_wall_time_sec"), 0)
