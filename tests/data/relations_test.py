import numpy as np
import pytest

from dirasym.data import relations
from dirasym.data.relations import BOTH, IMPLIES, LEFT, RIGHT


def _sets(data):
    return {tuple(row) for row in data.train_EL}, {tuple(row) for row in data.validation_EL}


@pytest.mark.parametrize(("word_size", "pairs", "train"), [(1, 200, 140), (2, 400, 280)])
def test_reversal_trains_both_directions_or_validates_the_other(word_size, pairs, train):
    data = relations.reversal(word_size=word_size)
    held = pairs - train
    assert data.train_EL.shape == (2 * train + held, 2 * word_size + 1)
    assert len(data.validation_EL) == held and data.num_candidates == pairs
    given, withheld = _sets(data)
    assert len(given) == len(data.train_EL) and not given & withheld

    def other(row):
        first, sign, second = row[:word_size], row[word_size], row[word_size + 1 :]
        return (*second, {RIGHT: LEFT, LEFT: RIGHT}[sign], *first)

    assert all(other(row) in given for row in withheld)
    assert sum(other(row) in given for row in given) == 2 * train
    signs = [row[word_size] for row in withheld]
    assert 0.3 < np.mean(signs) < 0.7  # a coin


def test_entities_are_distinct_and_of_disjoint_alphabets():
    for word_size in (1, 2, 3, 5):
        data = relations.reversal(word_size=word_size)
        forward = data.train_EL[data.train_EL[:, word_size] == RIGHT]
        a, b = forward[:, :word_size], forward[:, word_size + 1 :]
        assert not set(a.ravel()) & set(b.ravel())
        assert len({tuple(w) for w in a}) == len({tuple(w) for w in b}) == len(forward)
        assert forward[:, :word_size].min() >= 2 and data.train_EL.max() < data.vocab_size == 802


def test_words_of_three_are_capped_as_in_the_original():
    assert len(relations.reversal(word_size=3).train_EL) == 2 * 100 + 50
    data = relations.chain(word_size=3)
    assert (len(data.train_EL), len(data.validation_EL)) == (3 * 100 + 2 * 50, 50)


def test_chain_withholds_only_the_third_sentence():
    data = relations.chain()
    given, withheld = _sets(data)
    assert (len(given), len(withheld)) == (3 * 140 + 2 * 60, 60) and not given & withheld
    after = {a: b for a, sign, b in given if sign == RIGHT}
    for a, sign, c in withheld:
        assert sign == IMPLIES and after[after[a]] == c
    implied = {a: c for a, sign, c in given if sign == IMPLIES}
    assert len(implied) == 140 and all(after[after[a]] == c for a, c in implied.items())


def test_related_chain_shares_the_index():
    data = relations.chain_related()
    assert data.train_EL.shape == (3 * 200 + 2 * 50, 5) and data.validation_EL.shape == (50, 5)
    rows = np.concatenate([data.train_EL, data.validation_EL])
    np.testing.assert_array_equal(rows[:, 1], rows[:, 4])
    a, c = data.validation_EL[0, [0, 3]]
    (b,) = set(data.train_EL[:, 0]) - {a}
    kinds = {tuple(kind) for kind in data.train_EL[:, [0, 2, 3]]}
    assert kinds == {(a, RIGHT, b), (b, RIGHT, c), (a, IMPLIES, c)}
    assert not {a, b, c} & set(rows[:, 1])
    index = [row[1] for row in data.train_EL if row[2] == IMPLIES]
    assert len(set(index)) == 200 and not set(index) & set(data.validation_EL[:, 1])


def test_in_context_sentences_hold_their_answer():
    data = relations.in_context()
    given, withheld = _sets(data)
    assert (len(given), len(withheld)) == (700, 300) and not given & withheld
    for row in given | withheld:
        a, b = row[0], row[2]
        assert row == (a, RIGHT, b, BOTH, b, LEFT, a)
    counts = np.unique([row[0] for row in withheld], return_counts=True)[1]
    assert counts.tolist() == [3] * 100  # of each A
    assert {row[2] for row in withheld} == {row[2] for row in given}  # each B with other A's


