import contextlib
import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dirasym import models, objectives, plans, runs, training

ROWS, WIDTH = 4096, 64  # of a table beside which all else is small
MODEL = nn.Embed(ROWS, WIDTH)
APPLY_FN = models.make_tokens_apply_fn(MODEL)
OPTIMIZER = optax.adam(1e-2)
DATA = {"tokens_BL": np.arange(24, dtype=np.int32).reshape(12, 2)}


def _init(seed):
    params = MODEL.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
    return training.create_state(APPLY_FN, params, OPTIMIZER, jax.random.key(seed))


def _step(state, batch, axis_name=None):
    return training.train_step(state, batch, objective=objectives.next_token, axis_name=axis_name)


def _run(data=lambda seed: DATA):
    return runs.Run({}, data, _step, num_steps=12, eval_every=4, batch_size=4, init=_init)


def _product(x):
    return x @ x


def _scan(length, body):
    return lambda x: jax.lax.scan(lambda x, _: (body(x), None), x, length=length)[0]


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (_product, 1),
        (_scan(10, _product), 10),
        (lambda x: _product(_scan(10, _product)(x)), 11),
        (_scan(3, _scan(5, _product)), 15),
        (_scan(3, lambda x: _product(_scan(5, _product)(x))), 18),
        (lambda x: _scan(2, _product)(x) + _scan(7, _product)(x), 9),
        (jax.jit(_scan(10, jax.checkpoint(_scan(2, _product)))), 20),
        (lambda x: jax.lax.cond(x[0, 0] > 0, _scan(10, _product), lambda x: x, x), 10),
        (lambda x: jax.lax.cond(x[0, 0] > 0, _scan(10, _product), _scan(5, _product), x), 10),
        (lambda x: jax.lax.cond(x[0, 0] > 0, _product, _scan(5, _product), x), 5),
        (_scan(3, lambda x: jax.lax.cond(x[0, 0] > 0, _product, _scan(5, _product), x)), 15),
        (lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=10, unroll=3)[0], 10),
        (lambda x: x @ _scan(0, _product)(x), 1),
        (jax.vmap(_scan(10, _product)), 10 * 16),
        (jax.grad(lambda x: _scan(10, _product)(x).sum()), 10 * 3),
    ],
)
def test_a_scan_counts_as_often_as_it_runs(function, products):
    shape = (16, 16, 16) if products == 160 else (16, 16)
    found = plans.flops(function, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert found == pytest.approx(products * 2 * 16**3, rel=0.04)  # sums and comparisons beside


def test_scanned_layers_cost_as_much_as_unrolled_ones():
    def cost(scan_layers):
        config = models.gpt2(50, 0.0, num_layers=9, num_heads=2, width=32, max_len=8)
        config = dataclasses.replace(config, scan_layers=scan_layers)
        model = models.Transformer(config)
        init = training.initializer(model, models.make_apply_fn(model), OPTIMIZER, length=8)
        tokens = {"tokens_BL": np.zeros((4, 8), np.int32)}
        step = dataclasses.replace(_run(lambda seed: tokens), init=init)
        return plans.lines([step], [0])[0]["flops"]

    assert cost(True) == pytest.approx(cost(False), rel=0.05)


def test_a_plan_counts_the_work_of_every_seed():
    (one,), (two,) = (plans.lines([_run()], seeds) for seeds in ([0], [0, 1]))
    assert two["flops"] == 2 * one["flops"] > 0
    assert one["parameters"] == ROWS * WIDTH and one["steps"] == 12 and "GB" not in one


def test_a_plan_may_say_what_memory_its_programs_need(monkeypatch):
    asked = []

    def needs(all_runs, seeds, *, together, device):
        asked.append((together, device.platform))
        return [3.0] * len(all_runs)

    monkeypatch.setattr(plans, "gigabytes", needs)
    gpu = types.SimpleNamespace(platform="cuda")
    monkeypatch.setattr(
        plans.devices, "described", lambda x: gpu if x == "gpu" else jax.devices()[0]
    )
    (line,) = plans.lines([_run()], [0], compile_for="here")
    assert line["GB"] == 3.0
    plans.lines([_run()], [0], compile_for="gpu")
    for together in (True, False):
        plans.lines([_run()], [0], together, "gpu")
    assert asked == [(False, "cpu"), (True, "cuda"), (True, "cuda"), (False, "cuda")]


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
@pytest.mark.parametrize("data", [lambda seed: DATA, lambda seed: dict(DATA)])
def test_the_memory_of_training_is_that_of_the_state_and_its_gradient(seeds, data):
    table = 4 * ROWS * WIDTH / 1e9  # GB, of which Adam's state has three
    for together, count in ((True, len(seeds)), (False, 1)):
        (found,) = plans.gigabytes([_run(data)], seeds, together=together)
        # The state is donated, so that its successor takes no room of its own.
        assert 4 * count * table <= found <= 5.9 * count * table


def test_the_memory_is_of_one_device_here():
    device = jax.devices()[-1]
    assert plans.gigabytes([_run()], [0], device=device) == plans.gigabytes([_run()], [0])


def test_runs_that_train_alike_are_compiled_once(monkeypatch):
    asked = []
    monkeypatch.setattr(plans, "_gigabytes", lambda run, *_: asked.append(run) or len(asked))
    longer, rarer = (dataclasses.replace(_run(), num_steps=20, eval_every=x) for x in (4, 10))
    more = _run(lambda seed: {"tokens_BL": np.zeros((13, 2), np.int32)})
    rate = dataclasses.replace(_run(), step=lambda *x, **how: _step(*x, **how))
    assert plans.gigabytes([_run(), longer, _run(), rarer, more, rate], [0]) == [1, 1, 1, 2, 3, 1]
    apart = _run(lambda seed: dict(DATA))
    assert plans.gigabytes([_run(), apart], [0, 1], together=True) == [4, 5]
    assert plans.gigabytes([_run(), apart], [0, 1]) == [6, 6]


def test_a_state_with_its_gradient_must_fit_in_memory(monkeypatch):
    table = 4 * ROWS * WIDTH  # bytes; Adam has two more, and the gradient is one
    for there, fits in ((4 * table, False), (4 * table + 100, True), (None, True)):
        monkeypatch.setattr(plans.devices, "memory", lambda there=there: there)
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="run needs"):
            plans.check_memory([_run()], [0])
