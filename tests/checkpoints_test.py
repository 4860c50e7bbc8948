import dataclasses
import doctest
import errno
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from dirasym import checkpoints, models, training

ROOT = pathlib.Path(checkpoints.__file__).parent.parent
OWNER = {"name": "toy", "seed": 0, "x64": False, "data": {"length": 3}}


def _state(step=0, width=8, ema=True, optimizer=None, impl=None):
    model = models.Transformer(models.radd(11, width=width))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    optimizer = optimizer or training.make_optimizer(1e-3)
    key = jax.random.key(5, impl=impl)
    state = training.create_state(models.make_apply_fn(model), params, optimizer, key, ema=ema)
    params = jax.tree.map(lambda x: x + step, state.params)
    return state.replace(step=jnp.int32(step), params=params, key=key)  # of its own kind


def _save(directory, steps, keep=2, owner=OWNER):
    writer = checkpoints.Checkpoints(directory, keep=keep, owner=owner)
    for step in steps:
        history = {"loss": np.arange(float(step)), "eval_step": np.array([0, step])}
        writer.save(step, _state(step), history)
    writer.close()
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("run") / "seeds0", (10, 20, 30))


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.fixture
def small(tmp_path):
    """Two checkpoints of a state small enough to be corrupted and read many times."""
    writer = checkpoints.Checkpoints(tmp_path / "small")
    for step in (1, 2):
        writer.save(step, _small(step), {"loss": np.arange(3.0) + step, "note": "é"})
    return tmp_path / "small"


def _small(step=0):
    return {"w": jnp.full((4, 3), step, jnp.float32), "key": jax.random.key(step)}


def _check(restored, step):
    got_step, state, history = restored
    assert got_step == step and int(state.step) == step
    want = _state(step)
    chex.assert_trees_all_equal(state.params, want.params)
    chex.assert_trees_all_equal(state.opt_state, want.opt_state)
    assert jax.random.key_impl(state.key) == jax.random.key_impl(want.key)
    chex.assert_trees_all_equal(jax.random.key_data(state.key), jax.random.key_data(want.key))
    np.testing.assert_array_equal(history["loss"], np.arange(float(step)))
    np.testing.assert_array_equal(history["eval_step"], [0, step])


def _files(directory):
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_the_example_of_the_docstring():
    assert doctest.testmod(checkpoints).failed == 0


# What is saved comes back.


def test_round_trip_keeps_the_newest(saved):
    reader = checkpoints.Checkpoints(saved, owner=OWNER)
    _check(reader.restore(_state()), 30)
    assert sorted(path.name for path in saved.iterdir()) == ["20", "30"]
    assert [(step, int(state.step)) for step, state in reader.states(_state())] == [
        (20, 20),
        (30, 30),
    ]
    nothing = saved.parent / "nothing"
    assert checkpoints.Checkpoints(nothing).restore(_state()) is None
    assert not nothing.exists()  # reading makes nothing


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Module:
    """A model as Equinox has them: parameters, numbers and functions are leaves."""

    weight: jax.Array
    scale: float
    layers: list
    activation: object
    bias: jax.Array | None = None


