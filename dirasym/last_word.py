"""Relations for any model (arXiv 2405.04669, §5): sentences as a run, and what it says of each way.

    learner = LastWord(relations.reversal(), init, epochs=400, batch_size=64)
    lines = runs.sweep([learner.run({"model": "mine"})], seeds, workdir)

`data.relations` has the sentences, and `analysis.weights` what is measured of effective weights.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import objectives, runs, training
from dirasym.analysis.weights import asymmetry, choice, effective_logits, gap, intransitivity
from dirasym.data.relations import Relations
from dirasym.rows import PerRow
from dirasym.types import Batch

MEASURES: dict[str, tuple[Callable[..., jax.Array], tuple[str, ...]]] = {  # of panels
    "asymmetry_trained": (asymmetry, ("a_to_b", "b_to_a")),
    "asymmetry_withheld": (asymmetry, ("given", "withheld")),
    "intransitivity": (intransitivity, ("a_to_b", "b_to_c", "withheld")),
}
LEARNED = 0.05  # nats a word: a training NLL below it counts as learned
MAX_COSINES = 60  # tokens whose embeddings are compared


@dataclasses.dataclass(frozen=True, eq=False)
class LastWord:
    """A model and how it learns the last words of sentences.

    Attributes:
      data: the sentences.
      init: from a seed to the state at step 0, with the same `apply_fn` and `tx` for all.
      epochs: passes over the sentences.
      batch_size: sentences a step, at most: the batches of an epoch are equal, and the blanks
        that make them so are not scored.
      eval_every: epochs between evaluations.
      measures: which of `MEASURES` are taken, as far as their panels are there.
      mask_id: [M] of a bidirectional model, which reads sentences with it in the last word's
        place; None for a causal one.
      whole: train on every token, not on the last word alone.
      dropout: whether the model takes a dropout key.
      num_devices: that share a batch.
      network: as of `runs.Run`.
    """

    data: Relations
    init: Callable[[int], training.TrainState]
    epochs: int
    batch_size: int
    eval_every: int = 1
    measures: tuple[str, ...] = tuple(MEASURES)
    mask_id: int | None = None
    whole: bool = False
    dropout: bool = False
    num_devices: int = 1
    network: Any = None

    def run(
        self,
        identity: Mapping[str, Any],
        more: Mapping[str, Any] | None = None,
        *,
        heat_maps: bool = False,
    ) -> runs.Run:
        """Its training, for any seed.

        Args:
          identity: what it is known by.
          more: what else its result line says.
          heat_maps: whether what `heat_maps` returns joins the curves.
        """
        epoch = self.steps_per_epoch
        return runs.Run(
            identity,
            data=lambda seed: self.train_data,
            step=self.step,
            num_steps=self.epochs * epoch,
            eval_every=self.eval_every * epoch,
            batch_size=len(self.train_data["tokens_BL"]) // epoch,
            init=self.init,
            evaluate=self._evaluate,
            summarize=lambda history: {**(more or {}), **self.summarize(history)},
            finish=self.heat_maps if heat_maps else None,
            network=self.network,
        )

    @property
    def steps_per_epoch(self) -> int:
        """⌈sentences / batch_size⌉."""
        return math.ceil(len(self.data.train_EL) / self.batch_size)

    @functools.cached_property
    def train_data(self) -> training.Data:
        """Sentences, and as many unscored blanks as make the batches of an epoch equal."""
        tokens_EL = self.data.train_EL
        parts = self.steps_per_epoch * self.num_devices
        blank_EL = np.zeros((-len(tokens_EL) % parts, tokens_EL.shape[1]), np.int32)
        scored_EL = self.data.last_word(tokens_EL)
        if self.whole:
            scored_EL = np.ones_like(scored_EL)
        return {
            "tokens_BL": np.concatenate([tokens_EL, blank_EL]),
            "scored_BL": np.concatenate([scored_EL, blank_EL != 0]),
        }

    @functools.cached_property
    def step(self) -> training.StepFn:
        """state, batch -> state, metrics."""
        objective: objectives.Objective = self._ask
        if self.whole:
            objective = objectives.next_token
            if self.mask_id is not None:
                objective = functools.partial(
                    objectives.masked_diffusion, mask_id=self.mask_id, weighting="k"
                )
        return functools.partial(training.train_step, objective=objective, dropout=self.dropout)

    def _ask(self, apply_fn, params, batch, key=None, *, rngs=None):
        """Cross-entropy of the scored tokens: the objective of the last word."""
        settings: dict[str, Any] = dict(capacity=PerRow(self.data.word_size), rngs=rngs)
        if self.mask_id is None:
            return objectives.next_token(apply_fn, params, batch, key, **settings)
        settings |= dict(mask_id=self.mask_id, rate=1, keep=0, random=0)
        return objectives.masked_lm(apply_fn, params, batch, key, **settings)

    @functools.cached_property
    def _evaluate(self):
        return jax.jit(self.evaluate)

    def evaluate(self, state: training.TrainState) -> dict[str, jax.Array]:
        """NLL of the last word in nats a word; of each panel mean gap and choice in percent.

        Without dropout.
        """
        values = {}
        parts = {"train": self.data.train_EL, "validation": self.data.validation_EL}
        for name, sentences_EL in parts.items():
            num = len(sentences_EL)
            batch = Batch(sentences_EL, np.arange(num), num, self.data.last_word(sentences_EL))
            total, _, _ = self._ask(state.apply_fn, state.params, batch, state.key)
            values[f"{name}_nll"] = total / num
        weights = self.weights(state)
        for name, logits_PP in weights.items():
            values[f"gap_{name}"] = gap(logits_PP).mean()
            values[f"choice_{name}"] = 100 * choice(logits_PP).mean()
        for name in self.measures:
            measure, panels = MEASURES[name]
            if weights.keys() >= set(panels):
                values[name] = measure(*(weights[panel] for panel in panels))
        return values

    def weights(self, state: training.TrainState) -> dict[str, jax.Array]:
        """Effective logits [P, P] of every panel."""
        return {
            name: effective_logits(state.apply_fn, state.params, panel_PL, mask_id=self.mask_id)
            for name, panel_PL in self.data.panels.items()
        }

    def heat_maps(self, state: training.TrainState, folder: pathlib.Path) -> dict[str, jax.Array]:
        """The weights of every panel, and cosines of the embeddings of validation sentences.

        These are of their first tokens, and then of their last.
        """
        del folder
        ends = (self.data.validation_EL[: MAX_COSINES // 2, place] for place in (0, -1))
        embed_VD = state.params["embed"]["embedding"][jnp.asarray(np.concatenate(list(ends)))]
        embed_VD = embed_VD / jnp.linalg.norm(embed_VD, axis=1, keepdims=True)
        weights = {f"weights_{panel}": x for panel, x in self.weights(state).items()}
        return {**weights, "cosines": embed_VD @ embed_VD.T}

    def summarize(self, history: runs.History) -> dict[str, Any]:
        """What one seed came to. NLL in nats a word, without dropout."""
        train_T, validation_T = history["train_nll"], history["validation_nll"]
        learned_T = train_T < LEARNED
        first = learned_T.argmax() if learned_T.any() else None
        epoch_T = history["eval_step"] // self.steps_per_epoch
        measured = [
            key for key in history if key in MEASURES or key.startswith(("gap_", "choice_"))
        ]
        return {
            "train_nll": float(train_T[-1]),
            "validation_nll": float(validation_T[-1]),
            "lowest_validation_nll": float(validation_T.min()),
            "uniform_nll": math.log(self.data.num_candidates),
            "epochs_to_learn": None if first is None else int(epoch_T[first]),
            "validation_nll_when_learned": None if first is None else float(validation_T[first]),
            **{key: float(history[key][-1]) for key in measured},
            "num_sentences": len(self.data.train_EL),
            "num_validation_sentences": len(self.data.validation_EL),
        }
