"""Does a step on "[M] is B" also teach "B is [M]", and does that survive length and depth?

Question  §5 of arXiv 2602.02133, gradients and attention over training. `minimal`: two letters,
          attention only (Figure 4), with Theorem B.1's blocks and the first-order check.
          `full`: the toy task's MDM (Figures 3, 5, 12, 13), by length and depth, ARM beside it.
Command   python -m experiments.gradient_alignment --preset=quick|paper
          It reads the checkpoints that toy_reversal wrote with --keep_checkpoints to
          --toy_workdir, and trains what it does not find there.
Cost      quick: about 6 minutes on 2 CPU cores. paper: an hour beside finished checkpoints.
Expected  minimal: cosine near 1 and both probabilities rising together, the ARM's reverse at 0.
          full: median cosine above 0.6 at one layer.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import checkpoints, models, training
from dirasym.analysis import alignment, attention, lemmas, recall, theorem_b1
from dirasym.data import case_pairs
from experiments import alignment_report, harness, toy_task
from experiments.flags import flag

PRESETS = {
    "smoke": dict(
        lengths=[4], layers=[1], seeds=[0], steps=40, eval_every=20, width=16, examples=8
    ),
    "quick": dict(
        lengths=[10], layers=[1, 2], seeds=[0], steps=500, eval_every=100, models=["mdm"]
    ),
    "paper": dict(lengths=[10, 20, 30, 40], layers=[1, 2, 4], seeds=[0, 1, 2]),
}
DIRECTIONS = ("forward", "reverse")
# A block of parameters: what the first match in the path says.
BLOCKS = r"embed|query|key|value|out|up|down|head|norm"
STEP_LENGTHS = np.logspace(-2, -1, 5)  # η‖g_fwd‖ of the first-order check


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    parts: tuple[Literal["minimal", "full"], ...] = flag(("minimal", "full"), "What to run.")
    lengths: tuple[int, ...] = flag((10,), "Sequence lengths of `full`.")
    layers: tuple[int, ...] = flag((1,), "Depths of `full`.")
    models: tuple[Literal["mdm", "arm"], ...] = flag(("mdm", "arm"), "Of `full`; ARM at depth 1.")
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.")
    steps: int = flag(3000, "Train steps.", 1)
    eval_every: int = flag(250, "Steps between measurements.", 1)
    minimal_steps: int = flag(300, "Train steps of `minimal`.", 1)
    minimal_every: int = flag(20, "Steps between measurements of `minimal`.", 1)
    minimal_warmup: int = flag(0, "Warm-up steps of `minimal`.", 0)
    batch_size: int = flag(256, "Sequences a step.", 1)
    width: int = flag(256, "Width of the residual stream.", 2)
    examples: int = flag(64, "Matched placements whose gradients are compared.", 2)
    per_cell: int = flag(2, "Placements a letter and distance whose attention is read.", 1)
    toy_workdir: str = flag("runs/toy_reversal", "Where to look for toy_reversal's checkpoints.")

    def __post_init__(self):
        for steps, every in (
            (self.steps, self.eval_every),
            (self.minimal_steps, self.minimal_every),
        ):
            if steps % every:
                raise ValueError(
                    f"{steps} steps are not a multiple of the {every} between evaluations"
                )
        if not settings(self):
            raise ValueError("nothing to run: the causal model of `full` has --layers=1 alone")
        for layers in self.layers:
            for length in self.lengths:
                toy_task.model_config("mdm", length, self.toy(length, layers))
                case_pairs.placements(length)

    def toy(self, length: int, layers: int = 1, **changes) -> toy_task.Config:
        """The toy task's configuration of one run."""
        sizes = dict(batch_size=self.batch_size, width=self.width, layers=layers)
        steps = dict(steps=self.steps, eval_every=self.eval_every)
        return toy_task.Config(lengths=(length,), seeds=self.seeds, **(sizes | steps | changes))

    def minimal(self) -> toy_task.Config:
        """Two letters, no padding, attention alone."""
        return self.toy(
            2,
            attention_only=True,
            dropout=0.0,
            steps=self.minimal_steps,
            eval_every=self.minimal_every,
            warmup_steps=self.minimal_warmup,
        )


