"""A model of any kind as what `measure` needs: functions of its parameters, and their limits."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import decoding, models, rows
from dirasym.analysis.attention import Internals
from dirasym.analysis.questions import Questions
from dirasym.analysis.recall import Cloze
from dirasym.data import batching, tokenizers
from dirasym.data.tokenizers import Tokenizer
from dirasym.models import lora
from dirasym.types import ApplyFn, Params

_TRIED = (1, 2)  # shape of tokens
_BLIND = (
    "kind is 'masked', and the logits at [M] do not depend on the last token behind it: a causal "
    "network, which is asked as a causal model with kind='causal'"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A model as functions of its parameters, and what is known of it.

    Attributes:
      kind: "causal" or "masked".
      apply_fn: the model.
      extend_fn: how it goes on with a cache, if it is causal (see `decoding.greedy`).
      internals: what it sows (see `analysis.attention`), if it does.
      max_len: its context, if that is known.
      is_declared: whether its kind is the caller's word alone.
    """

    kind: Literal["causal", "masked"]
    apply_fn: ApplyFn
    extend_fn: Callable[..., Any]
    internals: Internals | None
    max_len: int | None
    is_declared: bool = False

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
          ValueError: an `ApplyFn` without a kind, another kind than the model's, no model, or the
            module of a framework.
        """
        if kind not in (None, "causal", "masked"):
            raise ValueError(f"kind must be 'causal' or 'masked', got {kind!r}")
        inner = model.model if isinstance(model, models.LoRA) else model
        if isinstance(inner, models.Transformer):
            known = _of_transformer(model)
            if kind not in (None, known.kind):
                raise ValueError(f"kind is {kind!r}, and the model is {known.kind}")
            return known
        _check_foreign(model)
        if not callable(model):
            raise ValueError(f"model must be a Transformer or an apply_fn, got {type(model)}")
        if kind is None:
            raise ValueError("kind must be 'causal' or 'masked' where the model is an apply_fn")
        try:
            hash(model)
        except TypeError:  # JAX keeps what it compiles by what is hashable: this one's is not kept
            model = functools.partial(model)
        extend_fn = extend_fn or _recomputing(model)
        return cls(kind, model, extend_fn, internals, None, is_declared=True)

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

        Raises:
          ValueError: an empty list, or some sets that the model can read and one that it cannot.
        """
        try:
            self._logits_shape(params)
            return [params]
        except Exception as error:
            if type(params) not in (list, tuple):
                raise
            if not params:
                raise ValueError("params is empty: give one set, or several") from None
            whole = error
        faults = [self._fault(one) for one in params]
        bad = [number for number, fault in enumerate(faults) if fault is not None]
        if not bad:
            return list(params)
        if len(bad) == len(faults):
            raise whole  # its parts may be no parameters at all
        reason = " ".join(str(faults[bad[0]]).split())
        raise ValueError(f"params: the model cannot read set {bad[0] + 1}: {reason}")

    def _fault(self, params: Params) -> Exception | None:
        """What the model raises of these parameters."""
        try:
            self._logits_shape(params)
        except Exception as error:
            return error
        return None

    def _logits_shape(self, params: Params) -> tuple[int, ...]:
        tokens_BL = np.zeros(_TRIED, np.int32)
        valid_BL = jnp.ones(_TRIED, bool) if self.takes_valid else None

        def logits(params):
            told = dict(noise_B=self._full_noise(len(tokens_BL)), valid_BL=valid_BL)
            return rows.call(self.apply_fn, params, tokens_BL, **told)

        return jax.eval_shape(logits, params).shape

    def _full_noise(self, count: int) -> jax.Array | None:
        """The level that a masked model which asks for it is told of, of each row."""
        return jnp.ones(count) if self.kind == "masked" else None

    def check_declared(self, params: Params, questions: Questions) -> tuple[str, ...]:
        """Whether an `ApplyFn` gives logits and, if it is called causal, reads nothing ahead.

        It reads the longest question with one token behind it and with another; a masked model's
        with [M] before it.

        Returns:
          what is said of a model that is called masked and whose logits at [M] do not change: a
          causal network may have been trained so.

        Raises:
          ValueError: probabilities, whose softmax would be taken once more; a causal model's
            logits before the last token change by more than rounding.
        """
        if not self.is_declared:
            return ()

        @jax.jit
        def logits(params, tokens_BL):
            valid_BL = jnp.ones(tokens_BL.shape, bool) if self.takes_valid else None
            told = dict(noise_B=self._full_noise(len(tokens_BL)), valid_BL=valid_BL)
            return rows.call(self.apply_fn, params, tokens_BL, **told)[0, :-1]

        valid_EL = np.asarray(questions.valid_EL)
        longest = int(np.argmax(valid_EL.sum(axis=1)))
        row = np.asarray(questions.tokens_EL)[longest][valid_EL[longest]].tolist()
        behind = list(dict.fromkeys([*row, questions.tokenizer.eos_id]))[:2]
        row = row if self.kind == "causal" else [questions.mask_id, *row]
        asked = [[*row, last] for last in behind]
        one_LV, other_LV = (logits(params, np.array([read], np.int32)) for read in asked)
        types = [leaf.dtype for leaf in jax.tree.leaves(params) if hasattr(leaf, "dtype")]
        floats = [t for t in (*types, one_LV.dtype) if jnp.issubdtype(t, jnp.floating)]
        rounding = max(float(jnp.finfo(t).eps) for t in floats) ** 0.5
        one_LV, other_LV = (np.asarray(x, np.float64) for x in (one_LV, other_LV))
        if _are_probabilities(one_LV, rounding):
            raise ValueError(
                "the model must give logits, and gives probabilities: their sum over tokens is 1; "
                "leave out its softmax"
            )
        if self.kind == "masked":
            one_LV, other_LV = one_LV[:1], other_LV[:1]
        allowed_LV = np.abs(one_LV) < 1e4  # the rest is ruled out
        one_R, other_R = one_LV[allowed_LV], other_LV[allowed_LV]
        far = rounding * np.abs(one_R).sum() / max(1, len(one_R))
        looks_ahead = bool((np.abs(one_R - other_R) > far).any())
        if self.kind == "masked":
            return () if looks_ahead else (_BLIND,)
        if looks_ahead:
            raise ValueError(
                "kind is 'causal', and the model looks ahead: another last token changes logits "
                "before it; give kind='masked', or a model that reads the past alone"
            )
        return ()

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


def _are_probabilities(values_LV: np.ndarray, rounding: float) -> bool:
    """Whether each row sums to 1 and none is below 0; ones and zeros are logits of a table."""
    if not ((values_LV >= 0) & (values_LV <= 1)).all() or np.isin(values_LV, (0, 1)).all():
        return False
    return bool(np.allclose(values_LV.sum(axis=1), 1, rtol=0, atol=rounding))


def check_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Raises ValueError for a tokenizer that gives an end of text, or ids not of its vocabulary."""
    for text, row in zip(texts, batching.encoded(tokenizer, texts), strict=True):
        for number in row:
            if number == tokenizer.eos_id:
                raise ValueError(f"tokenizer: {text!r} holds token {number}, its eos_id")
            if not 0 <= number < tokenizer.vocab_size:
                size = f"its vocabulary has {tokenizer.vocab_size}"
                raise ValueError(f"tokenizer: {text!r} has token {number}, and {size}")


_MAKERS = {"flax.linen": "linen", "flax.nnx": "nnx", "equinox": "equinox", "haiku": "haiku"}


def _check_foreign(model: Any) -> None:
    """Raises ValueError for the module of a framework, and names what makes an `ApplyFn` of it.

    Or for its bound `apply` or `__call__`, which takes other arguments than an `ApplyFn`.
    """
    method = getattr(model, "__name__", None)
    if method in ("apply", "__call__"):
        owner = getattr(model, "__self__", None)
        if isinstance(owner, models.Transformer | models.LoRA):
            raise ValueError(f"model is the {method} of a {type(owner).__name__}: give that itself")
        _check_foreign(owner)
    for kind in type(model).__mro__:
        for package, name in _MAKERS.items():
            is_module = kind.__name__ in ("Module", "Transformed", "TransformedWithState")
            if not is_module or not f"{kind.__module__}.".startswith(f"{package}."):
                continue
            if name == "equinox" and not any(map(_is_array, jax.tree.leaves(model))):
                continue  # `eqx.filter_jit` of a function
            raise ValueError(
                f"model is a {type(model).__name__} of {package}: give the apply_fn that "
                f"frameworks.from_{name} makes of it"
            )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


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
