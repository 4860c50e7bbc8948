"""One flipped bit in a checkpoint's data file: set aside, or restored as other numbers without a word?"""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from _common import TMP, end
from absl import logging

from dirasym import checkpoints

logging.set_verbosity(logging.FATAL)
r = np.random.default_rng(0)
state = {f"w{i}": jnp.asarray(r.normal(size=(64, 64)).astype(np.float32)) for i in range(4)}
c = checkpoints.Checkpoints(TMP / "a")
c.save(4, state, {"loss": np.ones(3)})
c.close()
data = [p for p in (TMP / "a/4").rglob("*") if p.is_file()]
random.seed(0)
wrong = tried = 0
for n, f in enumerate([*data, *data]):
    d = TMP / f"t{n}"
    shutil.copytree(TMP / "a", d)
    t = d / f.relative_to(TMP / "a")
    b = bytearray(t.read_bytes())
    if not b:
        continue
    b[random.randrange(len(b))] ^= 1 << random.randrange(8)
    t.write_bytes(bytes(b))
    cc = checkpoints.Checkpoints(d)
    out = cc.restore(state)
    cc.close()
    tried += 1
    if out is None:
        wrong += not (d / "damaged").exists()
    else:  # only what says the same all the same
        wrong += not all(map(np.array_equal, jax.tree.leaves(out[1]), jax.tree.leaves(state)))
print(f"{wrong} of {tried} damaged checkpoints restored as other numbers in silence")
end(wrong or not tried)