def run(experiment: harness.Experiment, config: Config) -> None:
    """Measures what is missing, then reports."""
    for part, model, length, layers, toy in settings(config):
        for seeds in harness.seed_groups(config.seeds):
            identity = dict(part=part, model=model, length=length, layers=layers)
            if experiment.is_done(**identity, seed=seeds[-1]):
                continue
            name = f"{part}-{model}-L{length}-layers{layers}-seeds{'-'.join(map(str, seeds))}"
            task = toy_task.Task(model, length, toy, len(seeds) > 1)
            history, source = measure_or_train(experiment, config, name, task, seeds)
            if model == "mdm":
                history |= correlation_by_distance(history, length, config.per_cell)
            experiment.save_curves(name, history)
            lines = [
                identity | {"seed": seed, "source": source} | summary(history, place)
                for place, seed in enumerate(seeds)
            ]
            experiment.record(lines, keys=(*identity, "seed"))
    alignment_report.write(experiment, config, settings(config), STEP_LENGTHS)


def settings(config: Config) -> list[tuple]:
    """(part, model, length, layers, the toy task's configuration) of every run."""
    runs = []
    if "minimal" in config.parts:
        runs += [("minimal", model, 2, 1, config.minimal()) for model in ("mdm", "arm")]
    if "full" in config.parts:
        runs += [
            ("full", model, length, layers, config.toy(length, layers))
            for model in config.models
            for layers in config.layers
            for length in config.lengths
            if model == "mdm" or layers == 1
        ]
    return runs


def measure_or_train(experiment, config: Config, name: str, task: toy_task.Task, seeds):
    """History of measurements, and where the weights came from."""
    measure = functools.partial(measurements, task, config)
    saved = [find_saved(config, task, seed) for seed in seeds]
    if not all(saved):
        return task.train(experiment, name, seeds, measure), "trained here"
    measure = harness.over_seeds(measure, together=False)
    columns = []
    for (directory, toy), seed in zip(saved, seeds, strict=True):
        like = dataclasses.replace(task, config=toy, together=False).state(seed)
        rows = [(0, like), *checkpoints.Checkpoints(directory).states(like)]
        values = [jax.device_get(measure(state)) for _, state in rows]
        columns.append(jax.tree.map(lambda *x: np.stack(x), *values))
    history = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *columns)
    return history | {"eval_step": np.array([step for step, _ in rows])}, config.toy_workdir


def find_saved(config: Config, task: toy_task.Task, seed: int):
    """(directory, configuration) of a finished toy_reversal run of this task, or None."""
    workdir = pathlib.Path(config.toy_workdir)
    directory = workdir / "checkpoints" / f"L{task.length}-{task.model}-seeds{seed}"
    if not (workdir / "config.json").exists() or not directory.exists():
        return None
    fields = {field.name for field in dataclasses.fields(toy_task.Config)}
    written = json.loads((workdir / "config.json").read_text())
    written = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in written.items()
        if key in fields
    }
    toy = toy_task.Config(**written)
    # Where it looked and how long it went on may differ; what was trained may not.
    apart = dict.fromkeys(("lengths", "seeds", "models", "steps", "eval_every", "report_step"))
    if dataclasses.asdict(toy) | apart != dataclasses.asdict(task.config) | apart:
        return None
    wanted = set(range(toy.eval_every, toy.steps + 1, toy.eval_every))
    there = {int(path.name) for path in directory.iterdir() if path.name.isdigit()}
    return (directory, toy) if wanted <= there else None


def measurements(task: toy_task.Task, config: Config, state: training.TrainState):
    """Everything that is tracked over training, of one seed's raw weights."""
    params = state.params
    if task.model == "arm":
        ask = both(case_pairs.prefix_queries, task.length)
        return {f"p_{name}": task.true_probability(params, ask[name]) for name in ask}
    ask = both(case_pairs.mask_queries, task.length)
    values = {f"p_{name}": task.true_probability(params, queries) for name, queries in ask.items()}

    internals = models.make_internals_fn(
        models.Transformer(toy_task.model_config("mdm", task.length, task.config))
    )
    for name, queries in attention_queries(task.length, config.per_cell).items():
        where = queries.position_E, queries.context_E
        paid = attention.attention_to(internals, params, queries.tokens_EL, *where)
        values |= {f"weight_{name}": paid.weights.mean(-1), f"scores_{name}": paid.scores}

    loss_fwd, loss_rev = recall.paired_losses(task.apply_fn(None), mask_id=case_pairs.MASK)
    rows = matched_rows(ask["forward"], config.examples)
    matched = tuple(
        recall.Cloze(q.tokens_EL[rows], q.position_E[rows], q.target_E[rows]) for q in ask.values()
    )
    aligned = alignment.alignment(
        loss_fwd, loss_rev, params, blocks=BLOCKS, examples=matched, method="factored"
    )
    values |= {f"cosine/{block}": x for block, x in aligned.cosine.items()}
    values |= {f"inner/{block}": x for block, x in aligned.inner.items()}
    mean_fwd, mean_rev = (
        lambda p, loss=loss: jax.vmap(loss, (None, 0))(p, matched).mean()
        for loss in (loss_fwd, loss_rev)
    )
    aligned_means = alignment.alignment(mean_fwd, mean_rev, params)
    values["cosine_of_means"] = aligned_means.cosine["total"]
    rates = STEP_LENGTHS / aligned_means.norm_fwd["total"]
    transfer = alignment.first_order_transfer(mean_fwd, mean_rev, params, rates)
    values |= {"predicted": transfer.predicted, "measured": transfer.measured}
    if task.config.attention_only:
        values |= theorem_along(params, toy_task.model_config("mdm", task.length, task.config))
    return values


