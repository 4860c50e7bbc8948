"""Capacities change the cost of an objective and nothing else."""

import functools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import members
import numpy as np
import pytest

from dirasym import block_diffusion, decoding, likelihood, metrics, models, objectives, rows
from dirasym.analysis import attention, recall, weights
from dirasym.models import token_table
from dirasym.networks import Network
from dirasym.rows import PerRow
from dirasym.types import Batch

MASK, VOCAB = 10, 11
TOKENS = np.random.default_rng(0).integers(0, MASK, (16, 6)).astype(np.int32)
SCORED = np.random.default_rng(1).random((16, 6)) < 0.4
SCORED[:, 0] = False
BATCH = Batch(TOKENS, np.arange(16), 16, scored_BL=SCORED)
MOST = int(SCORED.sum(axis=1).max())
SHARE = SCORED.mean() + 0.05
MASKED = dict(mask_id=MASK)
OBJECTIVES = {
    "next_token": objectives.next_token,
    "next_token_bos": functools.partial(objectives.next_token, bos_id=MASK),
    "parallel_target": functools.partial(objectives.parallel_target, **MASKED),
    "masked_diffusion": functools.partial(objectives.masked_diffusion, **MASKED),
    "masked_lm": functools.partial(objectives.masked_lm, **MASKED, rate=0.8, vocab_size=VOCAB),
}


# What dropout does at rows is the model's affair, whatever the objective: two of them have it.
DROPOUT = {"next_token": 0.2, "masked_diffusion": 0.2}


@functools.cache
def _model(causal=False, dropout=0.2, **overrides):
    preset = models.gpt2 if causal else models.radd
    config = preset(
        VOCAB, dropout=dropout, num_layers=1, width=8, num_heads=2, max_len=8, **overrides
    )
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    params = unravel(flat + 0.1 * jax.random.normal(jax.random.key(1), flat.shape))
    return models.make_apply_fn(model), params


def _grads(objective, capacity, batch=BATCH, key=None, **overrides):
    apply_fn, params = _model(**overrides)
    key = jax.random.key(3) if key is None else key

    def loss(params):
        total, count, _ = objective(
            apply_fn, params, batch, key, capacity=capacity, rngs={"dropout": jax.random.key(9)}
        )
        return total, count

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def _check_close(got, want):
    chex.assert_trees_all_close(got[0], want[0], rtol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want[1]))
    chex.assert_trees_all_close(got[1], want[1], atol=1e-5 * scale)


@pytest.mark.parametrize("name", members.quick(OBJECTIVES, ["masked_diffusion", "next_token_bos"]))
def test_any_capacity_gives_the_plain_loss_and_gradients(name):
    objective, causal = OBJECTIVES[name], "next" in name
    network = dict(causal=causal, dropout=DROPOUT.get(name, 0.0))
    want = _grads(objective, None, **network)
    # A share that suffices, one that does not, and a promise kept.
    for capacity in (SHARE, 0.25, PerRow(MOST)):
        _check_close(_grads(objective, capacity, **network), want)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [dict(scan_layers=True), dict(remat=True), dict(scan_layers=True, remat=True)],
    ids=str,
)
def test_so_do_scanned_and_recomputed_layers(overrides):
    want = _grads(objectives.next_token, None, causal=True, **overrides)
    for capacity in (SHARE, 0.1, PerRow(MOST)):
        _check_close(_grads(objectives.next_token, capacity, causal=True, **overrides), want)


def test_a_broken_promise_is_nan_and_its_gradients_are():
    (loss, _), grads = _grads(objectives.next_token, PerRow(MOST - 1), causal=True)
    assert np.isnan(loss) and all(bool(jnp.isnan(x).any()) for x in jax.tree.leaves(grads))
    apply_fn, params = _model(causal=True)
    nll_B = likelihood.answer_log_likelihood(apply_fn, params, BATCH, capacity=PerRow(MOST - 1))
    np.testing.assert_array_equal(np.isnan(nll_B), SCORED.sum(axis=1) == MOST)


