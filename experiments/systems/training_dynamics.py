"""The bilinear and the one-layer model of arXiv 2405.04669 (§3, §4), solved by gradient flow."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from dirasym import models, objectives
from dirasym.analysis import gradient_flow, row_dynamics
from dirasym.analysis.weights import asymmetry
from dirasym.checkpoints import History
from dirasym.data.relations import LEFT, RIGHT
from dirasym.models.bilinear import random_signs
from dirasym.types import Batch
from dirasym.usage import UsageError
from experiments.flags import flag

LARGEST = 3 * 10**8  # numbers of an array
PAIRS = ((2, 3), (4, 5), (6, 7))  # of the one-layer model; tokens 0 and 1 are → and ←
ONE_LAYER_VOCAB = 20
CASES = {  # how the one-layer model trains; what each is in the report
    "one_way": "every pair A → B alone",
    "others_both_ways": "B ← A trains for the other pairs",
    "chain": "A → B and B → C",
    "attends_to_itself": "break: the query attends to itself",
    "symmetric": "break: weights held symmetric",
    "both_ways": "break: every pair trains both ways",
    "symmetric_loss": "break: a loss symmetric in A and B",
    "joint_chain": "break: A → B → C in one sentence",
    "joint_chain_last": "break: the same, with a loss on C alone",
}
Solved = tuple[dict[str, Any], History]  # a result line and curves


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    widths: tuple[int, ...] = flag(
        (32, 64, 128, 256, 512, 1024, 2048, 4096), "Of embeddings.", 1, 10**6
    )
    seeds: tuple[int, ...] = flag(
        (0, 1, 2, 3, 4), "Of the embeddings: a run each at every width.", kind="seed"
    )
    vocab_size: int = flag(60, "Tokens M of the bilinear model.", 2, 10**4)
    num_pairs: int = flag(24, "Pairs A → B.", 2)
    both_share: float = flag(0.5, "Share of the pairs that train in both directions.", 0)
    final_loss: float = flag(1e-3, "Forward loss to reach, in nats.", 0)
    num_times: int = flag(80, "Times looked at, log spaced.", 2, 10**5)
    step_size: float = flag(1.0, "Of gradient descent, compared with the flow.", 0)

    def __post_init__(self):
        for name, size in (
            ("widths", self.vocab_size * max(self.widths)),
            ("num_times", self.vocab_size**2 * self.num_times),
        ):
            if size > LARGEST:
                raise ValueError(f"--{name} with --vocab_size={self.vocab_size}: {size} numbers")
        if self.vocab_size < 2 * self.num_pairs:
            raise ValueError(
                f"--vocab_size={self.vocab_size} has no room for {self.num_pairs} pairs"
            )
        if not 0 <= self.both_share < 1 or self.num_both == self.num_pairs:
            raise ValueError(
                f"--both_share={self.both_share} of {self.num_pairs} pairs leaves no reverse to ask"
            )
        if not 0 < self.final_loss < math.log(self.vocab_size):
            raise ValueError("--final_loss must be in (0, ln vocab_size), the loss at the start")
        if self.step_size <= 0:
            raise ValueError(f"--step_size must be positive, got {self.step_size}")

    @property
    def num_both(self) -> int:
        """Pairs that train in both directions: the first."""
        return round(self.both_share * self.num_pairs)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens A and tokens B of every pair."""
        return np.arange(self.num_pairs), np.arange(self.num_pairs, 2 * self.num_pairs)


def bilinear(config: Config, width: int, seed: int) -> gradient_flow.BilinearFlow:
    """The bilinear model on its training pairs."""
    a_P, b_P = config.pairs()
    both = slice(config.num_both)
    embed_VD = np.asarray(random_signs(jax.random.key(seed), (config.vocab_size, width)), float)
    return gradient_flow.BilinearFlow(
        gram_VV=embed_VD @ embed_VD.T,
        context_E=np.concatenate([a_P, b_P[both]]),
        target_E=np.concatenate([b_P, a_P[both]]),
    )


def sizes(config: Config, width: int) -> dict[str, int]:
    """Of the bilinear model, with the embeddings that it does not train."""
    model = models.Bilinear(config.vocab_size, width)
    tokens_BL = jnp.zeros((1, 1), int)
    return models.sizes(model, jax.eval_shape(model.init, jax.random.key(0), tokens_BL))


