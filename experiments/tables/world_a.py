"""Tables of docs/world_a.md."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dirasym.analysis import excess
from experiments.reports import world_a as world_a_report
from experiments.reports import world_a_bits
from experiments.tables.common import Line, column, curves, lines, mean, number, span, table

BITS_STUDY = "mlp", "gpt2", "gpt2_K25", "gpt2_36x3"  # the result files
ARROWS = {"forward": "A->B", "inverse": "B->A"}
CLEAN = "eval_excess_nats_per_string"
UNITS = {
    "paper's convention": "excess_loss",
    "nats a string, training": "excess_nats_per_string",
    "clean": CLEAN,
}
TASKS = tuple((K, direction) for K in (5, 1) for direction in ARROWS)
PUBLISHED = (5, "forward"), (5, "inverse"), (1, "forward")  # on file at the published setting
LORA_GRID = {"1e-3": 1e-3, "3e-3": 3e-3, "1e-2": 1e-2}
LORA_RANKS = 2, 4, 8, 16, 32, 96
PAPER_GAPS = {1: "0", 5: "0.22", 8: "about 0.1"}  # of the MLP
LN_5 = float(np.log(5))
PUBLISHED_MLP = (1, 0.0), (5, 0.22), (8, 0.1)


def runs(folder: str, K: int, direction: str, **values) -> list[Line]:
    """One map in one direction, a line a seed."""
    return lines(f"{folder}/results", K=K, direction=ARROWS[direction], **values)


def epochs(folder: str) -> list[int]:
    """When runs were evaluated."""
    return lines(f"{folder}/results")[0]["eval_epochs"]


def curve(of: Sequence[Line], epoch: int, unit: str = CLEAN) -> list[float]:
    """The excess after an epoch, a value a line; training losses are of the epoch itself."""
    if unit == "excess_loss":
        return [line["train_curve"][epoch - 1] - line["theoretical_min"] for line in of]
    if unit == "excess_nats_per_string":
        return [line[f"{unit}_curve"][epoch - 1] for line in of]
    return [line[f"{unit}_curve"][line["eval_epochs"].index(epoch)] for line in of]


def gaps(folder: str, K: int, epoch: int, unit: str = CLEAN, **values) -> list[float]:
    """Inverse − forward, paired by seed."""
    forward, inverse = (runs(folder, K, direction, **values) for direction in ARROWS)
    assert column(forward, "seed") == column(inverse, "seed")
    pairs = zip(curve(forward, epoch, unit), curve(inverse, epoch, unit), strict=True)
    return [b - a for a, b in pairs]


def last_gap(folder: str, K: int, unit: str = CLEAN, **values) -> list[float]:
    """The gap at the end of training."""
    return gaps(folder, K, epochs(folder)[-1], unit, **values)


def mlp_gap_1000(K: int, unit: str = CLEAN) -> list[float]:
    """The MLP's gap on 1000 pairs at the end; K = 8 has a file of its own."""
    of = lines("world_a_mlp_1000/results", "world_a_mlp_1000/results_K8", K=K)
    forward, inverse = ([x for x in of if x["direction"] == arrow] for arrow in ARROWS.values())
    return [b[unit] - a[unit] for a, b in zip(forward, inverse, strict=True)]


def excess_table(folder: str) -> str:
    """Clean excess by epoch, mean over seeds."""
    rows = []
    for K, direction in TASKS:
        of = runs(folder, K, direction)
        cells = [number(float(np.mean(curve(of, epoch)))) for epoch in epochs(folder)]
        rows.append([f"K = {K} {direction}", f"{of[0]['bits_to_store_per_pair']:.1f}", *cells])
    return table(["task", "bits per pair", *map(str, epochs(folder))], rows)


def gap_table(folder: str) -> str:
    """The gap by epoch, in two units."""
    moments = epochs(folder)[1:]
    rows = [
        [f"K = {K}, {name}", *(mean(gaps(folder, K, epoch, unit)) for epoch in moments)]
        for K, name, unit in (
            (1, "nats per string", CLEAN),
            (5, "nats per string", CLEAN),
            (5, "paper's convention", "excess_loss"),
        )
    ]
    return table(["gap", *map(str, moments)], rows)


def published(K: int, direction: str) -> Line:
    """GPT-2 small at the published setting, one seed."""
    (line,) = lines(f"world_a_gpt2_K{K}_{direction}/results")
    return line


def published_gap(epoch: int, unit: str = CLEAN) -> float:
    """Its gap at K = 5 after an epoch."""
    (forward,), (inverse,) = (curve([published(5, d)], epoch, unit) for d in ARROWS)
    return inverse - forward


def left(K: int, direction: str) -> float:
    """Percent of a uniform guess's excess that is left at the end."""
    return 100 * published(K, direction)[CLEAN] / guess(K if direction == "inverse" else 1)


