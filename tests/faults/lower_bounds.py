# Right: `pip install` of exactly the lower bounds of pyproject.toml gives a working library.
# Measured in a virtual environment of its own (toy_reversal --preset=smoke): jax 0.10.0 and 0.10.1
# fail with any flax, flax 0.12.0 and 0.12.1 fail with jax 0.10.2 (nn.remat's `concrete` is gone from
# JAX). jax 0.10.2, flax 0.12.2, optax 0.2.8, orbax 0.12.0 pass. This script reads the bounds;
# LB_PY=/python/of/such/a/venv runs the experiment there (`make test-lowest` runs the suite).
import os
import re
import subprocess

from _common import ROOT, TINY_TOY, TMP, end

text = (ROOT / "pyproject.toml").read_text()


def bound(name):
    found = re.search(rf'"{name}>=([0-9.]+)"', text)
    return tuple(map(int, found[1].split("."))) if found else ()


got = {name: bound(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}
bad = got["jax"] < (0, 10, 2) or got["flax"] < (0, 12, 2) or not all(got.values())
print(got)
if os.environ.get("LB_PY"):
    command = [os.environ["LB_PY"], "-m", "experiments.toy_reversal", *TINY_TOY, "--noprogress"]
    done = subprocess.run(
        [*command, f"--workdir={TMP}/run"], cwd=ROOT, capture_output=True, text=True
    )
    print(done.returncode, done.stderr.strip()[-200:])
    bad = done.returncode != 0
end(bad)
