"""How every test runs, and every program that a test starts."""

import os
import pathlib
import socket
from importlib.metadata import version

# Hundreds of small programs, each run a few times: compiling them is what the suite waits for.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
cache = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12):  # unknown flags end a process
    # The older code generator: a train step compiles in half the time, and runs as fast.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes in code are the shapes meant


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
