import functools
import inspect
import re

import chex
import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest

from dirasym import models
from dirasym.analysis import alignment

VOCAB, LENGTH, EXAMPLES = 7, 5, 4


def _losses(model):
    """Cross-entropy at the first and at the last position, of one example."""

    def loss(params, example, position):
        logits_LV = model.apply({"params": params}, example["tokens_L"][None])[0]
        return optax.softmax_cross_entropy_with_integer_labels(
            logits_LV[position], example["target"]
        )

    return functools.partial(loss, position=0), functools.partial(loss, position=-1)


def _examples(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "tokens_L": rng.integers(0, VOCAB, (EXAMPLES, LENGTH)),
        "target": rng.integers(0, VOCAB, EXAMPLES),
    }


def _transformer(**kwargs):
    kwargs = dict(num_layers=1) | kwargs
    config = models.TransformerConfig(
        vocab_size=VOCAB, width=8, num_heads=2, causal=False, **kwargs
    )
    model = models.Transformer(config)
    init = jax.jit(model.init)
    return model, init(jax.random.key(0), np.zeros((1, LENGTH), np.int32))["params"]


def _by_hand(losses, params, examples):
    """Flat per-example gradients [E, N] of both losses."""

    @jax.jit
    def flat(x):
        return [jax.flatten_util.ravel_pytree(jax.grad(loss)(params, x))[0] for loss in losses]

    return jax.vmap(flat)(examples)


def _alignment(*losses, **kwargs):
    """`alignment` under jit, which spares compiling op by op."""
    return jax.jit(functools.partial(alignment.alignment, *losses, **kwargs))


def test_two_scalar_losses_against_the_definition():
    params = {"a": jnp.array([1.0, 2.0]), "b": {"c": jnp.array(3.0)}}
    result = alignment.alignment(
        lambda p: (p["a"] ** 2).sum() + p["b"]["c"], lambda p: p["a"][0] - 2 * p["b"]["c"], params
    )
    chex.assert_trees_all_close(result.inner, {"a": 2.0, "b/c": -2.0, "total": 0.0}, atol=1e-6)
    chex.assert_trees_all_close(result.norm_fwd["total"], np.sqrt(21.0), rtol=1e-6)
    chex.assert_trees_all_close(result.cosine["a"], 2 / np.sqrt(20), rtol=1e-6)
    assert result.undefined == {}


def test_a_zero_gradient_gives_nan_and_says_which():
    params = {"used": jnp.ones(3), "unused": jnp.ones(2)}
    result = alignment.alignment(lambda p: p["used"].sum(), lambda p: p["unused"].sum(), params)
    assert np.isnan(result.cosine["used"]) and np.isnan(result.cosine["unused"])
    assert result.undefined == {
        "used": "the reverse gradient is zero",
        "unused": "the forward gradient is zero",
    }
    assert result.cosine["total"] == 0


@pytest.mark.parametrize("small_side", ["forward", "reverse"])
def test_a_block_that_is_zero_beside_the_others_has_no_cosine(small_side):
    """Squares of 1e-25 are zero in float32, their product with 1 is not."""
    params = {"large": jnp.ones(2), "small": jnp.ones(3)}
    whole = lambda p: p["large"].sum() + p["small"].sum()  # noqa: E731
    part = lambda p: p["large"].sum() + 1e-25 * p["small"].sum()  # noqa: E731
    losses = (part, whole) if small_side == "forward" else (whole, part)
    result = alignment.alignment(*losses, params)
    np.testing.assert_allclose(result.inner["small"], 3e-25, rtol=1e-5)
    assert np.isnan(result.cosine["small"])
    assert result.undefined == {"small": f"the {small_side} gradient is zero"}


@pytest.mark.parametrize("method", ["direct", "factored"])
def test_parameters_that_one_loss_does_not_read_have_no_product(method):
    params = {name: jnp.ones((2, 3)) for name in ("both", "first", "last")}
    params["layers"] = {"layer": {"none": jnp.ones((3, 2))}}  # of three layers
    x_EI = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)

    def loss(params, x_I, other):
        return jnp.sum(x_I @ params["both"]) + 2 * jnp.sum(x_I @ params[other])

    losses = [functools.partial(loss, other=other) for other in ("first", "last")]
    found = alignment.alignment(*losses, params, examples=x_EI, method=method)
    cross = alignment.cross_alignment(*losses, params, x_EI, method=method)
    product_EE, zero_E = 3 * x_EI @ x_EI.T, np.zeros(4)
    norm_E = np.sqrt(np.diagonal(product_EE))
    for block, norms in (
        ("both", (norm_E, norm_E)),
        ("first", (2 * norm_E, zero_E)),
        ("last", (zero_E, 2 * norm_E)),
        ("layers_2/none", (zero_E, zero_E)),
    ):
        want_EE = product_EE if block == "both" else np.zeros((4, 4))
        np.testing.assert_allclose(cross.inner[block], want_EE, rtol=1e-5)
        np.testing.assert_allclose(found.inner[block], np.diagonal(want_EE), rtol=1e-5)
        np.testing.assert_allclose(found.norm_fwd[block], norms[0], rtol=1e-5)
        np.testing.assert_allclose(found.norm_rev[block], norms[1], rtol=1e-5)
        assert np.isnan(found.cosine[block]).all() == (block != "both")
    np.testing.assert_allclose(found.cosine["total"], 1 / 5, rtol=1e-5)
    one = alignment.alignment(*losses, params, examples=x_EI[:1], method=method)
    np.testing.assert_allclose(one.inner["both"], product_EE[:1, 0], rtol=1e-5)


