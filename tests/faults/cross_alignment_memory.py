"""cross_alignment(method="direct") promises tiles within `memory_limit`: temporary memory under jit at 32 and 320 examples. Compiled only."""

import flax.linen as nn
import jax
import optax
from _common import end

from dirasym.analysis import alignment

model = nn.Sequential([nn.Embed(500, 256), nn.Dense(512), nn.relu, nn.Dense(500)])


def loss(p, a, b):
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(p, a), b).mean()


def forward(p, x):
    return loss(p, x[:, 0], x[:, 1])


def reverse(p, x):
    return loss(p, x[:, 1], x[:, 0])


mb = {}
for n in (32, 320):
    pairs = jax.random.randint(jax.random.key(0), (n, 8, 2), 0, 500)
    params = model.init(jax.random.key(1), pairs[0, :, 0])
    f = jax.jit(lambda p, e: alignment.cross_alignment(forward, reverse, p, e, memory_limit=2**28))
    compiled = f.lower(params, pairs).compile()
    mb[n] = compiled.memory_analysis().temp_size_in_bytes / 1e6
print(f"of 268 MB allowed, held at 32 examples {mb[32]:.0f} MB, at 320 {mb[320]:.0f} MB")
end(mb[320] > 2 * mb[32])
