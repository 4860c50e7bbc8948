# Right: fields that say nothing about the computation and stand in many published or re-saved
# config.json (transformers 4.46 to 4.5x, unsloth, full dumps of old versions) are known as
# harmless. Seen: "unknown field .." and no model.
import json

from _common import TMP as T
from _common import end, llama

from dirasym import models

llama(T, vocab_size=11, num_kv_heads=2, mlp_width=8, max_len=8)
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
end(bad, ", ".join(bad))
