import jax
import numpy as np

from dirasym.analysis import case_recall
from dirasym.data import case_pairs
from experiments import gradient_alignment
from experiments.systems import alignment, toy


def test_the_minimal_encoder_is_the_theorems_full_model():
    """Blocks of the trained network's own gradients are those that `neglected_terms` calls full."""
    config = gradient_alignment.Config(width=8, examples=26)
    task = toy.Task("mdm", 2, config.toy_config(2, attention_only=True, dropout=0.0))
    measure = jax.jit(lambda state: alignment.measurements(task, 26, 2, state))
    values = measure(task.init(0))
    rows = case_recall.sampled_rows(case_pairs.mask_queries(2, "forward"), 26)
    letters = case_pairs.mask_queries(2, "forward").letter_E[rows]
    for block, layer in (("W_Q", "query"), ("W_K", "key"), ("W_V", "value")):
        want = np.asarray(values[f"full/{block}"])[letters]
        scale = np.abs(want).max()
        np.testing.assert_allclose(values[f"inner/{layer}"], want, atol=1e-4 * scale)


def test_attention_is_read_at_every_letter_and_distance():
    ask = case_recall.sampled_queries(6, per_cell=2)
    forward, reverse = ask["forward"], ask["reverse"]
    cells = set(zip(forward.letter_E.tolist(), forward.distance_E.tolist(), strict=True))
    assert len(cells) == 26 * 5
    np.testing.assert_array_equal(forward.position_E, reverse.context_E)
    np.testing.assert_array_equal(forward.context_E, reverse.position_E)
    assert len(forward.letter_E) == 26 * (2 * 4 + 1)
