"""Closed family graphs (data.families): the network, weight decay as a number, and what is asked.

The network is GPT-2's, as in `relations`, and learns the last person of "person relation person".
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dirasym import models, objectives, runs, training
from dirasym.analysis import rescal, states, weights
from dirasym.data import families
from dirasym.rows import PerRow, call
from dirasym.usage import blamed
from experiments.flags import flag

DECAYS = "0", "0.1", "0.5", "1", "2", "3", "4", "5", "6"  # of arXiv 2509.21993


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    weight_decays: tuple[Literal[DECAYS], ...] = flag(DECAYS, "AdamW's, on every parameter.")
    closures: tuple[int, ...] = flag((0, 2, 4, 6), "How many composing relations train.", 0, 7)
    widths: tuple[int, ...] = flag((64,), "Widths of the network.", 1, 10**5)
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each, on the same data.", kind="seed")
    data_seed: int = flag(0, "Of the persons' tokens.", kind="seed")
    withheld: tuple[Literal[families.RELATIONS], ...] = flag(
        ("husband",), "Relations that some families are not told, and are asked."
    )
    num_families: int = flag(60, "Of ten persons each.", 1, 10**5)
    withheld_share: float = flag(0.25, "Of the families that are asked.", 0, 1)
    n_layers: int = flag(2, "Layers.", 1, 100)
    n_heads: int = flag(4, "Heads of attention.", 1)
    num_steps: int = flag(2000, "Train steps.", 1)
    eval_every: int = flag(200, "Steps between evaluations (and checkpoints).", 1)
    batch_size: int = flag(128, "Facts a step.", 1, 10**6, kind="batch_size")
    lr: float = flag(1e-3, "AdamW's, constant.", 0)

    def __post_init__(self):
        if len(self.seeds) < 2:
            raise ValueError("--seeds: intervals over seeds need at least two")
        if self.num_steps % self.eval_every:
            raise ValueError(
                f"--num_steps={self.num_steps} is not a multiple of --eval_every={self.eval_every}"
            )
        for width in self.widths:
            if width % self.n_heads:
                raise ValueError(f"--widths={width} is not a multiple of --n_heads={self.n_heads}")
        for closure in self.closures:
            self.graph(closure)  # raises what leaves nothing to ask

    def graph(self, closure: int) -> families.Families:
        """The facts at one closure."""
        how = dict(withheld=self.withheld, withheld_share=self.withheld_share, seed=self.data_seed)
        with blamed():
            return families.families(self.num_families, closure, **how)


def decayed_adamw(lr: float) -> optax.GradientTransformation:
    """AdamW whose decay is a number of its state: runs of all decays share one program."""
    return optax.inject_hyperparams(optax.adamw)(learning_rate=lr, weight_decay=0.0)


class ClosureLearner:
    """One width at one closure, for any weight decay.

    Args:
      c: the configuration.
      graph: the facts.
      model: the network; learners of one model and optimizer share what is compiled.
      apply_fn: the model as an ApplyFn.
      optimizer: `decayed_adamw(c.lr)`.
    """

    def __init__(self, c: Config, graph: families.Families, model, apply_fn, optimizer):
        self.config, self.graph, self.model = c, graph, model
        self.init = training.initializer(model, apply_fn, optimizer, length=2)
        tokens_EL = graph.train_EL
        scored_EL = np.broadcast_to(np.arange(3) == 2, tokens_EL.shape)
        self.data = {"tokens_BL": tokens_EL, "scored_BL": scored_EL}
        objective = functools.partial(objectives.next_token, capacity=PerRow(1))
        self.step = functools.partial(training.train_step, objective=objective, dropout=False)
        self.evaluate = jax.jit(self._evaluate)

    def run(self, identity: Mapping[str, Any], decay: float) -> runs.Run:
        """Its training with one weight decay, for any seed."""
        c = self.config
        return runs.Run(
            identity,
            data=lambda seed: self.data,
            step=self.step,
            num_steps=c.num_steps,
            eval_every=c.eval_every,
            batch_size=min(c.batch_size, len(self.graph.train_EL)),
            init=functools.partial(self._decayed, decay),
            evaluate=self.evaluate,
            summarize=summarize,
            network=self.model,
        )

    def _decayed(self, decay: float, seed: int) -> training.TrainState:
        state = self.init(seed)
        known = state.opt_state.hyperparams | {"weight_decay": jnp.asarray(decay, jnp.float32)}
        return state.replace(opt_state=state.opt_state._replace(hyperparams=known))

    def _evaluate(self, state: training.TrainState) -> dict[str, jax.Array]:
        graph, values = self.graph, {}
        parts = dict(train=graph.train_EL, forward=graph.given_EL, reverse=graph.withheld_EL)
        for name, facts_EL in parts.items():
            if len(facts_EL):
                values |= answered(state.apply_fn, state.params, facts_EL, graph.family_V, name)
        if len(graph.given_EL) == len(graph.withheld_EL):
            blocks = (
                weights.effective_logits(state.apply_fn, state.params, facts_EL)
                for facts_EL in (graph.given_EL, graph.withheld_EL)
            )
            given_PP, withheld_PP = blocks
            values["asymmetry"] = weights.asymmetry(given_PP, withheld_PP)
            values["gap_given"] = weights.gap(given_PP).mean()
            values["gap_withheld"] = weights.gap(withheld_PP).mean()
        return values | probed(hidden_states(self.model, state.params, graph), graph)


def answered(apply_fn, params, facts_EL, family_V, name: str) -> dict[str, jax.Array]:
    """What a model answers to facts [E, 3] without their last person.

    Returns:
      `NAME_accuracy`: the likeliest token is the person; `NAME_choice`: the likeliest of the
      persons that the other facts of one relation have; `NAME_family`: the likeliest token is of
      the person's family; `NAME_nll`: nats.
    """
    num = len(facts_EL)
    logits_EV = call(apply_fn, params, facts_EL[:, :2], rows_R=2 * jnp.arange(num) + 1)
    relation_E, target_E = facts_EL[:, 1], facts_EL[:, 2]
    said_E = jnp.argmax(logits_EV, axis=1)
    is_other_EV = np.zeros(logits_EV.shape, bool)
    for relation in set(relation_E.tolist()):
        rows = relation_E == relation
        is_other_EV[np.ix_(rows, target_E[rows])] = True
    chosen_E = jnp.argmax(jnp.where(is_other_EV, logits_EV, -jnp.inf), axis=1)
    return {
        f"{name}_accuracy": jnp.mean(said_E == target_E),
        f"{name}_choice": jnp.mean(chosen_E == target_E),
        f"{name}_family": jnp.mean(jnp.asarray(family_V)[said_E] == family_V[target_E]),
        f"{name}_nll": jnp.mean(objectives.token_nll(logits_EV, target_E)),
    }


def hidden_states(model: models.Transformer, params, graph: families.Families) -> jax.Array:
    """A centred vector [P, D] a person: the residual stream halfway up, at the person's token."""
    layer = model.config.num_layers // 2
    name = f"blocks_{layer - 1}" if layer else "embed"
    person_PL = np.arange(len(families.RELATIONS), graph.vocab_size)[:, None]
    hidden_PD = states.captured(model, params, person_PL, name)[:, 0]
    return hidden_PD - hidden_PD.mean(axis=0, keepdims=True)


