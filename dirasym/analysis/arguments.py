"""Checks of the pytrees that an analysis is given: an error names the argument and the leaf."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_arrays(name: str, tree: Any) -> None:
    """Checks that leaves are arrays or numbers that are still there.

    Raises:
      TypeError: a leaf of another kind, by path.
      ValueError: a leaf that was deleted, by path.

    Examples:
      >>> check_arrays("params", {"layer": {"name": "first"}})
      Traceback (most recent call last):
      TypeError: params: layer/name is a str, and no array
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        where = f"{name}: {where}" if where else name
        if isinstance(leaf, jax.Array):
            if not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
                raise ValueError(f"{where} was deleted: it was donated to a function")
        elif isinstance(leaf, np.ndarray | np.generic):
            if leaf.dtype.kind in "OSU":
                raise TypeError(f"{where} is an array of {leaf.dtype}, and not of numbers")
        elif not isinstance(leaf, int | float | complex) and not hasattr(leaf, "dtype"):
            raise TypeError(f"{where} is a {type(leaf).__name__}, and no array")


def first_example(name: str, examples: Any) -> Any:
    """The first of the examples, once they are known to be some, and all of one leading size.

    Raises:
      TypeError, ValueError: as `check_arrays`; no examples, or of unequal length.
    """
    check_arrays(name, examples)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(examples)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or not all(lengths):
        raise ValueError(f"{name} must share one leading size of at least 1, got shapes {shapes}")
    return jax.tree.map(lambda x: x[0], examples)


def check_losses(loss_fwd: Any, loss_rev: Any, count: int) -> None:
    """Raises TypeError for a loss that does not take (params), or (params, example)."""
    for name, loss in (("loss_fwd", loss_fwd), ("loss_rev", loss_rev)):
        if not callable(loss):
            raise TypeError(f"{name} must be a function, got {loss!r}")
        try:
            signature = inspect.signature(loss)
        except ValueError:  # of what is built in, nothing is known
            continue
        try:
            signature.bind(*[None] * count)
        except TypeError as error:
            given = "(params, example)" if count == 2 else "(params) where there are no examples"
            raise TypeError(f"{name} must take {given}: {error}") from None


def check_rates(learning_rates: Any) -> None:
    """Raises ValueError for what are no learning rates, and none; what is traced passes."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(learning_rates)):
        return
    rates = np.asarray(learning_rates)
    is_real = jnp.issubdtype(rates.dtype, jnp.floating) or rates.dtype.kind in "iu"
    is_list = rates.ndim < 2 and rates.size > 0
    if not is_real or not is_list or not ((rates >= 0) & (rates < np.inf)).all():
        raise ValueError(
            f"learning_rates must be one or more finite numbers from 0, got {learning_rates!r}"
        )


def check_same_kind(example: Any, example_rev: Any) -> None:
    """Raises ValueError for examples of one loss that differ in structure or dtype."""
    one, other = (
        jax.tree.map(lambda leaf: str(jnp.result_type(leaf)), tree)
        for tree in (example, example_rev)
    )
    if one != other:
        raise ValueError(
            "examples_rev must have the structure and the dtypes of examples where both losses are "
            f"one: got {other} and {one}"
        )
