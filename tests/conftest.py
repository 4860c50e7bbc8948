"""How every test runs, and every program that a test starts."""

import os
import pathlib
import socket
from importlib.metadata import version

# Hundreds of small programs, each run a few times: compiling them is what the suite waits for.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
cache = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# A module in one part, not in 32: the cores have other tests to compile.
flags = "--xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # unknown flags end a process
    # The older code generator: a train step compiles in half the time, and runs as fast.
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes in code are the shapes meant


@pytest.fixture
def tiny_directory():
    """Writes a Hugging Face directory: a small LLaMA that knows nothing, and a tokenizer of bytes.

    Its embedding has 260 rows: 256 bytes, the end of text, and [M] last.
    """

    def write(folder: pathlib.Path, tokens: int = 257) -> pathlib.Path:
        from dirasym import models

        hf = pytest.importorskip("tokenizers")
        config = models.llama(
            260, num_layers=2, width=16, num_heads=4, num_kv_heads=4, mlp_width=24, max_len=256,
            rope_base=10_000.0, rope_scaling=None,
        )  # fmt: skip
        model = models.Transformer(config)
        params = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 1), int))["params"]
        directory = folder / "llama"
        models.save_pretrained(directory, model, params, more_fields={"eos_token_id": 256})
        letters = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {letter: number for number, letter in enumerate(letters)}
        vocabulary |= {f"<{number}>": number for number in range(256, tokens)}
        tokenizer = hf.Tokenizer(hf.models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = hf.decoders.ByteLevel()
        tokenizer.save(str(directory / "tokenizer.json"))
        return directory

    return write


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