@pytest.mark.parametrize("method", ["direct", "factored"])
def test_a_loss_that_reads_no_parameter_has_no_gradient(method):
    params, x_EI = {"w": jnp.ones((4, 2))}, np.ones((3, 4), np.float32)
    none = lambda p, x: jnp.sum(x)  # noqa: E731
    some = lambda p, x: jnp.sum(x @ p["w"])  # noqa: E731
    for rev in (none, some):
        found = alignment.alignment(none, rev, params, examples=x_EI, method=method)
        assert found.inner["w"].shape == (3,) and not found.inner["total"].any()
        assert not found.norm_fwd["w"].any() and np.isnan(found.cosine["total"]).all()
        cross = alignment.cross_alignment(none, rev, params, x_EI, method=method)
        assert cross.inner["w"].shape == (3, 3) and not cross.inner["total"].any()


def test_what_was_formed_is_told_and_is_no_array():
    """So that `jax.tree.map` and `vmap` see the numbers alone."""
    params, x_EI = {"w": jnp.ones((2, 3)), "b": jnp.ones(4)}, np.ones((2, 2), np.float32)
    losses = [_counted(Calls(), power) for power in (2, 3)]
    for run in (alignment.alignment, alignment.cross_alignment):
        found = run(*losses, params, examples=x_EI, method="factored")
        assert (found.direct, found.direct_share) == (("b",), 0.4)
        whole = [x for x in vars(found).values() if isinstance(x, dict)]
        assert len(jax.tree.leaves(found)) == sum(map(len, whole))


@pytest.mark.parametrize("exponent", [-30, -20, 0, 20, 30])
@pytest.mark.parametrize("method", ["direct", "factored"])
def test_cosines_do_not_underflow(exponent, method):
    """A nearly saturated loss: squares of its gradient leave float32, its cosine does not."""
    dense, examples = nn.Dense(3), np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    params = dense.init(jax.random.key(0), examples[0])["params"]
    loss = lambda p, x: (dense.apply({"params": p}, x) ** 2).sum()  # noqa: E731
    small = lambda p, x: loss(p, x) * 10.0**exponent  # noqa: E731
    rev = lambda p, x: loss(p, 1 - x)  # noqa: E731
    want = alignment.alignment(loss, rev, params, examples=examples, method=method)
    got = alignment.alignment(small, rev, params, examples=examples, method=method)
    chex.assert_trees_all_close(got.cosine, want.cosine, rtol=1e-5)
    scaled = jax.tree.map(lambda x: x * 10.0**exponent, want.inner)
    chex.assert_trees_all_close(got.inner, scaled, rtol=1e-5)
    assert got.undefined == {}


@pytest.mark.parametrize("exponent", [-30, 30])
@pytest.mark.parametrize("method", ["direct", "factored"])
def test_entries_below_zero_alone_do_not_underflow_either(exponent, method):
    """The size of a gradient is that of its largest entry, whatever its sign."""
    params, x_EI = {"w": jnp.ones((2, 1))}, np.array([[1.0, 2.0], [2.0, 2.0]], np.float32)
    loss = lambda p, x: -(10.0**exponent) * jnp.sum(x @ p["w"])  # noqa: E731
    rev = lambda p, x: jnp.sum(x[::-1] @ p["w"])  # noqa: E731
    got = alignment.alignment(loss, rev, params, examples=x_EI, method=method)
    np.testing.assert_allclose(got.cosine["w"], [-0.8, -1], rtol=1e-6)
    np.testing.assert_allclose(got.norm_fwd["w"], 10.0**exponent * np.sqrt([5, 8]), rtol=1e-6)


def test_a_gradient_that_is_not_finite_is_named():
    params = {"w": jnp.ones(3)}
    result = alignment.alignment(lambda p: jnp.inf * p["w"].sum(), lambda p: p["w"].sum(), params)
    assert np.isnan(result.cosine["w"])
    assert result.undefined["w"] == "the forward gradient is not finite"


@pytest.mark.parametrize(
    ("kwargs", "left_over"),
    [
        (dict(tied_head=True, mlp="swiglu", norm="rmsnorm", num_kv_heads=1), {"bias", "scale"}),
        members.slow((dict(positions="learned", max_len=LENGTH, qkv_bias=True), {"bias", "scale"})),
    ],
)
def test_factored_equals_direct_equals_the_definition(kwargs, left_over):
    model, params = _transformer(**kwargs)
    losses, examples = _losses(model), _examples()
    g_fwd, g_rev = _by_hand(losses, params, examples)
    want = (g_fwd * g_rev).sum(-1)
    direct = _alignment(*losses, chunk_size=2)(params, examples=examples)
    factored = _alignment(*losses, method="factored")(params, examples=examples)
    scale = float((jnp.linalg.norm(g_fwd, axis=-1) * jnp.linalg.norm(g_rev, axis=-1)).max())
    np.testing.assert_allclose(direct.inner["total"], want, atol=1e-5 * scale)
    for block in direct.inner:
        if "attention/key/bias" in block:  # its gradient is zero but for rounding
            assert np.max(direct.norm_fwd[block]) < 1e-6 * np.max(direct.norm_fwd["total"])
            continue
        size = np.asarray(direct.norm_fwd[block] * direct.norm_rev[block])
        error = np.abs(factored.inner[block] - direct.inner[block])
        assert (error <= 1e-5 * size).all() and (size > 0).all(), block
        for name in ("norm_fwd", "norm_rev"):
            got, want_norm = getattr(factored, name)[block], getattr(direct, name)[block]
            np.testing.assert_allclose(got, want_norm, rtol=1e-5, err_msg=block)
    np.testing.assert_allclose(factored.cosine["total"], direct.cosine["total"], atol=1e-5)
    assert {path.split("/")[-1] for path in factored.direct} <= left_over
    assert len(direct.direct) == len(jax.tree.leaves(params))


