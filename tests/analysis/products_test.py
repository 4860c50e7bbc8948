"""The cheaper way of a product is taken, by the costs that the module states, in blocks that fit.

Nothing is computed where `jax.eval_shape` is enough to see which way was taken.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym.analysis import products
from dirasym.analysis.factored import Factors, Formed, Product


def _factors(lead, num_rows, num_columns, dense=0, lookup=0):
    """Factors of so many tokens: vectors, row numbers, or both."""

    def use(tokens, *rows):
        left = jnp.ones((*lead, tokens, *rows), jnp.float32 if rows else jnp.int32)
        return Product(left, jnp.ones((*lead, tokens, num_columns))) if tokens else None

    return Factors(use(dense, num_rows), use(lookup), num_rows=num_rows)


def _noted(monkeypatch, name, note):
    """Calls of a function of `products`, as `note` tells them."""
    found, function = [], getattr(products, name)

    def noted(*args, **more):
        found.append(note(*args))
        return function(*args, **more)

    monkeypatch.setattr(products, name, noted)
    return found


@pytest.mark.parametrize(
    ("first", "second", "cost"),
    [
        (dict(dense=2), dict(dense=3), 2 * 3 * (5 + 7)),
        (dict(lookup=4), dict(dense=3), 4 * 3 * (1 + 7)),  # of a·a' one entry is read
        (dict(dense=2), dict(lookup=6), 2 * 6 * (1 + 7)),
        (dict(lookup=4), dict(lookup=6), 4 * 6 * (1 + 7)),
        (dict(dense=2, lookup=4), dict(dense=3), 2 * 3 * (5 + 7) + 4 * 3 * (1 + 7)),
        (dict(dense=2), dict(dense=3, lookup=6), 2 * 3 * (5 + 7) + 2 * 6 * (1 + 7)),
    ],
)
def test_a_pair_by_factors_costs_a_product_a_pair_of_tokens(first, second, cost):
    one, other = (_factors((2,), 5, 7, **tokens) for tokens in (first, second))
    assert products._pair_cost(one, other) == cost
    for nothing in (None, Formed(jnp.ones((2, 35)))):
        assert products._pair_cost(one, nothing) == products._pair_cost(nothing, other) == 0


def test_a_formed_gradient_costs_its_entries_a_token_and_a_row_a_lookup():
    cost = products._forming_cost
    assert cost(_factors((2,), 5, 7, dense=3)) == 2 * 3 * 5 * 7
    assert cost(_factors((2,), 5, 7, lookup=3)) == 2 * 3 * 7
    assert cost(_factors((4, 2), 5, 7, dense=3, lookup=6)) == 4 * 2 * (3 * 5 * 7 + 6 * 7)


def test_a_table_is_not_formed_for_the_few_rows_that_are_read(monkeypatch):
    found = _noted(monkeypatch, "_formed", lambda x: x)
    one = _factors((1,), 1000, 8, lookup=32)  # 3·32²·9 = 27,648; 2·(32·8 + 32·8,000) formed
    jax.eval_shape(products.three_products, one, one)
    assert not found


@pytest.fixture
def multiplications_alone(monkeypatch):
    """Costs that can be read off the shapes, as the comments beside the cases have them."""
    monkeypatch.setattr(products, "ENTRY_COST", 0)


@pytest.mark.parametrize(
    ("shape", "tokens", "layers", "formed"),
    [
        ((3, 4), (1, 1), 3, 0),  # 3·3·7 = 63 by factors, 3·2·12 = 72 formed
        ((4, 5), (2, 2), 3, 2),  # 3·12·9 = 324 and 3·4·20 = 240
        ((7, 7), (1, 3), 1, 0),  # (3 + 1 + 9)·14 = 182 and 4·49 = 196
        ((6, 6), (1, 3), 1, 2),  # 13·12 = 156 and 4·36 = 144
        ((6, 6), (3, 1), 1, 2),
        ((3, 4), (1, 0), 1, 0),  # 7 and 12: the other loss does not read it
        ((3, 4), (3, 0), 1, 1),  # 9·7 = 63 and 36
        ((3, 4), (0, 3), 1, 1),
    ],
)
@pytest.mark.usefixtures("multiplications_alone")
def test_three_products_are_formed_where_that_is_cheaper(
    shape, tokens, layers, formed, monkeypatch
):
    found = _noted(monkeypatch, "_formed", lambda x: x)
    sides = [_factors((layers,), *shape, dense=t) if t else None for t in tokens]
    jax.eval_shape(products.three_products, *sides)
    assert len(found) == formed


CROSS = [  # tokens of rows and columns, and whether the product is formed; 4 rows, 6 columns
    ((1, 3), False),  # 24·3·12 = 864 by factors, 4·35 + 6·3·35 + 24·35 = 1610 formed
    ((3, 3), True),  # 24·9·12 = 2592 and 420 + 630 + 840 = 1890
    ((1, 1), False),
    ((2, 3), False),  # 1728 and 280 + 630 + 840 = 1750
]


def _cross(sides, limit=2**28):
    return jax.eval_shape(functools.partial(products.cross_products, limit=limit), *sides)


@pytest.mark.parametrize(("tokens", "formed"), CROSS)
def test_cross_products_are_formed_where_that_is_cheaper(tokens, formed, monkeypatch):
    by_factors = _noted(monkeypatch, "_factored_cross", lambda *sides: True)
    sides = [_factors((n, 2), 5, 7, dense=t) for n, t in zip((4, 6), tokens, strict=True)]
    assert _cross(sides).shape == (4, 6, 2)
    assert bool(by_factors) != formed


def test_equal_sides_are_formed_once_and_counted_so(monkeypatch):
    by_factors = _noted(monkeypatch, "_factored_cross", lambda *sides: True)
    one = _factors((1, 1), 5, 7, dense=4)  # 16·12 = 192; 140 + 35 = 175 once, 315 twice
    jax.eval_shape(lambda x: products.cross_products(x, x, limit=2**28), one)
    assert not by_factors
    jax.eval_shape(lambda x, y: products.cross_products(x, y, limit=2**28), one, one)
    assert by_factors


@pytest.mark.parametrize(
    ("shape", "lookup", "limit", "sizes"),
    [
        ((5, 7), 0, 2**28, (7, 7)),
        ((5, 7), 0, 4 * 10 * 5 * 3, (7, 3)),  # bytes of three columns of ten gradients
        ((5, 7), 0, 4 * 10 * 5 * 4 - 1, (7, 3)),
        ((5, 7), 0, 4 * 10 * 5 * 4, (7, 4)),
        ((5, 7), 0, 4 * 10 * 5 * 6, (7, 4)),  # two blocks, as even as can be
        ((5, 7), 0, 1, (7, 1)),
        ((7, 5), 0, 4 * 10 * 5 * 3, (7, 3)),  # transposed: blocks of the longer side
        ((7, 5), 9, 4 * 10 * 7 * 3, (5, 3)),  # row numbers are of rows
        ((5, 5), 0, 4 * 10 * 5 * 3, (5, 3)),
    ],
)
def test_some_columns_are_formed_at_a_time_as_the_limit_allows(
    shape, lookup, limit, sizes, monkeypatch
):
    blocks = _noted(monkeypatch, "_sum_blocks", lambda product, *sizes: sizes)
    _cross([_factors((n, 1), *shape, dense=9, lookup=lookup) for n in (4, 6)], limit)
    assert blocks[0] == sizes


def _random_factors(rng, num, tokens, lookups):
    """Of `num` examples, two layers and a table [40, 3]; and the gradients [num, 2, 40, 3]."""
    left = rng.normal(size=(num, 2, tokens, 40)).astype(np.float32)
    right = rng.normal(size=(num, 2, tokens, 3)).astype(np.float32)
    numbers = rng.integers(0, 40, (num, 2, lookups), np.int32)
    read = rng.normal(size=(num, 2, lookups, 3)).astype(np.float32)
    formed = np.einsum("nktc,nktf->nkcf", left, right)
    for n, k, t in np.ndindex(numbers.shape):
        formed[n, k, numbers[n, k, t]] += read[n, k, t]
    lookup = Product(jnp.asarray(numbers), jnp.asarray(read)) if lookups else None
    return Factors(Product(jnp.asarray(left), jnp.asarray(right)), lookup, num_rows=40), formed


@pytest.mark.parametrize("lookups", [(4, 4), (4, 0), (0, 4)])
@pytest.mark.parametrize("columns_at_once", [2, 3])
def test_of_a_long_table_few_columns_are_not_formed_at_a_time(
    lookups, columns_at_once, monkeypatch
):
    by_factors = _noted(monkeypatch, "_factored_cross", lambda *sides: True)
    blocks = _noted(monkeypatch, "_sum_blocks", lambda product, *sizes: sizes)
    rng = np.random.default_rng(0)
    (rows, left), (columns, right) = (
        _random_factors(rng, n, 4, x) for n, x in zip((4, 6), lookups, strict=True)
    )
    limit = 4 * 10 * 40 * columns_at_once
    found = products.cross_products(rows, columns, limit=limit)
    want = np.einsum("rkij,ckij->rck", left, right)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert bool(by_factors) == (columns_at_once < 3)
    assert blocks[0] == ((40, 20) if by_factors else (3, 3))


def test_of_a_long_table_equal_sides_are_formed_once():
    rows, formed = _random_factors(np.random.default_rng(0), 5, 4, 4)
    found = products.cross_products(rows, rows, limit=1)
    want = np.einsum("rkij,ckij->rck", formed, formed)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_blocks_are_small_on_cpus_alone(monkeypatch):
    blocks = _noted(monkeypatch, "_sum_blocks", lambda product, *sizes: sizes)
    monkeypatch.setattr(products, "BLOCK", 6)
    monkeypatch.setattr(products, "FORMED_BYTES", 4 * 10 * 5 * 3)
    sides = [_factors((n, 1), 5, 7, dense=9) for n in (4, 6)]
    for backend, want in (("cpu", {(7, 3), (15, 6), (5, 6)}), ("gpu", {(7, 7), (35, 35)})):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        del blocks[:]
        _cross(sides)
        assert set(blocks) == want


@pytest.mark.parametrize(
    ("length", "size"), [(7, 3), (6, 3), (7, 7), (7, 9), (5, 1), (8, 7), (1, 1), (9, 8)]
)
def test_blocks_cover_a_length_once(length, size):
    powers = 2.0 ** jnp.arange(length)

    def some(start, size):
        return jax.lax.dynamic_slice_in_dim(powers, start, size).sum()

    np.testing.assert_allclose(products._sum_blocks(some, length, size), 2.0**length - 1)
