# Right: parameters of float16 ("param_dtype= sets storage") train, or make_optimizer/create_state
# refuse them. Seen: AdamW's eps 1e-8 is 0 in float16, so a parameter with gradient 0 (an embedding
# row that is not in the batch) is 0/0 = NaN after the first step.
import functools

import jax
import jax.numpy as jnp
from _common import end

from dirasym import models, objectives, training
from dirasym.compile import compile_step
from dirasym.types import Batch

sizes = dict(num_layers=1, width=16, num_heads=2, num_kv_heads=2, mlp_width=16, max_len=16)
half = dict(dtype=jnp.float16, param_dtype=jnp.float16)
try:
    model = models.Transformer(models.llama(23, rope_scaling=None, **sizes, **half))
    params = model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    state = training.create_state(
        models.make_apply_fn(model), params, training.make_optimizer(1e-3), jax.random.key(1)
    )
    step = compile_step(functools.partial(training.train_step, objective=objectives.next_token))
    state, metrics = step(state, Batch(jnp.arange(8).reshape(2, 4), jnp.arange(2), 2))
    bad = not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))
    print("loss", float(metrics["loss"]), "parameters finite:", not bad)
except ValueError as error:
    print("refused:", error)
    bad = False
end(bad)
