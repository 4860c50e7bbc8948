import functools
import pathlib
import subprocess
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dirasym import models, objectives, sharding, training
from dirasym.compile import check_divisible, compile_scan, compile_step
from dirasym.data import batching, case_pairs
from dirasym.types import Batch

HERE = pathlib.Path(__file__).parent
OBJECTIVE = functools.partial(objectives.masked_diffusion, mask_id=case_pairs.MASK)
DATA = {"tokens_BL": case_pairs.training_set(4)}


def _state(seed=0, *, dropout=0.0, ema=True, lr=1e-2):
    config = models.radd(case_pairs.VOCAB_SIZE, width=16, dropout=dropout)
    model = models.Transformer(config)
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = jax.jit(model.init)(init_key, jnp.zeros((1, 4), int))["params"]
    optimizer = training.make_optimizer(lr, warmup_steps=3)
    apply_fn = jax.jit(models.make_apply_fn(model))
    return training.create_state(apply_fn, params, optimizer, run_key, ema=ema)


def _step(**kwargs):
    return functools.partial(
        training.train_step, **({"objective": OBJECTIVE, "ema_decay": 0.999} | kwargs)
    )


class TrainStepTest(chex.TestCase):
    @chex.variants(with_jit=True)
    def test_one_step_is_adam_on_the_mean_and_then_the_average(self):
        state = _state()
        batch = Batch(DATA["tokens_BL"][:8], np.arange(8), 8)
        new, metrics = self.variant(_step(dropout=False))(state, batch)
        noise_key, _ = jax.random.split(jax.random.fold_in(state.key, 0))

        def loss(params):
            total, count, _ = OBJECTIVE(state.apply_fn, params, batch, noise_key)
            return total / count

        want_loss, grads = jax.jit(jax.value_and_grad(loss))(state.params)
        updates, _ = jax.jit(state.tx.update)(grads, state.opt_state, state.params)
        want = optax.apply_updates(state.params, updates)
        chex.assert_trees_all_close(new.params, want, atol=1e-5)
        np.testing.assert_allclose(metrics["loss"], want_loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-4)
        average = jax.tree.map(  # (1 + n) / (10 + n) with n = 1
            lambda old, p: old + (1 - 2 / 11) * (p - old), state.params, want
        )
        chex.assert_trees_all_close(new.ema_params, average, atol=1e-5)
        assert int(new.step) == 1


def test_accumulation_gives_the_same_step():
    batch = Batch(DATA["tokens_BL"][:12], np.arange(12), 12)
    scored = np.random.default_rng(0).random((12, 4)) < 0.6  # unequal counts
    batch = batch.replace(scored_BL=scored)
    whole, whole_metrics = jax.jit(_step(objective=objectives.next_token))(_state(), batch)
    step = _step(objective=objectives.next_token, microbatches=4)
    parts, parts_metrics = jax.jit(step)(_state(), batch)
    chex.assert_trees_all_close(parts.params, whole.params, atol=1e-5)
    chex.assert_trees_all_close(parts_metrics, whole_metrics, rtol=1e-4)


def test_grouping_steps_into_calls_changes_nothing():
    fives = compile_scan(_step(), num_steps=5, batch_size=16)
    ten = compile_scan(_step(), num_steps=10, batch_size=16)
    state, metrics = fives(_state(), DATA)
    state, more = fives(state, DATA)
    want, want_metrics = ten(_state(), DATA)
    losses = jnp.concatenate([metrics["loss"], more["loss"]])
    chex.assert_trees_all_close(losses, want_metrics["loss"], rtol=1e-6)
    chex.assert_trees_all_close(state.params, want.params, atol=1e-6)
    assert int(state.step) == 10


