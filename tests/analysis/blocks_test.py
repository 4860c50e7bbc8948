import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dirasym.analysis import blocks
from dirasym.analysis.blocks import Blocks


def _params(scanned=False):
    """Two layers, embedding, head and norm: unscanned or scanned, of one meaning."""
    layer = {
        "attention": {"query": {"kernel": jnp.ones((4, 2, 2))}, "out": {"kernel": jnp.ones(4)}},
        "attention_norm": {"scale": jnp.ones(4)},
        "mlp": {"up": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}},
    }
    rest = {"embed": {"embedding": jnp.ones((5, 4))}, "head": {"kernel": jnp.ones((4, 5))}}
    if not scanned:
        return rest | {"blocks_0": layer, "blocks_1": layer}
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), layer)
    return rest | {"blocks": {"block": stacked}}


def _names(params, how):
    return {name for of_leaf in Blocks.of(params, how).names for name in of_leaf}


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ("layer", {"blocks_0", "blocks_1", "embed", "head"}),
        (
            "module",
            {f"blocks_{n}/{x}" for n in (0, 1) for x in ("attention", "attention_norm", "mlp")}
            | {"embed", "head"},
        ),
        ("role", {"storage", "routing", "other"}),
        (r"blocks_\d/(attention|mlp)/|embed|head", {"attention", "mlp", "embed", "head", None}),
        (lambda path: path[:8], {"blocks_0", "blocks_1", "embed/em", "head/ker"}),
    ],
)
def test_names_are_the_same_scanned_or_not(how, want):
    assert _names(_params(), how) == want
    assert _names(_params(scanned=True), how) == want


def test_every_path_is_a_block_and_layers_are_told_apart():
    plain, scanned = Blocks.of(_params(), None), Blocks.of(_params(scanned=True), None)
    assert set(plain.paths) == {name for of_leaf in scanned.names for name in of_leaf}
    assert ("blocks_0/mlp/up/bias", "blocks_1/mlp/up/bias") in scanned.names
    assert "blocks/block/mlp/up/bias" in scanned.paths and sum(scanned.is_stacked) == 5


def test_layers_that_only_the_loss_knows_of_are_told_apart():
    params = {"stack": {"a": {"w": jnp.ones((3, 2))}, "b": jnp.ones((3, 1))}, "c": jnp.ones(3)}
    found = Blocks.of(params, None, scanned=(1, 2))
    by_path = dict(zip(found.paths, found.names, strict=True))
    assert by_path["stack/a/w"] == ("stack_0/a/w", "stack_1/a/w", "stack_2/a/w")
    assert by_path["stack/b"] == ("stack_0/b", "stack_1/b", "stack_2/b")
    assert by_path["c"] == ("c",)


def test_a_layers_number_stands_where_the_paths_of_all_layers_part():
    """Of leaves that the loss alone scans, whatever lies above and below their stack."""

    def names(params):
        count = len(jax.tree.leaves(params))
        return {x[1] for x in Blocks.of(params, None, scanned=range(count)).names}

    w, b = jnp.ones((2, 2)), jnp.ones((2, 1))
    stack = {"a": {"w": w}, "b": b}
    assert names({"net": {"stack": stack}}) == {"net/stack_1/a/w", "net/stack_1/b"}
    assert names({"net": {"stack": {"w": w}}}) == {"net/stack_1/w"}
    assert names({"net": {"one": {"w": w}, "other": {"w": w}}}) == {
        "net_1/one/w",
        "net_1/other/w",
    }
    assert names({"w": w}) == {"w_1"} and names({"w": w, "v": w}) == {"w_1", "v_1"}