class _Doubled(nn.Dense):
    """Not linen's Dense, though one of its subclasses."""

    @nn.compact
    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


class _Chain(nn.Module):
    """Shared, renamed, biased and unbiased layers in one, on vectors or matrices."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        x = shared(nn.tanh(shared(x)))
        return nn.Dense(4, use_bias=False, name="last")(nn.tanh(x))


def _called(transformation):
    """A loss that calls its layers inside a transformation of its own."""

    def loss(params, x_TI):
        model = lambda x: (_Chain().apply({"params": params}, x) ** 2).sum()  # noqa: E731
        match transformation:
            case "vmap":
                return jax.vmap(model)(x_TI).sum()
            case "scan":
                return jax.lax.scan(lambda total, x: (total + model(x), None), 0.0, x_TI)[0]
            case "grad":  # of a scan in a checkpoint: JAX puts what it need not redo in a call
                inner = jax.checkpoint(_called("scan"))
                return (jax.grad(inner, 1)(params, x_TI) ** 2).sum()
            case "remat of two":
                return jax.checkpoint(_called("none"), prevent_cse=(True, False))(params, x_TI)
        return {"none": lambda f: f, "jit": jax.jit, "remat": jax.checkpoint}[transformation](
            model
        )(x_TI)

    return loss


@pytest.mark.parametrize(
    "transformation", ["none", "jit", "remat", "remat of two", "vmap", "scan", "grad"]
)
def test_layers_called_inside_the_losss_own_transformations(transformation):
    examples = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    params = _Chain().init(jax.random.key(0), examples[0])["params"]
    loss = _called(transformation)
    direct, factored = (
        alignment.alignment(loss, loss, params, examples=examples, method=method)
        for method in ("direct", "factored")
    )
    chex.assert_trees_all_close(factored.inner, direct.inner, rtol=1e-5)
    assert all("bias" in path for path in factored.direct)


@pytest.mark.parametrize("layers", [(0, 1), (1, 2), (0, 2), (1,)])
def test_a_stack_may_be_used_in_some_of_its_layers(layers):
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(3, 4, 4)).astype(np.float32) / 2
    examples = rng.normal(size=(3, 5, 4)).astype(np.float32)

    def loss(params, x_TI):
        for layer in layers:
            x_TI = jax.numpy.tanh(x_TI @ params["stack"][layer])
        return x_TI.sum()

    direct, factored = (
        alignment.alignment(loss, loss, {"stack": stack}, examples=examples, method=method)
        for method in ("direct", "factored")
    )
    assert factored.direct == ()
    chex.assert_trees_all_close(factored.inner, direct.inner, rtol=1e-5)


def test_one_row_by_its_number_is_factored():
    table_VD = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)

    def loss(params, row):
        return jax.numpy.sin(params["table"][row]).sum()

    direct, factored = (
        alignment.alignment(
            loss, loss, {"table": table_VD}, examples=np.array([3, 0, 6, -1]), method=method
        )
        for method in ("direct", "factored")
    )
    assert factored.direct == ()
    squares_E = (np.cos(table_VD[[3, 0, 6, 6]]) ** 2).sum(axis=1)
    for got in (direct, factored):
        np.testing.assert_allclose(got.inner["table"], squares_E, rtol=1e-5)


def test_subclasses_and_shared_arrays_and_negative_rows():
    rng = np.random.default_rng(0)
    x_ETI = rng.normal(size=(3, 5, 4)).astype(np.float32)
    doubled, embed = _Doubled(3), nn.Embed(6, 4)
    kernel, table = (rng.normal(size=s).astype(np.float32) for s in ((4, 4), (6, 4)))
    chain = {name: {"kernel": kernel} for name in ("shared", "last")}
    chain["shared"]["bias"] = np.zeros(4, np.float32)
    cases = [
        (doubled.apply, doubled.init(jax.random.key(0), x_ETI[0])["params"], x_ETI),
        (_Chain().apply, chain, x_ETI),  # one array in two places
        (embed.apply, {"embedding": table}, rng.integers(-6, 6, (3, 9))),
    ]
    for apply, params, examples in cases:
        loss = lambda p, x, apply=apply: (apply({"params": p}, x).sum(0) ** 3).sum()  # noqa: E731
        direct, factored = (
            alignment.alignment(loss, loss, params, examples=examples, method=method)
            for method in ("direct", "factored")
        )
        chex.assert_trees_all_close(factored.inner, direct.inner, rtol=1e-5)


def test_a_matrix_read_elsewhere_too_is_not_factored():
    dense = nn.Dense(3)
    params = dense.init(jax.random.key(0), jnp.ones(4))["params"]

    def loss(params, x_I):  # weight decay reads the kernel as well as the layer does
        return dense.apply({"params": params}, x_I).sum() ** 2 + (params["kernel"] ** 2).sum()

    examples = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    direct, factored = (
        alignment.alignment(loss, loss, params, examples=examples, method=method)
        for method in ("direct", "factored")
    )
    assert "kernel" in factored.direct
    chex.assert_trees_all_close(factored.inner, direct.inner, rtol=1e-5)


@pytest.mark.parametrize("method", members.quick(["direct", "factored"], ["factored"]))
def test_cross_matrix(method):
    model, params = _transformer()
    losses, examples = _losses(model), _examples()
    columns = jax.tree.map(lambda x: x[:3], _examples(1))
    g_fwd, _ = _by_hand(losses, params, examples)
    _, g_rev = _by_hand(losses, params, columns)
    how = dict(method=method, chunk_size=3, blocks="head")
    found = jax.jit(functools.partial(alignment.cross_alignment, *losses, **how))(
        params, examples, examples_rev=columns
    )
    alone = _alignment(*losses, method=method, blocks="head")(params, examples=examples)
    assert (found.direct, found.direct_share) == (alone.direct, alone.direct_share)
    assert (method == "direct") == (found.direct_share == 1.0)
    cross = found.inner
    want = g_fwd @ g_rev.T
    np.testing.assert_allclose(cross["total"], want, atol=1e-5 * np.abs(want).max())
    assert cross["head"].shape == (EXAMPLES, 3) and set(cross) == {"head", "total"}


@pytest.mark.parametrize("method", ["direct", "factored"])
def test_columns_may_be_examples_of_another_kind(method):
    rng = np.random.default_rng(0)
    x_EI = rng.normal(size=(3, 4)).astype(np.float32)
    other_ETI = rng.normal(size=(2, 6, 4)).astype(np.float32)
    dense = nn.Dense(3)
    params = dense.init(jax.random.key(0), x_EI[0])["params"]
    loss = lambda p, x: (dense.apply({"params": p}, x) ** 2).sum()  # noqa: E731
    loss_rev = lambda p, example: loss(p, example["x"])  # noqa: E731
    cross = alignment.cross_alignment(
        loss, loss_rev, params, x_EI, examples_rev={"x": other_ETI}, method=method
    ).inner
    grads = [jax.vmap(jax.grad(loss), (None, 0))(params, x) for x in (x_EI, other_ETI)]
    want = jnp.einsum("eij,fij->ef", *(g["kernel"] for g in grads))
    np.testing.assert_allclose(cross["kernel"], want, rtol=1e-4, atol=1e-4)


def _counted(calls, power):
    """A loss made anew, that counts how often it is traced."""

    def loss(params, x):
        calls.append(power)
        return ((x @ params["w"]) ** power).sum() + params["b"].sum() ** 2

    return loss


AS_FORMED = {  # shapes and uses of which the factors are no gradient, or lie in other layers
    "layers two at a time": (
        (6, 4, 4), lambda w, x: jax.lax.map(lambda w: x @ w, w, batch_size=2)
    ),
    "layers of a matrix": (
        (8, 4), lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w.reshape(2, 4, 4))[0]
    ),
    "layers of an axis by stages": (
        (2, 2, 4, 4), lambda w, x: x @ w.reshape(4, 4, 4)[3] + x @ w.reshape(4, 4, 4)[1]
    ),
    "made complex": ((4, 4), lambda w, x: jnp.abs((x + 1j * jnp.cos(x)) @ w) ** 2),
    "no columns": ((4, 0), lambda w, x: jnp.concatenate([x @ w, x], axis=1)),
    "no rows": ((0, 4), lambda w, x: jnp.concatenate([x, w, w.reshape(4, 0).T])),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_FORMED)
def test_what_is_no_plain_product_is_as_formed(name):
    shape, use = AS_FORMED[name]
    rng = np.random.default_rng(0)
    given = {"w": shape, "v": (4, 4)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in given.items()}
    x_ETD = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)

    def loss(params, x_TD):
        return jnp.sum(jnp.tanh(use(params["w"], x_TD @ params["v"])))

    by_method = {}
    for method in ("direct", "factored"):
        each = alignment.alignment(loss, loss, params, examples=x_ETD, method=method).inner
        cross = alignment.cross_alignment(loss, loss, params, x_ETD, method=method).inner
        by_method[method] = each, cross
        grads = jax.vmap(jax.grad(loss), (None, 0))(params, x_ETD)
        flat = jnp.concatenate([grads[k].reshape(3, -1) for k in given], axis=1)
        want = np.asarray(flat @ flat.T)
        np.testing.assert_allclose(cross["total"], want, rtol=1e-5, atol=1e-5 * want.max())
        np.testing.assert_allclose(each["total"], want.diagonal(), rtol=1e-5)
    for direct, factored in zip(by_method["direct"], by_method["factored"], strict=True):
        assert direct.keys() == factored.keys()
        for block, x in direct.items():
            np.testing.assert_allclose(factored[block], x, rtol=2e-4, atol=1e-4, err_msg=block)


@pytest.mark.parametrize("is_clipped", [True, False])
def test_small_row_numbers_count_the_rows_of_a_large_table(is_clipped):
    """Rows beyond 255: the last row's number is none of uint8."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(300, 4)), jnp.float32)
    rows_ET = jnp.array([[200, 3], [250, 201], [3, 3]], jnp.uint8)

    def loss(table, rows_T):
        if is_clipped:
            return jnp.sum(jnp.tanh(jnp.take(table, rows_T, axis=0, mode="clip")))
        return jnp.sum(jnp.tanh(jax.lax.dynamic_index_in_dim(table, rows_T[0], 0)))

    # Compiled as the tests are, XLA itself takes uint8 rows beyond 127 for negative ones.
    wide_ET = rows_ET.astype(jnp.int32)
    grads = jax.vmap(jax.grad(loss), (None, 0))(table, wide_ET).reshape(3, -1)
    found = alignment.cross_alignment(
        loss, loss, table, rows_ET, method="factored", strict=True
    ).inner["total"]
    np.testing.assert_allclose(found, grads @ grads.T, rtol=1e-5, atol=1e-6)


