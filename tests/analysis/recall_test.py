"""A model whose answers are written down by hand is read as what it is."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym.analysis import alignment, queries, recall
from dirasym.analysis.recall import Cloze
from dirasym.data.facts import FactSet, Query, Statement
from dirasym.data.tokenizers import Characters, Words

PAD = 0
DECOY = 8  # what the model is sure of wherever it was not told what to say


def _table_model(rows, places, p_RV, dtype=jnp.float32):
    """Says p_RV[r] at place r of the valid tokens of row r, and the decoy everywhere else."""
    length = max(map(len, rows))
    table_RL = jnp.array([[*row, *[-1] * (length - len(row))] for row in rows])
    logits_RV = jnp.log(jnp.asarray(p_RV))

    def apply_fn(params, tokens_BL, *, valid_BL=None):
        if valid_BL is None:
            valid_BL = jnp.ones(tokens_BL.shape, bool)
        order_BL = jnp.argsort(~valid_BL, axis=1, stable=True)
        compact_BL = jnp.take_along_axis(jnp.where(valid_BL, tokens_BL, -1), order_BL, axis=1)
        short = length - compact_BL.shape[1]
        compact_BL = jnp.pad(compact_BL, ((0, 0), (0, max(short, 0))), constant_values=-1)
        same_BR = (compact_BL[:, None, :length] == table_RL[None]).all(axis=-1)
        place_BL = jnp.cumsum(valid_BL, axis=1) - 1
        told_BLR = (
            same_BR[:, None]
            & (place_BL[..., None] == jnp.array(places)[None, None])
            & valid_BL[..., None]
        )
        decoy_V = 50.0 * (jnp.arange(VOCAB) == DECOY)[None, None]
        said_BLV = jnp.einsum("blr,rv->blv", told_BLR.astype(float), jnp.maximum(logits_RV, -1e30))
        return params * jnp.where(told_BLR.any(-1)[..., None], said_BLV, decoy_V).astype(dtype)

    return apply_fn


def _p(**shares):
    """A distribution that has these shares, as t3=0.5; [M] is given some on purpose."""
    p_V = np.full(VOCAB, 1e-4)
    for token, share in shares.items():
        p_V[int(token[1:])] = share
    return p_V


# Two facts: A of two tokens and B of one; A of one and B of three. One is told with words before.
FACTS = FactSet(
    train=(
        Statement("Sir Ann Bo begot", "Cy"),
        Statement("Anna begot", "Eve Fay Gil"),
        Statement("Nobody begot", "Hal"),
    ),
    forward=(Query("Sir Ann Bo begot", ("Cy",)), Query("Anna begot", ("Eve Fay Gil",))),
    reverse=(
        Query("Cy is of", ("Ann Bo", "Sir Ann Bo")),
        Query("Eve Fay Gil is of", ("Anna",)),
        Query("Hal is of", ("Somebody",)),  # whom no statement names
    ),
)
WORDS = Words([" ".join(s) for s in FACTS.train] + ["is of Somebody"])
VOCAB, MASK = WORDS.vocab_size, 11  # of tables that are asked in tokens


def _ids(text):
    """Tokens of words; _ is [M]."""
    return [WORDS.mask_id if w == "_" else WORDS.encode([w])[0][0] for w in text.split()]


@pytest.mark.parametrize("masked", [True, False])
def test_paired_queries_of_the_theory(masked):
    forward, reverse = queries.paired_queries(FACTS, WORDS, masked=masked)
    if masked:
        want = ["Sir _ _ begot Cy", "_ begot Eve Fay Gil"], [1, 0], "Ann Anna"
        want_reverse = ["Cy is of _ _", "Eve Fay Gil is of _"], [3, 5], "Ann Anna"
        lengths = 5, 6
    else:
        want = ["Sir Ann Bo begot", "Anna begot"], [3, 1], "Cy Eve"
        want_reverse = ["Cy is of", "Eve Fay Gil is of"], [2, 4], "Ann Anna"
        lengths = 4, 5
    asked = zip((forward, reverse), (want, want_reverse), lengths, strict=True)
    for got, (rows, position, target), length in asked:
        tokens = [_ids(row) + [PAD] * (length - len(row.split())) for row in rows]
        np.testing.assert_array_equal(got.tokens_EL, tokens)
        np.testing.assert_array_equal(got.position_E, position)
        np.testing.assert_array_equal(got.target_E, _ids(target))
        np.testing.assert_array_equal(got.valid_EL, np.array(tokens) != PAD)
    assert queries.paired_queries(FACTS._replace(train=()), WORDS, masked=masked) is None


@pytest.mark.parametrize("masked", [True, False])
def test_a_stop_behind_a_name_is_read_and_no_part_of_it(masked):
    words = Words([*FACTS.texts(), "."])
    stops = FACTS._replace(
        reverse=tuple(
            query._replace(answers=tuple(x for a in query.answers for x in (f"{a}.", a)))
            for query in FACTS.reverse
        )
    )
    plain, got = (queries.paired_queries(one, words, masked=masked) for one in (FACTS, stops))
    for want, one in zip(plain, got, strict=True):
        np.testing.assert_array_equal(one.position_E, want.position_E)
        np.testing.assert_array_equal(one.target_E, want.target_E)
    (_, reverse), (_, whole) = plain, got
    stop = words.encode(["Cy."])[0][1:] * masked  # which a causal model does not see
    for number in range(2):
        row, long = (q.tokens_EL[number][q.valid_EL[number]].tolist() for q in (reverse, whole))
        assert long == row + stop
    np.testing.assert_array_equal(got[0].tokens_EL, plain[0].tokens_EL)


@pytest.mark.parametrize("masked", [True, False])
def test_questions_of_one_direction(masked):
    questions, among = queries.first_token_questions(FACTS.reverse, WORDS, masked=masked, num_new=3)
    rows = ["Cy is of", "Eve Fay Gil is of", "Hal is of"]
    tokens = [_ids(row + " _ _ _" * masked) for row in rows]
    assert [
        t[v].tolist() for t, v in zip(questions.tokens_EL, questions.valid_EL, strict=True)
    ] == tokens
    np.testing.assert_array_equal(questions.position_E, np.array([3, 5, 3]) - (not masked))
    np.testing.assert_array_equal(questions.target_E, _ids("Ann Anna Somebody"))
    np.testing.assert_array_equal(among.first_C, sorted(_ids("Ann Anna Somebody")))
    assert among.is_asked_E.all()
    for row, text in zip(among.aside_EX, rows, strict=True):
        assert set(_ids(text)) <= set(row.tolist())
    own, _ = queries.first_token_questions(FACTS.reverse, WORDS, masked=True)
    assert (own.tokens_EL == WORDS.mask_id).sum(axis=1).tolist() == [2, 1, 1]


def test_a_space_that_is_a_token_belongs_to_the_prompt():
    """Where every answer begins with one, the token after it is asked for."""
    characters = Characters()
    asked = [Query("ab is", ("cd",)), Query("e is", ("fgh",))]
    questions, among = queries.first_token_questions(asked, characters, masked=False)
    rows = zip(questions.tokens_EL, questions.valid_EL, strict=True)
    assert [characters.decode(t[v].tolist()) for t, v in rows] == ["ab is ", "e is "]
    np.testing.assert_array_equal(questions.position_E, [5, 4])
    assert characters.decode(questions.target_E.tolist()) == "cf" and among.is_asked_E.all()
    told = FactSet((Statement("cd is", "ab"),), (), (asked[0],))
    forward, reverse = queries.paired_queries(told, characters, masked=False)
    assert characters.decode(forward.tokens_EL[0].tolist()) == "cd is "
    targets = [forward.target_E[0], reverse.target_E[0]]
    assert characters.decode(targets) == "ac"


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_a_table_that_is_known_comes_out(masked, dtype, left):
    """Forward and reverse answers unlike, at unlike places, of one and of several tokens."""
    mask_id = MASK if masked else None
    answers = [[1, 2], [4], [2, 9, 9]]
    prompts = [[3, 10], [5, 6, 7, 10], [10]]
    p = [
        _p(t1=0.5, t4=0.25, t9=0.125, t11=0.125),
        _p(t4=0.0625, t5=0.5, t2=0.25, t11=0.125, t7=0.0625),
        _p(t1=0.5, t2=0.125, t11=0.25, t4=0.0625, t10=0.0625),
    ]
    questions = Cloze.of(prompts, answers, pad_id=PAD, mask_id=mask_id, left=left)
    assert (np.asarray(questions.valid_EL)[:, 0].all() == (not left)).all()
    rows = [[*q, *[MASK] * len(a)] if masked else q for q, a in zip(prompts, answers, strict=True)]
    places = [len(q) - (not masked) for q in prompts]
    model = _table_model(rows, places, p, dtype)
    among = recall.choice_among(questions.target_E, ["a", "b", "c"], prompts)
    got = recall.token_recall(model, 1.0, questions, mask_id=mask_id, among=among, chunk_size=2)

    share = np.array([0.5, 0.0625, 0.125])
    total = np.sum(p, axis=1) - (np.array(p)[:, MASK] if masked else 0)  # [M] is excluded
    rtol = 1e-5 if dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(got.p_E, share / total, rtol=rtol)
    np.testing.assert_allclose(got.nll_E, -np.log(share / total), rtol=rtol)
    assert got.p_E.dtype == np.float32
    # Tokens more probable than the true one: none; 5, 2 (and [M]); 1 (and [M]). Ties are none.
    np.testing.assert_array_equal(got.rank_E, [1, 3, 2] if masked else [1, 4, 3])
    # 4's rivals are 1 and 2, of which 2 is more probable; 5 is more probable yet, and no answer.
    np.testing.assert_array_equal(got.choice_E, [1, 0, 0])


def test_one_direction_is_known_and_the_other_is_not():
    """The two questions of a pair go to their own rows, places and targets, in every measure."""
    pair = queries.paired_queries(FACTS, WORDS, masked=True)
    rows = [q.tokens_EL[e][q.valid_EL[e]].tolist() for q in pair for e in (0, 1)]
    places = [int(q.position_E[e]) for q in pair for e in (0, 1)]
    shares = [0.9, 0.8, 0.01, 0.02]
    p = [
        _p(**{f"t{target}": share, "t9": 1 - share})
        for target, share in zip(_ids("Ann Anna Ann Anna"), shares, strict=True)
    ]
    model = _table_model(rows, places, p)
    for questions, want in zip(pair, (shares[:2], shares[2:]), strict=True):
        found = recall.token_recall(model, 1.0, questions, mask_id=WORDS.mask_id)
        np.testing.assert_allclose(found.p_E, want, rtol=2e-3)
        assert np.isnan(found.choice_E).all()
    losses = recall.paired_losses(model, mask_id=WORDS.mask_id)
    for e in (0, 1):
        one = jax.tree.map(lambda x, e=e: jnp.asarray(x)[e], pair)
        for loss, share in zip(losses, (shares[e], shares[2 + e]), strict=True):
            np.testing.assert_allclose(loss(1.0, one), -np.log(share), rtol=2e-3, atol=2e-3)


def test_the_loss_has_the_gradient_of_its_formula():
    """d/ds of −log softmax(s·x)_A is E_p[x] − x_A, through `alignment`, example by example."""
    pair = queries.paired_queries(FACTS, WORDS, masked=True)
    rows = [q.tokens_EL[e][q.valid_EL[e]].tolist() for q in pair for e in (0, 1)]
    places = [int(q.position_E[e]) for q in pair for e in (0, 1)]
    p = np.random.default_rng(0).dirichlet(np.ones(VOCAB), size=4)
    model = _table_model(rows, places, p)

    def apply_fn(params, tokens_BL, *, valid_BL=None):
        return model(params["scale"], tokens_BL, valid_BL=valid_BL)

    losses = recall.paired_losses(apply_fn, mask_id=WORDS.mask_id)
    got = alignment.alignment(*losses, {"scale": jnp.float32(1.0)}, examples=pair)
    own_R = np.log(p)[np.arange(4), _ids("Ann Anna Ann Anna")]
    p = np.delete(p, WORDS.mask_id, axis=1)
    slope_R = (p * np.log(p)).sum(axis=1) / p.sum(axis=1) - own_R
    np.testing.assert_allclose(got.inner["total"], slope_R[:2] * slope_R[2:], rtol=1e-4)
    np.testing.assert_allclose(got.norm_fwd["scale"], np.abs(slope_R[:2]), rtol=1e-4)


def test_what_a_choice_is_made_among():
    """1 begins two answers; 4 stands in its question; 6 stands in another's, and is no rival."""
    targets, answers = [1, 1, 4, 6, 6], ["a", "b", "c", "d", "d"]
    among = recall.choice_among(targets, answers, [[9], [9, 10], [4, 9], [], [1]])
    np.testing.assert_array_equal(among.first_C, [1, 4, 6])
    np.testing.assert_array_equal(among.is_asked_E, [False, False, False, True, True])
    np.testing.assert_array_equal(among.aside_EX, [[9, 1], [9, 10], [4, 9], [6, 6], [1, 6]])
    np.testing.assert_array_equal(among.right_EX, [[1], [1], [4], [6], [6]])
    none = recall.choice_among(targets, answers)  # no aside: one column, of targets
    np.testing.assert_array_equal(none.aside_EX, [[1], [1], [4], [6], [6]])
    p = [_p(t1=0.5, t6=0.3, t4=0.2)] * 5
    model = _table_model([[e + 1] for e in range(5)], [0] * 5, p)
    questions = Cloze.of([[e + 1] for e in range(5)], [[t] for t in targets], pad_id=PAD)
    got = recall.token_recall(model, 1.0, questions, among=among)
    np.testing.assert_array_equal(got.choice_E, [np.nan, np.nan, np.nan, 0, 1])
    tied = _table_model([[1]], [0], [_p(t6=0.4, t4=0.4)])
    one = Cloze.of([[1]], [[6]], pad_id=PAD)
    others = recall.Among(*map(np.array, ([4, 6], [[6]], [True], [[6]])))
    assert recall.token_recall(tied, 1.0, one, among=others).choice_E == 0
    assert recall.token_recall(tied, 1.0, one).rank_E == 1


