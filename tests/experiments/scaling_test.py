import pytest

from dirasym import models, sharding
from experiments import scaling

SMALL = dict(
    vocab_size=126_400, width=64, num_heads=4, num_kv_heads=2, mlp_width=96, max_len=128, remat=True
)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [models.llama, models.llada])
def test_flops_are_linear_in_layers_and_near_those_of_the_matrix_products(preset):
    mesh = sharding.make_mesh(1, 1)
    flops = [scaling.step_flops(preset(num_layers=n, **SMALL), mesh) for n in (1, 2, 4)]
    assert flops[2] == pytest.approx(flops[0] + 3 * (flops[1] - flops[0]), rel=1e-3)
    tokens = scaling.BATCH_PER_DATA * scaling.LENGTH
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    # Forward, backward and again forward; the head not again.
    assert flops[0] > 4 * tokens * SMALL["vocab_size"] * 64 * 0.99 - 6 * tokens * layer
    assert flops[1] - flops[0] > 5 * tokens * layer
