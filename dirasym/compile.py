"""The shells that compile a train step, by jit or pmap, for one device or many.

A step is a pure function (`training.train_step`); here it meets devices. State in and out is
one replicated pytree in every case, never stacked by device.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dirasym import usage
from dirasym.sharding import DATA, num_shares
from dirasym.training import Data, Metrics, StepFn, TrainState, scan_steps

Backend = Literal["jit", "pmap"]


def compile_step(
    step: StepFn,
    *,
    backend: Backend = "jit",
    mesh: Mesh | None = None,
    shardings: Callable[[Any], Any] | None = None,
    donate: bool = False,
) -> StepFn:
    """Compiles (state, batch) -> (state, metrics) for one device or many, one signature for all.

    "jit" without a mesh runs on the default device. "jit" with a mesh keeps the state
    replicated, splits the batch along the mesh's axis "data", and leaves the sums over
    devices to the compiler. "pmap" maps over the mesh's devices (all local ones without a
    mesh) and calls `step` with axis_name="data", over which it must sum. State in and out
    is one replicated pytree in every case, never stacked by device.

    Args:
      step: e.g. `functools.partial(train_step, objective=...)`.
      backend: "jit" or "pmap".
      mesh: devices, with an axis "data".
      shardings: from a state to a tree of its shardings on the mesh, in place of replication
        (`functools.partial(sharding.shardings, mesh)`); backend "jit" alone.
      donate: whether the state passed in may be overwritten, which saves the memory of one. The
        caller can then no longer read it, nor anything that shares its arrays.

    Raises:
      ValueError: unknown backend, a mesh without an axis "data", or (on call) a batch that the
        devices cannot share evenly.
    """
    num_devices = _num_devices(backend, mesh)
    if backend == "pmap":
        compiled = _pmap(functools.partial(step, axis_name=DATA), (0,), mesh, donate)
    else:
        compiled = _jit(_frozen_apart(step), PartitionSpec(DATA), mesh, donate, shardings)

    def run(state, batch):
        check_divisible(len(batch.tokens_BL), num_devices)
        if backend == "pmap":
            batch = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)
        return compiled(state, batch)

    return run


def compile_scan(
    step: StepFn,
    *,
    num_steps: int,
    batch_size: int,
    backend: Backend = "jit",
    mesh: Mesh | None = None,
    shardings: Callable[[Any], Any] | None = None,
    over_seeds: bool = False,
    data_per_seed: bool = False,
    whole_epochs: bool = False,
    donate: bool = False,
) -> Callable[[TrainState, Data], tuple[TrainState, Metrics]]:
    """Compiles `scan_steps`, as `compile_step` does a step: (state, data) -> (state, metrics).

    With `over_seeds` the state has a leading axis of seeds, all trained in one program, on the
    same data or, with `data_per_seed`, on arrays that have a leading axis of seeds too.

    Raises:
      ValueError: unknown backend, a mesh without an axis "data", a batch that the devices cannot
        share evenly, or seeds under pmap.
    """
    num_devices = _num_devices(backend, mesh)
    check_divisible(batch_size, num_devices)
    scan = functools.partial(
        scan_steps, num_steps=num_steps, batch_size=batch_size, whole_epochs=whole_epochs
    )
    if backend == "pmap":
        if over_seeds:
            raise ValueError("seeds in one program need backend 'jit'")

        mapped_step = functools.partial(step, axis_name=DATA)

        def steps_on_device(state, data, device):
            def take_share(batch):
                parts = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)
                return jax.tree.map(lambda x: x[device], parts)

            return scan(mapped_step, localise=take_share)(state, data)

        compiled = _pmap(steps_on_device, (None, 0), mesh, donate)
        return lambda state, data: compiled(state, data, np.arange(num_devices))
    if mesh is None:
        steps = scan(step)
    else:
        split = NamedSharding(mesh, PartitionSpec(DATA))
        steps = scan(step, localise=lambda batch: jax.lax.with_sharding_constraint(batch, split))
    if over_seeds:
        axes = (0, None, 0 if data_per_seed else None)
        steps = jax.vmap(_frozen_apart(steps), in_axes=axes)
    else:
        steps = _frozen_apart(steps)
    return _jit(steps, PartitionSpec(), mesh, donate, shardings)


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raises ValueError if the devices cannot share the batch evenly, or its size is none."""
    usage.check_counts(batch_size=batch_size)
    if batch_size % num_devices:
        raise ValueError(f"batch of {batch_size} is not divisible by {num_devices} devices")


