"""What does the MDM's reverse accuracy hang on: initialisation, order of revealing, or the step?

Question  Table 2's reverse column runs from 34 to 56 % without an interval. Here the toy task
          is trained from several initialisations, and at every evaluation the same weights
          generate in several orders.
Command   python -m experiments.toy_study --preset=quick|paper
Cost      paper (L = 10, 6 × 3 runs of 3000 steps): 4 minutes a run on one CPU core.
Expected  Forward stays near 100 %; reverse moves by tens of points with each factor.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from dirasym import metrics, report, training
from dirasym.data import case_pairs
from experiments import harness, toy_task
from experiments.harness import flag

Order = Literal["random", "left_to_right", "right_to_left", "at_once"]
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

    length: int = flag(10, "Sequence length L.", 2)
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.")
    inits: tuple[Literal[tuple(INITS)], ...] = flag(tuple(INITS), "Initialisations.")
    orders: tuple[Order, ...] = flag(Order.__args__, "Orders of revealing.")
    steps: int = flag(3000, "Train steps.", 1)
    eval_every: int = flag(250, "Steps between evaluations.", 1)
    generations: int = flag(100, "Sampled per letter, direction and order.", 1)

    def __post_init__(self):
        for init in self.inits:
            self.toy(init)  # raises what does not fit

    @property
    def batch_size(self) -> int:
        """Sequences a step."""
        return self.toy(self.inits[0]).batch_size

    def toy(self, init: str) -> toy_task.Config:
        """The toy task from one initialisation."""
        return toy_task.Config(
            lengths=(self.length,),
            steps=self.steps,
            eval_every=self.eval_every,
            generations=self.generations,
            **INITS[init],
        )


def run(experiment: harness.Experiment, config: Config) -> None:
    """Trains every initialisation and seed, then reports."""
    for init in config.inits:
        for seeds in harness.seed_groups(config.seeds):
            if not experiment.is_done(init=init, seed=seeds[-1]):
                together = len(seeds) > 1
                task = toy_task.Task("mdm", config.length, config.toy(init), together)
                train_and_record(experiment, task, init, seeds, config.orders)
    write_report(experiment, config)


def train_and_record(experiment, task, init: str, seeds: list[int], orders) -> None:
    """One group of seeds: trains, generates in every order, records."""

    def evaluate(state):
        key = jax.random.fold_in(state.key, training.EVAL_STREAM)
        return {
            f"{direction}/{order}/{weights}": task.generate(
                params, case_pairs.prompts(task.length, direction), key, order
            )
            for weights, params in (("raw", state.params), ("ema", state.ema_params))
            for direction in ("forward", "reverse")
            for order in orders
        }

    name = f"{init}-seeds{'-'.join(map(str, seeds))}"
    c = task.config
    history = task.train(experiment, name, seeds, evaluate)
    lines = [
        {
            "init": init,
            "seed": seed,
            "eval_step": history["eval_step"].tolist(),
            **{key: x[:, place].tolist() for key, x in history.items() if "/" in key},
            "loss": history["loss"][c.eval_every - 1 :: c.eval_every, place].tolist(),
            "run_wall_time_sec": float(history["wall_time_sec"]),
        }
        for place, seed in enumerate(seeds)
    ]
    experiment.record(lines, keys=("init", "seed"))


def write_report(experiment: harness.Experiment, config: Config) -> None:
    """A figure of reverse accuracy over training, and the table of last values."""
    figure, table = draw(experiment.results(), config.inits, config.orders)
    path = report.save_figure(figure, experiment.workdir / "figures", "reverse_over_training")
    text = (
        f"# What reverse accuracy hangs on\n\nL = {config.length}, {config.steps} steps; mean "
        "over seeds ± 95 % Student interval at the end; range over evaluations and seeds.\n\n"
        f"{table}"
    )
    experiment.write_report(text, [path], printed=table)


def draw(results: Sequence[Mapping[str, Any]], inits: Sequence[str], orders: Sequence[str]):
    """The figure and the table of result lines; seeds of one initialisation are equally long."""
    figure, axes = report.new_figure(2, len(inits), (3.2, 2.6))
    rows = []
    for column, init in enumerate(inits):
        lines = report.select(results, init=init)
        for row, weights in enumerate(("raw", "ema")):
            ax = axes[row, column]
            for order in orders:
                reverse_TS = np.array([line[f"reverse/{order}/{weights}"] for line in lines]).T
                forward_TS = np.array([line[f"forward/{order}/{weights}"] for line in lines]).T
                report.plot_seeds(ax, lines[0]["eval_step"], reverse_TS, order)
                rows.append(
                    [
                        init,
                        order,
                        weights,
                        report.with_interval(*metrics.student_interval(forward_TS[-1]), 1),
                        report.with_interval(*metrics.student_interval(reverse_TS[-1]), 1),
                        f"{reverse_TS[1:].min():.0f} to {reverse_TS[1:].max():.0f}",
                    ]
                )
            ax.set(title=f"{init}, {weights}", xlabel="step", ylabel="reverse (%)", ylim=(-2, 102))
    axes[0, 0].legend(fontsize="x-small")
    header = ["initialisation", "order", "weights", "forward %", "reverse %", "reverse, any step"]
    return figure, report.table(header, rows)


if __name__ == "__main__":
    harness.main("toy_study", Config, PRESETS, run)
