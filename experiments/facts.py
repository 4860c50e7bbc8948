r"""Do language models that learn "P's child is C" answer "C's parent is"?

Question  Table 1 and Figures 7, 9 and 14 of arXiv 2602.02133 (§3, §6, App. C, F): a causal and
          a masked-diffusion model of one architecture, trained on one direction of facts,
          asked in both.
Command   python -m experiments.facts --preset=smoke|quick
          python -m experiments.facts --preset=paper --model_id=DIR [--data=p2c,c2p,...]
          python -m experiments.facts --model_id=DIR --data=pairs --pairs=capitals.csv \
              --columns=country,city --forward="The capital of {a} is {b}" \
              --reverse="{b} is the capital of {a}"
Cost      smoke: 2 layers, 12 invented pairs; under 60 s on 2 CPU cores.
          quick: from scratch on 60 invented pairs seen one way and 60 seen both ways, 3 seeds;
          about 3 minutes on 2 CPU cores.
          paper: LoRA on the weights in DIR; an accelerator. Not timed at 8 billion parameters;
          SmolLM2-135M, 300 epochs, 3 seeds in one program: 3 minutes a model on an H100.
Expected  forward > 90 % for both; reverse near chance for the causal model, clearly above it
          for the masked one.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dirasym import devices, runs, sharding
from dirasym.usage import blamed
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.reports import facts as facts_report
from experiments.systems import facts

SCRATCH = dict(
    data=["p2c"], both_ways=60, num_pairs=60, name_words=1, seeds=[1], batch_size=60,
    learning_rate=1e-3, weight_decay=0.1, warmup_steps=50,
)  # fmt: skip
PRESETS = {
    "smoke": SCRATCH
    | dict(both_ways=12, num_pairs=12, width=32, epochs=20, eval_epochs=10, batch_size=12)
    | dict(gradient_examples=2, attention_examples=4, attention_distance=3),
    "quick": SCRATCH
    | dict(seeds=[1, 42, 1234], epochs=300, eval_epochs=50)
    | dict(gradient_examples=8, attention_examples=30),
    "paper": dict(lora_rank=32, dtype="bfloat16", max_new=32, learning_rate=-1.0)
    | dict(gradient_examples=32, attention_examples=64),
}
# Tables 4 to 6: percent forward, reverse of LLaDA, of LLaMA, of Qwen, for seeds 1, 42 and 1234.
# Table 1 has their means.
PAPER = {
    "p2c": ((84, 45, 88, 19, 90, 0), (74, 41, 91, 13, 84, 0), (72, 59, 90.6, 15.6, 95.8, 1.6)),
    "c2p": ((86, 48, 91, 6, 91, 1), (92, 38, 100, 7.1, 88.1, 2.3), (85, 45, 96.8, 7.6, 88, 1)),
    "p2d": ((72.5, 100, 73, 2, 73, 0.5), (69.5, 99.5, 74, 2.5, 69.5, 4), (76, 99, 71, 6, 69.5, 2)),
    "d2p": ((100, 47.5, 78, 1.5, 80.5, 1), (99, 40.5, 90.5, 0.5, 86, 2.5),
            (100, 36, 80.5, 3.5, 73.5, 1)),
    "trex": ((91.5, 80, 91, 2.5, 99.5, 2.5), (92.5, 87, 92.5, 2.5, 88.5, 2.5),
             (93, 77.5, 78.5, 3.5, 81.5, 2)),
}  # fmt: skip


def plan(config: facts.Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a training direction and model; weights are read once for all."""
    del workdir
    c, pretrained = config, None
    if c.model_id:
        names = ("num_devices", "model_devices", "backend")
        mesh = devices.mesh(*(flags.FLAGS[name].value for name in names))
        shared = mesh is not None and mesh.shape[sharding.MODEL] > 1
        pretrained = facts.open_pretrained(
            c.model_id,
            c.mask_id,
            shardings=functools.partial(sharding.shardings, mesh) if shared else None,
            param_dtype=jnp.dtype(c.dtype) if c.lora_rank else jnp.float32,
            dtype=jnp.dtype(c.dtype),
            scan_layers=True,
        )
    with blamed():
        tasks = [facts.Task(data, kind, c, pretrained) for data in c.data for kind in c.models]
    return [task.run(summarize) for task in tasks]


def summarize(history: runs.History) -> Mapping[str, Any]:
    """The result line: accuracy at the end and at its best, the rest at the end."""
    line: dict[str, Any] = {}
    for key in ("forward_percent", "reverse_percent"):
        line[key] = float(history[key][-1])
        line[f"best_{key}"] = float(history[key].max())
    for direction in ("forward", "reverse"):
        for measure in ("begun_percent", "copied_percent", "choice_percent", "p", "rank"):
            last = float(history[f"{direction}_{measure}"][-1])
            line[f"{direction}_{measure}"] = None if np.isnan(last) else last
        line[f"{direction}_questions"] = int(history[f"{direction}_questions"][-1])
    return line | {"final_loss": float(history["loss"][-1])}


def report(workdir: WorkDir, config: facts.Config, all_runs: Sequence[runs.Run]) -> None:
    """Table 1 beside the paper's, by seed, what else was answered, and the figures."""
    facts_report.write(workdir, config, all_runs, PAPER)


if __name__ == "__main__":
    flags.main("facts", facts.Config, PRESETS, report, plan)
