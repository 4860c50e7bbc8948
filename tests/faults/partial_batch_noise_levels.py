# Right: with `whole_epochs=True` the examples of the last, partial batch meet the same law of noise
# levels as those of a full batch (λ ~ U(0, 1]; masked_diffusion says that `stratified` "keeps the law
# of the mean"). With equal rows the mean loss of the two must then agree, as it does unstratified.
# Seen: rows that are left take the first strata alone. With 1 row of 4 λ never exceeds 1/4, 12 % of
# its tokens are masked instead of 50 %, and its mean loss is a twentieth of a full batch's.
# World A's quick and smoke presets (1000 and 200 pairs, batch 64, masked diffusion) train like this.
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dirasym import objectives, training
from dirasym.compile import compile_scan

NUM_EXAMPLES, BATCH, LENGTH, MASK = 5, 4, 32, 2


def apply_fn(params, tokens_BL):
    """The truth (token 0) is the likelier, the more of the row is seen: as in a trained model."""
    seen_B = jnp.mean(tokens_BL != MASK, axis=1)
    truth_BL = jnp.broadcast_to(6 * seen_B[:, None], tokens_BL.shape) + params["shift"]
    return jnp.stack([truth_BL, jnp.zeros_like(truth_BL), jnp.zeros_like(truth_BL)], axis=-1)


def means(stratified):
    """(share masked, loss) of full batches and of partial ones, over 3000 epochs of frozen weights."""
    objective = functools.partial(objectives.masked_diffusion, mask_id=MASK, stratified=stratified)
    state = training.create_state(
        apply_fn, {"shift": jnp.zeros(())}, optax.sgd(0.0), jax.random.key(0)
    )
    steps = compile_scan(
        functools.partial(training.train_step, objective=objective),
        num_steps=6000,
        batch_size=BATCH,
        whole_epochs=True,
        donate=False,
    )
    _, metrics = steps(state, {"tokens_BL": np.zeros((NUM_EXAMPLES, LENGTH), np.int32)})
    assert set(np.asarray(metrics["count"][0::2])) == {4.0}
    assert set(np.asarray(metrics["count"][1::2])) == {1.0}
    share = np.asarray(metrics["tokens"] / metrics["count"]) / LENGTH
    loss = np.asarray(metrics["loss"])
    return [
        (share[part].mean(), loss[part].mean()) for part in (slice(0, None, 2), slice(1, None, 2))
    ]


faults = []
for stratified in (False, True):
    (full_share, full_loss), (share, loss) = means(stratified)
    print(
        f"stratified={stratified}: masked {full_share:.3f} full, {share:.3f} partial; "
        f"loss {full_loss:.2f} full, {loss:.2f} partial"
    )
    if abs(share - full_share) > 0.05 or abs(loss / full_loss - 1) > 0.25:
        faults.append(
            f"stratified={stratified}: {share:.2f} masked against {full_share:.2f}, "
            f"loss {loss:.1f} against {full_loss:.1f}"
        )
print(f"FAIL ({'; '.join(faults)})" if faults else "PASS")
sys.exit(bool(faults))
