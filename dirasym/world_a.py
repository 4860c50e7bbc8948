"""World A for any model (arXiv 2511.19997): maps between strings as runs, and what they say.

    learner = Learner(init, objectives.next_token, epochs=20, batch_size=64)
    lines = runs.sweep([learner.run(case, {"model": "mine"}) for case in cases], seeds, workdir)

`data.string_maps` has the maps, and `analysis.excess` cases, floors and units.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from dirasym import runs, training
from dirasym.analysis import alignment, excess
from dirasym.analysis.excess import Case
from dirasym.objectives import Objective

ARROWS = {"forward": "A->B", "inverse": "B->A"}  # as result lines write directions


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """A model and how it learns a map; all runs of a learner share their compiled programs.

    Attributes:
      init: from a seed to the state at step 0, with the same `apply_fn` and `tx` for all.
      objective: of the train step; its sum is in nats.
      epochs: passes over the pairs; the last batch of each holds what is left.
      batch_size: pairs a step.
      eval_every: epochs between evaluations, at most: the greatest that divides `epochs` evenly.
      clean_objective: what a clean pass measures, without dropout and the weights still; that of
        training when None.
      eval_batch_size: pairs at a time then; `batch_size` when None.
      dropout: whether the model takes a dropout key.
      token_mean: the published training loss, in nats per token: the mean over an epoch's
        "batches" of their losses, or over its "strings".
      loss_name: the key of its last value in a result line.
      blocks: compare the gradients of both directions at every evaluation, by these blocks of
        parameters (see `alignment.compare_steps`); not when None.
      network: as of `runs.Run`.
    """

    init: Callable[[int], training.TrainState]
    objective: Objective
    epochs: int
    batch_size: int
    eval_every: int = 1
    clean_objective: Objective | None = None
    eval_batch_size: int | None = None
    dropout: bool = True
    token_mean: Literal["batches", "strings"] = "batches"
    loss_name: str = "final_train_loss"
    blocks: alignment.BlockOf = None
    network: Any = None

    def run(
        self,
        case: Case,
        identity: Mapping[str, Any],
        more: Mapping[str, Any] | None = None,
        *,
        probe: Sequence[training.Data] = (),
    ) -> runs.Run:
        """Its training on one map in one direction, for any seed.

        Args:
          case: what is learned.
          identity: what it is known by; K and the direction are added.
          more: what else its result line says.
          probe: with `blocks`, rows of the map forward and inverse to take gradients on.
        """
        epoch_steps = -(-case.of.n_pairs // self.batch_size)
        return runs.Run(
            {**identity, "K": case.of.K, "direction": ARROWS[case.direction]},
            data=lambda seed: case.data,
            step=self._step,
            num_steps=self.epochs * epoch_steps,
            eval_every=math.gcd(self.eval_every, self.epochs) * epoch_steps,
            batch_size=self.batch_size,
            init=self.init,
            evaluate=lambda state: self._evaluate(state, case.data, tuple(probe)),
            summarize=functools.partial(self._summarize, case, more or {}),
            whole_epochs=True,
            network=self.network,
        )

    @functools.cached_property
    def num_params(self) -> tuple[int, int]:
        """(trained, frozen), of shapes alone."""
        state = jax.eval_shape(lambda: self.init(0))
        trained, frozen = (jax.tree.leaves(tree) for tree in (state.params, state.frozen))
        return sum(x.size for x in trained), sum(x.size for x in frozen)

    @functools.cached_property
    def _step(self) -> training.StepFn:
        return functools.partial(
            training.train_step, objective=self.objective, dropout=self.dropout
        )

    @functools.cached_property
    def _evaluate(self) -> Callable[..., Mapping[str, jax.Array]]:
        return jax.jit(self._measure)

    def _measure(self, state, data, probe) -> dict[str, jax.Array]:
        clean = self.clean_objective or self.objective
        size = self.eval_batch_size or self.batch_size

        def loss(objective, data, params):
            variables = state.variables(params)
            return excess.clean_loss(
                objective, state.apply_fn, variables, data, state.key, batch_size=size
            )

        values = {"nats_per_string": loss(clean, data, state.params)}
        if self.blocks is not None:
            fwd, rev = (functools.partial(loss, self.objective, rows) for rows in probe)
            values |= alignment.compare_steps(
                fwd, rev, state.params, state.tx, state.opt_state, blocks=self.blocks
            )
        return values

    def _summarize(self, case: Case, more, history: runs.History) -> dict[str, Any]:
        loss_T, count_T, num_pairs = history["loss"], history["count"], case.of.n_pairs
        means, nats = excess.epoch_losses(loss_T, count_T, self.epochs, num_pairs)
        if self.token_mean == "strings":
            curve = nats / case.floor.tokens_per_target
        else:  # a loss may be per token or per string: its counts say which
            unit = float(np.sum(count_T, dtype=np.float64)) / (self.epochs * num_pairs)
            curve = means * unit / case.floor.tokens_per_target
        trained, frozen = self.num_params
        return {
            "world": "A",
            "n_pairs": num_pairs,
            "str_len": case.of.str_len,
            "control": "exchangeable" if case.of.exchangeable else "none",
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "total_params": trained + frozen,
            "trainable_params": trained,
            self.loss_name: float(curve[-1]),
            **excess.in_all_units(case, curve, nats, history["nats_per_string"]),
            "eval_epochs": (history["eval_step"] * self.epochs // len(loss_T)).tolist(),
            "device": jax.devices()[0].device_kind,
            **more,
        }
