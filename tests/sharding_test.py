import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec

from dirasym import models, sharding
from dirasym.models import pretrained

HERE = pathlib.Path(__file__).parent


@pytest.mark.parametrize(
    ("path", "shape", "want"),
    [
        ("embed/embedding", (32, 16), ("model",)),
        ("position_embed/embedding", (32, 16), ()),
        ("blocks_3/attention/query/kernel", (16, 4, 4), (None, "model")),
        ("blocks/block/attention/query/kernel", (2, 16, 4, 4), (None, None, "model")),
        ("blocks_3/attention/key/kernel", (16, 2, 4), ()),  # 2 heads on 4 devices
        ("blocks_3/attention/out/kernel", (4, 4, 16), ("model",)),
        ("blocks_3/mlp/down/kernel", (32, 16), ("model",)),
        ("blocks_3/mlp/down/bias", (16,), ()),
        ("opt_state/1/0/mu/blocks_3/mlp/up/kernel", (16, 32), (None, "model")),
        ("lora/blocks_0/attention/query/b", (2, 16), (None, "model")),
        ("lora/blocks_0/attention/query/a", (16, 2), ()),
        ("head/kernel", (16, 33), ()),
        ("step", (), ()),
    ],
)
def test_rules_by_name(path, shape, want):
    assert sharding.spec(path, shape, 4) == PartitionSpec(*want)


def test_8b_models_are_split_but_for_norms():
    for preset in (models.llama, models.qwen2, models.llada):
        shapes = pretrained.param_shapes(models.Transformer(preset(scan_layers=True)))
        named = jax.tree_util.tree_leaves_with_path(shapes)
        whole = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, leaf in named
            if sharding.spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, 4)
            == PartitionSpec()
        ]
        assert all("norm" in path for path in whole), whole


def test_a_mesh_needs_its_devices():
    with pytest.raises(ValueError, match="does not fit"):
        sharding.make_mesh(data=64, model=64)


@pytest.mark.slow
def test_the_loss_is_the_same_on_2_by_4_devices():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, HERE / "sharding_main.py"],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "same loss" in done.stdout
