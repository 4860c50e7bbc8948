"""What a checkpoint holds: a pytree as named arrays, a history as JSON and bytes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass
class Leaves:
    """A pytree as named leaves.

    Attributes:
      tree: itself.
      names: of all leaves, in order: their paths, `params/blocks_0/bias`.
      described: leaf by name, as in "float32[3,4]", "key of threefry2x32[]" or "int"; leaves
        that are neither arrays nor numbers are left out.
      arrays: those of JAX, as Orbax can hold them.
      values: NumPy's arrays and Python's numbers.
    """

    tree: Any
    names: list[str]
    described: dict[str, str] = dataclasses.field(default_factory=dict)
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, tree: Any) -> "Leaves":
        """The leaves of a pytree."""
        leaves, taken = cls(tree, []), set()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "state"
            while name in taken:  # as of the keys "a/b" and "a", "b"
                name += "'"
            taken.add(name)
            leaves.names.append(name)
            leaves._add(name, leaf)
        return leaves

    def _add(self, name: str, leaf: Any) -> None:
        if isinstance(leaf, np.ndarray | np.generic):
            self.described[name] = f"numpy {leaf.dtype}{_shape(leaf)}"
            self.values[name] = leaf
        elif isinstance(leaf, bool | int | float | complex):
            self.described[name] = type(leaf).__name__
            self.values[name] = leaf
        elif isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            kind = f"key of {_key_impl(leaf)}" if _is_key(leaf) else str(leaf.dtype)
            self.described[name] = f"{kind}{_shape(leaf)}"
            if math.prod(leaf.shape):  # Orbax has no empty arrays
                self.arrays[name] = _storable(leaf)

    def non_finite(self) -> str | None:
        """The name of a leaf that holds NaN or infinity, of what this process holds.

        A scalar outside a part called "params" may be infinite.
        """
        values = {name: np.asarray(value) for name, value in self.values.items()}
        for name, array in (values | self.arrays).items():
            if jnp.issubdtype(array.dtype, jnp.inexact):
                may_be_infinite = array.ndim == 0 and "params" not in name.split("/")
                if not _is_finite(array, may_be_infinite):
                    return name
        return None

    def filled(self, arrays: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
        """The tree with these leaves in place of its own."""

        def fill(name, leaf):
            if isinstance(leaf, np.ndarray | np.generic):
                return values[name]
            if name in self.values:
                return type(leaf)(values[name])
            if name in self.arrays:
                return _from_storable(arrays[name], leaf)
            if name in self.described and isinstance(leaf, jax.ShapeDtypeStruct):
                return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
            return leaf

        leaves, structure = jax.tree.flatten(self.tree)
        filled = [fill(name, leaf) for name, leaf in zip(self.names, leaves, strict=True)]
        return jax.tree.unflatten(structure, filled)


# TensorStore has no name for these.
_STORED_AS = {"uint2": "uint8", "uint4": "uint8", "float8_e4m3": "uint8"}


def _shape(x: Any) -> str:
    return f"[{','.join(map(str, x.shape))}]"


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_impl(key: Any) -> Any:
    found: list[Any] = []
    jax.eval_shape(lambda traced: found.append(jax.random.key_impl(traced)), key)
    return found[0]


def _storable(x: Any) -> Any:
    """An array that Orbax can hold, or its shape, dtype and sharding if `x` is abstract."""
    stored = _STORED_AS.get(str(x.dtype))
    if isinstance(x, jax.ShapeDtypeStruct):
        sharding = jnp.zeros(()).sharding if x.sharding is None else x.sharding
        data = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
        return jax.ShapeDtypeStruct(data.shape, stored or data.dtype, sharding=sharding)
    if _is_key(x):
        return jax.random.key_data(x)
    if stored:
        as_bits = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.lax.bitcast_convert_type(x, stored) if as_bits else x.astype(stored)
    return x


def _from_storable(stored: Any, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(stored, impl=_key_impl(like))
    if stored.dtype != like.dtype:
        as_bits = jnp.issubdtype(like.dtype, jnp.floating)
        dtype = like.dtype
        return jax.lax.bitcast_convert_type(stored, dtype) if as_bits else stored.astype(dtype)
    return stored


def _is_finite(x: Any, may_be_infinite: bool) -> bool:
    """Whether what this process holds of an array is finite."""
    if isinstance(x, jax.Array):
        parts = [np.asarray(s.data) for s in x.addressable_shards if s.replica_id == 0]
    else:
        parts = [x]
    return all(
        not np.isnan(part).any() if may_be_infinite else np.isfinite(part).all() for part in parts
    )


def encode(value: Any, buffers: list[bytes], name: str) -> Any:
    """A history as JSON; the bytes of its arrays are put into `buffers`."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{name} has keys that are not strings: {list(value)}")
        return {"dict": {k: encode(v, buffers, f"{name}/{k}") for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return {"list": [encode(v, buffers, f"{name}/{i}") for i, v in enumerate(value)]}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        kind = "scalar" if isinstance(value, np.generic) else "array"
        array = np.asarray(value)
        if array.dtype.hasobject or array.dtype.fields:
            raise TypeError(f"{name} is an array of {array.dtype}")
        # "<f4" says the order of bytes; bfloat16 and its like are known by name alone.
        dtype = array.dtype.name if array.dtype.kind == "V" else array.dtype.str
        offset = sum(map(len, buffers))
        buffers.append(array.tobytes())
        return {kind: [dtype, list(array.shape), offset]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, complex):
        return {"complex": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which no checkpoint holds")


def decode(value: Any, data: bytes) -> Any:
    """The history that `encode` made JSON of; `data` is its buffers, one after the other."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {key: decode(child, data) for key, child in content.items()}
    if kind == "list":
        return [decode(child, data) for child in content]
    if kind in ("float", "complex"):
        return {"float": float, "complex": complex}[kind](content)
    dtype, shape, offset = content
    count = math.prod(shape)  # frombuffer raises if the file holds fewer
    flat = (
        np.frombuffer(data, np.dtype(dtype), count, offset)
        if count
        else np.zeros(0, np.dtype(dtype))
    )
    array = flat.reshape(shape).copy()
    return array[()] if kind == "scalar" else array
