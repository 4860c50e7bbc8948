"""Gradients as factors, without forming them, of any JAX function.

The gradient of a matrix that tokens t are multiplied with is Σ_t a_t g_tᵀ, with a the inputs
and g the cotangents of the outputs. Both are read off the loss's jaxpr: where a parameter meets
a `dot_general`, a `conv_general_dilated` or a `gather` of rows, the other operand is a, and the
cotangent of a zero added to the output is g. A bias or a norm's scale is broadcast over the
tokens: its gradient is Σ_t g_t. Parameters are followed through `jit`, `checkpoint` and `scan`.
Of a matrix that is split by rows or columns, each product gives factors that are zero elsewhere.
What is used otherwise (products with batch axes, entry by entry, `cond` and `while`) takes the
direct way: its gradient is formed. So does a parameter among the operands of a `custom_vjp` or
`custom_jvp` call, whatever is inside: the custom rule may give it a gradient that is no such
product, or another one than the product inside would. Calls of which no parameter is an operand,
such as `jax.nn.relu` of activations, are passed by.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.extend import core

from dirasym import digests
from dirasym.analysis.taps import Tap, Walk
from dirasym.analysis.views import Atoms, View
from dirasym.precision import widened
from dirasym.types import Params

# The factors of each part are as wide as the whole: of queries, keys and values, or four gates.
MAX_PARTS = 4

Loss = Callable[..., jax.Array]  # (params, example) -> scalar, or params -> scalar


class Product(NamedTuple):
    """Σ_t left_t rightᵀ_t of each layer; left as vectors [K, T, rows] or row numbers [K, T]."""

    left: jax.Array
    right: jax.Array


class Formed(NamedTuple):
    """A gradient formed, or one row of a matrix and so no larger than a factor: [K, entries]."""

    value: jax.Array


@flax.struct.dataclass
class Factors:
    """A gradient [K, rows, columns] as a product with vectors, plus one with row numbers."""

    dense: Product | None
    lookup: Product | None
    num_rows: int = flax.struct.field(pytree_node=False, default=0)


class Gradient(NamedTuple):
    """A gradient in units of `size`: squares of entries below 1e-19 or above 1e19 leave float32."""

    leaves: list[Formed | Factors | None]  # None: nothing depends on it
    size: jax.Array


def check_loss(name: str, value: Any) -> None:
    """Raises ValueError, naming the loss, unless what it returned is a scalar float."""
    if not hasattr(value, "shape") or value.shape != ():
        raise ValueError(f"{name} must return a scalar, got {value}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{name} must return a float, got {value.dtype}")


@dataclasses.dataclass(frozen=True)
class Traced:
    """A loss as a jaxpr of the parameters' leaves and of an example's."""

    closed: core.ClosedJaxpr

    @classmethod
    def of(cls, name: str, loss: Loss, params: Params, *example: Any) -> "Traced":
        """Traces it once; shapes and dtypes will do for the arguments.

        Raises:
          ValueError: a loss that is not a scalar float, or has side effects.
        """
        # JAX keeps the trace of a function by its identity, whatever became of what it reads.
        anew = lambda *args: loss(*args)  # noqa: E731
        closed, shape = jax.make_jaxpr(anew, return_shape=True)(params, *example)
        check_loss(name, shape)
        if effects := [str(x) for x in closed.effects if type(x).__name__ != "NamedAxisEffect"]:
            raise ValueError(f"{name} must have no side effects, and has {', '.join(effects)}")
        return cls(closed)

    def gradient_digest(self, number: int) -> str:
        """Of the gradient by the first `number` arguments, see `digests.of_program`.

        Of the loss alone a custom rule's gradient could not be told from another one's.
        """
        loss = lambda leaves, rest: core.jaxpr_as_fun(self.closed)(*leaves, *rest)[0]  # noqa: E731
        avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self.closed.in_avals]
        return digests.of_program(jax.make_jaxpr(jax.grad(loss))(avals[:number], avals[number:]))

    @property
    def num_bytes(self) -> int:
        """Of all that is computed on the way to the loss of one example: activations, at most."""
        return _num_bytes(self.closed.jaxpr)

    def walk(self, walk: "Walk", leaves: Sequence[Any], *example: Any) -> Any:
        """The loss on a walk, parameters as arrays or views; without example, as its shapes."""
        args = [*leaves, *jax.tree.leaves(example)]
        args += self.closed.in_avals[len(args) :]
        return walk.values(walk.run(self.closed.jaxpr, self.closed.consts, args), "the loss")[0]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which parameters of some losses are factored, and why the others are not.

    Attributes:
      rows: the rows of each parameter that is factored, none of one that is a single row or is
        not used; None of the others.
      reasons: why a parameter is not factored, by its number.
      used: parameters that the losses read as they can be factored.
      stacked: parameters that stack layers on their first axis, and are used layer by layer.
      scanned: parameters over whose first axis a scan walks.
    """

    rows: tuple[Atoms | None, ...]
    reasons: dict[int, str]
    used: frozenset[int]
    stacked: frozenset[int]
    scanned: frozenset[int]

    @classmethod
    def of(cls, params: Params, *losses: Traced) -> "Plan":
        """The plan for losses of the same parameters."""
        leaves = [_viewed(_aval(leaf), n) for n, leaf in enumerate(jax.tree.leaves(params))]
        walks = [Walk() for _ in losses]
        for walk, loss in zip(walks, losses, strict=True):
            loss.walk(walk, leaves)
        reasons = {n: why for walk in walks for n, why in walk.reasons.items()}
        rows: list[Atoms | None] = []
        stacked = set()
        for n in range(len(leaves)):
            taps = [tap for walk in walks for tap in walk.taps if tap.leaf == n]
            chosen = next((tap.rows for tap in taps if tap.is_lookup), taps[0].rows if taps else ())
            for tap in taps:
                fits = tap.rows == chosen or (tap.columns == chosen and not tap.is_lookup)
                if not fits or (tap.layers is None) != (taps[0].layers is None):
                    reasons.setdefault(n, "used as two different matrices")
                if tap.layers is not None:
                    stacked.add(n)
            if any(_num_parts(walk, n) > MAX_PARTS for walk in walks):
                reasons.setdefault(n, f"used in more than {MAX_PARTS} parts")
            rows.append(None if n in reasons else chosen)
        used, scanned = (
            frozenset(n for walk in walks for n in found(walk))
            for found in (lambda w: (tap.leaf for tap in w.taps), lambda w: w.scanned)
        )
        return cls(tuple(rows), reasons, used, frozenset(stacked), scanned)

    def without(self, direct: Mapping[int, str]) -> "Plan":
        """The plan with more parameters left to the direct way, for these reasons."""
        rows = tuple(None if n in direct else x for n, x in enumerate(self.rows))
        return dataclasses.replace(self, rows=rows, reasons={**direct, **self.reasons})

    @property
    def direct(self) -> tuple[int, ...]:
        """Numbers of the parameters whose gradients are formed."""
        return tuple(n for n, rows in enumerate(self.rows) if rows is None)


