"""Tables of docs/facts.md."""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from dirasym.data import facts_files
from experiments import facts as page
from experiments.tables.common import (
    Line,
    column,
    curves,
    each,
    history,
    lines,
    mean,
    number,
    share,
    span,
    table,
)

DIRECTIONS = "forward", "reverse"
LORA, FULL = "facts_smollm2_h100/lora", "facts_smollm2_h100/full"
NAMES = {  # files of facts_names: words a name, pairs trained in both directions, noising
    "w1b60": ("one word", 60, "whole"),
    "w2b60": ("two words", 60, "whole"),
    "w2b150": ("two words", 150, "whole"),
    "w2b300_mdm": ("two words", 300, "whole"),
    "w2b60_names": ("two words", 60, "names"),
    "w2b60_names_at_once": ("two words", 60, "names, revealed at once"),
    "w2b300_names": ("two words", 300, "names"),
    "w2b300_names_at_once": ("two words", 300, "names, revealed at once"),
    "w2b300_arm": ("two words", 300, "(causal model)"),
}
PUBLIC = {
    "public_whole": "whole",
    "public_names_at_once": "names, revealed at once",
    "public_arm": "(causal model)",
}
OTHERS = {"c2p": "C2P", "p2d": "P2D", "d2p": "D2P", "trex": "T-REx-shaped, invented"}
COUNTS = {"p2c": 250, "c2p": 250}  # questions of either direction
EARLIER = {  # folder and file: facts asked about, tokens of adaptation, model
    "facts_smollm2_mdm/results": ("250", "61,440", "masked"),
    "facts_smollm2_40/mdm": ("40", "61,440", "masked"),
    "facts_smollm2_40/mdm_1000": ("40", "61,440", "masked, 1000 steps"),
    "facts_smollm2_40/arm": ("40", "none", "causal"),
    "facts_smollm2_24/mdm": ("24", "245,760", "masked"),
    "facts_smollm2_24/mdm_names": ("24", "245,760", "masked, `--noising=names`"),
    "facts_smollm2_24/arm": ("24", "none", "causal"),
}


def scratch_table() -> str:
    """From scratch, names of one word: both models."""
    rows = []
    for model, name in (("mdm", "masked diffusion"), ("arm", "causal")):
        of = lines("facts_quick/results", model=model)
        both = [column(of, f"{direction}_percent") for direction in DIRECTIONS]
        p = [mean(column(of, f"{direction}_p"), 3) for direction in DIRECTIONS]
        rows.append([name, mean(both[0], 1), mean(both[1], 1), each(both[1]), *p])
    header = ", forward %, reverse %, reverse: each seed, P(true): forward, reverse"
    return table(header, rows)


def over_steps(folder: str) -> dict[int, tuple[float, float]]:
    """Mean forward and reverse accuracy of the masked model by step."""
    of = curves_of_seeds(folder, "mdm")
    both = [np.mean([x[f"{d}_percent"] for x in of], axis=0) for d in DIRECTIONS]
    return dict(zip(of[0]["eval_step"].tolist(), zip(*both, strict=True), strict=True))


def curves_of_seeds(folder: str, model: str, data: str = "p2c") -> list[Mapping[str, np.ndarray]]:
    """The curves of a model on some facts, a seed each."""
    name = f"{folder}/curves/data={data},model={model}"
    return [curves(f"{name},seed={seed}") for seed in page_seeds()]


def page_seeds() -> tuple[int, ...]:
    """The paper's seeds, and ours."""
    return 1, 42, 1234


def steps_table(folder: str) -> str:
    """Both directions by step."""
    by_step = {step: both for step, both in over_steps(folder).items() if step}
    rows = [
        [direction, *(number(both[side], 1) for both in by_step.values())]
        for side, direction in enumerate(DIRECTIONS)
    ]
    return table(["%, step", *map(str, by_step)], rows)


def at_end(folder: str, model: str, key: str) -> list[float]:
    """A measure at the end, a seed each."""
    return column(lines(f"{folder}/results", model=model), key)


def cosines(model: str) -> np.ndarray:
    """Cosines of paired gradients, [seed, evaluation, fact]."""
    return np.stack([x["gradient_cosine_total"] for x in curves_of_seeds("facts_quick", model)])


def attention_by_layer() -> np.ndarray:
    """Figure 6's correlation in SmolLM2 made masked, a layer each: mean of distances and heads."""
    of = curves("facts_smollm2_mdm/curves/data=p2c,model=mdm,seed=1")
    return of["attention_mean"].mean(axis=(1, 2))


