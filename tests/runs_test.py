"""A user's own linen model over seeds, through `runs.sweep`."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dirasym import checkpoints, compile, files, models, results, runs, stopping, training
from dirasym.workdir import WorkDir, WorkDirError, merge

HERE = pathlib.Path(__file__).parent
MODEL = nn.Sequential([nn.Embed(8, 4), nn.Dense(8)])
DATA = {"tokens_BL": np.arange(24, dtype=np.int32).reshape(12, 2) % 8}
OPTIMIZER = optax.adam(1e-2)
SPLIT = types.SimpleNamespace(shape={"data": 1, "model": 2})  # of a mesh, what is asked of it


def _objective(apply_fn, params, batch, key, *, rngs=None):
    del key, rngs
    given, asked = batch.tokens_BL[:, 0], batch.tokens_BL[:, 1]
    nll_B = optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, given), asked)
    return nll_B.sum(), np.float32(len(given)), {}


def _apply_fn(params, tokens):
    return MODEL.apply({"params": params}, tokens)


STEP = functools.partial(training.train_step, objective=_objective, dropout=False)


def _init(seed):
    params = jax.jit(MODEL.init)(jax.random.key(seed), DATA["tokens_BL"][0])["params"]
    return training.create_state(_apply_fn, params, OPTIMIZER, jax.random.key(seed))


def _run(name="a", *, data=lambda seed: DATA, step=STEP, num_steps=12, **changes):
    return runs.Run(
        {"name": name},
        data=data,
        step=step,
        num_steps=num_steps,
        eval_every=4,
        batch_size=4,
        init=_init,
        evaluate=lambda state: {"weight": state.params["layers_1"]["bias"][0]},
        summarize=lambda history: {
            "loss": float(history["loss"][-1]),
            "weight": float(history["weight"][-1]),
        },
        **changes,
    )


def _sweep(all_runs, seeds, workdir, **how):
    return runs.sweep(all_runs, seeds, workdir, progress=False, **how)


def _without_time(lines):
    return [{k: v for k, v in line.items() if k != "run_wall_time_sec"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep: (its lines, its directory)."""
    path = tmp_path_factory.mktemp("finished")
    return _sweep([_run("a"), _run("b")], [0, 1, 2], path), path


def test_lines_say_run_seed_and_what_summarize_says(finished):
    lines, path = finished
    assert [(line["name"], line["seed"]) for line in lines] == [
        (name, seed) for name in "ab" for seed in (0, 1, 2)
    ]
    assert lines == results.read_results(path / "results.jsonl")
    workdir = WorkDir(path)
    for line in lines:
        history = workdir.curves(_run(line["name"]), line["seed"])
        assert history["loss"].shape == (12,) and line["loss"] == history["loss"][-1]
        assert history["eval_step"].tolist() == [0, 4, 8, 12]
        assert history["weight"].shape == (4,) and line["weight"] == history["weight"][-1]
        want = _init(line["seed"]).params["layers_1"]["bias"][0]
        assert history["weight"][0] == want
    stacked = workdir.stacked(_run("a"), [0, 1, 2])
    np.testing.assert_array_equal(stacked["loss"][-1], [line["loss"] for line in lines[:3]])


def test_the_steps_are_those_of_the_library(finished):
    lines, _ = finished
    state = _init(1)
    steps = jax.jit(training.scan_steps(STEP, num_steps=12, batch_size=4))
    _, metrics = steps(state, DATA)
    np.testing.assert_allclose(lines[1]["loss"], metrics["loss"][-1], rtol=1e-6)


def test_what_is_done_is_not_trained_again(finished):
    lines, path = finished
    broken = _run("a", step=None)  # would fail if it were called
    assert _sweep([broken], [0, 1, 2], path, recipe=False) == lines[:3]


def test_lost_or_cut_curves_are_written_again(finished, tmp_path):
    lines, _ = finished
    again = _sweep([_run("a")], [0], tmp_path)
    file = tmp_path / "curves" / "name=a,seed=0.npz"
    content = file.read_bytes()
    for damage in (content[:100], b""):
        file.write_bytes(damage)
        assert _without_time(_sweep([_run("a")], [0], tmp_path)) == _without_time(again)
        assert WorkDir(tmp_path).curves(_run("a"), 0)["loss"].shape == (12,)
    assert _without_time(again) == _without_time(lines[:1])


def test_no_damage_of_curves_is_an_error_of_another_kind(finished):
    _, path = finished
    workdir, file = WorkDir(path), path / "curves" / "name=b,seed=2.npz"
    content, want = file.read_bytes(), WorkDir(path).curves(_run("b"), 2)
    rng, found = np.random.default_rng(0), []
    for place in rng.integers(len(content), size=300):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        found.append(not workdir.missing([(_run("b"), 2)]))
        if found[-1]:  # what is left says the same, or misses an array whose name has changed
            got = workdir.curves(_run("b"), 2)
            assert all(np.array_equal(x, want[key]) for key, x in got.items() if key in want)
    file.write_bytes(content)
    assert np.mean(found) < 0.5


