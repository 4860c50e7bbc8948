"""One network on the toy pairs, with one ingredient changed at a time: cells, training, questions.

The pairs are those of `data.case_pairs`. A cell says what is changed; every cell is asked alike.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import block_diffusion, models, objectives, runs, training
from dirasym.analysis import attention, blocks, case_recall, recall
from dirasym.data import case_pairs
from dirasym.data.case_pairs import MASK, NUM_LETTERS, PAD, Queries
from dirasym.models import token_table
from dirasym.rows import PerRow, behind, call, masked_share
from experiments.flags import flag

POSITIONS = ("rope", "alibi", "sinusoidal", "learned", "none")
DEPTHS = (1, 2, 4)
FACTORS: dict[str, tuple[Any, ...]] = {  # the first level of each is the base
    "attention": ("bidirectional", "causal"),
    "objective": ("masked_diffusion", "next_token", "any_order", "uniform_rate", "fixed_rate"),
    "predicted": ("both", "B", "A"),
    "positions": POSITIONS,
    "layers": DEPTHS,
}
QUESTIONS = {"forward": ("forward", "upper"), "reverse": ("reverse", "lower"),
             "source": ("forward", "lower")}  # fmt: skip
PAIRS = {"order": ("source", "reverse"), "target": ("forward", "source"),
         "answer": ("forward", "reverse")}  # fmt: skip
PARTS = ("storage", "routing", "total")
FIXED_RATE = 0.15


@dataclasses.dataclass(frozen=True)
class Training:
    """How every cell is trained, whatever the data: one flag a field."""

    seeds: tuple[int, ...] = flag((0, 1, 2, 3, 4), "One run each.", kind="seed")
    steps: int = flag(3000, "Train steps.", 1)
    eval_every: int = flag(200, "Steps between evaluations (and checkpoints).", 1)
    batch_size: int = flag(256, "Sequences a step.", 1, 10**6, kind="batch_size")
    width: int = flag(256, "Width of the residual stream.", 2, 10**6)
    learning_rate: float = flag(3e-4, "Adam's, after warm-up.", 0)
    warmup_steps: int = flag(1000, "Steps of linear warm-up.", 0)
    dropout: float = flag(0.02, "Dropout rate.", 0)
    ema_decay: float = flag(0.9999, "Moving average of the weights.", 0, 1)

    def __post_init__(self):
        if len(self.seeds) < 2:
            raise ValueError("--seeds: intervals over seeds need at least two")
        if self.steps % (5 * self.eval_every):
            wanted = f"a multiple of 5 x --eval_every={self.eval_every}: 20 % of training is asked"
            raise ValueError(f"--steps={self.steps} is not {wanted}")


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """The toy pairs, and how they are asked."""

    length: int = flag(10, "Sequence length L.", 2, 40)
    generations: int = flag(20, "Sampled per letter and direction.", 1, 10**4)
    top_k: int = flag(3, "Sample among the most probable k.", 1, case_pairs.VOCAB_SIZE)

    @property
    def data(self) -> str:
        """What all cells learn, in words."""
        return f"L = {self.length}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one run is made of; `predicted` names the letters whose loss counts."""

    attention: Literal["bidirectional", "causal", "blocks"] = "bidirectional"
    objective: Literal[
        "masked_diffusion", "next_token", "any_order", "uniform_rate", "fixed_rate"
    ] = "masked_diffusion"
    predicted: Literal["both", "B", "A"] = "both"
    positions: Literal["rope", "alibi", "sinusoidal", "learned", "none"] = "rope"
    layers: int = 1
    block: int = 0  # tokens of a block, with attention in blocks
    placed: Literal["anywhere", "within", "across"] = "anywhere"  # pairs, as to blocks

    @property
    def reads_before(self) -> bool:
        """Whether a token is read off what stands before it, and not off its [M]."""
        return self.objective == "next_token"

    def why_not(self, length: int) -> str | None:
        """Why this cell makes no sense, or None if it does."""
        if self.objective == "next_token" and self.attention != "causal":
            return "next token needs causal attention: a position would read its own target"
        if self.predicted == "A" and self.attention == "causal":
            return "A stands before B: without sight of it there is nothing to learn of A alone"
        if self.attention != "blocks":
            is_plain = self.block == 0 and self.placed == "anywhere"
            return None if is_plain else "a block size and places need attention in blocks"
        if self.objective != "masked_diffusion":
            return "attention in blocks is trained by masked diffusion"
        if self.block < 1 or length % self.block:
            return f"a block of {self.block} does not divide L = {length}"
        if self.placed == "within" and self.block == 1:
            return "no pair falls within a block of one token"
        if self.placed == "across" and self.block == length:
            return "no pair falls across a border where there is one block"
        return None


