"""Rewritten rows hold the same tokens, in the order that the remedy says."""

import numpy as np
import pytest

from dirasym.data import remedies

ROWS = np.arange(24).reshape(3, 8)


def test_reversals_keep_tokens_and_turn_the_order():
    np.testing.assert_array_equal(remedies.reversed_tokens(ROWS), ROWS[:, ::-1])
    single_BL = np.broadcast_to(np.arange(8), ROWS.shape)
    np.testing.assert_array_equal(remedies.reversed_units(ROWS, single_BL), ROWS[:, ::-1])
    unit_BL = np.array([[0, 0, 2, 2, 2, 5, 6, 6]] * 3)
    got = remedies.reversed_units(ROWS, unit_BL)
    np.testing.assert_array_equal(got[0], [6, 7, 5, 2, 3, 4, 0, 1])
    whole = remedies.reversed_units(ROWS, np.zeros_like(ROWS))
    np.testing.assert_array_equal(whole, ROWS)


def test_segments_are_no_longer_than_said_and_their_order_is_reversed():
    rows = np.tile(np.arange(12), (200, 1))
    got = remedies.reversed_segments(rows, 3, seed=1)
    np.testing.assert_array_equal(np.sort(got, axis=1), rows)
    sizes = set()
    for row in got:
        cuts = np.flatnonzero(np.diff(row) != 1) + 1
        parts = np.split(row, cuts)
        assert [part[0] for part in parts] == sorted((part[0] for part in parts), reverse=True)
        sizes |= {len(part) for part in parts}
    assert sizes == {1, 2, 3}
    np.testing.assert_array_equal(remedies.reversed_segments(rows, 1), rows[:, ::-1])
    np.testing.assert_array_equal(got, remedies.reversed_segments(rows, 3, seed=1))
    assert (got != remedies.reversed_segments(rows, 3, seed=2)).any()


def test_masked_copies_score_the_row_and_mask_at_a_uniform_rate():
    rows = np.tile(np.arange(10), (4000, 1))
    tokens, scored = remedies.masked_copies(rows, 99, seed=0)
    np.testing.assert_array_equal(tokens[:, 10:], rows)
    assert not scored[:, :10].any() and scored[:, 10:].all()
    hidden = tokens[:, :10] == 99
    np.testing.assert_array_equal(tokens[:, :10][~hidden], rows[~hidden])
    count = np.bincount(hidden.sum(axis=1), minlength=11) / 4000
    np.testing.assert_allclose(count, 1 / 11, atol=0.02)  # k of n with probability 1/(n + 1)
    assert (remedies.masked_copies(rows, 99, seed=1)[0] != tokens).any()
    # One token hidden and another one seen: ∫ λ(1 − λ) dλ.
    assert (hidden[:, 0] & ~hidden[:, 5]).mean() == pytest.approx(1 / 6, abs=0.02)


def test_a_mixture_has_its_share_and_goes_through_its_parts_evenly():
    got = remedies.mixed(ROWS, np.zeros((5, 8)), 0.25, 40)
    assert (got >= 3).sum() == 10 and len(got) == 40
    assert (remedies.mixed(ROWS, ROWS, 0.3, 9) >= 3).sum() == 3  # of 2.7 the nearest
    counts = np.bincount(got, minlength=8)
    np.testing.assert_array_equal(counts, [10, 10, 10, 2, 2, 2, 2, 2])
    assert (remedies.mixed(ROWS, np.zeros((5, 8)), 0.25, 40, seed=1) != got).any()
    assert (remedies.mixed(ROWS, ROWS[:0], 0.0, 6) < 3).all()
    for share, words in ((1.5, "share must be"), (0.5, "is empty")):
        with pytest.raises(ValueError, match=words):
            remedies.mixed(ROWS, ROWS[:0], share, 6)


def test_exposure_is_the_source_behind_the_target():
    rows = np.array([[1, 0, 2], [2, 0, 1], [2, 2, 0], [0, 1, 0]])
    got = remedies.exposures(rows, np.full(4, 1), np.full(4, 2))
    np.testing.assert_array_equal(got, [False, True, False, False])


@pytest.mark.parametrize("unit_BL", [[[0, 1, 1, 2]], [[1, 1, 2, 3]], [[0, 0, 0, 2]]])
def test_units_that_are_no_stretches_are_refused(unit_BL):
    with pytest.raises(ValueError, match="first place of a stretch"):
        remedies.reversed_units(np.arange(4)[None], np.array(unit_BL))
    with pytest.raises(ValueError, match="longest must be"):
        remedies.reversed_segments(ROWS, 0)