def probed(hidden_PD: jax.Array, graph: families.Families) -> dict[str, jax.Array]:
    """The bilinear probe of the first withheld relation r (see `analysis.rescal`).

    Returns:
      `probe_hits`: of M_r, fitted on the families that are told r, on those that are not;
      `probe_transpose`: cosine of M_r with the transpose of its inverse's matrix, fitted on the
      families that are not told r. Nothing where the inverse is withheld too.
    """
    asked = graph.withheld_EL[:, 1] == graph.withheld_EL[0, 1]
    shown = graph.shown_EL[:, 1] == graph.withheld_EL[0, 1]
    if len(graph.given_EL) != len(graph.withheld_EL):
        return {}
    first = len(families.RELATIONS)
    told, withheld, inverse = (
        facts_EL - first for facts_EL in (graph.shown_EL[shown], graph.withheld_EL[asked],
                                          graph.given_EL[asked])
    )  # fmt: skip
    matrix_DD = rescal.fit(hidden_PD, told[:, 0], told[:, 2])
    inverse_DD = rescal.fit(hidden_PD, inverse[:, 0], inverse[:, 2])
    return {
        "probe_hits": rescal.hits(hidden_PD, matrix_DD, withheld[:, 0], withheld[:, 2]),
        "probe_transpose": rescal.transpose_cosine(matrix_DD, inverse_DD),
    }


def summarize(history: runs.History) -> dict[str, Any]:
    """The last evaluation, and the first step at which 99 % of what is told are known."""
    fitted_T = history["train_accuracy"] >= 0.99
    first = int(history["eval_step"][fitted_T.argmax()]) if fitted_T.any() else None
    last = {key: float(x[-1]) for key, x in history.items() if _is_measured(key)}
    return {**last, "steps_to_fit": first, "loss": float(history["loss"][-1])}


def _is_measured(key: str) -> bool:
    return key.startswith(("train_", "forward_", "reverse_", "gap_", "probe_", "asymmetry"))
