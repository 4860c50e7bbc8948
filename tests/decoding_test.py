import itertools

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from dirasym import decoding, rows

MASK, VOCAB, LENGTH = 4, 5, 3
PROBABILITIES = np.random.default_rng(0).dirichlet(np.ones(4), size=4**LENGTH)[:, 0]
JOINT = (PROBABILITIES / PROBABILITIES.sum()).reshape((4,) * LENGTH)
ROWS = 4000


def _true_conditionals(params, tokens):
    """The exact p(x_i | the unmasked tokens) under JOINT, as a masked model's logits."""
    every = np.array(list(itertools.product(range(4), repeat=LENGTH)))
    agrees = ((tokens[:, None] == every[None]) | (tokens[:, None] == MASK)).all(-1)
    weights = agrees * JOINT.ravel()[None]
    p = jnp.einsum("be,elv->blv", weights, jax.nn.one_hot(every, VOCAB))
    return jnp.log(p / p.sum(-1, keepdims=True))


def _true_prefix_conditionals(params, tokens):
    """The exact p(x_l | x_<l), read from BOS, x_0, .., as a causal model's logits."""
    every = np.array(list(itertools.product(range(4), repeat=LENGTH)))
    agrees = jnp.cumprod(tokens[:, None, 1:] == every[None, :, :-1], axis=-1)
    agrees = jnp.concatenate([jnp.ones((len(tokens), len(every), 1)), agrees], -1)
    weights = agrees * JOINT.ravel()[None, :, None]
    p = jnp.einsum("bel,elv->blv", weights, jax.nn.one_hot(every, VOCAB))
    return jnp.log(p / p.sum(-1, keepdims=True))