def test_defaults_are_those_of_the_docs():
    given = inspect.signature(alignment.alignment).parameters
    assert [given[name].default for name in ("heads", "strict", "chunk_size")] == [False, False, 8]
    given = inspect.signature(alignment.cross_alignment).parameters
    assert [given[name].default for name in ("heads", "strict")] == [False, False]
    assert given["memory_limit"].default == 2 * 1024**3  # two GiB


def test_a_training_loop_traces_once():
    calls, ids = Calls(), np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for step in range(3):
        params = {"w": jnp.full((4, 2), step + 1.0), "b": jnp.ones(1)}
        losses = [_counted(calls, power) for power in (2, 3)]  # new functions at each step
        result = alignment.alignment(*losses, params, examples=ids, method="factored")
        cross = alignment.cross_alignment(*losses, params, ids, method="factored")
        np.testing.assert_allclose(
            jnp.diagonal(cross.inner["total"]), result.inner["total"], rtol=1e-5
        )
        if step == 0:
            traced = len(calls.seen)
    assert 0 < traced == len(calls.seen)
    alignment.alignment(*losses, params, examples=ids[:, None], method="factored")
    assert len(calls.seen) > traced  # another shape


SCALE = 1.0


def _scaled(params, x_I):
    return SCALE * jnp.sum(x_I @ params["w"])


