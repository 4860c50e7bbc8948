"""How fast are LoRA steps and greedy decoding against transformers + peft, on one machine?

Question  At SmolLM2-135M's shape, random weights in float32, batch 8: a LoRA step (rank 32 on
          the attention projections, AdamW, clip 1, loss on the last 4 of 16 tokens, as answers
          are scored in facts) and greedy decoding of 32 tokens.
Command   pip install torch transformers peft && python -m experiments.benchmarks.facts
Cost      about 5 minutes on 2 quiet CPU cores; 2 on a GPU, where both sides multiply in TF32
          and memory is the device's.
Expected  at least 1.0 times PyTorch in the step, 1.5 times in decoding; peak memory not above it.
"""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import decoding, models, objectives, report, training
from dirasym.compile import compile_step
from dirasym.models import lora, pretrained
from dirasym.rows import PerRow
from dirasym.types import Batch
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.benchmarks import common
from experiments.flags import flag

SMOLLM2 = dict(
    num_layers=30, width=576, num_heads=9, num_kv_heads=3, mlp_width=1536,
    max_len=8192, rope_base=100_000.0, rope_scaling=None, tied_head=True,
)  # fmt: skip
PRESETS = {"smoke": dict(layers=2, rounds=1, steps=1), "quick": {}, "paper": {}}
RANK, ALPHA = 32, 64.0


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    layers: int = flag(30, "Layers, 30 in SmolLM2-135M.", 1, 1000)
    vocab_size: int = flag(49_152, "Tokens; 128256 in LLaMA 3.", 1000, 10**7)
    scan_layers: bool = flag(False, "One compiled layer, as in facts: less memory, less speed.")
    batch_size: int = flag(8, "Sequences a step.", 1, 10**6)
    length: int = flag(16, "Tokens of a sequence, and of a prompt.", 2, 10**6)
    num_scored: int = flag(4, "Last tokens of a sequence that the LoRA step scores.", 1)
    num_new: int = flag(32, "Tokens to decode.", 1, 10**6)
    rounds: int = flag(5, "Alternations; the fastest of each contender counts.", 1)
    steps: int = flag(3, "LoRA steps timed in a round.", 1)

    def __post_init__(self):
        if self.num_scored >= self.length:
            raise ValueError(f"--num_scored={self.num_scored} must be below --length={self.length}")


def plan(config: Config, workdir: pathlib.Path) -> list:
    """Nothing is trained; raises UsageError without PyTorch's side."""
    del config, workdir
    common.need("torch", "transformers", "peft")
    return []


def measure(workdir: WorkDir, config: Config, planned: list) -> None:
    """Measures memory, then times both cases, and prints the table."""
    del planned
    # Compiling takes memory too, on a GPU to try kernels: the second reads the first's programs.
    cache = str((workdir.path / "compilation").absolute())
    peak = {
        (case, name): _peak_in_its_own_process(case, name, config, cache)
        for case in CASES
        for name in ("JAX, compiling", "JAX", "PyTorch")
    }
    rows = []
    for case, count in (("LoRA step", config.steps), ("greedy decoding", 1)):
        contenders = {name: make(config) for name, make in CASES[case].items()}
        seconds = common.alternate(contenders, config.rounds)
        for name, best in seconds.items():
            ratio = seconds["PyTorch"] / best
            rows.append(
                [case, name, f"{1e3 * best / count:.0f}", f"{ratio:.2f}", f"{peak[case, name]:.0f}"]
            )
        rows.append([case, "JAX, compiling", "", "", f"{peak[case, 'JAX, compiling']:.0f}"])
    table = report.table(["case", "contender", "ms", "times PyTorch", "peak memory, MiB"], rows)
    text = (
        f"# Benchmark\n\n{table}\n\nPeak memory: the largest resident set of a process that does "
        "nothing else, libraries included, or the most that it held on a GPU; JAX's with its "
        "programs from the compilation cache, and beside it that of the process that compiled them."
    )
    report.write(workdir.path, text, {}, printed=table)


