"""What the models of other makers need: windows, post-norm, kinds of tokens, shifted logits."""

import dataclasses
import functools
import json
import pathlib
import shutil

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import members
import numpy as np
import pytest

from dirasym import models
from dirasym.analysis import alignment, attention
from dirasym.models import token_table

safetensors_numpy = pytest.importorskip("safetensors.numpy")
FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
NAMES = ["mistral", "qwen3", "dream", "bert", "roberta", "modernbert"]
TOKENS = np.random.default_rng(0).integers(0, 23, (3, 9)).astype(np.int32)


@functools.cache
def _load(name):
    model, params = models.load_pretrained(FIXTURES / name)
    return model, params, jax.jit(functools.partial(models.make_apply_fn(model), params))


@pytest.mark.parametrize("name", members.quick(NAMES, ["bert", "modernbert"]))
def test_rows_are_those_of_the_whole(name):
    _, _, apply_fn = _load(name)
    whole = apply_fn(TOKENS)
    rows = np.array([0, 5, 9, 17, 26, 18])
    chex.assert_trees_all_close(
        apply_fn(TOKENS, rows_R=rows), whole.reshape(27, -1)[rows], atol=1e-5
    )
    if name not in ("mistral", "bert"):
        return
    scanned, stacked = models.load_pretrained(FIXTURES / name, scan_layers=True)
    got = jax.jit(models.make_apply_fn(scanned))(stacked, TOKENS, rows_R=rows)
    chex.assert_trees_all_close(got, whole.reshape(27, -1)[rows], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_on_either_side_changes_nothing(name):
    _, _, apply_fn = _load(name)
    whole = np.asarray(apply_fn(TOKENS[:, :6]))
    for place in (slice(0, 6), slice(3, 9)):
        tokens, valid = np.full((3, 9), 7), np.zeros((3, 9), bool)
        tokens[:, place], valid[:, place] = TOKENS[:, :6], True
        np.testing.assert_allclose(apply_fn(tokens, valid_BL=valid)[:, place], whole, atol=1e-5)
        rows = np.flatnonzero(valid)[::2]
        got = apply_fn(tokens, valid_BL=valid, rows_R=rows)
        np.testing.assert_allclose(got, whole.reshape(18, -1)[::2], atol=1e-5)


@pytest.mark.parametrize("name", ["mistral", "qwen3"])
def test_a_cache_gives_the_whole(name):
    model, params, apply_fn = _load(name)
    whole, cache, valid = apply_fn(TOKENS), {}, np.ones((3, 9), bool)
    extend = jax.jit(models.make_extend_fn(model))
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        got, cache = extend(params, cache, TOKENS[:, start:stop], start, valid)
        chex.assert_trees_all_close(got, whole[:, start:stop], atol=1e-5)


def _sees(apply_fn, query, length=9):
    """Which tokens the logits of a position depend on."""
    base = apply_fn(TOKENS[:1, :length])[0, query]
    seen = []
    for place in range(length):
        other = TOKENS[:1, :length].copy()
        other[0, place] = (other[0, place] + 1) % 23
        if not np.allclose(apply_fn(other)[0, query], base, atol=1e-6):
            seen.append(place)
    return seen


@pytest.mark.parametrize(
    ("causal", "want"), [(True, [2, 3, 4]), (False, [2, 3, 4, 5, 6])], ids=["causal", "both"]
)
def test_a_window_reads_positions_nearer_than_it(causal, want):
    config = models.llama(
        23, num_layers=1, width=8, num_heads=2, num_kv_heads=2, mlp_width=8, rope_scaling=None,
        causal=causal, window=3, max_len=16,
    )  # fmt: skip
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    apply_fn = jax.jit(functools.partial(models.make_apply_fn(model), params))
    assert _sees(apply_fn, 4) == want
    two = models.Transformer(dataclasses.replace(config, num_layers=2, window_layers=(1,)))
    params = jax.jit(two.init)(jax.random.key(0), TOKENS)["params"]
    apply_fn = jax.jit(functools.partial(models.make_apply_fn(two), params))
    assert _sees(apply_fn, 4) == list(range(5 if causal else 9))  # the first layer has none


@pytest.mark.parametrize("name", ["mistral", "modernbert"])
def test_a_window_does_not_count_padding(name):
    """Prompts are filled up before what is generated, so that padding may stand in the middle."""
    model, params, apply_fn = _load(name)
    is_there = np.isin(np.arange(13), [0, 1, 2, 7, 8, 9, 10, 11, 12])
    tokens, valid = np.full((2, 13), 5), np.tile(is_there, (2, 1))
    tokens[:, is_there] = TOKENS[:2, :9]
    want = apply_fn(TOKENS[:2, :9])
    got = apply_fn(tokens, valid_BL=valid)[:, is_there]
    chex.assert_trees_all_close(got, want, atol=1e-5)
    rows = np.flatnonzero(valid)
    got = apply_fn(tokens, valid_BL=valid, rows_R=rows).reshape(want.shape)
    chex.assert_trees_all_close(got, want, atol=1e-5)
    if model.config.causal:
        extend = models.make_extend_fn(model)
        _, cache = extend(params, {}, tokens[:, :7], 0, valid)
        got, _ = extend(params, cache, tokens[:, 7:], 7, valid)
        chex.assert_trees_all_close(got, want[:, 3:], atol=1e-5)


def test_shifted_logits_are_read_where_the_token_before_stands():
    model, params, apply_fn = _load("dream")
    plain = models.Transformer(dataclasses.replace(model.config, shift_logits=False))
    whole = jax.jit(models.make_apply_fn(plain))(params, TOKENS)
    got = apply_fn(TOKENS)
    chex.assert_trees_all_close(got[:, 1:], whole[:, :-1], atol=1e-5)
    chex.assert_trees_all_close(got[:, 0], whole[:, 0], atol=1e-5)


def test_kinds_of_tokens_are_the_first_when_not_told():
    model, params, apply_fn = _load("bert")
    told = functools.partial(jax.jit(model.apply), {"params": params}, TOKENS)
    chex.assert_trees_all_close(told(types_BL=jnp.zeros_like(TOKENS)), apply_fn(TOKENS), atol=1e-6)
    assert np.abs(told(types_BL=jnp.ones_like(TOKENS)) - apply_fn(TOKENS)).max() > 1e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(window=0), "window must be positive"),
        (dict(window_layers=(0,)), "window_layers .0,. are not layers of 2 with a window"),
        (dict(window=2, window_layers=(2,)), "window_layers .2,. are not layers of 2"),
        (dict(window=2, window_layers=(1,), scan_layers=True), "layers that are alike"),
        (dict(embed_norm=True, scan_layers=True), "layers that are alike"),
        (dict(shift_logits=True), "shift_logits needs causal=False"),
        (dict(norm_place="middle"), "norm_place must be one of"),
        (dict(mlp="relu"), "mlp must be one of"),
    ],
)
def test_configurations_that_cannot_be_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        models.TransformerConfig(5, num_layers=2, width=4, num_heads=1, causal=True, **fields)


