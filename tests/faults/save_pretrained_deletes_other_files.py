# Right: saving replaces the files of an earlier save (model.safetensors,
# model-00001-of-0000N.safetensors, the index) and no others. Seen: everything that matches
# model*.safetensors is deleted, such as a model-ema.safetensors kept beside it.
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp

from dirasym import models

T = pathlib.Path(tempfile.mkdtemp())
keep = [
    "model-ema.safetensors",
    "model_best.safetensors",
    "model.fp16.safetensors",
    "modelling.safetensors",
]
for name in keep:
    (T / name).write_bytes(b"precious")
model = models.Transformer(models.gpt2(11, num_layers=1, width=8, num_heads=2, max_len=8))
models.save_pretrained(T, model, model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"])
gone = [name for name in keep if not (T / name).exists()]
print("gone:", gone)
print("FAIL" if gone else "PASS")
sys.exit(bool(gone))
