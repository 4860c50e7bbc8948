import numpy as np
import pytest

from dirasym.analysis import row_dynamics


@pytest.mark.parametrize("tokens", [2, 3, 100, 100_000])
def test_the_gap_solves_its_equation_at_all_times(tokens):
    time = np.logspace(-9, 9, 37)
    gap, a = row_dynamics.row_gap(time, tokens, 0.7), 1 / (tokens - 1)
    tau = 0.7 * tokens * time * a
    np.testing.assert_allclose(gap + a * np.expm1(gap), tau, rtol=1e-12)
    assert row_dynamics.row_gap(0, tokens) == 0
    h = 1e-5 * time
    slope = (
        row_dynamics.row_gap(time + h, tokens, 0.7) - row_dynamics.row_gap(time - h, tokens, 0.7)
    ) / (2 * h)
    p = row_dynamics.row_probability(time, tokens, 0.7)
    middle = (time > 1e-2) & (p < 0.9999)  # elsewhere the difference itself has no digits
    np.testing.assert_allclose(slope[middle], (0.7 * tokens * a * (1 - p))[middle], rtol=1e-5)


def test_time_to_loss_inverts_and_everything_broadcasts():
    tokens, rate = np.array([2, 50, 800])[:, None, None], np.array([0.1, 1.0])[:, None]
    loss = np.log(tokens) * np.array([1.0, 0.5, 1e-2, 1e-6])
    time = row_dynamics.time_to_loss(loss, tokens, rate)
    assert time.shape == (3, 2, 4)
    got = -np.log(row_dynamics.row_probability(time, tokens, rate))
    np.testing.assert_allclose(got, np.broadcast_to(loss, got.shape), rtol=1e-9)
    np.testing.assert_allclose(time[..., 0], 0, atol=1e-9)
    np.testing.assert_allclose(time[:, 0], 10 * time[:, 1])


def test_closed_form_bad_input():
    for make in (
        lambda: row_dynamics.row_gap(-1.0, 5),
        lambda: row_dynamics.row_gap(1.0, 1),
        lambda: row_dynamics.time_to_loss(0.0, 5),
        lambda: row_dynamics.time_to_loss(2.0, 5),
    ):
        with pytest.raises(ValueError):
            make()
