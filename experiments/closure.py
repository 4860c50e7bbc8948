"""Does weight decay reverse what a closed family graph implies, and does it reverse isolated pairs?

Question  docs/training_dynamics.md: weight decay does not reduce the asymmetry of isolated pairs.
          arXiv 2509.21993: on a closed graph of family relations it takes the reverse from about
          10 to 98 %. Here one network learns family graphs with 0 (isolated pairs) to 6 (closed)
          composing relations, under AdamW's weight decay 0 to 6.
Command   python -m experiments.closure --preset=quick|paper
Cost      quick: 3 decays × 2 closures, width 64, 2 seeds: under 5 minutes on 2 CPU cores. paper:
          9 × 4 × 3 sizes, 3 seeds: an hour on an accelerator is expected; not run.
Expected  See docs/closure.md, where predictions stood before results.
"""

import pathlib

from dirasym import models, runs
from experiments import flags
from experiments.reports import closure as closure_report
from experiments.systems import families

PRESETS = {
    "smoke": dict(
        weight_decays=["0", "3"], closures=[0, 6], widths=[16], seeds=[0, 1], num_families=8,
        num_steps=40, eval_every=20, batch_size=32,
    ),
    "quick": dict(weight_decays=["0", "1", "3"], closures=[0, 6], seeds=[0, 1]),
    "paper": dict(widths=[64, 128, 256], num_families=200, num_steps=10_000, eval_every=1000),
}  # fmt: skip


def plan(config: families.Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a width, closure and decay; decays of one width and closure share their programs."""
    del workdir
    all_runs, optimizer = [], families.decayed_adamw(config.lr)
    graphs = {closure: config.graph(closure) for closure in config.closures}
    for width in config.widths:
        network = models.gpt2(
            next(iter(graphs.values())).vocab_size,
            dropout=0.0,
            num_layers=config.n_layers,
            num_heads=config.n_heads,
            width=width,
            max_len=2,
        )
        model = models.Transformer(network)
        apply_fn = models.make_apply_fn(model)
        for closure, graph in graphs.items():
            learner = families.ClosureLearner(config, graph, model, apply_fn, optimizer)
            for decay in config.weight_decays:
                identity = {"width": width, "closure": closure, "weight_decay": decay}
                all_runs.append(learner.run(identity, float(decay)))
    return all_runs


if __name__ == "__main__":
    flags.main("closure", families.Config, PRESETS, closure_report.write, plan)
