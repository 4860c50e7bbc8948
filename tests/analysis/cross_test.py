"""Products of all gradients with all: in tiles, in files, on several devices, in any precision."""

import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dirasym.analysis import alignment, cross, products
from dirasym.analysis.factored import Factors, Product

HERE = pathlib.Path(__file__).parent
ROWS, COLUMNS, TOKENS = 5, 7, 6


def _params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = dict(embed=(9, 4), bias=(4,), head=(4, 3))
    stack = dict(attention=dict(query=dict(kernel=rng.normal(size=(2, 4, 2, 2)))))
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params | {"blocks": {"block": stack}})


def _loss(params, tokens_L, power):
    x_LD = params["embed"][tokens_L] + params["bias"][None]

    def layer(x_LD, p):
        return jnp.tanh(jnp.einsum("ld,dnh->lnh", x_LD, p["query"]["kernel"])).reshape(
            x_LD.shape
        ), None

    x_LD, _ = jax.lax.scan(layer, x_LD, params["blocks"]["block"]["attention"])
    tied_LV = x_LD @ params["embed"].T
    return ((x_LD @ params["head"]) ** power).sum() + (tied_LV[:, :3] ** 2).mean()


LOSSES = functools.partial(_loss, power=2), functools.partial(_loss, power=3)


def _examples(number, seed=0):
    return np.random.default_rng(seed).integers(0, 9, (number, TOKENS))


def _by_hand(losses, params, rows, columns, pick=lambda g: jax.tree.leaves(g)):
    flat = lambda g: jnp.concatenate([x.ravel() for x in pick(g)])  # noqa: E731
    left, right = (
        jax.jit(jax.vmap(lambda x, loss=loss: flat(jax.grad(loss)(params, x))))(side)
        for loss, side in zip(losses, (rows, columns), strict=True)
    )
    return np.asarray(left @ right.T)


def _assert_close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("memory_limit", members.quick([2**31, 13_300, 1], [13_300]))
@pytest.mark.parametrize("method", ["direct", "factored"])
def test_tiles_of_any_size_make_the_matrix(method, memory_limit, is_traced):
    params, rows, columns = _params(), _examples(ROWS), _examples(COLUMNS, seed=1)
    run = functools.partial(
        alignment.cross_alignment, *LOSSES, method=method, memory_limit=memory_limit
    )
    got = (jax.jit(run) if is_traced else run)(params, rows, examples_rev=columns).inner
    _assert_close(got["total"], _by_hand(LOSSES, params, rows, columns))
    second = lambda g: [g["blocks"]["block"]["attention"]["query"]["kernel"][1]]  # noqa: E731
    want = _by_hand(LOSSES, params, rows, columns, second)
    _assert_close(got["blocks_1/attention/query/kernel"], want)
    _assert_close(got["embed"], _by_hand(LOSSES, params, rows, columns, lambda g: [g["embed"]]))


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("memory_limit", [2**31, 4_000])  # one tile, and several
def test_equal_sides_are_computed_once(memory_limit, is_traced):
    params, rows = _params(), _examples(COLUMNS)
    loss = LOSSES[0]
    run = functools.partial(
        alignment.cross_alignment, loss, loss, method="factored", memory_limit=memory_limit
    )
    got = (jax.jit(run) if is_traced else run)(params, rows).inner
    _assert_close(got["total"], _by_hand((loss, loss), params, rows, rows))


@pytest.mark.parametrize(("is_traced", "is_looped"), [(False, False), (True, True)])
def test_tiles_are_a_loop_in_a_trace_alone(is_traced, is_looped, monkeypatch):
    """Elsewhere a program a leaf is compiled once, and called for every tile."""
    found = []
    for name in ("_looped", "_compute"):
        function = getattr(cross.CrossMatrix, name)
        note = lambda *args, name=name, f=function: found.append(name) or f(*args)  # noqa: E731
        monkeypatch.setattr(cross.CrossMatrix, name, note)
    x_EI = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    loss = lambda p, x: jnp.sum((x @ p["w"]) ** 2)  # noqa: E731
    for memory_limit, ways in (
        (2**31, {"_compute"}),
        (1, {"_looped" if is_looped else "_compute"}),
    ):
        run = functools.partial(alignment.cross_alignment, loss, loss, memory_limit=memory_limit)
        del found[:]
        got = (jax.jit(run) if is_traced else run)({"w": jnp.ones((2, 1))}, x_EI)
        assert set(found) == ways
        sums_E = x_EI.sum(1)  # ∇ = 2(x·1)x
        want = 4 * np.outer(sums_E, sums_E) * (x_EI @ x_EI.T)
        _assert_close(got.inner["total"], want)


