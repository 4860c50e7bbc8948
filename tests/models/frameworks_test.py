"""One network in five frameworks: trained, saved, resumed and asked as any other model."""

import dataclasses
import functools
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest
from flax import nnx

from dirasym import models, objectives, rows
from dirasym.checkpoints import Checkpoints
from dirasym.compile import compile_step
from dirasym.data.pairs import Pairs
from dirasym.data.tokenizers import Words
from dirasym.measuring import measure
from dirasym.models import frameworks
from dirasym.training import create_state, train_step
from dirasym.types import Batch

VOCAB, WIDTH, MASK = 11, 8, 10
TOKENS = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [2, 4, 6, 8]])
KEY = jax.random.key(0)


def _mean_so_far(x_BLD):
    count = jnp.arange(1, x_BLD.shape[-2] + 1)
    return jnp.cumsum(x_BLD, axis=-2) / count.reshape((1,) * (x_BLD.ndim - 2) + (-1, 1))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, tokens, deterministic: bool, *, noise_B=None):
        x = _mean_so_far(nn.Embed(VOCAB, WIDTH, name="embed")(tokens))
        x = nn.Dropout(0.5)(x, deterministic=deterministic)
        return nn.Dense(VOCAB, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(WIDTH, VOCAB, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, tokens, noise=None):
        return self.layers[0](self.dropout(_mean_so_far(self.embed(tokens))))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Plain:
    embed: jax.Array
    head: jax.Array


def _plain(params, tokens_BL):
    return _mean_so_far(params.embed[tokens_BL]) @ params.head


def _linen():
    model = Linen()
    variables = model.init(KEY, jnp.asarray(TOKENS), True)
    apply_fn, params = frameworks.from_linen(
        model, variables, deterministic=True, when_training=dict(deterministic=False)
    )
    return apply_fn, params, lambda tokens: model.apply(variables, tokens, True)


def _nnx():
    model = Nnx(nnx.Rngs(0))
    apply_fn, params = frameworks.from_nnx(model, keywords={"noise_B": "noise"})
    model.eval()
    return apply_fn, params, model


def _equinox():
    eqx = pytest.importorskip("equinox")

    class Equinox(eqx.Module):
        embed: eqx.nn.Embedding
        head: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        activation: object = jax.nn.relu  # a leaf that is no array

        def __init__(self, key):
            keys = jax.random.split(key)
            self.embed = eqx.nn.Embedding(VOCAB, WIDTH, key=keys[0])
            self.head = eqx.nn.Linear(WIDTH, VOCAB, key=keys[1])
            self.dropout = eqx.nn.Dropout(0.5)

        def __call__(self, tokens, noise_B=None, key=None):
            return jax.vmap(self.head)(
                self.dropout(_mean_so_far(jax.vmap(self.embed)(tokens)), key=key)
            )

    model = Equinox(KEY)
    apply_fn, params = frameworks.from_equinox(model)
    return apply_fn, params, jax.vmap(eqx.nn.inference_mode(model))


def _haiku():
    hk = pytest.importorskip("haiku")

    def forward(tokens, is_training=False, noise=None):
        x = _mean_so_far(hk.Embed(VOCAB, WIDTH, name="embed")(tokens))
        x = hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x
        return hk.Linear(VOCAB, name="head")(x)

    model = hk.transform(forward)
    params = model.init(KEY, TOKENS)
    apply_fn, params = frameworks.from_haiku(
        model, params, keywords={"noise_B": "noise"}, when_training=dict(is_training=True)
    )
    return apply_fn, params, lambda tokens: model.apply(params, None, tokens)


def _of_plain():
    keys = jax.random.split(KEY)
    params = Plain(
        jax.random.normal(keys[0], (VOCAB, WIDTH)), jax.random.normal(keys[1], (WIDTH, VOCAB))
    )
    return _plain, params, functools.partial(_plain, params)


MODELS = {"linen": _linen, "nnx": _nnx, "equinox": _equinox, "haiku": _haiku, "plain": _of_plain}
OBJECTIVES = {
    "masked": functools.partial(objectives.masked_diffusion, mask_id=MASK),
    "causal": objectives.next_token,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_itself_and_drops_out_with_a_key_alone(name):
    apply_fn, params, own = MODELS[name]()
    tokens = jnp.asarray(TOKENS)
    logits = rows.call(apply_fn, params, tokens, noise_B=jnp.ones(3))
    np.testing.assert_allclose(logits, own(tokens), rtol=1e-6, atol=1e-6)
    some = rows.call(apply_fn, params, tokens, rows_R=jnp.array([5, 0, 12]))
    np.testing.assert_allclose(some[:2], logits.reshape(-1, VOCAB)[jnp.array([5, 0])])
    if name != "plain":
        dropped = [
            rows.call(apply_fn, params, tokens, rngs={"dropout": jax.random.key(seed)})
            for seed in (1, 1, 2)
        ]
        chex.assert_trees_all_equal(dropped[0], dropped[1])
        assert not np.allclose(dropped[0], dropped[2])
        assert not np.allclose(dropped[0][0], dropped[0][1])
        assert rows.takes(apply_fn, "noise_B") and not rows.takes(apply_fn, "valid_BL")


@pytest.mark.parametrize("kind", members.quick(OBJECTIVES, ["masked"]))
@pytest.mark.parametrize("name", MODELS)
def test_it_trains_is_saved_and_goes_on_where_it_was(name, kind, tmp_path):
    apply_fn, params, _ = MODELS[name]()
    step = compile_step(functools.partial(train_step, objective=OBJECTIVES[kind], ema_decay=0.9))
    batch = Batch.of(TOKENS)
    state = start = create_state(apply_fn, params, optax.adam(0.05), KEY, ema=True)
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    saved = Checkpoints(tmp_path / "run")
    saved.save(3, state, {})
    later, _ = step(state, batch)
    _, restored, _ = saved.restore(start)
    saved.close()
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal(step(restored, batch)[0], later)
    assert jax.tree.structure(later.params) == jax.tree.structure(params)
    many = Batch.of(np.tile(TOKENS, (32, 1)))  # of as many noise levels
    fixed = [OBJECTIVES[kind](apply_fn, x.params, many, KEY)[0] for x in (start, later)]
    assert np.isfinite(losses).all() and fixed[1] < fixed[0]


@pytest.mark.parametrize("kind", members.quick(OBJECTIVES, ["masked"]))
@pytest.mark.parametrize("name", MODELS)
def test_it_is_read_by_measure(name, kind):
    apply_fn, params, _ = MODELS[name]()
    pairs = Pairs((("a", "b"), ("c", "d")), "{a} begot {b}", "{b} is of {a}")
    words = Words(pairs.fact_set().texts())
    assert words.vocab_size <= VOCAB
    blocks = "layer" if name in ("equinox", "plain") and kind == "causal" else None
    reading = measure(apply_fn, params, pairs, words, kind=kind, blocks=blocks, progress=False)
    if blocks is not None:
        assert set(reading.alignment.norm_fwd) == {"embed", "head", "total"}
        assert reading.alignment.cosine["total"].estimate < 1
    assert (reading.kind, reading.forward.count, reading.reverse.count) == (kind, 2, 2)
    (prompt,) = words.encode(["a begot"])
    masks = [words.mask_id] * 2 * (kind == "masked")
    logits = rows.call(apply_fn, params, jnp.array([[*prompt, *masks]]))[0, 1 + bool(masks)]
    if masks:
        logits = logits.at[words.mask_id].set(-jnp.inf)
    want = jax.nn.softmax(logits)[words.encode(["b"])[0][0]]
    np.testing.assert_allclose(reading.forward.asked[0].p_true, want, rtol=1e-5)


def test_a_state_is_read_after_the_step_that_it_was_given_to():
    apply_fn, params, _ = MODELS["plain"]()
    state = create_state(apply_fn, params, optax.sgd(0.1), KEY)
    step = compile_step(functools.partial(train_step, objective=OBJECTIVES["causal"]))
    after, _ = step(state, Batch.of(TOKENS))
    before, now, given = (np.asarray(x.embed) for x in (state.params, after.params, params))
    assert not np.allclose(before, now)
    np.testing.assert_array_equal(before, given)


def test_the_noise_level_reaches_a_model_that_asks_for_it():
    """The logits say which level was given: nll = log(1 + e^-λ) at two tokens."""

    def apply_fn(params, tokens_BL, *, noise_B):
        told_BLV = jnp.stack([noise_B, jnp.zeros_like(noise_B), jnp.full_like(noise_B, 50.0)], -1)
        return jnp.broadcast_to(told_BLV[:, None], (*tokens_BL.shape, 3))

    batch = Batch.of(np.zeros((64, 5), int))
    for weighting in ("lambda", "k"):
        objective = functools.partial(
            objectives.masked_diffusion, mask_id=2, weighting=weighting, stratified=False
        )
        total, _, _ = objective(apply_fn, {}, batch, KEY)
        keys_B = objectives.example_keys(batch, KEY)
        uniform_B, place_BL = objectives.uniforms(batch, keys_B)
        masked_BL, weight_B, level_B = objectives.corrupt(
            uniform_B, place_BL, jnp.ones((64, 5), bool), weighting=weighting
        )
        want = jnp.sum(weight_B * masked_BL.sum(axis=1) * jnp.log1p(jnp.exp(-level_B)))
        np.testing.assert_allclose(total, want, rtol=1e-5)
    total, count, _ = objectives.masked_lm(
        apply_fn, {}, batch, KEY, mask_id=2, rate=0.4, keep=0.5, random=0.0
    )
    np.testing.assert_allclose(total / count, np.log1p(np.exp(-0.4)), rtol=1e-5)
    total, *_ = objectives.parallel_target(apply_fn, {}, batch, mask_id=2)
    np.testing.assert_allclose(total, batch.tokens_BL.size * np.log1p(np.exp(-1.0)), rtol=1e-5)
    total, count, _ = objectives.any_order(apply_fn, {}, batch, KEY, mask_id=2)
    shares = np.arange(1, 6) / 5
    np.testing.assert_allclose(total / count, np.log1p(np.exp(-shares)).sum(), rtol=1e-5)
    with pytest.raises(TypeError, match="apply_fn needs noise_B, which is not given here"):
        objectives.next_token(apply_fn, {}, batch)


def test_shifted_logits_stand_where_they_predict():
    def says(params, tokens_BL, *, valid_BL=None):
        return jax.nn.one_hot(tokens_BL, 9)

    tokens = jnp.array([[3, 4, 5, 6], [1, 2, 7, 8]])
    shifted = frameworks.shift_logits(says)
    ids = shifted({}, tokens).argmax(axis=-1)
    np.testing.assert_array_equal(ids, [[3, 3, 4, 5], [1, 1, 2, 7]])
    left = jnp.array([[1, 1, 1, 1], [0, 0, 1, 1]], bool)
    ids = rows.call(shifted, {}, tokens, valid_BL=left).argmax(axis=-1)
    np.testing.assert_array_equal(ids, [[3, 3, 4, 5], [1, 2, 7, 7]])
    some = rows.call(shifted, {}, tokens, rows_R=jnp.array([6, 1, 4, 8]))
    np.testing.assert_array_equal(some.argmax(axis=-1)[:3], [2, 3, 1])
    picks = frameworks.shift_logits(
        lambda params, tokens_BL, *, rows_R: jax.nn.one_hot(
            tokens_BL.reshape(-1).at[rows_R].get(mode="fill", fill_value=0), 9
        )
    )
    some = rows.call(picks, {}, tokens, rows_R=jnp.array([6, 1, 4, 8]))
    np.testing.assert_array_equal(some.argmax(axis=-1), [2, 3, 1, 0])


def test_names_that_cannot_be_are_named():
    model = Linen()
    variables = model.init(KEY, jnp.asarray(TOKENS), True)
    with pytest.raises(ValueError, match="'valid' is none of valid_BL"):
        frameworks.from_linen(model, variables, keywords={"valid": "mask"})
    with pytest.raises(ValueError, match="the model takes no 'mask' for valid_BL"):
        frameworks.from_linen(model, variables, keywords={"valid_BL": "mask"})
    with pytest.raises(TypeError, match="has padding"):
        rows.call(
            *frameworks.from_linen(model, variables, deterministic=True),
            jnp.asarray(TOKENS),
            valid_BL=jnp.ones((3, 4), bool),
        )


def _dense():
    model = nn.Dense(VOCAB)
    return model, model.init(KEY, jnp.ones((1, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: frameworks.from_linen(_mean_so_far, {}),
            "from_linen takes a linen module",
        ),
        (lambda: frameworks.from_linen(Linen, {}), r"\(nn\.Module\), got <class"),
        (lambda: frameworks.from_linen(nn.Dense(3), None), "variables must be what model.init"),
        (lambda: frameworks.from_linen(*_dense(), train=False), "the module takes no 'train'"),
        (
            lambda: frameworks.from_linen(*_dense(), when_training=dict(train=True)),
            "from_linen: the module takes no 'train'",
        ),
        (
            lambda: frameworks.from_linen(Linen(), {}),
            r"needs 'deterministic': pass it, as from_linen\(\.\., deterministic=\.\.\)",
        ),
        (lambda: frameworks.from_nnx(Linen()), "from_nnx takes an nnx.Module, got Linen"),
        (lambda: frameworks.from_nnx(3), "from_nnx takes an nnx.Module, got 3"),
        (lambda: frameworks.from_nnx(Nnx(nnx.Rngs(0)), train=1), "the module takes no 'train'"),
    ],
)
def test_what_is_no_module_of_the_framework_is_refused_at_once(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_what_is_no_module_of_equinox_is_refused_at_once():
    eqx = pytest.importorskip("equinox")
    for model in (3, _plain, Plain(1, 2), Linen()):
        with pytest.raises(TypeError, match="from_equinox takes an Equinox module"):
            frameworks.from_equinox(model)
    with pytest.raises(TypeError, match="from_equinox: the module takes no 'train'"):
        frameworks.from_equinox(eqx.nn.Linear(3, VOCAB, key=KEY), train=False)


def test_what_is_no_transformed_function_of_haiku_is_refused_at_once():
    hk = pytest.importorskip("haiku")
    for model in (3, _plain, Linen):
        with pytest.raises(TypeError, match=r"from_haiku takes what hk\.transform returns"):
            frameworks.from_haiku(model, {})
    with pytest.raises(TypeError, match=r"params must be what transformed\.init returns, got None"):
        frameworks.from_haiku(hk.transform(_mean_so_far), None)


def test_parameters_that_cannot_be_trained_are_named():
    for leaf, found in ((jnp.arange(3), "int32"), (jax.nn.relu, "function|jitted|PjitFunction")):
        with pytest.raises(TypeError, match=rf"params: head/w is ({found}|.*); gradients need"):
            create_state(_plain, {"head": {"w": leaf}}, optax.sgd(0.1), KEY)


PAIRS = Pairs((("Ann", "Bo"), ("Cy", "Dee")), "{a} begot {b}", "{b} is of {a}")
WORDS = Words(PAIRS.fact_set().texts())


def _raw(framework):
    if framework == "linen":
        return nn.Dense(VOCAB)
    if framework == "nnx":
        return nnx.Linear(3, VOCAB, rngs=nnx.Rngs(0))
    if framework == "equinox":
        return pytest.importorskip("equinox").nn.Linear(3, VOCAB, key=KEY)
    return pytest.importorskip("haiku").transform(lambda tokens_BL: tokens_BL)


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox", "haiku"])
def test_a_module_that_is_no_function_of_its_parameters_is_told_what_makes_one(framework):
    with pytest.raises(ValueError, match=rf"give the apply_fn that frameworks\.from_{framework} "):
        measure(_raw(framework), {}, PAIRS, WORDS, kind="causal")


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_bound_method_of_a_module_is_answered_as_the_module_is(kind):
    net = nn.Sequential([nn.Embed(WORDS.vocab_size, 4), nn.Dense(WORDS.vocab_size)])
    variables = net.init(KEY, jnp.zeros((1, 1), int))
    with pytest.raises(ValueError, match=r"give the apply_fn that frameworks\.from_linen "):
        measure(net.apply, variables, PAIRS, WORDS, kind=kind)
    with pytest.raises(ValueError, match=r"give the apply_fn that frameworks\.from_nnx "):
        measure(_raw("nnx").__call__, {}, PAIRS, WORDS, kind=kind)
    own = models.Transformer(models.gpt2(WORDS.vocab_size, num_layers=1, width=8, num_heads=1))
    with pytest.raises(ValueError, match="is the apply of a Transformer: give that itself"):
        measure(own.apply, variables, PAIRS, WORDS, kind=kind)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_model_that_cannot_be_hashed_is_read(kind):
    @dataclasses.dataclass
    class Flat:
        size: int

        def __call__(self, params, tokens_BL):
            return jnp.zeros((*tokens_BL.shape, self.size))

    size = WORDS.vocab_size
    want = 1 / (size - (kind == "masked"))
    found = measure(Flat(size), {}, PAIRS, WORDS, kind=kind, progress=False)
    np.testing.assert_allclose(found.forward.p_true.estimate, want, rtol=1e-6)
    jitted = nnx.jit(lambda params, tokens_BL: Flat(size)({}, tokens_BL))  # no module
    assert measure(jitted, {}, PAIRS, WORDS, kind=kind, progress=False).kind == kind


def test_a_mask_outside_the_vocabulary_is_named():
    apply_fn, params, _ = MODELS["plain"]()
    for mask_id in (VOCAB, -1):
        with pytest.raises(ValueError, match=rf"mask_id {mask_id} is none of (the|any) model's"):
            objectives.masked_diffusion(apply_fn, params, Batch.of(TOKENS), KEY, mask_id=mask_id)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(tokens_BL=[1, 2]), r"must be integers \[B, L\], got int64 \(2,\)"),
        (dict(tokens_BL=[[0.5]]), "must be integers"),
        (dict(tokens_BL=[[1, 2]], scored=[[True]]), r"scored must be \(1, 2\) as tokens_BL"),
        (dict(tokens_BL=[[1, 2]], valid=[[1, 2]]), "valid must be True or False"),
    ],
)
def test_batches_that_cannot_be_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Batch.of(**fields)


