"""How a model is asked for the logits of some positions alone.

Rows are positions of a batch, as indices into the flattened B·L. Who asks says which positions are
wanted, and a capacity, how many of them the model computes; with one it spares the model what
follows the last attention elsewhere, and the asker an array of B·L·V:

    None       every position is computed
    0.6        so large a share of the B·L positions; a batch that wants more is computed whole (by
               a `lax.cond`: its residuals copy weights that are not trained, it doubles the time to
               compile, and a GPU waits for the host to choose)
    PerRow(3)  a promise that no row of the batch wants more; a row that breaks it is read as NaN

It changes the cost and nothing else. Where the data say how many a row wants at most, promise it.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dirasym import usage
from dirasym.types import ApplyFn, Array, Batch, Params, Rngs, known_scored


@dataclasses.dataclass(frozen=True)
class PerRow:
    """The caller's word that no row of a batch has more than `most` wanted positions.

    Raises:
      ValueError: fewer than one.
    """

    most: int

    def __post_init__(self):
        usage.check_counts(**{"most of PerRow": self.most})


Capacity = float | PerRow | None


def masked_share(batch_size: int, length: int) -> float:
    """A capacity for masked diffusion at stratified levels that one batch in a thousand exceeds.

    Half of the tokens are masked on average, with a variance of 1 / (6·B·L) of the share.
    """
    return min(1.0, 0.5 + 3 * math.sqrt(1 / (6 * batch_size * length)))


def call(
    apply_fn: ApplyFn,
    params: Params,
    tokens_BL: Array,
    *,
    rows_R: Array | None = None,
    **optional: Any,
) -> jax.Array:
    """`apply_fn` with those of the optional arguments that are not None and that it names.

    A foreign `apply_fn(params, tokens)` thus serves unchanged, except that padding cannot
    be left out silently. Where it does not take `rows_R`, these are picked out of the whole.

    Returns:
      logits_BLV, or with `rows_R` logits_RV.

    Raises:
      TypeError: `valid_BL` is given and `apply_fn` does not take it, or it needs a keyword that
        is not given here, which is named.
      ValueError: it returns anything else, such as a tuple, integers or logits of other positions.
    """
    given = {name: value for name, value in optional.items() if value is not None}
    if rows_R is not None:
        given["rows_R"] = rows_R
    parameters = inspect.signature(apply_fn).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        taken = {p.name for p in parameters}
        if "valid_BL" in given and "valid_BL" not in taken:
            raise TypeError("the batch has padding (valid_BL), and apply_fn takes no valid_BL")
        given = {name: value for name, value in given.items() if name in taken}
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in given:
            raise TypeError(f"apply_fn needs {p.name}, which is not given here")
    logits = apply_fn(params, tokens_BL, **given)
    shape, whole = getattr(logits, "shape", ()), jnp.shape(tokens_BL)
    if shape and not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"the model must give logits, which are floats, got {logits.dtype}")
    if "rows_R" in given and len(shape) == 2 and shape[:1] == jnp.shape(given["rows_R"]):
        return logits
    if len(shape) != 3 or shape[:2] != whole:
        got = shape or f"a {type(logits).__name__}"
        asked = ", or [R, V] of the rows asked" if "rows_R" in given else ""
        raise ValueError(
            f"the model must give logits [B, L, V] of tokens {whole}{asked}, got {got}"
        )
    return logits if rows_R is None else _flat(logits).at[rows_R].get(mode="clip")


def takes(apply_fn: ApplyFn, name: str) -> bool:
    """Whether `call` passes an optional argument of this name on."""
    parameters = inspect.signature(apply_fn).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def knowing(apply_fn: Any, vocab_size: int) -> Any:
    """The function, marked with how many tokens it has an embedding of: see `check_read`."""
    apply_fn.vocab_size = vocab_size
    return apply_fn


def check_read(name: str, token_id: Any, apply_fn: Any, size: int | None = None) -> None:
    """Raises ValueError for what is no id, or one that a model has no embedding of.

    What it reads there is NaN, or another token. How many tokens it has the model itself says
    (see `knowing`), or else `size`, how many its logits have; an id from 0 passes where neither is
    known. None passes, and the value of what is traced.
    """
    if token_id is None:
        return
    dtype = getattr(token_id, "dtype", type(token_id))
    if not np.issubdtype(dtype, np.integer) or jnp.shape(token_id):
        raise ValueError(f"{name} must be the id of a token, got {token_id!r}")
    if isinstance(token_id, jax.core.Tracer):
        return
    known = getattr(apply_fn, "vocab_size", None)
    size = size if known is None else known
    if not 0 <= token_id < (2**31 if size is None else size):
        of = "any model's tokens" if size is None else f"the model's {size} tokens"
        raise ValueError(f"{name} {token_id} is none of {of}")


def reading(name: str, token_id: Any, apply_fn: Any, read: Callable) -> Callable:
    """`read` of logits and targets, for `read_at`, which checks an id that the model reads."""
    check_read(name, token_id, apply_fn)

    def checked(logits, targets):
        check_read(name, token_id, apply_fn, logits.shape[-1])
        return read(logits, targets)

    return checked


def check_mask_id(mask_id: Any, apply_fn: Any, size: int | None = None) -> None:
    """As `check_read`, of [M]; raises ValueError for None too.

    A head may leave out [M], the last token, if the model says how many tokens it has.
    """
    if mask_id is None:
        raise ValueError("mask_id is None: a masked model needs [M]")
    check_read("mask_id", mask_id, apply_fn, size)


def check_clean(batch: Batch, mask_id: Any, apply_fn: Any) -> None:
    """As `check_mask_id`; raises ValueError for a scored token that is [M] itself, if it is known.

    [M] has probability 0 where it is predicted: the loss is infinite as often as it is hidden.
    """
    check_mask_id(mask_id, apply_fn)
    scored_BL = known_scored(batch)
    if scored_BL is None or isinstance(mask_id, jax.core.Tracer):
        return
    if (scored_BL & (np.asarray(batch.tokens_BL) == mask_id)).any():
        raise ValueError(f"tokens_BL holds mask_id {mask_id} where it is scored: [M] is no word")


def behind(bos_id: Any, tokens_BL: jax.Array) -> jax.Array:
    """Rows as a causal model reads them to predict each token: BOS first, the last left out."""
    return jnp.pad(tokens_BL[:, :-1], ((0, 0), (1, 0)), constant_values=bos_id)


def hidden_share(tokens_BL: Array, mask_id: int | None, valid_BL: Array | None) -> jax.Array | None:
    """The share of each row's valid tokens that are [M]: float32 [B]; None without a mask id.

    What a model that is conditioned on its noise level (`noise_B`) is told where no level was
    drawn: when it decodes, and when it is asked.
    """
    if mask_id is None:
        return None
    hidden_BL = jnp.asarray(tokens_BL) == mask_id
    if valid_BL is None:
        return jnp.mean(hidden_BL, axis=1, dtype=jnp.float32)
    valid_BL = jnp.asarray(valid_BL)
    count_B = jnp.maximum(jnp.sum(valid_BL, axis=1), 1)
    return (jnp.sum(hidden_BL & valid_BL, axis=1) / count_B).astype(jnp.float32)


def read_at(
    read: Callable[[jax.Array, jax.Array], jax.Array],
    apply_fn: ApplyFn,
    params: Params,
    tokens_BL: Array,
    wanted_BL: Array,
    target_BL: Array,
    *,
    capacity: Capacity = None,
    valid_BL: Array | None = None,
    noise_B: Array | None = None,
    rngs: Rngs | None = None,
) -> jax.Array:
    """`read(logits, target)` at the wanted positions, and 0 elsewhere: [B, L].

    Args:
      read: from logits [.., V] and targets [..] to values [..].
      apply_fn: the model.
      params: its parameters.
      tokens_BL: what it reads.
      wanted_BL: bool, which positions are read. Others may hold any target for which `read`
        is finite.
      target_BL: int.
      capacity: how many positions are computed; see the module.
      valid_BL: False at padding.
      noise_B: noise level of each row, for models that ask for it.
      rngs: of dropout.

    Raises:
      ValueError: a share outside (0, 1].
    """
    chex.assert_equal_shape([tokens_BL, wanted_BL, target_BL])
    size, length = wanted_BL.size, wanted_BL.shape[1]
    optional: dict[str, Any] = dict(valid_BL=valid_BL, noise_B=noise_B, rngs=rngs)
    ask = functools.partial(call, apply_fn, params, tokens_BL, **optional)

    def everywhere():
        return jnp.where(wanted_BL, read(ask(), target_BL), 0.0)

    def at(rows_R):
        value_R = read(ask(rows_R=rows_R), _flat(target_BL).at[rows_R].get(mode="clip"))
        value = jnp.zeros(size, value_R.dtype)
        value = value.at[rows_R].set(value_R, mode="drop", unique_indices=True)
        return value.reshape(wanted_BL.shape)

    if capacity is None or (isinstance(capacity, PerRow) and capacity.most >= length):
        return everywhere()
    if isinstance(capacity, PerRow):
        # Wanted positions first; what is left of a row's capacity is not in use.
        place_BP = jnp.argsort(~wanted_BL, axis=1)[:, : capacity.most]
        is_used_BP = jnp.take_along_axis(wanted_BL, place_BP, axis=1)
        row_BP = jnp.arange(len(wanted_BL))[:, None] * length + place_BP
        value_BL = at(jnp.where(is_used_BP, row_BP, size).ravel())
        kept_B = jnp.sum(wanted_BL, axis=1) <= capacity.most
        return value_BL * jnp.where(kept_B, 1.0, jnp.nan).astype(value_BL.dtype)[:, None]
    if not 0 < capacity <= 1:
        raise ValueError(f"capacity must be a share in (0, 1], PerRow or None, got {capacity!r}")
    num_rows = min(math.ceil(capacity * size), size)
    rows_R = jnp.flatnonzero(wanted_BL, size=num_rows, fill_value=size)
    if num_rows == size:
        return at(rows_R)
    return jax.lax.cond(
        _any_of_all(jnp.sum(wanted_BL) > num_rows),
        # Recomputed, so that the branch in use need not hold room for this one's residuals.
        jax.checkpoint(everywhere),
        lambda: at(rows_R),
    )


@jax.custom_batching.custom_vmap
def _any_of_all(condition: jax.Array) -> jax.Array:
    """A condition that all entries of a vmapped axis (seeds, say) take together.

    A `lax.cond` whose predicate has a batch axis computes both branches.
    """
    return condition


@_any_of_all.def_vmap
def _(axis_size, in_batched, condition):
    return _any_of_all(jnp.any(condition) if in_batched[0] else condition), False


def _flat(x_BL: jax.Array) -> jax.Array:
    """[B, L, ...] as [B·L, ...]."""
    return jnp.asarray(x_BL).reshape(-1, *x_BL.shape[2:])