def test_seeds_in_one_program_are_those_one_after_another(finished, tmp_path):
    lines, _ = finished
    together = _sweep([_run("a")], [0, 1, 2], tmp_path / "shared", together=True)
    own = _run("a", data=lambda seed: {"tokens_BL": DATA["tokens_BL"].copy()})
    apart = _sweep([own], [0, 1, 2], tmp_path / "own", together=True)
    for one, other, want in zip(together, apart, lines, strict=False):
        np.testing.assert_allclose(one["loss"], want["loss"], rtol=1e-5)
        np.testing.assert_allclose(other["loss"], want["loss"], rtol=1e-5)


class _Stops(Exception):
    pass


def _stopping_after(evaluations):
    """A run that dies in its so-many-th evaluation."""
    count = 0
    run = _run("a")

    def evaluate(state):
        nonlocal count
        count += 1
        if count > evaluations:
            raise _Stops
        return run.evaluate(state)

    return runs.Run(**{**vars_of(run), "evaluate": evaluate})


def vars_of(run):
    names = ("identity", "data", "step", "num_steps", "eval_every", "batch_size", "init")
    return {name: getattr(run, name) for name in (*names, "evaluate", "summarize")}


@pytest.mark.parametrize("first", [True, False])
def test_begun_one_way_and_finished_the_other(finished, tmp_path, first):
    lines, _ = finished
    with pytest.raises(_Stops):  # together: two evaluations of three seeds, and one more
        _sweep([_stopping_after(7)], [0, 1, 2], tmp_path, together=first)
    steps = {path.name for path in tmp_path.glob("checkpoints/*/[0-9]*")}
    assert steps, "nothing to resume from"
    got = _sweep([_run("a")], [0, 1, 2], tmp_path, together=not first)
    for line, want in zip(got, lines, strict=False):
        np.testing.assert_allclose(line["loss"], want["loss"], rtol=1e-5)
    history = WorkDir(tmp_path).curves(_run("a"), 2)
    assert history["eval_step"].tolist() == [0, 4, 8, 12] and history["loss"].shape == (12,)


def test_a_group_whose_seeds_were_saved_apart_ends_in_the_same_bits(tmp_path):
    want = _sweep([_run("a")], [0, 1], tmp_path / "want", together=True)
    with pytest.raises(_Stops):
        _sweep([_stopping_after(4)], [0, 1], tmp_path / "cut", together=True)
    newest = WorkDir(tmp_path / "cut").checkpoints(_run("a"), 0).directory
    assert [p.name for p in newest.glob("[0-9]*")] == ["4"]
    shutil.rmtree(tmp_path / "cut/checkpoints/name=a,seed=1")  # killed before it was saved
    got = _sweep([_run("a")], [0, 1], tmp_path / "cut", together=True)
    assert _without_time(got) == _without_time(want)


def test_shards_share_a_directory_or_are_merged(finished, tmp_path):
    lines, _ = finished
    both = [_run("a"), _run("b")]
    for part in (0, 1):
        _sweep(both, [0, 1, 2], tmp_path / "one", shard=(part, 2))
        _sweep(both, [0, 1, 2], tmp_path / f"part{part}", shard=(part, 2))
    into = WorkDir(tmp_path / "joined")
    parts = [WorkDir(tmp_path / f"part{part}") for part in (0, 1)]
    assert [len(part.results()) for part in parts] == [3, 3]
    merge(parts, into)
    for path in ("one", "joined"):
        broken = [_run("a", step=None), _run("b", step=None)]
        got = _sweep(broken, [0, 1, 2], tmp_path / path, recipe=False)
        assert _without_time(got) == _without_time(lines)


