"""Where a loss multiplies with its parameters: a walk over its jaxpr.

A parameter is followed through operations that only move its entries (`views`), and through
`jit`, `checkpoint` and `scan`, to the products that it goes into. There the other operand is
recorded, and a zero is added to the output, whose cotangent is that of the output.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from dirasym.analysis.uses import USES, Use, in_order, num_axes, repeated
from dirasym.analysis.views import Atoms, Part, View, merged

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
      part: what is used of an axis; the factors are zero at the rest.
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
    part: Part | None = None

    @classmethod
    def of(cls, use: Use, view: View, out: Any, rows: Atoms, columns: Atoms) -> "Tap":
        """A use of a view with its outcome; of a part, `rows` and `columns` are the whole's."""
        return cls(
            leaf=view.leaf,
            is_lookup=use.is_lookup,
            is_sum=use.is_sum,
            rows=rows,
            columns=columns,
            layers=view.layers,
            shape=tuple(out.shape),
            dtype=out.dtype,
            tokens=tuple(use.tokens),
            columns_as_used=use.columns,
            scan=view.scan,
            part=view.part,
        )

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
        if self.is_sum:
            wide = jnp.promote_types(vectors.dtype, jnp.float32)
            vectors = jnp.sum(vectors, axis=depth, keepdims=True, dtype=wide)
        return vectors if self.part is None else self.part.padded(vectors, self.columns_as_used)

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
            # Of a complex product the gradient by a real parameter is the real part alone.
            is_real = not any(
                jnp.issubdtype(x.aval.dtype, jnp.complexfloating) for x in eqn.outvars
            )
            use = USES[name](eqn.params, at[0], args) if is_real and name in USES else None
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
        is_one_row = view.shape != shape or num_axes(view) <= 1
        if eqn.primitive.name not in _ENTRYWISE or not is_one_row:
            return None
        # A scalar may meet an array as it is; other shapes have as many axes as the outcome.
        use = repeated(view, shape, range(len(view.shape)))
        if use is None:
            return None
        out: Any = jax.ShapeDtypeStruct(shape, view.value.dtype)
        if self._zeros is not None:
            out = jnp.broadcast_to(view.value, shape)
        return self._tap(use, view, out, ())

    def _tap(self, use: Use, view: View, out: Any, arrays: Sequence[Any]) -> Any:
        """What comes of a use, with its zero."""
        view = view.used_as(use.rows, use.columns)
        part = view.part
        rows, columns = ((part.filled if part else merged)(x) for x in (use.rows, use.columns))
        # Rows are numbered from the first one that is left.
        is_shifted = use.is_lookup and part is not None and part.at(use.rows) is not None
        if is_shifted or math.prod(atom.size for atom in rows + columns) != view.size:
            self.reasons.setdefault(view.leaf, "used in part")
        self.taps.append(Tap.of(use, view, out, rows, columns))
        if self._zeros is None:
            return out
        left = use.left(*arrays)
        self.lefts.append(left if part is None else part.padded(left, use.rows))
        return out + next(self._zeros)

    def _checkpoint(self, eqn: Any, args: list[Any]) -> list[Any]:
        jaxpr, why = eqn.params["jaxpr"], "returned by checkpoint"
        inner = Walk()
        ran = inner.run(jaxpr, (), args)
        # NNX returns the state of a module: its parameters come back as they went in.
        unchanged = [isinstance(x, View) and any(x is y for y in args) for x in ran]

        def others(outs):
            return [x for x, is_known in zip(outs, unchanged, strict=True) if not is_known]

        def whole(outs):
            rest = iter(outs)
            pairs = zip(ran, unchanged, strict=True)
            return [view if is_known else next(rest) for view, is_known in pairs]

        outs = inner.values(others(ran), why)
        self._join(inner, inner.taps)
        if self._zeros is None:
            return whole(outs)

        def recomputed(arrays, zeros):
            remaining, walk = iter(arrays), Walk(iter(zeros))
            filled = [x if isinstance(x, View) else next(remaining) for x in args]
            return walk.values(others(walk.run(jaxpr, (), filled)), why), walk.lefts

        arrays = [x for x in args if not isinstance(x, View)]
        how = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
        if isinstance(how["prevent_cse"], tuple):  # one an argument
            each = zip(how["prevent_cse"], args, strict=True)
            how["prevent_cse"] = ([of for of, x in each if not isinstance(x, View)], True)
        zeros = [next(self._zeros) for _ in inner.taps]
        outs, lefts = jax.checkpoint(recomputed, **how)(arrays, zeros)
        self.lefts += lefts
        return whole(outs)

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


def _moved(eqn: Any, view: View, outs: Sequence[Any]) -> list[View] | None:
    """The view after an operation that only moves or slices; None after others."""
    name, p = eqn.primitive.name, eqn.params
    found: list[View | None]
    if name == "slice":
        shape = outs[0].shape
        axes = [n for n, size in enumerate(view.shape) if shape[n] != size]
        if len(axes) != 1 or p["strides"]:
            return None
        start = p["start_indices"][axes[0]]
        found = [view.sliced(axes[0], start, shape[axes[0]], outs[0])]
    elif name == "split":
        axis, starts = p["axis"], np.cumsum([0, *p["sizes"]])
        found = [
            view.sliced(axis, int(start), out.shape[axis], out)
            for start, out in zip(starts, outs, strict=False)
        ]
    else:
        found = [view.moved(name, p, outs[0])]
    return None if None in found else [x for x in found if x is not None]


def _value(x: Any) -> Any:
    return x.value if isinstance(x, View) else x
