"""How large a network is, as result lines say it."""

from typing import Any

import jax

from dirasym.models.lora import LoRA

_NAMES = {"layers": "num_layers", "width": "width", "heads": "num_heads"}


def sizes(network: Any, *params: Any) -> dict[str, int]:
    """`layers`, `width` and `heads`, as far as a network has them, and `total_params`.

    Args:
      network: a module of this package, with adapters or not, or a `TransformerConfig`.
      *params: pytrees of all its parameters, frozen ones and adapters too; shapes will do.

    Examples:
      >>> import jax.numpy as jnp
      >>> from dirasym import models
      >>> model = models.Bilinear(vocab_size=10, width=4)
      >>> sizes(model, {"embed": jnp.zeros((10, 4)), "theta": jnp.zeros((4, 4))})
      {'width': 4, 'total_params': 56}
    """
    inner = network.model if isinstance(network, LoRA) else network
    shape = getattr(inner, "config", inner)
    found = {key: getattr(shape, name) for key, name in _NAMES.items() if hasattr(shape, name)}
    return found | {"total_params": sum(x.size for x in jax.tree.leaves(params))}