@pytest.mark.parametrize("method", ["direct", "factored"])
@pytest.mark.parametrize("is_cross", [False, True])
def test_a_loss_that_reads_another_value_is_another_loss(method, is_cross, monkeypatch):
    """The function is the same object, as is the closure: JAX alone would reuse its trace."""
    x_EI, params = np.ones((3, 4), np.float32), {"w": jnp.ones((4, 2))}
    scale = 1.0

    def closure(params, x_I):
        return scale * jnp.sum(x_I @ params["w"])

    def total(loss):
        if is_cross:
            found = alignment.cross_alignment(loss, loss, params, x_EI, method=method)
        else:
            found = alignment.alignment(loss, loss, params, examples=x_EI, method=method)
        return np.ravel(found.inner["total"])[0]

    before = total(_scaled), total(closure)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    scale = 3.0
    np.testing.assert_allclose((total(_scaled), total(closure)), np.multiply(9, before))


class Calls:
    """A list that is the same whatever is in it."""

    def __init__(self):
        self.seen = []

    def append(self, x):
        self.seen.append(x)


def test_it_may_be_traced():
    x_EI = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    params = {"w": jnp.ones((4, 2)), "b": jnp.ones(1)}
    losses = [_counted(Calls(), power) for power in (2, 3)]
    for method in ("direct", "factored"):
        want = alignment.alignment(*losses, params, examples=x_EI, method=method).inner

        @jax.jit
        def closed(scale, params, method=method):
            fwd = lambda p, x: scale * losses[0](p, x)  # noqa: E731
            return alignment.alignment(fwd, losses[1], params, examples=x_EI, method=method).inner

        twice = jax.tree.map(lambda x: 2 * x, want)
        chex.assert_trees_all_close(closed(2.0, params), twice, rtol=1e-5)
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), params)
        over_models = jax.vmap(closed, in_axes=(None, 0))(2.0, stacked)
        chex.assert_trees_all_close(
            over_models, jax.tree.map(lambda x: jnp.stack([x, x]), twice), rtol=1e-5
        )


def test_strict_says_what_cannot_be_factored_and_why():
    x_EI = np.ones((3, 4), np.float32)
    loss = _counted(Calls(), 2)
    params = {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"strict: not all .*: b: used by reduce_sum"):
        alignment.alignment(loss, loss, params, examples=x_EI, method="factored", strict=True)
    result = alignment.alignment(loss, loss, params, examples=x_EI, method="factored")
    assert result.direct == ("b",) and result.direct_share == 0.2
    square = lambda p, x: ((x @ p["w"]) ** 2).sum()  # noqa: E731
    how = dict(examples=x_EI, method="factored", strict=True)
    assert alignment.alignment(square, square, {"w": params["w"]}, **how).direct == ()
    with pytest.raises(ValueError, match="strict is of method='factored'"):
        alignment.alignment(square, square, params, examples=x_EI, strict=True)
    with pytest.raises(ValueError, match="strict is of method='factored'"):
        alignment.cross_alignment(square, square, params, x_EI, strict=True)


@pytest.mark.slow
def test_scanned_layers_have_the_blocks_of_others():
    """Stacked or not, by layer, module and role, the same model has the same products."""
    models_of = [_transformer(scan_layers=scanned, num_layers=2) for scanned in (False, True)]
    (plain, params), (scanned, _) = models_of
    stacked = {k: v for k, v in params.items() if not k.startswith("blocks_")}
    layers = [params["blocks_0"], params["blocks_1"]]
    stacked["blocks"] = {"block": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    losses = [_losses(plain), _losses(scanned)]
    for blocks in ("module", "role"):
        want, got = (
            _alignment(*pair, blocks=blocks, method="factored")(p, examples=_examples()).inner
            for pair, p in zip(losses, (params, stacked), strict=True)
        )
        assert got.keys() == want.keys() and len(got) > 3
        scale = max(float(jnp.abs(x).max()) for x in want.values())
        chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6 * scale)