@pytest.mark.parametrize("abstract", [False, True])
def test_any_pytree_comes_back(abstract, tmp_path):
    module = _Module(
        jnp.arange(3.0),
        0.1,
        [{"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}, (np.float64(1) / 3,)],
        jnp.tanh,
    )
    tree = (
        module,
        {"..": jnp.ones(2), "a/b": jnp.zeros((0, 3)), "": np.arange(3.0) / 3, "n": 7, "z": 1 + 2j},
    )
    run = checkpoints.Checkpoints(tmp_path)
    run.save(1, tree, {})

    def blank(x):
        if isinstance(x, jax.Array):
            return jax.ShapeDtypeStruct(x.shape, x.dtype) if abstract else jnp.full_like(x, 9)
        return x * 0 if isinstance(x, complex | float | int | np.ndarray | np.generic) else x

    _, got, history = run.restore(jax.tree.map(blank, tree))
    assert jax.tree.structure(got) == jax.tree.structure(tree) and history == {}
    for there, here in zip(jax.tree.leaves(got), jax.tree.leaves(tree), strict=True):
        assert type(there) is type(here)
        if hasattr(here, "dtype"):
            assert there.dtype == here.dtype
            np.testing.assert_array_equal(there, here)
        else:
            assert there == here


DTYPES = [
    *("bool", "int4", "uint4", "int8", "uint8", "int32", "uint32", "float16", "bfloat16"),
    *("float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "complex64"),
]


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    tree = {name: jnp.asarray(rng.integers(1, 4, (5, 3))).astype(name) for name in DTYPES}
    run = checkpoints.Checkpoints(tmp_path)
    run.save(1, tree, {})
    _, got, _ = run.restore(jax.tree.map(jnp.zeros_like, tree))
    for name in DTYPES:
        assert got[name].dtype == name
        assert np.asarray(got[name]).tobytes() == np.asarray(tree[name]).tobytes(), name


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_implementation_come_back(impl, tmp_path):
    run = checkpoints.Checkpoints(tmp_path)
    tree = {"one": jax.random.key(3, impl=impl), "many": jax.random.split(jax.random.key(4), 3)}
    run.save(1, tree, {})
    like = {"one": jax.random.key(0, impl=impl), "many": jax.random.split(jax.random.key(0), 3)}
    _, got, _ = run.restore(like)
    for name in tree:
        assert got[name].dtype == tree[name].dtype
        np.testing.assert_array_equal(*map(jax.random.key_data, (got[name], tree[name])))
    with pytest.raises(checkpoints.CheckpointError, match=f"one is key of {impl}"):
        run.restore({**like, "one": jax.random.key(0, impl="rbg" if impl[0] == "t" else None)})


def test_arrays_take_the_sharding_of_the_template(tmp_path):
    code = f"""
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dirasym import checkpoints
mesh = Mesh(np.array(jax.devices()), ("x",))
rows, columns = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), (None, "x")))
run = checkpoints.Checkpoints({str(tmp_path / "run")!r})
x = jnp.arange(32.0).reshape(4, 8)
run.save(1, {{"x": jax.device_put(x, rows)}}, {{}})
for sharding in (rows, columns):
    for like in (jax.device_put(x * 0, sharding), jax.ShapeDtypeStruct(x.shape, x.dtype,
                 sharding=sharding)):
        _, got, _ = run.restore({{"x": like}})
        assert got["x"].sharding == sharding, got["x"].sharding
        np.testing.assert_array_equal(got["x"], x)
"""
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)


def test_the_history_comes_back_as_it_was(tmp_path):
    history = {
        "empty": {},
        "none": None,
        "flag": True,
        "count": 3,
        "large": 2**70,
        "rate": 0.1,
        "phase": 1 + 2j,
        "infinite": float("inf"),
        "text": "naïve",
        "list": [1, [], {"a": [None]}],
        "arrays": {
            "float64": np.arange(3.0) / 3,
            "bfloat16": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
            "scalar array": np.zeros(()),
            "nothing": np.zeros((0, 2), np.int8),
            "names": np.array(["a", "ü"]),
            "nan": np.array([np.nan, 1]),
        },
        "scalar": np.float32(0.1),
    }
    run = checkpoints.Checkpoints(tmp_path)
    run.save(1, {"w": jnp.ones(1)}, {**history, "tuple": (1, 2), "jax": jnp.arange(2)})
    _, _, got = run.restore({"w": jnp.ones(1)})
    assert got.pop("tuple") == [1, 2]
    np.testing.assert_array_equal(got.pop("jax"), [0, 1])
    arrays = got.pop("arrays")
    for name, want in history.pop("arrays").items():
        assert type(arrays[name]) is np.ndarray and arrays[name].dtype == want.dtype
        np.testing.assert_array_equal(arrays[name], want)
        assert arrays[name].flags.writeable
    assert got == history and [type(x) for x in got.values()] == [type(x) for x in history.values()]


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1, 2}}, {"a": np.array([None])}, {"f": max}])
def test_a_history_that_no_file_holds_is_refused_before_anything_is_written(value, tmp_path):
    with pytest.raises(TypeError):
        checkpoints.Checkpoints(tmp_path / "run").save(1, {"w": jnp.ones(1)}, value)
    assert not (tmp_path / "run").exists()


