"""Two CPU processes over loopback take the same steps as one: `processes_main.py PORT ID`."""

import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dirasym import models, objectives, sharding, training
from dirasym.compile import compile_scan
from dirasym.data import case_pairs


def make_state():
    model = models.Transformer(models.radd(case_pairs.VOCAB_SIZE, width=16, dropout=0.0))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    optimizer = training.make_optimizer(1e-3)
    return training.create_state(
        models.make_apply_fn(model), params, optimizer, jax.random.key(1), ema=True
    )


def main(port, process_id):
    jax.distributed.initialize(f"localhost:{port}", 2, process_id)
    assert jax.process_count() == 2 and jax.device_count() == 2
    objective = functools.partial(objectives.masked_diffusion, mask_id=case_pairs.MASK)
    step = functools.partial(training.train_step, objective=objective, ema_decay=0.99)
    data = {"tokens_BL": case_pairs.training_set(4)}
    kwargs = dict(num_steps=10, batch_size=16)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    shared, metrics = compile_scan(step, mesh=mesh, **kwargs)(make_state(), data)
    alone, want = compile_scan(step, **kwargs)(make_state(), data)
    chex.assert_trees_all_close(
        jax.device_get(shared.params), jax.device_get(alone.params), atol=1e-5
    )
    chex.assert_trees_all_close(jax.device_get(metrics), jax.device_get(want), rtol=1e-4)

    mesh = sharding.make_mesh(data=1, model=2)
    split = functools.partial(sharding.shardings, mesh)
    spread, metrics = compile_scan(step, mesh=mesh, shardings=split, **kwargs)(make_state(), data)
    assert not spread.params["embed"]["embedding"].is_fully_addressable
    chex.assert_trees_all_close(jax.device_get(metrics), jax.device_get(want), rtol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
