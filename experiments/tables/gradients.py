"""What docs/gradients.md says that a matrix of gradients takes: of shapes alone, nothing is run."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dirasym import models, objectives
from dirasym.analysis.cross import CrossMatrix
from dirasym.analysis.problem import Problem


class Sizes(NamedTuple):
    """Of a model, and of what `cross_alignment` holds of one example; see `analysis.cross`.

    Attributes:
      parameters: of the model, in entries, all of them factored.
      entries, bytes: an example's factors.
      activations: bytes of all that is computed on the way to its loss.
      tiles: rows and columns of a tile, by `memory_limit`.
    """

    parameters: int
    entries: int
    bytes: int
    activations: int
    tiles: dict[int, tuple[int, int]]


@functools.cache
def sizes(
    config: models.TransformerConfig, tokens: int, num: tuple[int, int], limits: tuple[int, ...]
) -> Sizes:
    """Of the mean −log p of next tokens, a text of some tokens an example."""
    model = models.Transformer(config)
    apply_fn = models.make_apply_fn(model)
    params = jax.eval_shape(model.init, jax.random.key(0), _ids(1, 1))["params"]

    def loss(params, tokens_L):
        return objectives.token_nll(apply_fn(params, tokens_L[None])[0, :-1], tokens_L[1:]).mean()

    one = loss, _ids(tokens)
    how: dict[str, Any] = dict(blocks=None, heads=False, method="factored", strict=True)
    problem = Problem.of(params, one, one, **how)
    held = jax.tree.leaves(
        jax.eval_shape(functools.partial(problem.gradient, "fwd"), params, one[1])
    )

    def tile(limit):
        rows, columns = (_ids(count, tokens) for count in num)
        sides = dict(is_one_loss=True, is_symmetric=False, chunk_size=None, mesh=None)
        return CrossMatrix(problem, params, rows, columns, memory_limit=limit, **sides).tile

    return Sizes(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        entries=sum(math.prod(leaf.shape) for leaf in held),
        bytes=sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in held),
        activations=problem.fwd.num_bytes,
        tiles={limit: tile(limit) for limit in limits},
    )


def _ids(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
