"""Exact products: GPUs and TPUs round the factors of float32 products by default."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def highest_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Runs `function` at the highest matmul precision of the platform: float32 is float32."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped
