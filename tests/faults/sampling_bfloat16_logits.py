# Right: `unmask` and `left_to_right` draw each token "from its own conditional", softmax(logits),
# whatever float the ApplyFn's logits are; the objectives and `probabilities` go to float32 first.
# Seen: the Gumbel noise is drawn, and its maximum taken, in the logits' own dtype. In bfloat16 noise
# ties, and the first of the tied wins: of 1024 equally probable tokens 98 % of the draws are in the
# first half, and of 256 73 %. (The library's Transformer gives float32; a foreign model need not.)
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import decoding, rows

DRAWS = 20_000
key = jax.random.key(0)
faults = []
for vocab in (256, 1024):

    def apply_fn(params, tokens_BL, vocab=vocab):
        return jnp.zeros((*tokens_BL.shape, vocab), jnp.bfloat16)

    apply_fn = rows.knowing(apply_fn, vocab + 1)
    mask_id = vocab  # which its head leaves out
    one_step = decoding.unmask(
        apply_fn, None, jnp.full((DRAWS, 1), mask_id), key, mask_id=mask_id, top_k=None
    )
    at_once = decoding.unmask(
        apply_fn,
        None,
        jnp.full((DRAWS // 2, 2), mask_id),
        key,
        mask_id=mask_id,
        top_k=None,
        num_steps=1,
    )
    written = decoding.left_to_right(
        apply_fn, None, jnp.zeros((DRAWS, 1), jnp.int32), key, prompt_length=0, bos_id=0, top_k=None
    )
    for name, tokens in (
        ("unmask", one_step),
        ("unmask at once", at_once),
        ("left_to_right", written),
    ):
        share = float(np.mean(np.asarray(tokens) < vocab // 2))
        print(f"{name}, {vocab} equal tokens: {share:.3f} of the draws in the first half")
        if abs(share - 0.5) > 0.02:  # 5 standard errors
            faults.append(f"{name}, {vocab} equal tokens: {share:.2f} in the first half")
print(f"FAIL ({'; '.join(faults)})" if faults else "PASS")
sys.exit(bool(faults))
