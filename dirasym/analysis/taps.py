"""Where a loss multiplies with its parameters: a walk over its jaxpr.

A parameter is followed through operations that only move its entries (`views`), and through
`jit`, `checkpoint` and `scan`, to the products that it goes into. There the other operand is
recorded, and a zero is added to the output, whose cotangent is that of the output.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from dirasym.analysis.views import Atoms, View, merged, order

# A `closed_call` is named `eval_jaxpr` by newer versions of JAX.
_CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "eval_jaxpr": "call_jaxpr"}
# Of one view and one array: on these a bias or a scale may be spread without a `broadcast_in_dim`.
_ENTRYWISE = ("add", "add_any", "sub", "mul", "div", "max", "min")


@dataclasses.dataclass(frozen=True)
class Tap:
    """One use of a matrix, of which a and g are recorded.

    Attributes:
      leaf: the parameter's number.
      is_lookup: a is row numbers [T], not vectors [T, rows].
      is_sum: all a are one, as a bias's and a norm's scale are: g is summed over the tokens.
      rows, columns: the leaf's entries that a and g run over.
      layers: (first, number) of the layers that it is, of a leaf that stacks them.
      shape, dtype: of the zero that is added.
      tokens, columns_as_used: the output's axes, tokens first, then columns; atoms of these.
      scans: for each scan around it, outermost first, whether it walks over `layers`.
      scan: tells the scan that walks over its layers, until that is left.
    """

    leaf: int
    is_lookup: bool
    is_sum: bool
    rows: Atoms
    columns: Atoms
    layers: tuple[int, int] | None
    shape: tuple[int, ...]
    dtype: Any
    tokens: tuple[int, ...]
    columns_as_used: Atoms
    scans: tuple[bool, ...] = ()
    scan: object | None = None

    def in_scan(self, scan: object, length: int) -> "Tap":
        """The tap as it is around a scan of `length` steps that it lies in."""
        is_layers = self.scan is scan
        return dataclasses.replace(
            self,
            shape=(length, *self.shape),
            scans=(is_layers, *self.scans),
            scan=None if is_layers else self.scan,
        )

    def right(self, cotangent: jax.Array) -> jax.Array:
        """The cotangent as vectors [scans.., T, columns], columns in the leaf's order."""
        depth = len(self.scans)
        axes = [*range(depth), *(depth + n for n in self.tokens)]
        axes += [n for n in range(cotangent.ndim) if n not in axes]
        moved = jnp.transpose(cotangent, axes)
        vectors = in_order(moved, self.columns_as_used, cotangent.shape[:depth])
        if not self.is_sum:
            return vectors
        wide = jnp.promote_types(vectors.dtype, jnp.float32)
        return jnp.sum(vectors, axis=depth, keepdims=True, dtype=wide)

    def merge_scans(self, x: jax.Array) -> jax.Array:
        """[scans.., T, ..] to [layers, T', ..]; iterations that are not layers are tokens."""
        depth = len(self.scans)
        layers = [n for n in range(depth) if self.scans[n]]
        others = [n for n in range(x.ndim) if n not in layers]
        x = jnp.transpose(x, layers + others)
        number = x.shape[0] if layers else 1
        return x.reshape(number, -1, *x.shape[depth + 1 :])


