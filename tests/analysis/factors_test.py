"""Factors, multiplied out, are the gradient itself: its sign, its order and its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym.analysis import factored, products
from dirasym.analysis.factored import Formed
from dirasym.analysis.problem import Problem

LAYERS, WIDTH, TOKENS = 3, 4, 5
SHAPES = {
    "table": (9, WIDTH),
    "in": (2, WIDTH, WIDTH),
    "layers/kernel": (LAYERS, WIDTH, 6),
    "layers/bias": (LAYERS, 2, 3),
    "layers/down": (LAYERS, 6, WIDTH),
    "layers/scale": (LAYERS, WIDTH),
    "step/scale": (WIDTH,),
    "heads/bias": (2, 2),
    "stack": (2, WIDTH, WIDTH),
    "left": (WIDTH, WIDTH),
    "one": (1, WIDTH),
    "split": (WIDTH, 2 * WIDTH),
    "temperature": (),
    "row": (7, WIDTH),
    "convolution": (3, WIDTH, WIDTH),
    "thirds": (3, WIDTH, WIDTH),
    "middle": (4, WIDTH),
    "fused": (WIDTH, 3 * WIDTH),
    "fused rows": (3 * WIDTH, WIDTH),
    "fused bias": (2 * WIDTH,),
    "columns/kernel": (LAYERS, WIDTH, 3 * WIDTH),
    "inputs": (2 * WIDTH, WIDTH),
    "nested/scale": (LAYERS, WIDTH),
    "unused": (3,),
}


def _params():
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}


def _convolved(x_TD, kernel_WDF):
    """Over tokens, with gaps between these and between what a kernel reads, and uneven padding."""
    return jax.lax.conv_general_dilated(
        x_TD[None], kernel_WDF, window_strides=(2,), padding=[(2, 3)], lhs_dilation=(2,),
        rhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC"),
    )[0]  # fmt: skip


def _split(p, x_TD):
    """Of one parameter several products, each with some of its columns, rows or layers' columns."""
    query, key_value = jnp.split(p["fused"], [WIDTH], axis=1)
    query_T22 = jnp.einsum("td,dij->tij", x_TD, query.reshape(WIDTH, 2, 2))
    x_TD = x_TD + jnp.tanh(query_T22).reshape(TOKENS, WIDTH) * (x_TD @ key_value)[:, :WIDTH]
    x_TD = x_TD + jnp.tanh(x_TD @ p["fused rows"][WIDTH : 2 * WIDTH].T + p["fused bias"][None, 4:])
    x_TD = x_TD @ p["fused rows"][2 * WIDTH :].T + p["fused bias"][:4][None]

    def layer(x_TD, kernel_DF):
        gates = [jnp.tanh(x_TD @ kernel_DF[:, n : n + WIDTH]) for n in (0, WIDTH)]
        return x_TD + gates[0] * gates[1], None

    x_TD, _ = jax.lax.scan(layer, x_TD, p["columns/kernel"])
    return jnp.tanh(x_TD @ p["inputs"][:WIDTH]) + jnp.tanh(x_TD[:, ::-1] @ p["inputs"][WIDTH:])