def correlated(folder: str, seed: int) -> tuple[int, int]:
    """At how many pairs of layer and total distance scores correlate positively, and of how many.

    Forward against reverse, a mean over heads, in a masked model of one seed.
    """
    of = curves(f"{folder}/curves/data=p2c,model=mdm,seed={seed}")["attention_mean"].mean(axis=1)
    return int((of > 0).sum()), of.size


POSITIONS = {  # folder and file: how positions enter
    "facts_positions/none": "none",
    "facts_positions/alibi": "ALiBi",
    "facts_positions/learned": "learned",
    "facts_quick_sinusoidal/results": "sinusoidal",
    "facts_quick/results": "RoPE",
}


def positions_table() -> str:
    """The masked model from scratch by how positions enter, at the end."""
    rows = []
    for file, name in POSITIONS.items():
        of = lines(file, model="mdm")
        keys = ("forward_percent", "reverse_percent", "reverse_choice_percent")
        steps = 1800 if name == "RoPE" else 3600
        cells = [each(column(of, key), 0) if key in of[0] else "–" for key in keys]
        rows.append([name, steps, *cells])
    header = "positions, steps, forward %: each seed, reverse %: each seed, choice %: each seed"
    return table(header, rows)


def other_table() -> str:
    """The masked model from scratch on other facts: answers, cosines and score correlations."""
    rows = []
    for data, name in (("trex", "T-REx-shaped"), ("p2d", "Person–description")):
        of = lines(f"facts_other/{data}")
        keys = ("forward_percent", "reverse_percent", "reverse_choice_percent")
        ranks = ", ".join(f"{rank:g}" for rank in column(of, "reverse_rank"))
        each_of = curves_of_seeds("facts_other", "mdm", data)
        cosine = [float(np.median(x["gradient_cosine_total"][-1])) for x in each_of]
        scores = [float(np.nanmean(x["attention_mean"])) for x in each_of]
        cells = [*(each(column(of, key), 0) for key in keys), ranks]
        rows.append([name, *cells, each(cosine, 2), each(scores, 2)])
    header = "facts, forward %: each seed, reverse %: each seed, choice %: each seed"
    more = ", median rank: reverse, median cosine at the end, score correlation"
    return table(header + more, rows)


def reverse_guess(data: facts_files.PaperSet) -> float:
    """Percent of invented facts' reverse questions where a guess of the choice is right."""
    asked = facts_files.paper_set(data).reverse
    return 100 / len({query.answers[0].partition(" ")[0] for query in asked})


def rank_span(values: Sequence[float]) -> str:
    """`129.5 to 140.5`: a median of an even number of ranks may end in a half."""
    return f"{min(values):g} to {max(values):g}"


def paired(model: str, direction: str, moment: int) -> list[float]:
    """Mean P(true first token) of the paired queries at one evaluation, a seed each."""
    of = curves_of_seeds("facts_quick", model)
    return [float(x[f"paired_{direction}_p"][moment].mean()) for x in of]


def ranked_within(model: str, most: int) -> list[float]:
    """Percent of the reverse questions at the end whose true first token has at most this rank."""
    of = curves_of_seeds("facts_quick", model)
    return [100 * float((x["reverse_rank_E"][-1] <= most).mean()) for x in of]


def later(cosine_STE: np.ndarray) -> np.ndarray:
    """Cosines of evaluations after step 0 alone."""
    return cosine_STE[:, 1:]


def median(cosine_STE: np.ndarray) -> np.ndarray:
    """Over facts, of every seed and evaluation after step 0."""
    return np.median(later(cosine_STE), axis=-1).ravel()


def negative(cosine_STE: np.ndarray) -> int:
    """How many are below 0 after step 0."""
    return int((later(cosine_STE) < 0).sum())


def smollm2() -> list[Line]:
    """SmolLM2, causal, P2C, three seeds."""
    return lines("facts_smollm2_arm/results")


def smollm2_table() -> str:
    """A row a seed, intervals over the 250 questions."""
    rows = []
    for line in smollm2():
        exact = [share(line[f"{d}_percent"] * 2.5, 250) for d in DIRECTIONS]
        p = [f"{line[f'{d}_p']:.3f}" for d in DIRECTIONS]
        rows.append([line["seed"], *exact, *p, *(f"{line[f'{d}_rank']:g}" for d in DIRECTIONS)])
    header = "seed, forward %, reverse %, P(true first token): forward, reverse"
    return table(header + ", median rank: forward, reverse", rows)