def test_what_says_nothing_of_a_window_is_left_out():
    config = functools.partial(
        models.TransformerConfig, 5, num_layers=2, width=4, num_heads=1, causal=True
    )
    assert config(window=3, window_layers=(1, 0, 1)) == config(window=3)
    assert config(window=3, window_layers=(), window_rope_base=5.0) == config()
    assert config(window=3, window_rope_base=10_000.0) == config(window=3)
    assert not token_table.is_exact(config(window=3))


@pytest.mark.parametrize("name", ["qwen3", "bert", "modernbert"])
def test_the_token_table_reads_norms_and_refuses_the_rest(name):
    model, _, _ = _load(name)
    fields = dict(num_layers=1, max_len=None, window=None, window_layers=None)
    config = (
        dataclasses.replace(model.config, **fields, vocab_size=4)
        if name == "qwen3"
        else model.config
    )
    one = models.Transformer(config)
    if name != "qwen3":
        with pytest.raises(ValueError, match="a table needs one layer"):
            token_table.make_apply_fn(one)
        return
    tokens, rows = TOKENS % 4, np.array([0, 4, 8, 20])
    params = jax.jit(one.init)(jax.random.key(0), tokens)["params"]
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    params = unravel(flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape))
    got = jax.jit(token_table.make_apply_fn(one))(params, tokens, rows_R=rows)
    want = jax.jit(models.make_apply_fn(one))(params, tokens, rows_R=rows)
    chex.assert_trees_all_close(got, want, atol=1e-4)


