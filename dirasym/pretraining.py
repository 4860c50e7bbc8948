"""Training on rows of text, for the model that it ends with and that other runs start from."""

import contextlib
import dataclasses
import functools
import importlib.util
import pathlib
import pydoc_data.topics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dirasym import files, models, processes, runs, stopping, training, usage
from dirasym.objectives import Objective
from dirasym.types import Params
from dirasym.workdir import WorkDir


def documentation() -> str:
    """English that every Python carries: the topics of its own documentation, in ASCII."""
    text = "\n\n".join(pydoc_data.topics.topics.values())
    return text.encode("ascii", "ignore").decode()


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Rows of text, a model and what is done to it; it ends in WORKDIR/model.

    Attributes:
      workdir: where it is trained; the directory around it exists.
      identity: what it is known by.
      model: its configuration must be one that Hugging Face's files can hold.
      tokens_NL: int32; all tokens are scored.
      objective, optimizer, num_steps, eval_every, batch_size: of the training.
      start: from a seed's key to the parameters at step 0; None to begin from nothing.
      summarize: as of `runs.Run`.
      more_fields: of the model's config.json.
      tokenizer_from: a directory whose tokenizer goes with the model.

    Raises:
      ValueError: safetensors, in which the model is kept, is missing.
    """

    workdir: pathlib.Path
    identity: Mapping[str, Any]
    model: models.Transformer
    tokens_NL: np.ndarray
    objective: Objective
    optimizer: optax.GradientTransformation
    num_steps: int
    eval_every: int
    batch_size: int
    start: Callable[[jax.Array], Params] | None = None
    summarize: Callable[[runs.History], Mapping[str, Any]] = lambda history: {}
    more_fields: Mapping[str, Any] | None = None
    tokenizer_from: str | None = None

    def __post_init__(self):
        if importlib.util.find_spec("safetensors") is None:
            raise ValueError(f"pretraining needs safetensors: {usage.install('hf')}")

    def init(self, seed: int) -> training.TrainState:
        """Step 0."""
        apply_fn = models.make_apply_fn(self.model)
        if self.start is None:
            return training.initializer(self.model, apply_fn, self.optimizer)(seed)
        key = jax.random.key(seed)
        return training.create_state(apply_fn, self.start(key), self.optimizer, key)

    def run(self) -> runs.Run:
        """To be swept in its work directory."""
        data: training.Data = {"tokens_BL": self.tokens_NL}
        return runs.Run(
            self.identity,
            data=lambda seed: data,
            step=functools.partial(training.train_step, objective=self.objective),
            num_steps=self.num_steps,
            eval_every=self.eval_every,
            batch_size=self.batch_size,
            init=self.init,
            summarize=self.summarize,
            finish=self._save,
            network=self.model,
        )

    def _save(self, state: training.TrainState, folder: pathlib.Path) -> dict[str, Any]:
        del folder
        models.save_pretrained(
            self.workdir / "model",
            self.model,
            state.params,
            more_fields=self.more_fields,
            tokenizer_from=self.tokenizer_from,
        )
        return {}

    def params(self, how: Callable[[], Mapping[str, Any]] = dict) -> Params:
        """What it ends with, for a run that starts there: trained now if it is not done.

        By a sweep of its own with seed 0, which is resumed and kept as any is; processes that
        want the same (shards) wait for one another, and meanwhile hear signals. In a dry run
        (under `jax.eval_shape`) nothing is trained, and `how`, which gives keywords of
        `runs.sweep`, is not called.
        """
        if isinstance(jnp.zeros(()), jax.core.Tracer):
            return self.init(0).params
        with contextlib.ExitStack() as stack:
            lock = self.workdir.with_name(f".{self.workdir.name}.lock")
            while not processes.on_process_0(functools.partial(_is_taken, stack, lock)):
                stopping.check_innermost(f"another process trains {self.workdir}")
                time.sleep(0.1)
            runs.sweep([self.run()], [0], WorkDir(self.workdir, self.identity), **how())
        return models.load_pretrained(self.workdir / "model")[1]


def _is_taken(stack: contextlib.ExitStack, lock: pathlib.Path) -> bool:
    """Takes the lock until the stack ends, if nobody holds it."""
    try:
        stack.enter_context(files.locked(lock))
    except files.LockedError:
        return False
    return True
