"""A pure train step, its state and optimizer, and many steps as one scan."""

import hashlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dirasym import keys, usage
from dirasym.data import batching
from dirasym.objectives import Objective
from dirasym.precision import widened
from dirasym.types import ApplyFn, Array, Batch, Params, check_scored

Metrics = dict[str, jax.Array]
Data = Mapping[str, Array]  # `Batch` fields over a whole data set
StepFn = Callable[..., tuple["TrainState", Metrics]]
# Folded into a run's key in place of a step, as no step reaches them.
ORDER_STREAM = np.uint32(2**32 - 1)
EVAL_STREAM = np.uint32(2**32 - 2)


class TrainState(flax.struct.PyTreeNode):
    """All of a run that changes with its steps; `params` may be any pytree of float arrays.

    Attributes:
      step: steps taken, int32.
      apply_fn: the model (static).
      params: what is trained: nested dicts, a registered dataclass, an Equinox module.
      tx: the optimizer (static).
      opt_state: its state.
      key: the only source of randomness of a run: data order, noise and dropout are
        functions of (key, step).
      ema_params: moving average of the parameters, or None.
      frozen: entries that the model reads beside those of `params` and that nobody trains,
        such as the base weights under adapters: a dict, as `params` then is. The compiled
        shells neither donate nor copy it, seeds share it, and checkpoints leave it out.
    """

    step: jax.Array
    apply_fn: ApplyFn = flax.struct.field(pytree_node=False)
    params: Params
    tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    opt_state: optax.OptState
    key: jax.Array
    ema_params: Params | None = None
    frozen: Params | None = None

    def apply_gradients(self, grads: Params) -> "TrainState":
        """The state after the optimizer's step with these gradients."""
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state)

    def weights(self) -> dict[str, Params]:
        """What can be evaluated: "raw", and "ema" where there is one."""
        averaged = {} if self.ema_params is None else {"ema": self.ema_params}
        return {"raw": self.params, **averaged}

    def variables(self, params: Params) -> Params:
        """What `apply_fn` takes: `params`, with the frozen entries."""
        return params if self.frozen is None else {**self.frozen, **params}


def create_state(
    apply_fn: ApplyFn,
    params: Params,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema: bool = False,
    frozen: Params | None = None,
) -> TrainState:
    """State at step 0; the average, if any, starts at `params`.

    The state has arrays of its own: a compiled step may overwrite them, and what the caller
    gave stays the caller's.

    Raises:
      ValueError: float16 parameters, in which AdamW's ε is 0 and a zero gradient 0/0.
      TypeError: a leaf of the parameters is no array of floats; it is named. A model, optimizer or
        key that is none.
    """
    if not (apply_fn is None or callable(apply_fn)):  # a step may need none
        raise TypeError(f"apply_fn must be a function of (params, tokens), got {apply_fn!r:.80}")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer must be one of optax, got {optimizer!r:.80}")
    key = keys.threefry(key)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            raise TypeError(f"params: {name} is {dtype}; gradients need arrays of floats")
        if dtype == jnp.float16:
            raise ValueError(f"{name} is float16: train in float32 or bfloat16")
    params, key = jax.tree.map(jnp.copy, params), jnp.copy(key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),  # an array, as after every later step
        apply_fn=apply_fn,
        params=params,
        tx=optimizer,
        opt_state=optimizer.init(params),
        key=key,
        # A copy: two names of one buffer cannot both be donated.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        frozen=frozen,
    )


def initializer(
    model: nn.Module,
    apply_fn: ApplyFn,
    optimizer: optax.GradientTransformation,
    *,
    length: int = 1,
    ema: bool = False,
) -> Callable[[int], TrainState]:
    """From a seed to the state at step 0 of a linen model's "params", all of one program.

    The seed's key is split in two: one makes the parameters, from zeros of `length` tokens, the
    other is the run's.

    Raises:
      ValueError: a length below 1.
    """
    usage.check_counts(length=length)
    init = jax.jit(model.init)

    def of_seed(seed: int) -> TrainState:
        init_key, run_key = jax.random.split(jax.random.key(seed))
        params = init(init_key, np.zeros((1, length), np.int32))["params"]
        return create_state(apply_fn, params, optimizer, run_key, ema=ema)

    return of_seed