# What must not be saved.


@pytest.mark.parametrize("step", [30, 25, 20, 5])
def test_a_step_that_is_not_the_newest_is_refused(step, copy):
    before = _files(copy)
    with pytest.raises(checkpoints.CheckpointError, match=f"step {step} is not later .* 30"):
        checkpoints.Checkpoints(copy).save(step, _state(step), {})
    assert _files(copy) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("params/w", jnp.array([1, jnp.nan])),
        ("params/w", jnp.array(jnp.inf)),
        ("mu/w", jnp.array([-jnp.inf, 0], jnp.bfloat16)),
        ("mu/w", jnp.array(jnp.nan)),
        ("mu/w", np.array([np.nan])),
        ("mu/w", float("nan")),
        ("mu/w", jnp.array([jnp.nan], jnp.float8_e4m3fn)),
    ],
)
def test_what_is_not_finite_is_refused_by_name(name, value, tmp_path):
    part = name.split("/")[0]
    tree = {"params": {"w": jnp.ones(2)}, "mu": {"w": jnp.ones(2)}} | {part: {"w": value}}
    with pytest.raises(checkpoints.NonFiniteStateError, match=f"{name} is not finite at step 7"):
        checkpoints.Checkpoints(tmp_path / "run").save(7, tree, {})
    assert not (tmp_path / "run").exists()


def test_an_optimizer_that_starts_at_infinity_can_be_saved(tmp_path):
    tree = {"params": jnp.ones(2), "opt": optax.contrib.reduce_on_plateau().init(jnp.ones(2))}
    assert np.isinf(tree["opt"].best_value)
    run = checkpoints.Checkpoints(tmp_path)
    run.save(1, tree, {})
    assert np.isinf(run.restore(tree)[1]["opt"].best_value)


# Damage is proven.


def _corrupt(path, rng):
    data = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "cut", "delete", "zeros"]) if data else "delete"
    if kind == "flip":
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif kind == "cut":
        data = data[: rng.integers(len(data))]
    elif kind == "zeros":
        data = bytes(len(data))
    path.write_bytes(data)
    if kind == "delete":
        path.unlink()


def test_sixty_corruptions_are_found_and_nothing_is_lost(small, tmp_path):
    rng = np.random.default_rng(0)
    names = [name for name in _files(small) if name.startswith("2/")]
    assert {name.split("/")[1] for name in names} == {"record.json", "state", "values"}
    found = 0
    for number in range(60):
        copy = shutil.copytree(small, tmp_path / str(number))
        _corrupt(copy / rng.choice(names), rng)
        damaged = _files(copy / "2")
        step, state, history = checkpoints.Checkpoints(copy).restore(_small())
        np.testing.assert_array_equal(state["w"], _small(step)["w"])
        np.testing.assert_array_equal(history["loss"], np.arange(3.0) + step)
        kept = copy / "2" if step == 2 else copy / "damaged/2"
        assert _files(kept) == damaged  # to the byte
        found += step == 1
    assert found >= 58  # a space in the record may change and mean the same


def test_damaged_copies_never_take_each_others_place(small):
    for _ in range(3):
        (small / "2/values").write_bytes(b"cut")
        run = checkpoints.Checkpoints(small)
        assert run.restore(_small())[0] == 1
        run.save(2, _small(2), {"loss": np.arange(3.0)})
    assert sorted(path.name for path in (small / "damaged").iterdir()) == ["2", "2-2", "2-3"]
    assert checkpoints.Checkpoints(small).restore(_small())[0] == 2


