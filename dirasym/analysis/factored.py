"""Gradients as factors, without forming them, and products of two.

The gradient of a matrix that tokens t are multiplied with is Σ_t a_t g_tᵀ, with a the inputs
and g the cotangents of the outputs. Inputs are read by an interceptor of linen's layers, and
cotangents by a zero added to the outputs.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core.tracers import current_trace

from dirasym.analysis.blocks import Blocks
from dirasym.types import Params

Loss = Callable[..., jax.Array]  # (params, example) -> scalar, or params -> scalar


class Formed(NamedTuple):
    """A gradient formed: [parts, entries], of every layer of a stacked leaf."""

    value: jax.Array


class Factors(NamedTuple):
    """Σ_t left_t rightᵀ_t over uses of a matrix; left as vectors [T, rows] or row numbers [T]."""

    uses: tuple[tuple[jax.Array, jax.Array], ...]


class Gradient(NamedTuple):
    """A gradient in units of `size`: squares of entries below 1e-19 or above 1e19 leave float32."""

    leaves: list[Formed | Factors]
    size: jax.Array


def formed_gradient(loss: Loss, params: Params, parts: Blocks, *example: Any) -> Gradient:
    """The gradient with every leaf formed."""
    grads, size = _scaled(jax.tree.leaves(jax.grad(loss)(params, *example)))
    rows = [g.reshape(len(names), -1) for g, names in zip(grads, parts.names, strict=True)]
    return Gradient([Formed(g) for g in rows], size)


def inner_product(first: Formed | Factors, second: Formed | Factors) -> jax.Array:
    """⟨first, second⟩ of each part, in float32 or better: [parts]."""
    if isinstance(first, Formed) and isinstance(second, Formed):
        return jnp.einsum("pn,pn->p", _wide(first.value), _wide(second.value))
    assert isinstance(first, Factors) and isinstance(second, Factors), "both or neither formed"
    products = [_use_inner(a, b) for a in first.uses for b in second.uses]
    return sum(products, start=jnp.zeros(()))[None]


def _use_inner(first, second):
    left, right = first
    other_left, other_right = second
    rights = _wide(right) @ _wide(other_right).T
    if left.ndim == other_left.ndim == 1:
        lefts = left[:, None] == other_left[None]
    elif left.ndim == 1:
        lefts = _wide(other_left)[:, left].T
    elif other_left.ndim == 1:
        lefts = _wide(left)[:, other_left]
    else:
        lefts = _wide(left) @ _wide(other_left).T
    return jnp.sum(lefts * rights)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _scaled(arrays: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    """The arrays over the power of 2 below their largest absolute entry, exactly, and that."""
    arrays = [_wide(x) for x in arrays]
    size = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x), initial=0) for x in arrays])
    size = jnp.ldexp(jnp.ones_like(size), jnp.frexp(size)[1] - 1)
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    return [x / size for x in arrays], size


class _Call(NamedTuple):
    """One call of a layer whose matrix is parameter number `leaf`: "dense", "lookup", "attend"."""

    leaf: int
    kind: str
    output: jax.ShapeDtypeStruct


def factored_gradients(fwd, rev, params, parts):
    """(example -> gradients) of both losses, and the paths of parameters left to the direct way.

    Each of `fwd` and `rev` is a loss with one of its examples.
    A parameter is factored if, in both losses, all that reads it are calls that we intercept.
    """
    params = _distinct(params)
    factorable = frozenset.intersection(
        *(_factorable(loss, params, example) for loss, example in (fwd, rev))
    )
    factorable -= {n for n, is_stacked in enumerate(parts.is_stacked) if is_stacked}
    direct = [n for n in range(len(parts.paths)) if n not in factorable]
    gradients = (
        functools.partial(_factored_gradient, loss, params, parts, factorable, direct)
        for loss, _ in (fwd, rev)
    )
    return *gradients, tuple(parts.paths[n] for n in direct)


def _factorable(loss, params, example) -> frozenset[int]:
    """Parameters that the loss reads through intercepted calls alone."""
    leaves, structure = jax.tree.flatten(params)
    found: set[int] = set()

    def without_layers(*leaves):
        trace = current_trace()

        def replace(next_fun, args, kwargs, context, leaf):
            if current_trace() != trace:  # in a transformation of the loss's own
                return next_fun(*args, **kwargs)
            found.add(leaf)
            output = jax.eval_shape(lambda: next_fun(*args, **kwargs))
            return jnp.zeros(output.shape, output.dtype)

        with nn.intercept_methods(_interceptor(leaves, replace)):
            return loss(structure.unflatten(leaves), example)

    jaxpr = jax.make_jaxpr(without_layers)(*leaves).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    return frozenset(n for n in found if id(jaxpr.invars[n]) not in read)


def _distinct(params: Params) -> Params:
    """The same with no array in two places: `_interceptor` tells parameters by identity."""
    seen: set[int] = set()

    def own(leaf):
        leaf = jnp.array(leaf) if id(leaf) in seen else leaf
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, params)


def _factored_gradient(loss, params, parts, factorable, direct, example) -> Gradient:
    leaves, structure = jax.tree.flatten(params)
    calls: list[_Call] = []

    def discover(next_fun, args, kwargs, context, leaf):
        output = next_fun(*args, **kwargs)
        if leaf in factorable:
            shape = jax.ShapeDtypeStruct(output.shape, output.dtype)
            calls.append(_Call(leaf, _kind(context), shape))
        return output

    def shapes(example):
        with nn.intercept_methods(_interceptor(leaves, discover)):
            return loss(structure.unflatten(leaves), example)

    jax.eval_shape(shapes, example)

    def perturbed(direct_leaves, zeros):
        mixed = list(leaves)
        for n, leaf in zip(direct, direct_leaves, strict=True):
            mixed[n] = leaf
        inputs, remaining = [], iter(zeros)

        def add(next_fun, args, kwargs, context, leaf):
            output = next_fun(*args, **kwargs)
            if leaf not in factorable:
                return output
            inputs.append(_call_input(context, output.dtype, *args, *kwargs.values()))
            return output + next(remaining)

        with nn.intercept_methods(_interceptor(mixed, add)):
            return loss(structure.unflatten(mixed), example), inputs

    zeros = [jnp.zeros(call.output.shape, call.output.dtype) for call in calls]
    (direct_grads, cotangents), inputs = jax.grad(perturbed, argnums=(0, 1), has_aux=True)(
        [leaves[n] for n in direct], zeros
    )
    scaled, size = _scaled([*direct_grads, *cotangents])
    direct_grads, cotangents = scaled[: len(direct)], scaled[len(direct) :]
    gradients: dict[int, Formed | Factors] = {}
    uses: dict[int, list] = {n: [] for n in range(len(leaves)) if n not in direct}
    for n, grad in zip(direct, direct_grads, strict=True):
        gradients[n] = Formed(grad.reshape(len(parts.names[n]), -1))
    for call, cotangent, x in zip(calls, cotangents, inputs, strict=True):
        if call.kind == "lookup":
            use = x.ravel(), cotangent.reshape(x.size, -1)
        elif call.kind == "attend":
            use = cotangent.reshape(-1, cotangent.shape[-1]), x.reshape(-1, x.shape[-1])
        else:
            use = x, cotangent.reshape(len(x), -1)
        uses[call.leaf].append(use)
    gradients |= {n: Factors(tuple(pairs)) for n, pairs in uses.items()}
    return Gradient([gradients[n] for n in range(len(leaves))], size)


def _interceptor(leaves: Sequence[Any], handle: Callable) -> Callable:
    """Calls `handle(..., leaf)` for layers whose matrix is, as an object, one of `leaves`.

    Identity finds the parameter however the model was wrapped, and misses what a lifted
    transformation (scan, remat, jit) has replaced by its own, which then goes the direct way.
    """
    number: dict[Hashable, int] = {id(leaf): n for n, leaf in enumerate(leaves)}

    def interceptor(next_fun, args, kwargs, context):
        module = context.module
        name = _matrix_name(module, context.method_name)
        if name is None or not module.has_variable("params", name):
            return next_fun(*args, **kwargs)
        leaf = number.get(id(module.get_variable("params", name)))
        if leaf is None:
            return next_fun(*args, **kwargs)
        return handle(next_fun, args, kwargs, context, leaf)

    return interceptor


def _matrix_name(module: nn.Module, method: str) -> str | None:
    """The matrix that a call multiplies with, if it is linen's own Dense, DenseGeneral or Embed.

    A subclass that overrides the method, or another `dot_general`, may compute anything.
    """
    layer: type[nn.Module]
    if isinstance(module, nn.Embed):
        layer, name, plain = nn.Embed, "embedding", method in ("__call__", "attend")
    elif isinstance(module, nn.Dense | nn.DenseGeneral) and method == "__call__":
        layer, name = (nn.Dense if isinstance(module, nn.Dense) else nn.DenseGeneral), "kernel"
        plain = module.dot_general is None and module.dot_general_cls is None
        plain = plain and not getattr(module, "batch_dims", ())
    else:
        return None
    return name if plain and getattr(type(module), method) is getattr(layer, method) else None


def _kind(context) -> str:
    if isinstance(context.module, nn.Embed):
        return "attend" if context.method_name == "attend" else "lookup"
    return "dense"


def _call_input(context, dtype, x: jax.Array) -> jax.Array:
    """What a layer read, in its compute dtype; by lookups as rows counted from 0.

    For dense layers as vectors [T, in] in the order of the output.
    """
    if _kind(context) == "lookup":
        return x % context.module.num_embeddings  # -1 is the last
    x = x.astype(dtype)
    if _kind(context) == "attend":
        return x
    axes = context.module.axis if isinstance(context.module, nn.DenseGeneral) else -1
    axes = axes if isinstance(axes, tuple) else (axes,)
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    return x.reshape(-1, int(np.prod(x.shape[x.ndim - len(axes) :])))