# Measures of a reading, those of `facts`, and how many of the latter are one: in `facts` an answer
# is right if it is either parent, and a first token if it is that of the one who was trained.
READ = {
    "either": {"accuracy": ("percent", 100), "begun": ("begun_percent", 100)},
    "trained": {
        "copied": ("copied_percent", 100),
        "choice": ("choice_percent", 100),
        "p_true": ("p", 1),
        "rank": ("rank", 1),
    },
}


def readings_table() -> str:
    """What `experiments.measure` says of SmolLM2 before and after, intervals over questions."""
    rows = []
    for of in lines("facts_smollm2_arm/readings", parents="either"):
        row = ["before" if of["adapters"] is None else f"after, seed {of['adapters']}"]
        for measure, scale, digits in (("accuracy", 100, 1), ("p_true", 1, 3), ("rank", 1, 0)):
            for direction in DIRECTIONS:
                center, low, high = (scale * x for x in of[f"{direction}_{measure}"])
                row.append(f"{center:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        rows.append(row)
    header = "weights, forward %, reverse %, P(true first token): forward, reverse"
    return table(header + ", median rank: forward, reverse", rows)


def readings_apart() -> tuple[int, float]:
    """How many numbers both `measure` and `facts` have, and their largest relative difference."""
    apart = []
    for of in lines("facts_smollm2_arm/readings"):
        seed, moment = (page_seeds()[0], 0) if of["adapters"] is None else (of["adapters"], -1)
        known = curves(f"facts_smollm2_arm/curves/data=p2c,model=arm,seed={seed}")
        for direction in DIRECTIONS:
            for measure, (name, scale) in READ[of["parents"]].items():
                values = (
                    scale * of[f"{direction}_{measure}"][0],
                    known[f"{direction}_{name}"][moment],
                )
                apart.append(abs(values[0] - values[1]) / max(*map(abs, values), 1e-9))
    return len(apart), float(max(apart))


def others_table() -> str:
    """SmolLM2 on the other directions and data sets, one seed."""
    rows = []
    for data, name in OTHERS.items():
        (line,) = lines(f"facts_smollm2_arm/{data}")
        theirs = [paper(data, model) for model in ("LLaMA", "Qwen")]
        if data == "trex":
            theirs = [f"({x})" for x in theirs]
        p = " / ".join(f"{line[f'{d}_p']:.3f}" for d in DIRECTIONS)
        rank = " / ".join(f"{line[f'{d}_rank']:g}" for d in DIRECTIONS)
        exact = [f"{line[f'{d}_percent']:.1f}" for d in DIRECTIONS]
        rows.append([name, *exact, *theirs, p, rank])
    header = "trained, forward %, reverse %, paper: LLaMA-3.1 8B, Qwen2.5 7B"
    return table(header + ", P(true first token), median rank", rows)


MODELS_OF_THE_PAPER = "LLaDA", "LLaMA", "Qwen"


def paper(data: str, model: str) -> str:
    """The paper's forward and reverse accuracy of one of its models."""
    side = 2 * MODELS_OF_THE_PAPER.index(model)
    return " / ".join(f"{x:.1f}" for x in np.mean(page.PAPER[data], axis=0)[side : side + 2])


def one_name() -> tuple[str, float]:
    """The parents' commonest first token, and for how many percent of questions it is right."""
    parents = column(lines("facts_smollm2_h100/first_tokens"), "parent")
    ((token, count),) = collections.Counter(parents).most_common(1)
    return token.strip(), 100 * count / len(parents)


def child_repeated() -> float:
    """Percent of questions where the child's first token is the parent's."""
    of = lines("facts_smollm2_h100/first_tokens")
    return 100 * float(np.mean([line["child"] == line["parent"] for line in of]))


def pair_table() -> str:
    """Masked and causal of one origin, LoRA, three seeds."""
    rows = []
    for model, name in (("mdm", "masked"), ("arm", "causal")):
        of = lines(f"{LORA}_{model}")
        keys = "forward_percent", "reverse_percent", "reverse_copied_percent"
        cells = [mean(column(of, key), 1) for key in (*keys, "reverse_choice_percent")]
        p = " / ".join(f"{np.mean(column(of, f'{d}_p')):.3f}" for d in DIRECTIONS)
        rank = " / ".join(f"{np.mean(column(of, f'{d}_rank')):.0f}" for d in DIRECTIONS)
        rows.append([name, *cells, p, rank])
    published = [paper("p2c", model).split(" / ") for model in MODELS_OF_THE_PAPER]
    theirs = ["; ".join(values) for values in zip(*published, strict=True)]
    rows.append(["paper: LLaDA; LLaMA-3.1; Qwen2.5 (7 to 8 B)", *theirs, "", "", "", ""])
    header = ", forward %, reverse %, reverse: repeats the question %, choice % (see below)"
    return table(header + ", P(true first token), median rank", rows)


def pair(model: str, key: str) -> list[float]:
    """A measure of the masked or the causal model of one origin, LoRA, a seed each."""
    return column(lines(f"{LORA}_{model}"), key)


def pair_history(model: str, key: str, moment: int) -> list[float]:
    """A value of the LoRA runs' histories at one evaluation, a seed each."""
    of = history("facts_smollm2_h100/histories")
    return [of[f"facts_{model}_p2c/p2c-{model}-seed{seed}"][key][moment] for seed in page_seeds()]


def adaptation(causal: bool) -> Line:
    """How the masked or the causal weights were made."""
    (line,) = lines("facts_smollm2_h100/adapt", causal=causal)
    return line


def full_table() -> str:
    """Every weight trained, by step, one seed."""
    both = [history("facts_smollm2_h100/histories")[f"full_{m}/p2c-{m}-seed1"] for m in MODELS]
    rows = []
    for moment, step in enumerate(both[0]["eval_step"]):
        row = [step]
        for of in both:

            def now(key, of=of, moment=moment):
                return of[key][moment][0]

            exact = " / ".join(f"{now(f'{d}_percent'):.1f}" for d in DIRECTIONS)
            rank = " / ".join(f"{now(f'{d}_rank'):g}" for d in DIRECTIONS)
            row += [exact, now("reverse_copied_percent"), now("reverse_choice_percent"), rank]
        rows.append(row)
    header = ["step"]
    for name in ("masked", "causal"):
        header += [f"{name}: forward / reverse %", "repeats %", "choice %", "median rank"]
    return table(header, rows)


MODELS = "mdm", "arm"


def full_share(model: str) -> str:
    """Reverse accuracy over the 250 questions, with its interval."""
    (line,) = lines(f"{FULL}_{model}")
    return share(line["reverse_percent"] * 2.5, 250)


def cut(data: str, key: str) -> list[float]:
    """Where the runs of another direction stood when they were cut, a seed each."""
    step = {"c2p": 1575, "p2d": 1350}[data]
    name = f"facts_mdm_{data}/{data}-mdm-seed1-42-1234, cut at step {step}"
    return history("facts_smollm2_h100/histories")[name][key][-1]


def names(file: str, key: str) -> list[float]:
    """A measure of one setting of the names' study, a seed each."""
    return column(lines(f"facts_names/{file}"), key)


def names_table() -> str:
    """What reverse questions are answered with, by the words of a name and the noising."""
    rows = []
    for file, setting in NAMES.items():
        forward = number(float(np.mean(names(file, "forward_percent"))), 0)
        keys = "reverse_percent", "reverse_copied_percent", "reverse_choice_percent"
        rows.append([*setting, forward, *(each(names(file, key), 0) for key in keys)])
    header = "names, trained in both directions, noising, forward %, reverse %: each seed"
    return table(header + ", repeats the question %: each seed, choice %: each seed", rows)


def at_once_gain() -> list[float]:
    """Reverse accuracy when a name's masks are filled at once, minus one token a step."""
    return [
        after - before
        for size in (60, 300)
        for before, after in zip(
            names(f"w2b{size}_names", "reverse_percent"),
            names(f"w2b{size}_names_at_once", "reverse_percent"),
            strict=True,
        )
    ]


def public_table() -> str:
    """The public names from scratch."""
    rows = []
    for file, name in PUBLIC.items():
        keys = "forward_percent", "reverse_percent", "reverse_copied_percent"
        cells = [each(names(file, key)) for key in (*keys, "reverse_choice_percent")]
        p = each(names(file, "reverse_p"), 2)
        rows.append([name, *cells, p])
    header = "noising, forward %: each seed, reverse %: each seed, repeats the question %"
    return table(header + ", choice %, P(true first token): reverse", rows)


def earlier_table() -> str:
    """Adaptations that a CPU can read, one seed each."""
    rows = []
    for file, setting in EARLIER.items():
        (line,) = lines(file)
        exact = [f"{line[f'{d}_percent']:.1f}" for d in DIRECTIONS]
        rank = " / ".join(f"{line[f'{d}_rank']:g}" for d in DIRECTIONS)
        rows.append([*setting, *exact, rank])
    header = "facts, tokens of adaptation, model, forward %, reverse %, median rank"
    return table(header, rows)


def minutes(*files: str) -> str:
    """Wall time of some runs."""
    return span([line["run_wall_time_sec"] / 60 for line in lines(*files)], 0)