def descend(config: Config, num_steps: int) -> np.ndarray:
    """Gradient descent at the smallest width, whose embeddings overlap most: C at every step.

    Raises:
      UsageError: the step size diverges; names the stability bound.
    """
    model = bilinear(config, min(config.widths), config.seeds[0])
    start_VV = np.zeros(model.gram_VV.shape)
    try:
        return gradient_flow.descend(
            model.field, model.loss, start_VV, step_size=config.step_size, num_steps=num_steps
        )
    except gradient_flow.UnstableStepError as error:
        raise UsageError(f"--step_size: {error}") from None


def solve_bilinear(config: Config, width: int, seed: int) -> Solved:
    """Flow until the forward loss is `final_loss`."""
    model = bilinear(config, width, seed)
    a_P, b_P = (x[config.num_both :] for x in config.pairs())
    predicted = row_dynamics.time_to_loss(
        config.final_loss, config.vocab_size, 1 / len(model.target_E)
    )
    # Crowded embeddings take longer than orthonormal ones, for which the time is exact.
    times = np.append(0, predicted * np.logspace(-6, 2, config.num_times))
    c_TVV = gradient_flow.flow(model.field, np.zeros(model.gram_VV.shape), times)
    logits_TVV = model.logits(c_TVV)
    loss_T = gradient_flow.pair_loss(logits_TVV, model.context_E, model.target_E)
    reached_T = loss_T <= config.final_loss
    end = int(reached_T.argmax()) if reached_T.any() else len(times) - 1
    keep = slice(end + 1)
    reverse_T = gradient_flow.pair_loss(logits_TVV, b_P, a_P)[keep]
    loss_T = loss_T[keep]
    final_VV = logits_TVV[end]
    line = {
        **sizes(config, width),
        "reached": bool(reached_T.any()),
        "loss": float(loss_T[-1]),
        "reverse_loss": float(reverse_T[-1]),
        "epsilon": gradient_flow.smallest_exponent(loss_T, reverse_T),
        "reverse_deviation": float(np.abs(reverse_T / np.log(config.vocab_size) - 1).max()),
        "asymmetry": float(asymmetry(final_VV[np.ix_(a_P, b_P)], final_VV[np.ix_(b_P, a_P)])),
        "time": float(np.interp(-np.log(config.final_loss), -np.log(loss_T), times[keep])),
        "predicted_time": float(predicted),
    }
    tokens = np.concatenate([a_P, b_P])
    weights = final_VV[np.ix_(tokens, tokens)]
    curves = {"time": times[keep], "loss": loss_T, "reverse_loss": reverse_T, "weights": weights}
    return line, curves


def compare_descent(config: Config) -> Solved:
    """Gradient descent beside the flow that it approximates, until half of the loss is gone."""
    model = bilinear(config, min(config.widths), config.seeds[0])
    half = np.log(config.vocab_size) / 2
    time = row_dynamics.time_to_loss(half, config.vocab_size, 1 / len(model.target_E))
    num_steps = max(1, round(float(time) / config.step_size))
    times = config.step_size * np.arange(num_steps + 1)
    steps_TVV = descend(config, num_steps)
    flow_TVV = gradient_flow.flow(model.field, np.zeros(model.gram_VV.shape), times)
    descent_T, flow_T = (
        gradient_flow.pair_loss(model.logits(x), model.context_E, model.target_E)
        for x in (steps_TVV, flow_TVV)
    )
    line = {
        **sizes(config, min(config.widths)),
        "step_size": config.step_size,
        "num_steps": num_steps,
        "largest_difference": float(np.abs(descent_T - flow_T).max()),
    }
    return line, {"time": times, "loss": descent_T, "flow_loss": flow_T}


def one_layer_sentences(case: str) -> list[tuple[int, ...]]:
    """Sentences of three tokens, or of five. The first pair is the one asked in reverse."""
    forward = [(a, RIGHT, b) for a, b in PAIRS]
    reverse = [(b, LEFT, a) for a, b in PAIRS]
    if case == "chain":
        return [*forward, *((b, RIGHT, b + 6) for _, b in PAIRS)]
    if case.startswith("joint_chain"):
        return [(a, RIGHT, b, RIGHT, b + 6) for a, b in PAIRS]
    if case in ("one_way", "symmetric", "symmetric_loss"):
        return forward
    return forward + (reverse if case == "both_ways" else reverse[1:])


def symmetric_loss(score_VV: jax.Array, a_E: np.ndarray, b_E: np.ndarray) -> jax.Array:
    """−½ mean (log softmax over B of the score of (A, B) + log softmax over A of it), nats.

    Each pair has one score. So A and B may change places (scores transposed) in this loss.
    """
    of_b, of_a = (jax.nn.log_softmax(score_VV, axis)[a_E, b_E] for axis in (1, 0))
    return -(of_b + of_a).mean() / 2