def test_blocks_by_regex_and_by_function():
    params = {f"layer_{n}": {"w": jnp.full(2, n + 1.0), "b": jnp.ones(1)} for n in range(3)}

    def loss(params):
        return sum((leaf**3).sum() for leaf in jax.tree.leaves(params))

    by_regex = alignment.alignment(loss, loss, params, blocks=r"^(layer_[01])/")
    assert set(by_regex.inner) == {"layer_0", "layer_1", "total"}
    by_function = alignment.alignment(loss, loss, params, blocks=lambda path: path.split("/")[0])
    parts = sum(value for name, value in by_function.inner.items() if name != "total")
    chex.assert_trees_all_close(parts, by_function.inner["total"], by_regex.inner["total"])
    chex.assert_trees_all_close(by_function.inner["layer_1"], by_regex.inner["layer_1"])
    for blocks in ("b$|w$", re.compile("b$|w$")):
        whole_match = alignment.alignment(loss, loss, params, blocks=blocks)
        assert set(whole_match.inner) == {"b", "w", "total"}


def test_the_reverse_loss_changes_to_first_order_as_predicted():
    weights = np.random.default_rng(0).normal(size=(2, 4, 3))
    params = {"w": np.random.default_rng(1).normal(size=(4, 3)), "v": np.ones(3)}
    losses = [lambda p, a=a: (jnp.tanh(p["w"] * a) @ p["v"] ** 2).sum() for a in weights]
    with jax.enable_x64(True):
        rates = np.logspace(-4, -2, 5)
        transfer = alignment.first_order_transfer(*losses, params, rates)
        error = np.abs(transfer.predicted - transfer.measured)
    inner = alignment.alignment(*losses, params).inner["total"]
    np.testing.assert_allclose(transfer.predicted, -rates * float(inner), rtol=1e-4)
    slope = np.polyfit(np.log(rates), np.log(error), 1)[0]
    assert abs(slope - 2) < 0.05


def test_a_step_from_bfloat16_is_taken_and_measured_in_float32():
    params = {"w": jnp.linspace(1, 2, 7, dtype=jnp.bfloat16)}
    loss = lambda p: (p["w"] ** 2).sum()  # noqa: E731
    transfer = alignment.first_order_transfer(loss, loss, params, [0.0, 1e-4])
    w = np.asarray(params["w"], np.float64)
    assert transfer.measured[0] == 0
    np.testing.assert_allclose(transfer.measured[1], ((0.9998 * w) ** 2 - w**2).sum(), rtol=1e-2)
    np.testing.assert_allclose(transfer.predicted[1], -1e-4 * (4 * w**2).sum(), rtol=1e-5)


@pytest.mark.parametrize("method", ["direct", "factored"])
def test_every_product_is_of_the_highest_precision(method):
    """Accelerators round the factors of float32 products unless they are told."""
    x_EI, params = np.ones((3, 2, 4), np.float32), {"w": jnp.ones((4, 2))}
    loss = lambda p, x: ((x @ p["w"]) ** 2).sum()  # noqa: E731
    alone = lambda p: loss(p, x_EI[0])  # noqa: E731
    for call in (
        lambda p: alignment.alignment(loss, loss, p, examples=x_EI, method=method),
        lambda p: alignment.cross_alignment(loss, loss, p, x_EI, method=method),
        lambda p: alignment.first_order_transfer(alone, alone, p, [0.1]),
    ):
        text = str(jax.make_jaxpr(call)(params))
        assert "dot_general" in text and "precision=None" not in text
        assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST")


def test_update_ratios_by_hand():
    params = {"a": jnp.array([3.0, 4.0]), "b": {"c": jnp.full(4, 6.0), "d": jnp.array(5.0)}}
    updates = {"a": jnp.array([0.0, -0.5]), "b": {"c": jnp.full(4, 0.3), "d": jnp.array(0.8)}}
    got = alignment.update_ratios(updates, params, blocks="a|b")
    want = {"a": 0.1, "b": np.sqrt(0.36 + 0.64) / 13, "total": np.sqrt(1.25 / (25 + 169))}
    chex.assert_trees_all_close(got, want, rtol=1e-6)
    some = alignment.update_ratios(updates, params, blocks="c$")
    chex.assert_trees_all_close(some, {"c": 0.05, "total": want["total"]}, rtol=1e-6)
    with pytest.raises(ValueError, match="structure"):
        alignment.update_ratios({"a": updates["a"]}, params)


