"""The toy task of arXiv 2602.02133 (§5, App. D): models, training, what is asked of them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from dirasym import models, objectives, runs, training
from dirasym.analysis import case_recall
from dirasym.data import case_pairs
from dirasym.models import token_table
from dirasym.rows import masked_share
from experiments.flags import flag


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    lengths: tuple[int, ...] = flag((10,), "Sequence lengths L.", 2, 400)
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.", kind="seed")
    models: tuple[Literal["mdm", "arm"], ...] = flag(("mdm", "arm"), "Which to train.")
    steps: int = flag(3000, "Train steps.", 1)
    eval_every: int = flag(250, "Steps between evaluations (and checkpoints).", 1)
    report_step: int = flag(0, "The step whose weights Table 2 and Figure 11 show; 0: the last.", 0)
    batch_size: int = flag(256, "Sequences a step.", 1, 10**6, kind="batch_size")
    width: int = flag(256, "Width of the residual stream.", 2, 10**6)
    layers: int = flag(1, "Transformer layers.", 1, 1000)
    attention_only: bool = flag(False, "The MDM as embedding, attention and head alone (§5.2).")
    positions: Literal["rope", "alibi", "sinusoidal", "learned", "none"] = flag(
        "rope", "How positions enter the MDM."
    )
    learning_rate: float = flag(3e-4, "Adam's, after warm-up.", 0)
    warmup_steps: int = flag(1000, "Steps of linear warm-up.", 0)
    dropout: float = flag(0.02, "Dropout rate.", 0)
    ema_decay: float = flag(0.9999, "Moving average of the MDM's weights.", 0)
    weighting: Literal["lambda", "t", "k"] = flag("lambda", "Form of the MDM's DCE loss.")
    head_init: Literal["as_init", "zeros"] = flag("as_init", "Start of the MDM's output head.")
    embed_std: float = flag(0.0, "Start of the MDM's embedding: N(0, std²); 0: U(±1/√width).", 0)
    norm_bias_init: float = flag(1.0, "Start of the MDM's LayerNorm biases (1 in RADD's code).")
    order: case_recall.Order = flag("random", "Order in which the MDM reveals positions.")
    generations: int = flag(100, "Sampled per letter and direction, at every evaluation.", 1, 10**4)
    top_k: int = flag(3, "Sample among the most probable k.", 1, case_pairs.VOCAB_SIZE)

    def __post_init__(self):
        if self.ema_decay >= 1:
            raise ValueError(f"--ema_decay={self.ema_decay} must be below 1")
        for name, step in (("steps", self.steps), ("report_step", self.report_step)):
            if step > self.steps or step % self.eval_every:
                wanted = f"a multiple of --eval_every={self.eval_every} up to --steps={self.steps}"
                raise ValueError(f"--{name}={step} is not {wanted}")
        for model in self.models:
            Task(model, min(self.lengths), self).network  # noqa: B018  # raises what does not fit

    @property
    def shown_step(self) -> int:
        """The step that tables and panels show."""
        return self.report_step or self.steps


@dataclasses.dataclass(frozen=True)
class Task:
    """One model at one length: how it is trained and how it is asked."""

    model: str
    length: int
    config: Config

    @property
    def network(self) -> models.TransformerConfig:
        """RADD (MDM) or GPT-2 (ARM) with one head, as in App. D.2 but for what flags change."""
        c, vocab_size = self.config, case_pairs.VOCAB_SIZE
        size = dict(num_layers=c.layers, num_heads=1, width=c.width, max_len=self.length)
        if self.model == "arm":
            return models.gpt2(vocab_size, dropout=c.dropout, **size)
        size |= dict(positions=c.positions, embed_std=c.embed_std or None, head_init=c.head_init)
        if c.attention_only:
            return models.attention_only(vocab_size, residual=False, dropout=c.dropout, **size)
        init = c.norm_bias_init
        return models.radd(vocab_size, norm_bias_init=init, dropout=c.dropout, **size)

    @functools.cached_property
    def apply_fn(self):
        """The model as an ApplyFn, which reads a table of the tokens where it can."""
        return token_table.fastest_apply_fn(models.Transformer(self.network))

    @functools.cached_property
    def init(self) -> Callable[[int], training.TrainState]:
        """Step 0 of a seed."""
        c = self.config
        optimizer = training.make_optimizer(c.learning_rate, warmup_steps=c.warmup_steps)
        model = models.Transformer(self.network)
        return training.initializer(model, self.apply_fn, optimizer, ema=self.model == "mdm")

    def step(self):
        """state, batch -> state, metrics."""
        c, train = self.config, training.train_step
        if self.model == "arm":
            objective = functools.partial(objectives.next_token, bos_id=case_pairs.MASK)
            return functools.partial(train, objective=objective)
        room = masked_share(c.batch_size, self.length)
        how = dict(mask_id=case_pairs.MASK, weighting=c.weighting, capacity=room)
        objective = functools.partial(objectives.masked_diffusion, **how)
        return functools.partial(train, objective=objective, ema_decay=c.ema_decay)

    def run(self, identity: Mapping[str, Any], evaluate: Callable, **rest: Any) -> runs.Run:
        """Its training, for any seed; `evaluate` is compiled."""
        c, data = self.config, {"tokens_BL": case_pairs.training_set(self.length)}
        return runs.Run(
            identity,
            data=lambda seed: data,
            step=self.step(),
            num_steps=c.steps,
            eval_every=c.eval_every,
            batch_size=c.batch_size,
            init=self.init,
            evaluate=jax.jit(evaluate),
            network=self.network,
            **rest,
        )

    def evaluate(self, state: training.TrainState) -> dict[str, jax.Array]:
        """Both directions, for the raw weights and (MDM) their moving average."""
        key = jax.random.fold_in(state.key, training.EVAL_STREAM)
        how = dict(kind=self.kind, **self.sampling)
        return case_recall.evaluate(self.apply_fn, state.weights(), self.length, key, **how)

    @property
    def kind(self) -> case_recall.Kind:
        """How the model reads."""
        return "causal" if self.model == "arm" else "masked"

    @property
    def sampling(self) -> dict[str, Any]:
        """How it generates, as `case_recall` takes it."""
        return {name: getattr(self.config, name) for name in ("generations", "top_k", "order")}