def test_shards_are_merged_by_their_paths_too(tmp_path):
    config = {"rate": 0.1}
    for part in (0, 1):
        workdir = WorkDir(tmp_path / f"part{part}", config)
        _sweep([_run("a")], [0, 1], workdir, shard=(part, 2))
    parts = [tmp_path / "part0", str(tmp_path / "part1")]
    for _ in range(2):  # anew, and once more into what is there
        merge(parts, tmp_path / "joined")
    lines = WorkDir(tmp_path / "joined", config).results()
    assert [line["seed"] for line in lines] == [0, 1]
    WorkDir(tmp_path / "other", {"rate": 0.2})
    with pytest.raises(WorkDirError, match="part0 holds another configuration than"):
        merge(parts, tmp_path / "other")
    for given, into, message in (
        ("part0", "x", "parts must be a list of work directories, got 'part0'"),
        ([], "x", "parts is empty: give at least one of work directories"),
        ([3], "x", "parts must be a path, got 3"),
        (parts, 3, "into must be a path, got 3"),
        ([tmp_path / "none"], "x", "none is no work directory"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            merge(given, into)


def test_the_time_limit_stops_between_evaluations_and_the_same_call_goes_on(finished, tmp_path):
    lines, _ = finished
    with pytest.raises(stopping.Stopped, match=r"time limit.*name=a,seed=0 is saved at step 4"):
        _sweep([_run("a")], [0], tmp_path, time_limit=0)
    assert _without_time(_sweep([_run("a")], [0], tmp_path)) == _without_time(lines[:1])


def test_checkpoints_may_be_rarer_than_evaluations(finished, tmp_path):
    lines, _ = finished
    how = dict(checkpoint_every=2, keep_checkpoints=True)
    got = _sweep([_run("a")], [0], tmp_path / "whole", **how)
    folder = tmp_path / "whole/checkpoints/name=a,seed=0"
    assert {int(path.name) for path in folder.iterdir()} == {8, 12}  # the last one too
    assert _without_time(got) == _without_time(lines[:1])
    with pytest.raises(ValueError, match="checkpoint_every must be a whole number from 1, got 0"):
        _sweep([_run("a")], [0], tmp_path / "none", checkpoint_every=0)
    for keep, want in ((True, {4, 8, 12}), (False, {8, 12})):
        _sweep([_run("a")], [0], tmp_path / f"{keep}", keep_checkpoints=keep)
        folder = tmp_path / f"{keep}/checkpoints/name=a,seed=0"
        assert {int(path.name) for path in folder.iterdir()} == want
    with pytest.raises(stopping.Stopped, match="is saved at step 4"):
        _sweep([_run("a")], [0], tmp_path / "cut", time_limit=0, **how)
    assert _without_time(_sweep([_run("a")], [0], tmp_path / "cut", **how)) == _without_time(got)


def test_dry_run_counts_and_writes_nothing(tmp_path):
    (line,) = _sweep([_run("a")], [0, 1], tmp_path / "none", dry_run=True)
    assert line["parameters"] == 8 * 4 + 4 * 8 + 8
    assert line["steps"] == 12 and line["seeds"] == 2
    # The products alone, forward and backward: 2·B·(C·F) each for y, dx and dW.
    products = 3 * 2 * 4 * 4 * 8 * 12 * 2
    assert products <= line["flops"] <= 20 * products
    assert not (tmp_path / "none").exists()


class _Writer:
    def __init__(self):
        self.said = []

    def open(self, name, config):
        self.said.append(("open", name, config))

    def scalars(self, name, step, values):
        self.said.append((name, step, values))

    def close(self, name):
        self.said.append(("close", name))


def test_writers_and_csv_hold_what_was_logged(tmp_path):
    writer = _Writer()
    _sweep([_run("a")], [5], tmp_path, writers=[writer])
    history = WorkDir(tmp_path).curves(_run("a"), 5)
    assert writer.said[0] == ("open", "name=a,seed=5", {"name": "a"})
    assert writer.said[-1] == ("close", "name=a,seed=5")
    name, step, values = writer.said[-2]
    assert name == "name=a,seed=5" and step == 12 and values["loss"] == history["loss"][-1]
    assert values["weight"] == history["weight"][-1]
    header, *rows = (tmp_path / "curves/name=a,seed=5.csv").read_text().split()
    assert header == "step,loss,grad_norm,weight"
    assert [row.split(",")[0] for row in rows] == ["0", "4", "8", "12"]
    np.testing.assert_allclose(float(rows[2].split(",")[1]), history["loss"][4:8].mean())
    np.testing.assert_allclose(float(rows[3].split(",")[3]), history["weight"][3])


def test_writers_are_told_which_seed_and_are_closed_when_it_stops(tmp_path):
    def until(step):
        def evaluate(state):
            if int(state.step) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

        return dataclasses.replace(_run("a"), evaluate=evaluate, summarize=lambda history: {})

    writer = _Writer()
    names = ["name=a,seed=0", "name=a,seed=1"]
    with pytest.raises(stopping.Stopped):
        _sweep([until(4)], [0, 1], tmp_path, writers=[writer], together=True)
    assert [what[:2] for what in writer.said[:2]] == [("open", name) for name in names]
    lasts = {name: values["loss"] for name, step, values in writer.said[2:-2] if step == 4}
    assert writer.said[-2:] == [("close", name) for name in names]
    _sweep([until(-1)], [0, 1], tmp_path, together=True)
    losses = {name: WorkDir(tmp_path).curves(_run("a"), int(name[-1])) for name in names}
    assert lasts == {name: float(curves["loss"][3]) for name, curves in losses.items()}


def test_finish_gets_the_last_state_and_a_folder(tmp_path):
    def finish(state, folder):
        (folder / "step").write_text(str(int(state.step)))
        return {"last": np.arange(3)}

    _sweep([_run("a", finish=finish)], [0], tmp_path)
    assert (tmp_path / "files/name=a,seed=0/step").read_text() == "12"
    assert WorkDir(tmp_path).curves(_run("a"), 0)["last"].tolist() == [0, 1, 2]


def test_a_non_finite_loss_names_run_step_and_checkpoint(tmp_path):
    def poisoned(state, batch, **kwargs):
        state, metrics = STEP(state, batch, **kwargs)
        loss = jax.numpy.where(state.step == 7, np.nan, metrics["loss"])
        return state, metrics | {"loss": loss}

    with pytest.raises(training.NonFiniteLossError, match=r"step 7 of name=a,seed=0.*/4"):
        _sweep([_run("a", step=poisoned)], [0], tmp_path)
    assert results.read_results(tmp_path / "results.jsonl") == []


@pytest.mark.parametrize("ruined", [8, 12])
def test_an_evaluation_that_stops_being_finite_is_not_saved(ruined, tmp_path):
    """Nor recorded, if it is the last. One that never was finite could not be measured."""

    def evaluate(state):
        value = jax.numpy.where(state.step >= ruined, np.inf, 1.0)
        return {"weight": value, "never": np.nan, "many": value * np.ones(3)}

    run = dataclasses.replace(_run("a"), evaluate=evaluate)
    with pytest.raises(
        checkpoints.NonFiniteStateError,
        match=rf"evaluation weight is not finite at step {ruined} of name=a,seed=0.*/{ruined - 4}$",
    ):
        _sweep([run], [0], tmp_path)
    saved = tmp_path / "checkpoints/name=a,seed=0"
    assert max(int(path.name) for path in saved.glob("[0-9]*")) == ruined - 4
    assert results.read_results(tmp_path / "results.jsonl") == []


def test_weights_that_stop_being_finite_name_run_and_checkpoint(tmp_path):
    def poisoned(state, batch, **kwargs):
        state, metrics = STEP(state, batch, **kwargs)
        ruin = jax.numpy.where(state.step == 12, np.nan, 0.0)
        return state.replace(params=jax.tree.map(lambda x: x + ruin, state.params)), metrics

    run = dataclasses.replace(_run("a", step=poisoned), evaluate=None)
    with pytest.raises(checkpoints.NonFiniteStateError, match=r"step 12 of name=a,seed=0.*/8$"):
        _sweep([run], [0], tmp_path)


def test_runs_that_cannot_be_are_refused(tmp_path):
    for error, call in {
        "runs of one identity": lambda: _sweep([_run(), _run()], [0], tmp_path / "x"),
        "seeds": lambda: _sweep([_run()], [0, 0], tmp_path / "x"),
        r"shard must be \(i, n\) with 0 <= i < n, got \(2, 2\)": lambda: _sweep(
            [_run()], [0], tmp_path / "x", shard=(2, 2)
        ),
        "multiple of eval_every": lambda: _run(num_steps=13),
        "num_steps must be a whole number from 1, got 0": lambda: _run(num_steps=0),
        "batch of 4 is not divisible by 3": lambda: _sweep(
            [_run()], [0], tmp_path / "x", mesh=types.SimpleNamespace(shape={"data": 3})
        ),
        "mesh: a batch is split along an axis 'data'; this has 'x', 'y'": lambda: _sweep(
            [_run()], [0], tmp_path / "x", mesh=types.SimpleNamespace(shape={"x": 1, "y": 1})
        ),
        "a mesh without axis 'model'": lambda: _sweep(
            [_run()], [0], tmp_path / "x", mesh=SPLIT, together=True
        ),
        "need backend 'jit'": lambda: _sweep(
            [_run()], [0], tmp_path / "x", together=True, backend="pmap"
        ),
    }.items():
        with pytest.raises(ValueError, match=error):
            call()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(identity=3), "identity must be a dict, got 3"),
        (dict(identity={"seed": 1}), "identity: 'seed' is a name that result lines have"),
        (dict(identity={"run_wall_time_sec": 1}), "identity: 'run_wall_time_sec' is a name"),
        (dict(identity={"m": np.arange(3)}), "identity: m must be a JSON scalar, got a ndarray"),
        (dict(identity={"m": [1]}), "identity: m must be a JSON scalar, got a list"),
        (dict(identity={"m": np.nan}), "identity: m is nan, for which JSON has no word"),
        (dict(identity={1: 2}), "identity: the name 1 is no string"),
        (dict(num_steps=8.0), r"num_steps must be a whole number from 1, got 8\.0"),
        (dict(eval_every="4"), "eval_every must be a whole number from 1, got '4'"),
        (dict(batch_size=True), "batch_size must be a whole number from 1, got True"),
    ],
)
def test_a_run_that_cannot_be_is_refused_when_it_is_made(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dataclasses.replace(_run(), **changes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(all_runs=[]), "all_runs is empty: give at least one of runs"),
        (dict(all_runs=_run()), "all_runs must be a list of runs, got Run"),
        (dict(all_runs=["a"]), "all_runs must be a list of runs, and holds 'a'"),
        (dict(seeds=()), "seeds is empty"),
        (dict(seeds=3), "seeds must be a list of whole numbers, got 3"),
        (dict(seeds="01"), "seeds must be a list of whole numbers, got '01'"),
        (dict(seeds=(0.5,)), r"seeds must be a whole number from 0, got 0\.5"),
        (dict(seeds=(-1,)), "seeds must be a whole number from 0, got -1"),
        (dict(seeds=(2**32,)), r"seeds must be below 2\*\*32, got 4294967296"),
        (dict(shard="0/2"), r"shard must be \(i, n\) with 0 <= i < n, got '0/2'"),
        (dict(shard="01"), r"shard must be \(i, n\)"),
        (dict(shard=(-1, 2)), r"shard must be \(i, n\)"),
        (dict(shard=(0, 2.0)), r"shard must be \(i, n\)"),
        (dict(shard=1), r"shard must be \(i, n\)"),
        (dict(together="yes"), "together must be True, False or 'auto', got 'yes'"),
        (dict(backend="x"), "backend must be 'jit' or 'pmap', got 'x'"),
        (dict(mesh="data"), r"mesh must be a jax\.sharding\.Mesh, got 'data'"),
        (dict(writers=["x"]), r"writers: 'x' has no open\(\)"),
        (dict(writers=object()), "writers must be a list of writers, got <object"),
        (dict(writers="x"), "writers must be a list of writers, got 'x'"),
        (dict(checkpoint_every=1.5), r"checkpoint_every must be a whole number from 1, got 1\.5"),
        (dict(workdir=3), "workdir must be a path, got 3"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_trains(given, message, tmp_path):
    how = dict(all_runs=[_run()], seeds=[0], workdir=tmp_path / "x") | given
    with pytest.raises((TypeError, ValueError), match=message):
        runs.sweep(progress=False, **how)
    assert not (tmp_path / "x").exists()


def _logs_no_loss(state, batch, **_):
    return state, {"nll": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data=lambda seed: np.ones((2, 2))), "data must return a dict of Batch fields, got a"),
        (
            dict(data=lambda seed: {"tokens": DATA}),
            "data: 'tokens' is none of noised_BL",
        ),
        (dict(data=lambda seed: {}), "data lacks tokens_BL"),
        (dict(data=lambda seed: {"tokens_BL": np.ones((4, 2))}), "tokens_BL must be integers, got"),
        (
            dict(data=lambda seed: DATA | {"scored_BL": np.zeros((12, 2), bool)}),
            "scored is False at every valid token",
        ),
        (
            dict(init=lambda seed: _init(seed).params),
            "init must return a TrainState",
        ),
        (dict(step=None), r"step must be a function of \(state, batch\), got None"),
        (
            dict(step=lambda state, batch: state),
            r"step must return \(state, metrics\)",
        ),
        (dict(step=_logs_no_loss), "step: its metrics lack loss"),
        (dict(evaluate=lambda state: 1.0), "evaluate must return a dict of arrays, got a float"),
        (
            dict(evaluate=lambda state: {"a": "x"}),
            "evaluate: a must be an array of numbers",
        ),
        (dict(evaluate=lambda state: {"loss": 1.0}), "evaluate: 'loss' is a curve of the steps"),
        (dict(evaluate=lambda state: {"count": 1.0}), "evaluate: 'count' is a curve of the steps"),
        (dict(evaluate=lambda state: {"eval_step": 1}), "evaluate: 'eval_step' is a curve of the"),
    ],
)
def test_functions_that_return_what_they_cannot_are_named_before_it_trains(
    changes, message, tmp_path
):
    run = dataclasses.replace(_run(), **changes)
    with pytest.raises((TypeError, ValueError), match=message):
        _sweep([run], [0], tmp_path, recipe=False)
    assert not list(tmp_path.glob("c*/*"))  # neither curves nor checkpoints


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (None, "summarize must return a dict, got a NoneType"),
        ({"seed": 9}, "summarize: 'seed' is what the run is known by"),
        ({"run_wall_time_sec": 9}, "summarize: 'run_wall_time_sec' is what"),
        ({"name": "b"}, "summarize: 'name' is what the run is known by"),
    ],
)
def test_a_summary_does_not_overwrite_what_the_run_is_known_by(line, message, tmp_path):
    run = dataclasses.replace(_run("a"), summarize=lambda history: line)
    with pytest.raises((TypeError, ValueError), match=message):
        _sweep([run], [0], tmp_path)
    assert results.read_results(tmp_path / "results.jsonl") == []
    # Nothing is lost: what was trained is recorded when it says something else.
    (got,) = _sweep(
        [dataclasses.replace(run, step=STEP, summarize=_run().summarize)], [0], tmp_path
    )
    assert got["seed"] == 0 and got["name"] == "a"


