"""Is the directional gap of World A the arrow of a causal model, or the bits that a map stores?

Question  arXiv 2511.19997: GPT-2 learns random K-to-1 maps between strings, A -> B and B -> A,
          from scratch, from pretrained weights and by LoRA. Its excess loss is reported as
          published (mean loss per token − ln K), and in nats per string above the exact
          floor, in training and after it, beside the bits that each direction must store.
          `--control=exchangeable` gives both directions one law; `--attention=bidirectional`
          takes the causal mask away.
Command   python -m experiments.world_a --preset=quick|paper
Cost      quick: a GPT-2 of 2 layers, characters, 1000 pairs, from scratch: 12 runs, on
          2 shared CPU cores 34 to 62 seconds each but for one of 15 minutes. paper: 40000 pairs,
          GPT-2 small, all regimes: not run whole; one from scratch took 145 s on an H200.
Expected  paper's convention, scratch: gap 1.16 nats at K = 5, 0.90 at K = 8, 0 at K = 1. In nats
          per string the gap goes to 0 as training converges; see docs/world_a.md.
"""

import pathlib
from collections.abc import Sequence

from dirasym import runs
from dirasym.models.presets import GPT2_SIZES
from dirasym.usage import blamed
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.reports import world_a as world_a_report
from experiments.systems import world_a

SMALL = dict(modes=["scratch"], Ks=[1, 5], tokenizer="characters", pretrain_lr=3e-3)
PRESETS = {
    "smoke": SMALL
    | dict(n_pairs=200, epochs=2, eval_every=1, lr=3e-3, lora_ranks=[4])
    | dict(layers=1, width=32, heads=2, pretrain_steps=20),
    "quick": SMALL
    # At 3e-3 some seeds never leave the plateau of a uniform guess; at this width a dropout of
    # 0.1 keeps 4 nats a string from being learned.
    | dict(n_pairs=1000, epochs=60, eval_every=10, lr=1.5e-3, dropout=0.0, seeds=[0, 1, 2])
    | dict(layers=2, width=96, heads=4, pretrain_steps=300, lora_ranks=[4, 32]),
    "paper": {},
}


def plan(config: world_a.Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a regime, K and direction."""
    with blamed():
        world_a_report.read_mlp_results(config.mlp_results)
    setting = world_a.Setting(config, workdir)
    tasks = [world_a.Task(setting, regime) for regime in world_a.regimes(config)]
    cases = [(task, K, way) for task in tasks for K in config.Ks for way in config.directions]
    return [task.run(K, way, number) for number, (task, K, way) in enumerate(cases, 1)]


def report(workdir: WorkDir, config: world_a.Config, all_runs: Sequence[runs.Run]) -> None:
    """Tables and figures of all regimes, and of the MLP's gaps if asked for."""
    line = workdir.results()[0]
    notes = (
        f"GPT-2 with {line['layers']} layers of width {line['width']} ({config.attention} "
        f"attention), tokenizer {config.tokenizer}, {config.n_pairs} pairs, {config.epochs} "
        f"epochs, rows of {line['max_len']} tokens, control: {config.control}."
    )
    if config.modes != ("scratch",) and config.model_id in GPT2_SIZES:
        notes += (
            " Pretrained regimes start from a model pretrained here, on the texts of Python's "
            f"pydoc_data.topics ({config.pretrain_steps} steps), not from OpenAI's weights."
        )
    others = world_a_report.read_mlp_results(config.mlp_results)
    world_a_report.write(workdir, config, all_runs, notes, others)


if __name__ == "__main__":
    flags.main("world_a", world_a.Config, PRESETS, report, plan)