def _peak_in_its_own_process(case: str, name: str, config: Config, cache: str) -> float:
    code = "import sys; from experiments.benchmarks import facts as b; b.print_peak(*sys.argv[1:])"
    arguments = (case, name.split(",")[0], json.dumps(dataclasses.asdict(config)))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ
        | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def print_peak(case: str, name: str, config: str) -> None:
    """Runs a contender twice and prints its peak memory, in MiB: the GPU's, or this process's."""
    call = CASES[case][name](Config(**json.loads(config)))
    for _ in range(2):
        call()
    print(common.peak_bytes(of_torch=name == "PyTorch") / 2**20)


def _tokens(config: Config) -> np.ndarray:
    draw = np.random.default_rng(0).integers
    return draw(0, 1000, (config.batch_size, config.length)).astype(np.int32)


def _scored(config: Config) -> np.ndarray:
    is_last_L = np.arange(config.length) >= config.length - config.num_scored
    return np.tile(is_last_L, (config.batch_size, 1))


def _jax_model(config: Config):
    chosen = {"num_layers": config.layers, "scan_layers": config.scan_layers}
    model = models.Transformer(models.llama(config.vocab_size, **(SMOLLM2 | chosen)))
    draw = np.random.default_rng(0).standard_normal  # as lean as PyTorch's initialisation
    shapes = pretrained.param_shapes(model)
    return model, jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32) / 50), shapes)


def _jax_steps(config: Config) -> Callable[[], object]:
    model, params = _jax_model(config)
    targets = r"attention/(query|key|value|out)$"
    adapted = models.LoRA(model, models.LoRAConfig(RANK, ALPHA, targets))
    state = training.create_state(
        lora.make_apply_fn(adapted),
        {"lora": lora.init_adapters(adapted, params, jax.random.key(1))},
        training.make_optimizer(5e-5, weight_decay=0.1),
        jax.random.key(2),
        frozen={"params": params},
    )
    objective = functools.partial(objectives.next_token, capacity=PerRow(config.num_scored))
    step = compile_step(functools.partial(training.train_step, objective=objective), donate=False)
    rows = config.batch_size
    batch = Batch(_tokens(config), np.arange(rows), rows, scored_BL=_scored(config))

    def steps():
        current = state
        for _ in range(config.steps):
            current, metrics = step(current, batch)
        return jax.block_until_ready(metrics["loss"])

    return steps


def _jax_decoding(config: Config) -> Callable[[], object]:
    model, params = _jax_model(config)
    extend = models.make_extend_fn(model)
    decode = jax.jit(
        lambda params, tokens: decoding.greedy(
            extend, params, tokens, jnp.ones(tokens.shape, bool), num_new=config.num_new
        )
    )
    tokens_BL = _tokens(config)
    return lambda: jax.block_until_ready(decode(params, tokens_BL))


def _torch_model(config: Config):
    import transformers

    settings = transformers.LlamaConfig(
        vocab_size=config.vocab_size, num_hidden_layers=config.layers, hidden_size=576,
        num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(settings).to(common.torch_device())


def _torch_steps(config: Config) -> Callable[[], object]:
    import peft
    import torch

    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapted = peft.get_peft_model(
        _torch_model(config), peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    )
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 5e-5, weight_decay=0.1)
    tokens = torch.from_numpy(_tokens(config)).long().to(common.torch_device())
    labels = torch.where(torch.from_numpy(_scored(config)).to(tokens.device), tokens, -100)
    adapted.train()

    def steps():
        for _ in range(config.steps):
            optimizer.zero_grad()
            adapted(input_ids=tokens, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()

    return steps


def _torch_decoding(config: Config) -> Callable[[], object]:
    import torch

    plain = _torch_model(config).eval()
    tokens = torch.from_numpy(_tokens(config)).long().to(plain.device)

    def decode():
        with torch.no_grad():
            plain.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=config.num_new,
                do_sample=False,
                pad_token_id=0,
            )

    return decode


CASES = {
    "LoRA step": {"JAX": _jax_steps, "PyTorch": _torch_steps},
    "greedy decoding": {"JAX": _jax_decoding, "PyTorch": _torch_decoding},
}

if __name__ == "__main__":
    flags.main("benchmark_facts", Config, PRESETS, measure, plan)
