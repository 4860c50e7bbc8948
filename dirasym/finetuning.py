"""A transformer as it is trained and read: from scratch, from weights, or adapters on them.

In use:

    trained = Trainable(model, training.make_optimizer(1e-4), base=params, adapters=LoRAConfig(..))
    state = trained.state(seed=0)                              # trains the adapters alone
    logits_BLV = trained.apply_fn(state.variables(state.params), tokens_BL)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from dirasym import models, training
from dirasym.data import tokenizers
from dirasym.models import LoRA, LoRAConfig, Transformer, lora
from dirasym.types import ApplyFn, Params


class Pretrained(NamedTuple):
    """A Hugging Face directory, opened: the model is as it was stored, causal or not."""

    tokenizer: tokenizers.Tokenizer
    model: Transformer
    params: Params

    @classmethod
    def open(cls, directory: str, mask_id: int | None = None, **settings: Any) -> "Pretrained":
        """Opens it, for training as a masked model too.

        Args:
          directory: with tokenizer, config and weights.
          mask_id: [M]; None: that of config.json, or the last id.
          settings: as of `models.load_pretrained`.

        Raises:
          ValueError: there is no id for [M] but the end of text, or as `models.load_pretrained`
            and `tokenizers.from_directory`.
        """
        tokenizer = tokenizers.from_directory(directory, mask_id=mask_id)
        if tokenizer.mask_id is None:
            raise ValueError(f"[M] cannot be the end of text, {tokenizer.eos_id}: give a mask_id")
        return cls(tokenizer, *models.load_pretrained(directory, **settings))


@dataclasses.dataclass(frozen=True, eq=False)
class Trainable:
    """A model, and what of it is trained.

    Its functions are of `TrainState.variables`, and one object each, so that seeds share
    compiled programs.

    Attributes:
      model: the network.
      optimizer: of what is trained.
      base: weights to start from, or what gives them when a state is made; None to draw them by
        the seed.
      adapters: their settings, where the base is left as it is and adapters alone are trained.
        They are never merged with it: that would round them to its dtype.

    Raises:
      ValueError: adapters without a base.
    """

    model: Transformer
    optimizer: optax.GradientTransformation
    base: Params | Callable[[], Params] | None = None
    adapters: LoRAConfig | None = None

    def __post_init__(self):
        if self.adapters is not None and self.base is None:
            raise ValueError("adapters need weights to adapt")

    @functools.cached_property
    def module(self) -> Transformer | LoRA:
        """The network with its adapters, if there are any."""
        return self.model if self.adapters is None else LoRA(self.model, self.adapters)

    @functools.cached_property
    def apply_fn(self) -> ApplyFn:
        """See `models.make_apply_fn`."""
        return self._make("make_apply_fn")

    @functools.cached_property
    def extend_fn(self) -> Callable[..., tuple[jax.Array, Any]]:
        """See `models.make_extend_fn`."""
        return self._make("make_extend_fn")

    @functools.cached_property
    def internals_fn(self) -> Callable[[Params, Any], dict[str, jax.Array]]:
        """See `models.make_internals_fn`."""
        return self._make("make_internals_fn")

    def _make(self, name: str) -> Any:
        return getattr(models if self.adapters is None else lora, name)(self.module)

    def state(self, seed: int) -> training.TrainState:
        """Step 0 of a seed.

        Raises:
          ValueError: the adapters match no linear layer, or their rank exceeds one.
        """
        if self.base is None:
            return training.initializer(self.model, self.apply_fn, self.optimizer)(seed)
        params, frozen = self.base() if callable(self.base) else self.base, None
        init_key, run_key = jax.random.split(jax.random.key(seed))
        if isinstance(self.module, LoRA):
            frozen = {"params": params}
            params = {"lora": lora.init_adapters(self.module, params, init_key)}
        return training.create_state(self.apply_fn, params, self.optimizer, run_key, frozen=frozen)