def test_a_saturated_model_still_has_ranks():
    """Where softmax is 0 in float32, logits still tell which token is likelier."""
    questions = Cloze.of([[1], [2]], [[3], [4]], pad_id=PAD)
    logits_EV = np.zeros((2, VOCAB), np.float32)
    logits_EV[0, [5, 6, 3]] = 900, 500, 400
    logits_EV[1, [4, 5]] = -500, 900

    def apply_fn(params, tokens_BL, *, valid_BL=None):
        return params[tokens_BL - 1]

    got = recall.token_recall(apply_fn, logits_EV, questions)
    np.testing.assert_array_equal(got.rank_E, [3, VOCAB])
    np.testing.assert_allclose(got.nll_E, [500, 1400])
    np.testing.assert_array_equal(got.p_E, 0)


def test_ten_thousand_pairs_take_seconds_and_little_memory():
    num, vocab = 10_000, 12_000
    targets = np.random.default_rng(0).permutation(num)
    questions = Cloze.of([[q, 1] for q in range(num)], targets[:, None], pad_id=PAD)

    def apply_fn(params, tokens_BL, *, valid_BL=None):
        known_B = targets_jax[tokens_BL[:, 0]]
        return 9.0 * jax.nn.one_hot(known_B, vocab)[:, None].repeat(2, axis=1)

    targets_jax = jnp.asarray(targets)
    start = time.process_time()
    among = recall.choice_among(questions.target_E, targets.tolist(), [[q] for q in range(num)])
    got = recall.token_recall(apply_fn, None, questions, among=among)
    taken = time.process_time() - start
    assert np.nanmean(got.choice_E) == 1 and (got.rank_E == 1).all()
    assert np.isnan(got.choice_E).sum() == (targets == np.arange(num)).sum()
    assert sum(np.asarray(x).nbytes for x in among) < 100 * num
    assert taken < 30, taken


