"""What these scripts share: a folder of their own, the command line, tiny models, the verdict."""

import atexit
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TMP = pathlib.Path(tempfile.mkdtemp())  # gone at the end
TOY = "--preset=smoke --models=mdm --lengths=3 --width=8 --generations=1".split()
TINY_TOY = [*TOY, "--steps=4", "--eval_every=2"]
TINY_MLP = (
    "--preset=smoke --Ks=1 --directions=forward --n_pairs=20 --d_hidden=8 --eval_every=1".split()
)
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
}
os.environ.update(ENVIRONMENT)
sys.path.insert(0, str(ROOT))
atexit.register(shutil.rmtree, TMP, ignore_errors=True)


def start(module, *flags, env=(), **kwargs):
    """An experiment begun; what it says goes to its `stdout` and `stderr`."""
    given = dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    quiet = ["--noprogress"] if any("--workdir" in str(flag) for flag in flags) else []
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *map(str, flags), *quiet],
        env=os.environ | dict(env),
        **given | kwargs,
    )


def cli(module, *flags, timeout=600, **kwargs):
    """An experiment from its start to its end."""
    process = start(module, *flags, **kwargs)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for_step(process, workdir, step):
    """Until a checkpoint of that step or a later one is there, or the process is gone."""
    while process.poll() is None:
        saved = workdir.glob("checkpoints/*/[0-9]*/record.json")
        if any(int(path.parent.name) >= step for path in saved):
            return
        time.sleep(0.002)


def is_one_line(done, status=2):
    """Whether it ended so, with one line on stderr and no word more."""
    return done.returncode == status and len(done.stderr.strip().splitlines()) == 1


def llama(path, tokenizer=None, *, spare_rows=0, **sizes):
    """Saves a random LLaMA, with a tokenizer whose last tokens leave `spare_rows` free."""
    import jax
    import jax.numpy as jnp

    from dirasym import models

    fields = {}
    if tokenizer is not None:
        sizes["vocab_size"] = 1 + spare_rows + max(tokenizer.get_vocab().values())
        sizes |= dict(width=32, mlp_width=64, max_len=128, init="uniform_fan_in")
        fields["eos_token_id"] = tokenizer.token_to_id("</s>")
    small = dict(vocab_size=20, num_layers=1, width=8, num_heads=2, num_kv_heads=1, mlp_width=16)
    small |= dict(max_len=16, rope_scaling=None, rope_base=1e4)
    model = models.Transformer(models.llama(**small | sizes))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    models.save_pretrained(path, model, params, more_fields=fields)
    if tokenizer is not None:
        tokenizer.save(str(path / "tokenizer.json"))
    return model, params


def end(bad, said=""):
    """The verdict; the exit status with it."""
    print(f"FAIL {said}".strip() if bad else "PASS", flush=True)
    sys.exit(bool(bad))
