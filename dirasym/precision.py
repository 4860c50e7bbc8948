"""Precision: narrow floats as float32, and products of float32 that are float32.

bfloat16 loses the small parts of long sums and ties what is drawn or ranked. GPUs and TPUs round
the factors of float32 products by default.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

P = ParamSpec("P")
T = TypeVar("T")


def widened(x: Any) -> jax.Array:
    """An array of floats in float32, or in its own dtype where that is wider."""
    return jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))


def highest_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Runs `function` at the highest matmul precision of the platform: float32 is float32."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped
