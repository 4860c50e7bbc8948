"""Axis glossary and the three types that every stage of the library shares.

Array names end in their axes, one letter each, as in `logits_BLV`:

    B  batch                          D  width of the residual stream
    L  position in the sequence       F  hidden width of the MLP
    S  position attended to (key)     V  vocabulary
    N  query heads                    R  rows: positions picked out of the B·L
    K  key/value heads                T  steps
    G  query heads per K (N = K·G)    E  examples, or queries put to a model
    H  width of one head              P  pairs, or placements of a pair

A letter stands for one size within a function; `S` equals `L` in self-attention
without a cache.
"""

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray
Params = Any  # a pytree of float arrays
Rngs = Mapping[str, jax.Array]
INT32_MAX = int(np.iinfo(np.int32).max)


@flax.struct.dataclass
class Batch:
    """Token sequences and what may be read, noised and scored in them.

    Attributes:
      tokens_BL: int32 token ids, clean.
      index_B: int32 position of each example in the *global* batch, 0..global_size-1.
        All per-example randomness is `fold_in(key, index)`, so it depends neither on
        the number of devices nor on gradient accumulation.
      global_size: examples in the global batch (static).
      scored_BL: bool, the tokens whose prediction counts; all when None.
      noised_BL: bool, the tokens that masked objectives may hide; `scored_BL` when None.
      valid_BL: bool, False at padding, which attention never reads; all when None.
      size_B: int32, how many examples of the global batch are there, those of index 0..size-1:
        the same number in each row. `global_size` when None; fewer in an epoch's last batch.
      unit_BL: int32, the place of the first token of the unit that a token belongs to;
        `objectives.masked_diffusion` alone reads it, and hides a unit's tokens together. Each
        token is its own unit when None.
    """

    tokens_BL: Array
    index_B: Array
    global_size: int = flax.struct.field(pytree_node=False)
    scored_BL: Array | None = None
    noised_BL: Array | None = None
    valid_BL: Array | None = None
    size_B: Array | None = None
    unit_BL: Array | None = None

    @classmethod
    def of(cls, tokens_BL: Any, scored: Array | None = None, valid: Array | None = None) -> "Batch":
        """A whole global batch of some rows of tokens.

        What is known now is checked: not what `jit` traces, and not the size of a model's
        vocabulary. A token beyond it makes the loss NaN.

        Args:
          tokens_BL: int token ids [B, L], or lists of them.
          scored: bool [B, L], the tokens whose prediction counts; all when None.
          valid: bool [B, L], False at padding; all are read when None.

        Examples:
          >>> batch = Batch.of([[5, 6, 7], [5, 8, 0]], valid=[[1, 1, 1], [1, 1, 0]])
          >>> batch.global_size, batch.valid_BL.sum(axis=1)
          (2, array([3, 2]))

        Raises:
          ValueError: tokens that are not two axes of integers, none at all, or negative or beyond
            int32 where they are read; `scored` or `valid` of another shape or of other values than
            yes and no; nothing scored.
        """
        if not isinstance(tokens_BL, jax.Array):
            try:
                tokens_BL = np.asarray(tokens_BL)
            except ValueError:
                raise ValueError("tokens_BL: rows must be of one length") from None
        if not tokens_BL.size:
            raise ValueError(f"tokens_BL has no tokens, its shape is {tokens_BL.shape}")
        if tokens_BL.ndim != 2 or not np.issubdtype(tokens_BL.dtype, np.integer):
            raise ValueError(
                f"tokens_BL must be integers [B, L], got {tokens_BL.dtype} {tokens_BL.shape}"
            )
        masks = {}
        for name, given in (("scored", scored), ("valid", valid)):
            if given is not None:
                mask_BL = given if isinstance(given, jax.Array) else np.asarray(given)
                if mask_BL.shape != tokens_BL.shape:
                    raise ValueError(
                        f"{name} must be {tokens_BL.shape} as tokens_BL, got {mask_BL.shape}"
                    )
                if mask_BL.dtype != bool and not np.isin(mask_BL, (0, 1)).all():
                    raise ValueError(f"{name} must be True or False at each token")
                masks[f"{name}_BL"] = mask_BL.astype(bool)
        valid_BL = masks.get("valid_BL", np.ones((), bool))
        size = len(tokens_BL)
        index_B = np.arange(size, dtype=np.int32)
        check_scored(cls(tokens_BL, index_B, size, **masks))
        if _is_known(tokens_BL) and _is_known(valid_BL):
            is_read_BL = np.broadcast_to(valid_BL, tokens_BL.shape)
            _check_tokens(np.asarray(tokens_BL)[is_read_BL])
            highest = min(INT32_MAX, np.iinfo(tokens_BL.dtype).max)  # of a narrow type, its own
            tokens_BL = tokens_BL.clip(0, highest)  # padding
        return cls(tokens_BL.astype(np.int32), index_B, size, **masks)


def known_scored(batch: Batch) -> np.ndarray | None:
    """Which tokens are scored, as `objectives.scored_tokens`; None if `jit` traces any of it."""
    masks = [x for x in (batch.scored_BL, batch.valid_BL) if x is not None]
    if not all(_is_known(x) for x in (batch.tokens_BL, *masks)):
        return None
    return functools.reduce(
        np.logical_and, map(np.asarray, masks), np.ones(np.shape(batch.tokens_BL), bool)
    )


def check_scored(batch: Batch) -> None:
    """Raises ValueError for a batch of which nothing is scored, as far as that is known."""
    scored_BL = known_scored(batch)
    if scored_BL is not None and not scored_BL.any():
        raise ValueError("scored is False at every valid token: there is nothing to learn")


def _is_known(array: Array) -> bool:
    """Not for arrays that are traced, or of which other processes hold a part."""
    return not isinstance(array, jax.core.Tracer) and getattr(array, "is_fully_addressable", True)


def _check_tokens(tokens: np.ndarray) -> None:
    lowest, highest = tokens.min(initial=0), tokens.max(initial=0)
    if lowest < 0:
        raise ValueError(
            f"tokens_BL holds {lowest}, no token: put any token there, and False in scored"
        )
    if highest > INT32_MAX:
        raise ValueError(f"tokens_BL holds {highest}, more than int32 does")


class ApplyFn(Protocol):
    """A model as the rest of the library sees it: a pure function of its parameters.

    `valid_BL` marks padding; `rngs={"dropout": key}` turns dropout on. `rows_R` asks for some
    positions alone, as indices into the flattened B·L. An index of B·L or more is capacity that
    is not in use: what stands there is finite, and nobody reads it.

    A network that is conditioned on the noise may take `noise_B` too, the level of each row: what
    an objective drew, and the share of valid tokens that are [M] where nothing was drawn.

    A function may leave out any of these keywords. Callers go through `rows.call`, which passes
    what the function names, and picks the rows itself where that is not `rows_R`.
    `models.frameworks` makes one of an NNX, Equinox, Haiku or linen model.
    """

    def __call__(
        self,
        params: Params,
        tokens_BL: Array,
        /,
        *,
        valid_BL: Array | None = None,
        rows_R: Array | None = None,
        rngs: Rngs | None = None,
    ) -> jax.Array:
        """Returns logits_BLV, or with `rows_R` logits_RV."""
        ...