def make_optimizer(
    learning_rate: float,
    *,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    weight_decay: float = 0.0,
    l2: float = 0.0,
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global gradient norm.

    Update n = 1, 2, .. has learning rate lr·min(n / warmup, 1); with `decay_steps` it then
    falls linearly, to 0 at update `decay_steps` + 1. Weight decay falls on every parameter:
    `weight_decay` beside the update (decoupled: −lr·λθ), `l2` in the gradient, which becomes
    g + λθ after the clip and before Adam's moments (coupled: that of a loss with λ‖θ‖²/2 more).

    Raises:
      TypeError: what is no number; the argument is named.
      ValueError: a rate, decay, clip or ε that is negative or not finite, b1 or b2 outside [0, 1),
        steps that are no whole numbers from 0, or a decay that ends before the warm-up does.
    """
    sizes = dict(learning_rate=learning_rate, weight_decay=weight_decay, l2=l2, eps=eps)
    sizes |= dict(clip_norm=0 if clip_norm is None else clip_norm)
    moments = dict(b1=b1, b2=b2)
    for name, value in {**sizes, **moments}.items():
        usage.check_number(name, value)
    for name, value in sizes.items():
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    for name, value in moments.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    usage.check_counts(0, warmup_steps=warmup_steps, decay_steps=decay_steps or 0)
    if decay_steps is not None and decay_steps < warmup_steps:
        raise ValueError(f"decay_steps={decay_steps} ends before warmup_steps={warmup_steps}")
    warmup = max(warmup_steps, 1)
    rise = optax.linear_schedule(learning_rate / warmup, learning_rate, warmup - 1)
    fall = optax.constant_schedule(learning_rate)
    if decay_steps is not None:
        fall = optax.linear_schedule(learning_rate, 0.0, max(decay_steps - warmup_steps, 1))
    schedule = optax.join_schedules([rise, fall], [warmup_steps])
    adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    before = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    if l2:
        before.append(optax.add_decayed_weights(l2))
    return optax.chain(*before, adamw) if before else adamw


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    objective: Objective,
    ema_decay: float | None = None,
    microbatches: int = 1,
    dropout: bool = True,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update: (state, batch) -> (state, metrics), a pure function.

    The gradient is that of Σ sum / Σ count over all microbatches, and over all devices
    of `axis_name` when the step runs under a mapped axis.

    Args:
      state: parameters, optimizer state, key and step.
      batch: this device's share of the global batch; its size must divide by `microbatches`.
      objective: see `objectives`; settings bound.
      ema_decay: the average keeps min(ema_decay, (1+n)/(10+n)) of itself at update n.
      microbatches: gradient accumulation, one after another.
      dropout: whether the model gets a dropout key.
      axis_name: mapped axis to sum over.

    Returns:
      The new state, and metrics: "loss" in the objective's nats per count, "count",
      "grad_norm" before clipping, and the objective's own sums.

    Raises:
      ValueError: a batch that does not divide by `microbatches`, an `ema_decay` outside [0, 1],
        without an average in the state, or missing where there is one, or no scored token as far
        as that is known (not of what `jit` traces).
    """
    check_scored(batch)
    usage.check_counts(microbatches=microbatches)
    if len(batch.tokens_BL) % microbatches:
        raise ValueError(
            f"batch of {len(batch.tokens_BL)} is not divisible by microbatches={microbatches}"
        )
    if (ema_decay is None) != (state.ema_params is None):
        raise ValueError("ema_decay goes with create_state(ema=True): both or neither")
    if ema_decay is not None and not 0 <= ema_decay <= 1:
        raise ValueError(f"ema_decay must be in [0, 1], got {ema_decay}")
    sums = _summed(state, batch, objective, microbatches, dropout, axis_name)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    (total, aux), grads = sums
    count = jnp.maximum(aux["count"], 1.0)
    # A product, unlike a quotient, is fused into each of its readers.
    grads = jax.tree.map(
        lambda g, p: (g * (1 / count).astype(g.dtype)).astype(p.dtype), grads, state.params
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules rely on it
        state = state.apply_gradients(grads)
    if ema_decay is not None:
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        state = state.replace(
            ema_params=optax.incremental_update(state.params, state.ema_params, 1 - decay)
        )
    return state, {**aux, "loss": total / count, "grad_norm": optax.tree.norm(grads)}


def _summed(state, batch, objective, microbatches, dropout, axis_name):
    """((Σ sum, Σ of the other sums), gradient of Σ sum) over this device's microbatches."""
    step_key = jax.random.fold_in(state.key, state.step)
    noise_key, dropout_key = jax.random.split(step_key)
    if axis_name is not None:
        dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))

    def summed_loss(params, part, part_index):
        part_key = jax.random.fold_in(dropout_key, part_index)
        rngs = {"dropout": part_key} if dropout else None
        variables = state.variables(params)
        total, count, aux = objective(state.apply_fn, variables, part, noise_key, rngs=rngs)
        return total, {"count": count, **aux}

    grad = jax.value_and_grad(summed_loss, has_aux=True)
    if microbatches == 1:
        return grad(state.params, batch, 0)

    def add_part(sums, part_and_index):
        new = jax.tree.map(widened, grad(state.params, *part_and_index))
        return jax.tree.map(jnp.add, sums, new), None

    parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda p: jax.tree.map(widened, grad(p, first, 0)), state.params)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add_part, zeros, (parts, jnp.arange(microbatches)))[0]