def test_a_directory_belongs_to_one_configuration_and_one_process(tmp_path):
    WorkDir(tmp_path, {"rate": 0.1})
    with pytest.raises(WorkDirError, match=r"rate=0\.1 there, 0\.2 here"):
        WorkDir(tmp_path, {"rate": 0.2})
    with WorkDir(tmp_path, {"rate": 0.1}).locked(), pytest.raises(files.LockedError):
        _sweep([_run()], [0], WorkDir(tmp_path, {"rate": 0.1}))
    for damage in ("[]", "null", "{", "[" * 100_000, '{"config": 3, "jax": {}}'):
        (tmp_path / "config.json").write_text(damage)
        with pytest.raises(WorkDirError, match="holds no configuration"):
            WorkDir(tmp_path, {"rate": 0.1})


def test_another_optimizer_or_number_of_steps_under_one_name_is_refused(finished, tmp_path):
    lines, path = finished
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    run = _run("a")

    def with_rate(rate):
        def init(seed):
            state = _init(seed)
            tx = optax.adam(rate)
            return state.replace(tx=tx, opt_state=tx.init(state.params))

        return dataclasses.replace(run, init=init)

    assert _sweep([with_rate(1e-2)], [0], tmp_path) == lines[:1]  # another object, the same step
    other = r"a was trained with another step \(model, objective or optimizer\): put what you vary"
    with pytest.raises(WorkDirError, match=other):
        _sweep([with_rate(2e-2)], [0], tmp_path)
    with pytest.raises(WorkDirError, match="with another num_steps: put"):
        _sweep([dataclasses.replace(run, num_steps=16)], [0], tmp_path)
    assert _sweep([with_rate(2e-2)], [0], tmp_path, recipe=False) == lines[:1]
    note = tmp_path / "recipes" / "name=a.json"
    note.write_text(note.read_text().replace('"jax": "', '"jax": "0.'))
    assert _sweep([with_rate(2e-2)], [0], tmp_path) == lines[:1]  # other versions: unknown
    assert _sweep([with_rate(2e-2)], [7], tmp_path / "new")[0]["seed"] == 7


