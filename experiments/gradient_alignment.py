"""Does a step on "[M] is B" also teach "B is [M]", and does that survive length and depth?

Question  §5 of arXiv 2602.02133, gradients and attention over training. `minimal`: two letters,
          attention only (Figure 4), with Theorem B.1's blocks and the first-order check.
          `full`: the toy task's MDM (Figures 3, 5, 12, 13), by length and depth, ARM beside it.
Command   python -m experiments.gradient_alignment --preset=quick|paper
Cost      quick: about 6 minutes on 2 CPU cores. paper: for an accelerator.
Expected  minimal: cosine near 1 and both probabilities rising together, the ARM's reverse at 0.
          full: median cosine above 0.6 at one layer.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Literal

from dirasym import runs
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.flags import flag
from experiments.reports import alignment as tables
from experiments.systems import alignment, toy

PRESETS = {
    "smoke": dict(
        lengths=[4], layers=[1], seeds=[0], steps=40, eval_every=20, width=16, examples=8
    ),
    "quick": dict(
        lengths=[10], layers=[1, 2], seeds=[0], steps=500, eval_every=100, models=["mdm"]
    ),
    "paper": dict(lengths=[10, 20, 30, 40], layers=[1, 2, 4], seeds=[0, 1, 2]),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    parts: tuple[Literal["minimal", "full"], ...] = flag(("minimal", "full"), "What to run.")
    lengths: tuple[int, ...] = flag((10,), "Sequence lengths of `full`.")
    layers: tuple[int, ...] = flag((1,), "Depths of `full`.")
    models: tuple[Literal["mdm", "arm"], ...] = flag(("mdm", "arm"), "Of `full`; ARM at depth 1.")
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.", kind="seed")
    steps: int = flag(3000, "Train steps.", 1)
    eval_every: int = flag(250, "Steps between measurements.", 1)
    minimal_steps: int = flag(300, "Train steps of `minimal`.", 1)
    minimal_every: int = flag(20, "Steps between measurements of `minimal`.", 1)
    minimal_warmup: int = flag(0, "Warm-up steps of `minimal`.", 0)
    batch_size: int = flag(256, "Sequences a step.", 1, kind="batch_size")
    width: int = flag(256, "Width of the residual stream.", 2)
    examples: int = flag(64, "Matched placements whose gradients are compared.", 2)
    per_cell: int = flag(2, "Placements a letter and distance whose attention is read.", 1)

    def __post_init__(self):
        if not settings(self):
            raise ValueError("nothing to run: the causal model of `full` has --layers=1 alone")

    def toy_config(self, length: int, layers: int = 1, **changes) -> toy.Config:
        """The toy task's configuration of one run."""
        sizes = dict(batch_size=self.batch_size, width=self.width, layers=layers)
        steps = dict(steps=self.steps, eval_every=self.eval_every)
        return toy.Config(lengths=(length,), seeds=self.seeds, **(sizes | steps | changes))

    def minimal(self) -> toy.Config:
        """Two letters, no padding, attention alone."""
        return self.toy_config(
            2,
            attention_only=True,
            dropout=0.0,
            steps=self.minimal_steps,
            eval_every=self.minimal_every,
            warmup_steps=self.minimal_warmup,
        )


def settings(config: Config) -> list[tuple]:
    """(part, model, length, layers, the toy task's configuration) of every run."""
    found = []
    if "minimal" in config.parts:
        found += [("minimal", model, 2, 1, config.minimal()) for model in ("mdm", "arm")]
    if "full" in config.parts:
        found += [
            ("full", model, length, layers, config.toy_config(length, layers))
            for model in config.models
            for layers in config.layers
            for length in config.lengths
            if model == "mdm" or layers == 1
        ]
    return found


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a setting."""
    del workdir
    planned = []
    for part, model, length, layers, toy_config in settings(config):
        task = toy.Task(model, length, toy_config)
        finish = functools.partial(alignment.correlation_by_distance, task, config.per_cell)
        planned.append(
            task.run(
                dict(part=part, model=model, length=length, layers=layers),
                functools.partial(alignment.measurements, task, config.examples, config.per_cell),
                summarize=alignment.summarize,
                finish=finish if model == "mdm" else None,
            )
        )
    return planned


def report(workdir: WorkDir, config: Config, all_runs: Sequence[runs.Run]) -> None:
    """The table and Figures 3 to 5, 12 and 13."""
    tables.write(workdir, config, all_runs, alignment.STEP_LENGTHS)


if __name__ == "__main__":
    flags.main("gradient_alignment", Config, PRESETS, report, plan)