def scan_steps(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    *,
    num_steps: int,
    batch_size: int,
    whole_epochs: bool = False,
    localise: Callable[[Batch], Batch] = lambda batch: batch,
) -> Callable[[TrainState, Data], tuple[TrainState, Metrics]]:
    """`num_steps` steps as one program: (state, data) -> (state, metrics [num_steps]).

    `data` is a dict of `Batch` fields over all n examples, each [n, ...]. The rows of a step
    come from `batching.batch_indices` of (state.key, state.step), so that results do not
    depend on how steps are grouped into calls; with `whole_epochs` from `epoch_indices`,
    where the last batch of an epoch holds what is left, and its other rows are not scored.
    `localise` takes the global batch to the part that `step` should see.

    Raises:
      ValueError: `num_steps` or `batch_size` below 1; of the steps: fields of different n.
    """
    usage.check_counts(num_steps=num_steps, batch_size=batch_size)
    order = batching.epoch_indices if whole_epochs else batching.batch_indices

    def steps(state, data):
        order_key = jax.random.fold_in(state.key, ORDER_STREAM)
        num_examples = batching.count_examples(data)
        indices_TB = order(order_key, state.step, num_steps, num_examples, batch_size)

        def body(state, indices_B):
            rows = jax.tree.map(lambda x: x[indices_B], data)
            if whole_epochs:
                scored_BL = rows.get("scored_BL", jnp.ones(rows["tokens_BL"].shape, bool))
                is_there_B = indices_B >= 0
                rows["scored_BL"] = scored_BL & is_there_B[:, None]
                rows["size_B"] = jnp.broadcast_to(jnp.sum(is_there_B), is_there_B.shape)
            batch = Batch(**rows, index_B=jnp.arange(batch_size), global_size=batch_size)
            return step(state, localise(batch))

        return jax.lax.scan(body, state, indices_TB)

    return steps


def digest(data: Data) -> str:
    """Sixteen digits that change with the examples: what a checkpoint was trained on."""
    hashed = hashlib.sha256()
    for name, x in sorted(data.items()):
        x = np.asarray(x)
        hashed.update(f"{name} {x.dtype} {x.shape}".encode())
        hashed.update(np.ascontiguousarray(x).tobytes())
    return hashed.hexdigest()[:16]


class NonFiniteLossError(RuntimeError):
    """The loss stopped being finite at `step` (counted from 1)."""

    def __init__(self, step: int):
        super().__init__(f"loss is not finite at step {step}")
        self.step = step


def check_finite(metrics: Metrics, last_step: int) -> None:
    """Raises NonFiniteLossError at the first bad step of metrics that end at `last_step`.

    `metrics["loss"]` is [T, ...]; further axes are seeds.
    """
    loss_T = np.asarray(metrics["loss"])
    bad_T = ~np.isfinite(loss_T).reshape(len(loss_T), -1).all(axis=1)
    if bad_T.any():
        raise NonFiniteLossError(last_step - len(bad_T) + 1 + int(np.argmax(bad_T)))
