import re

import chex
import jax
import numpy as np
import pytest
from absl.testing import parameterized

from dirasym.data import batching, facts, tokenizers
from dirasym.data.batching import batch_at, batch_indices, epoch_indices


class BatchAtTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters((12, 4), (10, 4), (7, 3), (3, 8), (5, 5), (1, 1))
    def test_every_epoch_sees_every_example_once(self, n, b):
        at = self.variant(lambda key, step: batch_at({"x": np.arange(n)}, key, step, b)["x"])
        epochs = 6
        steps = -(-epochs * n // b)
        stream = np.concatenate([at(jax.random.key(0), t) for t in range(steps)])
        orders = stream[: epochs * n].reshape(epochs, n)
        np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(n), (epochs, 1)))
        if n > 6:
            assert len({tuple(order) for order in orders}) == epochs


def test_a_masked_model_needs_a_mask():
    told = facts.FactSet((facts.Statement("ab is", "c"),), (), ())
    assert batching.encode_facts(tokenizers.Characters(), told, masked=False)
    with pytest.raises(ValueError, match=r"needs \[M\], and its tokenizer has none"):
        batching.encode_facts(tokenizers.Characters(), told, masked=True)


def test_does_not_depend_on_how_steps_are_grouped():
    key = jax.random.key(1)
    whole = batch_indices(key, 0, 11, 13, 5)
    parts = [batch_indices(key, 0, 4, 13, 5), batch_indices(key, 4, 7, 13, 5)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize(("n", "b"), [(12, 4), (10, 4), (3, 8)])
def test_epochs_that_end_by_themselves(n, b):
    key, per_epoch = jax.random.key(5), -(-n // b)
    indices = np.asarray(epoch_indices(key, 0, 3 * per_epoch, n, b))
    epochs = indices.reshape(3, -1)
    for epoch in epochs:  # the last batch is filled up with -1
        np.testing.assert_array_equal(np.sort(epoch[epoch >= 0]), np.arange(n))
        assert (epoch[n:] == -1).all() and (epoch[:n] >= 0).all()
    assert n == 3 or len({tuple(epoch) for epoch in epochs.tolist()}) == 3  # each of its order
    for first in (1, 2 * per_epoch):
        later = epoch_indices(key, first, per_epoch, n, b)
        np.testing.assert_array_equal(later, indices[first : first + per_epoch])


def test_far_steps_do_not_overflow():
    # Step 2**30 of batch 3 is slot 3·2**30, beyond int32; 2**30 = 7·153391689 + 1.
    far = batch_indices(jax.random.key(2), 2**30, 1, 7, 3)
    assert far.min() >= 0 and far.max() < 7 and len(set(far[0].tolist())) == 3


def test_many_examples_in_large_batches_do_not_overflow():
    # Step t begins at slot t·b of the stream, which is beyond int32 within the first n steps.
    n, b, step, key = 5_000, 1_000_003, 4_321, jax.random.key(2)
    got = batch_indices(key, np.int32(step), 1, n, b)[0]
    epoch, slot = divmod(step * b, n)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), n)
    np.testing.assert_array_equal(got[: n - slot], order[slot:])


def test_keys_change_the_order_and_pytrees_stay_aligned():
    arrays = {"a": np.arange(40), "b": -np.arange(40)[:, None]}
    batch = batch_at(arrays, jax.random.key(3), 2, 16)
    np.testing.assert_array_equal(batch["a"], -batch["b"][:, 0])
    other = batch_at(arrays, jax.random.key(4), 2, 16)
    assert (np.asarray(batch["a"]) != np.asarray(other["a"])).any()


def test_bad_input():
    with pytest.raises(ValueError, match="leading size"):
        batch_at({"a": np.arange(3), "b": np.arange(4)}, jax.random.key(0), 0, 2)
    with pytest.raises(ValueError, match="leading size"):
        batch_at({"a": 3.0}, jax.random.key(0), 0, 2)
    with pytest.raises(ValueError, match="batch"):
        batch_at(np.arange(3), jax.random.key(0), 0, 0)
    for order in (batching.batch_indices, batching.epoch_indices):
        with pytest.raises(ValueError, match="from 0, got -1"):
            order(jax.random.key(0), -1, 1, 3, 2)