def test_in_context_sentences_tell_several_facts_and_ask_for_one():
    plain, data = relations.in_context(), relations.in_context(num_facts=3)
    assert data.train_EL.shape == (700, 3 * 3 + 4) and data.validation_EL.shape == (300, 13)
    place = []
    for name in ("train_EL", "validation_EL"):
        pairs = {(row[0], row[2]) for row in getattr(plain, name).tolist()}
        for row in getattr(data, name).tolist():
            told = [(row[3 * n], row[3 * n + 2]) for n in range(3)]
            assert [row[3 * n + 1] for n in range(3)] == [RIGHT] * 3
            assert set(told) <= pairs and len({x for fact in told for x in fact}) == 6
            assert row[9] == BOTH and row[11] == LEFT
            place.append(told.index((row[12], row[10])))  # what is asked is told
    assert {(row[12], row[10]) for row in data.train_EL.tolist()} == {
        (row[0], row[2]) for row in plain.train_EL.tolist()
    }
    assert np.all(np.abs(np.bincount(place) / 1000 - 1 / 3) < 0.06)


def test_fresh_sentences_tell_facts_of_one_part_and_ask_for_one_that_may_be_asked():
    how = dict(num_facts=4, num_asked=2, num_train=3000, num_validation=400)
    data = relations.fresh_in_context(10, **how)
    assert data.train_EL.shape == (3000, 3 * 4 + 4) and data.validation_EL.shape == (400, 16)
    assert (data.vocab_size, data.num_candidates, data.word_size) == (23, 10, 1)
    place, pairs = {}, {}
    for name in ("train_EL", "validation_EL"):
        place[name], pairs[name] = [], set()
        for row in getattr(data, name).tolist():
            told = [(row[3 * n], row[3 * n + 2]) for n in range(4)]
            assert [row[3 * n + 1] for n in range(4)] == [RIGHT] * 4
            assert len({a for a, _ in told}) == len({b for _, b in told}) == 4
            assert all(3 <= a < 13 <= b < 23 for a, b in told)
            assert row[12] == BOTH and row[14] == LEFT
            place[name].append(told.index((row[15], row[13])))  # what is asked is told
            pairs[name].update(told)
    given, withheld = pairs["train_EL"], pairs["validation_EL"]
    assert (len(given), len(withheld)) == (70, 30) and not given & withheld
    assert np.unique([a for a, _ in withheld], return_counts=True)[1].tolist() == [3] * 10
    assert place["validation_EL"] == [0, 1, 2, 3] * 100
    assert np.all(np.abs(np.bincount(place["train_EL"]) / 3000 - [0, 0, 0.5, 0.5]) < 0.04)
    assert len({tuple(row) for row in data.train_EL.tolist()}) > 2990  # drawn anew


def test_every_place_of_a_fresh_sentence_has_the_same_facts_and_all_are_asked():
    data = relations.fresh_in_context(4, num_facts=3, num_train=9000, seed=1)
    asked = (data.train_EL[:, [0, 3, 6]] == data.train_EL[:, -1:]).mean(axis=0)
    np.testing.assert_allclose(asked, 1 / 3, atol=0.02)
    for place in (0, 3, 6):  # a fact that was drawn early is told at any place
        shares = np.unique(data.train_EL[:, place], return_counts=True)[1] / 9000
        np.testing.assert_allclose(shares, 1 / 4, atol=0.02)


