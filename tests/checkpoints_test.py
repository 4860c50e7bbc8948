import concurrent.futures
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import checkpoints, models, training


def _state(step=0):
    model = models.Transformer(models.radd(11, width=8))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    optimizer = training.make_optimizer(1e-3)
    state = training.create_state(
        models.make_apply_fn(model), params, optimizer, jax.random.key(5), ema=True
    )
    return state.replace(
        step=jnp.int32(step), params=jax.tree.map(lambda x: x + step, state.params)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "seeds0"
    writer = checkpoints.Checkpoints(directory)
    for step in (10, 20, 30):
        history = {"loss": np.arange(float(step)), "eval_step": np.array([0, step])}
        writer.save(step, _state(step), history)
    writer.close()
    return directory


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


def test_round_trip_keeps_the_newest(saved):
    reader = checkpoints.Checkpoints(saved)
    _check(reader.restore(_state()), 30)
    assert not (saved / "10").exists() and not (saved / "10.sizes.json").exists()
    assert checkpoints.Checkpoints(saved.parent / "nothing").restore(_state()) is None


def _files(saved):
    return sorted(p.relative_to(saved) for p in (saved / "30").rglob("*") if p.is_file())


def test_a_damaged_checkpoint_is_set_aside(saved, tmp_path):
    rng = np.random.default_rng(0)
    files = _files(saved)
    for number, name in enumerate(rng.choice(files, 6, replace=False)):
        copy = tmp_path / str(number) / "run"
        shutil.copytree(saved, copy)
        size = (copy / name).stat().st_size
        with (copy / name).open("r+b") as file:
            file.truncate(int(rng.integers(0, size)))
        _check(checkpoints.Checkpoints(copy).restore(_state()), 20)
        assert not (copy / "30").exists()
        assert (copy.parent / "run-damaged-30").exists()


def test_a_damaged_record_of_sizes_is_as_good_as_none(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "30.sizes.json").write_text('{"a')
    _check(checkpoints.Checkpoints(tmp_path / "run").restore(_state()), 30)


def test_damage_without_truncation_is_found_too(saved, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(saved, copy)
    for path in (copy / "30/state").rglob("d/*"):
        path.write_bytes(bytes(path.stat().st_size))
    _check(checkpoints.Checkpoints(copy).restore(_state()), 20)


def test_a_partial_checkpoint_of_a_killed_writer_is_invisible(saved, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(saved, copy)
    (copy / "30").rename(copy / "40.orbax-checkpoint-tmp")
    reader = checkpoints.Checkpoints(copy)
    _check(reader.restore(_state()), 20)
    reader.save(30, _state(30), {"loss": np.arange(30.0), "eval_step": np.array([0, 30])})
    _check(reader.restore(_state()), 30)


def test_results_are_replaced_by_key_and_truncation_is_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    lines = [{"seed": s, "value": s * 1.5} for s in range(3)]
    checkpoints.replace_results(path, lines[:2], ("seed",))
    checkpoints.replace_results(path, lines[1:], ("seed",))
    assert checkpoints.read_results(path) == lines
    text = path.read_text()
    for cut in range(1, len(text.splitlines()[-1]) + 1):
        path.write_text(text[:-cut])
        got = checkpoints.read_results(path)
        assert got == (lines if cut == 1 else lines[:2])
    checkpoints.replace_results(path, [lines[2]], ("seed",))
    assert checkpoints.read_results(path) == lines
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines
    path.write_text("{broken\n" + text)
    with pytest.raises(json.JSONDecodeError):  # not what a crash leaves: do not hide it
        checkpoints.read_results(path)


def test_writers_of_one_results_file_lose_no_line_of_each_other(tmp_path):
    path = tmp_path / "results.jsonl"

    def write(writer):
        for number in range(20):
            line = {"writer": writer, "number": number}
            checkpoints.replace_results(path, [line], ("writer", "number"))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(write, range(4)))
    found = {(line["writer"], line["number"]) for line in checkpoints.read_results(path)}
    assert found == {(writer, number) for writer in range(4) for number in range(20)}
    assert len(path.read_text().splitlines()) == len(found)
