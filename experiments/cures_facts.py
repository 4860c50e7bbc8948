"""What does each remedy of the reversal curse buy on facts in words?

Question  The remedies of `cures` on invented facts, where reversal by word and by name, masking
          of whole names and the inverse wording come apart. "Now Ann's child is Bob" is told,
          "Now Bob's parent is" is asked. Names of two words, or of --name_words.
Command   python -m experiments.cures_facts --preset=quick|paper
Cost      quick: 6 cells, 2 seeds: 4 minutes on one CPU core. paper: 32 cells, 5 seeds,
          6000 steps: not timed.
Expected  See docs/cures.md, where predictions stood before results.
"""

import pathlib

from dirasym import runs
from experiments import flags
from experiments.reports import cures_facts as report
from experiments.systems import cures_facts

SMALL = dict(num_pairs=60, both_ways=300, name_words=2, batch_size=60)
PRESETS = {
    "smoke": dict(
        remedies=["none", "copies", "diffusion_inverse"], matchings=["compute"], num_pairs=4,
        both_ways=4, teachers=2, seeds=[0, 1], steps=8, evaluations=2, batch_size=8, width=16,
        heads=2,
    ),
    "quick": SMALL | dict(
        remedies=["none", "inverse", "entities", "identity", "copies", "diffusion"],
        matchings=["compute"], seeds=[0, 1], steps=2000,
    ),
    "paper": SMALL | dict(width=256, steps=6000, seeds=list(range(5))),
}  # fmt: skip


def plan(config: cures_facts.Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a remedy and matching, where the matching changes something."""
    del workdir
    return [cures_facts.Task(remedy, matching, config).run() for matching, remedy in config.cells]


if __name__ == "__main__":
    flags.main("cures_facts", cures_facts.Config, PRESETS, report.write, plan)
