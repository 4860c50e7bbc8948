"""How fast are our train steps against the same model in plain PyTorch, on the same machine?

Question  The MDM's train step of the toy task (batch 256, width 256, one layer) in JAX, plain
          and with two exact savings (`rows`, `models.token_table`), against PyTorch, eager and
          compiled, alternating in one process. And an epoch of `relations` (GPT-2 of 2 layers ×
          128, 340 sentences) against `transformers`' GPT-2.
Command   pip install torch==2.13.0 transformers && python -m experiments.benchmarks.steps
Cost      about 3 minutes on 2 CPU cores, as much on a GPU, where both sides multiply in TF32.
Expected  at least 2.5 times the faster PyTorch; 3 times in `relations`.
"""

import dataclasses
import functools
import pathlib
from typing import Literal

import jax

from dirasym import models, report
from dirasym.compile import compile_scan
from dirasym.data import case_pairs
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.benchmarks import common
from experiments.flags import flag
from experiments.systems import relations, toy

PRESETS = {"smoke": dict(lengths=[4], rounds=1), "quick": {}, "paper": {}}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    lengths: tuple[int, ...] = flag((10, 40), "Sequence lengths of the toy step.", 2, 400)
    batch_size: int = flag(256, "Sequences a step.", 1, 10**6)
    rounds: int = flag(6, "Alternations; the fastest of each contender counts.", 1)
    steps: int = flag(10, "Steps, and epochs of `relations`, timed in a round.", 1)
    cases: tuple[Literal["toy", "relations"], ...] = flag(("toy", "relations"), "What to time.")

    def __post_init__(self):
        self.toy()  # raises what does not fit

    def toy(self) -> toy.Config:
        """The toy task at every length."""
        return toy.Config(lengths=self.lengths, batch_size=self.batch_size)

    def relations(self) -> relations.Config:
        """Reversal sentences, GPT-2 of 2 layers × 128, AdamW, loss on the last word."""
        return relations.Config(
            n_layers=2, n_heads=4, embed_dim=128, dropout=0.0, lr=1e-3, num_epochs=self.steps,
            eval_every=self.steps,
        )  # fmt: skip


def plan(config: Config, workdir: pathlib.Path) -> list:
    """Nothing is trained; raises UsageError without PyTorch."""
    del workdir
    common.need("torch", *(["transformers"] if "relations" in config.cases else []))
    return []


def time_all(workdir: WorkDir, config: Config, planned: list) -> None:
    """Times every case and prints the table."""
    del planned
    cases = {}
    if "toy" in config.cases:
        for length in config.lengths:
            contenders = {
                "JAX plain": jax_steps(length, config, plain=True),
                "JAX": jax_steps(length, config),
                **torch_steps(length, config),
            }
            cases[f"MDM train step, L = {length}"] = common.alternate(contenders, config.rounds)
    if "relations" in config.cases:
        contenders = {"JAX": jax_epochs(config), **torch_epochs(config)}
        case = "epoch of relations, 2 layers × 128"
        cases[case] = common.alternate(contenders, config.rounds)
    table = common.against_torch(cases, config.steps)
    report.write(workdir.path, f"# Benchmark\n\n{table}", {}, printed=table)


def jax_steps(length: int, config: Config, *, plain: bool = False) -> common.Contender:
    """The experiment's own step, as it runs it, many in one dispatch; or without its savings."""
    task = toy.Task("mdm", length, config.toy())
    state, step = task.init(0), task.step()
    if plain:
        plain_fn = models.make_apply_fn(models.Transformer(task.network))
        state = state.replace(apply_fn=plain_fn)
        objective = functools.partial(step.keywords["objective"], capacity=None)
        step = functools.partial(step, objective=objective)
    steps = compile_scan(step, num_steps=config.steps, batch_size=config.batch_size, donate=False)
    data = {"tokens_BL": case_pairs.training_set(length)}
    return lambda: jax.block_until_ready(steps(state, data))


def _torch_encoder(length: int, width: int, rate: float):
    """RADD's one-layer encoder."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    vocab = case_pairs.VOCAB_SIZE

    class Encoder(nn.Module):
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

    return Encoder().to(common.torch_device())


def torch_steps(length: int, config: Config) -> dict[str, common.Contender]:
    """The same step in PyTorch: stratified levels, AdamW behind a clip, a moving average."""
    import torch
    from torch.nn import functional as F
    from torch.nn.utils import clip_grad_norm_

    torch.manual_seed(0)
    device, mask = common.torch_device(), case_pairs.MASK

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
        encoder = _torch_encoder(length, width=256, rate=0.02)
        average = [parameter.detach().clone() for parameter in encoder.parameters()]
        optimizer = torch.optim.AdamW(encoder.parameters(), 3e-4, weight_decay=0.0)

        def steps():
            for _ in range(config.steps):
                optimizer.zero_grad()
                rows = torch.randint(len(data), (config.batch_size,), device=device)
                loss_fn(encoder, data[rows]).backward()
                clip_grad_norm_(encoder.parameters(), 1.0)
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(average, list(encoder.parameters()), 1e-3)

        return steps

    return {
        "PyTorch eager": contender(loss_fn),
        "PyTorch compiled": contender(torch.compile(loss_fn)),
    }


def jax_epochs(config: Config) -> common.Contender:
    """Epochs of `relations`, as it runs them: all in one dispatch."""
    run = relations.learner(config.relations()).run({})
    epochs = compile_scan(
        run.step, num_steps=run.num_steps, batch_size=run.batch_size, donate=False
    )
    state, data = run.init(0), run.data(0)
    return lambda: jax.block_until_ready(epochs(state, data))


def torch_epochs(config: Config) -> dict[str, common.Contender]:
    """`transformers`' GPT-2 as the original trains it: the last position's labels alone.

    The last batch of an epoch is smaller.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    device = common.torch_device()
    c = config.relations()
    data, batch_size = relations.sentences(c, None), c.batch_size
    sentences = torch.from_numpy(data.train_EL).long().to(device)
    is_last = torch.tensor(data.last_word(data.train_EL), device=device)
    labels = torch.where(is_last, sentences, -100)

    def contender(compiled: bool):
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_layer=2, n_head=4, n_embd=128, n_positions=3, vocab_size=data.vocab_size,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            )
        ).to(device)  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
        forward = torch.compile(model, dynamic=False) if compiled else model

        def steps():
            for _ in range(config.steps):
                order = torch.randperm(len(sentences), device=device)
                for rows in order.split(batch_size):
                    optimizer.zero_grad()
                    forward(sentences[rows], labels=labels[rows]).loss.backward()
                    optimizer.step()

        return steps

    return {"PyTorch eager": contender(False), "PyTorch compiled": contender(True)}


if __name__ == "__main__":
    flags.main("benchmark_steps", Config, PRESETS, time_all, plan)
