"""Which part of the weights holds a direction? Parts of two trained networks are exchanged.

Question  arXiv 2602.02133 (v2) has one storage that both directions use, 2604.04943 an entry for
          each. Two networks from one initialisation learn the toy pairs of `causes` and differ in
          the order that is told, in what is predicted, or in both; then one takes over the other's
          values, MLP, storage, queries and keys, or embedding and head, both ways.
Command   python -m experiments.patching --preset=quick|paper
Cost      quick: 3 networks and their twins, 2 seeds: 2 minutes on one CPU core. paper: 7 networks,
          5 seeds, 3000 steps: not timed.
Expected  See docs/causes.md, where predictions stood before results.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import models, objectives, runs, training
from dirasym.analysis import blocks
from dirasym.types import Params
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.flags import flag
from experiments.reports import patching as tables
from experiments.systems import causes
from experiments.systems.causes import Cell

PRESETS = {
    "smoke": dict(length=4, seeds=[0, 1], steps=20, eval_every=4, width=16, pairs=["next_token"]),
    "quick": dict(seeds=[0, 1], steps=500, eval_every=100, batch_size=64, warmup_steps=200,
                  width=128, learning_rate=1e-3, pairs=["target", "answer"]),
    "paper": {},
}  # fmt: skip
PARTS: dict[str, Callable[[str], bool]] = {  # of a parameter's path
    "values": lambda path: blocks.role(path) == "storage" and blocks.is_attention(path),
    "mlp": lambda path: blocks.role(path) == "storage" and not blocks.is_attention(path),
    "storage": lambda path: blocks.role(path) == "storage",
    "routing": lambda path: blocks.role(path) == "routing",
    "ends": lambda path: blocks.layer(path) in ("embed", "head"),
    "all": lambda path: True,
}
TWIN_STREAM = 10**6  # of a twin's noise and data order


@dataclasses.dataclass(frozen=True)
class Pupil:
    """What one network learns: a cell, and which order its rows tell."""

    cell: Cell
    told: Literal["forward", "reverse"] = "forward"

    def identity(self, training: str) -> dict[str, Any]:
        """What its result line is known by."""
        c = self.cell
        named = dict(attention=c.attention, objective=c.objective, predicted=c.predicted)
        return named | {"told": self.told, "training": training}

    def rows(self, length: int) -> dict[str, np.ndarray]:
        """Training rows: for the reverse read from behind, so that B stands before a."""
        rows = causes.training_rows(self.cell, length)
        step = 1 if self.told == "forward" else -1
        return {name: np.ascontiguousarray(x[:, ::step]) for name, x in rows.items()}


MASKED, NEXT = Cell(), Cell("causal", "next_token")
B_ONLY, A_ONLY = Cell(predicted="B"), Cell(predicted="A")
PAIRS = {  # the two networks; the report has their questions
    "order": (Pupil(MASKED), Pupil(MASKED, "reverse")),
    "target": (Pupil(B_ONLY), Pupil(A_ONLY)),
    "answer": (Pupil(B_ONLY), Pupil(A_ONLY, "reverse")),
    "next_token": (Pupil(NEXT), Pupil(NEXT, "reverse")),
}


@dataclasses.dataclass(frozen=True)
class Config(causes.Config):
    """How all networks are trained, and which pairs of them there are."""

    pairs: tuple[Literal["order", "target", "answer", "next_token"], ...] = flag(
        tuple(PAIRS), "Pairs of networks whose parts are exchanged."
    )

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("--seeds: a stranger is of another seed, so no seed comes twice")

    @property
    def networks(self) -> list[Pupil]:
        """Each once, in the order of the pairs."""
        return list(dict.fromkeys(network for pair in self.pairs for network in PAIRS[pair]))


def answers(task: causes.Task, params: Params) -> dict[str, jax.Array]:
    """The task's `probabilities`, and `among_NAME`: P(true) among the letters of its case.

    In percent, over all placements. It says which letter where choice says only whether it is the
    first, and not, as P(true) among all tokens does, whether a letter is said at all.
    """
    values = dict(task.probabilities(params))
    for name, asked in task.questions.items():
        letters = np.unique(asked.target_E)
        logits_EC = task.logits(params, asked.tokens_EL, asked.position_E)[:, letters]
        nll_E = objectives.token_nll(logits_EC, np.searchsorted(letters, asked.target_E))
        values[f"among_{name}"] = 100 * jnp.mean(jnp.exp(-nll_E))
    return values


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """Each network and its twin."""
    del workdir
    return [run for network in config.networks for run in trained(network, config).values()]


def trained(network: Pupil, config: Config) -> dict[str, runs.Run]:
    """The network's training, "own", and its "twin": other noise and order of the data."""
    task, rows = causes.Task(network.cell, config), network.rows(config.length)
    own = task.run(
        network.identity("own"),
        summarize=lambda history: {name: float(x[-1]) for name, x in history.items()
                                   if name.startswith(("choice_", "p_", "among_"))},
        finish=keep_weights,
    )  # fmt: skip
    asked = jax.jit(lambda state: answers(task, state.ema_params))
    own = dataclasses.replace(own, data=lambda seed: rows, evaluate=asked)

    def init(seed):
        state = task.init(seed)
        return state.replace(key=jax.random.fold_in(state.key, TWIN_STREAM))

    twin = dataclasses.replace(own, identity=network.identity("twin"), init=init)
    return {"own": own, "twin": twin}


