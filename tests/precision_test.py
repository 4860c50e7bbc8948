"""Products of float32 are asked for as float32: no CPU rounds them, an accelerator would."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import precision
from dirasym.analysis import alignment, attention, lemmas, neglected, rope, theorem_b1

FUNCTIONS = [
    alignment.alignment,
    alignment.cross_alignment,
    alignment.first_order_transfer,
    lemmas.check_corollary_b2,
    lemmas.simulate_proposition_b8,
    lemmas.simulate_proposition_b10,
    neglected.neglected_terms,
    rope.monte_carlo_correlation,
    theorem_b1.theorem_b1,
    theorem_b1.theorem_b1_autodiff,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda x: x.__name__)
def test_these_ask_for_the_highest_precision(function, monkeypatch):
    told = []
    ask = lambda name: told.append(name) or contextlib.nullcontext()  # noqa: E731
    monkeypatch.setattr(jax, "default_matmul_precision", ask)
    with contextlib.suppress(TypeError):  # nothing is given
        function()
    assert told == ["highest"]


def test_scores_are_sown_at_the_highest_precision():
    told = []

    def internals(params, tokens_BL):
        told.append(jax.config.jax_default_matmul_precision)
        return dict.fromkeys(("scores", "weights"), jnp.ones((1, 1, 1, 3, 3)))

    attention.attention_to(internals, {}, np.ones((2, 3), int), np.zeros(2, int), np.ones(2, int))
    assert set(told) == {"highest"}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_narrow_floats_become_float32_and_wide_ones_stay(dtype):
    with jax.enable_x64(True):
        x = jnp.arange(3, dtype=dtype) / 2
        wide = precision.widened(x)
        assert wide.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        assert wide.tolist() == [0, 0.5, 1]