@pytest.mark.parametrize(("tile", "looped"), [((4, 3), 0), ((4, 2), 1), ((2, 3), 1), ((2, 2), 1)])
def test_two_tiles_are_a_loop_already(tile, looped, monkeypatch):
    """Of a trace: one after the other, and not both at once."""
    found = []
    function = cross.CrossMatrix._looped
    note = lambda *args: found.append(1) or function(*args)  # noqa: E731
    monkeypatch.setattr(cross.CrossMatrix, "_looped", note)
    monkeypatch.setattr(cross, "_tile", lambda *args: tile)
    rng = np.random.default_rng(0)
    x_EI, y_EI = (rng.normal(size=(n, 2)).astype(np.float32) for n in (4, 3))
    scale = 10.0 * tile[0] + tile[1]  # another loss, which is traced anew
    losses = [lambda p, x, k=k: k * jnp.sum(x @ p["w"]) for k in (1.0, scale)]
    run = jax.jit(functools.partial(alignment.cross_alignment, *losses))
    got = run({"w": jnp.ones((2, 1))}, x_EI, examples_rev=y_EI)
    assert len(found) == looped
    _assert_close(got.inner["total"], scale * x_EI @ y_EI.T)


TILES = [  # rows and columns, bytes of their factors, limit, devices: height and width
    ((3, 5), (10, 7), 65, 1, (3, 5)),  # 3·10 + 5·7 bytes: all
    ((3, 5), (10, 7), 64, 1, (3, 3)),  # 32 bytes of each: 3 and 4 fit, and 5 are two tiles of 3
    ((10, 3), (10, 7), 62, 1, (4, 3)),  # all columns take a third, and rows what is left
    ((10, 3), (10, 7), 42, 1, (2, 3)),
    ((10, 3), (11, 7), 43, 1, (2, 3)),
    ((10, 3), (10, 7), 41, 1, (2, 2)),  # more than a half
    ((10, 3), (10, 7), 1, 1, (1, 1)),
    ((3, 5), (10, 7), 65, 4, (4, 8)),  # filled up, to be split over devices
    ((30, 50), (10, 7), 200, 4, (8, 12)),  # 10 and 14 fit
    ((30, 50), (10, 7), 1, 4, (4, 4)),
]


@pytest.mark.parametrize(("num", "sizes", "limit", "devices", "tile"), TILES)
def test_tiles_are_as_few_as_the_limit_allows_and_as_equal_as_can_be(
    num, sizes, limit, devices, tile
):
    assert cross._tile(num, sizes, limit, devices, False) == tile


@pytest.mark.parametrize(("limit", "side"), [(70, 7), (69, 3), (80, 7), (40, 2), (1, 1)])
def test_a_tile_of_equal_sides_is_square(limit, side):
    """Seven examples of 10 bytes are held once where all fit, and else twice."""
    assert cross._tile((7, 7), (10, 10), limit, 1, True) == (side, side)


CHUNKS = [(12, 12, 12), (12, 20, 12), (12, 11, 6), (12, 5, 4), (12, 1, 1), (7, 6, 4), (7, 3, 3)]


@pytest.mark.parametrize(("length", "most", "size"), CHUNKS)
def test_examples_at_a_time_are_even_parts(length, most, size):
    """Nothing is left out where the size does not divide the length."""
    sizes = []

    def double(examples):
        sizes.append(len(examples["x"]))
        return {"doubled": 2 * examples["x"]}

    x_E2 = jax.random.normal(jax.random.key(0), (length, 2))
    one = {"doubled": jax.ShapeDtypeStruct((2,), x_E2.dtype)}
    got = cross._in_chunks(double, {"x": x_E2}, most, one)
    chex.assert_trees_all_equal(got["doubled"], 2 * x_E2)
    assert set(sizes) == {size}


