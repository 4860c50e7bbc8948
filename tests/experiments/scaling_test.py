"""docs/scaling.md: parameters, bytes and FLOPs of a model whose sizes are counted by hand."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models
from experiments.tools import scaling

LAYERS, VOCAB, WIDTH, KEYS, MLP = 5, 11, 8, 4, 12  # keys: one head of 4


def _small(**changes):
    size = dict(num_layers=LAYERS, width=WIDTH, num_heads=2, num_kv_heads=1, mlp_width=MLP)
    return models.llama(VOCAB, **size | dict(max_len=128) | changes)


def test_a_device_holds_its_shards_and_counters_are_left_out():
    shards = types.SimpleNamespace(shard_shape=lambda shape: (shape[0] // 4, *shape[1:]))

    def leaf(shape, dtype):
        what = dict(shape=shape, ndim=len(shape), dtype=np.dtype(dtype), sharding=shards)
        return types.SimpleNamespace(**what)

    tree = {"a": leaf((8, 3), jnp.bfloat16), "b": leaf((4,), np.float32), "n": leaf((), np.int32)}
    assert scaling.device_bytes(tree) == 2 * 3 * 2 + 4


def test_a_line_counts_what_is_frozen_and_what_is_trained(monkeypatch):
    monkeypatch.setattr(scaling, "PRESETS", {"small": _small})
    monkeypatch.setattr(scaling, "RANK", 2)
    monkeypatch.setattr(scaling, "step_flops", lambda config, mesh: 100.0 + 7 * config.num_layers)
    (line,) = scaling.measure(1)
    attention = 2 * WIDTH * WIDTH + 2 * WIDTH * KEYS
    layer = attention + 3 * WIDTH * MLP + 2 * WIDTH
    parameters = LAYERS * layer + 2 * VOCAB * WIDTH + WIDTH
    adapters = LAYERS * 2 * (2 * (WIDTH + WIDTH) + 2 * (WIDTH + KEYS))
    assert line == dict(
        model="small", devices=1, parameters=parameters, trainable=adapters,
        base_bytes=2 * parameters,  # bfloat16
        trained_bytes=3 * 4 * adapters,  # float32, with Adam's two moments
        flops=100 + 7 * LAYERS,
    )  # fmt: skip


def test_the_page_has_a_row_a_model_and_number_of_devices(monkeypatch, tmp_path):
    def run(command, **how):
        """Bytes and FLOPs are those of one device over their number."""
        devices = int(command[-1].removeprefix("--devices="))
        assert how["env"]["XLA_FLAGS"].endswith(f"_count={devices}")
        lines = [
            dict(model=model, devices=devices, parameters=8000 + n, trainable=7, base_bytes=16e9)
            | dict(trained_bytes=(4e9 + n * 1e9) / devices, flops=24e12 / devices)
            for n, model in enumerate(scaling.PRESETS)
        ]
        return types.SimpleNamespace(stdout=json.dumps(lines))

    monkeypatch.setattr(scaling.subprocess, "run", run)
    scaling.write(scaling.Config(str(tmp_path / "page.md")))
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("|")][2:]
    assert rows[0] == "| LLaMA-3.1-8B | 8,000 | 7 | 1 (1 × 1) | 16.00 | 4.000 | 24.00 |"
    assert rows[1] == "| LLaMA-3.1-8B | 8,000 | 7 | 8 (1 × 8) | 16.00 | 0.500 | 3.00 |"
    assert rows[5] == "| Qwen2.5-7B | 8,001 | 7 | 64 (8 × 8) | 16.00 | 0.078 | 0.38 |"
    assert len(rows) == 9 and rows[6].startswith("| LLaDA-8B | 8,002 | 7 | 1 (1 × 1)")


@pytest.mark.parametrize("devices", scaling.MESHES)
def test_a_mesh_has_so_many_devices(devices):
    assert np.prod(scaling.MESHES[devices]) == devices
