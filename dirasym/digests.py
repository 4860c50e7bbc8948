"""Digests of traced programs and of arrays: the same in any process."""

import hashlib
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core


def of_program(closed: core.ClosedJaxpr) -> str:
    """Of a traced program's operations and of all constants: the same in any process.

    Names of variables, addresses and whatever else is not computed with do not count. The text
    that JAX writes of a program would not do: it leaves out the constants of inner programs.

    Examples:
      >>> of = lambda scale: of_program(jax.make_jaxpr(lambda x: scale * x)(1.0))
      >>> of(2.0) == of(2.0), of(2.0) == of(3.0)
      (True, False)
    """
    found = hashlib.blake2b()
    _feed(closed, found.update)
    return found.hexdigest()


def feed_array(x: Any, update: Callable[[Any], None]) -> None:
    """Gives an array's dtype, shape and bytes to a hash; of a random key those of its data."""
    if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    array = np.asarray(x)
    update(f"{array.dtype}{array.shape}".encode())
    update(np.ascontiguousarray(array).view(np.uint8).data)


def _feed(x: Any, update: Callable[[Any], None]) -> None:
    """Gives a program, or a parameter of one of its operations, to a hash."""
    update(f"<{type(x).__name__}>".encode())
    if isinstance(x, core.ClosedJaxpr):
        _feed((x.jaxpr, x.consts), update)
    elif isinstance(x, core.Jaxpr):
        _feed_jaxpr(x, update)
    elif isinstance(x, np.ndarray | np.generic | jax.Array):
        feed_array(x, update)
    elif isinstance(x, list | tuple):
        for part in (len(x), *x):
            _feed(part, update)
    elif isinstance(x, dict):
        _feed(sorted(x.items(), key=str), update)
    elif isinstance(x, set | frozenset):
        _feed(sorted(map(str, x)), update)  # in the same order in any process
    elif isinstance(x, types.FunctionType):
        update(x.__qualname__.encode())
    elif " at 0x" not in (text := repr(x)):
        update(text.encode())


def _feed_jaxpr(jaxpr: core.Jaxpr, update: Callable[[Any], None]) -> None:
    numbers = {x: n for n, x in enumerate([*jaxpr.constvars, *jaxpr.invars])}

    def atom(x):
        return x.val if isinstance(x, core.Literal) else numbers[x], str(x.aval)

    _feed([atom(x) for x in numbers], update)
    for eqn in jaxpr.eqns:
        ins = [atom(x) for x in eqn.invars]
        numbers |= {x: len(numbers) + n for n, x in enumerate(eqn.outvars)}
        _feed((eqn.primitive.name, ins, [atom(x) for x in eqn.outvars], eqn.params), update)
    _feed([atom(x) for x in jaxpr.outvars], update)
