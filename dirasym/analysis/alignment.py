"""Forward–reverse gradient alignment of any model, block by block, directly or by factors.

`alignment` takes two losses of a parameter pytree and compares their gradients. All of it runs
at the highest matmul precision, is traceable by `jax.jit` and holds no more than a chunk of
per-example gradients.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dirasym.analysis.blocks import BlockOf, Blocks
from dirasym.analysis.factored import (
    Gradient,
    Loss,
    factored_gradients,
    formed_gradient,
    inner_product,
)
from dirasym.analysis.precision import highest_precision
from dirasym.types import Array, Params

Method = Literal["direct", "factored"]


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
        """Why a cosine is NaN, by block: a zero gradient (a saturated or unused block), or NaNs."""
        reasons: dict[str, str] = {}
        for block in self.cosine:
            for fault, has_fault in (("zero", lambda x: x == 0), ("not finite", _is_not_finite)):
                sides = [
                    side
                    for side, norms in (("forward", self.norm_fwd), ("reverse", self.norm_rev))
                    if np.any(has_fault(np.asarray(norms[block])))
                ]
                if sides:
                    reason = f"the {' and the '.join(sides)} gradient is {fault}"
                    reasons[block] = ", ".join(filter(None, [reasons.get(block), reason]))
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
        "blocks_0/attention/query/kernel", whether layers are scanned or not (see `blocks`):
        "layer", "module", or "role" for storage and routing; a function of the path to a name
        (None for no block); or a regex whose first group that took part, or whole match, is the
        name. One block a parameter when None. Parameters of no block count in "total" alone.
      examples: pytree with a leading axis E; each example is compared by itself.
      method: "direct" forms both gradients of a chunk of examples: memory 2·chunk_size
        times the parameters. "factored" forms none for the kernels of linen's Dense,
        DenseGeneral and Embed layers: the gradient of a kernel is Σ_t a_t g_tᵀ over tokens,
        with a the inputs and g the cotangents of the outputs, and
        ⟨Σ_t a_t g_tᵀ, Σ_s a'_s g'_sᵀ⟩ = Σ_ts (a_t·a'_s)(g_t·g'_s). Other parameters (biases,
        norms, layers under `nn.scan` or `nn.remat`, or that the loss calls inside its own
        `jit`, `vmap` or `scan`, subclasses that compute otherwise, kernels read elsewhere too)
        take the direct way and are listed in `direct`. Memory: activations and cotangents of a
        chunk.
      chunk_size: examples at a time.

    Raises:
      ValueError: a loss that is not a scalar float, blocks that match nothing, no examples
        for "factored", or examples of unequal length.
      TypeError: parameters that are not floats, by path.
    """
    parts = Blocks.of(params, blocks)
    one_alone = [_first("examples", examples)] if examples is not None else []
    for name, loss in (("loss_fwd", loss_fwd), ("loss_rev", loss_rev)):
        _check_scalar(name, loss, params, *one_alone)
    if method not in ("direct", "factored"):
        raise ValueError(f"method must be 'direct' or 'factored', got {method!r}")
    if examples is None:
        if method == "factored":
            raise ValueError("method 'factored' compares examples: pass examples")
        fwd, rev = (formed_gradient(loss, params, parts) for loss in (loss_fwd, loss_rev))
        return _compare(fwd, rev, parts)
    if method == "factored":
        gradient_fwd, gradient_rev, direct = factored_gradients(
            (loss_fwd, *one_alone), (loss_rev, *one_alone), params, parts
        )
    else:
        gradient_fwd, gradient_rev = (
            functools.partial(formed_gradient, loss, params, parts) for loss in (loss_fwd, loss_rev)
        )
        direct = parts.paths

    def one(example):
        return _compare(gradient_fwd(example), gradient_rev(example), parts)

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
    parts = Blocks.of(params, blocks)
    examples_rev = examples if examples_rev is None else examples_rev
    first = _first("examples", examples)
    first_rev = first if examples_rev is examples else _first("examples_rev", examples_rev)
    _check_scalar("loss_fwd", loss_fwd, params, first)
    _check_scalar("loss_rev", loss_rev, params, first_rev)

    def products(fwd, rev):
        inner = parts.sum(list(map(inner_product, fwd.leaves, rev.leaves)))
        return {block: x * fwd.size * rev.size for block, x in inner.items()}

    if method == "factored":
        gradient_fwd, gradient_rev, _ = factored_gradients(
            (loss_fwd, first), (loss_rev, first_rev), params, parts
        )
        # All factors of the columns at once; rows in chunks.
        columns = jax.lax.map(gradient_rev, examples_rev, batch_size=chunk_size)

        def row(example):
            fwd = gradient_fwd(example)
            return jax.lax.map(lambda rev: products(fwd, rev), columns, batch_size=chunk_size)

        return jax.lax.map(row, examples, batch_size=chunk_size)
    if method != "direct":
        raise ValueError(f"method must be 'direct' or 'factored', got {method!r}")
    gradient_fwd, gradient_rev = (
        functools.partial(formed_gradient, loss, params, parts) for loss in (loss_fwd, loss_rev)
    )

    def rows_of_chunk(chunk):
        fwd = jax.vmap(gradient_fwd)(chunk)

        def column(example):
            rev = gradient_rev(example)
            return jax.vmap(lambda f: products(f, rev))(fwd)

        return jax.lax.map(column, examples_rev, batch_size=chunk_size)

    size = len(jax.tree.leaves(examples)[0])
    chunks = [
        rows_of_chunk(jax.tree.map(lambda x, s=start: x[s : s + chunk_size], examples))
        for start in range(0, size, chunk_size)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1).T, *chunks)


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
    loss_fwd: Loss, loss_rev: Loss, params: Params, learning_rates: Sequence[float] | Array
) -> Transfer:
    """What a gradient step on the forward loss does to the reverse loss, for several η.

    The error predicted − measured falls as η² (§4.3 of arXiv 2602.02133 rests on this).

    Raises:
      ValueError: a loss that is not a scalar float.
      TypeError: parameters that are not floats, by path.
    """
    Blocks.of(params, None)
    rates = jnp.atleast_1d(jnp.asarray(learning_rates))
    value, pull_back = jax.vjp(loss_fwd, params)
    _check_shape("loss_fwd", value)
    (step,) = pull_back(jnp.ones_like(value))
    start, slope = jax.jvp(loss_rev, (params,), (step,))
    _check_shape("loss_rev", start)

    def after(rate):
        return loss_rev(jax.tree.map(lambda p, g: p - rate * g, params, step))

    return Transfer(-rates * slope, jax.lax.map(after, rates) - start)