class Walk:
    """Goes through a jaxpr in which parameters are `View`s, and taps what multiplies with them.

    Without zeros nothing is computed, and shapes and dtypes stand for values. With zeros, one a
    tap in the order of the taps, these are added, and `lefts` are the other operands.

    Attributes:
      taps: in the order of the walk.
      lefts: of each tap, vectors [scans.., T, rows] or row numbers [scans.., T].
      reasons: why a parameter cannot be factored, by its number.
      scanned: parameters over whose first axis a scan walks.
    """

    def __init__(self, zeros: Iterator[jax.Array] | None = None):
        self._zeros = zeros
        self.taps: list[Tap] = []
        self.lefts: list[jax.Array] = []
        self.reasons: dict[int, str] = {}
        self.scanned: set[int] = set()

    def run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The outputs for these arguments."""
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, args, strict=True))

        def read(atom):
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            outs = self._equation(eqn, [read(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def values(self, args: Sequence[Any], why: str) -> list[Any]:
        """The arrays; parameters among them are thereby used in another way."""
        for view in args:
            if isinstance(view, View):
                self.reasons.setdefault(view.leaf, why)
        return [_value(x) for x in args]

    def _equation(self, eqn: Any, args: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        at = [n for n, x in enumerate(args) if isinstance(x, View)]
        if not at:
            return self._bind(eqn, args)
        if name in _CALLS:
            called = eqn.params[_CALLS[name]]
            return self.run(called.jaxpr, called.consts, args)
        if name in ("remat2", "checkpoint"):
            return self._checkpoint(eqn, args)
        if name == "scan":
            return self._scan(eqn, args)
        if len(at) == 1:
            use = _USES[name](eqn.params, at[0], args) if name in _USES else None
            arrays = [_value(x) for x in args]
            outs = self._bind(eqn, arrays)
            if use is not None:
                return [self._tap(use, args[at[0]], outs[0], arrays)]
            moved = _moved(eqn, args[at[0]], outs)
            if moved is not None:
                return moved
            repeated = self._repeated(eqn, args[at[0]])
            if repeated is not None:
                return self._bind(eqn, [repeated if n in at else x for n, x in enumerate(args)])
        return self._bind(eqn, self.values(args, f"used by {name}"))

    def _bind(self, eqn: Any, args: Sequence[Any]) -> list[Any]:
        if self._zeros is None:
            return [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in eqn.outvars]
        with eqn.ctx.manager:
            out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
        return list(out) if eqn.primitive.multiple_results else [out]

    def _repeated(self, eqn: Any, view: View) -> Any:
        """The operand of an entrywise operation, repeated to the other's shape and tapped.

        None of other operations, and of more than a vector that meets an array of its own shape.
        """
        shape = eqn.outvars[0].aval.shape
        is_one_row = view.shape != shape or _num_axes(view) <= 1
        if eqn.primitive.name not in _ENTRYWISE or not is_one_row:
            return None
        # A scalar may meet an array as it is; other shapes have as many axes as the outcome.
        use = _sum(view, shape, range(len(view.shape)))
        if use is None:
            return None
        out: Any = jax.ShapeDtypeStruct(shape, view.value.dtype)
        if self._zeros is not None:
            out = jnp.broadcast_to(view.value, shape)
        return self._tap(use, view, out, ())

    def _tap(self, use: "_Use", view: View, out: Any, arrays: Sequence[Any]) -> Any:
        """What comes of a use, with its zero."""
        if math.prod(atom.size for atom in use.rows + use.columns) != view.size:
            self.reasons.setdefault(view.leaf, "used in part")
        self.taps.append(
            Tap(
                leaf=view.leaf,
                is_lookup=use.is_lookup,
                is_sum=use.is_sum,
                rows=merged(use.rows),
                columns=merged(use.columns),
                layers=view.layers,
                shape=tuple(out.shape),
                dtype=out.dtype,
                tokens=tuple(use.tokens),
                columns_as_used=use.columns,
                scan=view.scan,
            )
        )
        if self._zeros is None:
            return out
        self.lefts.append(use.left(*arrays))
        return out + next(self._zeros)

    def _checkpoint(self, eqn: Any, args: list[Any]) -> list[Any]:
        jaxpr, why = eqn.params["jaxpr"], "returned by checkpoint"
        inner = Walk()
        outs = inner.values(inner.run(jaxpr, (), args), why)
        self._join(inner, inner.taps)
        if self._zeros is None:
            return outs

        def recomputed(arrays, zeros):
            remaining, walk = iter(arrays), Walk(iter(zeros))
            filled = [x if isinstance(x, View) else next(remaining) for x in args]
            return walk.values(walk.run(jaxpr, (), filled), why), walk.lefts

        arrays = [x for x in args if not isinstance(x, View)]
        how = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
        if isinstance(how["prevent_cse"], tuple):  # one an argument
            each = zip(how["prevent_cse"], args, strict=True)
            how["prevent_cse"] = ([of for of, x in each if not isinstance(x, View)], True)
        zeros = [next(self._zeros) for _ in inner.taps]
        outs, lefts = jax.checkpoint(recomputed, **how)(arrays, zeros)
        self.lefts += lefts
        return outs

    def _scan(self, eqn: Any, args: list[Any]) -> list[Any]:
        p, why, scan = eqn.params, "returned by scan", object()
        jaxpr, length, (num_consts, num_carry) = p["jaxpr"], p["length"], _scan_counts(p)
        num_first = num_consts + num_carry
        consts = args[:num_consts]
        carry = self.values(args[num_consts:num_first], "carried by scan")
        steps = [self._step(x, scan) for x in args[num_first:]]
        inner = Walk()
        inner.values(inner.run(jaxpr.jaxpr, jaxpr.consts, [*consts, *carry, *steps]), why)
        self._join(inner, [tap.in_scan(scan, length) for tap in inner.taps])
        if self._zeros is None:
            return self._bind(eqn, ())

        def body(carry, step):
            xs, zeros = step
            walk = Walk(iter(zeros))
            seen = [
                dataclasses.replace(view, value=x) if isinstance(view, View) else x
                for view, x in zip(steps, xs, strict=True)
            ]
            outs = walk.run(jaxpr.jaxpr, jaxpr.consts, [*consts, *carry, *seen])
            outs = walk.values(outs, why)
            return outs[:num_carry], (outs[num_carry:], walk.lefts)

        carry = [x if hasattr(x, "dtype") else jnp.asarray(x) for x in carry]
        xs = [_value(x) for x in args[num_first:]], [next(self._zeros) for _ in inner.taps]
        how = {name: p[name] for name in ("length", "reverse", "unroll")}
        carry, (ys, lefts) = jax.lax.scan(body, carry, xs, **how)
        self.lefts += lefts
        return [*carry, *ys]

    def _step(self, x: Any, scan: object) -> Any:
        """What one step of a scan sees of x: a view, or a shape and dtype."""
        value = _value(x)
        one = jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
        view = x.scanned(one, scan) if isinstance(x, View) else None
        if view is not None:
            self.scanned.add(view.leaf)
            return view
        self.values([x], "scanned over another axis than its first")
        return one

    def _join(self, inner: "Walk", taps: Sequence[Tap]) -> None:
        self.taps += taps
        self.reasons = inner.reasons | self.reasons
        self.scanned |= inner.scanned


def _scan_counts(p: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's arguments are constants, and how many are carried; the rest are xs."""
    if "ft_in" not in p:
        return p["num_consts"], p["num_carry"]
    consts, carry, _ = p["ft_in"].unpack()  # newer versions of JAX keep the trees instead
    return len(consts), len(carry)