@dataclasses.dataclass(frozen=True)
class Task:
    """One cell: its network, its training, and what it is asked."""

    cell: Cell
    config: Config

    def __post_init__(self):
        reason = self.cell.why_not(self.config.length)
        if reason is not None:
            raise ValueError(f"{self.cell}: {reason}")
        self.network  # noqa: B018  # raises what does not fit

    @functools.cached_property
    def network(self) -> models.TransformerConfig:
        """The toy task's encoder in every cell, but for what the cell changes."""
        return network(self.cell, case_pairs.VOCAB_SIZE, self.config.length, self.config)

    @functools.cached_property
    def apply_fn(self):
        """The model as an ApplyFn, which reads a table of the tokens where it can."""
        return token_table.fastest_apply_fn(models.Transformer(self.network))

    @functools.cached_property
    def init(self) -> Callable[[int], training.TrainState]:
        """Step 0 of a seed."""
        return initializer(self.config, models.Transformer(self.network), self.apply_fn)

    def run(self, identity: Mapping[str, Any], **rest: Any) -> runs.Run:
        """Its training, for any seed, with what is asked along it."""
        asked, length = jax.jit(self.answers), self.config.length
        rows = training_rows(self.cell, length)
        trained = objective(self.cell, length, self.config.batch_size)
        rest |= dict(network=self.network, evaluate=lambda state: with_correlation(asked(state)))
        return run(self.config, identity, rows, trained, init=self.init, **rest)

    # -----------------------------------------------------------------------------------
    # What is asked

    @functools.cached_property
    def questions(self) -> dict[str, Queries]:
        """All letters and placements of the three questions, row by row the same."""
        return {
            name: case_pairs.mask_queries(self.config.length, direction, target)
            for name, (direction, target) in QUESTIONS.items()
        }

    def read(self, tokens_EL) -> jax.Array:
        """Rows as the model reads them: behind BOS, if a token is read off what is before it."""
        tokens_EL = jnp.asarray(tokens_EL)
        if self.cell.reads_before:
            return behind(MASK, tokens_EL)
        return tokens_EL

    def logits(self, params, tokens_EL, position_E, apply_fn=None) -> jax.Array:
        """Of the asked place of each row: [E, V], [M] apart."""
        tokens_EL = self.read(tokens_EL)
        rows_E = jnp.arange(len(tokens_EL)) * tokens_EL.shape[1] + jnp.asarray(position_E)
        logits_EV = call(apply_fn or self.apply_fn, params, tokens_EL, rows_R=rows_E)
        return objectives.exclude(logits_EV, MASK)

    def answers(self, state: training.TrainState) -> dict[str, jax.Array]:
        """Accuracy, P(true) and choice of the moving average; cosines and scores of the weights."""
        values = self.generated(state) | self.probabilities(state.ema_params)
        values |= self.cosines(state.params)
        return values | {f"scores_{k}": x for k, x in self.scores(state.params).items()}

    def generated(self, state: training.TrainState) -> dict[str, jax.Array]:
        """`percent_forward`, `percent_reverse`: generations that hold the letter asked for."""
        c, key = self.config, jax.random.fold_in(state.key, training.EVAL_STREAM)
        kind: case_recall.Kind = "causal" if self.cell.reads_before else "masked"
        how: dict[str, Any] = dict(kind=kind, generations=c.generations, top_k=c.top_k)
        how["order"] = "left_to_right" if self.cell.attention == "causal" else "random"
        how["block_size"] = self.cell.block or None
        return {
            f"percent_{direction}": case_recall.generation_percent(
                *(self.apply_fn, state.ema_params, case_pairs.prompts(c.length, direction), key),
                **how,
            )
            for direction in case_recall.DIRECTIONS
        }

    def probabilities(self, params) -> dict[str, jax.Array]:
        """`p_NAME`, `choice_NAME` over all placements, in percent; of blocks, within and across.

        P(target), and whether it is the most probable letter of its case.
        """
        values = {}
        for name, asked in self.questions.items():
            logits_EV = self.logits(params, asked.tokens_EL, asked.position_E)
            true_E1 = asked.target_E[:, None]
            p_E, _, _, choice_E = recall.judge(
                logits_EV, np.unique(asked.target_E), aside_BX=true_E1, right_BX=true_E1
            )
            for where, share_E in self.shares(asked).items():
                values[f"p_{name}{where}"] = 100 * p_E @ share_E
                values[f"choice_{name}{where}"] = 100 * choice_E @ share_E
        return values

    def shares(self, asked: Queries) -> dict[str, np.ndarray]:
        """Weights of the mean over rows: of all, and `_within` one block and `_across` a border."""
        chosen = {"": np.ones(len(asked.target_E), bool)}
        if self.cell.block:
            places_E2 = np.stack([asked.position_E, asked.context_E], axis=1)
            same_E = is_within(places_E2, self.cell.block)
            chosen |= {"_within": same_E, "_across": ~same_E}
        return {where: x / x.sum() for where, x in chosen.items() if x.any()}

    def cosines(self, params) -> dict[str, jax.Array]:
        """`cosine_PAIR` [3], of storage, routing and all: a placement a letter, mean of letters.

        Undefined where a gradient is zero; such letters are left out.
        """
        apply_fn = models.make_apply_fn(models.Transformer(self.network))

        def nll(params, tokens_L, position, target):
            logits_EV = self.logits(params, tokens_L[None], position[None], apply_fn)
            return objectives.token_nll(logits_EV[0], target)

        letter_E = self.questions["forward"].letter_E
        shares = self.shares(self.questions["forward"])
        rows = np.concatenate([one_a_letter(letter_E, share_E > 0) for share_E in shares.values()])
        asked = [[q.tokens_EL[rows], q.position_E[rows], q.target_E[rows]]
                 for q in self.questions.values()]  # fmt: skip
        stacked = [np.stack(x, axis=1) for x in zip(*asked, strict=True)]
        cosine = gradient_cosines(nll, params, stacked)
        values = {}
        for which, where in enumerate(shares):
            mine = slice(NUM_LETTERS * which, NUM_LETTERS * (which + 1))
            of_pairs = mean_cosines({part: x[mine] for part, x in cosine.items()})
            values |= {f"{name}{where}": x for name, x in of_pairs.items()}
        return values

    def scores(self, params) -> dict[str, jax.Array]:
        """Raw scores on each uppercase behind ("forward") and before, alone: [layers, heads, E]."""
        internals = models.make_internals_fn(models.Transformer(self.network))
        return {
            name: attention.attention_to(
                internals, params, placed.tokens_EL, placed.query_E, placed.key_E
            ).scores
            for name, placed in self.placed().items()
        }

    def placed(self) -> dict[str, attention.PlacedNames]:
        """An uppercase and what asks, at every distance, and nothing else."""
        names = [[letter] for letter in case_pairs.UPPER]
        asks = PAD if self.cell.reads_before else MASK
        how = dict(mask_id=asks, fill_id=PAD)
        return {
            direction: attention.place_names(names, self.config.length - 1, direction, **how)
            for direction in case_recall.DIRECTIONS
        }


