"""Relations between invented entities (arXiv 2405.04669, §5): networks, training, what is asked.

Shared by the experiments that train on them; each adds its question. The network is GPT-2's
unless `--family` says otherwise. Flags that the original has bear its names.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dirasym import models, objectives, training
from dirasym.analysis.weights import asymmetry, effective_logits, gap, intransitivity
from dirasym.compile import compile_scan
from dirasym.data import relations
from dirasym.rows import PerRow
from dirasym.types import Batch
from experiments import flags, harness
from experiments.flags import flag

POSITIONS = {"absolute": "learned", "rotary": "rope", "null": "none"}
ASYMMETRIES = {
    "asymmetry_trained": (asymmetry, "a_to_b", "b_to_a"),
    "asymmetry_withheld": (asymmetry, "given", "withheld"),
}
INTRANSITIVITY = {"intransitivity": (intransitivity, "a_to_b", "b_to_c", "withheld")}
MAX_UNROLLED = 8  # layers; more are one compiled layer, which spares minutes of compilation
MAX_COSINES = 60  # tokens whose embeddings are compared in the figure


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    task: Literal["reversal", "chain", "chain_related", "icl"] = flag("reversal", "Sentences.")
    seeds: tuple[int, ...] = flag(tuple(range(10)), "One run each, on the same data.")
    data_seed: int = flag(0, "Of the entities and the split.", 0)
    vocab_size: int = flag(0, "Tokens to draw entities from; 0: 800, or 400 for icl.", 0)
    word_size: int = flag(1, "Tokens of an entity, in reversal and chain.", 1)
    alphabet_size: int = flag(600, "Indices, in chain_related.", 1)
    num_train: tuple[int, ...] = flag((200,), "Triples that train, in chain_related: a run each.")
    num_val: int = flag(50, "Triples that validate, in chain_related.", 1)
    num_x_tokens: int = flag(100, "Entities A, in icl.", 1)
    num_y_tokens: int = flag(10, "Entities B, in icl.", 1)
    family: Literal["gpt2", "mlp", "gru", "masked"] = flag("gpt2", "Network; masked: both ways.")
    pos_encode_type: Literal["absolute", "rotary", "null"] = flag("absolute", "Positions.")
    n_layers: int = flag(24, "Layers.", 1)
    n_heads: int = flag(12, "Heads of attention.", 1)
    embed_dim: int = flag(768, "Width.", 1)
    dropout: float = flag(0.1, "Dropout rate; 0.1 is GPT-2's default, and the original's.", 0)
    num_epochs: int = flag(3000, "Epochs.", 1)
    eval_every: int = flag(20, "Epochs of one dispatch, up to the next evaluation.", 1)
    batch_size: int = flag(64, "Sentences a step, at most.", 1)
    lr: float = flag(0.01, "AdamW's, constant.", 0)
    weight_decay: float = flag(0.01, "AdamW's, on every parameter.", 0)
    loss_whole_sequence: bool = flag(False, "Train on every token, not on the last word alone.")
    freeze_wte_wpe: bool = flag(False, "Leave the embeddings as they start.")

    def __post_init__(self):
        if self.num_epochs % self.eval_every:
            raise ValueError(
                f"--num_epochs={self.num_epochs} is not a multiple of "
                f"--eval_every={self.eval_every}"
            )
        if self.word_size > 1 and self.task in ("chain_related", "icl"):
            raise ValueError(f"--task={self.task} has words of its own: leave out --word_size")
        if self.pos_encode_type != "absolute" and self.family in ("mlp", "gru"):
            raise ValueError(f"--family={self.family} has positions of its own")
        if self.dropout and self.family in ("mlp", "gru"):
            raise ValueError(f"--family={self.family} has no dropout: say --dropout=0")
        for size in self.sizes:
            Task(self, size).network()  # raises what data and network raise

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """Numbers of training triples, where there is a choice."""
        return self.num_train if self.task == "chain_related" else (None,)


@dataclasses.dataclass(frozen=True)
class Task:
    """One network on one data set: how it is trained and how it is asked."""

    config: Config
    num_train: int | None = None  # training triples, in chain_related
    together: bool = False  # seeds share a program
    num_devices: int = 1  # that share a batch

    @functools.cached_property
    def data(self) -> relations.Relations:
        """The sentences."""
        c = self.config
        vocab_size = c.vocab_size or (400 if c.task == "icl" else 800)
        if c.task == "icl":
            return relations.in_context(
                vocab_size, num_first=c.num_x_tokens, num_second=c.num_y_tokens, seed=c.data_seed
            )
        if c.task == "chain_related":
            return relations.chain_related(
                vocab_size,
                num_indices=c.alphabet_size,
                num_train=self.num_train,
                num_validation=c.num_val,
                seed=c.data_seed,
            )
        make = relations.reversal if c.task == "reversal" else relations.chain
        return make(vocab_size, c.word_size, seed=c.data_seed)

    @property
    def mask_id(self) -> int | None:
        """[M] of the masked family: a token after all others."""
        return self.data.vocab_size if self.config.family == "masked" else None

    def network(self):
        """The linen module."""
        c, length = self.config, self.data.train_EL.shape[1]
        if c.family == "mlp":
            return models.PrefixMLP(self.data.vocab_size, c.embed_dim, c.n_layers, length)
        if c.family == "gru":
            return models.GRU(self.data.vocab_size, c.embed_dim, c.n_layers)
        masked = c.family == "masked"
        config = models.gpt2(
            self.data.vocab_size + masked,
            c.dropout,
            num_layers=c.n_layers,
            num_heads=c.n_heads,
            width=c.embed_dim,
            max_len=length,
            positions=POSITIONS[c.pos_encode_type],
            causal=not masked,
            scan_layers=c.n_layers > MAX_UNROLLED,
        )
        return models.Transformer(config)

    @functools.cached_property
    def apply_fn(self):
        """The network as an `ApplyFn`."""
        network = self.network()
        if isinstance(network, models.Transformer):
            return models.make_apply_fn(network)
        return models.make_tokens_apply_fn(network)

    def state(self, seed: int) -> training.TrainState:
        """Step 0 of one seed."""
        c = self.config
        init_key, run_key = jax.random.split(jax.random.key(seed))
        sentence = np.zeros((1, self.data.train_EL.shape[1]), np.int32)
        params = jax.jit(self.network().init)(init_key, sentence)["params"]
        optimizer = training.make_optimizer(c.lr, weight_decay=c.weight_decay, clip_norm=None)
        if c.freeze_wte_wpe:
            is_embedding = {
                name: jax.tree.map(lambda _, name=name: "embed" in name, subtree)
                for name, subtree in params.items()
            }
            optimizer = optax.chain(optimizer, optax.masked(optax.set_to_zero(), is_embedding))
        return training.create_state(self.apply_fn, params, optimizer, run_key)

    @property
    def steps_per_epoch(self) -> int:
        """⌈sentences / batch_size⌉."""
        return math.ceil(len(self.data.train_EL) / self.config.batch_size)

    def train_data(self) -> training.Data:
        """Sentences, and as many unscored blanks as make the batches of an epoch equal."""
        tokens_EL = self.data.train_EL
        parts = self.steps_per_epoch * self.num_devices
        blank_EL = np.zeros((-len(tokens_EL) % parts, tokens_EL.shape[1]), np.int32)
        scored_EL = self.data.last_word(tokens_EL)
        if self.config.loss_whole_sequence:
            scored_EL = np.ones_like(scored_EL)
        return {
            "tokens_BL": np.concatenate([tokens_EL, blank_EL]),
            "scored_BL": np.concatenate([scored_EL, blank_EL != 0]),
        }

    def compile(self, num_epochs: int, **kwargs):
        """`num_epochs` epochs as one program: (state, data) -> (state, metrics)."""
        objective = self._ask
        if self.config.loss_whole_sequence:
            objective = objectives.next_token
            if self.config.family == "masked":
                objective = functools.partial(
                    objectives.masked_diffusion, mask_id=self.mask_id, weighting="k"
                )
        return compile_scan(
            functools.partial(
                training.train_step, objective=objective, dropout=self.config.dropout > 0
            ),
            num_steps=num_epochs * self.steps_per_epoch,
            batch_size=len(self.train_data()["tokens_BL"]) // self.steps_per_epoch,
            over_seeds=self.together,
            **kwargs,
        )

    def train(self, experiment: harness.Experiment, name: str, seeds: list[int]):
        """Trains a group of seeds from its last checkpoint: state and history."""
        c = self.config
        return experiment.train(
            name,
            harness.stack_seeds([self.state(seed) for seed in seeds], self.together),
            self.compile(c.eval_every, backend=flags.FLAGS.backend, mesh=experiment.mesh),
            self.train_data(),
            num_steps=c.num_epochs * self.steps_per_epoch,
            steps_per_call=c.eval_every * self.steps_per_epoch,
            evaluate=harness.over_seeds(self.evaluate, self.together),
        )

    def _ask(self, apply_fn, params, batch, key=None, *, rngs=None):
        """Cross-entropy of the scored tokens: the objective of the last word."""
        settings = dict(capacity=PerRow(self.data.word_size), rngs=rngs)
        if self.mask_id is None:
            return objectives.next_token(apply_fn, params, batch, key, **settings)
        settings |= dict(mask_id=self.mask_id, rate=1, keep=0, random=0)
        return objectives.masked_lm(apply_fn, params, batch, key, **settings)

    def evaluate(self, state: training.TrainState) -> dict[str, jax.Array]:
        """NLL of the last word in nats a word, and the mean gap of each panel; no dropout."""
        values = {}
        for name, sentences_EL in (
            ("train", self.data.train_EL),
            ("validation", self.data.validation_EL),
        ):
            num = len(sentences_EL)
            batch = Batch(sentences_EL, np.arange(num), num, self.data.last_word(sentences_EL))
            total, _, _ = self._ask(self.apply_fn, state.params, batch, state.key)
            values[f"{name}_nll"] = total / num
        weights = self.weights(state)
        for name, logits_PP in weights.items():
            values[f"gap_{name}"] = gap(logits_PP).mean()
        measures = {"reversal": ASYMMETRIES, "chain": INTRANSITIVITY}.get(self.config.task, {})
        for name, (measure, *panels) in measures.items():
            if weights.keys() >= set(panels):
                values[name] = measure(*(weights[panel] for panel in panels))
        return values

    def weights(self, state: training.TrainState) -> dict[str, jax.Array]:
        """Effective logits [P, P] of every panel."""
        return {
            name: effective_logits(self.apply_fn, state.params, panel_PL, mask_id=self.mask_id)
            for name, panel_PL in self.data.panels.items()
        }

    def cosines(self, state: training.TrainState) -> jax.Array:
        """Cosines of the embeddings of first and of last tokens of validation sentences."""
        ends = (self.data.validation_EL[: MAX_COSINES // 2, place] for place in (0, -1))
        embed_VD = state.params["embed"]["embedding"][jnp.asarray(np.concatenate(list(ends)))]
        embed_VD = embed_VD / jnp.linalg.norm(embed_VD, axis=1, keepdims=True)
        return embed_VD @ embed_VD.T
