"""What a `runs.Run` will cost, before anything is trained: operations, and bytes on a device."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.extend import core

from dirasym import devices, recipes
from dirasym.compile import compile_scan
from dirasym.seeds import joined, stack

GB = 1e9
# For a GPU that is not here: no kernel can be tried.
UNTRIED: dict[str, str | bool] = {
    "xla_gpu_autotune_level": "0",
    "xla_gpu_enable_triton_gemm": False,
}


def lines(
    all_runs: Sequence[Any],
    seeds: Sequence[int],
    together: bool | Literal["auto"] = "auto",
    compile_for: str | None = None,
) -> list[dict[str, Any]]:
    """A line a run: steps, parameters, and the FLOPs of all steps and seeds, evaluations apart.

    Args:
      all_runs: the runs.
      seeds: those that they train with.
      together: whether the seeds of a run train in one program; "auto": on accelerators.
      compile_for: a device of `devices.described`. Lines have "GB" then: see `gigabytes`.
    """
    found = [_line(run, seeds) for run in all_runs]
    if compile_for is None:
        return found
    device = devices.described(compile_for)
    as_one = device.platform != "cpu" if together == "auto" else together
    needed = gigabytes(all_runs, seeds, together=as_one, device=device)
    return [line | {"GB": x} for line, x in zip(found, needed, strict=True)]


def _line(run: Any, seeds: Sequence[int]) -> dict[str, Any]:
    state, batch = recipes.abstract(run, seeds[0])
    return {
        "run": run.name,
        "seeds": len(seeds),
        "steps": run.num_steps,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "flops": flops(run.step, state, batch) * run.num_steps * len(seeds),
    }


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of a call, as XLA counts them before it optimizes.

    XLA counts the body of a loop once. Here that of a `lax.scan` counts as often as it runs; that
    of a `lax.while_loop`, whose length nobody knows beforehand, once. Of a `lax.cond` the costliest
    branch counts.

    Args:
      function: what JAX can trace; without `jax.shard_map`, whose devices it does not add up.
      *args: arrays, or their shapes and dtypes.

    Examples:
      >>> x = jax.ShapeDtypeStruct((8, 8), np.float32)
      >>> step = lambda x, _: (x @ x, None)
      >>> flops(lambda x: jax.lax.scan(step, x, length=10)[0], x)  # 10 products of 2 · 8³
      10240.0
    """
    return _flops(jax.make_jaxpr(function)(*args))


def _flops(program: core.ClosedJaxpr) -> float:
    counted = _counted(core.jaxpr_as_fun(program), program.in_avals)
    return counted + sum(map(_uncounted, _branching(program.jaxpr)))


def _uncounted(eqn: core.JaxprEqn) -> float:
    """What XLA leaves out of a scan or cond, or counts too often."""
    if eqn.primitive.name == "scan":
        cost = eqn.params["length"] * _flops(eqn.params["jaxpr"])
    else:
        cost = max(map(_flops, eqn.params["branches"]))

    def alone(*args):
        return eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))

    return cost - _counted(alone, [x.aval for x in eqn.invars])


def _counted(function: Callable[..., Any], shapes: Sequence[Any]) -> float:
    """XLA's count of the operations of a program."""
    args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes]
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # a GPU's plugin counts nothing
        cost = jax.jit(function).lower(*args).cost_analysis() or {}
    return float(cost.get("flops", 0.0))


def _branching(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Every outermost scan and cond."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("scan", "cond"):
            yield eqn
        else:
            for inner in core.jaxprs_in_params(eqn.params):
                yield from _branching(inner)


def gigabytes(
    all_runs: Sequence[Any],
    seeds: Sequence[int],
    *,
    together: bool = False,
    device: jax.Device | None = None,
) -> list[float]:
    """What XLA needs to train each run, evaluations apart, in GB of 10⁹ bytes.

    The program of `eval_every` steps is compiled for the device, once for all runs that train
    alike, and nothing is allocated. Its arguments, results and temporary memory count. On top come
    the device's own context, trials of kernels, evaluations, and, of several seeds together, the
    state of one while it is saved, and a second copy of all while they begin.

    Args:
      all_runs: the runs.
      seeds: those that they train with.
      together: whether the seeds of a run train in one program.
      device: a device here, or one that `devices.described` gives; None: the default device.
    """
    group = list(seeds) if together else list(seeds)[:1]
    found: dict[str, float] = {}
    keys = []
    for run in all_runs:
        data, per_seed = joined([run.data(seed) for seed in group])
        alike = recipes.recipe(run, group[0]) | {"num_steps": 0}  # which changes no program
        keys.append(repr((alike, per_seed, {name: np.shape(x) for name, x in data.items()})))
        if keys[-1] not in found:
            found[keys[-1]] = _gigabytes(run, group, data, per_seed, device)
    return [found[key] for key in keys]


def _gigabytes(run: Any, group: Sequence[int], data: Any, per_seed: bool, device: Any) -> float:
    state = jax.eval_shape(lambda: stack([run.init(seed) for seed in group]))
    steps = compile_scan(
        run.step,
        num_steps=run.eval_every,
        batch_size=run.batch_size,
        whole_epochs=run.whole_epochs,
        over_seeds=len(group) > 1,
        data_per_seed=per_seed,
    )

    def train(state, frozen, data):
        state, metrics = steps(state.replace(frozen=frozen), data)
        return state.replace(frozen=None), metrics

    place = jax.sharding.SingleDeviceSharding(device or jax.devices()[0])
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        (state.replace(frozen=None), state.frozen, data),
    )
    options = None if device in (None, *jax.devices()) else UNTRIED
    program = jax.jit(train, donate_argnums=0).lower(*arguments).compile(options)
    said: Any = program.memory_analysis()
    held = said.argument_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes
    return (held + said.temp_size_in_bytes) / GB


def check_memory(all_runs: Sequence[Any], seeds: Sequence[int]) -> None:
    """Raises ValueError for a run whose state and gradient alone no memory here holds."""
    there = devices.memory() or math.inf
    for run in {run.init: run for run in all_runs}.values():
        state = jax.eval_shape(functools.partial(run.init, seeds[0]))
        leaves = jax.tree.leaves((state, state.params))
        needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
        if needed > there:
            sizes = f"{needed / GB:.0f} GB for its weights alone, of {there / GB:.0f} that are here"
            raise ValueError(f"{run.name} needs {sizes}")