@pytest.mark.slow
def test_seeds_in_one_program_equal_seeds_one_after_another():
    kwargs = dict(num_steps=20, batch_size=16)
    step = _step(objective=functools.partial(OBJECTIVE, capacity=0.6))
    alone = compile_scan(step, **kwargs)
    together = compile_scan(step, over_seeds=True, **kwargs)

    def states():
        made = [_state(s, dropout=0.1) for s in (3, 4, 5)]
        first = made[0]  # one function and optimizer, or the states are of different type
        return [state.replace(apply_fn=first.apply_fn, tx=first.tx) for state in made]

    got, got_metrics = together(jax.tree.map(lambda *x: jnp.stack(x), *states()), DATA)
    for place, state in enumerate(states()):
        want, want_metrics = alone(state, DATA)
        mine = jax.tree.map(lambda x, n=place: x[n], got.params)
        chex.assert_trees_all_close(mine, want.params, atol=1e-4)
        chex.assert_trees_all_close(got_metrics["loss"][place], want_metrics["loss"], rtol=1e-4)


def test_training_learns():
    step = _step(objective=functools.partial(OBJECTIVE, capacity=0.6))
    run = compile_scan(step, num_steps=300, batch_size=32)
    _, metrics = run(_state(), DATA)
    first, last = metrics["loss"][:20].mean(), metrics["loss"][-50:].mean()
    floor = np.log(len(DATA["tokens_BL"]))  # a uniform choice of training sequence
    assert last < floor + 0.4 * (first - floor)


def test_schedule():
    def rate(update, **kwargs):
        optimizer = training.make_optimizer(1.0, clip_norm=None, **kwargs)
        state = optimizer.init(jnp.zeros(()))
        for _ in range(update):
            change, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        return -float(change)

    np.testing.assert_allclose(
        [rate(n, warmup_steps=4) for n in (1, 2, 4, 9)], [0.25, 0.5, 1, 1], rtol=1e-4
    )
    linear = [rate(n, warmup_steps=2, decay_steps=10) for n in (1, 2, 3, 7, 10, 11)]
    np.testing.assert_allclose(linear, [0.5, 1, 1, 0.5, 0.125, 0], rtol=1e-4, atol=1e-7)


def test_weight_decay_and_clip():
    optimizer = training.make_optimizer(0.1, weight_decay=0.5)
    params = {"bias": jnp.ones(2)}
    updates, _ = optimizer.update({"bias": jnp.zeros(2)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["bias"], -0.1 * 0.5, rtol=1e-6)
    clipped = training.make_optimizer(0.1, clip_norm=1.0, eps=1.0)  # a large eps shows the scale
    grads = {"bias": jnp.array([30.0, 40.0])}
    updates, _ = clipped.update(grads, clipped.init(params), params)
    np.testing.assert_allclose(updates["bias"], [-0.1 * 0.6 / 1.6, -0.1 * 0.8 / 1.8], rtol=1e-4)


def test_non_finite_loss_names_the_first_bad_step():
    loss = np.ones((5, 2))
    training.check_finite({"loss": loss}, 20)
    loss[2, 1] = np.nan
    with pytest.raises(training.NonFiniteLossError, match="step 18") as error:
        training.check_finite({"loss": loss}, 20)
    assert error.value.step == 18


def test_bad_input():
    with pytest.raises(ValueError, match="backend"):
        compile_step(_step(), backend="xla")
    rows = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("rows",))
    for shell in (compile_step, functools.partial(compile_scan, num_steps=1, batch_size=8)):
        with pytest.raises(ValueError, match=r"mesh: .* along an axis 'data'; this has 'rows'"):
            shell(_step(), mesh=rows)
    whole = sharding.shardings(rows, {"embed": {"embedding": np.zeros((4, 2))}})
    assert whole["embed"]["embedding"].spec == jax.sharding.PartitionSpec()
    with pytest.raises(ValueError, match="10 is not divisible by 4"):
        check_divisible(10, 4)
    with pytest.raises(ValueError, match="batch of 8 is not divisible by microbatches=3"):
        tokens = np.zeros((8, 4), np.int32)
        training.train_step(None, Batch(tokens, np.arange(8), 8), objective=None, microbatches=3)
    with pytest.raises(ValueError, match="seeds"):
        compile_scan(_step(), num_steps=1, batch_size=8, backend="pmap", over_seeds=True)


