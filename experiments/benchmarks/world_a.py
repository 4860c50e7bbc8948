"""How fast are World A's train steps against the original's loops in PyTorch, on one machine?

Question  GPT-2 on the same batches of real World A text, forward, backward and AdamW: ours
          against `transformers`, padded to 64 tokens as the original does, and cut to the
          real length. And the MLP's epochs against the same loop in PyTorch with a
          DataLoader. Alternating in one process.
Command   pip install torch==2.13.0 transformers && python -m experiments.benchmarks.world_a
Cost      about 5 minutes on 2 CPU cores; GPT-2 small (--layers=12 --width=768 --heads=12) more.
Expected  at least 2.5 times the padded loop, 1.0 times the unpadded one, 2 times the MLP's.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from dirasym import report, runs
from dirasym.compile import compile_scan
from experiments import flags, world_a_mlp
from experiments.benchmarks import common
from experiments.flags import flag
from experiments.systems import world_a

PRESETS = {
    "smoke": dict(layers=1, width=32, heads=2, steps=1, mlp_pairs=512, rounds=1),
    "quick": {},
    "paper": dict(layers=12, width=768, heads=12, steps=2),
}
PADDED_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    layers: int = flag(4, "GPT-2's layers.", 1, 1000)
    width: int = flag(256, "GPT-2's width.", 1, 10**5)
    heads: int = flag(4, "GPT-2's heads.", 1, 10**5)
    tokenizer: str = flag("gpt2", "As in world_a.", kind="path")
    batch_size: int = flag(64, "GPT-2's pairs a step.", 1, 10**6)
    steps: int = flag(5, "Steps timed in a round.", 1)
    mlp_pairs: int = flag(40_000, "Pairs of the MLP's epoch; a multiple of 5.", 5, 10**6)
    rounds: int = flag(5, "Alternations; the fastest of each contender counts.", 1)

    @property
    def gpt2(self) -> world_a.Config:
        """As many pairs as the steps read."""
        return world_a.Config(
            modes=("scratch",),
            Ks=(5,),
            n_pairs=5 * -(-self.steps * self.batch_size // 5),
            batch_size=self.batch_size,
            tokenizer=self.tokenizer,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
        )

    @property
    def mlp(self) -> world_a_mlp.Config:
        """The paper's."""
        return world_a_mlp.Config(
            Ks=(5,), n_pairs=self.mlp_pairs - self.mlp_pairs % 5, directions=("inverse",)
        )


def plan(config: Config, workdir: pathlib.Path) -> list:
    """Nothing to train; a model that cannot be made is refused."""
    gpt2_task(config.gpt2)
    common.need("torch", "transformers")
    return []


def run(workdir, config: Config, all_runs) -> None:
    """Times both models and prints the table."""
    del all_runs
    cases = {
        f"GPT-2, {config.layers} layers × {config.width}": (
            config.steps * config.batch_size,
            gpt2_steps(config),
        ),
        "MLP, an epoch": (config.mlp.n_pairs, mlp_epochs(config.mlp)),
    }
    rows = []
    for case, (count, contenders) in cases.items():
        seconds = common.alternate(contenders, config.rounds)
        for name, best in seconds.items():
            ratio = best / seconds["JAX"]
            rows.append([case, name, f"{count / best:.0f}", f"{best:.3f}", f"{ratio:.2f}"])
    header = "case,contender,sequences a second,seconds,times as long as JAX"
    table = report.table(header.split(","), rows)
    report.write(workdir.path, f"# Benchmark\n\n{table}", {}, printed=table)


def gpt2_task(config: world_a.Config) -> world_a.Task:
    """GPT-2 from scratch. Raises ValueError for a model that cannot be made."""
    (regime,) = world_a.regimes(config)
    return world_a.Task(world_a.Setting(config, pathlib.Path()), regime)


def our_steps(run: runs.Run, num_steps: int) -> common.Contender:
    """The experiment's own steps, in one dispatch."""
    how = dict(num_steps=num_steps, batch_size=run.batch_size, whole_epochs=run.whole_epochs)
    steps, state, data = compile_scan(run.step, **how, donate=False), run.init(0), run.data(0)
    return lambda: jax.block_until_ready(steps(state, data))


def gpt2_steps(config: Config) -> Mapping[str, common.Contender]:
    """Some steps from scratch at K = 5, inverse."""
    import torch

    task = gpt2_task(config.gpt2)
    run = task.run(5, "inverse", 1)
    data = run.data(0)
    torch.manual_seed(0)
    length = task.setting.length

    def theirs(to_length):
        fill = ((0, 0), (0, to_length - length))
        tokens = np.pad(data["tokens_BL"], fill, constant_values=task.setting.tokenizer.eos_id)
        valid, scored = (np.pad(data[name], fill) for name in ("valid_BL", "scored_BL"))
        rows = torch.utils.data.TensorDataset(
            torch.from_numpy(tokens).long(),
            torch.from_numpy(valid).long(),
            torch.from_numpy(np.where(scored, tokens, -100)).long(),
        )
        loader = torch.utils.data.DataLoader(rows, config.batch_size, shuffle=True)
        return _torch_gpt2(task.model.config, loader, config.steps)

    return {
        "JAX": our_steps(run, config.steps),
        "transformers, padded to 64": theirs(PADDED_LENGTH),
        "transformers, unpadded": theirs(length),
    }


def _torch_gpt2(shape, loader, num_steps: int) -> common.Contender:
    """The original's loop."""
    import torch
    import transformers

    device = common.torch_device()
    size = dict(n_layer=shape.num_layers, n_head=shape.num_heads, n_embd=shape.width)
    network = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**size, vocab_size=shape.vocab_size, use_cache=False)
    ).to(device)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, weight_decay=0.01)

    def steps():
        for batch in itertools.islice(loader, num_steps):
            tokens, valid, labels = (x.to(device) for x in batch)
            optimizer.zero_grad()
            network(input_ids=tokens, attention_mask=valid, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()

    return steps


def mlp_epochs(config: world_a_mlp.Config) -> Mapping[str, common.Contender]:
    """One epoch of the paper's MLP at K = 5, inverse."""
    import torch
    from torch import nn

    run = world_a_mlp.plan(config, pathlib.Path())[0]
    data = run.data(0)
    torch.manual_seed(0)
    device = common.torch_device()
    vocab, size = world_a_mlp.VOCAB, 8 * config.d_emb
    layers = [nn.Embedding(vocab, config.d_emb), nn.Flatten()]
    for _ in range(config.n_layers):
        layers += [nn.Linear(size, config.d_hidden), nn.ReLU(), nn.LayerNorm(config.d_hidden)]
        size = config.d_hidden
    network = nn.Sequential(*layers, nn.Linear(size, 8 * vocab)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), config.lr, weight_decay=0.0)
    tokens = torch.from_numpy(data["tokens_BL"]).long()
    rows = torch.utils.data.TensorDataset(tokens[:, :8], tokens[:, 8:])
    loader = torch.utils.data.DataLoader(rows, config.batch_size, shuffle=True)

    def epoch():
        for batch in loader:
            source, target = (x.to(device) for x in batch)
            optimizer.zero_grad()
            logits = network(source).view(-1, vocab)
            nn.functional.cross_entropy(logits, target.flatten()).backward()
            optimizer.step()

    return {
        "JAX": our_steps(run, run.num_steps // config.epochs),
        "PyTorch, DataLoader": epoch,
    }


if __name__ == "__main__":
    flags.main("benchmark_world_a", Config, PRESETS, run, plan)