def gradient(loss: Traced, plan: Plan, params: Params, *example: Any) -> Gradient:
    """The gradient of a loss, as planned; what is formed, in one piece."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(params)]

    def args(direct):
        return [direct[n] if n in direct else _viewed(leaf, n) for n, leaf in enumerate(leaves)]

    def perturbed(direct, zeros):
        walk = Walk(iter(zeros))
        return loss.walk(walk, args(direct), *example), walk.lefts

    direct = {n: leaves[n] for n in plan.direct}
    walk = Walk()
    loss.walk(walk, args(direct), *example)
    zeros = [jnp.zeros(tap.shape, tap.dtype) for tap in walk.taps]
    grads, lefts = jax.grad(perturbed, argnums=(0, 1), has_aux=True)(direct, zeros)
    (formed, cotangents), size = _scaled(grads)
    uses: dict[int, list[_Used]] = {n: [] for n in range(len(leaves))}
    for tap, left, cotangent in zip(walk.taps, lefts, cotangents, strict=True):
        right = tap.merge_scans(tap.right(cotangent))
        uses[tap.leaf].append(_Used(tap, tap.merge_scans(left), right))
    gradients: list[Formed | Factors | None] = []
    for n, rows in enumerate(plan.rows):
        if rows is None:
            gradients.append(Formed(widened(formed[n]).reshape(1, -1)))
        elif uses[n]:
            num_layers = leaves[n].shape[0] if n in plan.stacked else 1
            gradients.append(_one_row_formed(_joined(uses[n], rows, num_layers)))
        else:
            gradients.append(None)
    return Gradient(gradients, size)


class _Used(NamedTuple):
    """A tap with its factors, [layers of the tap, T, ..]."""

    tap: Tap
    left: jax.Array
    right: jax.Array


def _joined(uses: Sequence[_Used], rows: Atoms, num_layers: int) -> Factors:
    """Uses of one matrix as one: Σ_t over the tokens of all of them."""
    dense, lookup = [], []
    for tap, left, right in uses:
        first = tap.layers[0] if tap.layers else 0
        if tap.is_lookup:
            right = jnp.where(left[..., None] < 0, 0, right)  # rows that are not there
            lookup.append((first, jnp.maximum(left, 0), right))
        elif tap.rows == rows:
            dense.append((first, left, right))
        else:
            dense.append((first, right, left))
    return Factors(
        dense=_stacked(dense, num_layers),
        lookup=_stacked(lookup, num_layers),
        num_rows=math.prod(atom.size for atom in rows),
    )


def _one_row_formed(factors: Factors) -> Factors | Formed:
    """The gradient of a single row, such as a bias, formed: it is no larger than a factor."""
    if factors.num_rows > 1 or factors.dense is None or factors.lookup is not None:
        return factors
    left, right = (widened(x) for x in factors.dense)
    return Formed(jnp.sum(left * right, axis=1).reshape(1, -1))


def _stacked(pieces: Sequence[tuple[int, jax.Array, jax.Array]], num_layers: int) -> Product | None:
    """Factors of some layers, as factors of all; layers that are in two pieces have more tokens."""
    lanes: list[list[tuple[int, jax.Array, jax.Array]]] = []
    for piece in sorted(pieces, key=lambda piece: piece[0]):
        for lane in lanes:
            first, left, _ = lane[-1]
            if first + left.shape[0] <= piece[0] and left.shape[1] == piece[1].shape[1]:
                lane.append(piece)
                break
        else:
            lanes.append([piece])
    if not lanes:
        return None

    def filled(lane, which):
        parts, at = [], 0
        for piece in lane:
            parts += [jnp.zeros_like(piece[which], shape=(piece[0] - at, *piece[which].shape[1:]))]
            parts += [piece[which]]
            at = piece[0] + piece[which].shape[0]
        parts += [jnp.zeros_like(parts[-1], shape=(num_layers - at, *parts[-1].shape[1:]))]
        return jnp.concatenate([part for part in parts if part.shape[0]])

    return Product(*(jnp.concatenate([filled(x, n) for x in lanes], axis=1) for n in (1, 2)))


def _scaled(grads: Any) -> tuple[Any, jax.Array]:
    """Arrays over the power of 2 below their largest absolute entry, exactly, and that."""
    largest = [jnp.max(jnp.abs(widened(x)), initial=0) for x in jax.tree.leaves(grads)]
    size = functools.reduce(jnp.maximum, largest, jnp.zeros((), jnp.float32))  # of no arrays: 0
    size = jnp.ldexp(jnp.ones_like(size), jnp.frexp(size)[1] - 1)
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    return jax.tree.map(lambda x: (widened(x) / size).astype(x.dtype), grads), size


def _num_parts(walk: Walk, leaf: int) -> int:
    return sum(tap.leaf == leaf and tap.part is not None for tap in walk.taps)


def _num_bytes(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        inner = sum(map(_num_bytes, core.jaxprs_in_params(eqn.params)))
        own = sum(math.prod(x.aval.shape) * x.aval.dtype.itemsize for x in eqn.outvars)
        total += eqn.params.get("length", 1) * inner if inner else own
    return total


def _viewed(leaf: Any, number: int) -> Any:
    """A view; what has no entries is as an array, and as one that is not used."""
    return View.of(leaf, number) if math.prod(leaf.shape) else leaf


def _aval(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
