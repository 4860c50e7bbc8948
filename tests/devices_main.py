"""On 4 fake CPU devices: one device, jit over a mesh and pmap take the same 20 steps."""

import functools
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import chex
import jax
import jax.numpy as jnp
import laws_test
import numpy as np
from jax.sharding import Mesh

from dirasym import models, objectives, rows, training
from dirasym.compile import compile_scan, compile_step
from dirasym.data import case_pairs
from dirasym.types import Batch

MESH = Mesh(np.array(jax.devices()), ("data",))
TOKENS = case_pairs.training_set(6)
# Very unequal counts a device: a mean of per-device means would be far off.
SCORED = np.random.default_rng(0).random(TOKENS.shape) < np.linspace(0.05, 1, len(TOKENS))[:, None]
DATA = {"tokens_BL": TOKENS, "scored_BL": SCORED}
OBJECTIVES = {
    "masked_diffusion": functools.partial(objectives.masked_diffusion, mask_id=case_pairs.MASK),
    "next_token": functools.partial(objectives.next_token, bos_id=case_pairs.MASK),
}


def make_state(dropout):
    model = models.Transformer(models.radd(case_pairs.VOCAB_SIZE, width=16, dropout=dropout))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 6), int))["params"]
    optimizer = training.make_optimizer(1e-2, warmup_steps=5)
    apply_fn = models.make_apply_fn(model)
    return training.create_state(apply_fn, params, optimizer, jax.random.key(1), ema=True)


def batches():
    for step in range(20):
        rows = np.sort(np.random.default_rng(step).choice(len(TOKENS), 32, replace=False))
        yield Batch(TOKENS[rows], np.arange(32), 32, scored_BL=SCORED[rows])


KINDS = {"one": {}, "jit": dict(mesh=MESH), "pmap": dict(mesh=MESH, backend="pmap")}


def check(objective, dropout, kinds, scan, capacity=None):
    results = {}
    for kind in kinds:
        # What one device does with every position computed, the others do with rows alone.
        room = None if kind == "one" else capacity
        step = functools.partial(
            training.train_step,
            objective=functools.partial(objective, capacity=room),
            ema_decay=0.99,
        )
        state = make_state(dropout)
        if scan:
            run = compile_scan(step, num_steps=20, batch_size=32, **KINDS[kind])
            state, metrics = run(state, DATA)
        else:
            run = compile_step(step, **KINDS[kind])
            for batch in batches():
                state, metrics = run(state, batch)
        results[kind] = jax.device_get((state.params, state.ema_params, metrics["loss"]))
        chex.assert_trees_all_close(results[kind], results["one"], atol=1e-5, rtol=1e-5)
    return step


def check_sums(name):
    """An objective's sums are those of its devices' shares."""
    key, batch = jax.random.key(3), laws_test._batch()
    shares = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch)
    summed = jax.pmap(
        lambda share: jax.lax.psum(laws_test._jitted(name)(share, key), "data"), axis_name="data"
    )(shares)
    want = laws_test._jitted(name)(batch, key)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], summed), want, rtol=1e-5)


def main():
    assert jax.device_count() == 4
    for name in laws_test.OBJECTIVES:
        check_sums(name)
    check(OBJECTIVES["next_token"], 0.0, KINDS, scan=False, capacity=rows.PerRow(6))
    # The share that is scored, which some batches exceed, and under pmap some devices.
    check(OBJECTIVES["next_token"], 0.0, KINDS, scan=True, capacity=0.52)
    check(OBJECTIVES["masked_diffusion"], 0.0, KINDS, scan=True)
    step = check(OBJECTIVES["masked_diffusion"], 0.1, ["one", "jit"], scan=True, capacity=0.25)
    compiled = compile_step(step, mesh=MESH)
    try:
        compiled(make_state(0.0), Batch(TOKENS[:6], np.arange(6), 6))
    except ValueError as error:
        assert "6 is not divisible by 4" in str(error)
    else:
        raise AssertionError("an uneven batch was accepted")


if __name__ == "__main__":
    main()
