"""Does a network without attention or order show World A's directional gap?

Question  The MLP baseline of arXiv 2511.19997: all characters of a string from all characters
          of another, in both directions of a K-to-1 map. In the paper's convention (mean loss
          per character − ln K), and in nats per string above the floor that such a model
          has, Σ_p H(character p | source).
Command   python -m experiments.world_a_mlp --preset=quick|paper
Cost      quick: about 2 minutes on 2 CPU cores. paper (40000 pairs, 50 epochs, K = 1, 5, 8): 6
          runs a seed, 90 seconds to 10 minutes each on 2 shared CPU cores.
Expected  paper's convention: gap 0.22 at K = 5, about 0.1 at K = 8, 0 at K = 1.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dirasym import models, objectives, runs, training
from dirasym.analysis import excess
from dirasym.data import string_maps
from dirasym.data.string_maps import DIRECTIONS, Direction
from dirasym.workdir import WorkDir
from dirasym.world_a import Learner
from experiments import flags
from experiments.flags import flag
from experiments.reports import world_a as world_a_report
from experiments.systems import world_a

PRESETS = {
    "smoke": dict(Ks=[1, 5], n_pairs=200, epochs=4, eval_every=2, d_hidden=64, n_layers=2),
    "quick": dict(Ks=[1, 5], n_pairs=2000, epochs=60, eval_every=20, d_hidden=256),
    "paper": {},
}
VOCAB = len(string_maps.ALPHABET)


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field; the first ten are those of the original script."""

    Ks: tuple[int, ...] = flag((1, 5, 8), "Branching factors K.", 1)
    n_pairs: int = flag(40_000, "Pairs of strings.", 1, 10**6)
    str_len: int = flag(8, "Characters of a string.", 1, 1000)
    epochs: int = flag(50, "Passes over the pairs.", 1)
    batch_size: int = flag(256, "Pairs a step.", 1, 10**6, kind="batch_size")
    lr: float = flag(1e-3, "AdamW's learning rate.", 0)
    d_emb: int = flag(64, "Width of a character's embedding.", 1, 10**6)
    d_hidden: int = flag(512, "Width of the hidden layers.", 1, 10**6)
    n_layers: int = flag(4, "Hidden layers.", 1, 1000)
    output: str = flag("", "Results file; WORKDIR/results.jsonl if empty.", kind="path")
    seeds: tuple[int, ...] = flag((0,), "One run each.", kind="seed")
    directions: tuple[Direction, ...] = flag(DIRECTIONS, "Which.")
    control: Literal["none", "exchangeable"] = flag("none", "Exchangeable: K-to-K maps.")
    eval_every: int = flag(10, "Epochs between clean evaluations (and checkpoints).", 1)

    def __post_init__(self):
        for K in self.Ks:
            world_a.string_map(self, K)


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a K and direction."""
    del workdir
    maps = [world_a.string_map(config, K) for K in config.Ks]
    cases = [make_case(of, way) for of in maps for way in config.directions]
    learner = make_learner(config)
    return [learner.run(case, {"arch": "mlp"}, {"lr": config.lr}) for case in cases]


def make_case(of: string_maps.StringMap, direction: Direction) -> excess.Case:
    """Source and target characters side by side, and the parallel floor."""
    pairs = zip(*of.oriented(direction), strict=True)
    tokens_BL = string_maps.to_ids([source + target for source, target in pairs])
    scored_BL = np.tile(np.arange(2 * of.str_len) >= of.str_len, (len(tokens_BL), 1))
    data = {"tokens_BL": tokens_BL, "scored_BL": scored_BL}
    return excess.make_case(of, direction, data, "parallel")


def make_learner(config: Config) -> Learner:
    """The model and its training, shared by all cases."""
    c = config
    model = models.StringMLP(VOCAB, c.str_len, c.d_emb, c.d_hidden, c.n_layers)
    optimizer = training.make_optimizer(c.lr, clip_norm=None)

    def apply_fn(params, tokens_BL):
        return model.apply({"params": params}, tokens_BL)

    init = training.initializer(model, apply_fn, optimizer, length=2 * c.str_len)
    # The target is never read, so any id outside the alphabet hides it.
    objective = functools.partial(objectives.parallel_target, mask_id=VOCAB)
    return Learner(
        init,
        objective,
        c.epochs,
        c.batch_size,
        c.eval_every,
        eval_batch_size=2048,
        dropout=False,
        token_mean="strings",  # the original's
        loss_name="final_loss",
        network=model,
    )


def report(workdir: WorkDir, config: Config, all_runs: Sequence[runs.Run]) -> None:
    """Tables and figures."""
    world_a_report.write(workdir, config, all_runs)


if __name__ == "__main__":
    flags.main("world_a_mlp", Config, PRESETS, report, plan)
