# Right: dropout masks are independent bits under every PRNG implementation of JAX.
# Seen: with "rbg" keys (common on TPU) each random word is used twice: entries 4..7 of every 8 repeat 0..3.
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dirasym.models import layers

bad = []
for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
    key = jax.random.fold_in(jax.random.key(0, impl=impl), 3)
    kept = np.asarray(layers.dropout(jnp.ones(8000), 0.5, key) > 0).reshape(-1, 8)
    same = (kept[:, :4] == kept[:, 4:]).mean()
    print(f"{impl}: share of equal pairs four places apart {same:.3f} (0.5 expected)")
    if abs(same - 0.5) > 0.1:
        bad.append(impl)
print("FAIL " + ", ".join(bad) if bad else "PASS")
sys.exit(bool(bad))
