# Right: "Padding as in `greedy`", where it "may be on either side and changes nothing" (remask's and
# greedy's docstrings): a prompt is answered alike with and without padding, beside others or alone
# (as `unmask` and `left_to_right`, which key each row by itself).
# Seen: with remasking="random" the scores are drawn for prompt, padding and answer of the whole batch
# in one array, so three more padding columns on the right reveal the positions in another order.
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import decoding

MASK, VOCAB = 11, 12
PROMPT = [1, 2, 3]


def apply_fn(params, tokens_BL, valid_BL):
    """Predicts how many tokens it can read, so that a token tells in which step it was filled."""
    read_B = jnp.sum((tokens_BL != MASK) & valid_BL, axis=1)
    logits_BV = 5.0 * (jnp.arange(VOCAB)[None] == (read_B % 9 + 1)[:, None])
    return jnp.broadcast_to(logits_BV[:, None], (*tokens_BL.shape, VOCAB))


def answer(prompts, valid, remasking):
    return np.asarray(
        decoding.remask(
            apply_fn,
            None,
            np.array(prompts, np.int32),
            np.array(valid, bool),
            jax.random.key(1),
            mask_id=MASK,
            num_new=8,
            num_steps=8,
            block_length=8,
            remasking=remasking,
        )
    )[0]


faults = []
for remasking in ("low_confidence", "random"):
    want = answer([PROMPT], [[1, 1, 1]], remasking)
    got = {
        "left": answer([[0, 0, 0, *PROMPT]], [[0, 0, 0, 1, 1, 1]], remasking),
        "right": answer([[*PROMPT, 0, 0, 0]], [[1, 1, 1, 0, 0, 0]], remasking),
    }
    for name, value in got.items():
        print(f"{remasking}, {name} padding: {value}, without: {want}")
        if not np.array_equal(value, want):
            faults.append(f"{remasking}, {name} padding: {value}, not {want}")
print(f"FAIL ({'; '.join(faults)})" if faults else "PASS")
sys.exit(bool(faults))
