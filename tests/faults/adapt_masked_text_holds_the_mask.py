# Right: exit 2 and one line that the text holds [M] (as `facts` says) and that --mask_id chooses
# another. Seen: the default [M] is the embedding's last row; where that is an ordinary token,
# exit 3 "loss is not finite at step 1".
# slow
import os
import pathlib
import subprocess
import sys
import tempfile

import dirasym

ROOT = pathlib.Path(dirasym.__file__).resolve().parents[1]
T = pathlib.Path(tempfile.mkdtemp())


def cli(module, *flags, env=(), **kwargs):
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | dict(env)
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", "--noprogress", *map(str, flags)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        **kwargs,
    )


import pydoc_data.topics

import tokenizers as hf
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers import models as m


def model_directory(path, tokenizer, eos):
    """A random LLaMA with this tokenizer; its last row is an ordinary token."""
    import jax
    import jax.numpy as jnp

    from dirasym import models

    size = 1 + max(tokenizer.get_vocab().values())
    model = models.Transformer(
        models.llama(
            vocab_size=size,
            num_layers=1,
            width=32,
            num_heads=2,
            num_kv_heads=2,
            mlp_width=64,
            max_len=128,
            rope_scaling=None,
            init="uniform_fan_in",
        )
    )
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    models.save_pretrained(
        path, model, params, more_fields={"eos_token_id": tokenizer.token_to_id(eos)}
    )
    tokenizer.save(str(path / "tokenizer.json"))


tokenizer = hf.Tokenizer(m.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = (
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    decoders.ByteLevel(),
)
tokenizer.train_from_iterator(
    list(pydoc_data.topics.topics.values())[:5],
    trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
model_directory(T / "model", tokenizer, "</s>")
done = cli("adapt_masked", "--preset=smoke", f"--model_id={T}/model", f"--workdir={T}/run")
print(done.returncode, done.stderr.strip()[-200:])
bad = done.returncode != 2
print("FAIL" if bad else "PASS")
sys.exit(bad)
