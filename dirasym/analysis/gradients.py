"""Forward–reverse gradient alignment of any model, block by block, directly or by factors.

`alignment` takes two losses of a parameter pytree and compares their gradients; Theorem
B.1's closed form for the one-layer encoder is in `analysis.theorem`, and importable from
here. All of it runs at the highest matmul precision, is traceable by `jax.jit` and holds
no more than a chunk of per-example gradients.
"""

import functools
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dirasym.analysis.theorem import (
    BLOCKS,
    Blocks,
    CorollaryB2,
    Neglected,
    OneLayer,
    Others,
    TheoremB1,
    check_corollary_b2,
    error_alignment,
    highest_precision,
    neglected_terms,
    simulate_proposition_b8,
    simulate_proposition_b10,
    theorem_b1,
    theorem_b1_autodiff,
)
from dirasym.types import Params

__all__ = [
    "BLOCKS",
    "Alignment",
    "Blocks",
    "CorollaryB2",
    "Neglected",
    "OneLayer",
    "Others",
    "TheoremB1",
    "Transfer",
    "alignment",
    "check_corollary_b2",
    "cross_alignment",
    "error_alignment",
    "first_order_transfer",
    "neglected_terms",
    "simulate_proposition_b8",
    "simulate_proposition_b10",
    "theorem_b1",
    "theorem_b1_autodiff",
]

Loss = Callable[..., jax.Array]  # params -> scalar, or (params, example) -> scalar
BlockOf = str | Callable[[str], str | None] | None
Method = Literal["direct", "factored"]
TOTAL = "total"


@flax.struct.dataclass
class Alignment:
    """Two gradients compared, per parameter block and in "total".

    Each dict goes from block name to a scalar, or to [E] with one entry an example.

    Attributes:
      inner: ⟨g_fwd, g_rev⟩ over the block's parameters.
      cosine: inner / (norm_fwd · norm_rev); NaN where a gradient is zero, see `undefined`.
      norm_fwd, norm_rev: ‖g‖₂.
      direct: paths of the parameters whose per-example gradients were formed.
    """

    inner: dict[str, jax.Array]
    cosine: dict[str, jax.Array]
    norm_fwd: dict[str, jax.Array]
    norm_rev: dict[str, jax.Array]
    direct: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())

    @property
    def undefined(self) -> dict[str, str]:
        """Why a cosine is NaN, by block: a zero gradient (a saturated or unused block)."""
        reasons = {}
        for block in self.cosine:
            zero = [
                side
                for side, norms in (("forward", self.norm_fwd), ("reverse", self.norm_rev))
                if np.any(np.asarray(norms[block]) == 0)
            ]
            if zero:
                reasons[block] = f"the {' and the '.join(zero)} gradient is zero"
        return reasons


@highest_precision
def alignment(
    loss_fwd: Loss,
    loss_rev: Loss,
    params: Params,
    *,
    blocks: BlockOf = None,
    examples: Any = None,
    method: Method = "direct",
    chunk_size: int = 8,
) -> Alignment:
    """Compares the gradients of two losses with respect to the same parameters.

    Args:
      loss_fwd, loss_rev: `loss(params)`, or with `examples` `loss(params, example)`, scalars.
      params: pytree of float arrays.
      blocks: which block a parameter belongs to, from its path such as
        "blocks_0/attention/query/kernel": a function to a name (None for no block), or a
        regex whose first group, or whole match, is the name. One block a parameter when None.
        Parameters of no block count in "total" alone.
      examples: pytree with a leading axis E; each example is compared by itself.
      method: "direct" forms both gradients of a chunk of examples: memory 2·chunk_size
        times the parameters. "factored" forms none for the kernels of linen's Dense,
        DenseGeneral and Embed layers: the gradient of a kernel is Σ_t a_t g_tᵀ over tokens,
        with a the inputs and g the cotangents of the outputs, and
        ⟨Σ_t a_t g_tᵀ, Σ_s a'_s g'_sᵀ⟩ = Σ_ts (a_t·a'_s)(g_t·g'_s). Other parameters (biases,
        norms, layers under `nn.scan` or `nn.remat`, kernels read elsewhere too) take the
        direct way and are listed in `direct`. Memory: activations and cotangents of a chunk.
      chunk_size: examples at a time.

    Raises:
      ValueError: a loss that is not scalar, blocks that match nothing, no examples for
        "factored", or examples of unequal length.
      TypeError: parameters that are not floats, by path.
    """
    paths, block_of_leaf = _blocks(params, blocks)
    one_leaf_alone = [jax.tree.map(lambda x: x[0], examples)] if examples is not None else []
    for name, loss in (("loss_fwd", loss_fwd), ("loss_rev", loss_rev)):
        _check_scalar(name, loss, params, *one_leaf_alone)
    if method not in ("direct", "factored"):
        raise ValueError(f"method must be 'direct' or 'factored', got {method!r}")
    if examples is None:
        if method == "factored":
            raise ValueError("method 'factored' compares examples: pass examples")
        grads = [jax.tree.leaves(jax.grad(loss)(params)) for loss in (loss_fwd, loss_rev)]
        return _compare([_Dense(g) for g in grads[0]], [_Dense(g) for g in grads[1]], block_of_leaf)
    _check_examples(examples)
    if method == "factored":
        gradient_fwd, gradient_rev, direct = _factored(loss_fwd, loss_rev, params, examples, paths)
    else:
        gradient_fwd, gradient_rev = (
            functools.partial(_dense_gradient, loss, params) for loss in (loss_fwd, loss_rev)
        )
        direct = tuple(paths)

    def one(example):
        return _compare(gradient_fwd(example), gradient_rev(example), block_of_leaf)

    result = jax.lax.map(one, examples, batch_size=chunk_size)
    return result.replace(direct=direct)