def test_another_constant_of_what_the_step_compiles_within_is_refused(tmp_path):
    def run(last):
        weight_2 = jnp.array([1.0, last])
        weigh = jax.jit(lambda nll: (nll * weight_2).sum())

        def objective(*args, **kwargs):
            nll, count, aux = _objective(*args, **kwargs)
            return weigh(nll), count, aux

        return _run(step=functools.partial(STEP.func, objective=objective, dropout=False))

    lines = _sweep([run(2.0)], [0], tmp_path)
    assert _sweep([run(2.0)], [0], tmp_path) == lines
    with pytest.raises(WorkDirError, match="another step"):
        _sweep([run(3.0)], [0], tmp_path)


def test_names_are_short_and_differ():
    long = [runs.Run(**{**vars_of(_run()), "identity": {"x": "y" * 300 + z}}) for z in "ab"]
    assert all(len(run.name) <= 150 for run in long) and long[0].name != long[1].name
    odd = runs.Run(**{**vars_of(_run()), "identity": {"x": "a/b c"}})
    assert odd.name == "x=a_b_c"


def _example():
    text = (HERE.parent / "docs/runs.md").read_text()
    return text.split("```python\n")[1].split("```")[0]


def test_the_examples_of_varying_and_of_two_directories_do_what_they_say(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    blocks = (HERE.parent / "docs/runs.md").read_text().split("```python\n")[1:4]
    first, vary, shards = (block.split("```")[0] for block in blocks)
    first = first.replace("num_steps=2000, eval_every=200", "num_steps=4, eval_every=2")
    assert "num_steps=4" in first
    names = {}
    exec(first.rsplit("\n", 2)[0], names)  # without its own sweep
    exec(vary, names)
    lines = results.read_results("runs/rates/results.jsonl")
    pairs = [(rate, seed) for rate in (1e-3, 3e-3, 1e-2) for seed in (0, 1, 2)]
    assert [(line["rate"], line["seed"]) for line in lines] == pairs
    assert len({line["loss"] for line in lines}) == 9
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed] == [[f"{r}", f"{s}"] for r, s in pairs]
    made = []
    monkeypatch.setattr(
        runs, "compile_scan", lambda *a, **k: made.append(compile.compile_scan(*a, **k)) or made[-1]
    )
    exec(shards.rsplit("\n", 2)[0], names)
    before = len(made)
    exec(shards.rsplit("\n", 2)[1], names)
    assert len(made) == before > 0  # it trained nothing more
    assert _without_time(names["lines"]) == _without_time(lines)