def _check_joint(tokens):
    counts = np.zeros_like(JOINT)
    np.add.at(counts, tuple(np.asarray(tokens).T), 1)
    error = np.sqrt(JOINT * (1 - JOINT) / ROWS)
    assert (np.abs(counts / ROWS - JOINT) < 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("order", ["random", "left_to_right", "right_to_left"])
def test_exact_conditionals_generate_the_joint_in_any_order(order):
    blank = np.full((ROWS, LENGTH), MASK)
    _check_joint(
        decoding.unmask(
            _true_conditionals, {}, blank, jax.random.key(1), mask_id=MASK, top_k=None, order=order
        )
    )


def test_exact_conditionals_generate_the_joint_left_to_right():
    blank = np.zeros((ROWS, LENGTH), int)
    _check_joint(
        decoding.left_to_right(
            _true_prefix_conditionals,
            {},
            blank,
            jax.random.key(2),
            prompt_length=0,
            bos_id=MASK,
            top_k=None,
        )
    )


def test_all_at_once_generates_the_marginals_independently():
    blank = np.full((ROWS, LENGTH), MASK)
    tokens = decoding.unmask(
        _true_conditionals, {}, blank, jax.random.key(3), mask_id=MASK, top_k=None, num_steps=1
    )
    counts = np.zeros_like(JOINT)
    np.add.at(counts, tuple(np.asarray(tokens).T), 1)
    marginals = [JOINT.sum(axis=tuple({0, 1, 2} - {i})) for i in range(3)]
    want = np.einsum("i,j,k->ijk", *marginals)
    assert (np.abs(counts / ROWS - want) < 4.5 * np.sqrt(want / ROWS)).all()


def test_top_k_renormalises_and_one_is_greedy():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
    keys = jax.random.split(jax.random.key(0), 5000)
    draw = jax.vmap(lambda k: decoding.top_k_sample(k, logits, 2))(keys)
    assert set(np.unique(draw)) == {1, 3}
    np.testing.assert_allclose((draw == 1).mean(), 4 / 7, atol=0.03)
    assert decoding.top_k_sample(keys[0], logits, 1) == 1


def test_prompts_stay_and_rows_do_not_depend_on_their_company():
    prompt = np.array([[2, MASK, MASK], [MASK, 1, MASK], [MASK, MASK, MASK], [0, 1, 2]])
    kwargs = dict(mask_id=MASK, top_k=3)
    whole = decoding.unmask(_true_conditionals, {}, prompt, jax.random.key(4), **kwargs)
    part = decoding.unmask(_true_conditionals, {}, prompt[:2], jax.random.key(4), **kwargs)
    np.testing.assert_array_equal(whole[:2], part)
    np.testing.assert_array_equal(whole[3], prompt[3])
    assert (whole != MASK).all()
    assert whole[0, 0] == 2 and whole[1, 1] == 1


def test_steps_share_out_the_masked_positions():
    seen = []

    def spy(params, tokens):
        jax.debug.callback(
            lambda t: seen.append((t == 9).sum(axis=1).tolist()), tokens, ordered=True
        )
        return jnp.zeros((*tokens.shape, 10))

    blank = np.full((2, 8), 9)
    blank[1, :4] = 0
    decoding.unmask(spy, {}, blank, jax.random.key(0), mask_id=9, top_k=None, num_steps=4)
    jax.effects_barrier()
    assert seen == [[8, 4], [6, 3], [4, 2], [2, 1]]


@pytest.mark.parametrize("dtype", members.quick([np.uint8, np.int32, np.int64], [np.uint8]))
@pytest.mark.parametrize("num_steps", [None, 1])
def test_tokens_keep_their_dtype(dtype, num_steps):
    flat = lambda params, tokens: jnp.zeros((*tokens.shape, VOCAB))  # noqa: E731
    blank = np.full((2, 3), MASK, dtype)
    with jax.enable_x64(True):
        for top_k in (None, 2):
            key = jax.random.key(0)
            tokens = decoding.unmask(
                flat, {}, blank, key, mask_id=MASK, top_k=top_k, num_steps=num_steps
            )
            written = decoding.left_to_right(
                flat, {}, blank, key, prompt_length=1, bos_id=MASK, top_k=top_k
            )
            assert tokens.dtype == written.dtype == dtype and (tokens != MASK).all()


@pytest.mark.parametrize("order", ["random", "left_to_right", "right_to_left"])
def test_blocks_are_filled_one_after_another(order):
    """A model that says how many tokens of a row are revealed: its answers are the ranks."""

    def count(params, tokens):
        revealed = jnp.sum(tokens != 9, axis=1)
        return 50.0 * jax.nn.one_hot(jnp.broadcast_to(revealed[:, None], tokens.shape), 10)

    blank = np.full((200, 6), 9)
    how = dict(mask_id=9, top_k=1, order=order, block_size=2)
    filled = np.asarray(decoding.unmask(count, {}, blank, jax.random.key(0), **how))
    np.testing.assert_array_equal(filled // 2, np.tile([0, 0, 1, 1, 2, 2], (200, 1)))
    firsts = {tuple(row) for row in filled[:, ::2].tolist()}
    if order == "random":
        assert len(firsts) == 8
    else:
        assert firsts == {(0, 2, 4) if order == "left_to_right" else (1, 3, 5)}
    with pytest.raises(ValueError, match="block_size"):
        decoding.unmask(count, {}, blank, jax.random.key(0), **how | {"block_size": 0})


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps"):
        decoding.unmask(
            _true_conditionals, {}, [[MASK]], jax.random.key(0), mask_id=MASK, top_k=1, num_steps=0
        )


def test_no_new_tokens_are_refused():
    extend_fn = decoding.recomputing(_true_conditionals)
    with pytest.raises(ValueError, match="num_new must be at least 1, got 0"):
        decoding.greedy(extend_fn, {}, [[MASK]], [[True]], num_new=0)


@pytest.mark.parametrize("mask_id", [-1, 6])
def test_a_mask_id_that_the_model_lacks_is_refused(mask_id):
    rows, key = np.zeros((1, 2), np.int32), jax.random.key(0)
    apply_fn = lambda params, tokens_BL: jnp.zeros((*tokens_BL.shape, 5))  # noqa: E731
    with pytest.raises(ValueError, match=rf"mask_id {mask_id} is none of (the|any) model's"):
        decoding.unmask(apply_fn, {}, rows, key, mask_id=mask_id, top_k=1)
    how = dict(num_new=2, num_steps=2, block_length=2)
    with pytest.raises(ValueError, match=rf"mask_id {mask_id} is none of (the|any) model's"):
        decoding.remask(apply_fn, {}, rows, None, mask_id=mask_id, **how)


def test_bad_order():
    with pytest.raises(ValueError, match="order"):
        decoding.unmask(
            _true_conditionals, {}, [[MASK]], jax.random.key(0), mask_id=MASK, top_k=1, order="up"
        )


def test_no_token_is_chosen_where_the_logits_are_nan():
    def apply_fn(params, tokens_BL):  # of the second row, and of [M]'s embedding if there were one
        is_bad_B11 = (jnp.arange(len(tokens_BL)) == 1)[:, None, None]
        return jnp.where(is_bad_B11, jnp.nan, jnp.eye(MASK)[jnp.minimum(tokens_BL, MASK - 1)])

    apply_fn = rows.knowing(apply_fn, MASK + 1)  # its head leaves out [M]
    key, blank = jax.random.key(0), np.full((2, 3), MASK)
    how = dict(num_new=2, num_steps=2, block_length=2, mask_id=MASK)
    left = dict(prompt_length=1, bos_id=0)
    for tokens in (
        *(decoding.unmask(apply_fn, {}, blank, key, mask_id=MASK, top_k=k) for k in (1, None)),
        decoding.unmask(apply_fn, {}, blank, key, mask_id=MASK, top_k=1, num_steps=1),
        decoding.left_to_right(apply_fn, {}, blank % 3, key, top_k=None, **left)[:, 1:],
        decoding.remask(apply_fn, {}, blank % 3, None, **how),
        decoding.remask(apply_fn, {}, blank % 3, None, key, remasking="random", **how),
        decoding.greedy(decoding.recomputing(apply_fn), {}, blank % 3, blank > 0, num_new=2),
    ):
        assert (tokens[0] >= 0).all() and (tokens[1] == -1).all()


def test_a_model_is_told_the_share_that_is_still_hidden():
    seen = []

    def spy(params, tokens_BL, *, noise_B, valid_BL=None):
        jax.debug.callback(lambda x: seen.append(x.tolist()), noise_B, ordered=True)
        return jnp.zeros((*tokens_BL.shape, VOCAB))

    how = dict(mask_id=MASK, top_k=None, order="left_to_right")
    decoding.unmask(spy, {}, [[2, MASK, MASK, MASK]], jax.random.key(0), **how)
    jax.effects_barrier()
    assert seen == [[0.75], [0.5], [0.25], [0.0]]
    seen.clear()
    how = dict(mask_id=MASK, num_new=2, num_steps=2, block_length=2)
    decoding.remask(spy, {}, [[0, 2, 3]], np.array([[False, True, True]]), **how)
    jax.effects_barrier()
    assert seen == [[0.5], [0.25]]  # of the four tokens that are there