def make_room(share: float = 0.5) -> None:
    """Forgets all compiled programs, if this process has used up its `share` of memory maps.

    Linux gives a process 65,530 of them, a program compiled for CPU takes some tens, and XLA
    crashes where there are none left. What is called again is compiled again.
    """
    try:
        limit = int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
        with open("/proc/self/maps", "rb") as maps:
            used = sum(1 for _ in maps)
    except OSError:  # no Linux
        return
    if used > share * limit:
        logging.info("%d of %d memory maps are used: programs are compiled anew", used, limit)
        jax.clear_caches()


def place(tree: Any, sharding: NamedSharding) -> Any:
    """The tree on the devices of a mesh, which may be other processes' too.

    Every process must hold the same host values. Leaves already there are passed through.
    """

    def put(x):
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree)


def _num_devices(backend: Backend, mesh: Mesh | None) -> int:
    if backend not in ("jit", "pmap"):
        raise ValueError(f"backend must be 'jit' or 'pmap', got {backend!r}")
    if mesh is None and backend == "pmap":
        return jax.local_device_count()
    return num_shares(mesh)


def _jit(
    fn,
    data_spec: PartitionSpec,
    mesh: Mesh | None,
    donate: bool,
    shardings: Callable[[Any], Any] | None = None,
):
    """Compiles (state, frozen, x) -> (state, metrics) as (state, x) -> (state, metrics)."""
    donated = (0,) if donate else ()
    if mesh is None:
        return _frozen_inside(jax.jit(fn, donate_argnums=donated))
    data, whole = NamedSharding(mesh, data_spec), NamedSharding(mesh, PartitionSpec())
    shardings = shardings or (lambda tree: jax.tree.map(lambda _: whole, tree))

    @functools.partial(jax.jit, donate_argnums=donated)
    def compiled(state, frozen, x):
        state, metrics = fn(state, frozen, x)
        constrain = jax.lax.with_sharding_constraint
        return constrain(state, shardings(state)), constrain(metrics, whole)

    def put(tree):
        return jax.tree.map(place, tree, shardings(tree))

    return _frozen_inside(
        lambda state, frozen, x: compiled(put(state), frozen, place(x, data)), put
    )


def _pmap(fn, data_axes: tuple[int | None, ...], mesh: Mesh | None, donate: bool):
    return _frozen_inside(
        jax.pmap(
            _frozen_apart(fn),
            axis_name=DATA,
            in_axes=(None, None, *data_axes),
            out_axes=None,
            devices=None if mesh is None else list(mesh.devices.flat),
            donate_argnums=(0,) if donate else (),
        )
    )


def _frozen_apart(fn):
    """`fn(state, ..)` with what is frozen as an argument of its own, and not in its output."""

    def apart(state, frozen, *args):
        state, metrics = fn(state.replace(frozen=frozen), *args)
        return state.replace(frozen=None), metrics

    return apart


def _frozen_inside(fn, put=lambda frozen: frozen):
    """The inverse of `_frozen_apart`; `put` places what is frozen, once."""

    def inside(state, *args):
        frozen = put(state.frozen)
        new, metrics = fn(state.replace(frozen=None), frozen, *args)
        return new.replace(frozen=frozen), metrics

    return inside