def test_statistics_of_a_linen_model_are_read_and_are_no_parameters():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(VOCAB, WIDTH)(tokens)
            return nn.Dense(VOCAB)(nn.BatchNorm(use_running_average=True)(x))

    model = Normed()
    variables = model.init(KEY, jnp.asarray(TOKENS))
    variables["batch_stats"] = jax.tree.map(lambda x: x + 3, variables["batch_stats"])
    apply_fn, params = frameworks.from_linen(model, variables)
    assert params == variables["params"]
    want = model.apply(variables, jnp.asarray(TOKENS))
    np.testing.assert_allclose(apply_fn(params, jnp.asarray(TOKENS)), want, rtol=1e-6)


def test_the_state_of_a_haiku_model_is_read_and_its_logits_alone_are_returned():
    told = []
    apply = lambda *args, **how: told.append((args, how)) or ("logits", "state")  # noqa: E731
    transformed = types.SimpleNamespace(apply=apply)
    apply_fn, params = frameworks.from_haiku(transformed, {"w": 1}, state={"s": 2}, more=3)
    assert apply_fn(params, TOKENS) == "logits"
    ((given, how),) = told
    assert given[:3] == ({"w": 1}, {"s": 2}, None) and how == {"more": 3}


def test_a_shifted_model_is_told_its_noise_and_padding():
    def says(params, tokens_BL, *, valid_BL, noise_B):
        told_BL = valid_BL * noise_B[:, None]
        return jnp.broadcast_to(told_BL[..., None], (*tokens_BL.shape, 9))

    valid = jnp.arange(4)[None] < jnp.array([[4], [3], [4]])
    noise = jnp.array([0.25, 0.5, 0.75])
    shifted = frameworks.shift_logits(says)
    got = rows.call(shifted, {}, jnp.asarray(TOKENS), valid_BL=valid, noise_B=noise)
    np.testing.assert_allclose(got[..., 0], np.repeat(noise[:, None], 4, axis=1))