def test_chunks_are_joined_in_order():
    seen = []

    def double(number, x):
        seen.append((number, len(x)))
        return 2 * x, x[:, None]

    first, second = recall.in_chunks(double, (np.arange(7),), 3)
    np.testing.assert_array_equal(first, 2 * np.arange(7))
    np.testing.assert_array_equal(second, np.arange(7)[:, None])
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_what_is_said_is_compared_with_every_right_answer():
    got = recall.text_recall(
        ["ann BO", "Ann Bo, of course", "Cy", "Dee", ""],
        ["Cy's parent is"] * 5,
        [["X", "Ann Bo"]] * 3 + [["Dee"]] + [["E"]],
    )
    np.testing.assert_array_equal(got.exact_E, [True, False, False, True, False])
    np.testing.assert_array_equal(got.begun_E, [True, True, False, True, False])
    np.testing.assert_array_equal(got.copied_E, [False, False, True, False, False])
    assert all(x.dtype == bool for x in got)


def test_bad_questions_are_numbered():
    with pytest.raises(ValueError, match="question 1 has no token"):
        Cloze.of([[1], [2]], [[3], []], pad_id=PAD)
    with pytest.raises(ValueError, match="question 0 has 0 tokens before"):
        Cloze.of([[]], [[3]], pad_id=PAD)
    with pytest.raises(ValueError, match="1 after"):
        Cloze.of([[1]], [[3]], [[4]], pad_id=PAD)
    with pytest.raises(ValueError, match="no questions"):
        Cloze.of([], [], pad_id=PAD)