def _avals(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (var.aval for var in eqn.outvars)
        for value in eqn.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(inner, "jaxpr"):
                    inner = inner.jaxpr
                if hasattr(inner, "eqns"):
                    yield from _avals(inner)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", members.quick(OBJECTIVES, ["next_token", "masked_diffusion"]))
def test_a_promise_has_no_array_of_all_logits_and_no_conditional(name, scan_layers):
    causal = "next" in name
    apply_fn, params = _model(causal=causal, scan_layers=scan_layers)

    def largest(capacity):
        def loss(params):
            return OBJECTIVES[name](apply_fn, params, BATCH, jax.random.key(0), capacity=capacity)[
                0
            ]

        jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
        logits = [a.size for a in _avals(jaxpr.jaxpr) if a.shape[-1:] == (VOCAB,) and a.ndim > 1]
        return max(logits) // VOCAB, str(jaxpr)

    positions, text = largest(PerRow(2))
    assert positions <= 2 * 16 and " cond[" not in text
    whole, _ = largest(None)
    assert whole >= 16 * 5  # the count sees what is there
    assert " cond[" in largest(0.5)[1]


@pytest.mark.slow
def test_seeds_under_vmap_take_the_fallback_together():
    apply_fn, params = _model()
    two = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params)
    share = jnp.array([0.1, 0.9])[:, None, None]
    wanted = jnp.arange(TOKENS.size).reshape(1, *TOKENS.shape) < share * TOKENS.size

    def value(capacity, params, wanted_BL):
        return rows.read_at(
            objectives.token_nll, apply_fn, params, TOKENS, wanted_BL, TOKENS, capacity=capacity
        )

    def grads(capacity):
        def loss(params, wanted_BL):
            return value(capacity, params, wanted_BL).sum()

        return jax.vmap(jax.value_and_grad(loss))

    want = jax.jit(grads(None))(two, wanted)
    for capacity in (0.3, 0.95):
        chex.assert_trees_all_close(
            jax.jit(grads(capacity))(two, wanted), want, rtol=1e-4, atol=1e-4
        )
        # One branch is computed, not both: the lowered program keeps a conditional.
        assert "stablehlo.case" in jax.jit(grads(capacity)).lower(two, wanted).as_text()

    def scanned(params):  # inside a scan, and under two axes
        def body(total, wanted_BL):
            return total + value(0.3, params, wanted_BL).sum(), None

        return jax.lax.scan(body, 0.0, wanted)[0]

    four = jax.tree.map(lambda x: jnp.stack([x, x]), two)
    nested = jax.jit(jax.vmap(jax.vmap(jax.grad(scanned))))
    each = jax.tree.map(
        lambda x: x.sum(0), jax.vmap(lambda w: grads(None)(two, jnp.stack([w, w]))[1])(wanted)
    )
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[1], nested(four)), each, rtol=1e-3, atol=1e-3
    )
    assert "stablehlo.case" in nested.lower(four).as_text()


def test_an_apply_fn_without_rows_is_called_whole():
    def foreign(params, tokens):
        return params[tokens]

    def passing_on(params, tokens, **kwargs):
        return params[tokens]

    params = jax.random.normal(jax.random.key(0), (VOCAB, VOCAB))
    rows_R = np.array([0, 7, 95, 96, 200])
    for apply_fn in (foreign, passing_on, jax.jit(foreign)):
        got = rows.call(apply_fn, params, TOKENS, rows_R=rows_R)
        want = params[TOKENS.ravel()[np.minimum(rows_R, 95)]]
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("capacity", [0.0, 1.5, -1])
def test_bad_capacities(capacity):
    apply_fn, params = _model()
    with pytest.raises(ValueError, match="capacity must be a share"):
        objectives.next_token(apply_fn, params, BATCH, capacity=capacity)
    with pytest.raises(ValueError, match="PerRow"):
        PerRow(0)