def test_panels_are_aligned_and_end_in_different_tokens():
    for data in (
        relations.reversal(),
        relations.chain(),
        relations.chain_related(),
        relations.in_context(),
        relations.in_context(num_facts=3),
    ):
        train, validation = _sets(data)
        for name, panel in data.panels.items():
            assert len(set(panel[:, -1])) == len(panel)
            assert {tuple(row) for row in panel} <= (validation if name == "withheld" else train)
    panels = relations.reversal().panels
    np.testing.assert_array_equal(panels["given"][:, 0], panels["withheld"][:, -1])
    assert (panels["given"][:, 1] == RIGHT).all() and (panels["withheld"][:, 1] == LEFT).all()
    np.testing.assert_array_equal(panels["a_to_b"][:, 0], panels["b_to_a"][:, -1])
    panels = relations.chain().panels
    np.testing.assert_array_equal(panels["a_to_b"][:, -1], panels["b_to_c"][:, 0])
    np.testing.assert_array_equal(panels["withheld"][:, -1], panels["b_to_c"][:, -1])
    assert relations.reversal(word_size=2).panels == {}


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_share_that_trains_is_as_told(share):
    """Of 10 pairs, of 10 triples, and of the 10 B's of each of 4 A's."""
    trained, how = round(10 * share), dict(train_share=share)
    data = relations.reversal(40, **how)
    assert (len(data.train_EL), len(data.validation_EL)) == (10 + trained, 10 - trained)
    data = relations.chain(40, **how)
    assert (len(data.train_EL), len(data.validation_EL)) == (20 + trained, 10 - trained)
    data = relations.in_context(40, num_first=4, **how)
    assert (len(data.train_EL), len(data.validation_EL)) == (4 * trained, 4 * (10 - trained))


def test_last_word():
    data = relations.chain_related()
    assert data.last_word(data.train_EL[:2]).tolist() == [[False, False, False, True, True]] * 2


def test_ids_are_those_of_the_vocabulary_behind_the_relations():
    for make, reserved in (
        (relations.reversal, 2),
        (relations.chain, 2),
        (relations.chain_related, 2),
        (relations.in_context, 3),
    ):
        data = make(700)
        assert data.vocab_size == 700 + reserved
    data = relations.in_context(20, num_first=16, num_second=4)  # every token is an entity
    rows = np.concatenate([data.train_EL, data.validation_EL])
    assert set(np.unique(rows)) == set(range(data.vocab_size))


def test_the_seed_decides_everything():
    for make in (
        relations.reversal,
        relations.chain,
        relations.chain_related,
        relations.in_context,
        relations.fresh_in_context,
    ):
        np.testing.assert_array_equal(make(seed=3).train_EL, make(seed=3).train_EL)
        assert (make(seed=3).train_EL != make(seed=4).train_EL).any()


def test_bad_input():
    for make, words in (
        (lambda: relations.reversal(3), "vocabulary of 3 is too small"),
        (lambda: relations.chain(4), "splits 1 into"),
        (lambda: relations.reversal(word_size=0), "word_size must be positive"),
        (lambda: relations.reversal(train_share=1.0), r"in \(0, 1\), got 1.0"),
        (lambda: relations.reversal(8, train_share=0.9), "2 to train on and 0 to validate"),
        (lambda: relations.chain_related(100), "no room for 600 indices"),
        (lambda: relations.chain_related(num_train=600), "600 triples to train on and 50"),
        (lambda: relations.chain_related(num_validation=0), "0 to validate"),
        (lambda: relations.in_context(100), "no room for 100"),
        (lambda: relations.in_context(num_facts=8, num_second=7), "no 8 facts of different"),
        (lambda: relations.in_context(num_facts=0), "num_facts must be positive"),
        (lambda: relations.in_context(num_first=0), "num_first must be positive"),
        (lambda: relations.fresh_in_context(num_asked=3), "num_asked=3 <= num_facts=2"),
        (lambda: relations.fresh_in_context(num_asked=0), "1 <= num_asked=0"),
        (lambda: relations.fresh_in_context(2, num_facts=3), "num_facts=3 <= num_names=2"),
        (lambda: relations.fresh_in_context(10, train_share=0), r"in \(0, 1\), got 0"),
        (lambda: relations.fresh_in_context(2, num_facts=2, train_share=0.9), "splits 2 into"),
        (lambda: relations.in_context(num_second=1), "splits 1 into 1 to train on and 0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_a_guess_is_among_all_words_that_such_a_sentence_can_end_in():
    for data in (
        relations.reversal(),
        relations.chain(),
        relations.chain_related(),
        relations.in_context(),
    ):
        sign = -data.word_size - 1
        rows = np.concatenate([data.train_EL, data.validation_EL])
        for asked in set(data.validation_EL[:, sign]):
            words = {tuple(row[sign + 1 :]) for row in rows.tolist() if row[sign] == asked}
            assert len(words) == data.num_candidates