def _copy(name, tmp_path, edit):
    directory = tmp_path / name
    shutil.copytree(FIXTURES / name, directory)
    tensors = safetensors_numpy.load_file(directory / "model.safetensors")
    edit(tensors)
    safetensors_numpy.save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_accounted_for_by_name(name, tmp_path):
    keys = sorted(safetensors_numpy.load_file(FIXTURES / name / "model.safetensors"))
    for number, key in enumerate(keys[:: len(keys) // 6]):
        directory = _copy(name, tmp_path / f"{number}", lambda x, key=key: x.pop(key))
        with pytest.raises(ValueError, match=f"missing key {key}"):
            models.load_pretrained(directory)
    directory = _copy(name, tmp_path, lambda x: x.update({"model.layers.0.odd": np.ones(3)}))
    with pytest.raises(ValueError, match=r"unknown key model\.layers\.0\.odd"):
        models.load_pretrained(directory)
    shutil.rmtree(directory)
    directory = _copy(name, tmp_path, lambda x: x.update({keys[3]: x[keys[3]][..., :2]}))
    with pytest.raises(ValueError, match=f"{keys[3]} has shape"):
        models.load_pretrained(directory)


def test_old_names_other_heads_and_a_repeated_head_of_bert(tmp_path):
    def edit(tensors):
        for key in [key for key in tensors if "LayerNorm" in key]:
            old = key.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[old] = tensors.pop(key)
        zeros = np.zeros((16, 16), np.float32)
        tensors["bert.pooler.dense.weight"], tensors["bert.pooler.dense.bias"] = zeros, zeros[0]
        tensors["cls.seq_relationship.weight"] = zeros[:2]
        tensors["cls.seq_relationship.bias"] = zeros[0, :2]
        tensors["bert.embeddings.position_ids"] = np.arange(40)[None]
        tensors["cls.predictions.decoder.weight"] = tensors[
            "bert.embeddings.word_embeddings.weight"
        ]
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]

    directory = _copy("bert", tmp_path, edit)
    _, params = models.load_pretrained(directory)
    chex.assert_trees_all_equal(params, _load("bert")[1])
    path = directory / "model.safetensors"
    for key, what in (("decoder.bias", "the bias"), ("decoder.weight", "the embedding")):
        tensors = safetensors_numpy.load_file(path)
        changed = {f"cls.predictions.{key}": tensors[f"cls.predictions.{key}"] + 1}
        safetensors_numpy.save_file(tensors | changed, path)
        with pytest.raises(ValueError, match=f"{key} differs from {what} that it is tied to"):
            models.load_pretrained(directory)
        safetensors_numpy.save_file(tensors, path)


def test_a_model_made_here_is_saved_under_the_type_that_computes_it(tmp_path):
    for name in NAMES:
        model, params, _ = _load(name)
        nameless = dataclasses.replace(model.config, model_type=None)
        models.save_pretrained(tmp_path / name, models.Transformer(nameless), params)
        fields = json.loads((tmp_path / name / "config.json").read_text())
        assert fields["model_type"].lower() == name
        assert models.load_pretrained(tmp_path / name)[0].config == model.config


def test_special_ids_that_change_the_computation_are_refused(tmp_path):
    model, params, _ = _load("roberta")
    with pytest.raises(ValueError, match="roberta has max_len=36, the model 38"):
        models.save_pretrained(tmp_path / "out", model, params, more_fields={"pad_token_id": 3})
    assert not (tmp_path / "out").exists()


def test_modernbert_of_transformers_4_reads_the_same(tmp_path):
    directory = tmp_path / "old"
    shutil.copytree(FIXTURES / "modernbert", directory)
    fields = json.loads((directory / "config.json").read_text())
    del fields["layer_types"], fields["rope_parameters"]
    old = dict(global_rope_theta=160_000.0, local_rope_theta=10_000.0, layer_norm_eps=1e-5)
    old |= dict(global_attn_every_n_layers=3, position_embedding_type="absolute")
    for more, base in ((old, 10_000.0), (old | {"local_rope_theta": None}, None), ({}, 10_000.0)):
        (directory / "config.json").write_text(json.dumps(fields | more))
        config = models.load_pretrained(directory)[0].config
        assert config == dataclasses.replace(_load("modernbert")[0].config, window_rope_base=base)


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_read_in_every_layer(name):
    """Softmaxed weights add up, within the window of a layer; and they are what `context` sums."""
    model, params, _ = _load(name)
    c = model.config
    sown = jax.jit(models.make_internals_fn(model))(params, TOKENS)
    assert sown["scores"].shape == (c.num_layers, 3, c.num_heads, 9, 9)
    np.testing.assert_allclose(sown["weights"].sum(-1), 1, atol=1e-5)
    distance = np.subtract.outer(np.arange(9), np.arange(9))
    for layer in range(c.num_layers):
        read = np.asarray(sown["weights"][layer]).max(axis=(0, 1)) > 0
        far = (np.abs(distance) >= c.window) if c.has_window(layer) else np.zeros((9, 9), bool)
        np.testing.assert_array_equal(read, ~far & ((distance >= 0) | (not c.causal)))


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_the_mechanism_is_read_with_and_without_rope(name):
    model, params, _ = _load(name)
    internals = models.make_internals_fn(model)
    names = [[n] for n in range(3, 12)]
    found = attention.name_correlation(
        internals, params, names, 3, mask_id=22, fill_id=0, resamples=20
    )
    c = model.config
    assert found.mean.shape == (c.num_layers, c.num_heads, 5)
    assert np.isfinite(found.mean).all() and (np.abs(found.mean) <= 1 + 1e-9).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3"])
def test_gradients_are_compared_by_factors_and_whole(name):
    model, params, _ = _load(name)
    apply_fn = models.make_apply_fn(model)

    def loss(place):
        def one(params, tokens_L):
            hidden_L = jnp.where(jnp.arange(9) == place, 22, tokens_L)
            logits_V = apply_fn(params, hidden_L[None])[0, place]
            return -jax.nn.log_softmax(logits_V)[tokens_L[place]]

        return one

    def compared(method):
        return jax.jit(
            lambda params: alignment.alignment(
                loss(2), loss(6), params, blocks=r"(blocks_\d+|\w*embed|head_\w+)",
                examples=TOKENS, method=method,
            )
        )(params)  # fmt: skip

    whole, factored = compared("direct"), compared("factored")
    chex.assert_trees_all_close(whole.inner, factored.inner, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(whole.cosine, factored.cosine, rtol=1e-3, atol=1e-4)
    assert {"embed", "blocks_0", "blocks_1"} <= whole.cosine.keys()
    assert len(factored.direct) < len(whole.direct)