def _whole(params, tokens_BL):
    return params[tokens_BL]


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda x: x[:, :-1], r"\(16, \d, 11\)"),
        (lambda x: jnp.concatenate([x[:, :1], x], axis=1), r"\(16, \d, 11\)"),
        (lambda x: x[:, -1], r"\(16, 11\)"),
        (lambda x: x.swapaxes(0, 1), r"\(\d, 16, 11\)"),
        (lambda x: x[..., None], r"\(16, \d, 11, 1\)"),
        (lambda x: (x, {}), "a tuple"),
    ],
)
def test_logits_of_other_positions_are_refused_whoever_asks(change, got):
    params, key = jnp.eye(VOCAB), jax.random.key(0)
    apply_fn = lambda params, tokens_BL: change(_whole(params, tokens_BL))  # noqa: E731
    blank, valid = np.full_like(TOKENS, MASK), np.ones(TOKENS.shape, bool)
    cloze = recall.Cloze(TOKENS, np.zeros(16, int), np.zeros(16, int))
    left = dict(prompt_length=2, bos_id=0, top_k=1)
    for ask in (
        lambda: objectives.masked_diffusion(apply_fn, params, BATCH, key, **MASKED, capacity=0.9),
        lambda: decoding.unmask(apply_fn, params, blank, key, **MASKED, top_k=1),
        lambda: decoding.left_to_right(apply_fn, params, TOKENS, key, **left),
        lambda: decoding.greedy(decoding.recomputing(apply_fn), params, TOKENS, valid, num_new=1),
        lambda: recall.token_recall(apply_fn, params, cloze),
        lambda: metrics.probabilities(apply_fn, params, TOKENS),
    ):
        with pytest.raises(ValueError, match=rf"must give logits \[B, L, V\] of tokens .*{got}"):
            jax.eval_shape(ask)


def test_a_model_says_which_tokens_it_has_no_embedding_of():
    key, made = jax.random.key(0), models.Transformer(models.radd(VOCAB, width=8, num_heads=2))
    params = jax.eval_shape(made.init, key, TOKENS)["params"]
    adapted = models.LoRA(made, models.LoRAConfig(1, 1.0, "query$"))
    adapters = jax.eval_shape(lambda p: models.lora.init_adapters(adapted, p, key), params)
    how = dict(mask_id=VOCAB, num_new=2, num_steps=2, block_length=2)
    for apply_fn in (
        models.make_apply_fn(made),
        models.lora.make_apply_fn(adapted),
        token_table.make_apply_fn(made),
    ):
        variables = (
            {"params": params, "lora": adapters} if "lora" in apply_fn.__module__ else params
        )
        for name, ask in (
            ("mask_id", lambda p, f: decoding.unmask(f, p, TOKENS, key, mask_id=VOCAB, top_k=1)),
            ("mask_id", lambda p, f: decoding.remask(f, p, TOKENS, None, **how)),
            ("bos_id", lambda p, f: objectives.next_token(f, p, BATCH, bos_id=VOCAB)),
            (
                "bos_id",
                lambda p, f: decoding.left_to_right(
                    f, p, TOKENS, key, prompt_length=0, bos_id=VOCAB, top_k=1
                ),
            ),
        ):
            with pytest.raises(ValueError, match=f"{name} 11 is none of the model's 11 tokens"):
                jax.eval_shape(functools.partial(ask, f=apply_fn), variables)
    with pytest.raises(ValueError, match="bos_id -1 is none of"):
        objectives.next_token(_whole, jnp.eye(VOCAB), BATCH, bos_id=-1)


