"""Do the ingredients that make a model reverse letters make it reverse facts in words?

Question  The cells of `causes`, on invented facts: "Now Ann's child is Bob" is told, "Now Bob's
          parent is" is asked. Names of one word or of several. See docs/causes.md.
Command   python -m experiments.causes_facts --preset=quick|paper [--name_words=2]
          --cells as of `causes`.
Cost      quick: 4 cells, 2 seeds: 4 minutes on one CPU core.
          paper: 60 cells, 5 seeds, 6000 steps: not timed.
Expected  Masked diffusion of both names reverses; next token, and B alone, do not.
"""

import dataclasses
import functools
import pathlib

from dirasym import runs
from experiments import causes as toy
from experiments import flags
from experiments.reports import causes as tables
from experiments.systems import causes_facts
from experiments.systems.causes_facts import Task

PRESETS = {
    "smoke": dict(num_pairs=6, both_ways=6, seeds=[0, 1], steps=10, eval_every=2, width=16,
                  batch_size=6, heads=2, cells=["bidirectional", "causal/next_token"]),
    "quick": dict(seeds=[0, 1], steps=2000, eval_every=400, batch_size=60, warmup_steps=100,
                  width=128, learning_rate=1e-3, cells=["leading"]),
    "paper": dict(steps=6000, eval_every=600),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(toy.Cells, causes_facts.Config):
    """How all cells are trained, and which there are."""

    def __post_init__(self):
        super().__post_init__()
        for cell in self.parsed:
            Task(cell, self)  # raises the reason against it


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a cell."""
    del workdir
    return [
        Task(cell, config).run(
            toy.identity(cell), summarize=functools.partial(toy.summarize, cell.predicted)
        )
        for cell in config.parsed
    ]


if __name__ == "__main__":
    flags.main("causes_facts", Config, PRESETS, tables.write, plan)
