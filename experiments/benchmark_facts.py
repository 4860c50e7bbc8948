"""How fast are LoRA steps and greedy decoding against transformers + peft, on the same cores?

Question  At SmolLM2-135M's shape, random weights in float32, batch 8: a LoRA step (rank 32 on
          the attention projections, AdamW, clip 1) and greedy decoding of 32 tokens.
Command   pip install torch transformers peft && python -m experiments.benchmark_facts
Cost      about 5 minutes on 2 quiet CPU cores.
Expected  at least 1.0 times PyTorch in the step, 1.5 times in decoding.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import checkpoints, decoding, models, objectives, report, training
from dirasym.models import lora
from dirasym.types import Batch
from experiments import harness
from experiments.benchmark import alternate
from experiments.harness import flag

SMOLLM2 = dict(
    vocab_size=49_152, num_layers=30, width=576, num_heads=9, num_kv_heads=3, mlp_width=1536,
    max_len=8192, rope_base=100_000.0, rope_scaling=None, tied_head=True,
)  # fmt: skip
PRESETS = {"smoke": dict(layers=2, rounds=1, steps=1), "quick": {}, "paper": {}}
RANK, ALPHA = 32, 64.0


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    layers: int = flag(30, "Layers, 30 in SmolLM2-135M.", 1)
    batch_size: int = flag(8, "Sequences a step.", 1)
    length: int = flag(16, "Tokens of a sequence, and of a prompt.", 2)
    num_new: int = flag(32, "Tokens to decode.", 1)
    rounds: int = flag(5, "Alternations; the fastest of each contender counts.", 1)
    steps: int = flag(3, "LoRA steps timed in a round.", 1)


def run(experiment: harness.Experiment, config: Config) -> None:
    """Times both cases and prints the table."""
    rng = np.random.default_rng(0)
    tokens_BL = rng.integers(0, 1000, (config.batch_size, config.length)).astype(np.int32)
    ours, theirs = _jax_contenders(config, tokens_BL), _torch_contenders(config, tokens_BL)
    rows = []
    for case, count in (("LoRA step", config.steps), ("greedy decoding", 1)):
        seconds = alternate({"JAX": ours[case], "PyTorch": theirs[case]}, config.rounds)
        for name, best in seconds.items():
            ratio = seconds["PyTorch"] / best
            rows.append([case, name, f"{1e3 * best / count:.0f}", f"{ratio:.2f}"])
    table = report.table(["case", "contender", "ms", "times PyTorch"], rows)
    checkpoints.write_atomically(experiment.workdir / "report.md", f"# Benchmark\n\n{table}\n")
    print(table)


def _jax_contenders(config: Config, tokens_BL: np.ndarray) -> dict[str, Callable[[], object]]:
    model = models.Transformer(models.llama(**(SMOLLM2 | {"num_layers": config.layers})))
    params = jax.jit(model.init)(jax.random.key(0), tokens_BL)["params"]
    adapted = models.LoRA(
        model, models.LoRAConfig(RANK, ALPHA, r"attention/(query|key|value|out)$")
    )
    state = training.create_state(
        lora.make_apply_fn(adapted),
        {"lora": lora.init_adapters(adapted, params, jax.random.key(1))},
        training.make_optimizer(5e-5, weight_decay=0.1),
        jax.random.key(2),
        frozen={"params": params},
    )
    step = training.compile_step(
        functools.partial(training.train_step, objective=objectives.next_token), donate=False
    )
    rows = config.batch_size
    batch = Batch(tokens_BL=tokens_BL, index_B=np.arange(rows), global_size=rows)

    def steps():
        current = state
        for _ in range(config.steps):
            current, metrics = step(current, batch)
        return jax.block_until_ready(metrics["loss"])

    extend = models.make_extend_fn(model)
    decode = jax.jit(
        lambda params, tokens: decoding.greedy(
            extend, params, tokens, jnp.ones(tokens.shape, bool), num_new=config.num_new
        )
    )
    return {
        "LoRA step": steps,
        "greedy decoding": lambda: jax.block_until_ready(decode(params, tokens_BL)),
    }


def _torch_contenders(config: Config, tokens_BL: np.ndarray) -> dict[str, Callable[[], object]]:
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        raise harness.UsageError(f"the benchmark needs PyTorch's side: {error}") from None
    settings = transformers.LlamaConfig(
        vocab_size=SMOLLM2["vocab_size"], num_hidden_layers=config.layers, hidden_size=576,
        num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(settings)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    )
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 5e-5, weight_decay=0.1)
    tokens = torch.from_numpy(tokens_BL).long()
    plain = transformers.LlamaForCausalLM(settings).eval()

    def steps():
        adapted.train()
        for _ in range(config.steps):
            optimizer.zero_grad()
            adapted(input_ids=tokens, labels=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

    def decode():
        with torch.no_grad():
            plain.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=config.num_new,
                do_sample=False,
                pad_token_id=0,
            )

    return {"LoRA step": steps, "greedy decoding": decode}


if __name__ == "__main__":
    harness.main("benchmark_facts", Config, PRESETS, run)
