"""A mesh of devices with axes "data" and "model", and where each parameter lies on it, by name.

Megatron's split (Shoeybi et al., 2019): query, key, value, gate and up by their outputs (heads,
hidden units), the attention's output and the down projection by their inputs, embedding and
head by the vocabulary. What follows of it, activations and sums over devices, is the
compiler's. Everything else is on every device.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, MODEL = "data", "model"
# A regex on the path's end -> the axis of the parameter that is split over "model".
RULES: tuple[tuple[str, int], ...] = (
    (r"(^|/)embed/embedding$", 0),
    (r"attention/(query|key|value)/kernel$", 1),
    (r"attention/(query|key|value)/bias$", 0),
    (r"attention/out/kernel$", 0),
    (r"mlp/(up|gate)/kernel$", 1),
    (r"mlp/(up|gate)/bias$", 0),
    (r"mlp/down/kernel$", 0),
    (r"(^|/)head/kernel$", 1),
    (r"(^|/)head/bias$", 0),
    # Adapters: B of layers split by output, A of layers split by input.
    (r"(query|key|value|up|gate)/b$", 1),
    (r"(out|down)/a$", 0),
)
_SCANNED = re.compile(r"(^|/)blocks/block/")


def make_mesh(data: int, model: int, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the first data · model devices (of all there are, when None).

    Raises:
      ValueError: too few devices, or a size below 1.
    """
    devices = jax.devices() if devices is None else devices
    if min(data, model) < 1 or data * model > len(devices):
        raise ValueError(f"a mesh of {data} × {model} does not fit {len(devices)} devices")
    return Mesh(np.array(devices[: data * model]).reshape(data, model), (DATA, MODEL))


def num_shares(mesh: Mesh | None) -> int:
    """How many devices, or groups of them, share a batch: the size of the axis "data", 1 for None.

    Raises:
      TypeError: no mesh.
      ValueError: a mesh without that axis.
    """
    if mesh is None:
        return 1
    if not isinstance(getattr(mesh, "shape", None), Mapping):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r:.80}")
    if DATA not in mesh.shape:
        axes = ", ".join(map(repr, mesh.shape))
        raise ValueError(f"mesh: a batch is split along an axis {DATA!r}; this has {axes}")
    return mesh.shape[DATA]


def spec(path: str, shape: Sequence[int], model_size: int) -> PartitionSpec:
    """How the parameter at `path`, such as "blocks_0/mlp/up/kernel", is split.

    A leading axis of scanned layers is never split. An axis that `model_size` does not divide
    (few key/value heads, an odd vocabulary) is left whole.
    """
    for pattern, axis in RULES:
        if re.search(pattern, path):
            axis += bool(_SCANNED.search(path))
            if axis < len(shape) and shape[axis] % model_size == 0:
                return PartitionSpec(*[None] * axis, MODEL)
            break
    return PartitionSpec()


def shardings(mesh: Mesh, tree: Any) -> Any:
    """A sharding for each leaf of a tree that holds parameters under their names.

    So of parameters, of their shapes (`load_pretrained(.., shardings=partial(shardings,
    mesh))`), of an optimizer's state and of a whole `TrainState`. On a mesh without an axis
    "model" each device has all of them.
    """

    def of_leaf(path, leaf):
        if MODEL not in mesh.shape:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, spec(_name(path), leaf.shape, mesh.shape[MODEL]))

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def _name(path: tuple[Any, ...]) -> str:
    """A tree path as names joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
