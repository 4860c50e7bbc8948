"""Every test runs without implicit rank promotion, so that shapes in code are the shapes meant."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