def network(
    cell: Cell, vocab_size: int, length: int, config: Training, **more: Any
) -> models.TransformerConfig:
    """RADD's encoder with what the cell changes of it; `more` as of `models.radd`."""
    return models.radd(
        vocab_size,
        num_layers=cell.layers,
        width=config.width,
        max_len=length,
        causal=cell.attention == "causal",
        block_size=cell.block or None,
        positions=cell.positions,
        dropout=config.dropout,
        **more,
    )


def initializer(c: Training, model, apply_fn) -> Callable[[int], training.TrainState]:
    """Step 0 of a seed."""
    optimizer = training.make_optimizer(c.learning_rate, warmup_steps=c.warmup_steps)
    return training.initializer(model, apply_fn, optimizer, ema=True)


def run(c: Training, identity: Mapping[str, Any], rows, objective, **rest: Any) -> runs.Run:
    """A cell's training on these rows, whatever the data; `rest` as of `runs.Run`."""
    step = functools.partial(training.train_step, objective=objective, ema_decay=c.ema_decay)
    steps = dict(num_steps=c.steps, eval_every=c.eval_every, batch_size=c.batch_size)
    return runs.Run(identity, data=lambda seed: rows, step=step, **steps, **rest)


def objective(
    cell: Cell, length: int, batch_size: int, *, mask_id: int = MASK, bos_id: int | None = MASK
) -> objectives.Objective:
    """What is trained, on so many rows of that length: see `docs/causes.md`."""
    room = masked_share(batch_size, length)
    masked = functools.partial(objectives.masked_lm, mask_id=mask_id, keep=0.0, random=0.0)
    diffusion = functools.partial(objectives.masked_diffusion, mask_id=mask_id)
    if cell.attention == "blocks":
        rows = PerRow(cell.block)
        how = dict(block_size=cell.block, mask_id=mask_id, capacity=rows)
        return functools.partial(block_diffusion.block_diffusion, **how)
    more = 0.5 / length  # any order hides (L + 1) / 2 of L on average
    return {
        "next_token": functools.partial(objectives.next_token, bos_id=bos_id),
        "masked_diffusion": functools.partial(diffusion, capacity=room),
        "any_order": functools.partial(diffusion, weighting="k", capacity=min(room + more, 1)),
        "uniform_rate": functools.partial(masked, rate=None, capacity=room),
        "fixed_rate": functools.partial(masked, rate=FIXED_RATE, capacity=room / 2),
    }[cell.objective]