@pytest.mark.parametrize(
    "ask",
    [
        lambda *model, bos_id: objectives.next_token(*model, BATCH, bos_id=bos_id),
        lambda *model, bos_id: decoding.left_to_right(
            *model, TOKENS, jax.random.key(0), prompt_length=0, bos_id=bos_id, top_k=1
        ),
        lambda *model, bos_id: metrics.probabilities(*model, TOKENS, bos_id=bos_id),
        lambda *model, bos_id: metrics.target_probability(
            *model, TOKENS, TOKENS[:, 0], np.ones_like(TOKENS, bool), bos_id=bos_id
        ),
    ],
)
def test_a_beginning_that_a_foreign_model_lacks_is_refused(ask):
    """Of a model that does not say how many tokens it has, its logits do."""
    model = _whole, jnp.eye(VOCAB)
    with pytest.raises(ValueError, match=f"bos_id 9999 is none of the model's {VOCAB} tokens"):
        ask(*model, bos_id=9999)
    with pytest.raises(ValueError, match="bos_id must be the id of a token, got"):
        ask(*model, bos_id=1.5)
    ask(*model, bos_id=VOCAB - 1)
    ask(rows.knowing(lambda p, x: _whole(p, x), 10_000), model[1], bos_id=9999)


def _doors(apply_fn, params, internals):
    """All that reads [M], as functions of its id."""
    key, fill = jax.random.key(0), dict(num_new=2, num_steps=2, block_length=2)
    cloze = recall.Cloze(TOKENS, np.ones(16, int), TOKENS[:, 1])
    one = jax.tree.map(lambda x: x[0], cloze)
    objective = {
        "parallel_target": objectives.parallel_target,
        "masked_diffusion": objectives.masked_diffusion,
        "any_order": objectives.any_order,
        "masked_lm": functools.partial(objectives.masked_lm, vocab_size=VOCAB),
        "block_diffusion": functools.partial(block_diffusion.block_diffusion, block_size=2),
    }
    doors = {
        name: lambda mask_id, of=of: of(apply_fn, params, BATCH, key, mask_id=mask_id)
        for name, of in objective.items()
    }
    return doors | {
        "unmask": lambda mask_id: decoding.unmask(
            apply_fn, params, TOKENS, key, mask_id=mask_id, top_k=1
        ),
        "remask": lambda mask_id: decoding.remask(
            apply_fn, params, TOKENS, None, mask_id=mask_id, **fill
        ),
        "token_recall": lambda mask_id: recall.token_recall(
            apply_fn, params, cloze, mask_id=mask_id
        ),
        "query_loss": lambda mask_id: recall.query_loss(apply_fn, mask_id=mask_id)(params, one),
        "effective_logits": lambda mask_id: weights.effective_logits(
            apply_fn, params, TOKENS, mask_id=mask_id
        ),
        "name_correlation": lambda mask_id: attention.name_correlation(
            internals, params, [[1], [3], [4]], 2, mask_id=mask_id, fill_id=5
        ),
        "fill": lambda fill_id: attention.name_correlation(
            internals, params, [[1], [3], [4]], 2, mask_id=MASK, fill_id=fill_id
        ),
    }


MAY_BE_CAUSAL = ("token_recall", "query_loss", "effective_logits", "fill")


@pytest.mark.parametrize("mask_id", [VOCAB, -1, 2.0, 1.5, True, 2**40, None])
def test_an_id_that_is_no_token_of_the_model_is_refused_wherever_it_is_read(mask_id):
    apply_fn, params = _model()
    model = models.Transformer(models.radd(VOCAB, num_layers=1, width=8, num_heads=2, max_len=8))
    for name, ask in _doors(apply_fn, params, models.make_internals_fn(model)).items():
        if mask_id is None and name in MAY_BE_CAUSAL:
            continue
        with pytest.raises(ValueError, match=r"(mask|fill)_id (.* is none of|must be|is None)"):
            pytest.fail(f"{name} answers {ask(mask_id)}")


