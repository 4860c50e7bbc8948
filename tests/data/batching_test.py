import chex
import jax
import numpy as np
import pytest
from absl.testing import parameterized

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
    later = epoch_indices(key, 1, per_epoch, n, b)
    np.testing.assert_array_equal(later, indices[1 : 1 + per_epoch])


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
