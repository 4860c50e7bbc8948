"""Does a network that learned "A → B" answer "B ←", and one that learned A → B → C answer "A ⇒"?

Question  Figures of §5 and App. C of arXiv 2405.04669: negative log likelihood (NLL) of the last
          word in training and validation, weights as heat maps, cosines of embeddings.
Command   python -m experiments.relations --task=reversal|chain|chain_related|icl
          --preset=quick|paper
Cost      quick: GPT-2 of 2 layers × 128, 3 seeds, 400 epochs at 1e-3: 2 to 5 minutes on 2 CPU
          cores. paper: 24 layers × 768, 10 seeds, 3000 epochs: on them 5 s an epoch and seed.
Expected  Training NLL → 0. Validation NLL: reversal and chain at or above a uniform guess among
          the candidates (ln 200 = 5.30); icl near 0; chain_related falls as more triples train.
"""

import pathlib

from dirasym import runs
from dirasym.usage import UsageError
from experiments import flags
from experiments.reports import relations as relations_report
from experiments.systems import relations

PRESETS = {
    "smoke": dict(
        seeds=[0], vocab_size=60, alphabet_size=40, num_train=[10, 20], num_val=10,
        num_x_tokens=10, num_y_tokens=4, n_layers=1, n_heads=2, embed_dim=16, dropout=0.0,
        num_epochs=10, eval_every=5, lr=0.001,
    ),
    "quick": dict(
        seeds=[0, 1, 2], num_train=[2, 5, 20, 50], n_layers=2, n_heads=4, embed_dim=128,
        dropout=0.0, num_epochs=400, lr=0.001,
    ),
    "paper": dict(num_train=[10, 20, 50, 100, 200, 500]),
}  # fmt: skip
READ_BY = {  # tasks that read a flag, where not all do
    **dict.fromkeys(("alphabet_size", "num_train", "num_val"), ("chain_related",)),
    **dict.fromkeys(("num_x_tokens", "num_y_tokens", "num_facts"), ("icl",)),
    "train_share": ("reversal", "chain", "icl"),
}


def plan(config: relations.Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a number of training triples, where there is a choice."""
    del workdir
    for name, tasks in READ_BY.items():
        if config.task not in tasks and name in flags.FLAGS and flags.FLAGS[name].present:
            raise UsageError(f"--{name} is of --task={', '.join(tasks)}, not of {config.task}")
    all_runs = []
    for size in config.sizes:
        known = {"task": config.task, "family": config.family, "num_train": size}
        identity = {key: value for key, value in known.items() if value is not None}
        learner = relations.learner(config, size)
        all_runs.append(learner.run(identity, known, heat_maps=True))
    return all_runs


if __name__ == "__main__":
    flags.main("relations", relations.Config, PRESETS, relations_report.write, plan)