class _Use(NamedTuple):
    """A product with a view: its atoms in the order of use, the output's axes of tokens."""

    rows: Atoms
    columns: Atoms
    tokens: Sequence[int]
    left: Callable[..., jax.Array]  # of the operands, in the leaf's order
    is_lookup: bool = False
    is_sum: bool = False


def _dot(p: dict[str, Any], at: int, args: Sequence[Any]) -> _Use | None:
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

    return _Use(rows, columns, range(first, first + len(free)), left)


def _lookup(p: dict[str, Any], at: int, args: Sequence[Any]) -> _Use | None:
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
        row = indices[..., at_index].reshape(-1)
        if mode == jax.lax.GatherScatterMode.CLIP:
            return jnp.clip(row, 0, last)
        return jnp.where((row < 0) | (row > last), -1, row)  # read as NaN; no gradient

    tokens = [n for n in range(ndim) if n not in numbers.offset_dims]
    return _Use(view.axes[axis], columns, tokens, left, is_lookup=True)


def _one_row(p: dict[str, Any], at: int, args: Sequence[Any]) -> _Use | None:
    """One row of any axis, by its number."""
    view = args[0]
    axis = _row_axis(p, view) if at == 0 else None
    if axis is None:
        return None
    columns = _atoms(view, [n for n in range(len(view.axes)) if n != axis])

    def left(_, *starts):
        return jnp.clip(starts[axis], 0, view.shape[axis] - 1).reshape(1)

    return _Use(view.axes[axis], columns, [], left, is_lookup=True)


