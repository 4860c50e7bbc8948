"""What the benchmarks share: contenders that take turns, and PyTorch as a guest."""

import importlib.util
import resource
import sys
import time
from collections.abc import Callable, Mapping

import jax

from dirasym import report
from dirasym.usage import UsageError

Contender = Callable[[], object]
VERSIONS = {"torch": "torch==2.13.0"}


def need(*packages: str) -> None:
    """Raises UsageError where one of these packages is not installed, or PyTorch lacks the GPU."""
    if not all(importlib.util.find_spec(package) for package in packages):
        names = " ".join(VERSIONS.get(package, package) for package in packages)
        raise UsageError(f"the benchmark needs PyTorch: pip install {names}")
    torch_device()


def torch_device():
    """PyTorch's counterpart of JAX's default device; sets JAX's default precision of products."""
    import torch

    if jax.default_backend() != "gpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("JAX has a GPU here and this build of PyTorch has none")
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def peak_bytes(*, of_torch: bool = False) -> int:
    """The most that this process held so far: on its GPU (of one library), or else resident."""
    if jax.default_backend() != "gpu":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not of_torch:
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated()


def alternate(contenders: Mapping[str, Contender], rounds: int) -> dict[str, float]:
    """Fastest wall time of each contender in seconds, after a first call; without rounds, its."""

    def finish(call) -> float:
        start = time.perf_counter()
        call()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = {name: finish(call) for name, call in contenders.items()}
    seconds = dict.fromkeys(contenders, float("inf")) if rounds else first
    for _ in range(rounds):
        for name, call in contenders.items():
            seconds[name] = min(seconds[name], finish(call))
    return seconds


def against_torch(cases: Mapping[str, Mapping[str, float]], steps: int) -> str:
    """Milliseconds a step, and how many times the faster PyTorch, from seconds for `steps`."""
    rows = []
    for case, seconds in cases.items():
        torch_best = min(best for name, best in seconds.items() if "PyTorch" in name)
        for name, best in seconds.items():
            rows.append([case, name, f"{1e3 * best / steps:.1f}", f"{torch_best / best:.2f}"])
    return report.table(["case", "contender", "ms", "times the faster PyTorch"], rows)
