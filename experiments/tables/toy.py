"""Tables of docs/toy_reversal.md."""

import numpy as np

from dirasym import intervals
from experiments.tables.common import (
    Line,
    column,
    curves,
    each,
    lines,
    mean,
    number,
    span,
    table,
)
from experiments.toy_reversal import HEADLINE, PAPER_TABLE_2

LENGTHS = tuple(PAPER_TABLE_2)
DIRECTIONS = "forward", "reverse"
ORDERS = "random", "left_to_right", "right_to_left", "at_once"
INITS = {  # of the study: what they are called, and where the longest run is
    "default": "default (LayerNorm biases 1, uniform embedding)",
    "bias_zero": "biases 0",
    "bias_zero+embed_small": "biases 0, embedding N(0, 0.02²)",
    "bias_zero+embed_unit": "biases 0, embedding N(0, 1) (PyTorch's default)",
    "head_zero": "zero head, biases 1 (RADD's code)",
    "bias_zero+head_zero": "zero head, biases 0",
}
AT_ONCE = tuple(INITS)[:3]  # these start to learn at once
ZERO_HEADS = tuple(INITS)[4:]
LONGER = (  # Table 2's runs of 3000 steps: the first on an H100, the others on CPU
    "toy_reversal/results_h100",
    "table_2_mdm_L40/results",
    "table_2_mdm_L10_seeds/results",
    "table_2_mdm_L20_seeds/results",
    "table_2_mdm_L30_seeds/results",
    "toy_reversal/results_arm_3000",
)
RAW_AT_THE_END = "final_percent_reverse_raw"
PANEL_SEEDS = {"mdm": (0, 1), "arm": (0,)}  # of the runs at L = 20
LEARNED = 50  # percent forward: below it a run is on the plateau


def trained(model: str, length: int) -> list[Line]:
    """Table 2's runs of 1000 steps on CPU."""
    names = "results", "results_L40", "results_arm"
    return lines(*(f"toy_reversal/{name}" for name in names), model=model, length=length)


def table_2() -> str:
    """Step 1000 against the paper."""
    rows = []
    for model, first in (("mdm", 0), ("arm", 2)):
        for length in LENGTHS:
            cells = []
            for side, direction in enumerate(DIRECTIONS):
                values = column(trained(model, length), f"{direction}_percent")
                paper = PAPER_TABLE_2[length][first + side]
                cells += [f"{paper:.2f}", mean(values), each(values)]
            rows.append([length, model.upper(), *cells])
    header = ["L", "model"]
    for direction in DIRECTIONS:
        header += [f"{direction}: paper", "ours", "each seed"]
    return table(header, rows)


def sampling_error(generations: int) -> float:
    """Points of standard error, at most, of a seed's accuracy over 26 letters."""
    return 100 * intervals.proportion_error(0.5, 26 * generations)


def over_steps(first: int) -> list[list[float]]:
    """Reverse accuracy of the default's runs of 3000 steps from a step on, a list a seed."""
    of = lines("toy_study/results_3000_steps")
    return [line["reverse/random/ema"][line["eval_step"].index(first) :] for line in of]


def distances(direction: str, model: str = "mdm") -> list[float]:
    """Our mean minus the paper's, a length each."""
    at = DIRECTIONS.index(direction) + 2 * (model == "arm")
    means = [np.mean(column(trained(model, n), f"{direction}_percent")) for n in LENGTHS]
    return [float(ours - PAPER_TABLE_2[n][at]) for n, ours in zip(LENGTHS, means, strict=True)]


def forward_distance() -> float:
    """The largest |ours − paper| of a forward cell."""
    return max(abs(x) for model in ("mdm", "arm") for x in distances("forward", model))


def reverse_means() -> list[float]:
    """The MDM's reverse cells."""
    return [float(np.mean(column(trained("mdm", n), "reverse_percent"))) for n in LENGTHS]


def reverse_generations() -> int:
    """How often the ARM was asked in reverse: 26 letters, 25 generations each, all runs."""
    return sum(len(trained("arm", n)) for n in LENGTHS) * 26 * 25


def arm_reverse() -> float:
    """The ARM's best reverse accuracy of any run."""
    return max(x for n in LENGTHS for x in column(trained("arm", n), "reverse_percent"))


def raw_means(direction: str) -> list[float]:
    """The MDM's raw weights, a length each."""
    key = f"percent_{direction}_raw"
    return [float(np.mean(column(trained("mdm", n), key))) for n in LENGTHS]


