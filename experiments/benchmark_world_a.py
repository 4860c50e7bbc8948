"""How fast are World A's train steps against the original's loops in PyTorch, on one machine?

Question  GPT-2 on the same batches of real World A text, forward, backward and AdamW: ours
          against `transformers`, padded to 64 tokens as the original does, and cut to the
          real length. And the MLP's epochs against the same loop in PyTorch with a
          DataLoader. Alternating in one process.
Command   pip install torch==2.13.0 transformers && python -m experiments.benchmark_world_a
Cost      about 5 minutes on 2 CPU cores; GPT-2 small (--layers=12 --width=768 --heads=12) more.
Expected  at least 2.5 times the padded loop, 1.0 times the unpadded one, 2 times the MLP's.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from dirasym import models, objectives, report, training
from dirasym.compile import compile_scan
from experiments import benchmark, flags, harness, world_a, world_a_mlp
from experiments.flags import flag

PRESETS = {
    "smoke": dict(layers=1, width=32, heads=2, steps=1, mlp_pairs=512, rounds=1),
    "quick": {},
    "paper": dict(layers=12, width=768, heads=12, steps=2),
}
PADDED_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    layers: int = flag(4, "GPT-2's layers.", 1)
    width: int = flag(256, "GPT-2's width.", 1)
    heads: int = flag(4, "GPT-2's heads.", 1)
    tokenizer: str = flag("gpt2", "As in world_a.")
    batch_size: int = flag(64, "GPT-2's pairs a step.", 1)
    steps: int = flag(5, "Steps timed in a round.", 1)
    mlp_pairs: int = flag(40_000, "Pairs of the MLP's epoch; a multiple of 5.", 5)
    rounds: int = flag(5, "Alternations; the fastest of each contender counts.", 1)

    def __post_init__(self):
        gpt2_task(self)


def run(experiment: harness.Experiment, config: Config) -> None:
    """Times both models and prints the table."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise flags.UsageError(
            "the benchmark needs PyTorch: pip install torch==2.13.0 transformers"
        ) from None
    sequences = config.steps * config.batch_size
    mlp_pairs = config.mlp_pairs - config.mlp_pairs % 5
    cases = {
        f"GPT-2, {config.layers} layers × {config.width}": (sequences, gpt2_steps(config)),
        "MLP, an epoch": (mlp_pairs, mlp_epochs(mlp_pairs)),
    }
    rows = []
    for case, (count, contenders) in cases.items():
        seconds = benchmark.alternate(contenders, config.rounds)
        for name, best in seconds.items():
            ratio = best / seconds["JAX"]
            rows.append([case, name, f"{count / best:.0f}", f"{best:.3f}", f"{ratio:.2f}"])
    header = ["case", "contender", "sequences a second", "seconds", "times as long as JAX"]
    table = report.table(header, rows)
    experiment.write_report(f"# Benchmark\n\n{table}", [], printed=table)


def gpt2_task(config: Config) -> world_a.Config:
    """As many pairs as the steps read. Raises ValueError for a model that cannot be made."""
    return world_a.Config(
        modes=("scratch",),
        Ks=(5,),
        n_pairs=5 * -(-config.steps * config.batch_size // 5),
        batch_size=config.batch_size,
        tokenizer=config.tokenizer,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
    )


def gpt2_steps(config: Config) -> dict[str, Callable[[], object]]:
    """Some steps from scratch at K = 5, inverse."""
    import torch
    import transformers

    task = gpt2_task(config)
    texts = world_a.Texts(task)
    data = texts.case(5, "inverse", "next_token").data
    (regime,) = world_a.regimes(task)
    model = models.Transformer(world_a.model_config(task, regime.dropout))
    apply_fn = models.make_apply_fn(model)
    capacity = texts.scored_share(task.batch_size)
    params = world_a.init_params(model, jax.random.key(0))
    optimizer = training.make_optimizer(1e-4, weight_decay=0.01)
    state = training.create_state(apply_fn, params, optimizer, jax.random.key(0))
    steps = compile_scan(
        functools.partial(
            training.train_step,
            objective=functools.partial(objectives.next_token, capacity=capacity),
        ),
        num_steps=config.steps,
        batch_size=config.batch_size,
        whole_epochs=True,
        donate=False,
    )

    torch.manual_seed(0)
    device = benchmark.torch_device()
    shape = model.config

    def contender(length):
        network = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_layer=shape.num_layers,
                n_head=shape.num_heads,
                n_embd=shape.width,
                vocab_size=shape.vocab_size,
                use_cache=False,
            )
        ).to(device)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4, weight_decay=0.01)
        fill = ((0, 0), (0, length - texts.length))
        tokens = np.pad(data["tokens_BL"], fill, constant_values=texts.mask_id)
        valid, scored = (np.pad(data[name], fill) for name in ("valid_BL", "scored_BL"))
        rows = torch.utils.data.TensorDataset(
            torch.from_numpy(tokens).long(),
            torch.from_numpy(valid).long(),
            torch.from_numpy(np.where(scored, tokens, -100)).long(),
        )
        loader = torch.utils.data.DataLoader(rows, config.batch_size, shuffle=True)

        def steps():
            for _, batch in zip(range(config.steps), loader, strict=False):
                tokens, valid, labels = (x.to(device) for x in batch)
                optimizer.zero_grad()
                network(input_ids=tokens, attention_mask=valid, labels=labels).loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()

        return steps

    return {
        "JAX": lambda: jax.block_until_ready(steps(state, data)),
        "transformers, padded to 64": contender(PADDED_LENGTH),
        "transformers, unpadded": contender(texts.length),
    }


def mlp_epochs(num_pairs: int) -> dict[str, Callable[[], object]]:
    """One epoch of the paper's MLP at K = 5, inverse."""
    import torch
    from torch import nn

    task = world_a_mlp.Config(Ks=(5,), n_pairs=num_pairs)
    data = world_a_mlp.make_case(task, 5, "inverse").data
    state = world_a_mlp.make_states(task)(0)
    steps = compile_scan(
        functools.partial(training.train_step, objective=world_a_mlp.OBJECTIVE, dropout=False),
        num_steps=-(-num_pairs // task.batch_size),
        batch_size=task.batch_size,
        whole_epochs=True,
        donate=False,
    )

    torch.manual_seed(0)
    device = benchmark.torch_device()
    layers, size = [nn.Embedding(world_a_mlp.VOCAB, task.d_emb), nn.Flatten()], 8 * task.d_emb
    for _ in range(task.n_layers):
        layers += [nn.Linear(size, task.d_hidden), nn.ReLU(), nn.LayerNorm(task.d_hidden)]
        size = task.d_hidden
    network = nn.Sequential(*layers, nn.Linear(size, 8 * world_a_mlp.VOCAB)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), task.lr, weight_decay=0.0)
    tokens = torch.from_numpy(data["tokens_BL"]).long()
    rows = torch.utils.data.TensorDataset(tokens[:, :8], tokens[:, 8:])
    loader = torch.utils.data.DataLoader(rows, task.batch_size, shuffle=True)

    def epoch():
        for batch in loader:
            source, target = (x.to(device) for x in batch)
            optimizer.zero_grad()
            logits = network(source).view(-1, world_a_mlp.VOCAB)
            nn.functional.cross_entropy(logits, target.flatten()).backward()
            optimizer.step()

    return {
        "JAX": lambda: jax.block_until_ready(steps(state, data)),
        "PyTorch, DataLoader": epoch,
    }


if __name__ == "__main__":
    harness.main("benchmark_world_a", Config, PRESETS, run)