def _one_layer_flow(case: str, sentences_EL: np.ndarray, times: np.ndarray):
    """Y and Z (or Θ alone) over time, and the probability [T] of a next token."""
    if case == "symmetric_loss":
        loss = functools.partial(symmetric_loss, a_E=sentences_EL[:, 0], b_E=sentences_EL[:, 2])
        start_VV = np.zeros((ONE_LAYER_VOCAB,) * 2)
        y_TVV = gradient_flow.flow(gradient_flow.negative_gradient(loss), start_VV, times)
        weights = {"Y": y_TVV, "Z": np.zeros(1)}
    elif case == "symmetric":
        bilinear_flow = gradient_flow.BilinearFlow(
            np.eye(ONE_LAYER_VOCAB), sentences_EL[:, 0], sentences_EL[:, 2], symmetric=True
        )
        c_TVV = gradient_flow.flow(bilinear_flow.field, np.zeros((ONE_LAYER_VOCAB,) * 2), times)
        weights = {"Y": bilinear_flow.logits(c_TVV), "Z": np.zeros(1)}
    else:
        model = models.ReparameterisedAttention(ONE_LAYER_VOCAB, case == "attends_to_itself")
        num, length = sentences_EL.shape
        answers_BL = np.zeros((num, length), bool)
        answers_BL[:, [-1] if case == "joint_chain_last" else np.arange(2, length, 2)] = True
        batch = Batch(sentences_EL, np.arange(num), num, answers_BL)

        def loss(params):
            apply_fn = models.make_tokens_apply_fn(model)
            total, count, _ = objectives.next_token(apply_fn, params, batch)
            return total / count

        start = model.init(jax.random.key(0), sentences_EL)["params"]
        weights = gradient_flow.flow(gradient_flow.negative_gradient(loss), start, times)

    def probability_T(context: int, relation: int, target: int):
        if case != "attends_to_itself":
            return scipy.special.softmax(weights["Y"][:, context], axis=-1)[:, target]
        with jax.enable_x64(True):
            prompt = jnp.array([[context, relation]])
            logits_TV = jax.vmap(lambda p: model.apply({"params": p}, prompt)[0, -1])(weights)
            return np.asarray(jax.nn.softmax(logits_TV))[:, target]

    return weights, probability_T


def solve_one_layer(case: str) -> Solved:
    """Flow over five orders of magnitude in time, beside the closed form."""
    sentences_EL = np.array(one_layer_sentences(case))
    times = np.append(0, np.logspace(-1, 4, 51))
    weights, probability_T = _one_layer_flow(case, sentences_EL, times)
    a, b = PAIRS[0]
    forward_T, reverse_T = probability_T(a, RIGHT, b), probability_T(b, LEFT, a)
    rate = 1 / len(sentences_EL)
    exact_T = row_dynamics.row_probability(times, ONE_LAYER_VOCAB, rate)
    curves = {"time": times, "forward": forward_T, "reverse": reverse_T, "closed_form": exact_T}
    model = models.ReparameterisedAttention(ONE_LAYER_VOCAB)
    gap_T = weights["Y"][:, a, b] - weights["Y"][:, a, -1]
    gap_error_T = np.abs(gap_T - row_dynamics.row_gap(times, ONE_LAYER_VOCAB, rate))
    line = {
        **models.sizes(model, {name: x[-1] for name, x in weights.items() if x.ndim == 3}),
        "forward": float(forward_T[-1]),
        "reverse": float(reverse_T[-1]),
        "reverse_deviation": float(np.abs(reverse_T * ONE_LAYER_VOCAB - 1).max()),
        "probability_error": float(np.abs(forward_T - exact_T).max()),
        "gap_error": float(gap_error_T.max()),
        "largest_z": float(np.abs(weights["Z"]).max()),
    }
    if case == "symmetric_loss":  # the score itself, read the other way
        scores_TV = weights["Y"][:, :, b]
        curves["reverse_by_score"] = scipy.special.softmax(scores_TV, axis=-1)[:, a]
        line["reverse_by_score"] = float(curves["reverse_by_score"][-1])
    if "chain" in case:
        curves["composed"] = probability_T(a, RIGHT, b + 6)
        line["composed"] = float(curves["composed"][-1])
        line["highest_composed"] = float(curves["composed"].max())
    if case == "chain":
        exact_T = (1 - exact_T) / (ONE_LAYER_VOCAB - 1)
        line["composed_error"] = float(np.abs(curves["composed"] - exact_T).max())
    return line, curves | {"weights": weights["Y"][-1]}
