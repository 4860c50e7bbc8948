"""How every test runs, and every program that a test starts."""

import os

# Hundreds of small programs, each run a few times: compiling them is what the suite waits for.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes in code are the shapes meant