def test_a_foreign_models_tokens_are_its_logits_unless_it_says_so():
    def flat(params, tokens_BL):
        return jnp.zeros((*tokens_BL.shape, VOCAB))

    doors = _doors(flat, {}, None)
    for name in ("masked_diffusion", "unmask", "remask", "token_recall", "effective_logits"):
        with pytest.raises(ValueError, match="mask_id 11 is none of the model's 11 tokens"):
            pytest.fail(f"{name} answers {doors[name](VOCAB)}")
    assert np.isfinite(doors["parallel_target"](VOCAB)[0])  # its [M] may never be read
    doors = _doors(rows.knowing(flat, VOCAB + 1), {}, None)  # its head leaves out [M]
    for name in ("masked_diffusion", "unmask", "remask", "token_recall", "effective_logits"):
        doors[name](VOCAB)
        with pytest.raises(ValueError, match="mask_id 12 is none of the model's 12 tokens"):
            doors[name](VOCAB + 1)


def test_a_bos_that_is_traced_passes():
    ask = jax.jit(lambda bos: objectives.next_token(_whole, jnp.eye(VOCAB), BATCH, bos_id=bos)[0])
    want = objectives.next_token(_whole, jnp.eye(VOCAB), BATCH, bos_id=1)[0]
    np.testing.assert_allclose(ask(1), want, rtol=1e-6)


def test_parameters_in_a_list_are_blamed_as_a_whole():
    def flat(params, tokens_BL):
        return params[0][tokens_BL][:, -1] @ params[1]

    network = Network.of(flat, "causal")
    with pytest.raises(ValueError, match=r"must give logits \[B, L, V\] of tokens \(1, 2\)"):
        network.parameter_sets([jnp.ones((3, 2)), jnp.ones((2, 3))])


def test_parameters_that_cannot_be_read_are_named_by_their_number():
    network = Network.of(_whole, "causal")
    with pytest.raises(ValueError, match="params is empty: give one set, or several"):
        network.parameter_sets([])
    with pytest.raises(ValueError, match="params: the model cannot read set 2: "):
        network.parameter_sets([jnp.eye(VOCAB), {"w": 1.0}, jnp.eye(VOCAB)])
    assert len(network.parameter_sets([jnp.eye(VOCAB), jnp.eye(VOCAB)])) == 2


def test_the_masked_share_is_half_and_three_deviations():
    """Levels dealt one a cell, the tokens below them: exceeded once in a thousand batches."""
    assert rows.masked_share(2, 12) == pytest.approx(0.75)
    assert rows.masked_share(1, 1) == 1
    rng = np.random.default_rng(0)
    level_XB = (np.arange(16) + rng.uniform(size=(4000, 16))) / 16
    share_X = rng.binomial(8, level_XB).sum(axis=1) / (16 * 8)
    assert (share_X > rows.masked_share(16, 8)).mean() < 0.004
    np.testing.assert_allclose(share_X.var(), 1 / (6 * 16 * 8), rtol=0.1)


def test_the_hidden_share_is_of_what_is_no_padding():
    tokens = np.array([[MASK, 1, MASK, MASK], [1, 2, MASK, 3]])
    valid = np.array([[True, True, False, False], [True, True, True, False]])
    np.testing.assert_allclose(rows.hidden_share(tokens, MASK, valid), [1 / 2, 1 / 3])
    np.testing.assert_allclose(rows.hidden_share(tokens, MASK, None), [3 / 4, 1 / 4])
    np.testing.assert_array_equal(rows.hidden_share(tokens, MASK, valid & False), [0, 0])


def test_no_position_is_lost_where_a_share_holds_one_fewer():
    @jax.jit
    def read(wanted_BL):
        return rows.read_at(
            lambda logits, targets: logits[..., 0], lambda params, x: jnp.ones((*x.shape, 2)), {},
            *(TOKENS[:1], wanted_BL, TOKENS[:1]), capacity=0.5,
        )  # fmt: skip

    for wanted in range(7):  # of three that are computed
        wanted_BL = np.arange(6)[None] < wanted
        np.testing.assert_array_equal(read(wanted_BL), wanted_BL)
