"""Forward–reverse gradient alignment of any JAX function, block by block.

`alignment` takes two losses of a parameter pytree and compares their gradients, example by
example; `cross_alignment` compares the gradients of all pairs of examples. Both compile inside,
once for losses of the same code that read the same values, so that they may be called in a
training loop; both may be called inside `jax.jit` and `jax.vmap` too. All of it runs at the
highest matmul precision, and sums in float32 or better.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from dirasym import usage
from dirasym.analysis import products, programs
from dirasym.analysis.arguments import (
    check_arrays,
    check_losses,
    check_rates,
    check_same_kind,
    first_example,
)
from dirasym.analysis.blocks import BlockOf, Blocks
from dirasym.analysis.cross import CrossMatrix, digest
from dirasym.analysis.factored import Gradient, Loss, check_loss
from dirasym.analysis.problem import Problem
from dirasym.precision import highest_precision, widened
from dirasym.sharding import DATA, num_shares
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
      direct: paths of the parameters whose per-example gradients were formed whole.
      direct_share: of the entries of all parameters.
    """

    inner: dict[str, jax.Array]
    cosine: dict[str, jax.Array]
    norm_fwd: dict[str, jax.Array]
    norm_rev: dict[str, jax.Array]
    direct: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    direct_share: float = flax.struct.field(pytree_node=False, default=1.0)

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


@flax.struct.dataclass
class CrossAlignment:
    """The gradients of all examples of one loss by those of all examples of another.

    Attributes:
      inner: ⟨∇L_fwd(i), ∇L_rev(j)⟩ of a block, and of all in "total", [E, E'] each.
      direct, direct_share: as of `Alignment`.
    """

    inner: dict[str, Any]
    direct: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
    direct_share: float = flax.struct.field(pytree_node=False, default=1.0)


