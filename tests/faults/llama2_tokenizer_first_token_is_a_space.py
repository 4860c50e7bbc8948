# Right: a row is "prompt, space and answer" (docstring of training_arrays), and P(true first
# token) is of the answer's first token. Seen with LLaMA-2's kind of tokenizer.json (normaliser
# Prepend "▁"): two spaces, so that the "first token" of every answer is a lone "▁": reverse_p
# goes to 1 and reverse_rank to 1 for a causal model that has 0 % in reverse; choice_percent is
# null.
# slow
import json
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


import tokenizers as hf
from tokenizers import decoders, normalizers, trainers
from tokenizers import models as m

from dirasym.data import facts


def model_directory(path, tokenizer, eos):
    """A random LLaMA with this tokenizer; its last row is free for [M]."""
    import jax
    import jax.numpy as jnp

    from dirasym import models

    size = 2 + max(tokenizer.get_vocab().values())
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


pairs = facts.invent_parent_child(12, seed=0)
corpus = [f"{p.parent}'s child is {p.child}" for p in pairs] + [
    f"{p.child}'s parent is {p.parent}" for p in pairs
]
tokenizer = hf.Tokenizer(m.BPE(unk_token="<unk>"))
tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
)
tokenizer.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
tokenizer.train_from_iterator(
    corpus,
    trainers.BpeTrainer(
        vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    ),
)
model_directory(T / "model", tokenizer, "</s>")
done = cli(
    "facts",
    "--preset=smoke",
    f"--model_id={T}/model",
    "--num_pairs=12",
    "--both_ways=0",
    "--name_words=2",
    "--models=arm",
    "--epochs=100",
    "--eval_epochs=100",
    "--batch_size=12",
    "--learning_rate=1e-2",
    "--warmup_steps=0",
    "--gradient_examples=0",
    "--attention_examples=0",
    f"--workdir={T}/run",
)
bad = done.returncode not in (0, 2)
if done.returncode == 0:
    line = json.loads((T / "run/results.jsonl").read_text())
    print(
        {
            key: line[key]
            for key in ("reverse_p", "reverse_rank", "reverse_percent", "forward_choice_percent")
        }
    )
    bad = line["reverse_p"] > 0.9 and line["reverse_percent"] < 50
print("FAIL" if bad else "PASS", done.stderr[-200:])
sys.exit(bad)