@pytest.mark.parametrize("name", ["record.json", "values"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(name, small):
    (small / "2" / name).unlink()
    os.mkfifo(small / "2" / name)
    with pytest.raises(
        checkpoints.CheckpointError, match=f"2/{name} cannot be read: Is no regular"
    ):
        checkpoints.Checkpoints(small).restore(_small())
    assert (small / "2").exists()


@pytest.mark.parametrize(("last", "want"), [(3, 2), (2, 2), (1, 1), (0, None)])
def test_the_newest_is_no_later_than_the_last_that_will_do(last, want, small):
    found = checkpoints.Checkpoints(small).restore(_small(), last)
    assert found == want if want is None else found[0] == want == found[1]["w"][0, 0]


def test_states_say_which_is_damaged(small):
    (small / "2/values").write_bytes(b"cut")
    with pytest.raises(checkpoints.CheckpointError, match="small/2 is damaged: values has 3"):
        list(checkpoints.Checkpoints(small).states(_small()))
    assert (small / "2").exists()


def test_what_a_killed_writer_left_is_no_checkpoint(copy):
    (copy / "30").rename(copy / ".40.partial")
    (copy / ".40.partial/record.json").unlink()
    (copy / ".10.removed").mkdir()
    run = checkpoints.Checkpoints(copy)
    _check(run.restore(_state()), 20)
    run.save(30, _state(30), {"loss": np.arange(30.0), "eval_step": np.array([0, 30])})
    _check(run.restore(_state()), 30)
    assert sorted(path.name for path in copy.iterdir()) == ["20", "30"]


def test_all_is_on_the_disk_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    synced, before = [], {}
    fsync, rename = os.fsync, pathlib.Path.rename

    def spied_fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def spied_rename(path, target):
        before[path.name] = set(synced)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(pathlib.Path, "rename", spied_rename)
    checkpoints.Checkpoints(tmp_path).save(1, _small(1), {"loss": np.zeros(3)})
    partial = tmp_path / ".1.partial"
    below = {
        str(partial / path.relative_to(tmp_path / "1")) for path in (tmp_path / "1").rglob("*")
    }
    assert len(below) > 4 and below | {str(partial)} <= before[".1.partial"]
    assert synced[-1] == str(tmp_path)


def test_only_what_keep_rotates_out_is_removed(small):
    (small / "notes").mkdir()
    (small / "notes/a.txt").write_text("mine")
    (small / "best").write_text("mine")
    run = checkpoints.Checkpoints(small, keep=1)
    run.save(3, _small(3), {})
    assert sorted(path.name for path in small.iterdir()) == ["3", "best", "notes"]
    with pytest.raises(ValueError, match="keep"):
        checkpoints.Checkpoints(small, keep=0)


def test_all_stay_until_the_new_one_is_whole(small, monkeypatch):
    before = _files(small)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = checkpoints.Checkpoints(small, keep=1)
    monkeypatch.setattr(checkpoints.files, "write_atomically", full)
    with pytest.raises(checkpoints.CheckpointError, match="No space left on device"):
        run.save(3, _small(3), {})
    assert _files(small) == before


# Everything else is an error that says what is wrong, and touches nothing.


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("open", PermissionError(errno.EACCES, "Permission denied")),
        ("open", OSError(errno.EMFILE, "Too many open files")),
        ("open", OSError(errno.EIO, "Input/output error")),
        ("digest", OSError(errno.EIO, "Input/output error")),
        ("digest", PermissionError(errno.EACCES, "Permission denied")),
        ("restore", MemoryError("cannot allocate")),
        ("restore", ValueError("RESOURCE_EXHAUSTED: Too many open files")),
    ],
)
def test_what_cannot_be_read_now_is_not_damaged(code, error, small, monkeypatch):
    before = _files(small)

    def fail(*_, **__):
        raise error

    run = checkpoints.Checkpoints(small)
    with monkeypatch.context() as patch:
        if code == "open":
            patch.setattr(pathlib.Path, "open", fail)
        elif code == "digest":
            patch.setattr(checkpoints.hashlib, "file_digest", fail)
        else:
            patch.setattr(type(run._orbax), "restore", fail)
        with pytest.raises(checkpoints.CheckpointError, match=str(error.args[-1])):
            run.restore(_small())
    assert _files(small) == before
    assert run.restore(_small())[0] == 2


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (lambda: _state(width=16), r"float32\[8.* there, float32\[16.* here"),
        (lambda: _state(ema=False), "ema.* there, none here"),
        (lambda: _state(optimizer=optax.sgd(1e-3)), "opt_state/"),
        (lambda: _state(impl="rbg"), "key is key of threefry2x32.* there, key of rbg.* here"),
        (
            lambda: jax.tree.map(
                lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, _state()
            ),
            "float32.* there, bfloat16.* here",
        ),
        (lambda: {"a": jnp.ones(3)}, r"a is none there, float32\[3\] here"),
    ],
)
def test_a_wrong_template_is_named_and_touches_nothing(like, words, copy):
    (copy / "30/values").write_bytes(b"")  # one is damaged besides
    before = _files(copy)
    run = checkpoints.Checkpoints(copy)
    with pytest.raises(checkpoints.CheckpointError, match=words) as caught:
        run.restore(like())
    assert "\n" not in str(caught.value)
    with pytest.raises(checkpoints.CheckpointError, match=words):
        list(run.states(like()))
    assert _files(copy) == before
    _check(run.restore(_state()), 20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"x64": True}, "x64 is False there, True here"),
        ({"seed": False}, "seed is 0 there, False here"),
        ({"data": {"length": 4}}, "data is"),
        ({"more": None}, "more is none there"),
    ],
)
def test_a_checkpoint_of_another_owner_is_refused(change, words, copy):
    before = _files(copy)
    reader = checkpoints.Checkpoints(copy, owner={**OWNER, **change})
    with pytest.raises(checkpoints.CheckpointError, match=f"belongs to another run: {words}"):
        reader.restore(_state())
    with pytest.raises(checkpoints.CheckpointError, match=words):
        list(reader.states(_state()))
    assert _files(copy) == before
    _check(checkpoints.Checkpoints(copy).restore(_state()), 30)  # anybody's


