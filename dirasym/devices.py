"""How a program meets its devices: processes, compiled programs kept for the next start, meshes."""

import os
import pathlib
import time

import jax
import numpy as np
from jax.sharding import Mesh

from dirasym import sharding
from dirasym.compile import Backend


def start(coordinator: str | None = None, num_processes: int = 1, process_id: int = 0) -> None:
    """Prepares JAX for runs that end in the same bits; call it before anything is computed.

    Reductions are deterministic on a GPU too. Compiled programs are kept in
    JAX_COMPILATION_CACHE_DIR or the user's cache directory, never in a work directory: they are
    native code, which is run unchecked.

    Args:
      coordinator: HOST:PORT of process 0, where several processes share the work.
      num_processes: how many do.
      process_id: which this is, from 0.

    Raises:
      ValueError: processes without a coordinator, or a number beyond them.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
    if process_id >= num_processes:
        raise ValueError(f"process_id={process_id} must be below num_processes={num_processes}")
    if coordinator:
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"coordinator={coordinator} is not HOST:PORT")
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif num_processes > 1:
        raise ValueError("num_processes needs coordinator=HOST:PORT")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "dirasym" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def mesh(num_devices: int = 1, model_devices: int = 1, backend: Backend = "jit") -> Mesh | None:
    """The devices as data × model (`sharding.make_mesh`); None for the default device alone.

    Args:
      num_devices: how many share the work; 0 for all. Several processes use all that they have.
      model_devices: of these, how many share each weight; the others share a batch.
      backend: with "pmap" there is a mesh even of one.

    Raises:
      ValueError: too few devices, or a number that does not divide.
    """
    available = jax.devices()
    count = len(available) if jax.process_count() > 1 else num_devices or len(available)
    if count > len(available):
        raise ValueError(f"num_devices={count}, but {len(available)} are available")
    if count % model_devices or (model_devices > 1 and backend == "pmap"):
        raise ValueError(
            f"model_devices={model_devices} needs num_devices, a multiple of it, and backend=jit"
        )
    if count == 1 and backend == "jit":
        return None
    return sharding.make_mesh(count // model_devices, model_devices, available[:count])


def product_rate(size: int = 1024) -> float:
    """FLOP/s of the default device's matrix products in float32, the best of three."""
    product = jax.jit(lambda x: x @ x)
    x = np.ones((size, size), np.float32)
    product(x).block_until_ready()
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)
