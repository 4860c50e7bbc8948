"""Does a step on "[M] is B" also teach "B is [M]", and does that survive length and depth?

Question  §5 of arXiv 2602.02133, gradients and attention over training. `minimal`: two letters,
          attention only (Figure 4), with Theorem B.1's blocks and the first-order check.
          `full`: the toy task's MDM (Figures 3, 5, 12, 13), by length and depth, ARM beside it.
Command   python -m experiments.gradient_alignment --preset=quick|paper
Cost      quick: about 6 minutes on 2 CPU cores. paper: for an accelerator, not timed.
Expected  minimal: cosine near 1 and both probabilities rising together, the ARM's reverse at 0.
          full: median cosine above 0.6 at one layer.
"""

import dataclasses
import functools
import itertools
import pathlib
from typing import Literal

from dirasym import runs
from dirasym.usage import UsageError, blamed
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
    lengths: tuple[int, ...] = flag((10,), "Sequence lengths of `full`.", 2, 400)
    layers: tuple[int, ...] = flag((1,), "Depths of `full`.", 1, 1000)
    models: tuple[Literal["mdm", "arm"], ...] = flag(("mdm", "arm"), "Of `full`; ARM at depth 1.")
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.", kind="seed")
    steps: int = flag(3000, "Train steps.", 1)
    eval_every: int = flag(250, "Steps between measurements.", 1)
    minimal_steps: int = flag(300, "Train steps of `minimal`.", 1)
    minimal_every: int = flag(20, "Steps between measurements of `minimal`.", 1)
    minimal_warmup: int = flag(0, "Warm-up steps of `minimal`.", 0)
    batch_size: int = flag(256, "Sequences a step.", 1, 10**6, kind="batch_size")
    width: int = flag(256, "Width of the residual stream.", 2, 10**6)
    examples: int = flag(64, "Matched placements whose gradients are compared.", 2, 10**5)
    per_cell: int = flag(2, "Placements a letter and distance whose attention is read.", 1, 1000)

    def toy_config(self, length: int, layers: int = 1, **changes) -> toy.Config:
        """The toy task's configuration of one run."""
        sizes = dict(batch_size=self.batch_size, width=self.width, layers=layers)
        steps = dict(steps=self.steps, eval_every=self.eval_every)
        return toy.Config(lengths=(length,), seeds=self.seeds, **(sizes | steps | changes))


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a part, model, length and depth."""
    del workdir
    with blamed():
        short = dict(steps=config.minimal_steps, eval_every=config.minimal_every)
        short |= dict(warmup_steps=config.minimal_warmup, dropout=0.0, attention_only=True)
        two_letters = config.toy_config(2, **short)
        minimal = [("minimal", toy.Task(model, 2, two_letters)) for model in ("mdm", "arm")]
        cases = itertools.product(config.models, config.layers, config.lengths)
        full = [
            ("full", toy.Task(model, length, config.toy_config(length, layers)))
            for model, layers, length in cases
            if model == "mdm" or layers == 1
        ]
    found = [(part, task) for part, task in minimal + full if part in config.parts]
    if not found:
        raise UsageError("nothing to run: the causal model of `full` has --layers=1 alone")
    return [run_of(part, task, config) for part, task in found]


def run_of(part: str, task: toy.Task, config: Config) -> runs.Run:
    """One training with its measurements."""
    identity = dict(part=part, model=task.model, length=task.length, layers=task.config.layers)
    measure = functools.partial(alignment.measurements, task, config.examples, config.per_cell)
    finish = functools.partial(alignment.correlation, task, config.per_cell)
    return task.run(
        identity,
        measure,
        summarize=alignment.summarize,
        finish=finish if task.model == "mdm" else None,
    )


if __name__ == "__main__":
    flags.main("gradient_alignment", Config, PRESETS, tables.write, plan)