def _run(arguments, env=None):
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_four_devices_agree_with_one():
    """jit over a mesh, pmap and one device: see devices_main.py, which needs its own process."""
    process = _run([HERE / "devices_main.py"])
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.mark.slow
def test_two_processes_agree_with_one(free_port):
    processes = [_run([HERE / "processes_main.py", str(free_port), str(n)]) for n in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


def test_the_schedule_is_the_rate_of_its_docstring():
    def rates(**kwargs):
        optimizer = training.make_optimizer(1.0, clip_norm=None, b1=0.0, b2=0.0, eps=0.0, **kwargs)
        params, found = jnp.ones(1), []
        state = optimizer.init(params)
        for _ in range(12):  # Adam without memory moves by the rate itself
            updates, state = optimizer.update(jnp.ones(1), state, params)
            found.append(-float(updates[0]))
        return np.array(found)

    n = np.arange(1, 13)
    np.testing.assert_allclose(rates(), np.ones(12), rtol=1e-6)
    np.testing.assert_allclose(rates(warmup_steps=1), np.ones(12), rtol=1e-6)
    np.testing.assert_allclose(rates(warmup_steps=5), np.minimum(n / 5, 1), rtol=1e-6)
    falling = np.maximum((10 - (n - 1)) / 7, 0)  # to 0 at update 11
    want = np.where(n <= 3, n / 3, falling)
    np.testing.assert_allclose(rates(warmup_steps=3, decay_steps=10), want, atol=1e-6)


def test_decay_is_beside_the_update_or_in_the_gradient():
    """Adam without memory moves by the sign of its gradient times the rate."""
    params, gradient = {"w": jnp.float32([2.0, -3.0])}, {"w": jnp.float32([-0.5, -1.0])}

    def update(**kwargs):
        plain = dict(clip_norm=None, b1=0.0, b2=0.0, eps=0.0)
        optimizer = training.make_optimizer(0.1, **plain | kwargs)
        return optimizer.update(gradient, optimizer.init(params), params)[0]["w"]

    np.testing.assert_allclose(update(), [0.1, 0.1], rtol=1e-6)
    # −0.1·0.2·θ more; and 0.4·θ in the gradient turns the first sign: −0.5 + 0.8 and −1 − 1.2.
    np.testing.assert_allclose(update(weight_decay=0.2), [0.1 - 0.04, 0.1 + 0.06], rtol=1e-6)
    np.testing.assert_allclose(update(l2=0.4), [-0.1, 0.1], rtol=1e-6)
    # With ε large the update is the gradient's, clipped (norm √1.25 to 0.5) before the decay.
    clipped = np.array([-0.5, -1.0]) * 0.5 / np.sqrt(1.25)
    wanted = -0.1 * (clipped + 0.4 * np.array([2.0, -3.0])) / 1e4
    np.testing.assert_allclose(update(l2=0.4, clip_norm=0.5, eps=1e4), wanted, rtol=1e-3)


def test_the_optimizer_is_adam_behind_a_clip_at_one_unless_told_otherwise():
    """An entry of the size of ε, and a gradient beyond the clip at every second step."""
    made = training.make_optimizer(0.1)
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1, 0.9, 0.999, eps=1e-8))
    params, found = {"w": jnp.ones(2)}, []
    for optimizer in (made, plain):
        state, moved = optimizer.init(params), []
        for size in (3.0, -0.5, 2.0, 0.1):
            grads = {"w": size * jnp.float32([1, 1e-8])}
            updates, state = optimizer.update(grads, state, params)
            moved.append(updates["w"])
        found.append(moved)
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_an_optimizer_that_cannot_be_is_refused():
    for name, value in dict(
        learning_rate=np.nan, weight_decay=-1.0, l2=-1.0, eps=np.inf, clip_norm=-1.0, b1=2.0, b2=1.0
    ).items():
        with pytest.raises(ValueError, match=name):
            training.make_optimizer(**{"learning_rate": 1.0, name: value})
    for name in ("learning_rate", "weight_decay", "l2", "eps", "clip_norm", "b1", "b2"):
        for value in ("1e-3", [1.0]):
            with pytest.raises(TypeError, match=f"{name} must be a number, got"):
                training.make_optimizer(**{"learning_rate": 1.0, name: value})
    for name in ("warmup_steps", "decay_steps"):
        for value in (1.5, -1, "2"):
            with pytest.raises(ValueError, match=f"{name} must be a whole number from 0, got"):
                training.make_optimizer(1.0, **{name: value})
    with pytest.raises(ValueError, match="decay_steps=5 ends before warmup_steps=10"):
        training.make_optimizer(1.0, warmup_steps=10, decay_steps=5)
    training.make_optimizer(jnp.float32(1), warmup_steps=np.int64(5), decay_steps=5, clip_norm=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(key=0), r"key must be a key such as jax\.random\.key\(0\), got 0"),
        (dict(key=None), "key must be a key"),
        (dict(apply_fn="mlp"), "apply_fn must be a function of .*, got 'mlp'"),
        (dict(optimizer=1e-3), "optimizer must be one of optax, got 0.001"),
    ],
)
def test_a_state_that_cannot_be_is_refused(changes, message):
    parts = dict(apply_fn=None, params={}, optimizer=optax.sgd(1.0), key=jax.random.key(0))
    with pytest.raises(TypeError, match=message):
        training.create_state(**parts | changes)