def test_memory_is_shared_out_as_documented(tmp_path, monkeypatch):
    """Three quarters to factors; an eighth to activations, on CPUs what is cached, and a leaf."""
    x_ETI = np.ones((6, 5, 4), np.float32)
    # Factors of a 4 × 2 matrix and 5 tokens, and the unit: 4·(5·4 + 5·2 + 1) bytes.
    own, noted = 124, []
    activations = 4 * (10 + 10 + 1)  # x @ w, its square, the sum
    loss = lambda p, x, power: jnp.sum((x @ p["w"]) ** power)  # noqa: E731
    losses = [functools.partial(loss, power=power) for power in (2, 3)]
    make = cross.CrossMatrix.__init__

    def init(self, *args, **how):
        make(self, *args, **how)
        noted.append(self)

    monkeypatch.setattr(cross.CrossMatrix, "__init__", init)

    def made(rows=x_ETI, columns=x_ETI + 1, **how):
        run = functools.partial(alignment.cross_alignment, *losses, method="factored", **how)
        jax.eval_shape(run, {"w": jnp.ones((4, 2))}, rows, examples_rev=columns)
        return noted.pop()

    long_ETI = np.ones(
        (6, 9, 4), np.float32
    )  # own and activations: 4·(36 + 18 + 1), 4·(18 + 18 + 1)
    # The smallest limits that suffice for so many bytes of factors.
    assert made(columns=long_ETI, memory_limit=4 * (3 * own + 6 * 220) // 3).tile == (6, 3)
    assert made(rows=long_ETI, memory_limit=4 * (3 * 220 + 6 * own) // 3).tile == (3, 3)
    for how in (dict(columns=long_ETI), dict(rows=long_ETI)):
        assert made(**how, memory_limit=8 * 7 * 148)._chunk == 7

    assert made(memory_limit=16 * own).tile == (6, 6)
    assert made(memory_limit=16 * own - 1).tile == (3, 3)  # 5 fit: two tiles each way
    assert made(memory_limit=8 * own).tile == (3, 3)
    assert made(memory_limit=8 * own - 1).tile == (2, 2)
    assert made(memory_limit=8 * own + 9)._formed_bytes == own + 1
    assert made(memory_limit=8 * 7 * activations)._chunk == 7
    assert made(memory_limit=8 * 7 * activations - 1)._chunk == 6
    assert made(memory_limit=1)._chunk == 1 and made(chunk_size=3)._chunk == 3
    monkeypatch.setattr(cross, "CACHED_BYTES", 2 * activations)
    assert made(memory_limit=2**20 + 4)._chunk == 2
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert made(memory_limit=2**20)._chunk == 2**17 // activations


def _stand_in(function, *, mesh, in_specs, out_specs, **_):
    """`jax.shard_map` on devices that are entries of an axis."""
    axes = [0 if spec == PartitionSpec("data") else None for spec in in_specs]

    def of_all(*args):
        def split(x):
            return x.reshape(mesh.shape["data"], -1, *x.shape[1:])

        parts = [
            x if axis is None else jax.tree.map(split, x)
            for x, axis in zip(args, axes, strict=True)
        ]
        found = jax.vmap(function, axes, axis_name="data", axis_size=mesh.shape["data"])(*parts)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

    assert out_specs == PartitionSpec("data")
    return of_all


@pytest.mark.parametrize("method", ["direct", "factored"])
@pytest.mark.parametrize("memory_limit", [2**31, 1])
def test_examples_are_split_over_devices_and_gathered(method, memory_limit, monkeypatch):
    monkeypatch.setattr(jax, "shard_map", _stand_in)
    mesh = jax.sharding.AbstractMesh((3,), ("data",))  # which divide neither 5 nor 7
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 3)).astype(np.float32), "none": jnp.ones(2)}
    rows, columns = (rng.normal(size=(n, 2, 4)).astype(np.float32) for n in (5, 7))
    losses = [functools.partial(lambda p, x, n: ((x @ p["w"]) ** n).sum(), n=n) for n in (2, 3)]
    found = alignment.cross_alignment(
        *losses, params, rows, examples_rev=columns, method=method, memory_limit=memory_limit,
        mesh=mesh,
    ).inner  # fmt: skip
    _assert_close(found["total"], _by_hand(losses, params, rows, columns))
    assert found["none"].shape == (5, 7) and not found["none"].any()
    alone = alignment.alignment(*losses, params, examples=rows, method=method, mesh=mesh)
    _assert_close(alone.inner["w"], np.diagonal(_by_hand(losses, params, rows, rows)))


