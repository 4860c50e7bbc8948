"""What does each remedy of the reversal curse buy, at equal tokens, compute or exposure?

Question  Papers report each remedy in a setting of its own. Here all are trained on the same toy
          pairs, a causal model's but for diffusion: rows reversed (both directions told), reversed
          by random segments (arXiv 2403.13799), identity rows (2602.02470), masked copies before
          rows (2510.09885), a uniform-rate masked LM on a causal network (2406.05183), masked
          diffusion without and with reversed rows (2601.07347), weight decay, dropout.
Command   python -m experiments.cures --preset=quick|paper
Cost      quick: 5 cells, 2 seeds: 2 minutes on 2 CPU cores. paper: 17 cells, 5
          seeds: 18 minutes on an accelerator by reckoning, not run.
Expected  See docs/cures.md, where predictions stood before results.
"""

import pathlib

from dirasym import runs
from experiments import flags
from experiments.reports import cures as cures_report
from experiments.systems import cures

PRESETS = {
    "smoke": dict(
        remedies=["none", "copies", "diffusion"], matchings=["compute"], length=4, seeds=[0, 1],
        steps=8, evaluations=2, batch_size=16, width=16, generations=2,
    ),
    "quick": dict(
        remedies=["none", "reversed", "identity", "copies", "diffusion"], matchings=["compute"],
        seeds=[0, 1],
    ),
    "paper": dict(width=256, steps=3000, batch_size=256, generations=100, seeds=list(range(5))),
}  # fmt: skip


def plan(config: cures.Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a remedy and matching, where the matching changes something."""
    del workdir
    return [cures.Task(remedy, matching, config).run() for matching, remedy in config.cells]


if __name__ == "__main__":
    flags.main("cures", cures.Config, PRESETS, cures_report.write, plan)
