"""Why weights are asymmetric: the bilinear and the one-layer model, solved and simulated.

Question  §3 and §4 of arXiv 2405.04669. Bilinear: does the reverse loss stay while the forward
          loss falls, L_rev(t)/L_rev(0) ≥ (L(t)/L(0))^ε, and with what ε at each width? One layer:
          does gradient flow follow the closed form, and what breaks the curse?
Command   python -m experiments.training_dynamics --preset=quick|paper
Cost      quick: 8 widths × 5 seeds, about 2 minutes on 2 CPU cores; paper: 20 seeds,
          not timed.
Expected  The one-layer flow agrees with the closed form to 1e-4 and the reverse probability is
          1/M to machine precision. ε falls with the width; each break condition breaks it.
"""

import functools
import pathlib

from dirasym.pieces import Piece
from dirasym.workdir import WorkDir
from experiments import flags, work
from experiments.reports import training_dynamics as dynamics_report
from experiments.systems import training_dynamics as dynamics

PRESETS = {
    "smoke": dict(widths=[16, 256], seeds=[0], vocab_size=16, num_pairs=6, num_times=12),
    "quick": {},
    "paper": dict(seeds=list(range(20)), vocab_size=200, num_pairs=80),
}
CHECKED_STEPS = 20  # of gradient descent, before anything is written


def plan(config: dynamics.Config, workdir: pathlib.Path) -> list:
    """Nothing is trained; raises UsageError for a step size at which descent diverges at once."""
    del workdir
    dynamics.descend(config, CHECKED_STEPS)
    return []


def pieces(config: dynamics.Config) -> list[Piece]:
    """A piece a width and seed, a case of the one-layer model, and gradient descent."""
    bilinear = [
        Piece(
            {"part": "bilinear", "width": width},
            functools.partial(dynamics.solve_bilinear, config, width, seed),
            seed,
        )
        for width in config.widths
        for seed in config.seeds
    ]
    one_layer = [
        Piece(
            {"part": "one_layer", "case": case}, functools.partial(dynamics.solve_one_layer, case)
        )
        for case in dynamics.CASES
    ]
    descent = Piece({"part": "descent"}, functools.partial(dynamics.compare_descent, config))
    return [*bilinear, *one_layer, descent]


def solve(workdir: WorkDir, config: dynamics.Config, planned: list) -> None:
    """Solves what is missing, and reports."""
    del planned
    if work.all_done(pieces(config), workdir):
        dynamics_report.write(workdir, config, pieces(config))


if __name__ == "__main__":
    flags.main("training_dynamics", dynamics.Config, PRESETS, solve, plan)
