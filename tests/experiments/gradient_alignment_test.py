import dataclasses
import json

import jax
import numpy as np

from dirasym.data import case_pairs
from experiments import gradient_alignment, toy_task


def test_the_minimal_encoder_is_the_theorems_full_model():
    """Blocks of the trained network's own gradients are those that `neglected_terms` calls full."""
    config = gradient_alignment.Config(width=8, examples=26)
    task = toy_task.Task("mdm", 2, config.minimal(), together=False)
    values = jax.jit(lambda s: gradient_alignment.measurements(task, config, s))(task.state(seed=0))
    rows = gradient_alignment.matched_rows(case_pairs.mask_queries(2, "forward"), 26)
    letters = case_pairs.mask_queries(2, "forward").letter_E[rows]
    for block, layer in (("W_Q", "query"), ("W_K", "key"), ("W_V", "value")):
        want = np.asarray(values[f"full/{block}"])[letters]
        scale = np.abs(want).max()
        np.testing.assert_allclose(values[f"inner/{layer}"], want, atol=1e-4 * scale)


def test_attention_is_read_at_every_letter_and_distance():
    ask = gradient_alignment.attention_queries(6, per_cell=2)
    forward, reverse = ask["forward"], ask["reverse"]
    cells = set(zip(forward.letter_E.tolist(), forward.distance_E.tolist(), strict=True))
    assert len(cells) == 26 * 5
    np.testing.assert_array_equal(forward.position_E, reverse.context_E)
    np.testing.assert_array_equal(forward.context_E, reverse.position_E)
    assert len(forward.letter_E) == 26 * (2 * 4 + 1)


def test_checkpoints_of_another_recipe_are_not_read(tmp_path):
    config = gradient_alignment.Config(toy_workdir=str(tmp_path))
    task = toy_task.Task("mdm", 10, config.toy(10), together=False)
    assert gradient_alignment.find_saved(config, task, 0) is None
    steps = tmp_path / "checkpoints" / "L10-mdm-seeds0"
    for step in (250, 500):
        (steps / str(step)).mkdir(parents=True)

    def write(**changes):
        written = dataclasses.asdict(toy_task.Config(steps=500)) | changes
        (tmp_path / "config.json").write_text(json.dumps(written | {"experiment": "toy_reversal"}))
        return gradient_alignment.find_saved(config, task, 0)

    directory, toy = write(lengths=[10, 20])
    assert directory == steps and toy.steps == 500
    assert write(width=128) is None
    assert write(steps=750) is None  # its last checkpoint is missing
