"""Gradient products on 2 × 2 devices are those on one: run by cross_test in its own process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dirasym import sharding
from dirasym.analysis import alignment


def _loss(params, x_TI, power):
    return ((jnp.tanh(x_TI @ params["up"] + params["bias"][None]) @ params["down"]) ** power).sum()


def _assert_close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def main():
    """Compares, with parameters split over "model" and examples over "data"."""
    rng = np.random.default_rng(0)
    shapes = dict(up=(4, 8), bias=(8,), down=(8, 3))
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    rows, columns = (rng.normal(size=(n, 3, 4)).astype(np.float32) for n in (7, 6))
    losses = [functools.partial(_loss, power=power) for power in (2, 3)]
    mesh = sharding.make_mesh(data=2, model=2)
    specs = dict(up=PartitionSpec(None, "model"), bias=PartitionSpec(), down=PartitionSpec("model"))
    split = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in params.items()}
    for method in ("direct", "factored"):
        for limit in (2**31, 2000):
            how = dict(method=method, examples_rev=columns, memory_limit=limit)
            want = alignment.cross_alignment(*losses, params, rows, **how).inner
            run = functools.partial(alignment.cross_alignment, *losses, mesh=mesh, **how)
            for got in (run(split, rows), jax.jit(run)(split, rows)):
                for name, matrix in want.items():
                    _assert_close(got.inner[name], matrix)
        how = dict(method=method, examples=rows)
        want = alignment.alignment(*losses, params, **how)
        got = alignment.alignment(*losses, split, mesh=mesh, **how)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), got, want)
    own = [
        alignment.cross_alignment(losses[0], losses[0], p, rows, method="factored", mesh=m)
        for p, m in ((params, None), (split, mesh))
    ]
    _assert_close(*(found.inner["total"] for found in own))
    print("same products")


if __name__ == "__main__":
    main()