def training_rows(cell: Cell, length: int) -> dict[str, np.ndarray]:
    """Training rows: which letters are scored, and which placements there are."""
    tokens_BL = case_pairs.training_set(length)
    if cell.placed != "anywhere":
        same_P = is_within(case_pairs.placements(length), cell.block)
        kept_P = same_P if cell.placed == "within" else ~same_P
        tokens_BL = tokens_BL[np.tile(kept_P, NUM_LETTERS)]
    if cell.predicted == "both":
        return {"tokens_BL": tokens_BL}
    is_lower_BL = tokens_BL < NUM_LETTERS
    is_upper_BL = (tokens_BL >= NUM_LETTERS) & (tokens_BL < PAD)
    left_out_BL = is_lower_BL if cell.predicted == "B" else is_upper_BL
    noised_BL = np.ones_like(left_out_BL)
    return {"tokens_BL": tokens_BL, "scored_BL": ~left_out_BL, "noised_BL": noised_BL}


def mean_cosines(cosine: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """`cosine_PAIR` [3], of PARTS: the mean over examples of what `gradient_cosines` found.

    An example's questions are those of QUESTIONS. Undefined cosines are left out.
    """
    number = {name: n for n, name in enumerate(QUESTIONS)}
    return {
        f"cosine_{pair}": jnp.stack(
            [jnp.nanmean(cosine[part][:, number[first], number[second]]) for part in PARTS]
        )
        for pair, (first, second) in PAIRS.items()
    }


def gradient_cosines(loss, params, examples) -> dict[str, jax.Array]:
    """Cosines of the gradients of an example's questions: storage, .., "total" to [E, Q, Q].

    NaN where a gradient is zero, or its part below 1e-15 of its largest entry.

    Args:
      loss: of (params, *question), a scalar.
      params: any pytree.
      examples: arrays [E, Q, ..], the arguments of question q of example e.
    """
    parts = blocks.Blocks.of(params, "role")

    def of_example(questions):
        grads = jax.lax.map(lambda question: jax.grad(loss)(params, *question), tuple(questions))
        leaves = [
            x.reshape(len(x), len(names), -1)
            for x, names in zip(jax.tree.leaves(grads), parts.names, strict=True)
        ]
        # Over the largest entry: the squares of what is answered for sure underflow.
        largest_Q = jnp.stack([jnp.abs(x).max((1, 2)) for x in leaves]).max(0)
        scaled = [x / jnp.where(largest_Q > 0, largest_Q, 1)[:, None, None] for x in leaves]
        inner = parts.sum([jnp.einsum("qnx,rnx->qrn", x, x, precision="highest") for x in scaled])
        return {name: cosine(x) for name, x in inner.items()}

    def cosine(inner_QQ):
        norm_Q = jnp.sqrt(jnp.diagonal(inner_QQ))
        # What is smaller beside the rest has squares that float32 does not hold.
        defined_Q = norm_Q > 1e-15
        product_QQ = jnp.outer(norm_Q, norm_Q)
        return jnp.where(jnp.outer(defined_Q, defined_Q), inner_QQ / product_QQ, jnp.nan)

    return jax.lax.map(of_example, tuple(map(jnp.asarray, examples)))


def is_within(places_P2: np.ndarray, block: int) -> np.ndarray:
    """Whether two places are in one block."""
    block_P2 = places_P2 // block
    return block_P2[:, 0] == block_P2[:, 1]


def one_a_letter(letter_E: np.ndarray, allowed_E: np.ndarray) -> np.ndarray:
    """A fixed random row of each letter among the allowed ones."""
    rng = np.random.default_rng(0)
    return np.array(
        [rng.choice(np.flatnonzero((letter_E == x) & allowed_E)) for x in range(NUM_LETTERS)]
    )


def with_correlation(values: Mapping[str, jax.Array]) -> dict[str, Any]:
    """The values with `attention_correlation` [1] in the place of the scores.

    Corr over letters at every two distances, mean over distances, layers and heads.
    """
    kept = {name: x for name, x in values.items() if not name.startswith("scores_")}
    item_E = np.repeat(
        np.arange(NUM_LETTERS), np.shape(values["scores_forward"])[-1] // NUM_LETTERS
    )
    distance_E = np.tile(np.arange(len(item_E) // NUM_LETTERS) + 1, NUM_LETTERS)
    scores = [
        attention.by_distance(np.asarray(values[f"scores_{name}"]), item_E, distance_E)
        for name in case_recall.DIRECTIONS
    ]
    found = attention.distance_correlation(*scores, resamples=1)
    return kept | {"attention_correlation": np.array([np.nanmean(found.mean)])}