def compare_steps(
    loss_fwd: Loss,
    loss_rev: Loss,
    params: Params,
    optimizer: optax.GradientTransformation,
    opt_state: optax.OptState,
    *,
    blocks: BlockOf = None,
) -> dict[str, jax.Array]:
    """What each of two losses would do to the parameters at one moment of training.

    Returns:
      Per block, and for all in "total": "cosine/BLOCK" of their gradients, "norm_forward/BLOCK"
      and "norm_inverse/BLOCK" of these, and "update_forward/BLOCK" and "update_inverse/BLOCK",
      ‖update‖ / ‖weights‖ of the optimizer's step on each loss alone.
    """
    compared = alignment(loss_fwd, loss_rev, params, blocks=blocks)
    found = {
        "cosine": compared.cosine,
        "norm_forward": compared.norm_fwd,
        "norm_inverse": compared.norm_rev,
    }
    for name, loss in (("update_forward", loss_fwd), ("update_inverse", loss_rev)):
        updates, _ = optimizer.update(jax.grad(loss)(params), opt_state, params)
        found[name] = update_ratios(updates, params, blocks=blocks)
    return {f"{name}/{block}": x for name, values in found.items() for block, x in values.items()}


def update_ratios(
    updates: Params, params: Params, *, blocks: BlockOf = None
) -> dict[str, jax.Array]:
    """‖update‖ / ‖weights‖ of every block, and of all in "total"; `blocks` as for `alignment`.

    >>> ratios = update_ratios({"a": jnp.array([0.3])}, {"a": jnp.array([-3.0])})
    >>> f"{ratios['a']:.1f}"
    '0.1'

    Raises:
      ValueError: updates of another structure than the parameters, or as `alignment`.
    """
    parts = Blocks.of(params, blocks)
    if Blocks.of(updates, None).paths != parts.paths:
        raise ValueError("updates must have the structure of params")
    sizes = [len(names) for names in parts.names]
    squares_up, squares_down = (
        parts.sum([jnp.sum(x.reshape(n, -1) ** 2, -1) for x, n in zip(leaves, sizes, strict=True)])
        for leaves in (jax.tree.leaves(updates), jax.tree.leaves(params))
    )
    return {block: jnp.sqrt(x / squares_down[block]) for block, x in squares_up.items()}


def _check_scalar(name: str, loss: Loss, params: Params, *example: Any) -> None:
    _check_shape(name, jax.eval_shape(loss, params, *example))


def _check_shape(name: str, shape: Any) -> None:
    if not hasattr(shape, "shape") or shape.shape != ():
        raise ValueError(f"{name} must return a scalar, got {shape}")
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        raise ValueError(f"{name} must return a float, got {shape.dtype}")


def _first(name: str, examples: Any) -> Any:
    """The first of the examples, once they are known to be some, and all of one leading size."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(examples)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or not all(lengths):
        raise ValueError(f"{name} must share one leading size of at least 1, got shapes {shapes}")
    return jax.tree.map(lambda x: x[0], examples)


def _is_not_finite(x: np.ndarray) -> np.ndarray:
    return ~np.isfinite(x)


def _compare(fwd: Gradient, rev: Gradient, parts: Blocks) -> Alignment:
    inner, squares_fwd, squares_rev = (
        parts.sum(list(map(inner_product, x.leaves, y.leaves)))
        for x, y in ((fwd, rev), (fwd, fwd), (rev, rev))
    )
    norm_fwd, norm_rev = (
        {block: jnp.sqrt(jnp.maximum(x, 0)) for block, x in squares.items()}
        for squares in (squares_fwd, squares_rev)
    )

    def cosine(inner, *norms):
        defined = (norms[0] > 0) & (norms[1] > 0)
        return jnp.where(defined, inner / (norms[0] * norms[1]), jnp.nan)

    return Alignment(
        inner={block: x * fwd.size * rev.size for block, x in inner.items()},
        cosine={block: cosine(x, norm_fwd[block], norm_rev[block]) for block, x in inner.items()},
        norm_fwd={block: x * fwd.size for block, x in norm_fwd.items()},
        norm_rev={block: x * rev.size for block, x in norm_rev.items()},
    )
