"""How fast are our train steps against the same model in plain PyTorch, on the same machine?

Question  The MDM's train step of the toy task (batch 256, width 256, one layer) in JAX, plain
          and with two exact savings (`rows`, `models.token_table`), against PyTorch,
          eager and compiled, alternating in one process. And an epoch of `relations` (GPT-2 of
          2 layers × 128, 340 sentences) against `transformers`' GPT-2.
Command   pip install torch==2.13.0 transformers && python -m experiments.benchmark
Cost      about 3 minutes on 2 CPU cores, as much on a GPU, where both sides multiply in TF32.
Expected  at least 2.5 times the faster PyTorch; 3 times in `relations`.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Literal

import jax

from dirasym import report
from dirasym.compile import compile_scan
from dirasym.data import case_pairs
from experiments import flags, harness, relations_task
from experiments.flags import flag
from experiments.systems import toy

PRESETS = {"smoke": dict(lengths=[4], rounds=1), "quick": {}, "paper": {}}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    lengths: tuple[int, ...] = flag((10, 40), "Sequence lengths of the toy step.")
    batch_size: int = flag(256, "Sequences a step.", 1)
    rounds: int = flag(6, "Alternations; the fastest of each contender counts.", 1)
    steps: int = flag(10, "Steps, and epochs of `relations`, timed in a round.", 1)
    cases: tuple[Literal["toy", "relations"], ...] = flag(("toy", "relations"), "What to time.")


def run(experiment: harness.Experiment, config: Config) -> None:
    """Times every case and prints the table."""
    cases = {}
    if "toy" in config.cases:
        for length in config.lengths:
            cases[f"MDM train step, L = {length}"] = {
                "JAX plain": _jax_steps(length, config, skip=False),
                "JAX": _jax_steps(length, config, skip=True),
                **_torch_steps(length, config),
            }
    if "relations" in config.cases:
        cases["epoch of relations, 2 layers × 128"] = relations_epochs(config.steps)
    rows = []
    for case, contenders in cases.items():
        seconds = alternate(contenders, config.rounds)
        torch_best = min(s for name, s in seconds.items() if "PyTorch" in name)
        for name, best in seconds.items():
            ms = f"{1e3 * best / config.steps:.1f}"
            rows.append([case, name, ms, f"{torch_best / best:.2f}"])
    table = report.table(["case", "contender", "ms", "times the faster PyTorch"], rows)
    experiment.write_report(f"# Benchmark\n\n{table}", [], printed=table)


def torch_device():
    """PyTorch's counterpart of JAX's default device; sets JAX's default precision of products."""
    import torch

    if jax.default_backend() != "gpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise flags.UsageError("JAX has a GPU here and this build of PyTorch has none")
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def alternate(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Fastest wall time in seconds of each contender, after one untimed call each."""

    def finish(call):
        call()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.synchronize()

    for call in contenders.values():
        finish(call)
    seconds = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            finish(call)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _jax_steps(length: int, config: Config, skip: bool) -> Callable[[], object]:
    """The experiment's own step, as it runs it: many in one dispatch."""
    task = toy.Task("mdm", length, toy.Config(lengths=(length,), batch_size=config.batch_size))
    state, step = task.init(0), task.step()
    if not skip:
        objective = functools.partial(step.keywords["objective"], capacity=None)
        step = functools.partial(step, objective=objective)
    steps = compile_scan(step, num_steps=config.steps, batch_size=config.batch_size, donate=False)
    data = {"tokens_BL": case_pairs.training_set(length)}
    return lambda: jax.block_until_ready(steps(state, data))


def _torch_steps(length: int, config: Config) -> dict[str, Callable[[], object]]:
    try:
        import torch
        from torch import nn
        from torch.nn import functional as F
    except ImportError:
        raise flags.UsageError("the benchmark needs PyTorch: pip install torch==2.13.0") from None
    torch.manual_seed(0)
    device = torch_device()
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
        draw = functools.partial(torch.rand, device=device)
        level = ((torch.arange(size, device=device) + draw(size)) / size)[:, None]
        masked = draw(tokens.shape) < level
        logits = encoder(torch.where(masked, mask, tokens))[..., :mask]
        nll = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        return (nll.view(tokens.shape) * masked / level).sum() / size

    data = torch.from_numpy(case_pairs.training_set(length)).long().to(device)

    def contender(loss_fn):
        encoder = Encoder().to(device)
        average = [parameter.detach().clone() for parameter in encoder.parameters()]
        optimizer = torch.optim.AdamW(encoder.parameters(), 3e-4, weight_decay=0.0)

        def steps():
            for _ in range(config.steps):
                optimizer.zero_grad()
                rows = torch.randint(len(data), (config.batch_size,), device=device)
                loss_fn(encoder, data[rows]).backward()
                nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(average, list(encoder.parameters()), 1e-3)

        return steps

    return {
        "PyTorch eager": contender(loss_fn),
        "PyTorch compiled": contender(functools.partial(torch.compile(loss_fn))),
    }


def relations_epochs(num_epochs: int) -> dict[str, Callable[[], object]]:
    """Epochs of reversal sentences, GPT-2 of 2 layers × 128, AdamW, loss on the last word.

    Ours runs all epochs in one dispatch; PyTorch runs `transformers`' GPT-2 as the original
    does, with the last position's labels alone, and a smaller last batch.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise flags.UsageError(
            "the benchmark needs PyTorch: pip install torch==2.13.0 transformers"
        ) from None
    config = relations_task.Config(
        n_layers=2, n_heads=4, embed_dim=128, dropout=0.0, lr=1e-3, num_epochs=num_epochs,
        eval_every=num_epochs,
    )  # fmt: skip
    task = relations_task.Task(config)
    state, train_data = task.init(0), task.train_data()
    epochs = task.compile(num_epochs, donate=False)

    torch.manual_seed(0)
    device = torch_device()
    sentences = torch.from_numpy(task.data.train_EL).long().to(device)
    is_last = torch.tensor(task.data.last_word(task.data.train_EL), device=device)
    labels = torch.where(is_last, sentences, -100)

    def contender(compiled: bool):
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_layer=2, n_head=4, n_embd=128, n_positions=3, vocab_size=task.data.vocab_size,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            )
        ).to(device)  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
        forward = torch.compile(model, dynamic=False) if compiled else model

        def steps():
            for _ in range(num_epochs):
                order = torch.randperm(len(sentences), device=device)
                for rows in order.split(config.batch_size):
                    optimizer.zero_grad()
                    forward(sentences[rows], labels=labels[rows]).loss.backward()
                    optimizer.step()

        return steps

    return {
        "JAX": lambda: jax.block_until_ready(epochs(state, train_data)),
        "PyTorch eager": contender(compiled=False),
        "PyTorch compiled": contender(compiled=True),
    }


if __name__ == "__main__":
    harness.main("benchmark", Config, PRESETS, run)