def _loss(p, tokens_T):
    """Each kind of use: lookup, tied, split, transposed, sliced; biases and scales of all kinds."""
    x_TD = p["table"].at[tokens_T].get(mode="fill", fill_value=0.5)
    x_TD = x_TD @ p["in"][0].T

    def layer(x_TD, p):
        kernel, bias, down, scale = p
        bias_TF = jnp.broadcast_to(bias.reshape(1, 6), (TOKENS, 6))
        x_TD = x_TD + jnp.tanh(x_TD @ kernel + bias_TF) @ down
        return x_TD * scale[None], None

    names = ("kernel", "bias", "down", "scale")
    x_TD, _ = jax.lax.scan(layer, x_TD, tuple(p[f"layers/{name}"] for name in names))
    x_TD = jax.vmap(lambda x_D: x_D - p["heads/bias"].reshape(WIDTH))(x_TD)
    x_TD = x_TD @ p["stack"][1] + jnp.tanh(x_TD @ p["stack"][0])
    _, x_TD = jax.lax.scan(lambda c, x_D: (c, x_D * p["step/scale"]), 0.0, x_TD)
    x_TD = x_TD + jnp.tanh(p["left"] @ x_TD.T).T
    x_TD = x_TD + x_TD[:, :1] @ p["one"]
    one, eight, three = tokens_T[:3]
    for number in (three, one - 1, one - 2, eight):  # 3, the first, and twice the last: 8 is none
        x_TD = x_TD + jnp.tanh(p["row"][number][None] * x_TD)
    x_TD = x_TD + jnp.tanh(_convolved(x_TD, p["convolution"]))
    first, others = jnp.split(p["thirds"], [1])
    x_TD = x_TD @ first.reshape(WIDTH, WIDTH)
    x_TD, _ = jax.lax.scan(lambda x_TD, w: (jnp.tanh(x_TD @ w), None), x_TD, others)
    middle = lambda x_TD, b: (jnp.tanh(x_TD - b[None]), None)  # noqa: E731
    x_TD, _ = jax.lax.scan(middle, x_TD, p["middle"][1:3], reverse=True)
    inner = lambda scale: lambda c, x_D: (c, jnp.sin(x_D * scale))  # noqa: E731
    nested = lambda x_TD, scale: (jax.lax.scan(inner(scale), 0.0, x_TD)[1], None)  # noqa: E731
    x_TD, _ = jax.lax.scan(nested, x_TD, p["nested/scale"])
    halves_T2D = jnp.tanh(jnp.einsum("td,dij->tij", x_TD, p["split"].reshape(WIDTH, 2, WIDTH)))
    x_TD = x_TD + halves_T2D[:, 0] * halves_T2D[:, 1]
    logits_TV = _split(p, x_TD) @ p["table"].T
    return jnp.sum(jnp.tanh(logits_TV / p["temperature"]) * jnp.arange(9.0)[None])


@pytest.fixture(scope="module")
def found():
    params, tokens_T = _params(), jnp.array([1, 8, 3, 1, 20])  # the last is no row
    problem = Problem.of(
        params, (_loss, tokens_T), (_loss, tokens_T), blocks=None, heads=False,
        method="factored", strict=False,
    )  # fmt: skip
    got = jax.jit(lambda p: problem.gradient("fwd", p, tokens_T))(params)
    want = jax.jit(jax.grad(_loss))(params, tokens_T)
    reasons = {problem.parts.paths[n]: problem.plan.reasons[n] for n in problem.plan.direct}
    return got, want, reasons


def _whole(leaf):
    return leaf.value if isinstance(leaf, Formed) else products._formed(leaf)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_factors_are_the_gradient(found, name):
    got, want, _ = found
    leaf, want = got.leaves[sorted(SHAPES).index(name)], want[name]
    if name == "unused":
        assert leaf is None and not want.any()
        return
    if name in (
        "in",
        "left",
        "fused rows",
    ):  # rows of factors are what is contracted, their last axis
        want = want.swapaxes(-1, -2)
    matrix = np.asarray(_whole(leaf) * got.size).ravel()
    np.testing.assert_allclose(matrix, want.ravel(), atol=2e-6 * np.abs(want).max())


def test_all_of_these_are_factored(found):
    assert found[2] == {}


def test_pieces_of_layers_lie_one_behind_another_where_they_can():
    """A layer's matrix is the sum of its pieces'; tokens are added for what overlaps alone."""
    rng = np.random.default_rng(0)

    def piece(first, layers, tokens):
        return first, *(rng.normal(size=(layers, tokens, n)).astype(np.float32) for n in (2, 3))

    for pieces, num_tokens in (
        ([piece(0, 1, 4), piece(1, 1, 4)], 4),  # the second begins where the first ends
        ([piece(2, 1, 4), piece(0, 1, 4)], 4),  # between them a layer is empty
        ([piece(0, 2, 4), piece(1, 1, 4)], 8),  # both are of layer 1
        ([piece(0, 1, 4), piece(0, 1, 4)], 8),
        ([piece(0, 1, 4), piece(1, 1, 5)], 9),  # of other numbers of tokens
        ([piece(0, 1, 4), piece(0, 1, 5), piece(1, 1, 4), piece(2, 1, 5)], 9),
    ):
        want = np.zeros((3, 2, 3), np.float32)
        for first, left, right in pieces:
            want[first : first + len(left)] += np.einsum("ktc,ktf->kcf", left, right)
        left, right = factored._stacked(pieces, 3)
        assert left.shape[:2] == right.shape[:2] == (3, num_tokens)
        np.testing.assert_allclose(np.einsum("ktc,ktf->kcf", left, right), want, rtol=1e-5)
    assert factored._stacked([], 3) is None
