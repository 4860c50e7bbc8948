"""Inner products of two gradients that are known as factors, each the cheaper way.

With gradients G = Σ_t a_t g_tᵀ of [C, F] entries and T tokens, ⟨G, G'⟩ is either

  Σ_ts (a_t·a'_s)(g_t·g'_s), of T·T'·(C + F) multiplications a pair, no gradient formed; or
  the product of two formed gradients: C·F a pair, after T·C·F a gradient.

Which is cheaper depends on the shapes alone (the "mixed ghost" choice of arXiv 2205.10683, §4),
and on how many pairs a formed gradient takes part in. Sums are in float32 or better.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dirasym.analysis.factored import Factors, Formed, Product
from dirasym.precision import widened

Leaf = Formed | Factors | None
# On CPUs, what stays in the cache: entries of each gradient multiplied at a time, and bytes of
# all gradients formed at a time. 1.5 to 2 times as fast as all at once.
BLOCK = 4096
FORMED_BYTES = 2**24
# Multiplications of a matrix product in the time that an entry of a gradient formed whole takes on
# its way to memory and back: 150 GFLOP/s beside 20 GB/s on CPUs, and more on accelerators.
ENTRY_COST = 32
# Columns of a table formed at a time: fewer read all of its factors too often.
FEW_COLUMNS = 16


def three_products(fwd: Leaf, rev: Leaf) -> tuple[jax.Array, jax.Array, jax.Array]:
    """⟨fwd, rev⟩, ⟨fwd, fwd⟩ and ⟨rev, rev⟩ of each layer: [K] each."""
    known = [x for x in (fwd, rev) if isinstance(x, Factors)]
    num_layers = _products(known[0])[0].right.shape[0] if known else 0
    by_factors = num_layers * sum(
        _pair_cost(*pair) for pair in ((fwd, rev), (fwd, fwd), (rev, rev))
    )
    formed = sum(_forming_cost(x) + ENTRY_COST * _num_entries(x) for x in known)
    if formed < by_factors:
        fwd, rev = (Formed(_formed(x)) if isinstance(x, Factors) else x for x in (fwd, rev))
    return _product(fwd, rev), _product(fwd, fwd), _product(rev, rev)


def cross_products(
    rows: Formed | Factors,
    columns: Formed | Factors,
    *,
    limit: int,
    gather: Callable[[Any], Any] = lambda x: x,
) -> jax.Array:
    """⟨row i, column j⟩ of each layer: [R, C, K].

    Args:
      rows, columns: whose arrays lead with R, or C. Where `rows` is `columns`, each gradient
        is formed once.
      limit: bytes of gradients that are formed at a time.
      gather: from a device's share of columns to those of all devices.
    """
    sides = (rows,) if rows is columns else (rows, columns)

    def of_layer(k):
        one = [
            jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, k, 1, False), x) for x in sides
        ]
        first, last = one[0], one[-1]
        if isinstance(first, Formed):
            return _blocked_product(widened(first.value), gather(widened(last.value)))
        return _cross_layer(first, last, gather, limit)

    # A layer at a time is copied out, and not all of them, to have the examples beside it.
    num_layers = jax.tree.leaves(rows)[0].shape[1]
    products_KRC = jax.lax.map(of_layer, jnp.arange(num_layers))
    return jnp.moveaxis(products_KRC, 0, -1)


def _product(first: Leaf, second: Leaf) -> jax.Array:
    """⟨first, second⟩ of each layer: [K]."""
    if first is None or second is None:
        return jnp.zeros(1)
    if isinstance(first, Formed):  # and so is the second
        assert isinstance(second, Formed), "both or neither formed"
        return jnp.einsum("kn,kn->k", widened(first.value), widened(second.value))
    assert isinstance(first, Factors) and isinstance(second, Factors), "both or neither formed"
    products = [jax.vmap(_inner)(a, b) for a in _products(first) for b in _products(second)]
    return functools.reduce(jnp.add, products)


def _products(factors: Factors) -> list[Product]:
    return [x for x in (factors.dense, factors.lookup) if x is not None]


def _inner(first: Product, second: Product) -> jax.Array:
    """Σ_ts (a_t·a'_s)(g_t·g'_s)."""
    rights = _dot("tf,sf->ts", first.right, second.right)
    return jnp.sum(_left_products(first.left, second.left) * rights)


def _left_products(left: jax.Array, other: jax.Array) -> jax.Array:
    """a_t·a'_s [T, S], where either may be given as the row that it is one in."""
    if left.ndim == other.ndim == 1:
        return left[:, None] == other[None]
    if left.ndim == 1:
        return widened(other)[:, left].T
    if other.ndim == 1:
        return widened(left)[:, other]
    return _dot("tc,sc->ts", left, other)


def _formed(factors: Factors) -> jax.Array:
    """[K, entries]."""
    matrix = jax.vmap(lambda x: _matrix(x.dense, x.lookup, factors.num_rows))(factors)
    return matrix.reshape(matrix.shape[0], -1)


def _matrix(dense: Product | None, lookup: Product | None, num_rows: int) -> jax.Array:
    """[rows, columns] of one layer."""
    matrix = None if dense is None else _dot("tc,tf->cf", dense.left, dense.right)
    if lookup is None:
        assert matrix is not None, "at least one product"
        return matrix
    if matrix is None:
        right = widened(lookup.right)
        matrix = jnp.zeros((num_rows, right.shape[-1]), right.dtype)
    return matrix.at[lookup.left].add(lookup.right.astype(matrix.dtype))


