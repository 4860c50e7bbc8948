import numpy as np
import pytest

from dirasym.data import case_pairs as cp


def _brute_force(length, reverse=False):
    rows = set()
    for letter in range(26):
        for i in range(length):
            for j in range(length):
                if i != j and (i > j) == reverse:
                    row = [cp.PAD] * length
                    row[i], row[j] = letter, letter + 26
                    rows.add(tuple(row))
    return rows


@pytest.mark.parametrize("length", [2, 3, 10])
def test_training_set_is_every_forward_placement_once(length):
    tokens = cp.training_set(length)
    assert tokens.shape == (26 * length * (length - 1) // 2, length)
    assert {tuple(row) for row in tokens} == _brute_force(length)


def test_paper_example():
    assert {t for t in cp.to_text(cp.training_set(3)) if "d" in t} == {"dD0", "d0D", "0dD"}


@pytest.mark.parametrize("length", [2, 5])
def test_mask_queries_hide_the_lowercase_of_both_orders(length):
    for direction, reverse in (("forward", False), ("reverse", True)):
        q = cp.mask_queries(length, direction)
        assert (q.tokens_EL == cp.MASK).sum(axis=1).tolist() == [1] * len(q.tokens_EL)
        filled = q.tokens_EL.copy()
        filled[np.arange(len(filled)), q.position_E] = q.target_E
        assert {tuple(row) for row in filled} == _brute_force(length, reverse)
        assert (q.target_E < 26).all() and (q.target_E == q.letter_E).all()
        context = np.argmax((q.tokens_EL >= 26) & (q.tokens_EL < 52), axis=1)
        np.testing.assert_array_equal(context, q.context_E)
        np.testing.assert_array_equal(np.abs(context - q.position_E), q.distance_E)
        assert (q.asked_EL.sum(axis=1) == 1).all()


@pytest.mark.parametrize(("direction", "is_ahead"), [("forward", False), ("reverse", True)])
def test_mask_queries_may_ask_for_the_uppercase(direction, is_ahead):
    """Forward in the trained order: the lowercase is given, and [M] stands behind it."""
    q = cp.mask_queries(5, direction, target="upper")
    assert ((q.position_E < q.context_E) == is_ahead).all()
    assert (q.tokens_EL[np.arange(len(q.target_E)), q.context_E] == q.letter_E).all()
    assert (q.target_E == q.letter_E + 26).all()
    filled = q.tokens_EL.copy()
    filled[np.arange(len(filled)), q.position_E] = q.target_E
    assert {tuple(row) for row in filled} == _brute_force(5, reverse=is_ahead)


def test_prefix_queries_show_the_context_and_zeros_after_it():
    for direction, given in (("forward", cp.LOWER), ("reverse", cp.UPPER)):
        q = cp.prefix_queries(4, direction)
        assert len({tuple(row) for row in q.tokens_EL}) == len(q.tokens_EL) == 26 * 3
        for row, context, asked, letter in zip(
            q.tokens_EL, q.context_E, q.asked_EL, q.letter_E, strict=True
        ):
            assert row[context] == given[letter]
            assert set(np.delete(row, context)) == {cp.PAD}
            np.testing.assert_array_equal(np.flatnonzero(asked), np.arange(context + 1, 4))
        assert (q.target_E == q.letter_E + (26 if direction == "forward" else 0)).all()


def test_prompts_and_text():
    q = cp.prompts(3, "reverse")
    assert cp.to_text(q.tokens_EL[3]) == ["D[M][M]"]
    assert q.target_E[3] == 3 and q.asked_EL[3].tolist() == [False, True, True]
    assert cp.to_text(cp.prompts(3, "forward", fill=cp.PAD).tokens_EL[3]) == ["d00"]


def test_bad_input():
    for bad in (1, 0, -3):
        with pytest.raises(ValueError, match="length"):
            cp.training_set(bad)
    with pytest.raises(ValueError, match="direction"):
        cp.mask_queries(4, "backward")
