"""Run by pretrained_test.py: `DIRECTORY scan|apart` -> MB that loading takes at its peak, and
MB of the parameters, bfloat16 on the CPU device."""

import pathlib
import resource
import sys

import jax
import jax.numpy as jnp

from dirasym import models


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(directory: str, layers: str):
    settings = dict(param_dtype=jnp.bfloat16, scan_layers=layers == "scan")
    models.load_pretrained(pathlib.Path(__file__).parent / "fixtures/llama", **settings)
    before = peak_mb()
    _, params = models.load_pretrained(directory, **settings)
    print(peak_mb() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20)


if __name__ == "__main__":
    main(*sys.argv[1:])