def tokens() -> float:
    """GPT-2's tokens of a target, on average over the maps at the published setting."""
    return float(np.mean([published(*task)["tokens_per_target"] for task in PUBLISHED]))


def checkpoint_gigabytes() -> float:
    """Parameters and Adam's two moments of GPT-2 small, in float32."""
    return 3 * 4 * published(5, "forward")["total_params"] / 1e9


def mlp_floor(K: int) -> float:
    """What the MLP's inverse costs at the least, in nats a string; a mean over seeds."""
    return float(np.mean(column(runs("world_a_mlp", K, "inverse"), "floor_nats_per_string")))


def one_unit_table() -> str:
    """The published gaps in nats a string above the floors."""
    rows = []
    for (model, _, K), (_, _, gap) in world_a_report.PAPER.items():
        if model not in ("scratch", "mlp") or K == 1:
            continue
        pieces, floor = (8, mlp_floor(K)) if model == "mlp" else (tokens(), float(np.log(K)))
        above = (gap + np.log(K)) * pieces - floor
        written = f"({gap:g} + {np.log(K):.2f})·{pieces:.2g} − {floor:.3g} = {above:.1f}"
        rows.append(["MLP" if model == "mlp" else "GPT-2 scratch", K, f"{gap:g}", written])
    return table(["model", "K", "published gap", "gap, nats per string above the floors"], rows)


def published_table(*moments: int) -> str:
    """Clean excess by epoch at the published setting."""
    rows = []
    for K, direction in PUBLISHED:
        line = published(K, direction)
        cells = [number(curve([line], epoch)[0]) for epoch in moments]
        stored = f"{line['bits_to_store_per_pair']:.1f}"
        rows.append([f"K = {K} {direction}", stored, *cells, f"{left(K, direction):.0f} %"])
    return table(["task", "bits per pair", *map(str, moments), "left"], rows)


def published_gap_table(*moments: int) -> str:
    """Its gap at K = 5 by epoch, in three units."""
    rows = [
        [name, *(number(published_gap(epoch, unit)) for epoch in moments)]
        for name, unit in UNITS.items()
    ]
    return table(["gap, K = 5", *map(str, moments)], rows)


def halves(folder: str, K: int, direction: str) -> list[float]:
    """Epochs until half of the excess is gone, a value a seed."""
    of = runs(folder, K, direction)
    return [excess.half_learned(epochs(folder), line[f"{CLEAN}_curve"]) for line in of]


def bits(folder: str, K: int, direction: str) -> str:
    """To store the map, per pair."""
    return f"{runs(folder, K, direction)[0]['bits_to_store_per_pair']:.1f}"


def bits_table() -> str:
    """Bits per pair of both directions at the paper's size."""
    rows = []
    for K in PAPER_GAPS:
        both = [runs("world_a_mlp", K, d)[0]["bits_to_store_per_pair"] for d in ARROWS]
        rows.append([K, *(f"{x:.2f}" for x in both)])
    return table(["K", *ARROWS], rows)


def mlp_table() -> str:
    """The MLP at the paper's setting, means of its seeds."""
    rows = []
    for K in (1, 5, 8):
        for direction in ARROWS:
            of = runs("world_a_mlp", K, direction)
            floor = of[0]["floor_nats_per_string"]
            kind = f" ({of[0]['floor_kind']})" if floor else ""
            values = [mean(column(of, "excess_loss"), 3), *(mean(column(of, u)) for u in MLP_UNITS)]
            stored = bits("world_a_mlp", K, direction)
            rows.append([K, direction, *values, f"{floor:.2f}{kind}", stored])
    return table(["K", "direction", *UNITS, "floor", "bits"], rows)


MLP_UNITS = tuple(UNITS.values())[1:]


def mlp_gap_table() -> str:
    """Its gaps beside the published ones."""
    rows = []
    for K, paper in PAPER_GAPS.items():
        first, *others = (last_gap("world_a_mlp", K, unit) for unit in UNITS.values())
        rows.append([K, f"**{mean(first, 3)}**", paper, *map(mean, others)])
    names = [f"gap, {name}" for name in UNITS]
    return table(["K", names[0], "published", *names[1:]], rows)


def mlp_pace_table() -> str:
    """Forward excess of the MLP by epoch: the same floor, and fewer bits for a larger K."""
    rows = []
    for K in PAPER_GAPS:
        of = runs("world_a_mlp", K, "forward")
        cells = [mean(curve(of, epoch)) for epoch in epochs("world_a_mlp")[1:]]
        rows.append([K, bits("world_a_mlp", K, "forward"), *cells])
    return table(["K", "bits", *map(str, epochs("world_a_mlp")[1:])], rows)