def test_settings_reach_an_equinox_model_of_one_row():
    eqx = pytest.importorskip("equinox")

    class Scaled(eqx.Module):
        table: jax.Array

        def __call__(self, tokens, scale=1.0):
            return scale * self.table[tokens]

    apply_fn, params = frameworks.from_equinox(Scaled(jnp.ones((VOCAB, VOCAB))), scale=3.0)
    np.testing.assert_array_equal(apply_fn(params, jnp.asarray(TOKENS)), 3)


def test_a_batched_equinox_model_is_told_all_that_it_asks_for():
    eqx = pytest.importorskip("equinox")
    told = {}

    class Batched(eqx.Module):
        table: jax.Array

        def __call__(self, tokens, scale=1.0, valid_BL=None, rows_R=None, key=None):
            told.update(scale=scale, valid_BL=valid_BL, rows_R=rows_R, key=key)
            return self.table[tokens]

    model = Batched(jnp.ones((VOCAB, VOCAB)))
    apply_fn, params = frameworks.from_equinox(model, batched=True, scale=3.0)
    given = dict(valid_BL=TOKENS > 0, rows_R=np.arange(2))
    apply_fn(params, TOKENS, **given, rngs={"dropout": KEY})
    assert told == given | {"scale": 3.0, "key": KEY}
    apply_fn(params, TOKENS, **given)
    assert told["key"] is None
    with pytest.raises(ValueError, match="rows_R counts positions of a batch"):
        frameworks.from_equinox(model)


def test_settings_reach_an_nnx_model_and_others_while_it_trains():
    class Scaled(nnx.Module):
        def __init__(self):
            self.table = nnx.Param(jnp.ones((VOCAB, VOCAB)))

        def __call__(self, tokens, scale=1.0):
            return scale * self.table[tokens]

    how = dict(scale=3.0, when_training=dict(scale=5.0))
    apply_fn, params = frameworks.from_nnx(Scaled(), **how)
    np.testing.assert_array_equal(apply_fn(params, TOKENS), 3)
    np.testing.assert_array_equal(apply_fn(params, TOKENS, rngs={"dropout": KEY}), 5)