def test_a_folder_under_another_name_is_refused(small):
    (small / "2").rename(small / "5")
    with pytest.raises(checkpoints.CheckpointError, match="of step 2, renamed"):
        checkpoints.Checkpoints(small).restore(_small())


def test_the_settings_of_jax_are_part_of_an_owner(tmp_path):
    before = checkpoints.jax_settings()
    assert json.loads(json.dumps(before)) == before
    with jax.threefry_partitionable(not before["jax_threefry_partitionable"]):
        assert checkpoints.jax_settings() != before
    with jax.enable_x64(True):
        assert checkpoints.jax_settings() != before
    with jax.default_matmul_precision("highest"):
        assert checkpoints.jax_settings() != before


def test_a_read_only_directory_is_read(small, monkeypatch):
    (small / "2/values").write_bytes(b"")
    before = _files(small)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    said = []
    monkeypatch.setattr(logging, "warning", lambda *args: said.append(args))
    for name in ("mkdir", "rename", "unlink", "touch"):
        monkeypatch.setattr(pathlib.Path, name, refuse)
    assert checkpoints.Checkpoints(small).restore(_small())[0] == 1
    assert _files(small) == before and "read-only" in said[-1][0]


# What a stranger's files may not do.


def _forge(folder, change):
    path = folder / "record.json"
    record = json.loads(path.read_text())["record"]
    change(record)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"record": record, "sha256": digest}))


