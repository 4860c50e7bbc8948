import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from experiments import crash_test, harness, relations_task
from experiments.relations_task import Config, Task

ROOT = pathlib.Path(__file__).parent.parent.parent
TINY = Config(
    vocab_size=40, n_layers=1, n_heads=2, embed_dim=8, dropout=0.0, num_epochs=2, eval_every=2,
    alphabet_size=20, num_train=(5,), num_val=4, num_x_tokens=8, num_y_tokens=4, batch_size=7,
)  # fmt: skip


def _task(**changes):
    config = dataclasses.replace(TINY, **changes)
    return Task(config, config.sizes[0])


@pytest.mark.parametrize("task", ["reversal", "chain", "chain_related", "icl"])
def test_batches_of_an_epoch_are_equal_and_blanks_score_nothing(task):
    task = _task(task=task)
    data, num = task.train_data(), len(task.data.train_EL)
    assert len(data["tokens_BL"]) % task.steps_per_epoch == 0
    assert len(data["tokens_BL"]) // task.steps_per_epoch <= task.config.batch_size
    assert data["scored_BL"][:num].any(axis=1).all() and not data["scored_BL"][num:].any()
    assert data["scored_BL"].sum() == num * task.data.word_size


@pytest.mark.parametrize("family", ["gpt2", "masked", "mlp", "gru"])
def test_the_nll_is_that_of_the_last_word_and_the_network_need_not_see_it(family):
    task = _task(family=family)
    state = task.state(0)
    got = jax.jit(task.evaluate)(state)
    sentences = task.data.validation_EL
    prompts = sentences[:, :-1]
    if family == "masked":
        prompts = np.concatenate([prompts, np.full((len(prompts), 1), task.mask_id)], axis=1)
    logits_EV = np.array(task.apply_fn(state.params, prompts)[:, -1], np.float64)
    if family == "masked":
        logits_EV[:, task.mask_id] = -np.inf
    own_E = logits_EV[np.arange(len(prompts)), sentences[:, -1]]
    nll_E = np.log(np.exp(logits_EV).sum(axis=1)) - own_E
    np.testing.assert_allclose(got["validation_nll"], nll_E.mean(), rtol=1e-5)


def test_frozen_embeddings_stay_and_the_rest_moves_and_all_tokens_train_when_asked():
    task = _task(freeze_wte_wpe=True, weight_decay=0.5, lr=0.1, loss_whole_sequence=True)
    before = jax.device_get(task.state(0).params)
    state, metrics = task.compile(1)(task.state(0), task.train_data())
    assert metrics["loss"].shape == (task.steps_per_epoch,)
    assert metrics["count"].sum() == 2 * len(task.data.train_EL)  # all tokens but the first
    after = jax.device_get(state.params)
    for name in before:
        for old, new in zip(*map(jax.tree.leaves, (before[name], after[name])), strict=True):
            assert np.array_equal(old, new) == ("embed" in name), name


@pytest.mark.slow  # training_test holds it for the shared code
def test_seeds_in_one_program_are_the_seeds_alone():
    task = _task()
    together = dataclasses.replace(task, together=True)
    states = [task.state(seed) for seed in (0, 1)]
    stacked = harness.stack_seeds(states, together=True)
    both, metrics = together.compile(1)(stacked, task.train_data())
    assert metrics["count"].sum() == 2 * len(task.data.train_EL)  # every sentence once
    for place, state in enumerate(states):
        alone, _ = task.compile(1)(state, task.train_data())
        seed = jax.tree.map(lambda x: x[place], both.params)  # noqa: B023
        chex.assert_trees_all_close(seed, alone.params, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(vocab_size=3), "vocabulary of 3 is too small"),
        (dict(vocab_size=4), "splits 1 into"),
        (dict(task="icl", vocab_size=5), "no room for 8"),
        (dict(task="icl", word_size=2), "leave out --word_size"),
        (dict(task="chain_related", num_train=(5, 30)), "cannot give 30 triples"),
        (dict(num_epochs=3), "not a multiple of --eval_every=2"),
        (dict(n_heads=3), "not divisible by num_heads"),
        (dict(family="gru", dropout=0.1), "has no dropout"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\)"),
        (dict(pos_encode_type="rotary", n_heads=8), "head_dim must be even"),
    ],
)
def test_bad_flags(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **changes)


def _run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *arguments, "--noprogress"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip


def test_the_command_writes_lines_figures_and_a_report(tmp_path):
    arguments = [f"--workdir={tmp_path}", "--preset=smoke", "--num_epochs=2", "--eval_every=1"]
    first = _run("relations", *arguments, "--n_layers=1", "--embed_dim=8")
    assert first.returncode == 0, first.stderr
    (line,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert {"train_nll", "validation_nll", "uniform_nll", "asymmetry_withheld"} <= line.keys()
    assert line["uniform_nll"] == pytest.approx(np.log(15))
    for name in ("nll", "logits", "cosines", "gaps"):
        assert (tmp_path / f"figures/{name}.png").exists()
    assert "uniform guess" in (tmp_path / "report.md").read_text()
    again = _run("relations", *arguments, "--n_layers=1", "--embed_dim=8")
    assert again.stdout == first.stdout


def test_a_diverging_step_is_refused_before_anything_is_written(tmp_path):
    workdir = tmp_path / "run"
    result = _run("training_dynamics", f"--workdir={workdir}", "--preset=smoke", "--step_size=1e6")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "diverges" in result.stderr and "are stable" in result.stderr
    assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["training_dynamics", "relations_study"])
def test_the_other_commands_run(module, tmp_path):
    result = _run(module, f"--workdir={tmp_path}", "--preset=smoke")
    assert result.returncode == 0, result.stderr
    assert "figures/" in (tmp_path / "report.md").read_text()
    assert list((tmp_path / "figures").glob("*.png"))


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path, monkeypatch):
    program = (
        "-m experiments.relations --preset=smoke --n_layers=1 --embed_dim=8 --seeds=0,1 "
        "--num_epochs=20 --eval_every=1 --noprogress"
    )
    monkeypatch.setattr(crash_test, "PROGRAM", program.split())
    finished, resumable = crash_test.kill_and_compare(tmp_path, kills=5, seed=0)
    assert finished >= 1 and resumable >= 1


def test_the_original_flags_are_here():
    names = {field.name for field in dataclasses.fields(relations_task.Config)}
    assert names >= {
        "pos_encode_type", "n_layers", "embed_dim", "vocab_size", "word_size", "num_epochs",
        "batch_size", "lr", "loss_whole_sequence", "freeze_wte_wpe",
    }  # fmt: skip