def test_a_step_that_scores_nothing_is_refused_where_that_is_known():
    tokens_BL, none_BL = DATA["tokens_BL"][:2], np.zeros_like(DATA["tokens_BL"][:2], bool)
    for masks in (dict(scored_BL=none_BL), dict(valid_BL=none_BL)):
        batch = Batch(tokens_BL, np.arange(2), 2, **masks)
        with pytest.raises(ValueError, match="scored is False at every valid token"):
            _step()(_state(), batch)
        jax.eval_shape(_step(), _state(), batch)  # traced: not known


@pytest.mark.parametrize("value", [0, 1.5, True, "2"])
def test_counts_of_training_are_whole_numbers_from_1(value):
    batch = Batch(DATA["tokens_BL"][:8], np.arange(8), 8)
    for name, call in {
        "microbatches": lambda: training.train_step(
            _state(), batch, objective=None, microbatches=value
        ),
        "num_steps": lambda: compile_scan(_step(), num_steps=value, batch_size=8)(_state(), DATA),
        "batch_size": lambda: compile_scan(_step(), num_steps=1, batch_size=value)(_state(), DATA),
        "length": lambda: training.initializer(None, None, None, length=value),
    }.items():
        with pytest.raises(
            ValueError, match=f"{name} must be a whole number from 1, got {value!r}"
        ):
            call()


@pytest.mark.parametrize(("ema", "decay"), [(True, None), (False, 0.9), (True, -0.1), (True, 2.0)])
def test_an_average_has_a_decay_and_a_decay_an_average(ema, decay):
    state = training.create_state(
        None, {"w": jnp.ones(3)}, optax.sgd(1.0), jax.random.key(0), ema=ema
    )
    batch = Batch(DATA["tokens_BL"][:8], np.arange(8), 8)
    with pytest.raises(ValueError, match="ema_decay"):
        training.train_step(state, batch, objective=None, ema_decay=decay)


def test_fields_of_different_sizes_are_refused():
    """Whichever of them comes first: rows that are not there would be read as the last one."""
    step = compile_scan(_step(), num_steps=1, batch_size=8)
    for name in ("scored_BL", "valid_BL"):
        with pytest.raises(ValueError, match="leading size"):
            step(_state(), DATA | {name: np.ones((1, 4), bool)})


def test_what_the_caller_gave_stays_the_callers():
    params, key = {"w": jnp.ones(3)}, jax.random.key(0)
    state = training.create_state(None, params, optax.sgd(1.0), key)
    donated = jax.jit(lambda s: s.replace(params={"w": s.params["w"] + 1}), donate_argnums=0)
    donated(state)
    np.testing.assert_array_equal(params["w"], 1)
    assert jax.random.key_data(key).shape


def test_float16_is_refused_by_name():
    params = {"layer": {"w": jnp.ones(3, jnp.float16)}}
    with pytest.raises(ValueError, match="layer/w is float16"):
        training.create_state(None, params, optax.sgd(1.0), jax.random.key(0))