def theorem_along(params, config: models.TransformerConfig) -> dict[str, jax.Array]:
    """Theorem B.1 at Δ₁ = Δ₂ = 1 for every letter, and what it neglects in the full model."""
    letters = dict(context=jnp.asarray(case_pairs.UPPER), target=jnp.asarray(case_pairs.LOWER))
    model, how = theorem_b1.OneLayer.from_transformer(
        params, config, mask_id=case_pairs.MASK, **letters
    )
    targets = how.pop("target")
    how |= dict(delta_fwd=1, delta_rev=1)
    over_letters = functools.partial(
        jax.vmap,
        in_axes=(theorem_b1.OneLayer(*[None] * 5, h_B=0), 0),
    )
    terms = over_letters(lambda m, target: theorem_b1.neglected_terms(m, target=target, **how))
    check = over_letters(lambda m, target: lemmas.check_corollary_b2(m, target=target, **how))
    neglected, corollary = terms(model, targets), check(model, targets)
    assumptions = ("non_saturated", "signals_aligned", "margins_agree", "rope_positive")
    return {
        **{f"theorem/{block}": getattr(neglected.theorem, block) for block in theorem_b1.BLOCKS},
        **{f"full/{block}": getattr(neglected.full, block) for block in theorem_b1.BLOCKS},
        **{f"assumption/{name}": getattr(corollary, name) for name in assumptions},
        "theorem_cosine": corollary.cosine,
    }


def both(queries, length: int) -> dict[str, case_pairs.Queries]:
    """Queries of both directions, row by row about the same letter and positions."""
    return {direction: queries(length, direction) for direction in DIRECTIONS}


def attention_queries(length: int, per_cell: int) -> dict[str, case_pairs.Queries]:
    """Both directions of up to `per_cell` placements of each letter and distance."""
    ask = both(case_pairs.mask_queries, length)
    first_E = np.minimum(ask["forward"].position_E, ask["forward"].context_E)
    distance_E = ask["forward"].distance_E
    chosen_E = np.zeros(len(first_E), bool)
    for distance in range(1, length):
        starts = np.linspace(0, length - distance - 1, per_cell).astype(int)
        chosen_E |= (distance_E == distance) & np.isin(first_E, starts)
    return {name: jax.tree.map(lambda x: x[chosen_E], queries) for name, queries in ask.items()}


def matched_rows(queries: case_pairs.Queries, count: int) -> np.ndarray:
    """A fixed sample of rows: the same letter and positions in both directions."""
    total = len(queries.target_E)
    return np.random.default_rng(0).permutation(total)[:count]


def summary(history, place: int) -> dict[str, float]:
    """What a result line says of one seed."""
    last = {f"final_p_{name}": float(history[f"p_{name}"][-1, place]) for name in DIRECTIONS}
    if "cosine/total" not in history:
        return last
    median_T = np.median(history["cosine/total"][:, place], axis=-1)
    error_TR = np.abs(history["predicted"] - history["measured"])[:, place]
    slopes_T = np.polyfit(np.log(STEP_LENGTHS), np.log(error_TR.T), 1)[0]
    return last | {
        "median_cosine_min": float(median_T[1:].min()),
        "median_cosine_last": float(median_T[-1]),
        "cosine_of_means_min": float(history["cosine_of_means"][1:, place].min()),
        "score_correlation_mean": float(history["correlation_mean"][place].mean()),
        "first_order_slope": float(np.median(slopes_T)),
    }


def correlation_by_distance(history, length: int, per_cell: int) -> dict[str, np.ndarray]:
    """Figure 3: Corr(S_fwd, S_rev) at the last step, [seeds, layers, heads, total distance]."""
    scores = [
        attention.by_distance(history[f"scores_{name}"][-1], queries.letter_E, queries.distance_E)
        for name, queries in attention_queries(length, per_cell).items()
    ]
    correlation = attention.distance_correlation(*scores, resamples=200)
    return {f"correlation_{name}": x for name, x in correlation._asdict().items()}


if __name__ == "__main__":
    harness.main("gradient_alignment", Config, PRESETS, run)