@highest_precision
def cross_alignment(
    loss_fwd: Loss,
    loss_rev: Loss,
    params: Params,
    examples: Any,
    *,
    examples_rev: Any = None,
    blocks: BlockOf = None,
    method: Method = "direct",
    chunk_size: int = 8,
) -> dict[str, jax.Array]:
    """⟨∇L_fwd(i), ∇L_rev(j)⟩ for all pairs of examples: block name, and "total", to [E, E'].

    Arguments as for `alignment`; `examples_rev` are the columns' examples, the rows' when
    None. No more than 2·chunk_size gradients are held: "direct" computes the columns' anew
    for every chunk of rows, "factored" keeps the factors of all examples.
    """
    paths, block_of_leaf = _blocks(params, blocks)
    examples_rev = examples if examples_rev is None else examples_rev
    for name, loss, some in (
        ("loss_fwd", loss_fwd, examples),
        ("loss_rev", loss_rev, examples_rev),
    ):
        _check_examples(some)
        _check_scalar(name, loss, params, jax.tree.map(lambda x: x[0], some))

    def products(fwd, rev):
        return _sum_blocks([_inner(f, r) for f, r in zip(fwd, rev, strict=True)], block_of_leaf)

    if method == "factored":
        gradient_fwd, gradient_rev, _ = _factored(loss_fwd, loss_rev, params, examples, paths)
        # All factors of the columns at once; rows in chunks.
        columns = jax.lax.map(gradient_rev, examples_rev, batch_size=chunk_size)

        def row(example):
            fwd = gradient_fwd(example)
            return jax.lax.map(lambda rev: products(fwd, rev), columns, batch_size=chunk_size)

        return jax.lax.map(row, examples, batch_size=chunk_size)
    if method != "direct":
        raise ValueError(f"method must be 'direct' or 'factored', got {method!r}")
    gradient_fwd, gradient_rev = (
        functools.partial(_dense_gradient, loss, params) for loss in (loss_fwd, loss_rev)
    )

    def rows_of_chunk(chunk):
        fwd = jax.vmap(gradient_fwd)(chunk)

        def column(example):
            rev = gradient_rev(example)
            return jax.vmap(lambda f: products(f, rev))(fwd)

        return jax.lax.map(column, examples_rev, batch_size=chunk_size)

    size = len(jax.tree.leaves(examples)[0])
    parts = [
        rows_of_chunk(jax.tree.map(lambda x, s=start: x[s : s + chunk_size], examples))
        for start in range(0, size, chunk_size)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1).T, *parts)


class Transfer(NamedTuple):
    """Change of the reverse loss in one forward step, to first order and measured.

    Attributes:
      predicted: −η ⟨g_rev, g_fwd⟩, [R] for R learning rates.
      measured: L_rev(θ − η g_fwd) − L_rev(θ).
    """

    predicted: jax.Array
    measured: jax.Array