def test_sums_go_to_the_layer_they_belong_to():
    found = Blocks.of({"blocks": {"block": {"w": jnp.ones((3, 2))}}, "head": jnp.ones(3)}, "layer")
    got = found.sum([jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[8.0]])])
    want = {"blocks_0": 1.0, "blocks_1": 2.0, "blocks_2": 4.0, "head": 8.0, "total": 15.0}
    chex.assert_trees_all_close(got, {name: jnp.array([x]) for name, x in want.items()})


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("blocks_3/attention/query/kernel", "routing"),
        ("blocks_3/attention/query/bias", "routing"),
        ("model/layers/3/self_attn/k_proj/weight", "routing"),
        ("model/layers/3/self_attn/o_proj/weight", "storage"),
        ("lora/blocks_0/attention/value/b", "storage"),
        ("blocks_0/attention/query_norm/scale", "other"),
        ("layers/0/mlp/down/kernel/value", "storage"),
        ("blocks_0/mlp_norm/scale", "other"),
        ("head/kernel", "other"),
        ("attention/linear/w", "storage"),  # Haiku
        ("transformer/~/mha/query/w", "routing"),
        ("h/0/attn/c_proj/weight", "storage"),  # GPT-2
        ("h/0/attn/c_attn/weight", "other"),
        ("h/0/mlp/c_proj/bias", "storage"),
        ("h/0/ln_1/weight", "other"),
        ("encoder/layer/0/attention/self/key/bias", "routing"),  # BERT
        ("encoder/layer/0/attention/output/dense/kernel", "storage"),
        ("encoder/layer/0/attention/output/LayerNorm/scale", "other"),
        ("encoder/layer/0/intermediate/dense/kernel", "storage"),
        ("encoder/layer/0/output/dense/kernel", "storage"),
        ("embeddings/word_embeddings/embedding", "other"),
        ("layers/0/attention/wq", "routing"),
        ("layers/0/attention/wo/weight", "storage"),
        ("blocks/0/attn/W_K", "routing"),
        ("blocks/0/attn/qkv/weight", "other"),
        ("blocks/0/attn/proj/weight", "storage"),
        ("layers/0/q_proj/kernel", "routing"),  # without a word of attention
        ("layers/0/o_proj/kernel", "storage"),
        ("c_proj/w", "other"),
    ],
)
def test_roles(path, want):
    assert blocks.role(path) == want


def _haiku():
    haiku = pytest.importorskip("haiku")

    def attend(x):
        return haiku.MultiHeadAttention(2, 4, w_init_scale=1.0)(x, x, x)

    return haiku.transform(attend).init(jax.random.key(0), jnp.ones((1, 3, 8)))


def _equinox():
    equinox = pytest.importorskip("equinox")
    made = equinox.nn.MultiheadAttention(2, 8, use_query_bias=True, key=jax.random.key(0))
    return {"attn": equinox.filter(made, equinox.is_inexact_array)}


ATTENTIONS = {
    "linen": lambda: nn.MultiHeadDotProductAttention(2).init(
        jax.random.key(0), jnp.ones((1, 3, 8))
    ),
    "linen alone": lambda: {
        "mha": nn.MultiHeadDotProductAttention(2).init(jax.random.key(0), jnp.ones((1, 3, 8)))
    },
    "nnx": lambda: {
        "attn": nnx.to_pure_dict(
            nnx.state(nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), nnx.Param)
        )
    },
    "haiku": _haiku,
    "equinox": _equinox,
}


def test_a_norm_inside_an_attention_is_no_projection_however_deep():
    inside = "attention/query_norm/scale", "net/layers_0/attn/norm/scale", "norm/attn/query/kernel"
    assert not any(map(blocks.is_attention, inside))
    assert blocks.is_attention("net/layers_0/attn/query/kernel")


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_parameter_of_an_attention_has_a_role(name):
    params = ATTENTIONS[name]()
    params = {"MultiHeadDotProductAttention_0": params["params"]} if name == "linen" else params
    paths = Blocks.of(params, None).paths
    roles = {path: blocks.role(path) for path in paths}
    assert all(map(blocks.is_attention, paths))
    assert {"storage", "routing"} == set(roles.values()), roles
    queries_and_keys = {path for path in paths if "query" in path or "key" in path}
    assert {path for path, role in roles.items() if role == "routing"} == queries_and_keys


def test_a_regex_drops_nothing_that_it_matches():
    params = {"attention": jnp.ones(1), "embed": jnp.ones(1), "head": jnp.ones(1)}
    assert _names(params, "(attention|mlp)|embed|head") == {"attention", "embed", "head"}
    assert _names(params, re.compile("(?:att(en)tion)|(h)ead")) == {"en", "h", None}


def test_bad_blocks():
    for how, reason in (
        ("nothing", "no parameter"),
        ("x?", "'' is no name"),
        (lambda _: "total", "'total'"),
    ):
        with pytest.raises(ValueError, match=f"blocks.*{reason}"):
            Blocks.of({"w": jnp.ones(2)}, how)


@pytest.mark.parametrize(
    ("path", "ndim", "want"),
    [
        ("attention/query/kernel", 3, -2),  # [width, heads, head width]
        ("attention/value/bias", 2, -2),
        ("attention/query/kernel", 2, None),  # heads and their widths are one axis
        ("attention/value/bias", 1, None),
        ("attention/out/kernel", 3, -3),  # [heads, head width, width]
        ("attention/out/kernel", 2, None),
        ("attention/out/bias", 1, None),
        ("attention/query_norm/scale", 1, None),
        ("mlp/up/kernel", 3, None),
    ],
)
def test_heads_have_their_axis(path, ndim, want):
    assert blocks.head_axis(f"blocks_0/{path}", ndim) == want
