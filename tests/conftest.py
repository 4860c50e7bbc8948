"""How every test runs."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes in code are the shapes meant
# Hundreds of small programs, each run a few times: compiling them is what the suite waits for.
jax.config.update("jax_disable_most_optimizations", True)