def test_bfloat16_gradients_add_up_in_float32():
    """256 equal microbatches give the gradient of one: bfloat16 sums stop growing at 256 ulps."""

    def objective(apply_fn, params, batch, key, *, rngs=None):
        del apply_fn, key, rngs
        return (params["w"] * 1.01).sum() * len(batch.tokens_BL), np.float32(1), {}

    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = training.create_state(None, params, optax.sgd(1.0), jax.random.key(0))
    batch = Batch(np.zeros((256, 1), np.int32), np.arange(256), 256)
    step = functools.partial(training.train_step, objective=objective, dropout=False)
    _, one = jax.jit(functools.partial(step, microbatches=1))(state, batch)
    _, many = jax.jit(functools.partial(step, microbatches=256))(state, batch)
    np.testing.assert_allclose(many["grad_norm"] * 256, one["grad_norm"], rtol=4e-3)


def test_the_average_forgets_no_slower_than_its_decay_says():
    """It keeps min(0.25, (1 + n) / (10 + n)) of itself at update n: 2/11, 1/4, and never more."""

    def objective(apply_fn, params, batch, key, *, rngs=None):
        return params["w"].sum(), np.float32(1), {}  # from 1 to 0 in a step

    start = {"w": jnp.ones(1)}
    state = training.create_state(None, start, optax.sgd(1.0), jax.random.key(0), ema=True)
    batch = Batch(DATA["tokens_BL"][:8], np.arange(8), 8)
    for n, want in ((1, 2 / 11), (2, 0.25), (3, 0.25), (90, 0.25)):
        begun = state.replace(step=jnp.int32(n - 1))
        new, _ = training.train_step(begun, batch, objective=objective, ema_decay=0.25)
        np.testing.assert_allclose(new.ema_params["w"], want, rtol=1e-5)
        raw, average = (new.weights()[name]["w"] for name in ("raw", "ema"))
        assert (raw[0], average[0]) == (new.params["w"][0], new.ema_params["w"][0])
    assert begun.replace(ema_params=None).weights().keys() == {"raw"}


def test_every_microbatch_drops_out_by_a_key_of_its_own():
    def objective(apply_fn, params, batch, key, *, rngs=None):
        return params["w"].sum(), np.float32(1), {"drawn": jax.random.uniform(rngs["dropout"])}

    state = training.create_state(None, {"w": jnp.ones(1)}, optax.sgd(1.0), jax.random.key(0))
    batch = Batch(DATA["tokens_BL"][:8], np.arange(8), 8)
    _, metrics = training.train_step(state, batch, objective=objective, microbatches=4)
    _, key = jax.random.split(jax.random.fold_in(state.key, 0))
    drawn = [float(jax.random.uniform(jax.random.fold_in(key, part))) for part in range(4)]
    np.testing.assert_allclose(metrics["drawn"], sum(drawn), rtol=1e-5)


def test_shares_under_a_mapped_axis_are_the_whole_with_dropout_of_their_own():
    """Two shares of two rows, of one scored token and of five: the axis of `vmap` as of `pmap`."""

    def objective(apply_fn, params, batch, key, *, rngs=None):
        nats = params["w"].sum() * jnp.sum(batch.tokens_BL * batch.scored_BL)
        drawn = dict(noise=jax.random.uniform(key), drawn=jax.random.uniform(rngs["dropout"]))
        return nats, jnp.sum(batch.scored_BL).astype(jnp.float32), drawn

    state = training.create_state(None, {"w": jnp.ones(1)}, optax.sgd(1.0), jax.random.key(0))
    scored = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]], bool)
    batch = Batch(np.arange(12).reshape(4, 3), np.arange(4), 4, scored_BL=scored)
    shares = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
    step = functools.partial(training.train_step, objective=objective, axis_name="data")
    new, metrics = jax.vmap(step, (None, 0), axis_name="data")(state, shares)
    mean = (0 + 6 + 7 + 8 + 10 + 11) / 6
    np.testing.assert_allclose(new.params["w"], [[1 - mean]] * 2, rtol=1e-6)
    for name, want in (("loss", mean), ("count", 6), ("grad_norm", mean)):
        np.testing.assert_allclose(metrics[name], [want] * 2, rtol=1e-6)
    noise_key, dropout_key = jax.random.split(jax.random.fold_in(state.key, 0))
    np.testing.assert_allclose(metrics["noise"], 2 * jax.random.uniform(noise_key), rtol=1e-6)
    keys = [jax.random.fold_in(jax.random.fold_in(dropout_key, n), 0) for n in (0, 1)]
    drawn = sum(float(jax.random.uniform(key)) for key in keys)
    np.testing.assert_allclose(metrics["drawn"], drawn, rtol=1e-6)


