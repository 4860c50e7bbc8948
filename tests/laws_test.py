"""What is drawn for an example depends on its key and index alone, wherever it stands.

For every objective and decoder: batches split or whole (into devices' shares too, see
devices_main.py), rows in any order, padding left or right or none, last batches that are not full,
microbatches, every implementation of keys, logits in low precision, strict dtypes.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import members
import numpy as np
import optax
import pytest

from dirasym import block_diffusion, decoding, keys, likelihood, objectives, rows, training
from dirasym.data import batching
from dirasym.models import layers
from dirasym.types import Batch

MASK, VOCAB, LENGTH = 5, 6, 4
IMPLEMENTATIONS = ("threefry2x32", "rbg", "unsafe_rbg")
TABLE = 3 * np.random.default_rng(0).normal(size=(2, VOCAB + 1, VOCAB)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, MASK, (8, LENGTH)).astype(np.int32)
MASKED = dict(mask_id=MASK)
OBJECTIVES = {
    "next_token": objectives.next_token,
    "next_token_bos": functools.partial(objectives.next_token, bos_id=VOCAB),
    "parallel_target": functools.partial(objectives.parallel_target, **MASKED),
    **{
        f"masked_diffusion_{weighting}": functools.partial(
            objectives.masked_diffusion, **MASKED, weighting=weighting
        )
        for weighting in ("lambda", "t", "k")
    },
    "unstratified": functools.partial(objectives.masked_diffusion, **MASKED, stratified=False),
    "any_order": functools.partial(objectives.any_order, **MASKED),
    "masked_lm_uniform": functools.partial(
        objectives.masked_lm, **MASKED, rate=None, vocab_size=VOCAB
    ),
    "blocks": functools.partial(block_diffusion.block_diffusion, **MASKED, block_size=2),
    "masked_lm": functools.partial(
        objectives.masked_lm, **MASKED, rate=0.7, random=0.5, vocab_size=VOCAB
    ),
    "answer_log_likelihood": lambda apply_fn, params, batch, key: (
        likelihood.answer_log_likelihood(apply_fn, params, batch).sum(),
        jnp.zeros(()),
        {},
    ),
    "masked_log_likelihood": lambda apply_fn, params, batch, key: (
        likelihood.masked_log_likelihood(
            apply_fn, params, batch, key, mask_id=MASK, num_samples=4
        ).mean.sum(),
        jnp.zeros(()),
        {},
    ),
}
TRAINED = [name for name in OBJECTIVES if name != "any_order" and "likelihood" not in name]
CAUSAL = ("next_token", "next_token_bos", "answer_log_likelihood")


def _read(params, tokens, valid_BL=None, *, causal):
    """Logits from the token read and the valid ones before it, or all of them."""
    own, others = (table[tokens] for table in params)
    if valid_BL is not None:
        others = jnp.where(valid_BL[..., None], others, 0)
    total = jnp.cumsum(others, axis=1) if causal else jnp.sum(others, axis=1, keepdims=True)
    return own + jnp.sin(total)


def _model(causal):
    """It says that its embedding has BOS, which its logits have not."""
    return rows.knowing(functools.partial(_read, causal=causal), len(TABLE[0]))


@functools.cache
def _jitted(name):
    apply_fn = _model(name in CAUSAL)
    return jax.jit(
        lambda batch, key: OBJECTIVES[name](apply_fn, jnp.asarray(TABLE), batch, key)[:2]
    )


def _batch(tokens=TOKENS, rows=slice(None), **kwargs):
    index = np.arange(len(tokens))[rows]
    kwargs = {name: x[rows] for name, x in kwargs.items()}
    return Batch(tokens[rows], index, len(tokens), **kwargs)


QUICK = ["next_token", "masked_diffusion_t", "any_order", "masked_lm", "blocks"]


@pytest.mark.parametrize("name", members.quick(OBJECTIVES, QUICK))
def test_a_batch_is_the_sum_of_its_parts(name):
    for implementation in IMPLEMENTATIONS:
        key = jax.random.key(3, impl=implementation)
        whole = _jitted(name)(_batch(), key)
        parts = [_jitted(name)(_batch(rows=rows), key) for rows in (slice(4), slice(4, 8))]
        chex.assert_trees_all_close(jax.tree.map(jnp.add, *parts), whole, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_may_come_in_any_order(name):
    key, order = jax.random.key(3), np.random.default_rng(2).permutation(8)
    assert (order != np.arange(8)).any()
    chex.assert_trees_all_close(
        _jitted(name)(_batch(rows=order), key), _jitted(name)(_batch(), key), rtol=1e-5
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_that_are_not_there_count_for_nothing(name):
    """A last batch of 3, filled up to 8 rows or not: whatever fills it up."""
    key, size, is_there = jax.random.key(3), np.full(8, 3), np.arange(8)[:, None] < 3
    scored = np.broadcast_to(is_there, TOKENS.shape)
    alone = _jitted(name)(_batch(rows=slice(3), size_B=size), key)
    for filler in (TOKENS, TOKENS[::-1]):
        filled = _batch(np.where(is_there, TOKENS, filler), scored_BL=scored, size_B=size)
        chex.assert_trees_all_close(_jitted(name)(filled, key), alone, rtol=1e-5)


@pytest.mark.parametrize(
    "name", members.quick(TRAINED, ["next_token", "masked_diffusion_t", "masked_lm", "blocks"])
)
def test_a_step_does_not_depend_on_microbatches(name):
    def apply_fn(params, tokens, valid_BL=None):
        return _read(params["table"], tokens, valid_BL, causal=name in CAUSAL)

    params, key = {"table": jnp.asarray(TABLE)}, jax.random.key(8, impl="rbg")
    state = training.create_state(
        rows.knowing(apply_fn, len(TABLE[0])), params, optax.sgd(1.0), key
    )
    moved = []
    for parts in (1, 2, 8):
        how = dict(objective=OBJECTIVES[name], microbatches=parts)
        new, metrics = jax.jit(functools.partial(training.train_step, **how))(state, _batch())
        moved.append((new.params["table"], metrics["loss"]))
    assert float(jnp.abs(moved[0][0] - TABLE).max()) > 1e-3
    for other in moved[1:]:
        chex.assert_trees_all_close(other, moved[0], atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_changes_nothing_on_either_side(name):
    key = jax.random.key(4)
    want = _jitted(name)(_batch(valid_BL=np.ones(TOKENS.shape, bool)), key)
    for left in (0, 3):
        tokens = np.full((8, LENGTH + 3), 2, np.int32)
        valid = np.zeros(tokens.shape, bool)
        tokens[:, left : left + LENGTH], valid[:, left : left + LENGTH] = TOKENS, True
        got = _jitted(name)(_batch(tokens, valid_BL=valid), key)
        chex.assert_trees_all_close(got, want, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if "diffusion" in name])
def test_every_example_of_a_batch_meets_every_level(name):
    """Also in a last batch that is not full: 3 of 8."""
    length, draws = 64, 400
    tokens, scored = np.zeros((8, length), np.int32), np.zeros((8, length), bool)
    run_keys = jax.random.split(jax.random.key(5), draws)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def predicted(scored_BL, size_B, key):
        batch = Batch(tokens, np.arange(8), 8, scored_BL=scored_BL, size_B=size_B)
        return OBJECTIVES[name](lambda _, t: jnp.zeros((*t.shape, VOCAB)), {}, batch, key)[2][
            "tokens"
        ]

    share = {"masked_diffusion_k": (1 + length) / (2 * length)}.get(name, 0.5)
    for size, row in ((8, 0), (8, 7), (3, 0), (3, 2)):
        scored[:] = False
        scored[row] = True
        each = np.asarray(predicted(scored, np.full(8, size), run_keys)) / length
        error = np.sqrt((1 / 12 + 1 / (6 * length)) / draws)
        assert abs(each.mean() - share) < 4 * error
        assert each.min() < 0.1 and each.max() > 0.9


@pytest.mark.parametrize("size", [8, 3])
def test_levels_fill_a_cell_for_each_example_that_is_there(size):
    seen = []

    def spy(params, tokens):
        seen.append(np.asarray(tokens == MASK).mean(axis=1)[:size])
        return jnp.zeros((*tokens.shape, VOCAB))

    batch = Batch(np.zeros((8, 4000), np.int32), np.arange(8), 8, size_B=np.full(8, size))
    for seed in range(3):
        objectives.masked_diffusion(spy, {}, batch, jax.random.key(seed), mask_id=MASK)
    for shares in seen:
        np.testing.assert_allclose(
            np.sort(shares), (np.arange(size) + 0.5) / size, atol=0.5 / size + 0.03
        )
    assert len({tuple(np.argsort(shares)) for shares in seen}) > 1


def _decoders():
    masked = functools.partial(_read, jnp.asarray(TABLE), causal=False)
    prompts = np.where(TOKENS % 2 == 0, MASK, TOKENS)
    apply_fn = rows.knowing(
        lambda _, tokens, valid_BL=None: masked(tokens, valid_BL), len(TABLE[0])
    )

    def unmask(order, num_steps, rows, key, **_):
        return decoding.unmask(
            apply_fn, {}, prompts[rows], key, mask_id=MASK, top_k=3, order=order,
            num_steps=num_steps, index_B=np.arange(8)[rows],
        )  # fmt: skip

    def left_to_right(rows, key, **_):
        return decoding.left_to_right(
            apply_fn, {}, TOKENS[rows], key, prompt_length=1, bos_id=VOCAB, top_k=3,
            index_B=np.arange(8)[rows],
        )  # fmt: skip

    def remask(remasking, rows, key, left=0, right=0):
        width = ((0, 0), (left, right))
        return decoding.remask(
            apply_fn, {}, np.pad(TOKENS, width)[rows],
            np.pad(np.ones_like(TOKENS, bool), width)[rows], key, mask_id=MASK, num_new=6,
            num_steps=6, block_length=3, remasking=remasking, index_B=np.arange(8)[rows],
        )  # fmt: skip

    return {
        "unmask": functools.partial(unmask, "random", None),
        "unmask_in_two": functools.partial(unmask, "left_to_right", 2),
        "left_to_right": left_to_right,
        "remask": functools.partial(remask, "low_confidence"),
        "remask_random": functools.partial(remask, "random"),
    }


@pytest.mark.parametrize("name", _decoders())
def test_what_is_decoded_does_not_depend_on_company_nor_padding(name):
    decode = _decoders()[name]
    for implementation in IMPLEMENTATIONS:
        key = jax.random.key(6, impl=implementation)
        whole = decode(slice(None), key)
        parts = [decode(rows, key) for rows in (slice(4), slice(4, 8))]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    order = np.random.default_rng(2).permutation(8)
    np.testing.assert_array_equal(decode(order, key), whole[order])
    if "remask" in name:
        for side in (dict(left=2), dict(right=3)):
            np.testing.assert_array_equal(decode(slice(None), key, **side), whole)


@pytest.mark.parametrize("name", [*OBJECTIVES, *_decoders()])
def test_dtypes_are_converted_by_hand(name):
    """As JAX_NUMPY_DTYPE_PROMOTION=strict wants it."""
    key = jax.random.key(0)
    with jax.numpy_dtype_promotion("strict"):
        if name in OBJECTIVES:
            apply_fn = _model(name in CAUSAL)
            batch = _batch(valid_BL=np.ones(TOKENS.shape, bool), size_B=np.full(8, 8))
            jax.eval_shape(
                lambda batch, key: OBJECTIVES[name](apply_fn, jnp.asarray(TABLE), batch, key)[:2],
                batch,
                key,
            )
        else:
            jax.eval_shape(functools.partial(_decoders()[name], slice(None)), key)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("top_k", [None, 512])
def test_draws_from_equal_logits_in_low_precision_are_uniform(dtype, top_k):
    draw = jax.jit(jax.vmap(lambda k: decoding.top_k_sample(k, jnp.zeros(512, dtype), top_k)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(7), 4000)))
    assert abs((drawn < 256).mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_confidences_in_low_precision_are_those_of_the_logits():
    """Two positions whose largest probabilities differ by less than bfloat16 resolves."""
    logits = np.zeros((1, 2, 64), np.float32)
    logits[0, :, 0] = 8.0
    logits[0, 1, 1:] = -0.25  # the second is the surer one

    def apply_fn(params, tokens, valid_BL=None):
        return jnp.asarray(logits, jnp.bfloat16)

    prompt, valid = np.zeros((1, 0), np.int32), np.zeros((1, 0), bool)
    seen = []

    def spy(params, tokens, valid_BL=None):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), tokens, ordered=True)
        return apply_fn(params, tokens)

    decoding.remask(spy, {}, prompt, valid, mask_id=63, num_new=2, num_steps=2, block_length=2)
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[1], [[63, 0]])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_keys_of_every_implementation(implementation):
    key = jax.random.key(0, impl=implementation)
    many = jax.random.split(key, 3)
    each = [jax.random.key_data(keys.threefry(one)) for one in many]
    together = jax.random.key_data(jax.vmap(keys.threefry)(many))
    np.testing.assert_array_equal(together, np.stack(each))
    assert len({tuple(np.asarray(words).tolist()) for words in each}) == 3
    if implementation == "threefry2x32":
        assert keys.threefry(key) is key
    # Dropout: no bit is used twice.
    kept = np.asarray(layers.dropout(jnp.ones(8000), 0.5, key) > 0).reshape(-1, 8)
    assert abs((kept[:, :4] == kept[:, 4:]).mean() - 0.5) < 0.05
    # Order: every example once an epoch, however steps are grouped.
    alone = np.concatenate([np.asarray(batching.batch_indices(key, t, 1, 10, 4)) for t in range(5)])
    np.testing.assert_array_equal(alone, batching.batch_indices(key, 0, 5, 10, 4))
    assert len(set(alone.ravel()[:10])) == 10


def test_fields_of_other_shapes_are_refused():
    apply_fn = functools.partial(_read, causal=True)
    batch = Batch(TOKENS, np.arange(8), 8, scored_BL=np.ones((1, LENGTH), bool))
    with pytest.raises(AssertionError, match="shape"):
        objectives.next_token(apply_fn, TABLE, batch)
    with pytest.raises(AssertionError, match="shape"):
        objectives.masked_diffusion(
            apply_fn, TABLE, Batch(TOKENS, np.arange(3), 8), jax.random.key(0), mask_id=MASK
        )
    with pytest.raises(ValueError, match="global_size"):
        objectives.masked_diffusion(
            apply_fn, TABLE, Batch(TOKENS, np.arange(8), 0), jax.random.key(0), mask_id=MASK
        )
    for top_k in (0, -1, VOCAB + 1):
        with pytest.raises(ValueError, match="top_k"):
            decoding.top_k_sample(jax.random.key(0), jnp.zeros(VOCAB), top_k)
    for prompt_length in (-1, LENGTH + 1):
        with pytest.raises(ValueError, match="prompt_length"):
            decoding.left_to_right(
                apply_fn, TABLE, TOKENS, jax.random.key(0), prompt_length=prompt_length, bos_id=0,
                top_k=1,
            )  # fmt: skip


def test_labels_of_other_libraries_are_no_tokens():
    with pytest.raises(ValueError, match="tokens_BL holds -100, no token: put any token there"):
        Batch.of([[1, -100], [2, 3]])
    with pytest.raises(ValueError, match="tokens_BL holds -1, no token"):
        Batch.of([[1, -1], [2, 3]], scored=[[1, 0], [1, 1]])  # it is read
    padded = Batch.of([[1, -1], [2, 3]], valid=[[1, 0], [1, 1]])
    np.testing.assert_array_equal(padded.tokens_BL, [[1, 0], [2, 3]])


def test_tokens_on_a_device_are_checked_as_others_are():
    with pytest.raises(ValueError, match="tokens_BL holds -100, no token: put any token there"):
        Batch.of(jnp.array([[1, -100]]))
    tokens_BL, valid_BL = jnp.array([[1, -1], [2, 3]]), jnp.array([[True, False], [True, True]])
    padded = Batch.of(tokens_BL, valid=valid_BL)
    assert isinstance(padded.tokens_BL, jax.Array)
    np.testing.assert_array_equal(padded.tokens_BL, [[1, 0], [2, 3]])
    traced = jax.jit(lambda tokens, valid: Batch.of(tokens, valid=valid))
    np.testing.assert_array_equal(traced(tokens_BL, valid_BL).tokens_BL, tokens_BL)
    masked = jax.jit(lambda valid: Batch.of([[1, -1]], valid=valid))(valid_BL[:1])
    np.testing.assert_array_equal(masked.tokens_BL, [[1, -1]])  # not known, so left as it is


def test_tokens_that_int32_cannot_hold_are_refused_and_not_wrapped():
    for token, kind in ((2**31, np.int64), (2**40, np.int64), (2**63, np.uint64)):
        with pytest.raises(ValueError, match=rf"tokens_BL holds {token}, more than int32 does"):
            Batch.of(np.array([[1, token]], kind))
        padded = Batch.of(np.array([[1, token]], kind), valid=[[1, 0]])
        assert padded.tokens_BL.min() >= 0
    for kind in (np.int8, np.uint8, np.uint16, np.int32, np.uint32, np.int64):
        batch = Batch.of(np.array([[1, 127]], kind))
        assert batch.tokens_BL.dtype == np.int32 and batch.tokens_BL.tolist() == [[1, 127]]
    assert Batch.of([[2**31 - 1]]).tokens_BL.tolist() == [[2**31 - 1]]


@pytest.mark.parametrize(
    ("tokens", "masks", "message"),
    [
        (np.zeros((0, 3), int), {}, r"has no tokens, its shape is \(0, 3\)"),
        (np.zeros((2, 0), int), {}, r"has no tokens, its shape is \(2, 0\)"),
        ([[1, 2], [3]], {}, "tokens_BL: rows must be of one length"),
        ([[1, 2]], dict(scored=[[0, 0]]), "scored is False at every valid token"),
        ([[1, 2]], dict(valid=[[0, 0]]), "scored is False at every valid token"),
        ([[1, 2]], dict(scored=[[0, 1]], valid=[[1, 0]]), "scored is False at every valid token"),
    ],
)
def test_batches_of_which_nothing_can_be_learned_are_refused(tokens, masks, message):
    with pytest.raises(ValueError, match=message):
        Batch.of(tokens, **masks)
