"""What changes the reversal curse: depth, weight decay, dropout, or the kind of network?

Question  The questions that arXiv 2405.04669 leaves open, on its own reversal sentences: one factor
          at a time around a small network; does the withheld direction come nearer, and do the
          weights become less asymmetric?
Command   python -m experiments.relations_study --preset=quick|paper
Cost      quick (2 layers × 64, 3 seeds, 200 epochs): 11 minutes on one of two shared cores with
          --seeds_together=yes, which compiles once for three seeds. --factors=family for one
          factor; in_context_fresh: 25 minutes of one core. learning_rate, head and
          share_both_ways, with --vocab_size=800 --embed_dim=128 --num_epochs=400: 10 minutes of
          one core, and 24 more for 24 layers. paper (width 768, 10 seeds, 1000 epochs): for an
          accelerator, not timed.
Expected  The withheld direction ends above a uniform guess under every factor but one: a masked
          network in which any token may be the masked one learns it. Which of the withheld
          answers is right, an untied head does not know; a tied one may.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dirasym import report, runs
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.flags import flag
from experiments.reports import relations_study
from experiments.systems import in_context, relations
from experiments.systems.in_context import EVALUATIONS

FACTORS: dict[str, dict[str, dict[str, Any]]] = {  # of each, what differs from the base
    "depth": {str(n): dict(n_layers=n) for n in (1, 2, 4, 8, 24)},
    "weight_decay": {str(x): dict(weight_decay=x) for x in (0.0, 0.1, 1.0, 3.0)},
    "l2": {str(x): dict(weight_decay=0.0, l2=x) for x in (0.0, 1e-4, 1e-3, 1e-2)},
    "dropout": {str(x): dict(dropout=x) for x in (0.0, 0.1, 0.3)},
    "learning_rate": {str(x): dict(lr=x) for x in (3e-4, 1e-3, 3e-3, 1e-2)},
    "learning_rate_24": {  # layers
        **{str(x): dict(n_layers=24, lr=x) for x in (1e-3, 3e-3, 1e-2)},
        "0.01, untied": dict(n_layers=24, lr=1e-2, tied_head=False),
        "0.01, dropout 0.1": dict(n_layers=24, lr=1e-2, dropout=0.1),
    },
    "head": {
        "tied": {},
        "untied": dict(tied_head=False),
        "tied, frozen embeddings": dict(freeze_wte_wpe=True),
    },
    "share_both_ways": {str(x): dict(train_share=x) for x in (0.1, 0.3, 0.5, 0.7)},
    "family": {x: dict(family=x) for x in ("gpt2", "mlp", "gru", "masked")},
    "loss": {
        "last word": {},
        "whole": dict(loss_whole_sequence=True),
        "masked, whole": dict(family="masked", loss_whole_sequence=True),
    },
    "in_context": {  # facts told in the prompt, and one asked back
        f"depth {n}, {m} told": dict(task="icl", n_layers=n, num_facts=m)
        for n in (1, 2, 4) for m in (1, 2, 4, 8)
    },
    "in_context_more": {  # ten times the names B, and so the sentences
        f"depth {n}, {m} told": dict(task="icl", n_layers=n, num_facts=m, num_y_tokens=100)
        for n in (1, 2) for m in (2, 4)
    },
}  # fmt: skip
FRESH = "in_context_fresh"  # no sentence comes twice; of each cell, what differs from 2 of 50 names
PROMPTS: dict[str, dict[str, int]] = {
    **{f"{m} told": dict(num_facts=m) for m in (1, 2, 4, 8)},
    "4 told, 2 asked": dict(num_facts=4, num_asked=2),
    **{f"{n} names": dict(num_names=n) for n in (12, 200, 800)},
}
OWN_COMMAND = (  # not among the factors unless asked for
    "learning_rate", "learning_rate_24", "head", "share_both_ways", "l2", "in_context",
    "in_context_more", FRESH,
)  # fmt: skip
PRESETS = {
    "smoke": dict(
        vocab_size=40, embed_dim=8, num_epochs=4, seeds=[0], factors=["weight_decay", "family"]
    ),
    "quick": {},
    "paper": dict(vocab_size=800, embed_dim=768, num_epochs=1000, seeds=list(range(10))),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    factors: tuple[Literal[(*FACTORS, FRESH)], ...] = flag(
        tuple(factor for factor in FACTORS if factor not in OWN_COMMAND),
        "What to vary; l2: coupled decay; in_context and the like: facts told in the prompt.",
    )
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.", kind="seed")
    vocab_size: int = flag(200, "Tokens to draw entities from.", 1, 10**6)
    n_layers: int = flag(2, "Layers where depth does not vary.", 1, 1000)
    embed_dim: int = flag(64, "Width.", 1, 10**5)
    num_epochs: int = flag(200, "Epochs.", 1)
    num_steps: int = flag(6000, "Steps of in_context_fresh; a multiple of 20.", 20)
    lr: float = flag(1e-3, "AdamW's.", 0)

    def __post_init__(self):
        if self.num_steps % EVALUATIONS:
            raise ValueError(f"--num_steps={self.num_steps} is not a multiple of {EVALUATIONS}")
        for factor in self.factors:
            for changes in FACTORS.get(factor, {}).values():
                self.relations(changes)  # raises what does not fit

    def relations(self, changes: Mapping[str, Any]) -> relations.Config:
        """The reversal run with `changes`."""
        base = relations.Config(
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


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a value of a factor; the base, which most factors have, is compiled once."""
    del workdir
    learner_of = functools.cache(relations.learner)
    all_runs = []
    for factor in config.factors:
        for value, changes in PROMPTS.items() if factor == FRESH else ():
            prompts = in_context.Prompts(**changes)
            learner = in_context.InContext(prompts, config.relations({}), config.num_steps)
            all_runs.append(learner.run({"factor": factor, "value": value}))
        for value, changes in FACTORS.get(factor, {}).items():
            c = config.relations(changes)
            more = {"task": c.task, "family": c.family, "num_train": None}
            all_runs.append(learner_of(c).run({"factor": factor, "value": value}, more))
    return all_runs


def write_report(workdir: WorkDir, config: Config, all_runs: Sequence[runs.Run]) -> None:
    """A table and a figure for each factor."""
    del all_runs
    lines = workdir.results()
    values = {factor: list(FACTORS.get(factor, PROMPTS)) for factor in config.factors}
    printed = "\n\n".join(
        relations_study.tables(factor)(lines, factor, values[factor]) for factor in values
    )
    figures = {
        factor: functools.partial(relations_study.figures(factor), lines, factor, values[factor])
        for factor in values
    }
    text = (
        f"# What changes the reversal curse\n\n{printed}\n\nReversal sentences (in_context: facts "
        f"in the prompt) over {config.vocab_size} tokens; a uniform guess costs "
        f"{relations_study.guesses(lines)} nats. Base: GPT-2 of {config.n_layers} layers × "
        f"{config.embed_dim}, {config.num_epochs} epochs, AdamW {config.lr:g}, weight decay 0.01, "
        f"no dropout. Mean over {len(config.seeds)} seeds ± 95 % Student interval."
    )
    report.write(workdir.path, text, figures, printed=printed)


if __name__ == "__main__":
    flags.main("relations_study", Config, PRESETS, write_report, plan)
