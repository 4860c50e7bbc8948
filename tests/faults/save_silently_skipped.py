# Right: `Checkpoints.save(step, ..)` "writes the state of the run after `step` steps", or says that
# it did not. A run that is taken up from an older checkpoint (see `Checkpoints.states`) saves steps
# that are there already, or that lie before the newest.
# Seen: nothing is written and nothing is said; `restore` then gives the state of the old branch.
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import TMP, end

from dirasym import checkpoints, training


def state(value):
    params = {"w": jnp.full((3,), float(value))}
    return training.create_state(
        lambda params, tokens: tokens, params, optax.sgd(0.1), jax.random.key(0)
    )


faults = []
for step in (20, 15):
    run = checkpoints.Checkpoints(TMP / str(step) / "run", keep=None)
    run.save(10, state(1), {"loss": np.zeros(1)})
    run.save(20, state(2), {"loss": np.zeros(2)})
    try:
        run.save(step, state(7), {"loss": np.zeros(7)})  # from step 10 again
    except checkpoints.CheckpointError as error:
        print(f"step {step} saved after step 20: {error}")
        continue
    kept = {number: float(saved.params["w"][0]) for number, saved in run.states(state(0))}
    print(f"step {step} saved after step 20: values kept by step {kept}")
    if kept.get(step) != 7.0:
        faults.append(f"step {step} saved after step 20 was not written, without a word")
end(faults, "; ".join(faults))
