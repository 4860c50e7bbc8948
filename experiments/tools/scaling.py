"""What a LoRA step of the 8B models costs on 1, 8 and 64 devices; nothing is allocated.

Question  Parameters, bytes per device and FLOPs per step at bfloat16 weights and rank-32 adapters.
Command   python -m experiments.tools.scaling --output=docs/scaling.md
Cost      18 compilations: 3 minutes of CPU time.
Expected  the table of docs/scaling.md.

Parameters and bytes come from `jax.eval_shape` and the shardings, FLOPs from the cost
analysis of the compiled step of one and of two layers: a step's FLOPs are linear in the
number of layers, so the two give all of them. (The analysis counts the body of a loop once,
so scanned layers cannot be read off directly.)
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp

from dirasym import files, models, objectives, report, sharding, training
from dirasym.models import lora
from dirasym.types import Batch
from dirasym.usage import UsageError
from experiments.flags import flag
from experiments.tools import command

PRESETS = {"LLaMA-3.1-8B": models.llama, "Qwen2.5-7B": models.qwen2, "LLaDA-8B": models.llada}
MESHES = {1: (1, 1), 8: (1, 8), 64: (8, 8)}  # devices: (data, model)
BATCH_PER_DATA, LENGTH, RANK = 8, 128, 32
TARGETS = r"attention/(query|key|value|out)$"


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    output: str = flag("docs/scaling.md", "The page to write.", kind="path")
    devices: int = flag(0, "(Set by this script) devices to compile for.", 0)

    def __post_init__(self):
        if self.devices not in (0, *MESHES):
            raise ValueError(f"--devices={self.devices} is not among {list(MESHES)}")


def abstract_state(config, mesh):
    """Shapes, dtypes and shardings of a training state: base in bfloat16, adapters and Adam's
    moments in float32.
    """
    model = models.Transformer(config)
    adapted = models.LoRA(model, models.LoRAConfig(RANK, 64.0, TARGETS))

    def make():
        params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        return training.create_state(
            lora.make_apply_fn(adapted),
            {"lora": lora.init_adapters(adapted, params, jax.random.key(1))},
            training.make_optimizer(5e-5, weight_decay=0.1),
            jax.random.key(2),
            frozen={"params": params},
        )

    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        sharding.shardings(mesh, shapes),
    )


def step_flops(config, mesh) -> float:
    """FLOPs of one step on one device, as the compiler counts them."""
    rows = BATCH_PER_DATA * mesh.shape["data"]
    objective = objectives.next_token
    if not config.causal:
        objective = functools.partial(objectives.masked_diffusion, mask_id=126_336, weighting="t")
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = Batch(
        tokens_BL=jax.ShapeDtypeStruct((rows, LENGTH), jnp.int32, sharding=split),
        index_B=jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=split),
        global_size=rows,
    )
    step = jax.jit(functools.partial(training.train_step, objective=objective))
    costs = step.lower(abstract_state(config, mesh), batch).compile().cost_analysis()
    return (costs[0] if isinstance(costs, list) else costs)["flops"]


def device_bytes(tree) -> int:
    """What one device holds of the arrays of a tree."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def measure(devices: int) -> list[dict]:
    """One line a model, in a process with that many devices."""
    mesh = sharding.make_mesh(*MESHES[devices])
    lines = []
    for name, preset in PRESETS.items():
        bf16 = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        state = abstract_state(preset(scan_layers=True, **bf16), mesh)

        one, two = (step_flops(preset(num_layers=n, remat=True, **bf16), mesh) for n in (1, 2))
        layers = preset().num_layers
        lines.append(
            {
                "model": name,
                "devices": devices,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.frozen)),
                "trainable": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
                "base_bytes": device_bytes(state.frozen),
                "trained_bytes": device_bytes(state.params) + device_bytes(state.opt_state),
                "flops": one + (layers - 1) * (two - one),
            }
        )
    return lines


def write(config: Config) -> None:
    """Measures in processes of their own, and writes the page."""
    if config.devices:
        print(json.dumps(measure(config.devices)))
        return
    output = pathlib.Path(config.output)
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise UsageError(f"--output={output} cannot be written")
    lines = []
    for devices in MESHES:
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, "-m", "experiments.tools.scaling", f"--devices={devices}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        lines += json.loads(done.stdout)
    lines.sort(key=lambda line: (list(PRESETS).index(line["model"]), line["devices"]))
    table = report.table(
        ["model", "parameters", "trainable (LoRA r 32)", "devices (data × model)",
         "base, GB a device", "adapters and Adam, GB a device", "TFLOP a step and device"],
        [
            [
                line["model"],
                f"{line['parameters']:,}",
                f"{line['trainable']:,}",
                f"{line['devices']} ({MESHES[line['devices']][0]} × {MESHES[line['devices']][1]})",
                f"{line['base_bytes'] / 1e9:.2f}",
                f"{line['trained_bytes'] / 1e9:.3f}",
                f"{line['flops'] / 1e12:.2f}",
            ]
            for line in lines
        ],
    )  # fmt: skip
    above = (
        "Written by `python -m experiments.tools.scaling`; see there how each number is made. "
        f"A LoRA step (rank {RANK} on the attention projections) of {BATCH_PER_DATA} sequences of "
        f"{LENGTH} tokens for each place on the data axis; base weights bfloat16 and frozen, "
        "adapters and Adam's moments float32, layers rematerialised. Activations come on top. "
        "A GB has 10⁹ bytes."
    )
    below = (
        "Parameters are split over the axis `model` by name (`dirasym/sharding.py`) and repeated "
        "along `data`; an axis that `model` does not divide stays whole, as Qwen's 28 heads do on "
        "8. Parameters and bytes are of the whole model (`jax.eval_shape`). FLOPs are "
        "extrapolated linearly in the number of layers from the compiled steps of one and of two "
        "layers at full width, f(n) = f(1) + (n - 1)(f(2) - f(1)): the compiler's cost analysis "
        "counts a loop's body once, so scanned layers cannot be read off. It is the program of one "
        "device that is counted, after partitioning, as compiled for CPU."
    )
    title = "# Scale: the 8B models on 1, 8 and 64 devices"
    parts = [title, textwrap.fill(above, 100), table, textwrap.fill(below, 100)]
    text = "\n\n".join(parts) + "\n"
    files.write_atomically(output, text)
    print(table)


if __name__ == "__main__":
    command.main(Config, write)
