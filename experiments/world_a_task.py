"""What the experiments of World A share: the data and its floors, the runs, their result lines.

World A (arXiv 2511.19997) maps random strings to random strings; `string_maps` has the data
and `excess` the units.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from dirasym import training
from dirasym.analysis import excess
from dirasym.compile import compile_scan
from dirasym.data import string_maps
from experiments import flags, harness

Direction = Literal["forward", "inverse"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "inverse")
ARROWS = {"forward": "A->B", "inverse": "B->A"}  # as result lines write them


class Case(NamedTuple):
    """One map in one direction, as a model reads it.

    Attributes:
      data: `training.Data` over all pairs.
      floor: of the factorisation.
      theoretical_min: the paper's floor: ln K for the inverse, 0 for the forward direction.
      bits: to store the map, per pair.
    """

    K: int
    direction: Direction
    data: training.Data
    floor: excess.Floor
    theoretical_min: float
    bits: float

    @property
    def name(self) -> str:
        """`K5-inverse`."""
        return f"K{self.K}-{self.direction}"


def check_sizes(config: Any) -> None:
    """Raises ValueError for a map that cannot be made."""
    for K in config.Ks:
        pairs(config, K)


@functools.lru_cache(maxsize=8)
def _pairs(control: str, K: int, n_pairs: int, str_len: int) -> string_maps.Pairs:
    make = {"none": string_maps.generate_pairs, "exchangeable": string_maps.exchangeable_pairs}
    return make[control](K, n_pairs, str_len, 42 + K)


def pairs(config: Any, K: int) -> string_maps.Pairs:
    """The same (A, B) for every regime: data seed 42 + K."""
    return _pairs(config.control, K, config.n_pairs, config.str_len)


def oriented(config: Any, K: int, direction: Direction) -> string_maps.Pairs:
    """(sources, targets) of a direction."""
    first, second = pairs(config, K)
    return (first, second) if direction == "forward" else (second, first)


def make_case(config: Any, K: int, direction: Direction, data, floor: excess.Floor) -> Case:
    """A case with the paper's floor and the bits to store."""
    if config.control == "exchangeable":
        bits = string_maps.exchangeable_bits_to_store(K, config.n_pairs, config.str_len)
    else:
        both = string_maps.bits_to_store(K, config.n_pairs, config.str_len)
        bits = both[DIRECTIONS.index(direction)]
    is_function = config.control == "none" and direction == "forward"
    return Case(K, direction, data, floor, 0.0 if is_function else math.log(K), bits)


def epoch_steps(config: Any) -> int:
    """Steps of an epoch; the last holds what is left."""
    return -(-config.n_pairs // config.batch_size)


def call_epochs(config: Any) -> int:
    """Epochs between evaluations: at most `--eval_every`, and a divisor of `--epochs`."""
    return math.gcd(config.eval_every, config.epochs)


def compile_epochs(experiment: harness.Experiment, config: Any, step, together: bool):
    """The epochs between two evaluations as one program."""
    return compile_scan(
        step,
        num_steps=call_epochs(config) * epoch_steps(config),
        batch_size=config.batch_size,
        backend=flags.FLAGS.backend,
        mesh=experiment.mesh,
        over_seeds=together,
        whole_epochs=True,
    )


def train(experiment, config, name: str, states, steps, case: Case, evaluate, together: bool):
    """Trains a group of seeds on a case, saves its curves: (state, history).

    `evaluate(state, data)` gives "nats_per_string" of a clean pass, and what else to record.
    """
    state, history = experiment.train(
        name,
        harness.stack_seeds(states, together),
        steps,
        case.data,
        num_steps=config.epochs * epoch_steps(config),
        steps_per_call=call_epochs(config) * epoch_steps(config),
        evaluate=lambda state: evaluate(state, case.data),
    )
    nats_TS = np.float64(history["loss"]) * history["count"]  # 40000 pairs are many to add
    epochs = (config.epochs, epoch_steps(config), -1)
    history["train_nats_per_string"] = nats_TS.reshape(epochs).sum(axis=1) / config.n_pairs
    history["train_batch_mean"] = history["loss"].reshape(epochs).mean(axis=1)
    experiment.save_curves(name, history)
    return state, history


def measures(case: Case, history, place: int, curve_T: np.ndarray, mean_key: str) -> dict:
    """The three excess losses of one seed, with all that they are made of.

    Args:
      case: what was learned.
      history: of `train`.
      place: of the seed in its group.
      curve_T: the paper's training loss of each epoch, nats per token.
      mean_key: its name in the result line.
    """
    floor = case.floor
    train_T = history["train_nats_per_string"][:, place]
    clean_T = history["nats_per_string"][:, place]
    clean_excess = float(clean_T[-1]) - floor.nats_per_string
    return {
        "K": case.K,
        "direction": ARROWS[case.direction],
        mean_key: float(curve_T[-1]),
        "theoretical_min": case.theoretical_min,
        "excess_loss": float(curve_T[-1]) - case.theoretical_min,
        "excess_nats_per_string": float(train_T[-1]) - floor.nats_per_string,
        "eval_excess_nats_per_string": clean_excess,
        "floor_nats_per_string": floor.nats_per_string,
        "floor_kind": floor.kind,
        "tokens_per_target": floor.tokens_per_target,
        "bits_to_store_per_pair": case.bits,
        "excess_bits_per_stored_bit": excess.excess_bits_per_stored_bit(clean_excess, case.bits),
        "run_wall_time_sec": float(history["wall_time_sec"]),
        "train_curve": curve_T.tolist(),
        "excess_nats_per_string_curve": (train_T - floor.nats_per_string).tolist(),
        "eval_epochs": (history["eval_step"] * len(train_T) // history["eval_step"][-1]).tolist(),
        "eval_excess_nats_per_string_curve": (clean_T - floor.nats_per_string).tolist(),
        "device": jax.devices()[0].device_kind,
    }