@pytest.mark.parametrize("name", ["../1/values", "/etc/passwd", "state/../../1/values"])
def test_a_record_names_no_file_outside(name, small):
    _forge(small / "2", lambda record: record["files"].update({name: [1, "0"]}))
    before = _files(small)
    with pytest.raises(checkpoints.CheckpointError, match="names a file outside"):
        checkpoints.Checkpoints(small).restore(_small())
    assert _files(small) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(format=0),
        lambda record: record.pop("files"),
        lambda record: record.update(owner=[1]),
        lambda record: record["history"]["dict"]["loss"].update(array=["<f8", [10**12], 0]),
        lambda record: record["history"]["dict"]["loss"].update(array=["O", [1], 0]),
        lambda record: record.update(files={"values": None}),
        lambda record: record.pop("step"),
    ],
)
def test_a_forged_record_is_an_error_of_one_kind(change, small):
    _forge(small / "2", change)
    with pytest.raises(checkpoints.CheckpointError):
        checkpoints.Checkpoints(small).restore(_small())


def test_arrays_larger_than_the_template_are_never_read(tmp_path):
    big = checkpoints.Checkpoints(tmp_path / "big")
    big.save(1, {"w": jnp.zeros(40_000_000)}, {})
    stored = sum(path.stat().st_size for path in (tmp_path / "big").rglob("*") if path.is_file())
    assert stored < 100_000  # zeros take no place
    _forge(tmp_path / "big/1", lambda record: record["leaves"].update(w="float32[4]"))
    with pytest.raises(checkpoints.CheckpointError, match="not compatible with the stored shape"):
        big.restore({"w": jnp.zeros(4)})


def test_a_deep_record_is_damage(small):
    (small / "2/record.json").write_text("[" * 200_000)
    assert checkpoints.Checkpoints(small).restore(_small())[0] == 1


# Two processes.

_PROCESS = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
port, process, directory, what = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dirasym import checkpoints
mesh = Mesh(np.array(jax.devices()), ("x",))
split = NamedSharding(mesh, PartitionSpec("x"))
def state(value):
    w = jax.make_array_from_callback((4,), split, lambda i: np.full(4, value, np.float32)[i])
    return {"w": w, "n": int(value)}
run = checkpoints.Checkpoints(directory)
def fail(*_, **__):
    raise OSError(13, "Permission denied")
try:
    if what == "save":
        run.save(1, state(1), {"a": 1})
        run.save(2, state(2), {"a": 2})
    if what == "not finite":
        bad = lambda i: np.array([0, 0, 0, np.nan], np.float32)[i]  # in process 1
        run.save(3, {"w": jax.make_array_from_callback((4,), split, bad), "n": 3}, {})
    if what == "unreadable" and process == "1":
        run._orbax.restore = fail
    if what == "unwritable" and process == "1":
        run._orbax.save = fail
    if what == "unwritable":
        run.save(3, state(3), {})
    step, got, history = run.restore(state(0))
    (value,) = {float(x) for shard in got["w"].addressable_shards for x in shard.data}
    assert value == step == got["n"] == history["a"], (value, step, got, history)
    print("step", step, flush=True)
except checkpoints.CheckpointError as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.mark.slow
def test_two_processes_agree(tmp_path, free_port):
    def both(what):
        env = os.environ | {"XLA_FLAGS": ""}
        command = [sys.executable, "-c", _PROCESS, str(free_port)]
        processes = [
            subprocess.Popen(
                [*command, str(n), str(tmp_path / "run"), what],
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in (0, 1)
        ]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        return [output.strip().splitlines()[-1] for output in outputs]  # Gloo speaks first

    assert both("save") == ["step 2", "step 2"]
    for output in both("not finite"):
        assert output.startswith("NonFiniteStateError w is not finite at step 3")
    for what in ("unreadable", "unwritable"):
        for output in both(what):
            assert output.startswith("CheckpointError") and "Permission denied" in output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["1", "2"]
    (tmp_path / "run/2/values").write_bytes(b"more")
    assert both("restore") == ["step 1", "step 1"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["1", "damaged"]
