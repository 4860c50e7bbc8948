# Right: fields that say nothing about the computation and stand in many published or re-saved
# config.json (transformers 4.46 to 4.5x, unsloth, full dumps of old versions) are known as
# harmless. Seen: "unknown field .." and no model.
# slow
import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp

from dirasym import models

T = pathlib.Path(tempfile.mkdtemp())
model = models.Transformer(
    models.llama(
        11,
        num_layers=1,
        width=8,
        num_heads=2,
        num_kv_heads=2,
        mlp_width=8,
        max_len=8,
        rope_scaling=None,
    )
)
models.save_pretrained(T, model, model.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"])
fields, bad = json.loads((T / "config.json").read_text()), []
for more in (
    {"_attn_implementation_autoset": True},
    {"unsloth_fixed": True},
    {"unsloth_version": "2025.1.1"},
    {"torchscript": False},
    {"tie_encoder_decoder": False},
    {"use_bfloat16": False},
    {"_commit_hash": "abc"},
    {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
        }
    },
    {"rope_scaling": {"rope_type": "linear", "factor": 1.0}},
):
    (T / "config.json").write_text(json.dumps(fields | more))
    try:
        models.load_pretrained(T)
    except ValueError as error:
        bad.append(next(iter(more)))
        print(str(error).partition("config.json: ")[2])
print("FAIL " + ", ".join(bad) if bad else "PASS")
sys.exit(bool(bad))
