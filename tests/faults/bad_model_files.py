"""Bad config.json, index, adapter_config.json: ValueError naming the file (docstrings of load_pretrained, load_adapters), or another exception?"""

import json
import shutil

import jax
from _common import TMP, end, llama

from dirasym import models
from dirasym.models import lora

good = TMP / "good"
m, p = llama(good)
c = models.LoRAConfig(2, 4.0, "attention/query")
models.save_adapters(good, m, lora.init_adapters(models.LoRA(m, c), p, jax.random.key(0)), c)
bad = []


def check(name, call, edit):
    d = TMP / "d"
    shutil.rmtree(d, ignore_errors=True)
    shutil.copytree(good, d)
    edit(d)
    try:
        call(d)
        got = "accepted"
    except ValueError as e:
        got = (
            "ok" if "\n" not in str(e) and str(d) in str(e) else f"ValueError without the file: {e}"
        )
    except Exception as e:
        got = f"{type(e).__name__}: {e}"
    if got != "ok":
        bad.append(name)
        print(f"{name}: {got[:150]}")


def field(file, **k):
    def edit(d):
        f = json.loads((d / file).read_text())
        f.update(k)
        (d / file).write_text(json.dumps(f))

    return edit


def index(value):
    def edit(d):
        (d / "model.safetensors").unlink()
        (d / "model.safetensors.index.json").write_text(json.dumps({"weight_map": value}))

    return edit


load = models.load_pretrained


def adapters(d):
    return models.load_adapters(d, m)


for k, v in [
    ("num_key_value_heads", 0),
    ("num_key_value_heads", -1),
    ("vocab_size", 10**15),
    ("hidden_size", 10**400),
    ("max_position_embeddings", 0),
    ("rope_theta", float("nan")),
    ("rope_theta", -1.0),
    ("rope_theta", 0.0),
    ("rms_norm_eps", -1.0),
    ("rms_norm_eps", float("nan")),
    (
        "rope_scaling",
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": "x",
        },
    ),
]:
    check(f"config.json {k}={str(v)[:40]}", load, field("config.json", **{k: v}))
check("config.json of nested lists", load, lambda d: (d / "config.json").write_text("[" * 200_000))
for v in ({"a": None}, {"a": 1, "b": "x"}, {"a": {}}):
    check(f"weight_map {v}", load, index(v))
for k, v in [
    ("r", "2"),
    ("r", None),
    ("r", 2.5),
    ("r", [2]),
    ("lora_alpha", "x"),
    ("lora_alpha", None),
    ("lora_alpha", float("nan")),
    ("lora_dropout", "x"),
    ("lora_dropout", None),
]:
    check(f"adapter_config.json {k}={v!r}", adapters, field("adapter_config.json", **{k: v}))
end(bad, f"{len(bad)}")