def _fields(data, tokenizer, **options):
    return batching.encode_rows(
        tokenizer, [s.prompt for s in data], [f" {s.answer}" for s in data], **options
    )


def test_answers_are_scored_and_prompts_are_not():
    characters = tokenizers.Characters()
    data = batching.encode_rows(characters, ["ab:", "c:"], [" d", " ef"])
    np.testing.assert_array_equal(data["scored_BL"], [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    assert data["valid_BL"].all() and data["tokens_BL"].dtype == np.int32
    assert characters.decode(data["tokens_BL"][1]) == "c: ef"


def test_answers_and_the_end_are_scored():
    tokenizer = tokenizers.Words(["a's child is b c"])
    statements = [facts.Statement("a's child is", "b c"), facts.Statement("b is", "c")]
    arrays = _fields(statements, tokenizer, ends="one")
    scored = np.array([[0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0]], bool)
    np.testing.assert_array_equal(arrays["scored_BL"], scored)
    assert arrays["tokens_BL"][1].tolist()[3:] == [tokenizer.eos_id, *[tokenizer.pad_id] * 3]
    np.testing.assert_array_equal(arrays["valid_BL"].sum(1), [7, 4])
    filled = _fields(statements, tokenizer, ends="fill")
    assert (filled["tokens_BL"][1, 3:] == tokenizer.eos_id).all() and filled["valid_BL"].all()
    np.testing.assert_array_equal(filled["scored_BL"][1], [0, 0, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="has 7 tokens, the context 6"):
        _fields(statements, tokenizer, ends="one", max_len=6)
    _fields(statements, tokenizer, ends="one", max_len=7)


def test_rows_padded_on_the_left_hold_the_same():
    tokenizer = tokenizers.Words(["Ann's child is Bo Cy", "Bo is Ann"])
    statements = [facts.Statement("Ann's child is", "Bo Cy"), facts.Statement("Bo is", "Ann")]
    options = dict(ends="one", names=("Ann", "Bo", "Bo Cy"))
    right = _fields(statements, tokenizer, **options)
    left = _fields(statements, tokenizer, length=9, left=True, **options)
    for row in (0, 1):
        at = right["valid_BL"][row], left["valid_BL"][row]
        for name in ("tokens_BL", "scored_BL"):
            np.testing.assert_array_equal(left[name][row][at[1]], right[name][row][at[0]])
        units = [x["unit_BL"][row][valid] for x, valid in zip((right, left), at, strict=True)]
        np.testing.assert_array_equal(units[1] - at[1].argmax(), units[0])
    assert left["valid_BL"][:, -1].all() and left["tokens_BL"].shape == (2, 9)
    with pytest.raises(ValueError, match="not filled up on the left"):
        _fields(statements, tokenizer, ends="fill", left=True)
    with pytest.raises(ValueError, match="is longer than 3"):
        _fields(statements, tokenizer, length=3)


class _Joins(tokenizers.Characters):
    """Joins `:` with the space behind it."""

    def encode(self, texts):
        return [[ord(c) for c in text.replace(": ", ";")] for text in texts]

    def offsets(self, texts):
        return [[m.span() for m in re.finditer(r": |.", text)] for text in texts]


def test_what_cannot_be_parted_or_given_back_is_named():
    with pytest.raises(ValueError, match="joins the end of 'ab:' with what follows it, ' d'"):
        batching.split_answers(_Joins(), ["ab:"], [" d"])
    characters = tokenizers.Characters()
    for prompt, answer, message in (("ab", "", "left of ''"), ("", "ab", "left of ''")):
        with pytest.raises(ValueError, match=message):
            batching.split_answers(characters, [prompt], [answer])
    with pytest.raises(ValueError, match="there is no text"):
        batching.encode_rows(characters, [], [])

    class Forgets(tokenizers.Characters):
        def decode(self, ids):
            return super().decode(ids).replace("q", "k")

    with pytest.raises(ValueError, match="turns the answer ' quo' into ' kuo'"):
        batching.split_answers(Forgets(), ["who?"], [" quo"])


def test_units_are_answers_and_the_longest_names_in_prompts():
    pairs = [facts.ParentChild("Ann Bo", "Cy Dee", ("Cy Dee",))]
    others = [facts.ParentChild("Gu", "Cy Dee Eff", ("Cy Dee Eff",))]
    data = facts.parent_child(pairs, "p2c", others)
    names = {"Ann Bo", "Cy Dee", "Gu", "Cy Dee Eff"}
    tokenizer = tokenizers.Words([" ".join(text) for text in data.train])
    expected = [  # such as "Cy Dee | 's | child | is | Ann Bo | end"
        [0, 0, 2, 3, 4, 5, 5, 7],
        [0, 0, 0, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 4, 4, 7],
    ]
    units = _fields(data.train, tokenizer, ends="one", names=names)["unit_BL"]
    np.testing.assert_array_equal(units, expected)


def test_a_token_across_a_names_end_belongs_to_the_name():
    class Jr(tokenizers.Words):  # "Jr.'" is one token, as in SmolLM2's vocabulary
        _WORD = re.compile(r"Jr\.'?|\w+|'")

    statements = [facts.Statement("Al Bo Jr.'s child is", "Cy Dee")]
    tokenizer = Jr(["Al Bo Jr.'s child is Cy Dee"])
    units = _fields(statements, tokenizer, names={"Al Bo Jr.", "Cy Dee"}, length=9)["unit_BL"]
    np.testing.assert_array_equal(units, [[0, 0, 0, 3, 4, 5, 6, 6, 8]])


def test_texts_are_packed_one_after_another():
    characters = tokenizers.Characters("abc")
    rows = batching.pack(characters, ["ab", "cab", "c"], 3)
    np.testing.assert_array_equal(rows, [[0, 1, 3], [2, 0, 1], [3, 2, 3]])
    with pytest.raises(ValueError, match="has 9 tokens, a row 10"):
        batching.pack(characters, ["ab", "cab", "c"], 10)


FACTS = facts.FactSet(
    (facts.Statement("Ann Bo's child is", "Cy"), facts.Statement("Dee's child is", "Ed Fay")),
    (facts.Query("Ann Bo's child is", ("Cy",)),),
    (facts.Query("Cy's parent is", ("Ann Bo",)),),
)


def test_facts_for_a_causal_model_score_answers_and_their_ends():
    words = tokenizers.Words(FACTS.texts())
    rows = batching.encode_facts(words, FACTS, masked=False)
    scored = zip(rows["tokens_BL"], rows["scored_BL"], strict=True)
    assert [words.decode(row[seen]) for row, seen in scored] == ["Cy <eos>", "Ed Fay <eos>"]
    assert rows["valid_BL"].sum(axis=1).tolist() == [7, 7]


def test_facts_for_a_masked_model_go_on_with_ends_and_hide_what_they_should():
    words = tokenizers.Words(FACTS.texts())
    whole, names, answer = (
        batching.encode_facts(words, FACTS, masked=True, noising=noising)
        for noising in ("whole", "names", "answer")
    )
    for rows in (whole, names, answer):
        assert "valid_BL" not in rows
        np.testing.assert_array_equal(rows["tokens_BL"], whole["tokens_BL"])
    assert whole["scored_BL"].all() and names["scored_BL"].all()
    assert "unit_BL" not in whole and "unit_BL" not in answer
    # Ann Bo 's child is Cy <eos> | Dee 's child is Ed Fay <eos>
    np.testing.assert_array_equal(names["unit_BL"], [[0, 0, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 4, 6]])
    np.testing.assert_array_equal(answer["scored_BL"].sum(axis=1), [2, 3])
    with pytest.raises(ValueError, match="has 7 tokens, the context 6"):
        batching.encode_facts(words, FACTS, masked=True, max_len=6)
    # Dee 's child is Ed Fay <eos> | Ed Fay 's parent is Dee <eos>, where neither is asked about
    pair = facts.ParentChild("Ed Fay", "Dee", ("Dee",))
    both = facts.FactSet(facts.parent_child([], both_ways=[pair]).train, FACTS.forward, ())
    both_ways = batching.encode_facts(words, both, masked=True, noising="names")
    units = [[0, 1, 2, 3, 4, 4, 6], [0, 0, 2, 3, 4, 5, 6]]
    np.testing.assert_array_equal(both_ways["unit_BL"], units)
    words.mask_id = words.encode(["Cy"])[0][0]
    with pytest.raises(ValueError, match=r"the statements hold token \d+, \[M\]"):
        batching.encode_facts(words, FACTS, masked=True)
