"""Memory of the toy task's evaluation against L: 26·L(L-1)/2 placements are read, in chunks. Compiled only, nothing is run."""

import math

import jax
from _common import end

from experiments.systems import toy

mb = []
for L in (20, 40, 80):
    t = toy.Task("mdm", L, toy.Config(lengths=(L,), seeds=(0,), generations=1))
    compiled = jax.jit(t.evaluate).lower(t.init(0)).compile()
    mb.append(compiled.memory_analysis().temp_size_in_bytes / 1e6)
    print(f"L = {L}: {mb[-1]:.0f} MB", flush=True)
print("exponent", round(math.log2(mb[2] / mb[1]), 2))
end(mb[2] > 8000)
