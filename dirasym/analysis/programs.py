"""Programs compiled once, and found again by what determines them.

`jax.jit` knows a program by the identity of its function, so that a loss written as a `lambda`
in a training loop would be compiled at every step. Here a function is known by its code and by
the values that it reads: defaults, closed-over variables, and globals of its own module. Another
process knows it by the operations and constants that it was traced to, see `digests`.
"""

import collections
import functools
import hashlib
import types
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")
MAX_PROGRAMS = 16  # the least recently used ones are dropped, with what they close over

_made: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()


class IsTracedError(Exception):
    """A value belongs to a trace in progress: what is made of it must not outlive that."""


def once(make: Callable[..., T], static: Mapping[str, Any], *args: Any) -> T:
    """make(**static), or what it made before of equal values; anew where anything is traced."""
    try:
        key = (make, jax.config.read("jax_enable_x64"), fingerprint(dict(static), *args))
    except IsTracedError:
        return make(**static)
    if key not in _made:
        _made[key] = make(**static)
    _made.move_to_end(key)
    while len(_made) > MAX_PROGRAMS:
        _made.popitem(last=False)
    return _made[key]


def call(function: Callable[..., T], static: Mapping[str, Any], *args: Any) -> T:
    """function(*args, **static), compiled once for equal `static`; inline under a trace."""
    if is_traced(args):
        return function(*args, **static)
    try:
        fingerprint(dict(static))
    except IsTracedError:
        return function(*args, **static)
    return once(_jitted, dict(function=function, static=static))(*args)


def is_traced(tree: Any) -> bool:
    """Whether an array in the tree, or whatever is computed now, belongs to a trace in progress."""
    leaves = [*jax.tree.leaves(tree), jnp.zeros(())]
    return any(isinstance(x, jax.core.Tracer) for x in leaves)


def _jitted(function: Callable[..., Any], static: Mapping[str, Any]) -> Callable[..., Any]:
    return jax.jit(functools.partial(function, **static))


def fingerprint(*values: Any) -> Hashable:
    """Equal for values that give the same program; holds what it depends on.

    Arrays of JAX, classes, modules and objects without an equality of their own are known by
    identity, arrays of NumPy and containers by content, functions by their code and what it
    reads. As for `jax.jit`, an object that is changed in place is not seen to have changed.

    Examples:
      >>> make = lambda scale: lambda params: scale * params
      >>> fingerprint(make(2.0)) == fingerprint(make(2.0)), make(2.0) == make(2.0)
      (True, False)
      >>> fingerprint(make(2.0)) == fingerprint(make(3.0))
      False

    Raises:
      IsTracedError: a value of a trace in progress is among them.
    """
    return tuple(_fingerprint(value, None, []) for value in values)


class _Same:
    """An object known by its identity, which it keeps alive."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _fingerprint(x: Any, module: Any, seen: list[Any]) -> Hashable:
    """`module` are the globals of the function that x is read by, `seen` functions met before."""
    if isinstance(x, jax.core.Tracer):
        raise IsTracedError
    of = functools.partial(_fingerprint, module=module, seen=seen)
    if isinstance(x, float | complex):
        return type(x), repr(x)  # 0.0 is not -0.0, and nan is nan
    if isinstance(x, np.ndarray | np.generic) and not x.dtype.hasobject:
        digest = hashlib.blake2b(np.ascontiguousarray(x).tobytes()).digest()
        return type(x), x.shape, x.dtype.str, digest
    if isinstance(x, jax.Array):
        return _Same(x)
    if isinstance(x, list | tuple):
        return type(x), tuple(map(of, x))
    if isinstance(x, dict):
        return type(x), tuple((of(key), of(value)) for key, value in x.items())
    if isinstance(x, functools.partial):
        return type(x), of(x.func), of(x.args), of(x.keywords)
    if isinstance(x, types.MethodType):
        return type(x), of(x.__func__), of(x.__self__)
    if isinstance(x, types.FunctionType):
        return _function_fingerprint(x, module, seen)
    try:
        hash(x)
    except TypeError:
        return _Same(x), of(vars(x)) if hasattr(x, "__dict__") else None
    return type(x), x


def _function_fingerprint(x: types.FunctionType, module: Any, seen: list[Any]) -> Hashable:
    if any(x is other for other in seen):
        return "seen", next(n for n, other in enumerate(seen) if x is other)
    seen.append(x)
    module = x.__globals__ if module is None else module
    read: list[Any] = [x.__defaults__, x.__kwdefaults__]
    for cell in x.__closure__ or ():
        try:
            read.append(cell.cell_contents)
        except ValueError:  # not yet assigned
            read.append(None)
    if x.__globals__ is module:
        names = sorted(_names(x.__code__) & set(module))
        read += [module[name] for name in names]
    parts = tuple(_fingerprint(value, module, seen) for value in read)
    return types.FunctionType, x.__code__, _Same(x.__globals__), parts


def _names(code: types.CodeType) -> set[str]:
    """Names that a function's code, or code in it, looks up."""
    inner = (x for x in code.co_consts if isinstance(x, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
