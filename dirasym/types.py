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

from collections.abc import Mapping
from typing import Any, Protocol

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray
Params = Any  # a pytree of float arrays
Rngs = Mapping[str, jax.Array]


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


class ApplyFn(Protocol):
    """A model as the rest of the library sees it: a pure function of its parameters.

    `valid_BL` marks padding; `rngs={"dropout": key}` turns dropout on. `rows_R` asks for some
    positions alone, as indices into the flattened B·L. An index of B·L or more is capacity that
    is not in use: what stands there is finite, and nobody reads it.

    A function may leave out any of the three keywords. Callers go through `rows.call`,
    which passes what the function names, and picks the rows itself where that is not `rows_R`.
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
