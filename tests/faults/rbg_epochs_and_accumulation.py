# Right: "every example is seen exactly once an epoch", results depend neither on how steps are grouped
# into calls nor on gradient accumulation (docstrings of batch_indices and Batch) - or such keys are refused.
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import models, objectives, training
from dirasym.compile import compile_step
from dirasym.data import batching
from dirasym.types import Batch

bad = []
for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
    try:
        key = jax.random.key(0, impl=impl)
        alone = np.concatenate(
            [np.asarray(batching.batch_indices(key, t, 1, 10, 4)) for t in range(10)]
        )
        together = np.asarray(batching.batch_indices(key, 0, 10, 10, 4))
        seen = [len(set(alone.ravel()[e * 10 : e * 10 + 10])) for e in range(4)]
        model = models.Transformer(models.radd(23, width=16))
        params = model.init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
        batch = Batch(jax.random.randint(jax.random.key(1), (8, 6), 0, 20), jnp.arange(8), 8)
        objective = functools.partial(objectives.masked_diffusion, mask_id=22)
        losses = [
            float(
                compile_step(
                    functools.partial(
                        training.train_step, objective=objective, microbatches=n, dropout=False
                    ),
                    donate=False,
                )(
                    training.create_state(
                        models.make_apply_fn(model), params, training.make_optimizer(1e-3), key
                    ),
                    batch,
                )[1]["loss"]
            )
            for n in (1, 4)
        ]
    except ValueError as error:
        print(impl, "refused:", error)
        continue
    print(
        impl,
        "grouping:",
        bool((alone == together).all()),
        "different examples an epoch:",
        seen,
        "losses:",
        losses,
    )
    if not (alone == together).all() or seen != [10] * 4 or abs(losses[0] - losses[1]) > 1e-3:
        bad.append(impl)
print("FAIL " + ", ".join(bad) if bad else "PASS")
sys.exit(bool(bad))