@highest_precision
def alignment(
    loss_fwd: Loss,
    loss_rev: Loss,
    params: Params,
    *,
    blocks: BlockOf = None,
    heads: bool = False,
    examples: Any = None,
    method: Method = "direct",
    strict: bool = False,
    chunk_size: int = 8,
    mesh: Mesh | None = None,
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
      heads: split the matrices of attention into heads, of paths such as
        "blocks_0/attention/query/kernel/head_1".
      examples: pytree with a leading axis E; each example is compared by itself.
      method: "direct" forms both gradients of a chunk of examples: memory 2·chunk_size
        times the parameters. "factored" forms none, or one leaf's at a time where that is
        cheaper: the gradient of a matrix is Σ_t a_t g_tᵀ over tokens, with a the inputs
        and g the cotangents of the outputs, and
        ⟨Σ_t a_t g_tᵀ, Σ_s a'_s g'_sᵀ⟩ = Σ_ts (a_t·a'_s)(g_t·g'_s). They are found in the loss's
        jaxpr, so in any JAX function, through `jit`, `checkpoint` and `scan`: products without
        batch axes, convolutions, lookups of rows, and what is broadcast (biases, norms), of which
        a is 1. What is used otherwise takes the direct way and is listed in `direct`, as do
        operands of `custom_vjp` and `custom_jvp`, whose own rule may give a gradient that is no
        product. Memory: activations and cotangents of a chunk.
      strict: raise where a parameter cannot be factored; of "factored" alone.
      chunk_size: examples at a time.
      mesh: has an axis "data", over which the examples are split; parameters may lie on another.

    Raises:
      ValueError: a loss that is not a scalar float, or has side effects; blocks that match
        nothing; `heads` where there are none; no examples for "factored", or examples of unequal
        length; by path, arrays that were donated, or parameters that with `strict` cannot be
        factored.
      TypeError: parameters that are not floats or examples that are no arrays, by path; a loss of
        other arguments, or a mesh that is none.

    Examples:
      >>> loss = lambda params, x: ((x @ params["w"]) ** 2).sum()
      >>> params, examples = {"w": jnp.ones((2, 1))}, jnp.array([[1.0, 0.0], [1.0, 1.0]])
      >>> found = alignment(loss, loss, params, examples=examples, method="factored")
      >>> found.inner["w"].tolist(), found.direct
      ([4.0, 32.0], ())
    """
    _check_how(method, strict, chunk_size)
    one_alone = [] if examples is None else [first_example("examples", examples)]
    if examples is None and method == "factored":
        raise ValueError("method 'factored' compares examples: pass examples")
    check_arrays("params", params)
    check_losses(loss_fwd, loss_rev, 1 + len(one_alone))
    how = dict(blocks=blocks, heads=heads, method=method, strict=strict)
    given = dict(losses=(loss_fwd, loss_rev), shapes=_shapes(params, *one_alone))
    given |= dict(how=how, chunk_size=chunk_size, mesh=mesh)
    program = programs.once(_alignment_program, given)
    return program(params) if examples is None else program(params, examples)


def _alignment_program(losses, shapes, how, chunk_size, mesh) -> Callable[..., Alignment]:
    """The compiled comparison for arguments of these shapes."""
    params, *example = _from_shapes(shapes)
    fwd, rev = ((loss, *example) for loss in losses)
    problem = Problem.of(params, fwd, rev, **how)
    direct, share = problem.direct(params)

    def compare(params, *example):
        fwd, rev = (problem.gradient(which, params, *example) for which in ("fwd", "rev"))
        return _compare(fwd, rev, problem.parts)

    def over_examples(params, examples):
        one = functools.partial(compare, params)
        size = min(chunk_size, len(jax.tree.leaves(examples)[0]))
        return jax.lax.map(one, examples, batch_size=size)

    def on_mesh(params, examples):
        size = len(jax.tree.leaves(examples)[0])
        extra = -size % num_shares(mesh)
        if extra:
            examples = jax.tree.map(lambda x: jnp.concatenate([x, *[x[-1:]] * extra]), examples)
        specs = PartitionSpec(), PartitionSpec(DATA)
        found = jax.shard_map(
            over_examples,
            mesh=mesh,
            in_specs=specs,
            out_specs=specs[1],
            axis_names={DATA},
            check_vma=False,
        )(params, examples)
        return jax.tree.map(lambda x: x[:size], found)

    one_way = (on_mesh if mesh is not None else over_examples) if example else compare
    return jax.jit(lambda *args: one_way(*args).replace(direct=direct, direct_share=share))


@highest_precision
def cross_alignment(
    loss_fwd: Loss,
    loss_rev: Loss,
    params: Params,
    examples: Any,
    *,
    examples_rev: Any = None,
    blocks: BlockOf = None,
    heads: bool = False,
    method: Method = "direct",
    strict: bool = False,
    chunk_size: int | None = None,
    memory_limit: int = 2**31,
    out: str | pathlib.Path | None = None,
    mesh: Mesh | None = None,
) -> CrossAlignment:
    """⟨∇L_fwd(i), ∇L_rev(j)⟩ for all pairs of examples.

    Arguments as for `alignment`, and these. Where both losses and both sets of examples are the
    same, half of the matrix is computed. "factored" holds the factors of a tile's rows and
    columns, and forms the gradients of some columns of one leaf at a time, or none where that is
    cheaper; "direct" holds all gradients of a tile.

    Args:
      examples_rev: the columns' examples; the rows' when None.
      chunk_size: examples differentiated at a time; as many as memory allows when None.
      memory_limit: bytes, on each device, that a tile of the matrix may take (see `cross`),
        beside the parameters, what `method="direct"` forms of one example, and the result.
      out: a directory for the matrices, as `block-NAME.npy`, written tile by tile. Called again
        with the same arguments, it goes on after the last tile that is there. It is known by
        the arrays, the blocks and the operations of both gradients, whatever process it is.

    Returns:
      Its arrays are, with `out`, NumPy's, mapped read-only from their files.

    Raises:
      ValueError: as `alignment`; `out` that is a file or holds another matrix, or in a trace;
        `examples_rev` of another structure or dtype than `examples` where both losses are one.
    """
    _check_how(method, strict, chunk_size)
    usage.check_counts(memory_limit=memory_limit)
    check_arrays("params", params)
    is_same = examples_rev is None or examples_rev is examples
    rows, columns = examples, examples if is_same else examples_rev
    firsts = [first_example("examples", rows)]
    firsts += firsts if is_same else [first_example("examples_rev", columns)]
    check_losses(loss_fwd, loss_rev, 2)
    is_one_loss = _is_one_loss(loss_fwd, loss_rev)
    if is_one_loss:
        check_same_kind(*firsts)
    is_traced = programs.is_traced((params, rows, columns))
    static = dict(
        losses=(loss_fwd, loss_rev),
        shapes=_shapes(params, *firsts, rows, columns),
        how=dict(blocks=blocks, heads=heads, method=method, strict=strict),
        is_same=is_same,
        is_one_loss=is_one_loss,
        tiles=dict(memory_limit=memory_limit, chunk_size=chunk_size, mesh=mesh),
    )
    cross = programs.once(_cross_program, static)
    made = functools.partial(CrossAlignment, direct=cross.direct, direct_share=cross.direct_share)
    if out is None:
        return made(cross.whole(params, rows, columns))
    if is_traced:
        raise ValueError("out: no files can be written inside jit or vmap")
    names = list(map(_loss_name, (loss_fwd, loss_rev)))
    identity = dict(arrays=digest(params, rows, columns), losses=names, method=method)
    return made(cross.into_files(pathlib.Path(out), params, rows, columns, identity))


def _cross_program(losses, shapes, how, is_same, is_one_loss, tiles) -> CrossMatrix:
    params, first, first_rev, rows, columns = _from_shapes(shapes)
    fwd, rev = losses
    problem = Problem.of(params, (fwd, first), (rev, first_rev), **how)
    is_one_loss = is_one_loss and _shapes(first) == _shapes(first_rev)
    tiles = tiles | dict(is_one_loss=is_one_loss, is_symmetric=is_one_loss and is_same)
    return CrossMatrix(problem, params, rows, columns, **tiles)


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

    The error predicted − measured falls as η² (§4.3 of arXiv 2602.02133 rests on this). Both are
    of the parameters in float32 or what is wider: in bfloat16 a small step moves nothing.

    Raises:
      ValueError: a loss that is not a scalar float, parameters that were donated, by path, or
        rates that are none, or not finite numbers from 0.
      TypeError: parameters that are not floats, by path, or a loss of other arguments.
    """
    check_arrays("params", params)
    check_losses(loss_fwd, loss_rev, 1)
    check_rates(learning_rates)
    Blocks.of(params, None)
    params = jax.tree.map(widened, params)
    rates = jnp.atleast_1d(jnp.asarray(learning_rates))
    value, pull_back = jax.vjp(loss_fwd, params)
    check_loss("loss_fwd", value)
    (step,) = pull_back(jnp.ones_like(value))
    start, slope = jax.jvp(loss_rev, (params,), (step,))
    check_loss("loss_rev", start)

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

    Examples:
      >>> ratios = update_ratios({"a": jnp.array([0.3])}, {"a": jnp.array([-3.0])})
      >>> f"{ratios['a']:.1f}"
      '0.1'

    Raises:
      ValueError: updates of another structure than the parameters, or as `alignment`.
    """
    check_arrays("updates", updates)
    check_arrays("params", params)
    parts = Blocks.of(params, blocks)
    if Blocks.of(updates, None).paths != parts.paths:
        raise ValueError("updates must have the structure of params")
    sizes = [len(names) for names in parts.names]
    squares_up, squares_down = (
        parts.sum([jnp.sum(x.reshape(n, -1) ** 2, -1) for x, n in zip(leaves, sizes, strict=True)])
        for leaves in (jax.tree.leaves(updates), jax.tree.leaves(params))
    )
    return {block: jnp.sqrt(x / squares_down[block]) for block, x in squares_up.items()}


def _check_how(method: str, strict: bool, chunk_size: int | None) -> None:
    if method not in ("direct", "factored"):
        raise ValueError(f"method must be 'direct' or 'factored', got {method!r}")
    if strict and method == "direct":
        raise ValueError("strict is of method='factored': 'direct' factors nothing")
    if chunk_size is not None:
        usage.check_counts(chunk_size=chunk_size)


def _is_one_loss(first: Loss, second: Loss) -> bool:
    try:
        return programs.fingerprint(first) == programs.fingerprint(second)
    except programs.IsTracedError:
        return False


def _loss_name(loss: Any) -> str:
    """The same in another process, where two losses of other names or numbers differ."""
    if isinstance(loss, functools.partial):
        fixed = [*loss.args, *loss.keywords.items()]
        return f"{_loss_name(loss.func)}{[x for x in fixed if ' at 0x' not in repr(x)]}"
    return getattr(loss, "__qualname__", type(loss).__name__)


def _shapes(*trees: Any) -> Any:
    """Hashable: the shapes and dtypes of trees of arrays."""
    leaves, structure = jax.tree.flatten(trees)
    return structure, tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)


def _from_shapes(shapes: Any) -> Any:
    structure, leaves = shapes
    return structure.unflatten(leaves)


def _is_not_finite(x: np.ndarray) -> np.ndarray:
    return ~np.isfinite(x)


def _compare(fwd: Gradient, rev: Gradient, parts: Blocks) -> Alignment:
    of_leaves = list(map(products.three_products, fwd.leaves, rev.leaves))
    inner, squares_fwd, squares_rev = (parts.sum(x) for x in zip(*of_leaves, strict=True))
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
