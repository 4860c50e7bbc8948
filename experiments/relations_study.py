"""What changes the reversal curse: depth, weight decay, dropout, or the kind of network?

Question  The questions that arXiv 2405.04669 leaves open, on its own reversal sentences: one factor
          at a time around a small network; does the withheld direction come nearer, and do the
          weights become less asymmetric?
Command   python -m experiments.relations_study --preset=quick|paper
Cost      quick (2 layers × 64, 3 seeds, 200 epochs): 9 minutes on one core, most of it
          compilation: --seeds_together=yes is faster here. --factors=family for one factor.
Expected  The withheld direction stays above a uniform guess under every factor but one: a masked
          network in which any token may be the masked one learns it.
"""

import dataclasses
from typing import Literal

import numpy as np

from dirasym import metrics, report
from experiments import harness, relations, relations_task
from experiments.flags import flag

FACTORS = {  # of each factor, what differs from the base
    "depth": {str(n): dict(n_layers=n) for n in (1, 2, 4, 8, 24)},
    "weight_decay": {str(x): dict(weight_decay=x) for x in (0.0, 0.1, 1.0, 3.0)},
    "dropout": {str(x): dict(dropout=x) for x in (0.0, 0.1, 0.3)},
    "family": {x: dict(family=x) for x in ("gpt2", "mlp", "gru", "masked")},
    "loss": {
        "last word": {},
        "whole": dict(loss_whole_sequence=True),
        "masked, whole": dict(family="masked", loss_whole_sequence=True),
    },
}
PRESETS = {
    "smoke": dict(
        vocab_size=40, embed_dim=8, num_epochs=4, seeds=[0], factors=["weight_decay", "family"]
    ),
    "quick": {},
    "paper": dict(vocab_size=800, embed_dim=768, num_epochs=1000, seeds=list(range(10))),
}
KEYS = {  # what is reported of a run, and how it is called
    "train_nll": "training NLL",
    "validation_nll": "withheld NLL",
    "lowest_validation_nll": "its lowest",
    "validation_nll_when_learned": "when training < 0.05",
    "gap_given": "trained gap",
    "gap_withheld": "withheld gap",
    "asymmetry_trained": "asymmetry, trained both ways",
    "asymmetry_withheld": "asymmetry, withheld",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    factors: tuple[Literal[tuple(FACTORS)], ...] = flag(tuple(FACTORS), "What to vary.")
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.")
    vocab_size: int = flag(200, "Tokens to draw entities from.", 1)
    n_layers: int = flag(2, "Layers where depth does not vary.", 1)
    embed_dim: int = flag(64, "Width.", 1)
    num_epochs: int = flag(200, "Epochs.", 1)
    lr: float = flag(1e-3, "AdamW's.", 0)

    def __post_init__(self):
        for factor in self.factors:
            for changes in FACTORS[factor].values():
                self.relations(changes)  # raises what does not fit

    def relations(self, changes: dict) -> relations_task.Config:
        """The reversal run with `changes`."""
        base = relations_task.Config(
            seeds=self.seeds,
            vocab_size=self.vocab_size,
            n_layers=self.n_layers,
            n_heads=4,
            embed_dim=self.embed_dim,
            num_epochs=self.num_epochs,
            eval_every=max(n for n in range(1, 21) if self.num_epochs % n == 0),
            lr=self.lr,
            dropout=0.0,
        )
        return dataclasses.replace(base, **changes)


def run(experiment: harness.Experiment, config: Config) -> None:
    """Trains every value of every factor, and reports."""
    for factor in config.factors:
        for value, changes in FACTORS[factor].items():
            run_config = config.relations(changes)
            for seeds in harness.seed_groups(config.seeds):
                if not experiment.is_done(factor=factor, value=value, seed=seeds[-1]):
                    train_and_record(experiment, run_config, factor, value, seeds)
    write_report(experiment, config)


def train_and_record(experiment, run_config, factor: str, value: str, seeds: list[int]) -> None:
    """One group of seeds."""
    devices = experiment.mesh.size if experiment.mesh is not None else 1
    task = relations_task.Task(run_config, None, len(seeds) > 1, devices)
    name = f"{factor}-{value}-seeds{'-'.join(map(str, seeds))}".replace(", ", "_").replace(" ", "_")
    _, history = task.train(experiment, name, seeds)
    experiment.save_curves(name, history)
    lines = [
        {
            "factor": factor,
            "value": value,
            **relations.result_line(task, history, place, seed),
        }
        for place, seed in enumerate(seeds)
    ]
    experiment.record(lines, keys=("factor", "value", "seed"))


def write_report(experiment: harness.Experiment, config: Config) -> None:
    """A table and a figure for each factor."""
    results = experiment.results()
    tables, paths = [], []
    for factor in config.factors:
        figure = _figure(factor, results)
        paths.append(report.save_figure(figure, experiment.workdir / "figures", factor))
        rows = [
            [value, *(relations.interval(report.select(lines, value=value), key) for key in KEYS)]
            for lines in [report.select(results, factor=factor)]
            for value in FACTORS[factor]
        ]
        tables.append(report.table([factor, *KEYS.values()], rows))
    printed = "\n\n".join(tables)
    text = (
        f"# What changes the reversal curse\n\n{printed}\n\nReversal sentences over "
        f"{config.vocab_size} tokens; a uniform guess costs "
        f"{results[0]['uniform_nll']:.3f} nats. Base: GPT-2 of {config.n_layers} layers × "
        f"{config.embed_dim}, {config.num_epochs} epochs, AdamW {config.lr:g}, weight decay 0.01, "
        f"no dropout. Mean over {len(config.seeds)} seeds ± 95 % Student interval."
    )
    experiment.write_report(text, paths, printed=printed)


def _figure(factor: str, results):
    figure, axes = report.new_figure(1, 2, (4.2, 3.2))
    place = np.arange(len(FACTORS[factor]))
    shown = (
        ("train_nll", "validation_nll", "validation_nll_when_learned"),
        ("asymmetry_trained", "asymmetry_withheld"),
    )
    for ax, keys, ylabel in zip(axes[0], shown, ("NLL (nats)", "asymmetry"), strict=True):
        for key in keys:
            lines_V = [report.select(results, factor=factor, value=v) for v in FACTORS[factor]]
            values_V = [[r[key] for r in lines if r.get(key) is not None] for lines in lines_V]
            mean, half = np.array(
                [metrics.student_interval(v) if v else (np.nan, np.nan) for v in values_V]
            ).T
            ax.errorbar(place, mean, np.nan_to_num(half), marker="o", capsize=3, label=KEYS[key])
        ax.set(xticks=place, xticklabels=FACTORS[factor], xlabel=factor, ylabel=ylabel)
        ax.set_ylim(bottom=0)
    axes[0, 0].axhline(results[0]["uniform_nll"], color="black", ls=":", label="uniform guess")
    for ax in axes[0]:
        ax.legend(fontsize="x-small")
    return figure


if __name__ == "__main__":
    harness.main("relations_study", Config, PRESETS, run)