def test_heads_are_blocks():
    params, rows, columns = _params(), _examples(ROWS), _examples(COLUMNS, seed=1)
    for method in ("direct", "factored"):
        got = alignment.cross_alignment(
            *LOSSES, params, rows, examples_rev=columns, method=method, heads=True
        ).inner
        head = lambda g: [g["blocks"]["block"]["attention"]["query"]["kernel"][0, :, 1]]  # noqa: E731
        want = _by_hand(LOSSES, params, rows, columns, head)
        _assert_close(got["blocks_0/attention/query/kernel/head_1"], want)
        _assert_close(got["total"], _by_hand(LOSSES, params, rows, columns))


def _factors(tokens, rows, columns, lookup):
    rng = np.random.default_rng(tokens)
    normal = lambda *shape: jnp.asarray(rng.normal(size=(3, 1, *shape)), jnp.float32)  # noqa: E731
    dense = Product(normal(tokens, rows), normal(tokens, columns))
    numbers = jnp.asarray(rng.integers(0, rows, (3, 1, tokens)))
    return Factors(
        dense, Product(numbers, normal(tokens, columns)) if lookup else None, num_rows=rows
    )


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("limit", [2**28, 100])
@pytest.mark.parametrize("tokens", [1, 40])  # formed, and not
def test_formed_or_not_the_products_are_the_same(tokens, limit, lookup):
    first, second = (_factors(t, 70, 90, lookup) for t in (tokens, tokens + 2))
    matrices = [
        jax.vmap(jax.vmap(lambda x: products._matrix(x.dense, x.lookup, 70)))(x)
        for x in (first, second)
    ]
    want = jnp.einsum("ikcf,jkcf->ijk", *matrices)
    _assert_close(products.cross_products(first, second, limit=limit), want)
    own = products.cross_products(first, first, limit=limit)
    _assert_close(own, jnp.einsum("ikcf,jkcf->ijk", matrices[0], matrices[0]))
    three = jax.vmap(products.three_products)(first, second)
    _assert_close(three[0], jnp.einsum("iik->ik", want))
    _assert_close(three[1], (matrices[0] ** 2).sum((2, 3)))
    _assert_close(three[2], (matrices[1] ** 2).sum((2, 3)))


def test_one_bad_example_does_not_spoil_the_others():
    params, rows, columns = _params(), _examples(ROWS), _examples(COLUMNS, seed=1)
    loss = lambda p, x, power: _loss(p, x["tokens"], power) * x["scale"]  # noqa: E731
    losses = [functools.partial(loss, power=power) for power in (2, 3)]
    bad = dict(tokens=rows, scale=np.array([1, np.nan, 1, np.inf, 1], np.float32))
    good = dict(tokens=columns, scale=np.ones(COLUMNS, np.float32))
    want = _by_hand(LOSSES, params, rows, columns)
    for method in ("direct", "factored"):
        got = alignment.cross_alignment(*losses, params, bad, examples_rev=good, method=method)
        got = got.inner
        for block, matrix in got.items():
            assert not np.isfinite(matrix[jnp.array([1, 3])]).any(), block
            assert np.isfinite(matrix[jnp.array([0, 2, 4])]).all(), block
        _assert_close(got["total"][jnp.array([0, 2, 4])], want[[0, 2, 4]])
        alone = alignment.alignment(*losses, params, examples=bad, method=method)
        assert (np.isfinite(alone.cosine["total"]) == [True, False, True, False, True]).all()