@pytest.mark.slow
def test_the_example_of_the_docs_is_killed_and_resumes(tmp_path):
    """A script of some twenty lines, killed while it trains, ends in the same bits."""
    script = tmp_path / "study.py"
    script.write_text(_example())
    assert len([line for line in _example().splitlines() if line]) <= 21
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(script)]

    def finish(folder):
        folder.mkdir(exist_ok=True)
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        lines = (folder / "runs/mine/results.jsonl").read_text().splitlines()
        return _without_time([json.loads(line) for line in lines])

    want = finish(tmp_path / "whole")
    cut = tmp_path / "cut"
    cut.mkdir()
    for _ in range(2):
        process = subprocess.Popen(command, cwd=cut, env=env, stderr=subprocess.DEVNULL)
        before = len(list(cut.glob("runs/mine/checkpoints/*/[0-9]*")))
        while process.poll() is None:
            if len(list(cut.glob("runs/mine/checkpoints/*/[0-9]*"))) > before:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert finish(cut) == want


def test_a_sweep_inside_a_sweep_keeps_its_time_and_tells_it_of_signals():
    with stopping.Stopping(time_limit=0), stopping.Stopping(time_limit=9) as inner:
        with pytest.raises(stopping.Stopped, match="the time limit"):
            inner.check("here")
    with stopping.Stopping(time_limit=9), stopping.Stopping(time_limit=0) as inner:
        assert inner.reason() == "the time limit"
    with stopping.Stopping() as outer:
        with stopping.Stopping() as inner:
            inner.check("here")
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(stopping.Stopped, match="SIGTERM"):
            outer.check("here")
    with stopping.Stopping() as alone:
        alone.check("here")