def test_a_question_tells_the_share_of_its_own_tokens_that_is_hidden():
    told = []

    def apply_fn(params, tokens_BL, *, valid_BL, noise_B):
        told.append(noise_B)
        return jnp.zeros((*tokens_BL.shape, VOCAB))

    questions = Cloze.of([[3], [5, 6, 7]], [[1], [2]], pad_id=PAD, mask_id=MASK)
    recall.logits_at(apply_fn, {}, questions, mask_id=MASK)
    np.testing.assert_allclose(told[0], [1 / 2, 1 / 4])


def test_rows_without_padding_are_those_filled_up_on_the_right():
    rows = dict(before=[[5], [6, 7]], answers=[[1], [2]], pad_id=0)
    found = dict(
        (tuple(place), part.tokens_EL.tolist())
        for place, (part,) in recall.of_one_length(Cloze.of(**rows))
    )
    assert found == {(0,): [[5]], (1,): [[6, 7]]}
    with pytest.raises(ValueError, match="filled up on the right"):
        list(recall.of_one_length(Cloze.of(**rows, left=True)))


def test_a_choice_is_asked_where_every_right_token_is_the_questions_own():
    """Of two right answers one begins as another question's, or stands in the question."""
    among = recall.choice_among([5, 7, 8], ["Ann", "Bo", "Ed"], None, [{6: "Cy"}, {6: "Di"}, {}])
    assert among.right_EX.tolist() == [[5, 6], [7, 6], [8, -1]]  # filled up by −1
    assert among.is_asked_E.tolist() == [False, False, True]
    among = recall.choice_among([5, 7], ["Ann", "Bo"], [[6], [6]], [{6: "Cy"}, {}])
    assert among.is_asked_E.tolist() == [False, True]