def fewer_bits(K: int, of: int) -> float:
    """How many times as many bits the MLP's forward task stores a pair at K as at another."""
    stored = [runs("world_a_mlp", x, "forward")[0]["bits_to_store_per_pair"] for x in (K, of)]
    return stored[0] / stored[1]


def lower(K: int, of: int, epoch: int) -> float:
    """How far the forward excess after an epoch is lower at another K, in percent of that at K."""
    first, other = (np.mean(curve(runs("world_a_mlp", x, "forward"), epoch)) for x in (K, of))
    return 100 * float(1 - other / first)


def lengths_table(*lengths: int) -> str:
    """The MLP on strings of several lengths: bits, and epochs until half is learned."""
    rows = [
        [length, f"K = {K} {direction}", f"{stored:.1f}", mean(half, 1)]
        for length in lengths
        for (K, direction), (stored, half) in of_length(length).items()
    ]
    return table(["characters", "task", "bits per pair", "epochs until half is learned"], rows)


class Pace(NamedTuple):
    """Of one task: bits a pair, and the epochs until half of the excess is gone, a seed each."""

    bits: float
    epochs: list[float]


def of_length(length: int) -> dict[tuple[int, str], Pace]:
    """The MLP on strings of one length, by K and direction."""
    found = {}
    of = lines(f"world_a_mlp_lengths/len{length}")
    for K in sorted({line["K"] for line in of}):
        for direction, arrow in ARROWS.items():
            mine = [x for x in of if (x["K"], x["direction"]) == (K, arrow)]
            half = [excess.half_learned(x["eval_epochs"], x[f"{CLEAN}_curve"]) for x in mine]
            found[K, direction] = Pace(mine[0]["bits_to_store_per_pair"], half)
    return found


def saved(slow: Pace, fast: Pace) -> float:
    """The share of one task's epochs that another does without; of means over seeds."""
    return 1 - float(np.mean(fast.epochs) / np.mean(slow.epochs))


def bits_study(**values) -> list[Line]:
    """Bits and entropy, each varied alone: both models."""
    return lines(*(f"world_a_bits/{name}" for name in BITS_STUDY), **values)


def bits_study_table() -> str:
    """A row a kind of map."""
    return world_a_bits.table(bits_study())


def bits_pairs_table() -> str:
    """A row a kind of map of the MLP, at other numbers of pairs."""
    return world_a_bits.table(lines("world_a_bits/mlp_pairs"))


def gpt2_pairs(file: str = "gpt2_pairs", **values) -> list[Line]:
    """GPT-2 of 36 × 8 by the number of pairs: of 40 epochs, or of 640 steps (1000 pairs: both)."""
    names = [f"world_a_bits/{name}" for name in ("gpt2", file)]
    return lines(*names, letters=36, length=8, **values)


def pairs_table() -> str:
    """A row a task and number of pairs of GPT-2, those of 640 steps among them."""
    return world_a_bits.pairs_table(gpt2_pairs() + lines("world_a_bits/gpt2_steps"))


def pairs_half(K: int, direction: str, pairs: int, file: str = "gpt2_pairs", **how) -> float:
    """GPT-2's epochs, or what is measured, until half is learned: mean over maps."""
    of = gpt2_pairs(file, K=K, direction=ARROWS[direction], pairs=pairs)
    return world_a_bits.over_maps(of, **how).mean


def pairs_exponent(K: int, direction: str, *pairs: int, file: str = "gpt2_pairs", **how) -> float:
    """Of those epochs, in the number of pairs."""
    of = gpt2_pairs(file, K=K, direction=ARROWS[direction])
    return world_a_bits.exponent([line for line in of if line["pairs"] in pairs], **how)


def half_of(model: str, letters: int, length: int, K: int = 1, direction: str = "forward"):
    """Epochs until half is learned: mean and interval over maps."""
    shape = dict(letters=letters, length=length, K=K, direction=ARROWS[direction])
    return world_a_bits.over_maps(bits_study(model=model, **shape))


def bidirectional_table() -> str:
    """Masked diffusion and all tokens at once: both directions and the gap, by epoch."""
    folder, rows = "world_a_bidirectional", []
    names = {"masked_diffusion": "masked diffusion (joint floor)"}
    names["parallel"] = "all at once (parallel floor)"
    for objective, name in names.items():
        for direction in ARROWS:
            of = runs(folder, 5, direction, objective=objective)
            cells = [number(float(np.mean(curve(of, x))), 1) for x in epochs(folder)]
            rows.append([name if direction == "forward" else "", direction, *cells])
        gap = [mean(gaps(folder, 5, x, objective=objective)) for x in epochs(folder)]
        rows.append(["", "gap", *gap])
    return table(["objective", "task", *map(str, epochs(folder))], rows)