def test_bfloat16_is_summed_in_float32():
    params, rows, columns = _params(jnp.bfloat16), _examples(ROWS), _examples(COLUMNS, seed=1)
    got = alignment.cross_alignment(*LOSSES, params, rows, examples_rev=columns, method="factored")
    got = got.inner
    assert got["total"].dtype == jnp.float32
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    _assert_close(got["total"], _by_hand(LOSSES, wide, rows, columns), 0.1)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("block-total.npy", "cut"),
        ("block-total.npy", "gone"),
        ("done.npy", "cut"),
        ("identity.json", "cut"),
    ],
)
@pytest.mark.parametrize("is_begun", [True, False])
def test_damaged_files_are_named(tmp_path, name, harm, is_begun):
    """Never filled with zeros, which would pass for tiles that are done."""
    identity = dict(shape=(4, 4), tile=(2, 4), blocks=[["a"]])
    files = cross.MatrixFiles(tmp_path, identity)
    tiles = [(slice(n, n + 2), slice(0, 4)) for n in (0, 2)]
    for rows, columns in tiles[: 1 if is_begun else 2]:
        files.write(rows, columns, {"a": np.ones((2, 4)), "total": np.ones((2, 4))}, mirror=False)
    path = tmp_path / name
    path.unlink() if harm == "gone" else path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{name} is missing or damaged: remove"):
        again = cross.MatrixFiles(tmp_path, identity)
        for rows, columns in tiles:
            if not again.is_done(rows, columns):
                values = {"a": np.ones((2, 4)), "total": np.ones((2, 4))}
                again.write(rows, columns, values, mirror=False)
        again.matrices()