def test_steps_of_two_losses_are_compared_each_with_its_own_numbers():
    """Momentum keeps 0.9 of the gradient before, (1, 0) of a."""
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([2.0])}
    fwd = lambda p: p["a"] @ jnp.array([1.0, 2.0]) + 3 * p["b"][0]  # noqa: E731
    rev = lambda p: 2 * p["a"][0] - p["b"][0]  # noqa: E731
    optimizer, before = (
        optax.sgd(0.1, momentum=0.9),
        {"a": jnp.array([1.0, 0.0]), "b": jnp.zeros(1)},
    )
    _, state = optimizer.update(before, optimizer.init(params))
    found = alignment.compare_steps(fwd, rev, params, optimizer, state)
    want = {
        "cosine/a": 2 / np.sqrt(5 * 4), "cosine/b": -1.0, "cosine/total": -1 / np.sqrt(14 * 5),
        "norm_forward/a": np.sqrt(5), "norm_forward/b": 3.0, "norm_forward/total": np.sqrt(14),
        "norm_inverse/a": 2.0, "norm_inverse/b": 1.0, "norm_inverse/total": np.sqrt(5),
        "update_forward/a": 0.1 * np.sqrt(1.9**2 + 4) / 5, "update_forward/b": 0.3 / 2,
        "update_forward/total": 0.1 * np.sqrt(1.9**2 + 4 + 9) / np.sqrt(29),
        "update_inverse/a": 0.1 * 2.9 / 5, "update_inverse/b": 0.1 / 2,
        "update_inverse/total": 0.1 * np.sqrt(2.9**2 + 1) / np.sqrt(29),
    }  # fmt: skip
    chex.assert_trees_all_close(found, want, rtol=1e-5)
    assert set(alignment.compare_steps(fwd, rev, params, optimizer, state, blocks="b")) == {
        f"{name}/{block}"
        for name in {key.split("/")[0] for key in want}
        for block in ("b", "total")
    }


def test_bad_input():
    params, ints = {"w": jnp.ones(3)}, {"w": jnp.ones(3, jnp.int32)}

    def loss(p, *_):
        return p["w"].sum()

    with pytest.raises(TypeError, match="params: w is int32"):
        alignment.alignment(loss, loss, ints)

    def prints(p, *_):
        jax.debug.print("{}", p["w"])
        return loss(p)

    with pytest.raises(TypeError, match=r"^loss_rev must be a function, got 'loss'"):
        alignment.alignment(loss, "loss", params)
    with pytest.raises(ValueError, match="loss_rev must have no side effects"):
        alignment.alignment(loss, prints, params)
    deleted = {"layer": {"w": jnp.ones(2)}}
    deleted["layer"]["w"].delete()
    with pytest.raises(ValueError, match="params: layer/w was deleted"):
        alignment.alignment(loss, loss, deleted)
    with pytest.raises(ValueError, match="loss_rev must return a scalar"):
        alignment.alignment(loss, lambda p: p["w"], params)
    for bad in (0, -1, 1.5, 2.0, "2"):
        for call in (alignment.alignment, alignment.cross_alignment):
            with pytest.raises(ValueError, match=f"whole number from 1, got {bad!r}"):
                call(loss, loss, params, examples=np.ones(2), chunk_size=bad)
    with pytest.raises(ValueError, match=r"^blocks: '\(' is not a regular expression: missing"):
        alignment.alignment(loss, loss, params, blocks="(")
    with pytest.raises(ValueError, match="blocks matches no parameter"):
        alignment.alignment(loss, loss, params, blocks="nothing")
    with pytest.raises(ValueError, match="pass examples"):
        alignment.alignment(loss, loss, params, method="factored")
    with pytest.raises(ValueError, match="method must be"):
        alignment.alignment(loss, loss, params, method="fast")
    with pytest.raises(ValueError, match="one leading size"):
        alignment.alignment(loss, loss, params, examples={"x": np.ones(3), "y": np.ones(2)})
    with pytest.raises(ValueError, match="no arrays"):
        alignment.alignment(loss, loss, {})
    for examples in (np.ones((0, 3)), 3, [1, 2], {}):
        with pytest.raises(ValueError, match="examples must share"):
            alignment.alignment(loss, loss, params, examples=examples)
    with pytest.raises(ValueError, match="examples_rev must share"):
        alignment.cross_alignment(loss, loss, params, np.ones(2), examples_rev=np.ones((0, 2)))
    with pytest.raises(ValueError, match="loss_fwd must return a float"):
        alignment.alignment(lambda p: jnp.int32(1), loss, params)
    with pytest.raises(ValueError, match="loss_rev must return a scalar"):
        alignment.first_order_transfer(loss, lambda p: p["w"], params, [0.1])
    with pytest.raises(TypeError, match="params: w is int32"):
        alignment.first_order_transfer(loss, loss, ints, [0.1])
    with pytest.raises(ValueError, match="'total' is the name of the sum"):
        alignment.alignment(loss, loss, params | {"total": jnp.ones(2)})


@pytest.mark.parametrize("rates", [-1.0, [0.1, -0.1], np.nan, [np.inf], [], [[0.1]], "0.1", [True]])
def test_rates_of_no_step_are_named(rates):
    loss, params = lambda p: p["w"].sum(), {"w": jnp.ones(3)}
    with pytest.raises(
        ValueError, match="learning_rates must be one or more finite numbers from 0"
    ):
        alignment.first_order_transfer(loss, loss, params, rates)


def test_rates_may_be_one_number_low_precision_or_traced():
    loss, params = lambda p: p["w"].sum(), {"w": jnp.ones(3)}
    transfer = functools.partial(alignment.first_order_transfer, loss, loss, params)
    for found in (transfer(0.5), transfer(jnp.bfloat16([0.5])), jax.jit(transfer)([0.5])):
        np.testing.assert_allclose(found.measured, [-1.5])


