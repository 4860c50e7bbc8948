# Right: `first_order_transfer`'s `measured` is L_rev(θ − η g_fwd) − L_rev(θ): 0 at η = 0, and at small
# η near `predicted` ("the error falls as η²"), also for bfloat16 parameters, which `alignment` takes
# and widens (the inner products agree).
# Seen: L_rev(θ) is computed with the bfloat16 parameters, L_rev(θ − η g) with float32 ones, since
# p − η·g with a float32 η is float32: a model that computes in its parameters' dtype is then compared
# with itself in another precision. measured(0) is not 0, and has the wrong sign up to η = 1e-3.
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import end

from dirasym.analysis import alignment

pairs = jax.random.randint(jax.random.key(0), (16, 2), 0, 50)
RATES = [0.0, 1e-4, 1e-3, 1e-2]
faults = []
for dtype in (jnp.float32, jnp.bfloat16):
    model = nn.Sequential(
        [
            nn.Embed(50, 32, param_dtype=dtype),
            nn.Dense(64, param_dtype=dtype),
            nn.relu,
            nn.Dense(50, param_dtype=dtype),
        ]
    )
    params = model.init(jax.random.key(1), pairs[0])["params"]

    def loss(params, given, asked, model=model):
        logits = model.apply({"params": params}, given).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, asked).mean()

    predicted, measured = (
        np.asarray(x, np.float64)
        for x in alignment.first_order_transfer(
            lambda params: loss(params, pairs[:, 0], pairs[:, 1]),
            lambda params: loss(params, pairs[:, 1], pairs[:, 0]),
            params,
            RATES,
        )
    )
    print(f"{dtype.__name__}: predicted {predicted}, measured {measured}")
    if measured[0] != 0:
        faults.append(f"{dtype.__name__}: measured {measured[0]:.1e} for a step of size 0")
    if abs(measured[2] - predicted[2]) > 0.2 * abs(predicted[2]):
        faults.append(
            f"{dtype.__name__}, η = 1e-3: {measured[2]:.1e}, predicted {predicted[2]:.1e}"
        )
end(faults, "; ".join(faults))
