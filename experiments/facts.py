"""Do language models that learn "P's child is C" answer "C's parent is"?

Question  Table 1 and Figures 7, 9 and 14 of arXiv 2602.02133 (§3, §6, App. C, F): a causal and
          a masked-diffusion model of one architecture, trained on one direction of facts,
          asked in both.
Command   python -m experiments.facts --preset=smoke|quick
          python -m experiments.facts --preset=paper --model_id=DIR [--data=p2c,c2p,...]
Cost      smoke: 2 layers, 12 invented pairs; under 60 s on 2 CPU cores.
          quick: from scratch on 60 invented pairs seen one way and 60 seen both ways, 3 seeds;
          about 3 minutes on 2 CPU cores.
          paper: LoRA on the weights in DIR; an accelerator.
Expected  forward > 90 % for both; reverse near chance for the causal model, clearly above it
          for the masked one.
"""

import functools

import jax
import numpy as np

from dirasym import sharding
from dirasym.compile import compile_scan
from experiments import facts_report, flags, harness
from experiments.facts_task import Config, Task

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
    "paper": dict(lora_rank=32, dtype="bfloat16", max_new=32)
    | dict(gradient_examples=32, attention_examples=64),
}
# Table 1: accuracy in percent, mean of 3 seeds: LLaDA, LLaMA and Qwen (forward, reverse).
PAPER_TABLE_1 = {
    "p2c": ((76.7, 48.3), (89.9, 15.9), (89.9, 0.5)),
    "c2p": ((87.7, 43.7), (95.9, 6.9), (89.0, 1.4)),
    "p2d": ((72.7, 99.5), (72.7, 3.5), (70.7, 2.2)),
    "d2p": ((99.7, 41.3), (83.0, 1.8), (80.0, 1.5)),
    "trex": ((92.3, 81.5), (87.3, 2.8), (89.8, 2.3)),
}
# Tables 4 to 6, the same by seed.
PAPER_SEEDS = {
    "p2c": {
        1: ((84, 45), (88, 19), (90, 0)),
        42: ((74, 41), (91, 13), (84, 0)),
        1234: ((72, 59), (90.6, 15.6), (95.8, 1.6)),
    },
    "c2p": {
        1: ((86, 48), (91.0, 6.0), (91.0, 1.0)),
        42: ((92, 38), (100.0, 7.1), (88.1, 2.3)),
        1234: ((85, 45), (96.8, 7.6), (88.0, 1.0)),
    },
    "p2d": {
        1: ((72.5, 100.0), (73.0, 2.0), (73.0, 0.5)),
        42: ((69.5, 99.5), (74.0, 2.5), (69.5, 4.0)),
        1234: ((76.0, 99.0), (71.0, 6.0), (69.5, 2.0)),
    },
    "d2p": {
        1: ((100, 47.5), (78.0, 1.5), (80.5, 1.0)),
        42: ((99, 40.5), (90.5, 0.5), (86.0, 2.5)),
        1234: ((100, 36.0), (80.5, 3.5), (73.5, 1.0)),
    },
    "trex": {
        1: ((91.5, 80.0), (91.0, 2.5), (99.5, 2.5)),
        42: ((92.5, 87.0), (92.5, 2.5), (88.5, 2.5)),
        1234: ((93.0, 77.5), (78.5, 3.5), (81.5, 2.0)),
    },
}


def run(experiment: harness.Experiment, config: Config) -> None:
    """Trains what is missing, then reports."""
    shardings = share_weights(experiment)
    for data in config.data:
        for model in config.models:
            task = None
            # Rules of sharding know a weight's own axes, and none of seeds.
            apart = [[seed] for seed in config.seeds]
            for seeds in apart if shardings else harness.seed_groups(config.seeds):
                if not experiment.is_done(data=data, model=model, seed=seeds[-1]):
                    task = task or Task(data, model, config, shardings)
                    train_and_record(experiment, task, data, model, seeds)
    facts_report.write(experiment, config, PAPER_TABLE_1, PAPER_SEEDS)


def share_weights(experiment: harness.Experiment):
    """Where weights lie, if devices share them."""
    mesh = experiment.mesh
    if mesh is None or mesh.shape[sharding.MODEL] == 1:
        return None
    return functools.partial(sharding.shardings, mesh)


def train_and_record(
    experiment: harness.Experiment, task: Task, data: str, model: str, seeds: list[int]
) -> None:
    """One group of seeds, from its checkpoint to its result lines."""
    c, together = task.config, len(seeds) > 1
    steps_per_call = c.eval_epochs * task.steps_per_epoch
    steps = compile_scan(
        task.train_step(),
        num_steps=steps_per_call,
        batch_size=c.batch_size,
        backend=flags.FLAGS.backend,
        mesh=experiment.mesh,
        shardings=task.shardings,
        over_seeds=together,
    )

    def apart(state):  # one by one: together they are as large as the state itself
        return (
            harness.take_seed(state, place) if together else state for place in range(len(seeds))
        )

    def evaluate(state):
        values = [task.evaluate(one) for one in apart(state)]
        return jax.tree.map(lambda *x: np.concatenate(x), *values)

    state, history = experiment.train(
        f"{data}-{model}-seed{'-'.join(map(str, seeds))}",
        harness.stack_seeds([task.state(seed) for seed in seeds], together),
        steps,
        task.arrays,
        num_steps=c.epochs * task.steps_per_epoch,
        steps_per_call=steps_per_call,
        evaluate=evaluate,
    )
    lines = []
    for place, (seed, one) in enumerate(zip(seeds, apart(state), strict=True)):
        name = f"{data}-{model}-seed{seed}"
        curves = {key: x[:, place : place + 1] for key, x in history.items() if x.ndim > 1}
        experiment.save_curves(name, curves | {"eval_step": history["eval_step"]})
        task.save_adapters(one, experiment.workdir / "adapters" / name)
        if model == "mdm" and c.attention_examples:
            experiment.save_curves(f"{name}-attention", task.attention_correlation(one))
        lines.append({"data": data, "model": model, "seed": seed} | last_and_best(curves))
        lines[-1]["run_wall_time_sec"] = float(history["wall_time_sec"])
    experiment.record(lines, keys=("data", "model", "seed"))


def last_and_best(curves: dict[str, np.ndarray]) -> dict[str, float]:
    """What a result line says of one seed's curves [time, 1]."""
    line = {}
    for key in ("forward_percent", "reverse_percent"):
        line[key] = float(curves[key][-1, 0])
        line[f"best_{key}"] = float(curves[key].max())
    for direction in ("forward", "reverse"):
        for measure in ("begun_percent", "copied_percent", "choice_percent", "p", "rank"):
            key = f"{direction}_{measure}"
            last = float(curves[key][-1, 0])
            line[key] = None if np.isnan(last) else last
    return line | {"final_loss": float(curves["loss"][-1, 0])}


if __name__ == "__main__":
    harness.main("facts", Config, PRESETS, run)