@pytest.mark.parametrize("method", ["direct", "factored"])
def test_losses_of_other_arguments_are_named(method):
    params, rows = {"w": jnp.ones(2)}, jnp.ones((4, 2))
    one, two = lambda p: p["w"].sum(), lambda p, x: (p["w"] * x).sum()
    for call in (alignment.alignment, alignment.cross_alignment):
        with pytest.raises(TypeError, match=r"^loss_rev must take \(params, example\): too many"):
            call(two, one, params, examples=rows, method=method)
    for call in (alignment.alignment, lambda *x: alignment.first_order_transfer(*x, [0.1])):
        with pytest.raises(TypeError, match=r"^loss_fwd must take \(params\) where .* missing"):
            call(two, one, params)


@pytest.mark.parametrize("method", ["direct", "factored"])
def test_heads_of_no_attention_are_named(method):
    loss, params, rows = lambda p, x: (x @ p["w"]).sum(), {"w": jnp.ones((2, 1))}, jnp.ones((4, 2))
    for call in (alignment.alignment, alignment.cross_alignment):
        with pytest.raises(ValueError, match=r"heads: no parameter of attention .* such as 'w'"):
            call(loss, loss, params, examples=rows, method=method, heads=True)


@pytest.mark.parametrize("method", ["direct", "factored"])
def test_other_examples_than_one_loss_reads_are_named(method):
    loss, params, rows = lambda p, x: (x @ p["w"]).sum(), {"w": jnp.ones((2, 1))}, jnp.ones((4, 2))
    other = lambda p, x: loss(p, x[0])  # noqa: E731
    for wrong in ((rows, rows), rows.astype(int)):
        with pytest.raises(ValueError, match="examples_rev must have the structure and the dtypes"):
            alignment.cross_alignment(loss, loss, params, rows, examples_rev=wrong, method=method)
    found = alignment.cross_alignment(
        loss, other, params, rows, examples_rev=(rows, rows), method=method
    )
    np.testing.assert_allclose(found.inner["w"], np.full((4, 4), 2.0))


def _mesh_of_x():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]), ("x",))


@pytest.mark.parametrize(
    ("mesh", "error", "said"),
    [
        (lambda: "data", TypeError, r"^mesh must be a jax.sharding.Mesh, got"),
        (lambda: 2, TypeError, r"^mesh must be a jax.sharding.Mesh, got"),
        (_mesh_of_x, ValueError, r"mesh: .* an axis 'data'; this has 'x'"),
    ],
)
@pytest.mark.parametrize("method", ["direct", "factored"])
def test_a_mesh_that_splits_no_batch_is_named(mesh, error, said, method):
    loss, params, rows = lambda p, x: (x @ p["w"]).sum(), {"w": jnp.ones((2, 1))}, jnp.ones((4, 2))
    for call in (alignment.alignment, alignment.cross_alignment):
        with pytest.raises(error, match=said):
            call(loss, loss, params, examples=rows, method=method, mesh=mesh())


def _deleted():
    """A donated array stands beside one that is there."""
    found = {"layer": {"w": jnp.ones((2, 3))}, "x": jnp.ones((2, 3))}
    found["layer"]["w"].delete()
    return found


@pytest.mark.parametrize("method", ["direct", "factored"])
@pytest.mark.parametrize("call", ["alignment", "cross_alignment"])
def test_a_bad_leaf_is_named(call, method):
    loss = lambda p, x: jnp.sum(jax.tree.leaves(x)[0] @ p["w"])  # noqa: E731

    def run(params, examples, **how):
        how = dict(params=params, examples=examples, method=method) | how
        getattr(alignment, call)(loss, loss, **how)

    w, x_EI = {"w": jnp.ones((3, 2))}, np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"^params: layer/w was deleted: it was donated"):
        run(w | _deleted(), x_EI)
    with pytest.raises(ValueError, match=r"^examples: layer/w was deleted: it was donated"):
        run(w, _deleted())
    with pytest.raises(ValueError, match=r"^examples was deleted: it was donated"):
        run(w, _deleted()["layer"]["w"])
    with pytest.raises(TypeError, match=r"^params: name is a str, and no array"):
        run(w | {"name": "first"}, x_EI)
    with pytest.raises(TypeError, match=r"^examples: 1/text is a str, and no array"):
        run(w, [x_EI, {"text": "first"}])
    for bad in (np.array(["first", "last"]), np.array([None, 1])):
        with pytest.raises(TypeError, match=r"^examples: text is an array of .*, and not of num"):
            run(w, {"x": x_EI, "text": bad})
    with pytest.raises(TypeError, match=r"^blocks gives 3 for 'w': a name is a string, or None"):
        run(w, x_EI, blocks=lambda path: 3)
    with pytest.raises(TypeError, match=r"^blocks must be a name, a regex, .*, got 3"):
        run(w, x_EI, blocks=3)
    if call == "cross_alignment":
        with pytest.raises(ValueError, match=r"^examples_rev: layer/w was deleted"):
            run(w, x_EI, examples_rev=_deleted())
        for bad in ("2GB", 0, -5, 1.5):
            with pytest.raises(ValueError, match=f"^memory_limit must be .* from 1, got {bad!r}"):
                run(w, x_EI, memory_limit=bad)


def test_a_donated_leaf_is_named_by_what_takes_no_examples():
    with pytest.raises(ValueError, match=r"^params: layer/w was deleted"):
        alignment.first_order_transfer(jnp.sum, jnp.sum, _deleted(), [0.1])
    there = {"layer": {"w": jnp.ones((2, 3))}, "x": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"^params: layer/w was deleted"):
        alignment.update_ratios(there, _deleted())
    with pytest.raises(ValueError, match=r"^updates: layer/w was deleted"):
        alignment.update_ratios(_deleted(), there)
