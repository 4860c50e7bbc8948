"""Run by sharding_test.py with 8 fake CPU devices: the loss does not depend on the mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from dirasym import models, objectives, sharding, training
from dirasym.compile import compile_scan
from dirasym.models import lora
from dirasym.rows import PerRow

CONFIG = models.llama(
    vocab_size=16, num_layers=2, width=16, num_heads=4, num_kv_heads=2, mlp_width=32, max_len=16,
    scan_layers=True, remat=True,
)  # fmt: skip
TOKENS = np.arange(8 * 6, dtype=np.int32).reshape(8, 6) * 5 % 16
MODEL = models.Transformer(CONFIG)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0), TOKENS)["params"]


def _state(with_lora):
    optimizer = training.make_optimizer(1e-2)
    if not with_lora:
        params = jax.tree.map(jnp.copy, PARAMS)
        return training.create_state(
            models.make_apply_fn(MODEL), params, optimizer, jax.random.key(1)
        )
    adapted = models.LoRA(MODEL, models.LoRAConfig(2, 4.0, "attention|mlp"))
    adapters = lora.init_adapters(adapted, PARAMS, jax.random.key(1))
    return training.create_state(
        lora.make_apply_fn(adapted),
        {"lora": adapters},
        optimizer,
        jax.random.key(1),
        frozen={"params": PARAMS},
    )


def main():
    assert jax.device_count() == 8
    mesh = sharding.make_mesh(data=2, model=4)
    step, rows_step = (
        functools.partial(
            training.train_step,
            objective=functools.partial(objectives.next_token, capacity=capacity),
        )
        for capacity in (None, PerRow(2))
    )
    data = {"tokens_BL": TOKENS, "scored_BL": np.tile(np.arange(6) >= 4, (8, 1))}
    kwargs = dict(num_steps=5, batch_size=8)
    for with_lora in (False, True):
        alone = compile_scan(step, **kwargs)
        spread = compile_scan(
            rows_step, mesh=mesh, shardings=functools.partial(sharding.shardings, mesh), **kwargs
        )
        _, want = alone(_state(with_lora), data)
        state, got = spread(_state(with_lora), data)
        np.testing.assert_allclose(got["loss"], want["loss"], atol=1e-4)
        base = state.params if not with_lora else state.frozen["params"]
        up = base["blocks"]["block"]["mlp"]["up"]["kernel"]
        assert up.sharding.spec == PartitionSpec(None, None, "model"), up.sharding
        assert up.addressable_shards[0].data.shape == (2, 16, 8)
        moments = jax.tree.leaves(state.opt_state)
        assert any(x.sharding.spec != PartitionSpec() for x in moments)
    print("same loss")


if __name__ == "__main__":
    main()
