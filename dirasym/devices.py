"""How a program meets its devices: processes, compiled programs kept for the next start, meshes."""

import os
import pathlib
import socket
import time
import warnings

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from dirasym import files, sharding
from dirasym.compile import Backend


def start(
    coordinator: str | None = None,
    num_processes: int = 1,
    process_id: int = 0,
    *,
    patience: float = 300.0,
) -> None:
    """Prepares JAX for runs that end in the same bits; call it before anything is computed.

    Reductions are deterministic on a GPU too. Compiled programs are kept in
    JAX_COMPILATION_CACHE_DIR or the user's cache directory, never in a work directory: they are
    native code, which is run unchecked.

    Args:
      coordinator: HOST:PORT of process 0, where several processes share the work; or "auto", and
        JAX finds it and the two numbers below itself: under Slurm, Open MPI, Kubernetes and on TPU
        pods.
      num_processes: how many do.
      process_id: which this is, from 0.
      patience: seconds that the others wait for process 0, which may come last.

    Raises:
      ValueError: processes without a coordinator, a number beyond them, a coordinator that is
        not there, or XLA_FLAGS that name a file which cannot be read.
    """
    os.environ["XLA_FLAGS"] = f"{_xla_flags()} --xla_gpu_deterministic_ops=true"
    if process_id >= num_processes:
        raise ValueError(f"process_id={process_id} must be below num_processes={num_processes}")
    if coordinator == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(f"coordinator=auto: no cluster that JAX knows ({error})") from None
    elif coordinator:
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"coordinator={coordinator} is not HOST:PORT")
        _find(host.strip("[]"), int(port), process_id, patience)
        jax.distributed.initialize(coordinator, num_processes, process_id)
    elif num_processes > 1:
        raise ValueError("num_processes needs coordinator=HOST:PORT")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "dirasym" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # A full disk costs the next start some time, and this one nothing.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _xla_flags() -> str:
    """The flags of XLA_FLAGS, which may name a file of them: what begins with no dash."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if not flags or flags.startswith("-"):
        return flags
    try:
        files.check_regular(flags)
        return " ".join(pathlib.Path(flags).read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise ValueError(f"XLA_FLAGS names a file, {flags}, that cannot be read: {error}") from None


def _find(host: str, port: int, process_id: int, patience: float) -> None:
    """Raises ValueError unless the coordinator is there, or (for process 0) could be here.

    JAX itself waits for minutes where signals are not heard, and then aborts.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            if process_id == 0:
                with socket.socket() as free:
                    free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    free.bind(("", port))
            else:
                socket.create_connection((host, port), timeout=5).close()
            return
        except (socket.gaierror, UnicodeError) as error:
            raise ValueError(f"coordinator={host}:{port}: {error}") from None
        except OSError as error:
            if process_id == 0 or time.monotonic() > deadline:
                raise ValueError(f"coordinator={host}:{port}: {error.strerror or error}") from None
        time.sleep(0.2)


def memory() -> int | None:
    """Bytes that this process's devices hold, or the machine where they have none of their own.

    None where it cannot be known.
    """
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [stats["bytes_limit"] for stats in told if "bytes_limit" in stats]
    if limits:
        return sum(limits) * jax.process_count()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * jax.process_count()
    except (AttributeError, OSError, ValueError):
        return None


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


def described(what: str) -> jax.Device:
    """A device to compile for: "here" is the default one; a file describes a GPU that is not here.

    Args:
      what: "here", or a file as XLA's repository has them for a dozen GPUs in
        xla/backends/gpu/target_config/specs (`experiments/tools/h100.txtpb` is one).

    Raises:
      ValueError: a file that cannot be read or describes no GPU, or no compiler for GPUs here.
    """
    if what == "here":
        return jax.devices()[0]
    try:
        path = pathlib.Path(what).expanduser()
        files.check_regular(path)
        text = path.read_text(encoding="utf-8")
        if "gpu_device_info" not in text:
            raise ValueError("it describes no GPU")
        found = topologies.get_topology_desc("", "cuda", target_config=text, topology="1x1x1")
    except NotImplementedError:
        install = "pip install 'jax-cuda13-plugin[with-cuda]'"
        raise ValueError(f"compile_for={what} needs a compiler for GPUs: {install}") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"compile_for={what}: {error}") from None
    return found.devices[0]


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