def longer(length: int, key: str, model: str = "mdm") -> list[float]:
    """A measure of the runs of 3000 steps, a seed each."""
    return column(lines(*LONGER, model=model, length=length), key)


def longer_lengths(model: str = "mdm") -> list[int]:
    """The lengths that were trained for 3000 steps."""
    return sorted({line["length"] for line in lines(*LONGER, model=model)})


def parted(level: float = 20) -> tuple[list[float], list[float]]:
    """The MDM's reverse accuracies at step 3000 below `level` percent, and the others."""
    every = [x for n in longer_lengths() for x in longer(n, "final_reverse_percent")]
    return [x for x in every if x < level], [x for x in every if x >= level]


def all_at_1000() -> list[float]:
    """The MDM's reverse accuracies of the same runs at step 1000."""
    return [x for n in longer_lengths() for x in longer(n, "reverse_percent")]


def courses() -> dict[int, list[tuple[list[int], list[float]]]]:
    """(steps, reverse accuracy of the MDM) of each seed by length, from step 500 on.

    Of the H100's runs, whose curves are not on file, at steps 1000 and 3000.
    """
    found: dict[int, list[tuple[list[int], list[float]]]] = {n: [] for n in longer_lengths()}
    for name in LONGER:
        for line in lines(name, model="mdm") if "arm" not in name else ():
            steps, values = [1000, 3000], [line["reverse_percent"], line["final_reverse_percent"]]
            if name.startswith("table_2"):
                run = f"model=mdm,length={line['length']},seed={line['seed']}"
                of = curves(f"{name.partition('/')[0]}/curves/{run}")
                steps, values = (
                    of[key][1:].tolist() for key in ("eval_step", "percent_reverse_ema")
                )
            found[line["length"]].append((steps, values))
    return found


def falls(level: float = 20) -> list[list[float]]:
    """From step 1000 to 3000, the courses on file that end below `level` percent."""
    of = [course for of_length in courses().values() for course in of_length]
    whole = [values[steps.index(1000) :] for steps, values in of if len(steps) > 2]
    return [values for values in whole if values[-1] < level]


def longer_table() -> str:
    """Step 3000 against the paper, and step 1000 of the same runs."""
    rows = []
    for model, first in (("mdm", 0), ("arm", 2)):
        for n in longer_lengths(model):
            paper = PAPER_TABLE_2[n][first : first + 2]
            forward, reverse = (longer(n, f"final_{x}_percent", model) for x in DIRECTIONS)
            at_1000, raw = (longer(n, key, model) for key in ("reverse_percent", RAW_AT_THE_END))
            cells = f"{paper[0]:.2f}", mean(forward, 1), f"{paper[1]:.2f}", mean(reverse, 1)
            more = each(sorted(reverse), 0), mean(at_1000, 1), mean(raw, 1)
            rows.append([n, model.upper(), len(forward), *cells, *more])
    header = "L, model, seeds, forward: paper, step 3000, reverse: paper, step 3000, each seed"
    return table(header + ", step 1000, raw weights: step 3000", rows)


def excess_of_paper(direction: str = "reverse") -> tuple[float, float]:
    """The least and the largest of the MDM's mean minus the paper's at step 3000."""
    at = DIRECTIONS.index(direction)
    ours = {n: np.mean(longer(n, f"final_{direction}_percent")) for n in longer_lengths()}
    apart = [float(x - PAPER_TABLE_2[n][at]) for n, x in ours.items()]
    return min(apart), max(apart)