def test_a_time_that_no_clock_reaches_is_refused(tmp_path):
    with pytest.raises(ValueError, match="time_limit must be a number of minutes, got nan"):
        _sweep([_run()], [0], tmp_path, time_limit=float("nan"))
    with pytest.raises(ValueError, match="time_limit must be a number of minutes, got -1"):
        _sweep([_run()], [0], tmp_path / "x", time_limit=-1)
    with pytest.raises(TypeError, match="time_limit must be a number, got '5'"):
        stopping.Stopping("5")
    assert stopping.Stopping(0.0).reason() != "" and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "no folder") for name in "curves checkpoints files recipes figures".split()),
        ("report.md", "no file"),
        (".lock", "no file"),
        (".results.jsonl.lock", "no file"),
        ("results.jsonl", "no directory for"),
    ],
)
def test_what_stands_where_results_go_is_found_before_training(name, words, tmp_path):
    place = tmp_path / name
    place.symlink_to(tmp_path / "nowhere/at/all")
    with pytest.raises(WorkDirError, match=f"{words}.*{name}|{name}.*{words}"):
        WorkDir(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing was written
    place.unlink()
    (tmp_path / "elsewhere").mkdir()
    if words == "no folder":
        place.symlink_to(tmp_path / "elsewhere")  # on another disk, say
    else:
        place.symlink_to(tmp_path / "elsewhere/file")  # which is not yet made
    (tmp_path / ".clockwork").mkdir()  # somebody's own
    WorkDir(tmp_path)


def test_the_time_of_a_run_is_of_all_that_it_does(tmp_path, monkeypatch):
    """Its states, evaluations and checkpoints with its steps, over all that it takes to the end."""
    now, run, save = [0.0], _run("a"), checkpoints.Checkpoints.save

    def taking(seconds, work):
        def timed(*args):
            now[0] += seconds
            return work(*args)

        return timed

    monkeypatch.setattr(runs, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(checkpoints.Checkpoints, "save", taking(10, save))
    monkeypatch.setattr(stopping.Stopping, "fetch", taking(1000, stopping.Stopping.fetch))
    slow = dataclasses.replace(run, init=taking(100, run.init), evaluate=taking(1, run.evaluate))

    def of(workdir, seeds, **how):
        return [line["run_wall_time_sec"] for line in _sweep([slow], seeds, workdir, **how)]

    # The recipe draws a state too, before the run begins.
    assert of(tmp_path / "one", [0]) == [100 + 3 * 1000 + 4 * 1 + 3 * 10]
    together = 2 * 100 + 3 * 1000 + 2 * (4 * 1 + 3 * 10)
    assert of(tmp_path / "both", [0, 1], together=True) == [together] * 2
    assert of(tmp_path / "apart", [0, 1], together=False) == [3134, 3134]
    with pytest.raises(stopping.Stopped):
        of(tmp_path / "cut", [0], time_limit=0)
    before, after = 100 + 1000 + 2 * 1, 100 + 2 * 1000 + 2 * 1 + 2 * 10
    assert of(tmp_path / "cut", [0]) == [before + after]


def test_a_stopped_run_trains_what_is_left_alone(tmp_path):
    steps = []

    def evaluate(state):
        steps.append(int(state.step))
        return {}

    run = dataclasses.replace(_run("a"), evaluate=evaluate, summarize=lambda history: {})
    with pytest.raises(stopping.Stopped):
        _sweep([run], [0], tmp_path, time_limit=0)
    assert steps == [0, 4]
    _sweep([run], [0], tmp_path)
    assert steps == [0, 4, 8, 12]


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    with pytest.raises(stopping.Stopped):
        _sweep([_run("a")], [0], tmp_path, time_limit=0)
    other = _run("a", data=lambda seed: {"tokens_BL": DATA["tokens_BL"][::-1].copy()})
    with pytest.raises(checkpoints.CheckpointError, match="belongs to another run: data is"):
        _sweep([other], [0], tmp_path)


def test_what_is_frozen_is_not_saved_and_is_there_again(tmp_path):
    def init(seed):
        params = _init(seed).params
        trained, frozen = ({name: params[name]} for name in ("layers_1", "layers_0"))
        key = jax.random.key(seed)
        return training.create_state(_apply_fn, trained, OPTIMIZER, key, frozen=frozen)

    run = dataclasses.replace(_run("a"), init=init)
    want = _sweep([run], [0], tmp_path / "whole")
    with pytest.raises(stopping.Stopped):
        _sweep([run], [0], tmp_path / "cut", time_limit=0)
    (record,) = tmp_path.glob("cut/checkpoints/*/4/record.json")
    assert "layers_1" in record.read_text() and "layers_0" not in record.read_text()
    assert _without_time(_sweep([run], [0], tmp_path / "cut")) == _without_time(want)


def test_seeds_in_one_program_have_each_its_own_data(tmp_path):
    run = _run("a", data=lambda seed: {"tokens_BL": (DATA["tokens_BL"] + seed) % 8})
    together, apart = (
        _sweep([run], [0, 1], tmp_path / f"{how}", together=how) for how in (True, False)
    )
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)


def test_seeds_train_together_on_accelerators_where_they_can(monkeypatch):
    for platform, want in (("cpu", [False] * 3), ("gpu", [True, False, False])):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        ways = ({}, dict(backend="pmap"), dict(mesh=SPLIT))
        assert [runs.check([_run()], [0], **how) for how in ways] == want


def test_runs_share_a_program_where_all_of_it_is_the_same(monkeypatch):
    told = []
    monkeypatch.setattr(runs, "compile_scan", lambda step, **how: told.append(how) or object())
    programs = runs._Programs("jit", None)
    other = functools.partial(training.train_step, objective=_objective)
    changes = (
        {},
        dict(batch_size=6),
        dict(eval_every=6),
        dict(whole_epochs=True),
        dict(step=other),
    )
    made = [programs.get(dataclasses.replace(_run(), **change)) for change in changes]
    assert len(set(made)) == 5 and programs.get(_run("b")) is made[0]
    assert programs.get(_run(), over_seeds=True) not in made
    given = [(how["batch_size"], how["num_steps"], how["whole_epochs"]) for how in told[:4]]
    assert given == [(4, 4, False), (6, 4, False), (4, 6, False), (4, 4, True)]


def test_programs_are_forgotten_before_memory_maps_run_out(tmp_path, monkeypatch):
    client = jax.devices()[0].client
    double = jax.jit(lambda x: 2 * x)
    double(1.0)
    before = len(client.live_executables())
    compile.make_room(share=1.0)
    assert len(client.live_executables()) == before > 0
    compile.make_room(share=0.0)
    assert not client.live_executables()
    assert double(1.0) == 2
    asked = []
    monkeypatch.setattr(runs, "make_room", lambda: asked.append(1))
    runs.sweep([_run("a"), _run("b")], [0, 1], tmp_path, progress=False)
    assert len(asked) == 4  # before each training


def test_seeds_together_hold_their_states_once(tmp_path):
    held = []

    def evaluate(state):
        bytes_of = {id(x): x.nbytes for x in jax.live_arrays() if x.shape[-2:] == (4096, 32)}
        held.append(sum(bytes_of.values()))
        return {}

    model = nn.Embed(4096, 32)
    apply_fn = models.make_tokens_apply_fn(model)

    def init(seed):
        params = model.init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
        return training.create_state(apply_fn, params, OPTIMIZER, jax.random.key(seed))

    run = dataclasses.replace(_run("a"), init=init, evaluate=evaluate, summarize=lambda found: {})
    _sweep([run], range(6), tmp_path, together=True)
    one = 3 * 4 * 4096 * 32  # parameters and Adam's two moments, in float32
    assert len(held) == 6 * 4
    # At step 0 those of each seed; then those of all together, and the one that is asked.
    assert set(held[:6]) == {6 * one} and set(held[6:]) == {7 * one}


def test_results_under_other_settings_of_jax_are_other_results(tmp_path):
    one = WorkDir(tmp_path / "one", {"rate": 0.1})
    with jax.enable_x64(True):
        with pytest.raises(WorkDirError, match="jax_enable_x64=False there, True here"):
            WorkDir(tmp_path / "one", {"rate": 0.1})
        assert WorkDir(tmp_path / "two", {"rate": 0.1}).exp_id != one.exp_id


def test_configurations_that_share_a_results_file_keep_each_its_own_lines(tmp_path):
    both = [WorkDir(tmp_path / n, {"n": n}, results_path=tmp_path / "all.jsonl") for n in "ab"]
    for value, workdir in enumerate(both):
        workdir.record(_run(), 0, {"value": value})
    both[0].record(_run(), 0, {"value": 2})
    assert [[line["value"] for line in workdir.results()] for workdir in both] == [[2], [1]]
    with pytest.raises(WorkDirError, match="holds another configuration than"):
        merge(both[:1], both[1])
    assert both[1].line(_run(), 0)["value"] == 1


def test_what_has_no_time_axis_is_stacked_by_seeds_first(tmp_path):
    workdir, run = WorkDir(tmp_path), _run()
    for seed in (0, 1):
        history = {"loss": np.arange(3.0), "last": np.float32(seed), "weights_a": np.ones((4, 5))}
        workdir.save_curves(run, seed, history | {"eval_step": np.arange(2)})
    stacked = workdir.stacked(run, [0, 1], seeds_first=("weights_",))
    shapes = {name: x.shape for name, x in stacked.items()}
    assert shapes == {"loss": (3, 2), "last": (2,), "weights_a": (2, 4, 5), "eval_step": (2,)}
    assert stacked["last"].tolist() == [0, 1]


def test_shards_work_side_by_side_and_nobody_else(tmp_path):
    workdir = WorkDir(tmp_path)
    with workdir.locked((0, 2)):
        with workdir.locked((1, 2)):
            pass
        for shard in ((0, 2), None):
            with pytest.raises(files.LockedError), workdir.locked(shard):
                pass
    with workdir.locked(), pytest.raises(files.LockedError), workdir.locked((1, 2)):
        pass


def test_what_would_not_fit_in_the_minutes_left_is_not_begun(monkeypatch):
    now = 0.0
    monkeypatch.setattr(stopping, "time", types.SimpleNamespace(monotonic=lambda: now))
    limited = stopping.Stopping(time_limit=2)
    with limited.segment():
        now = 30.0
    now = 89.0
    assert limited.reason() == ""
    now = 91.0
    assert limited.reason() == "the time limit"


def test_a_second_signal_ends_the_segment_and_the_timer_with_it():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(stopping.Stopped, match="resumes the last checkpoint"):
        with stopping.Stopping() as heard, heard.segment():
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
            time.sleep(5)
    with stopping.Stopping():
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_one_signal_ends_a_segment_that_takes_too_long_but_no_writing(monkeypatch):
    monkeypatch.setattr(stopping, "GRACE", 0.05)
    with pytest.raises(stopping.Stopped, match="resumes the last checkpoint"):
        with stopping.Stopping() as heard, heard.segment():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(5)
    with stopping.Stopping() as heard, heard.segment(), heard.unbroken():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.1)
