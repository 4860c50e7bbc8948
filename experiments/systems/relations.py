"""Relations between invented entities (arXiv 2405.04669, §5): networks, training, what is asked.

The network is GPT-2's unless `--family` says otherwise. The original's flags bear its names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax

from dirasym import devices, models, sharding, training
from dirasym.data import relations
from dirasym.last_word import LastWord
from dirasym.usage import blamed
from experiments.flags import FLAGS, flag

POSITIONS = {"absolute": "learned", "rotary": "rope", "null": "none"}
MEASURES = {"reversal": ("asymmetry_trained", "asymmetry_withheld"), "chain": ("intransitivity",)}
MAX_UNROLLED = 8  # layers; more are one compiled layer, which spares minutes of compilation


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    task: Literal["reversal", "chain", "chain_related", "icl"] = flag("reversal", "Sentences.")
    seeds: tuple[int, ...] = flag(tuple(range(10)), "One run each, on the same data.", kind="seed")
    data_seed: int = flag(0, "Of the entities and the split.", kind="seed")
    vocab_size: int = flag(0, "Tokens to draw entities from; 0: 800, or 400 for icl.", 0, 10**6)
    word_size: int = flag(1, "Tokens of an entity, in reversal and chain.", 1, 100)
    alphabet_size: int = flag(600, "Indices, in chain_related.", 1)
    train_share: float = flag(0.7, "Of the pairs, triples or (icl) names B that train whole.", 0, 1)
    num_train: tuple[int, ...] = flag(
        (200,), "Triples that train, in chain_related: a run each.", 1, 10**6
    )
    num_val: int = flag(50, "Triples that validate, in chain_related.", 1)
    num_x_tokens: int = flag(100, "Entities A, in icl.", 1, 10**4)
    num_y_tokens: int = flag(10, "Entities B, in icl.", 1, 10**3)
    num_facts: int = flag(1, "Facts that a sentence tells before it asks, in icl.", 1, 100)
    family: Literal["gpt2", "mlp", "gru", "masked"] = flag("gpt2", "Network; masked: both ways.")
    pos_encode_type: Literal["absolute", "rotary", "null"] = flag("absolute", "Positions.")
    tied_head: bool = flag(True, "A transformer reads out its answer with the embedding.")
    n_layers: int = flag(24, "Layers.", 1, 1000)
    n_heads: int = flag(12, "Heads of attention.", 1)
    embed_dim: int = flag(768, "Width.", 1, 10**5)
    dropout: float = flag(0.1, "Dropout rate; 0.1 is GPT-2's default, and the original's.", 0)
    num_epochs: int = flag(3000, "Epochs.", 1)
    eval_every: int = flag(20, "Epochs of one dispatch, up to the next evaluation.", 1)
    batch_size: int = flag(64, "Sentences a step, at most.", 1, 10**6)
    lr: float = flag(0.01, "AdamW's, constant.", 0)
    weight_decay: float = flag(0.01, "AdamW's, on every parameter.", 0)
    l2: float = flag(0.0, "Coupled decay, in the gradient that Adam normalises.", 0)
    loss_whole_sequence: bool = flag(False, "Train on every token, not on the last word alone.")
    freeze_wte_wpe: bool = flag(False, "Leave the embeddings as they start.")

    def __post_init__(self):
        if self.num_epochs % self.eval_every:
            said = f"--num_epochs={self.num_epochs}"
            raise ValueError(f"{said} is not a multiple of --eval_every={self.eval_every}")
        if self.word_size > 1 and self.task in ("chain_related", "icl"):
            raise ValueError(f"--task={self.task} has words of its own: leave out --word_size")
        if self.family not in ("mlp", "gru"):
            self.transformer(8, 8)  # raises what does not fit
        elif self.pos_encode_type != "absolute":
            raise ValueError(f"--family={self.family} has positions of its own")
        elif self.dropout:
            raise ValueError(f"--family={self.family} has no dropout: say --dropout=0")
        elif not self.tied_head:
            raise ValueError(f"--family={self.family} has a head of its own")

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """Numbers of training triples, where there is a choice."""
        return self.num_train if self.task == "chain_related" else (None,)

    def transformer(self, vocab_size: int, length: int) -> models.TransformerConfig:
        """GPT-2, or the same without a causal mask. Raises ValueError, naming the flags."""
        try:
            return models.gpt2(
                vocab_size,
                self.dropout,
                num_layers=self.n_layers,
                num_heads=self.n_heads,
                width=self.embed_dim,
                max_len=length,
                positions=POSITIONS[self.pos_encode_type],
                causal=self.family != "masked",
                tied_head=self.tied_head,
                scan_layers=self.n_layers > MAX_UNROLLED,
            )
        except ValueError as error:
            said = (f"--{x}={getattr(self, x)}" for x in ("embed_dim", "n_heads", "dropout"))
            raise ValueError(f"{' '.join(said)}: {error}") from None


@blamed()
def sentences(c: Config, num_train: int | None) -> relations.Relations:
    """Of the task. Raises ValueError for a vocabulary that is too small."""
    vocab_size, seed = c.vocab_size or (400 if c.task == "icl" else 800), c.data_seed
    if c.task == "chain_related":
        counts = dict(num_indices=c.alphabet_size, num_train=num_train, num_validation=c.num_val)
        return relations.chain_related(vocab_size, **counts, seed=seed)
    known: Any = dict(train_share=c.train_share, seed=seed)
    if c.task == "icl":
        counts = dict(num_first=c.num_x_tokens, num_second=c.num_y_tokens, num_facts=c.num_facts)
        return relations.in_context(vocab_size, **counts, **known)
    return getattr(relations, c.task)(vocab_size, c.word_size, **known)  # reversal, chain


def learner(c: Config, num_train: int | None = None, data: Any = None) -> LastWord:
    """The network of a family, AdamW, and `data` or sentences of the task (`num_train` triples)."""
    data = sentences(c, num_train) if data is None else data
    vocab_size, length = data.vocab_size, data.train_EL.shape[1]
    mask_id = vocab_size if c.family == "masked" else None  # a token after all others
    make_apply_fn: Any = models.make_tokens_apply_fn
    if c.family == "mlp":
        network: Any = models.PrefixMLP(vocab_size, c.embed_dim, c.n_layers, length)
    elif c.family == "gru":
        network = models.GRU(vocab_size, c.embed_dim, c.n_layers)
    else:
        network = models.Transformer(c.transformer(vocab_size + (mask_id is not None), length))
        make_apply_fn = models.make_apply_fn
    optimizer = training.make_optimizer(c.lr, weight_decay=c.weight_decay, l2=c.l2, clip_norm=None)
    if c.freeze_wte_wpe:
        optimizer = optax.chain(optimizer, optax.masked(optax.set_to_zero(), is_embedding))
    init = training.initializer(network, make_apply_fn(network), optimizer, length=length)
    how: Any = dict(measures=MEASURES.get(c.task, ()), mask_id=mask_id, network=network)
    how |= dict(whole=c.loss_whole_sequence, dropout=c.dropout > 0)
    how |= dict(num_devices=devices_of_a_batch())
    return LastWord(data, init, c.num_epochs, c.batch_size, c.eval_every, **how)


def is_embedding(params: Mapping[str, Any]) -> dict[str, Any]:
    """Which leaves of a linen model's parameters are embeddings."""
    return jax.tree.map_with_path(lambda path, _: "embed" in path[0].key, params)


def devices_of_a_batch() -> int:
    """How many devices share a batch."""
    names = ("num_devices", "model_devices", "backend")
    mesh = devices.mesh(*(FLAGS[name].value for name in names))  # as they are without a command
    return 1 if mesh is None else mesh.shape[sharding.DATA]
