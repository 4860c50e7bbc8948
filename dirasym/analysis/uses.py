"""The primitives that multiply, look up or repeat a parameter, as factors of its gradient.

Each says of a view which entries of the leaf are rows and which columns, where the tokens are in
the outcome, and what the other operand is as vectors over the rows.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dirasym.analysis.views import Atoms, View, order


class Use(NamedTuple):
    """A product with a view: its atoms in the order of use, the output's axes of tokens."""

    rows: Atoms
    columns: Atoms
    tokens: Sequence[int]
    left: Callable[..., jax.Array]  # of the operands, in the leaf's order
    is_lookup: bool = False
    is_sum: bool = False


def _dot(p: dict[str, Any], at: int, args: Sequence[Any]) -> Use | None:
    contracted, batch = p["dimension_numbers"]
    if batch[0]:
        return None
    view, mine, others = args[at], contracted[at], list(contracted[1 - at])
    rows = _atoms(view, mine)
    columns = _atoms(view, [n for n in range(len(view.axes)) if n not in mine])
    free = [n for n in range(len(args[1 - at].shape)) if n not in others]
    first = 0 if at == 1 else len(view.axes) - len(mine)

    def left(*arrays):
        return in_order(jnp.transpose(arrays[1 - at], free + others), rows)

    return Use(rows, columns, range(first, first + len(free)), left)


def _lookup(p: dict[str, Any], at: int, args: Sequence[Any]) -> Use | None:
    """Whole rows of any axis, by their numbers."""
    numbers, view, mode = p["dimension_numbers"], args[0], p["mode"]
    axis = _row_axis(p, view) if at == 0 else None
    if axis is None or axis not in numbers.start_index_map or numbers.operand_batching_dims:
        return None
    if not set(numbers.collapsed_slice_dims) <= {axis}:
        return None
    if len(numbers.start_index_map) > 1 and mode != jax.lax.GatherScatterMode.CLIP:
        return None  # a start along a whole axis may be out of bounds
    columns = _atoms(view, [n for n in range(len(view.axes)) if n != axis])
    ndim = len(args[1].shape) - 1 + len(numbers.offset_dims)
    at_index, last = numbers.start_index_map.index(axis), view.shape[axis] - 1

    def left(_, indices):
        row = _wide(indices[..., at_index]).reshape(-1)
        if mode == jax.lax.GatherScatterMode.CLIP:
            return jnp.clip(row, 0, last)
        return jnp.where((row < 0) | (row > last), -1, row)  # read as NaN; no gradient

    tokens = [n for n in range(ndim) if n not in numbers.offset_dims]
    return Use(view.axes[axis], columns, tokens, left, is_lookup=True)


def _one_row(p: dict[str, Any], at: int, args: Sequence[Any]) -> Use | None:
    """One row of any axis, by its number."""
    view = args[0]
    axis = _row_axis(p, view) if at == 0 else None
    if axis is None:
        return None
    columns = _atoms(view, [n for n in range(len(view.axes)) if n != axis])

    def left(_, *starts):
        return jnp.clip(_wide(starts[axis]), 0, view.shape[axis] - 1).reshape(1)

    return Use(view.axes[axis], columns, [], left, is_lookup=True)


def _wide(numbers: jax.Array) -> jax.Array:
    """Row numbers of which the type counts all rows: int8 and uint8 would wrap."""
    numbers = jnp.asarray(numbers)
    return numbers.astype(jnp.int32) if numbers.dtype.itemsize < 4 else numbers


def _row_axis(p: dict[str, Any], view: View) -> int | None:
    """The axis of which slices take one entry, if all others are whole."""
    axes = [n for n, size in enumerate(p["slice_sizes"]) if size != view.shape[n]]
    if len(axes) != 1 or p["slice_sizes"][axes[0]] != 1:
        return None
    rows = view.axes[axes[0]]
    return axes[0] if order(rows) == list(range(len(rows))) else None


def _convolution(p: dict[str, Any], at: int, args: Sequence[Any]) -> Use | None:
    if at != 1 or p["feature_group_count"] != 1 or p["batch_group_count"] != 1:
        return None
    view, spec = args[1], p["dimension_numbers"]
    features, inputs, *space = spec.rhs_spec
    rows, columns = _atoms(view, [inputs, *space]), _atoms(view, [features])
    tokens = [spec.out_spec[0], *spec.out_spec[2:]]

    def left(x, _):
        patches = jax.lax.conv_general_dilated_patches(
            x,
            [view.shape[n] for n in space],
            p["window_strides"],
            p["padding"],
            p["lhs_dilation"],
            p["rhs_dilation"],
            dimension_numbers=spec,
            precision=jax.lax.Precision.HIGHEST,
        )
        return in_order(jnp.transpose(patches, [*tokens, spec.out_spec[1]]), rows)

    return Use(rows, columns, tokens, left)


def _broadcast(p: dict[str, Any], at: int, args: Sequence[Any]) -> Use | None:
    """Entries that are repeated: whatever is done with the copies, their cotangents add up."""
    if math.prod(p["shape"]) == math.prod(args[0].shape):
        return None
    return repeated(args[0], p["shape"], p["broadcast_dimensions"])


def repeated(view: View, shape: Sequence[int], placed: Sequence[int]) -> Use | None:
    """A vector, or one a head, whose axes are placed among those of a larger shape."""
    if num_axes(view) > 2:
        return None
    kept = [n for n, axis in enumerate(placed) if view.shape[n] == shape[axis]]
    tokens = [axis for axis in range(len(shape)) if axis not in [placed[n] for n in kept]]

    def left(*_):
        return jnp.ones((1, 1), view.value.dtype)

    return Use((), _atoms(view, kept), tokens, left, is_sum=True)


USES: dict[str, Callable[[dict[str, Any], int, Sequence[Any]], Use | None]] = {
    "dot_general": _dot,
    "gather": _lookup,
    "dynamic_slice": _one_row,
    "conv_general_dilated": _convolution,
    "broadcast_in_dim": _broadcast,
}


def num_axes(view: View) -> int:
    """Axes of more than one entry."""
    return sum(size > 1 for size in view.shape)


def _atoms(view: View, axes: Sequence[int]) -> Atoms:
    return tuple(atom for n in axes for atom in view.axes[n])


def in_order(x: jax.Array, atoms: Atoms, lead: tuple[int, ...] = ()) -> jax.Array:
    """[lead.., tokens.., atoms] to [lead.., T, entries], entries in the leaf's order."""
    sizes = [atom.size for atom in atoms]
    width = math.prod(sizes)
    num_tokens = math.prod(x.shape[len(lead) :]) // width
    first = len(lead) + 1
    x = x.reshape(*lead, num_tokens, *sizes)
    x = jnp.transpose(x, [*range(first), *(first + n for n in order(atoms))])
    return x.reshape(*lead, num_tokens, width)
