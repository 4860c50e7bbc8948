"""Does a network without attention or order show World A's directional gap?

Question  The MLP baseline of arXiv 2511.19997: all characters of a string from all characters
          of another, in both directions of a K-to-1 map. In the paper's convention (mean loss
          per character − ln K), and in nats per string above the floor that such a model
          has, Σ_p H(character p | source).
Command   python -m experiments.world_a_mlp --preset=quick|paper
Cost      quick: about 2 minutes on 2 CPU cores; paper (40000 pairs, 50 epochs, K = 1, 5, 8):
          see docs/world_a.md.
Expected  paper's convention: gap 0.22 at K = 5, about 0.1 at K = 8, 0 at K = 1.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np

from dirasym import models, objectives, training
from dirasym.analysis import excess
from dirasym.data import string_maps
from experiments import harness, world_a_report, world_a_task
from experiments.flags import flag
from experiments.world_a_task import Direction

PRESETS = {
    "smoke": dict(Ks=[1, 5], n_pairs=200, epochs=4, eval_every=2, d_hidden=64, n_layers=2),
    "quick": dict(Ks=[1, 5], n_pairs=2000, epochs=60, eval_every=20, d_hidden=256),
    "paper": {},
}
VOCAB = len(string_maps.ALPHABET)
# The target is never read, so any id outside the alphabet hides it.
OBJECTIVE = functools.partial(objectives.parallel_target, mask_id=VOCAB)


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field; the first ten are those of the original script."""

    Ks: tuple[int, ...] = flag((1, 5, 8), "Branching factors K.")
    n_pairs: int = flag(40_000, "Pairs of strings.", 1)
    str_len: int = flag(8, "Characters of a string.", 1)
    epochs: int = flag(50, "Passes over the pairs.", 1)
    batch_size: int = flag(256, "Pairs a step.", 1)
    lr: float = flag(1e-3, "AdamW's learning rate.", 0)
    d_emb: int = flag(64, "Width of a character's embedding.", 1)
    d_hidden: int = flag(512, "Width of the hidden layers.", 1)
    n_layers: int = flag(4, "Hidden layers.", 1)
    output: str = flag("", "Results file; WORKDIR/results.jsonl if empty.")
    seeds: tuple[int, ...] = flag((0,), "One run each.")
    directions: tuple[Direction, ...] = flag(world_a_task.DIRECTIONS, "Which.")
    control: Literal["none", "exchangeable"] = flag("none", "Exchangeable: K-to-K maps.")
    eval_every: int = flag(10, "Epochs between clean evaluations (and checkpoints).", 1)

    def __post_init__(self):
        world_a_task.check_sizes(self)


def run(experiment: harness.Experiment, config: Config) -> None:
    """Trains what is missing, then reports."""
    for seeds in harness.seed_groups(config.seeds):
        group = Group(experiment, config, seeds)
        for K in config.Ks:
            for direction in config.directions:
                arrow = world_a_task.ARROWS[direction]
                if not experiment.is_done(K=K, direction=arrow, seed=seeds[-1]):
                    group.train_and_record(make_case(config, K, direction))
    world_a_report.write(experiment, config)


def make_case(config: Config, K: int, direction: Direction) -> world_a_task.Case:
    """Source and target characters side by side, and the parallel floor."""
    sources, targets = world_a_task.oriented(config, K, direction)
    data = {
        "tokens_BL": string_maps.to_ids([s + t for s, t in zip(sources, targets, strict=True)]),
        "scored_BL": np.tile(np.arange(2 * config.str_len) >= config.str_len, (len(sources), 1)),
    }
    floor = excess.exact_floor(sources, targets, "parallel")
    return world_a_task.make_case(config, K, direction, data, floor)


def make_states(config: Config) -> Callable[[int], training.TrainState]:
    """From a seed to its state at step 0; all share one model and optimizer, and so programs."""
    model = models.StringMLP(VOCAB, config.str_len, config.d_emb, config.d_hidden, config.n_layers)
    optimizer = training.make_optimizer(config.lr, clip_norm=None)

    def apply_fn(params, tokens_BL):
        return model.apply({"params": params}, tokens_BL)

    def state(seed: int) -> training.TrainState:
        init_key, run_key = jax.random.split(jax.random.key(seed))
        tokens_BL = np.zeros((1, 2 * config.str_len), np.int32)
        params = jax.jit(model.init)(init_key, tokens_BL)["params"]
        return training.create_state(apply_fn, params, optimizer, run_key)

    return state


class Group:
    """Seeds that train as one program, on one case after another, all compiled once."""

    def __init__(self, experiment: harness.Experiment, config: Config, seeds: list[int]):
        self.experiment, self.config, self.seeds = experiment, config, seeds
        self.together = len(seeds) > 1
        step = functools.partial(training.train_step, objective=OBJECTIVE, dropout=False)
        self.steps = world_a_task.compile_epochs(experiment, config, step, self.together)

        def evaluate(state, data):
            loss = excess.clean_loss(
                OBJECTIVE, state.apply_fn, state.params, data, state.key, batch_size=2048
            )
            return {"nats_per_string": loss}

        self.evaluate = harness.over_seeds(evaluate, self.together)
        self.state = make_states(config)

    def train_and_record(self, case: world_a_task.Case) -> None:
        c = self.config
        name = f"{case.name}-seeds{'-'.join(map(str, self.seeds))}"
        states = [self.state(seed) for seed in self.seeds]
        total_params = sum(x.size for x in jax.tree.leaves(states[0].params))
        _, history = world_a_task.train(
            self.experiment, c, name, states, self.steps, case, self.evaluate, self.together
        )
        lines = []
        for place, seed in enumerate(self.seeds):
            # The original's mean is over samples.
            curve_T = history["train_nats_per_string"][:, place] / c.str_len
            lines.append(
                {
                    "world": "A",
                    "arch": "mlp",
                    "seed": seed,
                    "n_pairs": c.n_pairs,
                    "str_len": c.str_len,
                    "epochs": c.epochs,
                    "lr": c.lr,
                    "batch_size": c.batch_size,
                    "control": c.control,
                    "total_params": total_params,
                    **world_a_task.measures(case, history, place, curve_T, "final_loss"),
                }
            )
        self.experiment.record(lines, keys=("K", "direction", "seed"))


if __name__ == "__main__":
    harness.main("world_a_mlp", Config, PRESETS, run)