def _row_axis(p: dict[str, Any], view: View) -> int | None:
    """The axis of which slices take one entry, if all others are whole."""
    axes = [n for n, size in enumerate(p["slice_sizes"]) if size != view.shape[n]]
    if len(axes) != 1 or p["slice_sizes"][axes[0]] != 1:
        return None
    rows = view.axes[axes[0]]
    return axes[0] if order(rows) == list(range(len(rows))) else None


def _convolution(p: dict[str, Any], at: int, args: Sequence[Any]) -> _Use | None:
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

    return _Use(rows, columns, tokens, left)


def _broadcast(p: dict[str, Any], at: int, args: Sequence[Any]) -> _Use | None:
    """Entries that are repeated: whatever is done with the copies, their cotangents add up."""
    if math.prod(p["shape"]) == math.prod(args[0].shape):
        return None
    return _sum(args[0], p["shape"], p["broadcast_dimensions"])


def _sum(view: View, shape: Sequence[int], placed: Sequence[int]) -> _Use | None:
    """A vector, or one a head, whose axes are placed among those of a larger shape."""
    if _num_axes(view) > 2:
        return None
    kept = [n for n, axis in enumerate(placed) if view.shape[n] == shape[axis]]
    tokens = [axis for axis in range(len(shape)) if axis not in [placed[n] for n in kept]]

    def left(*_):
        return jnp.ones((1, 1), view.value.dtype)

    return _Use((), _atoms(view, kept), tokens, left, is_sum=True)


_USES: dict[str, Callable[[dict[str, Any], int, Sequence[Any]], _Use | None]] = {
    "dot_general": _dot,
    "gather": _lookup,
    "dynamic_slice": _one_row,
    "conv_general_dilated": _convolution,
    "broadcast_in_dim": _broadcast,
}


def _moved(eqn: Any, view: View, outs: Sequence[Any]) -> list[View] | None:
    """The view after an operation that only moves or slices; None after others."""
    name, p = eqn.primitive.name, eqn.params
    found: list[View | None]
    if name == "slice":
        start, size = p["start_indices"], view.shape
        if any(start[1:]) or tuple(outs[0].shape[1:]) != tuple(size[1:]) or p["strides"]:
            return None
        found = [view.sliced(start[0], outs[0].shape[0], outs[0])]
    elif name == "split" and p["axis"] == 0:
        starts = [sum(p["sizes"][:n]) for n in range(len(outs))]
        found = [
            view.sliced(int(start), out.shape[0], out)
            for start, out in zip(starts, outs, strict=True)
        ]
    else:
        found = [view.moved(name, p, outs[0])]
    return None if None in found else [x for x in found if x is not None]


def _num_axes(view: View) -> int:
    return sum(size > 1 for size in view.shape)


def _atoms(view: View, axes: Sequence[int]) -> Atoms:
    return tuple(atom for n in axes for atom in view.axes[n])


def _value(x: Any) -> Any:
    return x.value if isinstance(x, View) else x


def in_order(x: jax.Array, atoms: Atoms, lead: tuple[int, ...] = ()) -> jax.Array:
    """[lead.., tokens.., atoms] to [lead.., T, entries], entries in the leaf's order."""
    sizes = [atom.size for atom in atoms]
    width = math.prod(sizes)
    num_tokens = math.prod(x.shape[len(lead) :]) // width
    first = len(lead) + 1
    x = x.reshape(*lead, num_tokens, *sizes)
    x = jnp.transpose(x, [*range(first), *(first + n for n in order(atoms))])
    return x.reshape(*lead, num_tokens, width)
