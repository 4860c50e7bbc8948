"""Two losses of the same parameters, and how their gradients are to be compared."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from dirasym.analysis.blocks import BlockOf, Blocks
from dirasym.analysis.factored import Factors, Formed, Gradient, Plan, Product, Traced, gradient
from dirasym.types import Params


@dataclasses.dataclass(frozen=True)
class Problem:
    """Losses of the same parameters, traced, and how their gradients are taken.

    Attributes:
      fwd, rev: the losses.
      plan: which parameters are factored.
      parts: the blocks of all parameters.
      shapes: of the parameters.
    """

    fwd: Traced
    rev: Traced
    plan: Plan
    parts: Blocks
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        params: Params,
        fwd: tuple[Any, ...],
        rev: tuple[Any, ...],
        *,
        blocks: BlockOf,
        heads: bool,
        method: str,
        strict: bool,
    ) -> "Problem":
        """Of two losses, each with one of its examples, if it has examples.

        Raises:
          ValueError: a loss that is no scalar float or has side effects, bad blocks, heads of
            what has none, or with `strict` parameters that are not factored, by path.
          TypeError: parameters that are not floats, by path.
        """
        Blocks.of(params, None)
        traced_fwd = Traced.of("loss_fwd", fwd[0], params, *fwd[1:])
        traced_rev = Traced.of("loss_rev", rev[0], params, *rev[1:])
        plan = Plan.of(params, traced_fwd, traced_rev)
        parts = Blocks.of(params, blocks, scanned=plan.scanned, heads=heads)
        if heads and all(axis is None for axis in parts.head_axes):
            known = f"such as {parts.paths[0]!r}"
            raise ValueError(f"heads: no parameter of attention has an axis of heads, {known}")
        shapes = tuple(map(jnp.shape, jax.tree.leaves(params)))
        reasons: dict[int, str] = {}
        for n, (shape, axis, is_stacked) in enumerate(
            zip(shapes, parts.head_axes, parts.is_stacked, strict=True)
        ):
            if method == "direct":
                reasons[n] = "method is 'direct'"
            elif is_stacked and shape[0] > 1 and n in plan.used - plan.stacked:
                reasons[n] = "its layers are used at once"
            elif axis is not None and _sides(plan, n, shape) is None:
                reasons[n] = "its heads are not an axis of the product"
        plan = plan.without(reasons)
        if strict and method == "factored" and plan.direct:
            why = "; ".join(f"{parts.paths[n]}: {plan.reasons[n]}" for n in plan.direct)
            raise ValueError(f"strict: not all parameters can be factored: {why}")
        return cls(traced_fwd, traced_rev, plan, parts, shapes)

    def gradient(self, which: str, params: Params, *example: Any) -> Gradient:
        """The gradient of the loss "fwd" or "rev"; each leaf's parts lead."""
        loss = self.fwd if which == "fwd" else self.rev
        found = gradient(loss, self.plan, params, *example)
        leaves = [self._in_parts(n, leaf) for n, leaf in enumerate(found.leaves)]
        return Gradient(leaves, found.size)

    def _in_parts(self, n: int, leaf: Formed | Factors | None) -> Formed | Factors | None:
        """A leaf's gradient with its layers, and the heads of these, on one leading axis."""
        shape, axis, is_stacked = self.shapes[n], self.parts.head_axes[n], self.parts.is_stacked[n]
        if isinstance(leaf, Formed):
            value = leaf.value.reshape(shape if is_stacked else (1, *shape))
            if axis is not None:
                value = jnp.moveaxis(value, axis, 1)
            return Formed(value.reshape(len(self.parts.names[n]), -1))
        if leaf is None or axis is None:
            return leaf
        sides = _sides(self.plan, n, shape)
        assert sides is not None and leaf.dense is not None, "checked when it was planned"
        number, axis = shape[axis], axis % len(shape)
        left, right = leaf.dense

        def of_heads(x, dims):  # [K, T, dims] to [K · heads, T, other dims]
            if axis not in dims:
                return jnp.repeat(x, number, axis=0)
            x = x.reshape(*x.shape[:2], *(shape[d] for d in dims))
            x = jnp.moveaxis(x, 2 + dims.index(axis), 1)
            return x.reshape(-1, x.shape[2], math.prod(x.shape[3:]))

        num_rows = leaf.num_rows // (number if axis in sides[0] else 1)
        dense = Product(of_heads(left, sides[0]), of_heads(right, sides[1]))
        return Factors(dense=dense, lookup=None, num_rows=num_rows)

    @property
    def identity(self) -> dict[str, Any]:
        """What, beside the arrays, determines the products, in any process: for JSON."""
        losses = (self.fwd, self.rev)
        gradients = [loss.gradient_digest(len(self.shapes)) for loss in losses]
        return dict(blocks=self.parts.names, gradients=gradients)

    def direct(self, params: Params) -> tuple[tuple[str, ...], float]:
        """Paths of the parameters whose gradients are formed, and their share of the entries."""
        sizes = [math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)]
        share = sum(sizes[n] for n in self.plan.direct) / max(1, sum(sizes))
        return tuple(self.parts.paths[n] for n in self.plan.direct), share


def _sides(plan: Plan, n: int, shape: tuple[int, ...]) -> tuple[list[int], list[int]] | None:
    """The axes of a leaf that its rows, and its columns, run over; None if one is split."""
    sides: tuple[list[int], list[int]] = [], []
    rows, inner = plan.rows[n] or (), math.prod(shape)
    for axis, size in enumerate(shape):
        first, inner = inner, inner // size
        if axis == 0 and n in plan.stacked:
            continue
        within = [inner >= atom.stride and first <= atom.stride * atom.size for atom in rows]
        apart = [first <= atom.stride or inner >= atom.stride * atom.size for atom in rows]
        if not any(within) and not all(apart):
            return None
        sides[0 if any(within) else 1].append(axis)
    return sides
