# Right: a whole checkpoint that does not fit `like` (other PRNG implementation, width, optimizer or
# moving average) is an error that says so, and stays where it is, so that the right `like` reads it
# afterwards. Seen: all are renamed "-damaged-", restore returns None, and a run starts again at
# step 0, exit 0.
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import TMP, end

from dirasym import checkpoints, models, training


def state(width=8, optimizer=None, impl=None, ema=True, step=0):
    model = models.Transformer(models.radd(11, width=width))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    new = training.create_state(
        models.make_apply_fn(model),
        params,
        optimizer or training.make_optimizer(1e-3),
        jax.random.key(5),
        ema=ema,
    )
    return new.replace(step=jnp.int32(step), key=jax.random.key(5, impl=impl))


bad = []
for what, like in (
    ("rbg", lambda: state(impl="rbg")),
    ("width", lambda: state(16)),
    ("optimizer", lambda: state(optimizer=optax.sgd(1e-3))),
    ("average", lambda: state(ema=False)),
):
    directory = TMP / what / "run"
    writer = checkpoints.Checkpoints(directory)
    for step in (1, 2):
        writer.save(step, state(step=step), {"loss": np.arange(float(step))})
    writer.close()
    try:
        got, *_ = checkpoints.Checkpoints(directory).restore(like()) or (None,)
    except checkpoints.CheckpointError as error:
        got = type(error).__name__
    then = checkpoints.Checkpoints(directory).restore(state())
    left = sorted(path.name for path in directory.parent.iterdir())
    print(what, "->", got, left, then and then[0])
    if got is None or left != ["run"] or then is None or then[0] != 2:
        bad.append(what)
end(bad, ", ".join(bad))