def test_files_are_resumed(tmp_path, monkeypatch):
    params, rows, columns = _params(), _examples(ROWS), _examples(COLUMNS, seed=1)
    run = functools.partial(
        alignment.cross_alignment, *LOSSES, params, rows, examples_rev=columns,
        method="factored", memory_limit=13_300, out=tmp_path, blocks="layer",
    )  # fmt: skip
    written, write = [], cross.MatrixFiles.write

    def dies_at_the_third(self, rows, columns, values, mirror):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append((rows.start, columns.start))
        write(self, rows, columns, values, mirror)

    monkeypatch.setattr(cross.MatrixFiles, "write", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run()
    begun, written = written, []
    got = run().inner
    assert len(begun) == 2 and len(written) == 2
    assert isinstance(got["total"], np.memmap) and set(got) == {
        "bias",
        "blocks_0",
        "blocks_1",
        "embed",
        "head",
        "total",
    }
    _assert_close(got["total"], _by_hand(LOSSES, params, rows, columns))
    written = []
    run()
    assert not written  # all is there
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^out: .*/file is no directory"):
        alignment.cross_alignment(*LOSSES, params, rows, out=tmp_path / "file")
    with pytest.raises(ValueError, match=r"another matrix: .'arrays'. differ"):
        alignment.cross_alignment(
            *LOSSES, jax.tree.map(jnp.negative, params), rows, examples_rev=columns,
            method="factored", memory_limit=13_300, out=tmp_path, blocks="layer",
        )  # fmt: skip
    identity = json.loads((tmp_path / "identity.json").read_text())
    assert identity["shape"] == [ROWS, COLUMNS] and identity["method"] == "factored"
    assert identity["arrays"] == cross.digest(params, rows, columns)  # as older files have it
    assert identity["losses"] == ["_loss[('power', 2)]", "_loss[('power', 3)]"]
    with pytest.raises(ValueError, match="out: no files"):
        jax.jit(lambda p: alignment.cross_alignment(*LOSSES, p, rows, out=tmp_path))(params)


def _lines(scale):
    return [lambda p, x: scale * jnp.sum(jnp.tanh(x @ p["a/w"] @ p["a/v"]) * LINE)] * 2


def _line_arguments():
    rng = np.random.default_rng(0)
    shapes = {"a/w": (4, 3), "a/v": (3, 2), "b/u": (2,)}
    params = {k: jnp.asarray(rng.normal(size=v), jnp.float32) for k, v in shapes.items()}
    return params, rng.normal(size=(5, 4)).astype(np.float32)


LINE = np.array([1.0, -2.0], np.float32)


def _is_killed(directory):
    """Stands for a process that ends after one tile."""
    write = cross.MatrixFiles.write

    def last(self, *args, **how):
        write(self, *args, **how)
        os._exit(9)

    cross.MatrixFiles.write = last
    _in_tiles(directory)


def _in_tiles(directory, losses=None, **how):
    how = dict(method="factored", memory_limit=1, out=directory) | how
    return alignment.cross_alignment(*(losses or _lines(1.0)), *_line_arguments(), **how).inner


def test_another_process_resumes(tmp_path, monkeypatch):
    """Everything is made anew, and sets have another order."""
    code = (
        "import pathlib, sys; sys.path[:0] = sys.argv[2:]; import cross_test; "
        "cross_test._is_killed(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, tmp_path, HERE, HERE.parent, HERE.parent.parent]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, timeout=300
    )
    assert done.returncode == 9, done.stderr[-3000:]
    written, write = [], cross.MatrixFiles.write
    note = lambda self, *args, **how: written.append(args) or write(self, *args, **how)  # noqa: E731
    monkeypatch.setattr(cross.MatrixFiles, "write", note)
    inner = _in_tiles(tmp_path)
    assert len(written) == 14  # of 15 tiles, on and above the diagonal
    _assert_close(inner["total"], _by_hand(_lines(1.0), *_line_arguments(), _line_arguments()[1]))


@pytest.mark.parametrize("is_whole", [False, True])
def test_files_of_other_blocks_or_losses_are_refused(tmp_path, is_whole, monkeypatch):
    """What a stopped call or a whole one left there has other blocks, or other numbers."""
    with monkeypatch.context() as patched:
        if not is_whole:
            patched.setattr(cross.CrossMatrix, "tiles", lambda self: [(slice(0, 1), slice(0, 1))])
        _in_tiles(tmp_path, blocks="layer")
    for how in (dict(blocks="[uvw]$"), dict(blocks=None), dict(blocks="role")):
        with pytest.raises(ValueError, match=r"^out: .* another matrix: \['blocks'\] differ"):
            _in_tiles(tmp_path, **how)
    other = [lambda p, x: jnp.sum(jnp.sin(x @ p["a/w"] @ p["a/v"]) * LINE)] * 2
    for losses in (_lines(5.0), other, [_lines(1.0)[0], _lines(5.0)[0]]):
        with pytest.raises(ValueError, match=r"another matrix: .*'gradients'.* differ"):
            _in_tiles(tmp_path, losses, blocks="layer")
    monkeypatch.setattr(sys.modules[__name__], "LINE", LINE + 1)
    with pytest.raises(ValueError, match=r"another matrix: \['gradients'\] differ"):
        _in_tiles(tmp_path, blocks="layer")


def test_files_of_heads_are_others(tmp_path):
    run = functools.partial(alignment.cross_alignment, *LOSSES, _params(), _examples(ROWS))
    run(out=tmp_path)
    with pytest.raises(ValueError, match=r"another matrix: \['blocks'\] differ"):
        run(out=tmp_path, heads=True)


def test_tiles_below_the_diagonal_are_mirrored_in_files(tmp_path):
    params, rows, one = _params(), _examples(ROWS), LOSSES[0]
    inner = alignment.cross_alignment(
        one, one, params, rows, method="factored", memory_limit=1, out=tmp_path, blocks="layer"
    ).inner
    want = alignment.cross_alignment(one, one, params, rows, method="direct", blocks="layer").inner
    for block, matrix in want.items():
        assert isinstance(inner[block], np.memmap)
        _assert_close(inner[block], np.asarray(matrix))
    _assert_close(inner["total"], _by_hand((one, one), params, rows, rows))


def test_a_digest_is_of_shapes_dtypes_and_bytes_in_order():
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7], np.int64)
    want = hashlib.blake2b(b"float32(2, 3)" + x.tobytes() + b"int64(1,)" + y.tobytes()).hexdigest()
    assert cross.digest({"a": x, "b": y}) == cross.digest(x, y) == want
    assert cross.digest(np.asfortranarray(x), y) == want
    assert cross.digest(jax.random.key(3)) == cross.digest(jax.random.key_data(jax.random.key(3)))


@pytest.mark.slow
def test_examples_are_split_over_four_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, HERE / "alignment_devices_main.py"],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "same products" in done.stdout
