"""How fast are our train steps against the same model in plain PyTorch, on the same cores?

Question  The MDM's train step of the toy task (batch 256, width 256, one layer) in JAX, plain
          and with the two exact savings of `Transformer.scored_fraction`, against PyTorch,
          eager and compiled, alternating in one process.
Command   pip install torch==2.13.0 && python -m experiments.benchmark
Cost      about 3 minutes on 2 CPU cores.
Expected  at least 2.5 times the faster PyTorch.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from dirasym import checkpoints, report, training
from dirasym.data import case_pairs
from experiments import harness, toy_task
from experiments.harness import flag

PRESETS = {"smoke": dict(lengths=[4], rounds=1), "quick": {}, "paper": {}}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    lengths: tuple[int, ...] = flag((10, 40), "Sequence lengths of the toy step.")
    batch_size: int = flag(256, "Sequences a step.", 1)
    rounds: int = flag(6, "Alternations; the fastest of each contender counts.", 1)
    steps: int = flag(10, "Steps timed in a round.", 1)


def run(experiment: harness.Experiment, config: Config) -> None:
    """Times every case and prints the table."""
    rows = []
    for length in config.lengths:
        contenders = {
            "JAX plain": _jax_steps(length, config, skip=False),
            "JAX": _jax_steps(length, config, skip=True),
            **_torch_steps(length, config),
        }
        seconds = alternate(contenders, config.rounds)
        torch_best = min(s for name, s in seconds.items() if "PyTorch" in name)
        for name, best in seconds.items():
            rows.append(
                [
                    f"MDM train step, L = {length}",
                    name,
                    f"{1e3 * best / config.steps:.1f}",
                    f"{torch_best / best:.2f}",
                ]
            )
    table = report.table(["case", "contender", "ms a step", "times the faster PyTorch"], rows)
    checkpoints.write_atomically(experiment.workdir / "report.md", f"# Benchmark\n\n{table}\n")
    print(table)


def alternate(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Fastest wall time in seconds of each contender, after one untimed call each."""
    for call in contenders.values():
        call()
    seconds = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _jax_steps(length: int, config: Config, skip: bool) -> Callable[[], object]:
    """The experiment's own step, as it runs it: many in one dispatch."""
    toy = toy_task.Config(lengths=(length,), batch_size=config.batch_size)
    task = toy_task.Task("mdm", length, toy, together=False)
    state = task.state(seed=0)
    if not skip:
        state = state.replace(apply_fn=task.apply_fn(None))
    steps = training.compile_scan(
        task.step(), num_steps=config.steps, batch_size=config.batch_size, donate=False
    )
    data = {"tokens_BL": case_pairs.training_set(length)}
    return lambda: jax.block_until_ready(steps(state, data))


def _torch_steps(length: int, config: Config) -> dict[str, Callable[[], object]]:
    try:
        import torch
        from torch import nn
        from torch.nn import functional as F
    except ImportError:
        raise harness.UsageError("the benchmark needs PyTorch: pip install torch==2.13.0") from None
    torch.manual_seed(0)
    width, vocab, mask, rate = 256, case_pairs.VOCAB_SIZE, case_pairs.MASK, 0.02

    class Encoder(nn.Module):
        """RADD's one-layer encoder."""

        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(vocab, width)
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.out = nn.Linear(width, width, bias=False)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
            self.head = nn.Linear(width, vocab)
            angles = 10_000.0 ** (-torch.arange(0, width, 2) / width)
            turn = torch.outer(torch.arange(length), angles).repeat(1, 2)
            self.register_buffer("cos", turn.cos())
            self.register_buffer("sin", turn.sin())

        def rotate(self, x):
            first, second = x.chunk(2, -1)
            return x * self.cos + torch.cat([-second, first], -1) * self.sin

        def forward(self, tokens):
            x = self.embed(tokens)
            q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
            q, k, v = self.rotate(q)[:, None], self.rotate(k)[:, None], v[:, None]
            attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
            x = x + F.dropout(self.out(attended), rate, self.training)
            hidden = F.gelu(self.up(self.norms[1](x)), approximate="tanh")
            x = x + F.dropout(self.down(hidden), rate, self.training)
            return self.head(self.norms[2](x))

    def loss_fn(encoder, tokens):
        size = len(tokens)
        level = ((torch.arange(size) + torch.rand(size)) / size)[:, None]
        masked = torch.rand(tokens.shape) < level
        logits = encoder(torch.where(masked, mask, tokens))[..., :mask]
        nll = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        return (nll.view(tokens.shape) * masked / level).sum() / size

    data = torch.from_numpy(case_pairs.training_set(length)).long()

    def contender(loss_fn):
        encoder = Encoder()
        average = [parameter.detach().clone() for parameter in encoder.parameters()]
        optimizer = torch.optim.AdamW(encoder.parameters(), 3e-4, weight_decay=0.0)
        rng = np.random.default_rng(0)

        def steps():
            for _ in range(config.steps):
                optimizer.zero_grad()
                tokens = data[torch.from_numpy(rng.integers(0, len(data), config.batch_size))]
                loss_fn(encoder, tokens).backward()
                nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(average, list(encoder.parameters()), 1e-3)

        return steps

    return {
        "PyTorch eager": contender(loss_fn),
        "PyTorch compiled": contender(functools.partial(torch.compile(loss_fn))),
    }


if __name__ == "__main__":
    harness.main("benchmark", Config, PRESETS, run)