def _cross_layer(rows: Factors, columns: Factors, gather, limit: int) -> jax.Array:
    """[R, C] of one layer, by factors or by forming gradients, the cheaper way."""
    sides: tuple[Factors, ...] = (rows,) if rows is columns else (rows, columns)
    num_rows, num_columns = (_products(side)[0].right.shape[0] for side in (rows, columns))
    width = _products(rows)[0].right.shape[-1]
    forming = sum(map(_forming_cost, sides)) + num_rows * num_columns * rows.num_rows * width
    if num_rows * num_columns * _pair_cost(rows, columns) < forming:
        return _factored_cross(rows, jax.tree.map(gather, columns))

    limit = min(limit, FORMED_BYTES) if _on_cpu() else limit
    at_once = limit // (4 * (num_rows + num_columns) * rows.num_rows)
    if at_once < min(width, FEW_COLUMNS) and all(side.dense is not None for side in sides):
        # Of a long table that is multiplied with too: the product alone is formed by rows.
        dense = tuple(dataclasses.replace(side, lookup=None) for side in sides)
        lookups = _pair_cost(rows, columns) - _pair_cost(dense[0], dense[-1])
        if 0 < num_rows * num_columns * lookups < forming:
            rest = _factored_cross(rows, jax.tree.map(gather, columns), but_dense=True)
            return _formed_cross(dense, gather, limit) + rest
    return _formed_cross(sides, gather, limit)


def _formed_cross(sides: tuple[Factors, ...], gather, limit: int) -> jax.Array:
    """[R, C] of one layer, by forming some columns of all gradients at a time."""
    num_rows, num_columns = (_products(x)[0].right.shape[0] for x in (sides[0], sides[-1]))
    width = _products(sides[0])[0].right.shape[-1]
    if all(side.lookup is None for side in sides) and sides[0].num_rows > width:
        # ⟨G, G'⟩ = ⟨Gᵀ, G'ᵀ⟩: what is taken in blocks is the longer side.
        sides, width = tuple(map(_transposed, sides)), sides[0].num_rows

    def some_columns(start, size):
        formed = [_some_columns(side, start, size) for side in sides]
        return _blocked_product(formed[0], gather(formed[-1]))

    column_bytes = 4 * (num_rows + num_columns) * sides[0].num_rows
    num_blocks = -(-width // max(1, limit // column_bytes))
    return _sum_blocks(some_columns, width, -(-width // num_blocks))


def _transposed(factors: Factors) -> Factors:
    assert factors.dense is not None and factors.lookup is None, "row numbers are of rows"
    left, right = factors.dense
    return Factors(dense=Product(right, left), lookup=None, num_rows=right.shape[-1])


def _some_columns(factors: Factors, start: Any, size: int) -> jax.Array:
    """Gradients of all examples, of some of their columns: [E, entries]."""

    def one(factors):
        dense, lookup = (
            x and x._replace(right=jax.lax.dynamic_slice_in_dim(x.right, start, size, 1))
            for x in (factors.dense, factors.lookup)
        )
        return _matrix(dense, lookup, factors.num_rows)

    matrices = jax.vmap(one)(factors)
    return matrices.reshape(matrices.shape[0], -1)


def _factored_cross(rows: Factors, columns: Factors, but_dense: bool = False) -> jax.Array:
    """[R, C] of one layer, a row at a time against all columns; or what row numbers add to it."""

    def row(one):
        products = [
            jax.vmap(_inner, in_axes=(None, 0))(a, b)
            for a in _products(one)
            for b in _products(columns)
            if not (but_dense and a is one.dense and b is columns.dense)
        ]
        return functools.reduce(jnp.add, products)

    return jax.lax.map(row, rows)


def _blocked_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a bᵀ, on CPUs summed over blocks of the inner dimension."""

    def some(start, size):
        parts = [jax.lax.dynamic_slice_in_dim(x, start, size, 1) for x in (a, b)]
        return parts[0] @ parts[1].T

    if not a.shape[1]:
        return a @ b.T
    return _sum_blocks(some, a.shape[1], BLOCK if _on_cpu() else a.shape[1])


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _sum_blocks(product: Any, length: int, size: int) -> jax.Array:
    """Σ product(start, size) over blocks of a length, the last one smaller."""
    size = min(size, length)
    whole, rest = divmod(length, size)
    total = product(length - rest, rest) if rest else product(0, size)
    first = 0 if rest else 1
    if whole == first:
        return total
    return jax.lax.fori_loop(first, whole, lambda n, t: t + product(n * size, size), total)


def _forming_cost(factors: Factors) -> int:
    """Multiplications that form all gradients of these factors, of one example or of many."""
    dense = 0 if factors.dense is None else factors.dense.right.size * factors.num_rows
    return dense + (0 if factors.lookup is None else factors.lookup.right.size)


def _num_entries(factors: Factors) -> int:
    """Of all gradients of these factors."""
    right = _products(factors)[0].right
    return right.size // right.shape[-2] * factors.num_rows


def _pair_cost(first: Leaf, second: Leaf) -> int:
    """Multiplications of one ⟨first, second⟩ by factors, in one layer."""
    if not isinstance(first, Factors) or not isinstance(second, Factors):
        return 0
    cost = 0
    for a in _products(first):
        for b in _products(second):
            is_dense = a is first.dense and b is second.dense
            lefts = first.num_rows if is_dense else 1
            cost += a.right.shape[-2] * b.right.shape[-2] * (lefts + a.right.shape[-1])
    return cost


def _dot(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Of the operands' own precision, summed in float32 or better."""
    dtype = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    return jnp.einsum(spec, a, b, preferred_element_type=dtype)
