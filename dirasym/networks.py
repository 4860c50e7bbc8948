"""A model of any kind as what `measure` needs: functions of its parameters, and their limits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dirasym import decoding, models, rows
from dirasym.analysis.attention import Internals
from dirasym.analysis.recall import Cloze
from dirasym.data import tokenizers
from dirasym.data.tokenizers import Tokenizer
from dirasym.models import lora
from dirasym.types import ApplyFn, Params

_TRIED = (1, 2)  # shape of tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A model as functions of its parameters, and what is known of it.

    Attributes:
      kind: "causal" or "masked".
      apply_fn: the model.
      extend_fn: how it goes on with a cache, if it is causal (see `decoding.greedy`).
      internals: what it sows (see `analysis.attention`), if it does.
      max_len: its context, if that is known.
    """

    kind: Literal["causal", "masked"]
    apply_fn: ApplyFn
    extend_fn: Callable[..., Any]
    internals: Internals | None
    max_len: int | None

    @classmethod
    def of(
        cls,
        model: Any,
        kind: Literal["causal", "masked"] | None = None,
        extend_fn: Callable[..., Any] | None = None,
        internals: Internals | None = None,
    ) -> "Network":
        """What is known of a `Transformer`, with adapters or not, or of an `ApplyFn`.

        Raises:
          ValueError: an `ApplyFn` without a kind, another kind than the model's, or no model.
        """
        if kind not in (None, "causal", "masked"):
            raise ValueError(f"kind must be 'causal' or 'masked', got {kind!r}")
        inner = model.model if isinstance(model, models.LoRA) else model
        if isinstance(inner, models.Transformer):
            known = _of_transformer(model)
            if kind not in (None, known.kind):
                raise ValueError(f"kind is {kind!r}, and the model is {known.kind}")
            return known
        if isinstance(model, nn.Module):
            raise ValueError("the model is a linen module: give frameworks.from_linen's apply_fn")
        if not callable(model):
            raise ValueError(f"model must be a Transformer or an apply_fn, got {type(model)}")
        if kind is None:
            raise ValueError("kind must be 'causal' or 'masked' where the model is an apply_fn")
        extend_fn = extend_fn or _recomputing(model)
        return cls(kind, model, extend_fn, internals, None)

    @functools.cached_property
    def takes_valid(self) -> bool:
        """Whether the model can be told of padding."""
        return rows.takes(self.apply_fn, "valid_BL")

    @property
    def padded(self) -> bool:
        """Whether rows of unequal length can be asked together.

        A causal model need not be told of padding on the right: it stands behind all it reads.
        """
        return self.takes_valid or self.kind == "causal"

    def of_rows(self, *questions: Cloze) -> tuple[Cloze, ...]:
        """The questions without their padding where the model cannot be told of it."""
        if self.takes_valid or not self.padded:
            return questions
        return tuple(dataclasses.replace(one, valid_EL=None) for one in questions)

    def parameter_sets(self, params: Any) -> list[Params]:
        """One set, or several where the model cannot read a list or tuple as one.

        Raises whatever the model raises where it can read neither.
        """
        try:
            self._logits_shape(params)
        except Exception as error:
            if type(params) not in (list, tuple) or not params:
                raise
            try:
                for one in params:
                    self._logits_shape(one)
            except Exception:
                raise error from None  # of the whole: its parts may be no parameters at all
            return list(params)
        return [params]

    def _logits_shape(self, params: Params) -> tuple[int, ...]:
        tokens_BL = np.zeros(_TRIED, np.int32)
        noise_B = jnp.ones(len(tokens_BL)) if self.kind == "masked" else None
        valid_BL = jnp.ones(_TRIED, bool) if self.takes_valid else None

        def logits(params):
            told = dict(noise_B=noise_B, valid_BL=valid_BL)
            return rows.call(self.apply_fn, params, tokens_BL, **told)

        return jax.eval_shape(logits, params).shape

    def check_vocabulary(self, params: Params, tokenizer: Tokenizer) -> None:
        """Whether the model can be asked in this tokenizer's ids.

        Raises:
          ValueError: more tokens than the model has logits of, or a mask id that is none of them.
          TypeError: it is no `Tokenizer`.
        """
        tokenizers.check(tokenizer)
        mask_id, size = tokenizer.mask_id, self._logits_shape(params)[-1]
        if self.kind == "masked" and mask_id is not None:
            rows.check_mask_id(mask_id, self.apply_fn, size)
        if tokenizer.vocab_size > size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {size}")


@functools.lru_cache(maxsize=8)
def _of_transformer(model: models.Transformer | models.LoRA) -> Network:
    """One object a model, so that reading it again compiles nothing anew."""
    make = lora if isinstance(model, models.LoRA) else models
    config = model.model.config if isinstance(model, models.LoRA) else model.config
    return Network(
        "causal" if config.causal else "masked",
        make.make_apply_fn(model),
        make.make_extend_fn(model),
        make.make_internals_fn(model),
        config.max_len,
    )


_recomputing = functools.lru_cache(maxsize=8)(decoding.recomputing)
