"""What a fact set asks, as a model reads it; known answers go through in tests/experiments."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym.analysis import queries, questions, recall
from dirasym.analysis.questions import Questions, finite_texts
from dirasym.data.facts import FactSet, Query, Statement
from dirasym.data.tokenizers import Characters, Words
from dirasym.usage import UsageError

FACTS = FactSet(
    (Statement("Ann Bo's child is", "Cy"), Statement("Dee's child is", "Ed Fay Gil")),
    (
        Query("Ann Bo's child is", ("Cy", "Kim Lo Mae Ned Ole")),
        Query("Dee's child is", ("Ed Fay",)),
    ),
    (Query("Cy's parent is", ("Ann Bo",)),),
)
WORDS = Words(FACTS.texts())


def test_questions_are_the_forward_and_then_the_reverse_ones():
    asked = Questions.of(FACTS, WORDS, masked=True)
    assert asked.num_new == 6  # Kim Lo Mae Ned Ole, and the end
    rows = [row[valid] for row, valid in zip(asked.tokens_EL, asked.valid_EL, strict=True)]
    assert [WORDS.decode(row) for row in rows] == [query.prompt for query in asked.queries]
    assert asked.queries == FACTS.forward + FACTS.reverse
    assert [asked.queries[side] for side in asked.sides.values()] == [FACTS.forward, FACTS.reverse]
    cloze, _ = asked.first["forward"]
    assert (cloze.tokens_EL[0] == WORDS.mask_id).sum() == 6
    assert WORDS.decode(cloze.target_E) == "Cy Ed"
    cloze, _ = Questions.of(FACTS, WORDS, masked=False, num_new=2).first["reverse"]
    assert WORDS.decode(cloze.tokens_EL[0]) == "Cy's parent is" and cloze.position_E == [3]
    for left, column in ((False, 0), (True, -1)):
        asked = Questions.of(FACTS, WORDS, masked=False, left=left)
        for valid_EL in (asked.valid_EL, asked.first["forward"][0].valid_EL):
            assert valid_EL[:, column].all() and not valid_EL.all()


def test_what_is_said_ends_at_the_end_of_text():
    asked = Questions.of(FACTS, WORDS, masked=False)
    keys = []

    def generate(params, key, tokens_BL, valid_BL):
        keys.append(jax.random.key_data(key).tolist())
        says = {"Ann": "Cy", "Dee": "Ed Fay Gil Kim Lo Mae", "Cy": "Ann Bo"}
        ids = [WORDS.encode([says[WORDS.decode(row[:1])]])[0] for row in np.asarray(tokens_BL)]
        junk = WORDS.encode(["Ole"])[0]  # behind the end
        return np.array([(row + [WORDS.eos_id] + junk * 6)[:6] for row in ids])

    key = jax.random.key(3)
    said = asked.said(generate, None, key, chunk_size=2)
    assert said == ["Cy", "Ed Fay Gil Kim Lo Mae", "Ann Bo"]
    want = [jax.random.key_data(jax.random.fold_in(key, n)).tolist() for n in (0, 1)]
    assert keys == want


def test_a_reverse_question_is_paired_with_the_first_statement_that_tells_it():
    told = FACTS._replace(train=(*FACTS.train, Statement("Ann Bo's son is", "Kim")))
    words = Words(told.texts())
    ((forward, _),) = [queries.paired_queries(told, words, masked=False)]
    assert len(forward.target_E) == 1 and words.decode(forward.target_E) == "Cy"


def test_as_many_pairs_are_asked_as_allowed():
    twice = FACTS._replace(reverse=FACTS.reverse * 2)
    for limit, number in ((None, 2), (1, 1)):
        pairs = queries.paired_queries(twice, WORDS, masked=True, limit=limit)
        assert [len(side.target_E) for side in pairs] == [number] * 2


@pytest.mark.parametrize(("any_right", "right"), [(False, "Cy"), (True, "Cy Kim")])
def test_the_first_answer_is_right_or_any_is(any_right, right):
    how = dict(masked=True, any_right=any_right)
    _, among = queries.first_token_questions(FACTS.forward, WORDS, **how)
    assert WORDS.decode(among.right_EX[0][among.right_EX[0] >= 0]) == right


def test_a_space_that_is_a_token_takes_one_of_the_answers_places():
    letters = Characters()
    letters.mask_id = letters.encode(["~"])[0][0]
    asked, _ = queries.first_token_questions(FACTS.forward, letters, masked=True, num_new=4)
    for row, query, answer in zip(asked.tokens_EL, FACTS.forward, "CE", strict=True):
        known = letters.encode([f"{query.prompt} "])[0]
        assert row[: len(known) + 3].tolist() == [*known, *[letters.mask_id] * 3]
        assert (row == letters.mask_id).sum() == 3
        assert letters.encode([answer])[0][0] in asked.target_E
    for num_new in (1, 2):  # one place is left for the answer, whatever the space takes
        few, _ = queries.first_token_questions(FACTS.forward, letters, masked=True, num_new=num_new)
        assert ((few.tokens_EL == letters.mask_id).sum(axis=1) == 1).all()


@pytest.mark.parametrize("left", [False, True])
def test_a_model_that_knows_no_padding_is_given_none(left):
    asked, read = Questions.of(FACTS, WORDS, masked=False, left=left), []

    def generate(params, key, tokens_BL, valid_BL):
        assert valid_BL is None
        read.extend(map(WORDS.decode, np.asarray(tokens_BL)))
        return np.asarray(tokens_BL)[:, -1:].repeat(asked.num_new, axis=1)

    new_EN = asked.generated(generate, None, jax.random.key(0), padded=False)
    assert sorted(read) == sorted(query.prompt for query in asked.queries)
    last = [query.prompt.split()[-1] for query in asked.queries]
    assert [WORDS.decode(row[:1]) for row in new_EN] == last


def test_tokens_that_the_tokenizer_lacks_end_a_text_and_are_no_answer():
    asked = Questions.of(FACTS, WORDS, masked=False)
    (known,) = WORDS.encode(["Cy"])[0]
    rows = [[known, 99, known], [known, WORDS.eos_id, 99], [99, known, known]]
    assert asked.texts(np.array(rows)) == ["Cy \ufffd", "Cy", " \ufffd"]
    assert asked.texts(np.array([[known, known]])) == ["Cy Cy"]
    # Where logits were NaN stands −1; token 0 is one like others.
    (first,) = [WORDS.decode([0])]
    assert asked.texts(np.array([[0, known, -1], [-1, 0, 0]])) == [f"{first} Cy \ufffd", " \ufffd"]


def test_the_question_that_nan_answers_is_named():
    asked = Questions.of(FACTS, WORDS, masked=False)
    rows = np.zeros((3, 2), int)
    assert len(finite_texts(asked, rows, asked.queries)) == 3
    for number, place in ((0, 1), (2, 0)):
        bad = rows.copy()
        bad[number, place] = -1
        with pytest.raises(UsageError, match=f"NaN at {asked.queries[number].prompt!r}:"):
            finite_texts(asked, bad, asked.queries)


def test_a_summary_takes_means_medians_and_leaves_out_what_cannot_be_asked():
    found = questions.Recalled(
        recall.TextRecall(np.array([1, 0, 0, 0]) > 0, np.array([1, 1, 0, 0]) > 0, np.arange(4) > 0),
        recall.TokenRecall(
            np.array([0.1, 0.2, 0.3, 0.8]), np.zeros(4), np.array([1, 9, 4, 2]),
            np.array([1.0, 0.0, np.nan, 1.0]),
        ),
    )  # fmt: skip
    got = found.summary()
    known = dict(percent=25, begun_percent=50, copied_percent=75, choice_percent=200 / 3)
    known |= dict(p=0.35, rank=3, questions=4)
    assert list(got) == list(known)
    np.testing.assert_allclose(list(got.values()), list(known.values()))
    none = found.token._replace(choice_E=np.full(4, np.nan))
    assert np.isnan(found._replace(token=none).summary()["choice_percent"])


def test_questions_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="and 6 tokens after it are 11, the context has 10"):
        Questions.of(FACTS, WORDS, masked=True, max_len=10)
    Questions.of(FACTS, WORDS, masked=True, max_len=11)
    with pytest.raises(ValueError, match=r"needs \[M\]"):
        Questions.of(FACTS, Characters(), masked=True)
    asked = Questions.of(FACTS, WORDS, masked=True)
    with pytest.raises(ValueError, match="6 new tokens do not divide into blocks of 4"):
        asked.generator(lambda params, tokens_BL: None, block_length=4)
    with pytest.raises(ValueError, match="4 steps do not divide into 3 blocks"):
        asked.generator(lambda params, tokens_BL: None, block_length=2, num_steps=4)


def test_answers_are_read_once_each_as_they_follow_their_prompt():
    facts = FACTS._replace(train=FACTS.train[::-1] * 2)
    tokens = questions.answer_tokens(facts, WORDS)
    assert [WORDS.decode(row) for row in tokens] == ["Cy", "Ed Fay Gil"]
    assert questions.answer_tokens(facts, WORDS, 1) == tokens[:1]


def test_gradients_are_of_what_is_trained_alone():
    """−log softmax(a·b·x): of a with b frozen at 2, ⟨,⟩ is 4 times that of b = 1 at a·b = 1."""
    pairs = queries.paired_queries(FACTS, WORDS, masked=True)
    pairs[1].target_E[:] = WORDS.encode(["Gil"])[0]  # another than the forward ones
    x_V = jnp.arange(WORDS.vocab_size) / 10

    def apply_fn(params, tokens_BL):
        return (params["head"] * params["frozen"] * x_V)[None, None].repeat(
            tokens_BL.shape[1], axis=1
        )

    inner = []
    for head, frozen in ((1.0, 1.0), (0.5, 2.0)):
        got = questions.pair_alignment(
            lambda params, tokens_BL, valid_BL: apply_fn(params, tokens_BL),
            {"head": jnp.float32(head)},
            pairs,
            mask_id=WORDS.mask_id,
            variables=lambda trained, frozen=frozen: {**trained, "frozen": jnp.float32(frozen)},
        )
        assert set(got.inner) == {"head", "total"}
        for side, norms in zip(pairs, (got.norm_fwd, got.norm_rev), strict=True):
            p_V = jax.nn.softmax(jnp.where(jnp.arange(len(x_V)) == WORDS.mask_id, -jnp.inf, x_V))
            slope_E = frozen * (p_V @ x_V - x_V[side.target_E])
            np.testing.assert_allclose(norms["total"], jnp.abs(slope_E), rtol=1e-4)
        inner.append(np.asarray(got.inner["head"]))
    np.testing.assert_allclose(inner[1], 4 * inner[0], rtol=1e-5)


@pytest.mark.slow
def test_ten_thousand_facts_are_asked_in_seconds():
    names = [f"n{number}" for number in range(20_000)]
    pairs = list(zip(names[::2], names[1::2], strict=True))
    facts = FactSet(
        tuple(Statement(f"{a}'s child is", b) for a, b in pairs),
        tuple(Query(f"{a}'s child is", (b,)) for a, b in pairs),
        tuple(Query(f"{b}'s parent is", (a,)) for a, b in pairs),
    )
    start = time.process_time()
    words = Words(facts.texts())
    asked = Questions.of(facts, words, masked=True)
    forward, reverse = queries.paired_queries(facts, words, masked=True)
    taken = time.process_time() - start
    assert len(forward.target_E) == len(reverse.target_E) == len(pairs)
    assert asked.first["reverse"][1].is_asked_E.all()
    assert len(queries.paired_queries(facts, words, masked=True, limit=3)[0].target_E) == 3
    assert taken < 60, taken


def test_a_question_is_answered_as_its_generator_is_told(monkeypatch):
    told = []
    for name in ("remask", "greedy"):
        monkeypatch.setattr(
            questions.decoding, name, lambda *args, **how: told.append(how) or args[2]
        )
    rows = np.zeros((1, 2), int), np.ones((1, 2), bool)
    how = dict(num_steps=3, block_length=2, remasking="random")
    masked = Questions.of(FACTS, WORDS, masked=True)
    masked.generator(None, **how)(None, jax.random.key(0), *rows)
    Questions.of(FACTS, WORDS, masked=False).generator(None)(None, None, *rows)
    want = how | dict(num_new=6, mask_id=WORDS.mask_id)
    assert told == [want, dict(num_new=6, eos_id=WORDS.eos_id)]
