import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from dirasym import models
from dirasym.models import layers


class RotateTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters("half", "interleaved")
    def test_rotations_compose_and_scores_see_the_offset_alone(self, pairing):
        angles = layers.plane_angles(16)
        turn = self.variant(lambda x, m: layers.rotate(x, m, angles, pairing))
        q, k = jax.random.normal(jax.random.key(0), (2, 16))
        chex.assert_trees_all_close(turn(turn(q, 3), 5), turn(q, 8), atol=1e-5)
        chex.assert_trees_all_close(turn(turn(q, 7), -7), q, atol=1e-6)
        chex.assert_trees_all_close(turn(q, 2) @ turn(k, 9), turn(q, 11) @ turn(k, 18), atol=1e-5)
        # qᵀ R(Δ) k with Δ = position of the key minus position of the query.
        chex.assert_trees_all_close(turn(q, 2) @ turn(k, 9), q @ turn(k, 7), atol=1e-5)


def test_pairings_are_one_rotation_in_two_orders_of_coordinates():
    angles = layers.plane_angles(8)
    x = jax.random.normal(jax.random.key(0), (8,))
    interleaved = layers.rotate(x, 3, angles, "interleaved")
    order = np.concatenate([np.arange(0, 8, 2), np.arange(1, 8, 2)])
    chex.assert_trees_all_close(layers.rotate(x[order], 3, angles), interleaved[order], atol=1e-6)


def test_plane_angles():
    np.testing.assert_allclose(layers.plane_angles(4), [1.0, 0.01])
    for bad in (3, 0, -2):
        with pytest.raises(ValueError, match="head_dim"):
            layers.plane_angles(bad)


def test_llama3_scaling_slows_slow_planes_only():
    scaling = layers.RopeScaling(8.0, 1.0, 4.0, 8192)
    plain, scaled = layers.plane_angles(128, 5e5), layers.plane_angles(128, 5e5, scaling)
    wavelength = 2 * np.pi / plain
    np.testing.assert_allclose(scaled[wavelength < 8192 / 4], plain[wavelength < 8192 / 4])
    np.testing.assert_allclose(scaled[wavelength > 8192], plain[wavelength > 8192] / 8)
    assert (np.diff(scaled) < 0).all()
    # Half way between one and four turns a plane is slowed half way: (1 + 1/8) / 2.
    for turns, want in ((2.5, 0.5625), (1.75, 0.34375)):
        scaling = layers.RopeScaling(8.0, 1.0, 4.0, turns * 2 * np.pi)
        np.testing.assert_allclose(layers.plane_angles(2, 1e4, scaling), want)


@pytest.mark.parametrize(("norm", "center"), [("layernorm", 1.0), ("rmsnorm", 0.0)])
def test_a_norm_adds_the_epsilon_of_its_configuration(norm, center):
    config = models.TransformerConfig(5, 1, 4, 1, causal=True, norm=norm, norm_eps=0.5)
    x = np.array([[3.0, -1.0, 2.0, 0.0]], np.float32)
    got, _ = layers.make_norm(config).init_with_output(jax.random.key(0), x)
    moved = x - center * x.mean()
    np.testing.assert_allclose(got, moved / np.sqrt((moved**2).mean() + 0.5), rtol=1e-6)


def test_alibi_slopes():
    np.testing.assert_allclose(layers.alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(layers.alibi_slopes(6), 2.0 ** -np.array([2, 4, 6, 8, 1, 3]))


def test_uniform_fan_in_is_pytorchs_default():
    draws = layers.uniform_fan_in(64)(jax.random.key(0), (64, 500))
    assert float(jnp.abs(draws).max()) <= 1 / 8
    np.testing.assert_allclose(float(draws.std()), 1 / 8 / np.sqrt(3), rtol=0.02)


def test_masked_softmax():
    scores = jnp.array([[1.0, 2.0, 3.0]])
    weights = layers.masked_softmax(scores, jnp.array([[True, True, False]]))
    assert float(weights[0, 2]) == 0.0
    nothing = layers.masked_softmax(scores, jnp.zeros((1, 3), bool))
    np.testing.assert_allclose(nothing, 1 / 3, rtol=1e-6)


def test_sinusoids_are_sines_then_cosines():
    angle = 3 * np.array([1.0, 0.01])
    want = [[np.sin(angle).tolist() + np.cos(angle).tolist()]]
    np.testing.assert_allclose(layers.sinusoids(jnp.array([[3]]), 4), want, rtol=1e-6)


@pytest.mark.parametrize("row", [None, jnp.arange(200)])
def test_dropout_keeps_the_mean(row):
    kept = np.asarray(layers.dropout(jnp.ones((200, 50)), 0.25, jax.random.key(0), row))
    np.testing.assert_allclose(kept[kept > 0], 4 / 3, rtol=1e-6)
    np.testing.assert_allclose(kept.mean(), 1, atol=0.03)  # six standard deviations


def test_far_offsets_turn_to_the_last_digits():
    angles, offset = layers.plane_angles(16), np.array([5, 1000, 1501])
    turn = offset[:, None] * angles
    for of in (layers.cos_sin, jax.jit(lambda x, a, d: layers.cos_sin(x, angles, jnp.float32))):
        given = (offset, angles, jnp.float32) if of is layers.cos_sin else (offset, 0, 0)
        for got, want in zip(of(*given), (np.cos(turn), np.sin(turn)), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-6)