def test_adam_forgets_by_its_two_rates():
    """Updates of a gradient that changes, by hand; 0.9 and 0.999 where nothing is said."""
    for how, b1, b2 in (({}, 0.9, 0.999), (dict(b1=0.5, b2=0.75), 0.5, 0.75)):
        optimizer = training.make_optimizer(0.1, clip_norm=None, **how)
        state, m, v = optimizer.init(jnp.zeros(())), 0.0, 0.0
        for n, g in enumerate([1.0, -3.0, 2.0], 1):
            update, state = optimizer.update(jnp.float32(g), state, jnp.zeros(()))
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            want = -0.1 * m / (1 - b1**n) / np.sqrt(v / (1 - b2**n))
            np.testing.assert_allclose(update, want, rtol=1e-4)


def test_the_last_batch_of_an_epoch_holds_what_is_left():
    """Ten examples by four: 4, 4 and 2 are there, in the order of the run's key."""

    def step(state, batch):
        told = dict(row=batch.tokens_BL[:, 0], size=batch.size_B, scored=batch.scored_BL)
        return state.replace(step=state.step + 1), told

    state = training.create_state(None, {"w": jnp.ones(1)}, optax.sgd(1.0), jax.random.key(3))
    data = {
        "tokens_BL": np.arange(10)[:, None].repeat(3, 1),
        "scored_BL": np.arange(30).reshape(10, 3) % 2 > 0,
    }
    steps = compile_scan(step, num_steps=6, batch_size=4, whole_epochs=True)
    _, told = steps(state, data)
    size_T = np.array([4, 4, 2] * 2)
    there_TB = np.arange(4) < size_T[:, None]
    np.testing.assert_array_equal(told["size"], size_T[:, None].repeat(4, 1))
    want = data["scored_BL"][told["row"]] & there_TB[..., None]
    np.testing.assert_array_equal(told["scored"], want)
    order_key = jax.random.fold_in(state.key, training.ORDER_STREAM)
    order_TB = np.asarray(batching.epoch_indices(order_key, 0, 6, 10, 4))
    np.testing.assert_array_equal(np.asarray(told["row"])[there_TB], order_TB[there_TB])


@pytest.mark.parametrize("ema", [False, True])
def test_a_seed_draws_weights_and_all_else_by_two_keys(ema):
    model = nn.Embed(5, 3)
    state = training.initializer(model, model.apply, optax.sgd(1.0), ema=ema)(7)
    init_key, run_key = jax.random.split(jax.random.key(7))
    want = jax.jit(model.init)(init_key, np.zeros((1, 1), np.int32))["params"]
    chex.assert_trees_all_equal(state.params, want)
    np.testing.assert_array_equal(*map(jax.random.key_data, (state.key, run_key)))
    chex.assert_trees_all_equal(state.ema_params, want if ema else None)


def test_a_digest_tells_values_names_types_and_shapes_apart():
    x = np.arange(6, dtype=np.int32)
    others = ({"a": x + 1}, {"b": x}, {"a": x.reshape(2, 3)}, {"a": x.view(np.uint32)})
    found = [training.digest(data) for data in ({"a": x}, {"a": x, "b": x}, *others)]
    assert len(set(found)) == 6 and training.digest({"b": x, "a": x}) == found[1]


def test_a_batch_of_which_nothing_counts_moves_nothing():
    def objective(apply_fn, params, batch, key, *, rngs=None):
        return 0.0 * params["w"].sum(), np.float32(0), {}

    state = training.create_state(None, {"w": jnp.ones(3)}, optax.sgd(1.0), jax.random.key(0))
    batch = Batch(DATA["tokens_BL"][:8], np.arange(8), 8)
    new, metrics = training.train_step(state, batch, objective=objective)
    np.testing.assert_array_equal(new.params["w"], 1)
    assert (metrics["loss"], metrics["grad_norm"]) == (0, 0)
