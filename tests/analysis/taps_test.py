"""What can be factored and what cannot, told from the loss's jaxpr alone: nothing is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym.analysis.factored import Traced
from dirasym.analysis.problem import Problem

X_TD = np.ones((5, 4), np.float32)


def _convolve(x, kernel, **how):
    how = dict(window_strides=(1,), padding="SAME", dimension_numbers=("NWC", "WIO", "NWC")) | how
    return jax.lax.conv_general_dilated(x, kernel, **how)


def _carried(w, x_TD):
    return jax.lax.scan(lambda carry, x_D: (carry + x_D.sum(), None), w, x_TD)[0]


def _columns_scanned(w, x_TD):
    return jax.lax.scan(lambda total, w_D: (total + x_TD @ w_D, None), jnp.zeros(5), w.T)[0]


@jax.custom_vjp
def _ruled(w, x_TD):
    return x_TD @ w


_ruled.defvjp(lambda w, x_TD: (x_TD @ w, (w, x_TD)), lambda kept, g: (kept[0], kept[1]))


@jax.custom_jvp
def _sloped(w, x_TD):
    return x_TD @ w


_sloped.defjvp(lambda at, along: (_sloped(*at), at[1] @ along[0]))


def _number(x_TD):
    return x_TD[0, 0].astype(int)


FACTORED = {
    "convolution": ((3, 4, 2), lambda w, x: _convolve(x[None], w)),
    "parts of a stack": ((3, 4, 4), lambda w, x: [x @ y.reshape(4, 4) for y in jnp.split(w, 3)]),
    "a vector added": ((5,), lambda w, x: x[:, 0] + w),
    "a row added": ((1, 4), lambda w, x: x + w),
    "a vector a head": ((2, 2), lambda w, x: x.reshape(5, 2, 2) * w[None]),
    "a row of one": ((4, 1, 1), lambda w, x: w + x[:1].T[..., None]),
    "whole rows": ((9, 4), lambda w, x: w[jnp.array([1, 3])] + x[:2]),
    "through a checkpoint that returns it": (
        (4, 4), lambda w, x: x @ jax.checkpoint(lambda w, x: (w, x @ w))(w, x)[0]
    ),
    "columns apart": ((4, 4), lambda w, x: x @ jnp.split(w, 2, axis=1)[0]),
    "some columns": ((4, 4), lambda w, x: x @ w[:, :2]),
    "last columns": ((4, 4), lambda w, x: x @ w[:, 2:]),
    "some rows": ((9, 4), lambda w, x: x @ w[2:6] + x @ w.T[:, :4]),
    "parts of a vector": ((8,), lambda w, x: [x + w[None, :4], x * w[4:][None]]),
    "beside a rule": ((4, 4), lambda w, x: jax.nn.relu(x @ w)),
    "both ways": ((4, 4), lambda w, x: x @ w @ w.T),
}  # fmt: skip
NOT_FACTORED = {
    "a convolution of each channel": (
        (3, 1, 4), lambda w, x: _convolve(x[None], w, feature_group_count=4),
        "used by conv_general_dilated",
    ),
    "a convolution of halves of a batch": (
        (3, 4, 2), lambda w, x: _convolve(jnp.stack([x, x]), w, batch_group_count=2),
        "used by conv_general_dilated",
    ),
    "what is convolved": (
        (1, 5, 4), lambda w, x: _convolve(w, x[:, :, None]), "used by conv_general_dilated"
    ),
    "one column": ((4, 4), lambda w, x: x @ w[:, :1], "used by slice"),
    "columns of columns": ((4, 6), lambda w, x: x @ w[:, :4][:, 1:3], "used by slice"),
    "columns of a stack at once": (
        (3, 4, 4), lambda w, x: jnp.einsum("td,kdf->tkf", x[:, :2], w[1:3, 1:3]), "used by slice"
    ),
    "rows by a number among some": ((9, 4), lambda w, x: w[2:8][_number(x)], "used in part"),
    "in more parts than are worth it": (
        (4, 10), lambda w, x: [x @ y for y in jnp.split(w, 5, axis=1)], "used in more than 4 parts"
    ),
    "every second layer": (
        (4, 4, 2), lambda w, x: jnp.einsum("td,kdf->f", x, w[::2]), "used by slice"
    ),
    "a matrix added": ((5, 4), lambda w, x: x + w, "used by add"),
    "a thin matrix multiplied": ((5, 2), lambda w, x: x[:, :2] * w, "used by mul"),
    "three axes repeated": (
        (2, 2, 2), lambda w, x: jnp.broadcast_to(w, (5, 2, 2, 2)), "used by broadcast_in_dim"
    ),
    "parts of rows": ((9, 4), lambda w, x: w[jnp.array([1, 3]), :2], "used by gather"),
    "two rows by their number": (
        (9, 4), lambda w, x: jax.lax.dynamic_slice(w, (_number(x), 0), (2, 4)),
        "used by dynamic_slice",
    ),
    "a part of a row by its number": (
        (9, 4), lambda w, x: jax.lax.dynamic_slice(w, (_number(x), 0), (1, 2)),
        "used by dynamic_slice",
    ),
    "entries": ((9, 4), lambda w, x: w[jnp.array([1, 3]), jnp.array([0, 2])], "used by gather"),
    "a product a head": (
        (5, 4, 2), lambda w, x: jnp.einsum("td,tdf->tf", x, w), "used by dot_general"
    ),
    "a product with a rule": ((4, 4), _ruled, "used by custom_vjp_call"),
    "a product with a slope": ((4, 4), _sloped, "used by custom_jvp_call"),
    "a sum": ((4,), lambda w, x: w.sum() * x, "used by reduce_sum"),
    "carried": ((), _carried, "carried by scan"),
    "columns in turn": ((4, 3), _columns_scanned, "scanned over another axis than its first"),
    "two matrices": (
        (4, 4, 4), lambda w, x: (x @ w.reshape(4, 16), jnp.tile(x, 4) @ w.reshape(16, 4)),
        "used as two different matrices",
    ),
    "returned by a checkpoint with its entries moved": (
        (4, 4), lambda w, x: jax.checkpoint(lambda w: w.T)(w) @ x[:4], "returned by checkpoint"
    ),
    "as a result": ((4,), lambda w, x: jax.jit(lambda w: w)(w), "used by reduce_sum"),
}  # fmt: skip


def _reasons(shape, use):
    def loss(params, x_TD):
        return sum(x.sum() for x in jax.tree.leaves(use(params["w"], x_TD)))

    given = {"w": jnp.ones(shape)}, (loss, X_TD), (loss, X_TD)
    how = dict(blocks=None, heads=False, method="factored", strict=False)
    found = Problem.of(*given, **how).plan
    assert found.direct == tuple(found.reasons)
    return found.reasons


@pytest.mark.parametrize("name", FACTORED)
def test_these_uses_are_factored(name):
    assert _reasons(*FACTORED[name]) == {}


@pytest.mark.parametrize("name", NOT_FACTORED)
def test_other_uses_are_not_and_the_reason_is_told(name):
    *given, reason = NOT_FACTORED[name]
    assert _reasons(*given) == {0: reason}


def test_a_losss_bytes_are_those_of_all_that_is_computed():
    def plain(params, x_TD):
        return jnp.sum(jnp.tanh(x_TD @ params))

    w, x_STD = np.ones((4, 2), np.float32), np.stack([X_TD] * 3)
    assert Traced.of("loss", plain, w, X_TD).num_bytes == 2 * 5 * 2 * 4 + 4

    def scanned(params, x_STD):
        step = lambda total, x_TD: (total + jax.jit(plain)(params, x_TD), None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros(()), x_STD)[0]

    assert Traced.of("loss", scanned, w, x_STD).num_bytes == 3 * (84 + 4)
