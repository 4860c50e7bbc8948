"""Checks of the pytrees that an analysis is given: an error names the argument and the leaf."""

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