@highest_precision
def first_order_transfer(
    loss_fwd: Loss, loss_rev: Loss, params: Params, learning_rates: Sequence[float]
) -> Transfer:
    """What a gradient step on the forward loss does to the reverse loss, for several η.

    The error predicted − measured falls as η² (§4.3 of arXiv 2602.02133 rests on this).
    """
    rates = jnp.asarray(learning_rates)
    step = jax.grad(loss_fwd)(params)
    start, slope = jax.jvp(loss_rev, (params,), (step,))

    def after(rate):
        return loss_rev(jax.tree.map(lambda p, g: p - rate * g, params, step))

    return Transfer(-rates * slope, jax.lax.map(after, rates) - start)


# ---------------------------------------------------------------------------------------
# Checks and blocks


def _blocks(params: Params, blocks: BlockOf) -> tuple[list[str], list[str | None]]:
    """Path of every leaf, and its block."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    if not paths:
        raise ValueError("params has no arrays")
    for path, (_, leaf) in zip(paths, flat, strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(f"params: {path} is {jnp.result_type(leaf)}; gradients need floats")
    if blocks is None:
        return paths, list(paths)
    if isinstance(blocks, str):
        pattern = re.compile(blocks)

        def name(path):
            match = pattern.search(path)
            return match and (match.group(1) if pattern.groups else match.group(0))

    else:
        name = blocks
    names = [name(path) for path in paths]
    if not any(names):
        raise ValueError(f"blocks matches no parameter; paths are like {paths[0]!r}")
    return paths, names


def _check_scalar(name: str, loss: Loss, params: Params, *example: Any) -> None:
    shape = jax.eval_shape(loss, params, *example)
    if not hasattr(shape, "shape") or shape.shape != ():
        raise ValueError(f"{name} must return a scalar, got {shape}")


def _check_examples(examples: Any) -> None:
    lengths = {len(leaf) for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"examples must share one leading size, got {sorted(lengths)}")


# ---------------------------------------------------------------------------------------
# A gradient of one parameter, whole or as factors, and products of two


class _Dense(NamedTuple):
    """A gradient formed."""

    value: jax.Array


class _Factors(NamedTuple):
    """Σ_t left_t rightᵀ_t over uses of a matrix; left as vectors [T, rows] or row numbers [T]."""

    uses: tuple[tuple[jax.Array, jax.Array], ...]


def _inner(first: _Dense | _Factors, second: _Dense | _Factors) -> jax.Array:
    """⟨first, second⟩ in float32 or better."""
    if isinstance(first, _Dense):
        return jnp.vdot(_wide(first.value), _wide(second.value))
    return sum(_use_inner(a, b) for a in first.uses for b in second.uses)


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


def _sum_blocks(leaf_values, block_of_leaf) -> dict[str, jax.Array]:
    sums: dict[str, jax.Array] = {}
    for value, block in zip(leaf_values, block_of_leaf, strict=True):
        if block is not None:
            sums[block] = sums.get(block, 0.0) + value
    return sums | {TOTAL: sum(leaf_values)}


def _compare(fwd, rev, block_of_leaf) -> Alignment:
    inner, squares_fwd, squares_rev = (
        _sum_blocks([_inner(a, b) for a, b in zip(x, y, strict=True)], block_of_leaf)
        for x, y in ((fwd, rev), (fwd, fwd), (rev, rev))
    )
    norm_fwd, norm_rev = (
        {block: jnp.sqrt(jnp.maximum(x, 0)) for block, x in squares.items()}
        for squares in (squares_fwd, squares_rev)
    )
    cosine = {block: inner[block] / (norm_fwd[block] * norm_rev[block]) for block in inner}
    return Alignment(inner, cosine, norm_fwd, norm_rev)


def _dense_gradient(loss, params, example) -> list[_Dense]:
    return [_Dense(g) for g in jax.tree.leaves(jax.grad(loss)(params, example))]


# ---------------------------------------------------------------------------------------
# Factors of linen layers: inputs by an interceptor, output cotangents by an added zero


class _Call(NamedTuple):
    """One call of a layer whose matrix is parameter number `leaf`: "dense", "lookup", "attend"."""

    leaf: int
    kind: str
    output: jax.ShapeDtypeStruct


def _factored(loss_fwd, loss_rev, params, examples, paths):
    """(example -> gradients) of both losses, and the paths of parameters left to the direct way.

    A parameter is factored if, in both losses, all that reads it are calls that we intercept.
    """
    example = jax.tree.map(lambda x: x[0], examples)
    factorable = _factorable(loss_fwd, params, example) & _factorable(loss_rev, params, example)
    direct = [n for n in range(len(paths)) if n not in factorable]
    gradients = (
        functools.partial(_factored_gradient, loss, params, factorable, direct)
        for loss in (loss_fwd, loss_rev)
    )
    return *gradients, tuple(paths[n] for n in direct)


def _factorable(loss, params, example) -> frozenset[int]:
    """Parameters that the loss reads through intercepted calls alone."""
    leaves, structure = jax.tree.flatten(params)
    found: set[int] = set()

    def without_layers(*leaves):
        def replace(next_fun, args, kwargs, context, leaf):
            found.add(leaf)
            output = jax.eval_shape(lambda: next_fun(*args, **kwargs))
            return jnp.zeros(output.shape, output.dtype)

        with nn.intercept_methods(_interceptor(leaves, replace)):
            return loss(structure.unflatten(leaves), example)

    jaxpr = jax.make_jaxpr(without_layers)(*leaves).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    return frozenset(n for n in found if id(jaxpr.invars[n]) not in read)


def _factored_gradient(loss, params, factorable, direct, example) -> list[_Dense | _Factors]:
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
            inputs.append(_call_input(context, *args, *kwargs.values()))
            return output + next(remaining)

        with nn.intercept_methods(_interceptor(mixed, add)):
            return loss(structure.unflatten(mixed), example), inputs

    zeros = [jnp.zeros(call.output.shape, call.output.dtype) for call in calls]
    (direct_grads, cotangents), inputs = jax.grad(perturbed, argnums=(0, 1), has_aux=True)(
        [leaves[n] for n in direct], zeros
    )
    gradients: list[_Dense | _Factors] = [_Factors(())] * len(leaves)
    for n, grad in zip(direct, direct_grads, strict=True):
        gradients[n] = _Dense(grad)
    for call, cotangent, x in zip(calls, cotangents, inputs, strict=True):
        if call.kind == "lookup":
            use = x.ravel(), cotangent.reshape(x.size, -1)
        elif call.kind == "attend":
            use = cotangent.reshape(-1, cotangent.shape[-1]), x.reshape(-1, x.shape[-1])
        else:
            use = x, cotangent.reshape(len(x), -1)
        gradients[call.leaf] = _Factors((*gradients[call.leaf].uses, use))
    return gradients


def _interceptor(leaves: Sequence[Any], handle: Callable) -> Callable:
    """Calls `handle(..., leaf)` for layers whose matrix is, as an object, one of `leaves`.

    Identity finds the parameter however the model was wrapped, and misses what a lifted
    transformation (scan, remat, jit) has replaced by its own, which then goes the direct way.
    """
    number: dict[Hashable, int] = {id(leaf): n for n, leaf in enumerate(leaves)}

    def interceptor(next_fun, args, kwargs, context):
        module, method = context.module, context.method_name
        name = None
        if isinstance(module, nn.Dense) and method == "__call__":
            name = "kernel"
        elif isinstance(module, nn.DenseGeneral) and method == "__call__":
            name = None if module.batch_dims else "kernel"
        elif isinstance(module, nn.Embed) and method in ("__call__", "attend"):
            name = "embedding"
        if name is None or not module.has_variable("params", name):
            return next_fun(*args, **kwargs)
        leaf = number.get(id(module.get_variable("params", name)))
        if leaf is None:
            return next_fun(*args, **kwargs)
        return handle(next_fun, args, kwargs, context, leaf)

    return interceptor


def _kind(context) -> str:
    if isinstance(context.module, nn.Embed):
        return "attend" if context.method_name == "attend" else "lookup"
    return "dense"


def _call_input(context, x: jax.Array) -> jax.Array:
    """What a layer read; for dense layers as vectors [T, in] in the order of the output."""
    if _kind(context) != "dense":
        return x
    axes = context.module.axis if isinstance(context.module, nn.DenseGeneral) else -1
    axes = axes if isinstance(axes, tuple) else (axes,)
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    return x.reshape(-1, int(np.prod(x.shape[x.ndim - len(axes) :])))