def reverse_panel(model: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Figure 11 at L = 20: P of the right lowercase, and of the best wrong token, by position.

    At the end, of the weights that Table 2 shows, from the first position that is asked for on.
    """
    of = curves(f"toy_reversal/curves/model={model},length=20,seed={seed}")
    right, wrong = (of[f"panel_{name}_{HEADLINE[model]}"][-1, 1:] for name in ("right", "wrong"))
    return right, wrong


def preferred(model: str) -> list[int]:
    """At how many positions the right lowercase is the likelier, a seed each."""
    both = [reverse_panel(model, seed) for seed in PANEL_SEEDS[model]]
    return [int((right > wrong).sum()) for right, wrong in both]


def right_over_wrong(model: str) -> list[float]:
    """Ratio of the two probabilities, of every position and seed."""
    both = [reverse_panel(model, seed) for seed in PANEL_SEEDS[model]]
    return [float(ratio) for right, wrong in both for ratio in right / wrong]


def study(init: str) -> list[Line]:
    """The longest runs of one initialisation, a seed each."""
    names = "results", "results_seed_2", "results_unit", "results_zero_heads"
    of = lines(*(f"toy_study/{name}" for name in names), init=init)
    most = max(len(line["eval_step"]) for line in of)
    return [line for line in of if len(line["eval_step"]) == most]


def study_table() -> str:
    """The moving average at the end, forward / reverse: initialisation by order."""
    rows = []
    for init, name in INITS.items():
        of, cells = study(init), []
        for order in ORDERS:
            both = [[line[f"{side}/{order}/ema"][-1] for line in of] for side in DIRECTIONS]
            cells.append(" / ".join(number(float(np.mean(values)), 1) for values in both))
        seeds = [
            number(line["reverse/random/ema"][-1], 1) if learns(line) else "plateau" for line in of
        ]
        rows.append([name, of[0]["eval_step"][-1], *cells, ", ".join(seeds)])
    orders = ", ".join(order.replace("_", " ") for order in ORDERS)
    return table(f"initialisation, step, {orders}, seeds: reverse in random order", rows)


def learns(line: Line) -> bool:
    """Whether a run left the plateau."""
    return line["forward/random/ema"][-1] > LEARNED


def leaves_at(line: Line, level: float = 10) -> int:
    """The last evaluation before forward accuracy passes `level` percent."""
    steps = [
        step
        for step, x in zip(line["eval_step"], line["forward/random/ema"], strict=True)
        if step and x > level
    ]
    return steps[0] - (line["eval_step"][1] - line["eval_step"][0])


def learned(inits: tuple[str, ...]) -> list[Line]:
    """The runs of some initialisations that learn."""
    return [line for init in inits for line in study(init) if learns(line)]


def peaks(inits: tuple[str, ...], key: str = "reverse/random/ema") -> list[float]:
    """The highest reverse accuracy after step 0 of each run that learns."""
    return [max(line[key][1:]) for line in learned(inits)]


def ends(inits: tuple[str, ...], key: str = "reverse/random/ema") -> list[float]:
    """The last value of each run that learns."""
    return [line[key][-1] for line in learned(inits)]


def at_peak(inits: tuple[str, ...]) -> tuple[set[int], list[float]]:
    """Where the peaks are, and the forward accuracy there: see `peaks`."""
    moments, forward = set(), []
    for line in learned(inits):
        at = 1 + int(np.argmax(line["reverse/random/ema"][1:]))
        moments.add(line["eval_step"][at])
        forward.append(line["forward/random/ema"][at])
    return moments, forward


def default_longer(key: str, step: int = 3000) -> list[float]:
    """The default initialisation's runs of 3000 steps."""
    of = lines("toy_study/results_3000_steps")
    return [line[key][line["eval_step"].index(step)] for line in of]


def orders_table() -> str:
    """The default at step 3000, by order."""
    cells = [mean_of_two(default_longer(f"reverse/{order}/ema")) for order in ORDERS]
    return table([order.replace("_", " ") for order in ORDERS], [cells])


def mean_of_two(values: list[float]) -> str:
    """The mean and both seeds, of which no interval is worth much."""
    return f"{number(float(np.mean(values)), 1)} ({each(values)})"


def order_differences() -> list[float]:
    """Right to left minus left to right in reverse, a linear-headed initialisation and moment."""
    found = [
        np.mean(column_at_end(init, "right_to_left") - column_at_end(init, "left_to_right"))
        for init in tuple(INITS)[:4]
    ]
    longer_runs = [default_longer(f"reverse/{order}/ema") for order in ORDERS[1:3]]
    return [*map(float, found), float(np.mean(longer_runs[1]) - np.mean(longer_runs[0]))]


def column_at_end(init: str, order: str) -> np.ndarray:
    """Reverse accuracy of one order at the end, a seed each."""
    return np.array([line[f"reverse/{order}/ema"][-1] for line in study(init)])


def scatter() -> list[tuple[float, float]]:
    """Standard deviation over evaluations from step 500 on: raw weights, and their average."""
    found = []
    for line in lines("toy_study/results_3000_steps"):
        raw, ema = (np.array(line[f"reverse/random/{x}"])[2:] for x in ("raw", "ema"))
        found.append((float(raw.std(ddof=1)), float(ema.std(ddof=1))))
    return found


def seconds() -> str:
    """Wall time of a length on the H100."""
    return span(column(lines("toy_reversal/results_h100"), "run_wall_time_sec"), 0)