def named(params: Params) -> dict[str, Any]:
    """Leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def keep_weights(state: training.TrainState, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Writes the moving average, which answers, to FOLDER/weights.npz, by path."""
    np.savez(folder / "weights.npz", **named(jax.device_get(state.ema_params)))
    return {}


def patched(own: Params, other: Mapping[str, Any], part: str) -> Params:
    """The parameters, with those of a part in PARTS taken from `other`, by path."""
    taken, (leaves, structure) = PARTS[part], jax.tree.flatten(own)
    mixed = [other[path] if taken(path) else x for path, x in zip(named(own), leaves, strict=True)]
    return jax.tree.unflatten(structure, mixed)


def exchanges(
    config: Config, weights: Callable[[Pupil, str, int], Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Lines: of a pair, receiver, giver and seed the answers with each part, `NAME_PART`.

    Args:
      config: names pairs and seeds.
      weights: by path, of a network's "own" training, its "twin", or "untrained", and a seed.
    """
    for network in config.networks:
        task = causes.Task(network.cell, config)
        first = task.init(config.seeds[0]).params
        asked = jax.jit(functools.partial(answers, task))
        structure = jax.tree.structure(first)
        for place, seed in enumerate(config.seeds):
            held = weights(network, "own", seed)
            own = jax.tree.unflatten(structure, [held[path] for path in named(first)])
            stranger = config.seeds[(place + 1) % len(config.seeds)]
            givers = {
                "twin": weights(network, "twin", seed),
                "untrained": weights(network, "untrained", seed),
                "stranger": weights(network, "own", stranger),
            }
            for pair in config.pairs:
                if network not in PAIRS[pair]:
                    continue
                into = PAIRS[pair].index(network)
                other = weights(PAIRS[pair][1 - into], "own", seed)
                for giver, given in ({"other": other} | givers).items():
                    line = {"pair": pair, "into": into, "giver": giver, "seed": seed}
                    line |= models.sizes(task.network, own)
                    for part in PARTS:
                        found = asked(patched(own, given, part))
                        line |= {f"{k}_{part}": round(float(x), 4) for k, x in found.items()}
                    yield line


def write(workdir: WorkDir, config: Config, all_runs: Sequence[runs.Run]) -> None:
    """Exchanges the parts of what was trained, and reports."""
    of = {run.name: run for run in all_runs}

    @functools.cache
    def weights(network, training, seed):
        if training == "untrained":
            return named(causes.Task(network.cell, config).init(seed).params)
        run = of[runs.name_of(network.identity(training))]
        with np.load(workdir.folder(run, seed) / "weights.npz") as kept:
            return dict(kept)

    tables.write(workdir, config, list(exchanges(config, weights)))


if __name__ == "__main__":
    flags.main("patching", Config, PRESETS, write, plan)
