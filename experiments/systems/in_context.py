"""Facts told in the prompt and one asked back, where no sentence comes twice: one cell's run."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import runs, training
from dirasym.data import relations
from experiments.systems.relations import Config, learner

ANSWERED = 0.9  # accuracy on withheld sentences from which on they count as answered
EVALUATIONS = 20  # of a run


@dataclasses.dataclass(frozen=True)
class Prompts:
    """What the sentences of a cell are like; see `data.relations.fresh_in_context`."""

    num_facts: int = 2
    num_names: int = 50
    num_asked: int | None = None


class InContext:
    """The network of `relations` on fresh sentences, and how it answers withheld ones."""

    def __init__(self, prompts: Prompts, c: Config, num_steps: int):
        how = dict(num_asked=prompts.num_asked, num_train=num_steps * c.batch_size)
        self.data = relations.fresh_in_context(
            prompts.num_names, num_facts=prompts.num_facts, seed=c.data_seed, **how
        )
        self.prompts, self.eval_every = prompts, num_steps // EVALUATIONS
        once = dataclasses.replace(c, num_epochs=1, eval_every=1)
        self.learner = learner(once, data=self.data)

    def run(self, identity: Mapping[str, Any]) -> runs.Run:
        """Its training, for any seed."""
        asked = dict(evaluate=jax.jit(self.evaluate), summarize=self.summarize)
        run = self.learner.run(identity)
        return dataclasses.replace(run, eval_every=self.eval_every, **asked)

    def evaluate(self, state: training.TrainState) -> dict[str, jax.Array]:
        """NLL in nats and accuracy on withheld sentences, by the place F of the fact asked for."""
        tokens_EL = jnp.asarray(self.data.validation_EL)
        logits_EV = state.apply_fn(state.params, tokens_EL[:, :-1])[:, -1]
        answer_E = tokens_EL[:, -1]
        nll_E = -jnp.take_along_axis(jax.nn.log_softmax(logits_EV), answer_E[:, None], axis=1)[:, 0]
        right_E = (logits_EV.argmax(axis=1) == answer_E).astype(jnp.float32)
        nll_F, right_F = (x.reshape(-1, self.prompts.num_facts).mean(0) for x in (nll_E, right_E))
        values = {"validation_nll": nll_F.mean(), "accuracy": right_F.mean()}
        return {**values, "nll_by_place": nll_F, "accuracy_by_place": right_F}

    def summarize(self, history: runs.History) -> dict[str, Any]:
        """A seed's result line; training NLL: the mean of the last steps, a twentieth of all."""
        answered_T = np.asarray(history["accuracy"]) >= ANSWERED
        first = int(history["eval_step"][answered_T.argmax()]) if answered_T.any() else None
        return {
            **dataclasses.asdict(self.prompts),
            "train_nll": float(np.mean(history["loss"][-self.eval_every :])),
            "validation_nll": float(history["validation_nll"][-1]),
            "lowest_validation_nll": float(np.min(history["validation_nll"])),
            "accuracy": float(history["accuracy"][-1]),
            "nll_by_place": np.asarray(history["nll_by_place"][-1], float).tolist(),
            "accuracy_by_place": np.asarray(history["accuracy_by_place"][-1], float).tolist(),
            "steps_to_answer": first,
            "uniform_nll": math.log(self.data.num_candidates),
            "num_sentences": len(self.data.train_EL),
            "num_validation_sentences": len(self.data.validation_EL),
        }