def tax(K: int, direction: str, epoch: int) -> list[float]:
    """Fine-tuned minus scratch, paired by seed."""
    both = [runs("world_a_regimes", K, direction, run_type=x) for x in ("scratch", "finetune")]
    pairs = zip(*(curve(of, epoch) for of in both), strict=True)
    return [b - a for a, b in pairs]


def tax_table() -> str:
    """The plasticity tax by epoch, in both directions, and its difference."""
    moments, rows = epochs("world_a_regimes")[1:], []
    for K in (1, 5):
        both = {direction: [tax(K, direction, x) for x in moments] for direction in ARROWS}
        for direction, values in both.items():
            rows.append([f"K = {K} {direction}", *map(mean, values)])
        rows.append([f"K = {K} inverse − forward", *(mean(x) for x in tax_gaps(K))])
    return table(["task", *map(str, moments)], rows)


def tax_gaps(K: int) -> list[list[float]]:
    """Tax of the inverse minus that of the forward task, an epoch each."""
    return [
        [b - a for a, b in zip(tax(K, "forward", x), tax(K, "inverse", x), strict=True)]
        for x in epochs("world_a_regimes")[1:]
    ]


def gradients(K: int, direction: str, key: str) -> np.ndarray:
    """Over the evaluations of a run that compared both directions' gradients, of all parameters."""
    name = f"run_type=scratch,lora_r=None,objective=next_token,K={K},direction={ARROWS[direction]}"
    return curves(f"world_a_gradients/curves/{name.replace('>', '_')},seed=0")[f"{key}/total"]


def gradient_table() -> str:
    """The directions' cosine, and the step that each would take, by epoch."""
    rows = []
    for K in (1, 5):
        for direction in ARROWS:
            for key, name in GRADIENTS.items():
                values = gradients(K, direction, key)
                rows.append(
                    [f"K = {K} {direction}", name, *(number(float(x), 4) for x in values[:-1])]
                )
    return table(["trained on", "of both directions", "0", "10", "20", "30", "40", "50"], rows)


GRADIENTS = {
    "cosine": "cosine",
    "update_forward": "update / weight, forward",
    "update_inverse": "update / weight, inverse",
}


def both_ways_table() -> str:
    """LoRA of one rank and rate on every map, both ways: clean excess by epoch."""
    moments, rows = (20, 40, 60), []
    for K in (1, 5, 8):
        for direction in ARROWS:
            of = runs("world_a_lora_both", K, direction)
            stored = bits("world_a_lora_both", K, direction)
            rows.append([f"K = {K} {direction}", stored, *(mean(curve(of, x)) for x in moments)])
    return table(["task", "bits per pair", *map(str, moments)], rows)


def reg_table() -> str:
    """Fine-tuning with more decay, alone and with dropout: clean excess by epoch at K = 5."""
    moments, rows = (20, 40, 60), []
    for name, folder, run_type in REGULARISED:
        for direction in ARROWS:
            of = runs(folder, 5, direction, run_type=run_type)
            rows.append([name, direction, *(mean(curve(of, x)) for x in moments)])
    return table(["decay and dropout", "direction", *map(str, moments)], rows)


REGULARISED = (
    ("0.01, 0", "world_a_reg", "finetune"),
    ("0.1, 0", "world_a_reg0", "finetune_reg"),
    ("0.1, 0.1", "world_a_reg", "finetune_reg"),
)


def lora(file: str, rank: int, rate: float) -> Line:
    """One run of LoRA's grid."""
    (line,) = lines(f"world_a_lora/{file}", lora_r=rank, lr=rate)
    return line


def lora_table() -> str:
    """Clean excess by rank and rate after 60 epochs, and after 300."""
    ranks = [f"{r} ({lora('grid', r, 1e-3)['lora_trainable_params']:,})" for r in LORA_RANKS]
    rows = [
        [name, *(f"{lora('grid', r, rate)[CLEAN]:.1f}" for r in LORA_RANKS)]
        for name, rate in LORA_GRID.items()
    ]
    longer = {line["lora_r"]: f"{line[CLEAN]:.1f}" for line in lines("world_a_lora/long")}
    rows.append(["3e-3, 300 epochs", *(longer.get(r, "") for r in LORA_RANKS)])
    return table(["rank (adapters' parameters)", *ranks], rows)


def lora_stored(rank: int, guess: float) -> float:
    """Bits a parameter that 300 epochs stored beyond a uniform guess."""
    line = lora("long", rank, 3e-3)
    bits = (guess - line[CLEAN]) / np.log(2) * line["n_pairs"]
    return max(0.0, float(bits)) / line["lora_trainable_params"]


def guess(K: int, characters: int = 8) -> float:
    """Excess of a uniform guess over the strings, in nats above the joint floor ln K."""
    return characters * float(np.log(36)) - float(np.log(K))


def seconds(folder: str) -> str:
    """Wall time of a run."""
    return span(column(lines(f"{folder}/results"), "run_wall_time_sec"), 0)
