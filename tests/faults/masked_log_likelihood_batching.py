# Right: "All per-example randomness is `fold_in(key, index)`, so it depends neither on the number of
# devices nor on gradient accumulation" (Batch.index_B; BUILD_NOTES: "devices, accumulation and
# batching change nothing but rounding"). A row's estimate is the same in a batch of 8 or of 4, and
# with more padding, as that of `masked_diffusion` and `any_order` is.
# Seen: `masked_log_likelihood` never reads index_B; it draws for the batch as one array, so a row's
# estimate changes with the rows before it.
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import likelihood, models, objectives
from dirasym.types import Batch

MASK = 10
model = models.Transformer(
    models.TransformerConfig(
        vocab_size=11, num_layers=1, width=16, num_heads=2, causal=False, embed_std=1.0
    )
)
apply_fn = models.make_apply_fn(model)
params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
params = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)
tokens_BL = np.random.default_rng(0).integers(0, 10, (8, 6)).astype(np.int32)
key = jax.random.key(1)


def batch(first, last):
    return Batch(tokens_BL=tokens_BL[first:last], index_B=np.arange(first, last), global_size=8)


def loss(rows):
    return float(objectives.masked_diffusion(apply_fn, params, rows, key, mask_id=MASK)[0])


def estimate(rows):
    result = likelihood.masked_log_likelihood(
        apply_fn, params, rows, key, mask_id=MASK, num_samples=8
    )
    return np.asarray(result.mean)


assert np.isclose(loss(batch(0, 8)), loss(batch(0, 4)) + loss(batch(4, 8)), rtol=1e-4)
whole = estimate(batch(0, 8))
halves = np.concatenate([estimate(batch(0, 4)), estimate(batch(4, 8))])
print("batch of 8   ", np.round(whole, 4))
print("batches of 4 ", np.round(halves, 4))
worst = np.abs(whole - halves).max()
print("PASS" if worst < 1e-3 else f"FAIL (a row's estimate differs by {worst:.3f} nats)")
sys.exit(bool(worst >= 1e-3))
