"""Remedies of the reversal curse on one footing: the pairs of data.case_pairs, and lone letters.

Of the 26 letters `lone` have no partner: their lowercase and their uppercase occur alone. A model
that names a lowercase letter after a lone uppercase asserts a reverse that does not hold.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import decoding, metrics, models, objectives, runs, training
from dirasym.data import case_pairs, remedies
from dirasym.data.case_pairs import LOWER, MASK, NUM_LETTERS, PAD, UPPER
from experiments.flags import flag

Rows = Literal[
    "none", "inverse", "reversed", "entities", "symmetric", "segments", "identity", "copies"
]


@dataclasses.dataclass(frozen=True)
class Remedy:
    """What differs from a causal model that is told the pairs forward.

    Attributes:
      rows: what is added to the rows, or made of them.
      reads: the objective and the attention.
      whole: whether names are hidden as wholes.
      weight_decay, dropout: in training.
    """

    rows: Rows = "none"
    reads: Literal["causal", "masked", "masked_causal"] = "causal"
    whole: bool = False
    weight_decay: float = 0.0
    dropout: float = 0.02  # of the toy task

    @property
    def adds(self) -> bool:
        """Whether rows are added to the plain ones."""
        return self.rows not in ("none", "copies")

    @property
    def shows(self) -> bool:
        """Whether rows are added that show a causal model the reverse."""
        return self.adds and self.rows != "identity" and self.reads == "causal"

    def is_told_apart(self, matching: str) -> bool:
        """Whether a matching gives another share or other steps than equal compute does."""
        if matching == "exposure":
            return self.shows
        return matching == "compute" or self.rows != "none"

    def budget(self, matching: str, steps: int, exposed: float) -> tuple[float, int]:
        """(the share of rows that are the remedy's, train steps).

        Args:
          matching: of `MATCHINGS`.
          steps: of the baseline.
          exposed: the share of the remedy's rows that show a pair's reverse.
        """
        if self.adds and matching == "exposure":
            return EXPOSURE / exposed, steps
        share = SHARE if self.adds else 0.0
        if self.adds and matching == "tokens":  # as many plain rows as the baseline reads
            return share, round(steps / (1 - share))
        if self.rows == "copies" and matching == "compute":  # a row costs two
            return share, steps // 2
        return share, steps

    def objective(self, mask_id: int, bos_id: int | None) -> objectives.Objective:
        """What is trained."""
        if self.reads == "masked":
            return functools.partial(objectives.masked_diffusion, mask_id=mask_id)
        if self.reads == "masked_causal":
            how: dict[str, Any] = dict(mask_id=mask_id, rate=None, keep=0, random=0)
            return functools.partial(objectives.masked_lm, **how)
        return functools.partial(objectives.next_token, bos_id=bos_id)


REMEDIES = {
    "none": Remedy(),
    "reversed": Remedy(rows="reversed"),  # both directions told: of single letters the same
    "segments": Remedy(rows="segments"),
    "identity": Remedy(rows="identity"),
    "copies": Remedy(rows="copies"),
    "uniform_masked": Remedy(reads="masked_causal"),
    "diffusion": Remedy(reads="masked"),
    "diffusion_reversed": Remedy(rows="reversed", reads="masked"),
    "weight_decay": Remedy(weight_decay=1.0),
    "dropout": Remedy(dropout=0.3),
}
MATCHINGS = "compute", "tokens", "exposure"
SHARE = 1 / 2  # of a remedy's rows, where exposure is not matched
EXPOSURE = 1 / 6  # a row: how often a masked model, told B, is asked for a: ∫ λ(1 − λ) dλ
DRAWS = 8  # of random rows


@dataclasses.dataclass(frozen=True)
class Training:
    """How every remedy is trained, whatever the data: one flag a field.

    A subclass names its remedies in `known`, and has a flag `remedies` of those to train.
    """

    known: ClassVar[Mapping[str, Remedy]]
    matchings: tuple[Literal[MATCHINGS], ...] = flag(MATCHINGS, "What remedies have in common.")
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.", kind="seed")
    steps: int = flag(1000, "Train steps of the baseline.", 1)
    evaluations: int = flag(4, "Evaluations (and checkpoints) of a run.", 1)
    batch_size: int = flag(128, "Sequences a step.", 1, 10**6, kind="batch_size")
    width: int = flag(128, "Width of the residual stream.", 2, 10**5)
    learning_rate: float = flag(1e-3, "Adam's, after warm-up.", 0)
    warmup_steps: int = flag(100, "Steps of linear warm-up.", 0)

    @property
    def chosen(self) -> dict[str, Remedy]:
        """The remedies to train, by name."""
        return {name: self.known[name] for name in self.remedies}

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(matching, remedy), where the matching changes something."""
        return [
            (matching, name)
            for matching in self.matchings
            for name, remedy in self.chosen.items()
            if remedy.is_told_apart(matching)
        ]

    def __post_init__(self):
        if len(self.seeds) < 2:
            raise ValueError("--seeds: intervals over seeds need at least two")
        if self.steps % (2 * self.evaluations):
            wanted = f"a multiple of 2 x --evaluations={self.evaluations}"
            raise ValueError(f"--steps={self.steps} is not {wanted}")
        if not self.cells:
            said = f"--remedies={','.join(self.chosen)} --matchings={','.join(self.matchings)}"
            raise ValueError(f"{said}: the same as without matching, or no reverse to match")


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """The toy pairs: one flag a field."""

    known = REMEDIES
    remedies: tuple[Literal[tuple(REMEDIES)], ...] = flag(tuple(REMEDIES), "What to train.")
    length: int = flag(10, "Sequence length L.", 2, 100)
    lone: int = flag(4, "Letters without a partner.", 1, NUM_LETTERS - 2)
    generations: int = flag(20, "Sampled per letter and question.", 1, 10**4)
    top_k: int = flag(3, "Sample among the most probable k.", 1, case_pairs.VOCAB_SIZE)


def letter_rows(length: int, first: np.ndarray, second: np.ndarray | None) -> np.ndarray:
    """Each of `first` at i and of `second` at j > i, at all places: [letters · L(L−1)/2, L].

    With None the letter stands alone, each place in turn, in as many rows.
    """
    i_P, j_P = case_pairs.placements(length).T
    rows = np.full((len(first), len(i_P), length), PAD, np.int32)
    place_P = np.arange(len(i_P))
    if second is None:
        rows[:, place_P, place_P % length] = first[:, None]
    else:
        rows[:, place_P, i_P] = first[:, None]
        rows[:, place_P, j_P] = second[:, None]
    return rows.reshape(-1, length)


def plain_rows(length: int, lone: int) -> np.ndarray:
    """Pairs a before B, and lone letters of both cases."""
    paired, alone = slice(0, NUM_LETTERS - lone), slice(NUM_LETTERS - lone, None)
    parts = [letter_rows(length, LOWER[paired], UPPER[paired])]
    parts += [letter_rows(length, letters[alone], None) for letters in (LOWER, UPPER)]
    return np.concatenate(parts)


def remedy_rows(kind: str, plain_BL: np.ndarray) -> np.ndarray:
    """The rows that a remedy adds: none for "none" and "copies", which rewrites them."""
    length = plain_BL.shape[1]
    if kind == "reversed":
        return remedies.reversed_tokens(plain_BL)
    if kind == "segments":
        longest = max(length // 2, 1)
        drawn = [remedies.reversed_segments(plain_BL, longest, seed=n) for n in range(DRAWS)]
        return np.concatenate(drawn)
    if kind == "identity":
        letters = np.concatenate([LOWER, UPPER])
        return letter_rows(length, letters, letters)
    return plain_BL[:0]


def exposure(rows_BL: np.ndarray) -> float:
    """The share of these rows, lone letters apart, in which a causal model meets B before a."""
    lower_B = np.where(np.isin(rows_BL, LOWER), rows_BL, -1).max(axis=1)
    upper_B = np.where(np.isin(rows_BL, UPPER), rows_BL, -1).max(axis=1)
    paired = (lower_B >= 0) & (upper_B >= 0)
    if not paired.any():
        return 0.0
    of_B = remedies.exposures(rows_BL[paired], lower_B[paired], upper_B[paired])
    return float(of_B.mean())


def mixture(plain: np.ndarray, extra: np.ndarray, share: float) -> np.ndarray:
    """Row numbers of [plain, extra] in which a share is of the remedy's, each row at least once."""
    num = round(max(len(plain) / (1 - share), len(extra) / share))
    return remedies.mixed(plain, extra, share, num)


def run(task, evaluate, *, mask_id: int, bos_id: int | None) -> runs.Run:
    """The training of one remedy at one matching, for any seed.

    Args:
      task: its `remedy`, `config`, `identity`, `share`, `steps`, `data`, `model`, `apply_fn`.
      evaluate: from a state to its outcomes.
      mask_id: [M].
      bos_id: what a causal model reads first; None if rows begin with a token of their own.
    """
    c, r = task.config, task.remedy
    optimizer = training.make_optimizer(
        c.learning_rate, warmup_steps=c.warmup_steps, weight_decay=r.weight_decay
    )
    objective = r.objective(mask_id, bos_id)
    return runs.Run(
        task.identity,
        data=lambda seed: task.data,
        step=functools.partial(training.train_step, objective=objective),
        num_steps=task.steps,
        eval_every=task.steps // c.evaluations,
        batch_size=c.batch_size,
        init=training.initializer(task.model, task.apply_fn, optimizer),
        evaluate=evaluate,
        summarize=functools.partial(summarize, task.share, task.steps),
        network=task.model,
    )


class Task:
    """One remedy at one matching: data, network, training, questions."""

    def __init__(self, remedy: str, matching: str, config: Config):
        self.remedy, c, r = REMEDIES[remedy], config, REMEDIES[remedy]
        self.config, self.identity = c, {"remedy": remedy, "matching": matching}
        plain = plain_rows(c.length, c.lone)
        extra = remedy_rows(r.rows, plain)
        self.share, self.steps = r.budget(matching, c.steps, exposure(extra))
        self.data = self._data(plain, extra)
        length = c.length * (1 + (r.rows == "copies"))
        size = dict(num_layers=1, num_heads=1, width=c.width, dropout=r.dropout)
        if r.reads == "masked":
            network = models.radd(case_pairs.VOCAB_SIZE, **size)
        else:
            network = models.gpt2(case_pairs.VOCAB_SIZE, max_len=length, **size)
        self.model = models.Transformer(network)
        self.apply_fn = models.make_apply_fn(self.model)

    def _data(self, plain: np.ndarray, extra: np.ndarray) -> training.Data:
        if self.remedy.rows == "copies":
            drawn = [remedies.masked_copies(plain, MASK, seed=n) for n in range(DRAWS)]
            tokens, scored = (np.concatenate(x) for x in zip(*drawn, strict=True))
            return {"tokens_BL": tokens, "scored_BL": scored}
        if not len(extra):
            return {"tokens_BL": plain}
        return {"tokens_BL": np.concatenate([plain, extra])[mixture(plain, extra, self.share)]}

    def run(self) -> runs.Run:
        """Its training, for any seed."""
        return run(self, jax.jit(self.evaluate), mask_id=MASK, bos_id=MASK)

    def read(self, params, tokens_EL) -> jax.Array:
        """The distribution at each place of rows with [M]: [E, L, V].

        A causal model takes [M] for `0`, which is likeliest, and reads what stands before.
        """
        tokens_EL = jnp.asarray(tokens_EL)
        if self.remedy.reads != "causal":
            return metrics.probabilities(self.apply_fn, params, tokens_EL, excluded_id=MASK)
        filled_EL = jnp.where(tokens_EL == MASK, PAD, tokens_EL)
        if self.remedy.rows == "copies":
            filled_EL = jnp.concatenate([tokens_EL, filled_EL], axis=1)
        p_ELV = metrics.probabilities(self.apply_fn, params, filled_EL, bos_id=MASK)
        return p_ELV[:, -tokens_EL.shape[1] :]

    def generate(self, params, tokens_EL, key) -> jax.Array:
        """Fills [M], sampling: left to right but for a bidirectional model, in a random order."""
        c, length = self.config, tokens_EL.shape[1]
        if self.remedy.reads != "causal":
            order: Any = "random" if self.remedy.reads == "masked" else "left_to_right"
            how: dict[str, Any] = dict(mask_id=MASK, top_k=c.top_k, order=order)
            return decoding.unmask(self.apply_fn, params, tokens_EL, key, **how)
        rows_EL, known = jnp.asarray(tokens_EL), 1
        if self.remedy.rows == "copies":  # the letter behind the masked copy is given too
            rows_EL, known = jnp.concatenate([rows_EL, rows_EL], axis=1), length + 1
        how = dict(prompt_length=known, bos_id=MASK, top_k=c.top_k)
        return decoding.left_to_right(self.apply_fn, params, rows_EL, key, **how)[:, -length:]

    def evaluate(self, state: training.TrainState) -> dict[str, jax.Array]:
        """All outcomes, in percent and nats: see `outcomes`."""
        key = jax.random.fold_in(state.key, training.EVAL_STREAM)
        read = functools.partial(self.read, state.params)
        generate = functools.partial(self.generate, state.params)
        return outcomes(read, generate, key, self.config)


def outcomes(read, generate, key: jax.Array, c: Config) -> dict[str, jax.Array]:
    """What a model answers, in percent but for `forward_nll`.

    Args:
      read: from rows with [M] to distributions [E, L, V].
      generate: from rows with [M] and a key to full rows.
      key: of sampling.
      c: the configuration.

    Returns:
      `forward`, `reverse`: generations from a letter at place 0 that hold its partner;
      `copying`: reverse generations that repeat the letter given; `incorrect`: generations
      from a lone uppercase that hold any lowercase; `choice`: the partner is the likeliest of
      the paired lowercases, over all places behind B; `forward_nll`: of B among uppercases in nats,
      at its place behind a.
    """
    num = NUM_LETTERS - c.lone
    paired = slice(0, num)
    reverse_EL = case_pairs.prompts(c.length, "reverse").tokens_EL
    forward_EL = case_pairs.prompts(c.length, "forward").tokens_EL[paired]
    prompts_EL = np.concatenate([forward_EL, reverse_EL])
    said_EL = generate(np.repeat(prompts_EL, c.generations, axis=0), key)[:, 1:]
    said_EGL = said_EL.reshape(len(prompts_EL), c.generations, -1)
    ahead_EGL, answered_EGL, asserted_EGL = jnp.split(said_EGL, [num, 2 * num])
    lower, upper = (letters[paired, None, None] for letters in (LOWER, UPPER))
    p_EV = read(reverse_EL[paired])[:, 1:].sum(axis=1)
    i_P, j_P = case_pairs.placements(c.length).T
    rows_EL = letter_rows(c.length, LOWER[paired], np.full(num, MASK))
    p_NPLV = read(rows_EL).reshape(num, len(i_P), c.length, -1)
    p_NPV = p_NPLV[:, np.arange(len(i_P)), j_P][:, :, UPPER]
    right_NP = jnp.take_along_axis(p_NPV, jnp.arange(num)[:, None, None], axis=2)[..., 0]
    shares = {
        "forward": (ahead_EGL == upper).any(axis=2),
        "reverse": (answered_EGL == lower).any(axis=2),
        "copying": (answered_EGL == upper).any(axis=2),
        "incorrect": (asserted_EGL < NUM_LETTERS).any(axis=2),
        "choice": jnp.argmax(p_EV[:, LOWER[paired]], axis=1) == jnp.arange(num),
    }
    nll = jnp.log(p_NPV.sum(axis=2)) - jnp.log(right_NP)
    return {name: 100 * jnp.mean(x) for name, x in shares.items()} | {"forward_nll": nll.mean()}


OUTCOMES = "forward", "reverse", "choice", "copying", "incorrect", "forward_nll"


def summarize(share: float, steps: int, history: runs.History) -> Mapping[str, Any]:
    """The last evaluation, and how the remedy was told."""
    last = {key: float(history[key][-1]) for key in OUTCOMES}
    return {"share": share, "steps": steps, **last, "loss": float(history["loss"][-1])}
