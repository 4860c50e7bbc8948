# Right: what a caller gave to create_state (key, params) is still the caller's after a step, as
# `ema_params` are copied for; or the docstring says that they are taken over. Seen: compile_step
# donates them: "Buffer has been deleted or donated" at the next use.
import functools

import jax
import jax.numpy as jnp
from _common import end

from dirasym import models, objectives, training
from dirasym.compile import compile_step
from dirasym.types import Batch

model = models.Transformer(models.gpt2(11, num_layers=1, width=8, num_heads=2, max_len=8))
key = jax.random.key(0)
params = model.init(key, jnp.zeros((1, 2), int))["params"]
apply_fn = models.make_apply_fn(model)
optimizer = training.make_optimizer(1e-3)
step = compile_step(functools.partial(training.train_step, objective=objectives.next_token))
batch = Batch(jnp.ones((2, 4), jnp.int32), jnp.arange(2), 2)
state, _ = step(training.create_state(apply_fn, params, optimizer, key), batch)


def run_again():
    return step(training.create_state(apply_fn, params, optimizer, jax.random.key(1)), batch)


bad = []
for what, use in (
    ("key", lambda: jax.random.split(key)),
    ("params", lambda: apply_fn(params, batch.tokens_BL)),
    ("a second run from the same params", run_again),
):
    try:
        jax.block_until_ready(use())
    except (RuntimeError, ValueError) as error:
        print(what, "->", str(error).splitlines()[0][-100:])
        bad.append(what)
end(bad, ", ".join(bad))
