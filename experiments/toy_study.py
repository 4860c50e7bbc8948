"""What does the MDM's reverse accuracy depend on: initialisation, order of revealing, or the step?

Question  Table 2's reverse column runs from 34 to 56 % without an interval. Here the toy task
          is trained from several initialisations, and at every evaluation the same weights
          generate in several orders.
Command   python -m experiments.toy_study --preset=quick|paper
Cost      quick: 2 runs of 500 steps, not timed.
          paper (L = 10, 6 × 3 runs of 3000 steps): 4 minutes a run on one CPU core.
Expected  Forward stays near 100 %; reverse moves by tens of points with each factor.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

from dirasym import report, runs, training
from dirasym.analysis import case_recall
from dirasym.data import case_pairs
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.flags import flag
from experiments.reports import toy_study
from experiments.systems import toy

INITS = {  # what differs from toy_reversal's defaults
    "default": {},
    "bias_zero": dict(norm_bias_init=0.0),
    "bias_zero+embed_unit": dict(norm_bias_init=0.0, embed_std=1.0),
    "bias_zero+embed_small": dict(norm_bias_init=0.0, embed_std=0.02),
    "head_zero": dict(head_init="zeros"),
    "bias_zero+head_zero": dict(norm_bias_init=0.0, head_init="zeros"),
}
PRESETS = {
    "smoke": dict(length=3, seeds=[0], steps=20, eval_every=10, generations=2),
    "quick": dict(seeds=[0], steps=500, eval_every=100, inits=["default", "head_zero"]),
    "paper": {},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    length: int = flag(10, "Sequence length L.", 2, 400)
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.", kind="seed")
    inits: tuple[Literal[tuple(INITS)], ...] = flag(tuple(INITS), "Initialisations.")
    orders: tuple[case_recall.Order, ...] = flag(case_recall.Order.__args__, "Orders of revealing.")
    steps: int = flag(3000, "Train steps.", 1)
    eval_every: int = flag(250, "Steps between evaluations.", 1)
    generations: int = flag(100, "Sampled per letter, direction and order.", 1, 10**4)

    def __post_init__(self):
        for init in self.inits:
            self.toy_config(init)  # raises what does not fit

    def toy_config(self, init: str) -> toy.Config:
        """The toy task from one initialisation."""
        return toy.Config(
            lengths=(self.length,),
            steps=self.steps,
            eval_every=self.eval_every,
            generations=self.generations,
            **INITS[init],
        )


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run an initialisation."""
    del workdir
    tasks = {init: toy.Task("mdm", config.length, config.toy_config(init)) for init in config.inits}
    return [
        task.run(
            {"init": init},
            functools.partial(generate_in_orders, task, config.orders),
            summarize=functools.partial(summarize, config.eval_every),
        )
        for init, task in tasks.items()
    ]


def generate_in_orders(
    task: toy.Task, orders: Sequence[str], state: training.TrainState
) -> dict[str, jax.Array]:
    """Accuracy in percent, `direction/order/weights`."""
    key = jax.random.fold_in(state.key, training.EVAL_STREAM)
    return {
        f"{direction}/{order}/{weights}": case_recall.generation_percent(
            task.apply_fn,
            params,
            case_pairs.prompts(task.length, direction),
            key,
            kind="masked",
            **task.sampling | {"order": order},
        )
        for weights, params in (("raw", state.params), ("ema", state.ema_params))
        for direction in ("forward", "reverse")
        for order in orders
    }


def summarize(eval_every: int, history: runs.History) -> Mapping[str, Any]:
    """Whole curves, since what they do between evaluations is the finding."""
    return {
        "eval_step": history["eval_step"].tolist(),
        **{key: x.tolist() for key, x in history.items() if "/" in key},
        "loss": history["loss"][eval_every - 1 :: eval_every].tolist(),
    }


def write_report(workdir: WorkDir, config: Config, all_runs: Sequence[runs.Run]) -> None:
    """A figure of reverse accuracy over training, and the table of last values."""
    del all_runs
    lines = workdir.results()
    table = toy_study.table(lines, config.inits, config.orders)
    draw = functools.partial(toy_study.figure, lines, config.inits, config.orders)
    text = (
        f"# What reverse accuracy depends on\n\nL = {config.length}, {config.steps} steps; mean "
        "over seeds ± 95 % Student interval at the end; range over evaluations and seeds.\n\n"
        f"{table}"
    )
    report.write(workdir.path, text, {"reverse_over_training": draw}, printed=table)


if __name__ == "__main__":
    flags.main("toy_study", Config, PRESETS, write_report, plan)
