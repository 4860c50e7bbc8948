import dataclasses
import json
import math
import pathlib
import types

import artists
import chex
import commands
import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from dirasym import objectives, report, seeds
from dirasym.compile import compile_scan
from dirasym.workdir import WorkDir
from experiments import relations, relations_study
from experiments.reports import relations as relations_report
from experiments.reports import relations_study as study_report
from experiments.systems import relations as relations_system
from experiments.systems.relations import Config, learner

ROOT = pathlib.Path(__file__).parent.parent.parent
TINY = Config(
    vocab_size=40, n_layers=1, n_heads=2, embed_dim=8, dropout=0.0, num_epochs=2, eval_every=2,
    alphabet_size=20, num_train=(5,), num_val=4, num_x_tokens=8, num_y_tokens=4, batch_size=7,
)  # fmt: skip


def _task(**changes):
    config = dataclasses.replace(TINY, **changes)
    return learner(config, config.sizes[0])


def _epoch(task, **how):
    run = task.run({})
    steps = dict(num_steps=task.steps_per_epoch, batch_size=run.batch_size, donate=False)
    return compile_scan(run.step, **steps, **how)


@pytest.mark.parametrize("task", ["reversal", "chain", "chain_related", "icl"])
def test_batches_of_an_epoch_are_equal_and_blanks_score_nothing(task):
    task = _task(task=task)
    data, num = task.train_data, len(task.data.train_EL)
    assert len(data["tokens_BL"]) % task.steps_per_epoch == 0
    assert len(data["tokens_BL"]) // task.steps_per_epoch <= task.batch_size
    assert data["scored_BL"][:num].any(axis=1).all() and not data["scored_BL"][num:].any()
    assert data["scored_BL"].sum() == num * task.data.word_size
    shared = dataclasses.replace(task, num_devices=4).train_data["scored_BL"]
    assert len(shared) % (4 * task.steps_per_epoch) == 0 and shared.sum() == data["scored_BL"].sum()


@pytest.mark.parametrize("family", members.quick(["gpt2", "masked", "mlp", "gru"], ["gpt2", "mlp"]))
def test_the_nll_is_that_of_the_last_word_and_the_network_need_not_see_it(family):
    task = _task(family=family)
    state = task.init(0)
    got = jax.jit(task.evaluate)(state)
    sentences = task.data.validation_EL
    prompts = sentences[:, :-1]
    if family == "masked":
        prompts = np.concatenate([prompts, np.full((len(prompts), 1), task.mask_id)], axis=1)
    logits_EV = np.array(state.apply_fn(state.params, prompts)[:, -1], np.float64)
    if family == "masked":
        logits_EV[:, task.mask_id] = -np.inf
    own_E = logits_EV[np.arange(len(prompts)), sentences[:, -1]]
    nll_E = np.log(np.exp(logits_EV).sum(axis=1)) - own_E
    np.testing.assert_allclose(got["validation_nll"], nll_E.mean(), rtol=1e-5)


def test_a_word_of_several_tokens_costs_all_of_them():
    task = _task(word_size=2)
    size = task.data.vocab_size
    flat = lambda params, tokens_BL: jnp.zeros((*tokens_BL.shape, size))  # noqa: E731
    state = types.SimpleNamespace(apply_fn=flat, params={}, key=jax.random.key(0))
    got = task.evaluate(state)
    for part in ("train", "validation"):
        np.testing.assert_allclose(got[f"{part}_nll"], 2 * math.log(size), rtol=1e-6)


def test_frozen_embeddings_stay_and_the_rest_moves_and_all_tokens_train_when_asked():
    task = _task(freeze_wte_wpe=True, weight_decay=0.5, lr=0.1, loss_whole_sequence=True)
    before = jax.device_get(task.init(0).params)
    state, metrics = _epoch(task)(task.init(0), task.train_data)
    assert metrics["loss"].shape == (task.steps_per_epoch,)
    assert metrics["count"].sum() == 2 * len(task.data.train_EL)  # all tokens but the first
    after = jax.device_get(state.params)
    for name in before:
        for old, new in zip(*map(jax.tree.leaves, (before[name], after[name])), strict=True):
            assert np.array_equal(old, new) == ("embed" in name), name


@pytest.mark.slow  # runs_test holds it for the shared code
def test_seeds_in_one_program_are_the_seeds_alone():
    task = _task()
    stacked = seeds.stack([task.init(seed) for seed in (0, 1)])
    both, metrics = _epoch(task, over_seeds=True)(stacked, task.train_data)
    assert metrics["count"].sum() == 2 * len(task.data.train_EL)  # every sentence once
    for place in (0, 1):
        alone, _ = _epoch(task)(task.init(place), task.train_data)
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
        (dict(n_heads=3), "--embed_dim=8 --n_heads=3.*not divisible by num_heads"),
        (dict(family="gru", dropout=0.1), "has no dropout"),
        (dict(family="mlp", tied_head=False), "has a head of its own"),
        (dict(train_share=1.0), r"share to train on must be in \(0, 1\)"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\)"),
        (dict(pos_encode_type="rotary", n_heads=8), "head_dim must be even"),
    ],
)
def test_bad_flags(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        relations.plan(dataclasses.replace(TINY, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def _run(module, *arguments):
    return commands.run([f"experiments.{module}", *arguments, "--noprogress"])


@pytest.mark.slow
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


def test_a_flag_of_another_task_is_refused_and_a_preset_is_not(tmp_path):
    arguments = [f"--workdir={tmp_path}/run", "--preset=smoke", "--task=reversal"]
    result = _run("relations", *arguments, "--num_train=5,6")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "--num_train is of --task=chain_related, not of reversal" in result.stderr
    assert not (tmp_path / "run").exists()
    result = _run("relations", *arguments, "--task=chain_related", "--train_share=0.5")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "--train_share is of --task=reversal, chain, icl, not of chain_related" in result.stderr
    result = _run("relations", *arguments, "--dry_run")
    assert result.returncode == 0 and "task=reversal" in result.stdout
    assert not (tmp_path / "run").exists()


def test_the_original_flags_are_here():
    names = {field.name for field in dataclasses.fields(Config)}
    assert names >= {
        "pos_encode_type", "n_layers", "embed_dim", "vocab_size", "word_size", "num_epochs",
        "batch_size", "lr", "loss_whole_sequence", "freeze_wte_wpe",
    }  # fmt: skip


# ---------------------------------------------------------------------------------------
# A model whose logits are known goes through what is reported.

FORWARD, REVERSE, WITHHELD = 3.0, 1.0, 2.0  # the answer's logit above all others


def _table_task(strength, **changes):
    """A task with the model logits(x_l | x_<l) = table[x_l-1, x_l], `strength` of each sentence."""
    task = _task(**changes)
    data = task.data
    table = np.zeros((data.vocab_size,) * 3, np.float32)
    for sentences, is_trained in ((data.train_EL, True), (data.validation_EL, False)):
        for first, relation, last in sentences:
            table[first, relation, last] = strength(int(relation), is_trained)

    def apply_fn(params, tokens_BL):
        before_BL = jnp.pad(tokens_BL[:, :-1], ((0, 0), (1, 0)))
        return params[before_BL, tokens_BL]

    return task, task.init(0).replace(params=jnp.asarray(table), apply_fn=apply_fn)


def _nll(strength, vocab_size):
    return math.log(math.exp(strength) + vocab_size - 1) - strength


def test_a_known_table_gives_its_nll_gaps_and_asymmetries_in_both_directions():
    def strength(relation, is_trained):
        return (FORWARD if relation == 0 else REVERSE) if is_trained else WITHHELD

    task, state = _table_task(strength, vocab_size=100)
    line = task.summarize(
        {key: np.asarray(x)[None] for key, x in task.evaluate(state).items()}
        | {"eval_step": np.array([0])}
    )
    is_forward_E = task.data.train_EL[:, 1] == 0
    vocab_size = task.data.vocab_size
    trained = np.where(is_forward_E, _nll(FORWARD, vocab_size), _nll(REVERSE, vocab_size)).mean()
    assert 0 < is_forward_E.mean() < 1
    np.testing.assert_allclose(line["train_nll"], trained, rtol=1e-6)
    np.testing.assert_allclose(line["validation_nll"], _nll(WITHHELD, vocab_size), rtol=1e-6)
    gaps = {"a_to_b": FORWARD, "b_to_a": REVERSE, "given": FORWARD, "withheld": WITHHELD}
    assert set(gaps) == set(task.data.panels)
    for panel, want in gaps.items():
        np.testing.assert_allclose(line[f"gap_{panel}"], want, rtol=1e-6)
        assert line[f"choice_{panel}"] == 100
    # Diagonal blocks f·1 and r·1: |f − r| / (f + r).
    np.testing.assert_allclose(line["asymmetry_trained"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(line["asymmetry_withheld"], 0.2, rtol=1e-5)
    assert line["uniform_nll"] == math.log(task.data.num_candidates)


def test_a_known_table_gives_its_choices_in_percent():
    """Of two withheld sentences the answers are exchanged: one other answer is likelier."""
    task, state = _table_task(lambda relation, is_trained: 1.0, vocab_size=100)
    (first, relation, _), (_, _, other), *_ = withheld = task.data.panels["withheld"]
    table = np.array(state.params)
    table[first, relation, other] = 2.0
    got = task.evaluate(state.replace(params=jnp.asarray(table)))
    num = len(withheld)
    np.testing.assert_allclose(got["choice_withheld"], 100 * (num - 1) / num, rtol=1e-6)
    assert got["choice_given"] == got["choice_a_to_b"] == got["choice_b_to_a"] == 100


def test_a_share_trains_and_a_head_is_untied_as_its_flag_says():
    few = _task(train_share=0.3, vocab_size=80).data
    assert len(few.train_EL) == 2 * 6 + 14 and len(few.validation_EL) == 14
    params = {tied: _task(tied_head=tied).init(0).params for tied in (True, False)}
    assert "head" not in params[True] and "head" in params[False]


def test_a_masked_model_is_read_with_the_mask_in_the_answers_place():
    """Each place says what the token in it knows: that of [M] alone is asked."""
    task = _task(family="masked", vocab_size=100)
    table = np.random.default_rng(0).normal(size=(task.mask_id + 1,) * 2)
    state = types.SimpleNamespace(
        apply_fn=lambda params, tokens_BL: params[tokens_BL],
        params=jnp.asarray(table, jnp.float32),
        key=jax.random.key(0),
    )
    weights = task.weights(state)
    assert set(weights) == set(task.data.panels)
    for name, logits_PP in weights.items():
        answers = task.data.panels[name][:, -1]
        np.testing.assert_allclose(
            logits_PP, np.tile(table[task.mask_id, answers], (len(answers), 1)), rtol=1e-5
        )
    known = table[task.mask_id, : task.mask_id]
    found = task.evaluate(state)
    for part in ("train", "validation"):
        nll = np.log(np.exp(known).sum()) - known[getattr(task.data, f"{part}_EL")[:, -1]]
        np.testing.assert_allclose(found[f"{part}_nll"], nll.mean(), rtol=1e-5)


def test_a_known_chain_gives_its_intransitivity():
    task, state = _table_task(lambda relation, is_trained: 0.0, task="chain")
    middle = set(task.data.panels["b_to_c"][:, 0])
    table = np.zeros((task.data.vocab_size,) * 3, np.float32)
    for first, relation, last in task.data.train_EL:
        table[first, relation, last] = 4.0 if first not in middle else 2.0
    for first, relation, last in task.data.validation_EL:
        table[first, relation, last] = 0.5
    got = task.evaluate(state.replace(params=jnp.asarray(table)))
    np.testing.assert_allclose(got["gap_a_to_b"], 4, rtol=1e-6)
    np.testing.assert_allclose(got["gap_b_to_c"], 2, rtol=1e-6)
    np.testing.assert_allclose(got["intransitivity"], 1 - 0.5 / 2, rtol=1e-6)


def test_heat_maps_are_the_logits_of_the_panels_and_cosines_of_the_embeddings():
    def strength(relation, is_trained):
        return (FORWARD if relation == 0 else REVERSE) if is_trained else WITHHELD

    task, state = _table_task(strength, vocab_size=100)
    embed_VD = np.random.default_rng(0).normal(size=(task.data.vocab_size, 3)).astype(np.float32)
    # A table is no dict of modules: the embeddings beside it.
    table = state.params
    read = state.apply_fn
    state = state.replace(
        params={"embed": {"embedding": embed_VD}},
        apply_fn=lambda params, tokens_BL: read(table, tokens_BL),
    )
    got = task.heat_maps(state, ROOT)
    for panel, want in (("a_to_b", FORWARD), ("b_to_a", REVERSE)):
        size = len(task.data.panels[panel])
        np.testing.assert_allclose(got[f"weights_{panel}"], want * np.eye(size))
    tokens = np.concatenate([task.data.validation_EL[:, 0], task.data.validation_EL[:, -1]])
    a, b = embed_VD[tokens[0]], embed_VD[tokens[-1]]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(got["cosines"][0, -1], cosine, rtol=1e-5)
    assert got["cosines"].shape == (len(tokens),) * 2


def test_a_result_line_says_when_training_was_learned_and_what_validation_was_then():
    task = _task(batch_size=10)
    history = {
        "eval_step": task.steps_per_epoch * np.array([0, 20, 40, 60]),
        "train_nll": np.array([3.0, 0.06, 0.04, 0.01]),
        "validation_nll": np.array([3.0, 2.0, 5.0, 7.0]),
        "gap_given": np.array([0.0, 1.0, 2.0, 4.0]),
    }
    line = task.summarize(history)
    assert line["epochs_to_learn"] == 40 and line["validation_nll_when_learned"] == 5
    assert (line["train_nll"], line["validation_nll"]) == (0.01, 7)
    assert line["lowest_validation_nll"] == 2 and line["gap_given"] == 4
    never = task.summarize(history | {"train_nll": np.full(4, 0.05)})
    assert never["epochs_to_learn"] is None and never["validation_nll_when_learned"] is None


# ---------------------------------------------------------------------------------------
# Tables and figures hold the numbers of results and curves.


def _cells(table, row):
    return [cell.strip() for cell in table.splitlines()[2 + row].strip("|").split("|")]


@pytest.fixture
def reported(tmp_path):
    """A work directory with made-up curves of two sizes and two seeds."""
    config = dataclasses.replace(TINY, task="chain_related", num_train=(5, 9), seeds=(3, 4))
    all_runs = relations.plan(config, tmp_path)
    workdir = WorkDir(tmp_path / "run")
    rng = np.random.default_rng(0)
    for run in all_runs:
        for seed in config.seeds:
            history = {
                "eval_step": np.array([0, run.num_steps]),
                **{f"{part}_nll": rng.uniform(1, 5, 2) for part in ("train", "validation")},
                **{f"gap_{panel}": rng.normal(size=2) for panel in ("a_to_b", "withheld")},
                **{f"choice_{panel}": rng.uniform(0, 100, 2) for panel in ("given", "withheld")},
                "weights_a_to_b": rng.normal(size=(4, 4)),
                "cosines": rng.uniform(-1, 1, (6, 6)),
            }
            workdir.save_curves(run, seed, history)
            workdir.record(run, seed, run.summarize(history))
    return workdir, config, all_runs


def test_the_table_holds_means_and_intervals_over_seeds(reported, capsys):
    workdir, config, all_runs = reported
    relations_report.write(workdir, config, all_runs)
    printed = capsys.readouterr().out
    for row, run in enumerate(all_runs):
        task, size, count, *cells = _cells(printed, row)
        assert (task, size, count) == ("chain_related", str(config.num_train[row]), "2")
        first, second = (workdir.line(run, seed) for seed in config.seeds)
        for cell, key in zip(cells, relations_report.COLUMNS.values(), strict=True):
            if first[key] is None:
                assert cell == "none"
                continue
            mean = (first[key] + second[key]) / 2
            half_width = 12.7062047 * abs(first[key] - second[key]) / 2  # Student's t, 1 degree
            assert cell == f"{mean:.3f} ± {half_width:.3f}", key
    assert printed.splitlines()[0].split(" | ")[3] == "training NLL"


def test_figures_hold_the_curves(reported):
    pytest.importorskip("matplotlib")
    workdir, config, all_runs = reported
    first_seeds = ("cosines", "weights_")
    curves = {
        size: workdir.stacked(run, config.seeds, seeds_first=first_seeds)
        for size, run in zip(config.sizes, all_runs, strict=True)
    }
    epochs = {size: np.array([0, config.num_epochs]) for size in config.sizes}
    results = workdir.results()
    figure = relations_report.nll_figure(config, curves, epochs, results)
    for ax, size in zip(figure.axes, config.sizes, strict=True):
        lines = {line.get_label(): line for line in ax.get_lines()}
        for part, label in (("train", "trained"), ("validation", "withheld")):
            np.testing.assert_array_equal(lines[label].get_xdata(), epochs[size])
            mean_T = curves[size][f"{part}_nll"].mean(axis=1)
            np.testing.assert_array_equal(lines[label].get_ydata(), mean_T)
        uniform = report.select(results, num_train=size)[0]["uniform_nll"]
        assert set(lines["uniform guess"].get_ydata()) == {uniform}
        assert ax.get_title() == f"chain_related, {size} triples"

    (ax, _) = relations_report.logit_figure(curves[9]).axes
    logits = workdir.curves(all_runs[1], 3)["weights_a_to_b"]  # the first seed's
    want = logits - logits.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(ax.images[0].get_array(), want)
    assert ax.images[0].get_clim() == (-np.abs(want).max(), np.abs(want).max())

    large = {"weights_a_to_b": np.arange(2 * 40 * 40.0).reshape(2, 40, 40) ** 2}
    image = relations_report.logit_figure(large).axes[0].images[0].get_array()
    want = large["weights_a_to_b"][0, :30, :30]  # the first thirty, above their own rows' means
    np.testing.assert_allclose(image, want - want.mean(axis=1, keepdims=True))

    (ax, _) = relations_report.cosine_figure(curves[9]).axes
    cosines = [workdir.curves(all_runs[1], seed)["cosines"] for seed in config.seeds]
    np.testing.assert_allclose(ax.images[0].get_array(), np.mean(cosines, axis=0))
    assert ax.images[0].get_clim() == (-1, 1)

    choices, gaps = relations_report.gap_figure(curves[9], epochs[9]).axes
    for ax, key, label in (
        (gaps, "gap_a_to_b", "B after A →"),
        (gaps, "gap_withheld", "withheld"),
        (choices, "choice_given", "trained"),
        (choices, "choice_withheld", "withheld"),
    ):
        lines = {line.get_label(): line for line in ax.get_lines()}
        np.testing.assert_array_equal(lines[label].get_xdata(), epochs[9])
        np.testing.assert_array_equal(lines[label].get_ydata(), curves[9][key].mean(axis=1))
    assert "(nats)" in gaps.get_ylabel() and choices.get_ylabel() == "choice (%)"

    (ax,) = relations_report.size_figure(config, curves, epochs, results).axes
    (container,) = ax.containers
    points, _, (bars,) = container
    np.testing.assert_array_equal(points.get_xdata(), [5, 9])
    assert container.get_label() == f"epoch {config.num_epochs}"
    (guess,) = [x for x in ax.get_lines() if x.get_label() == "uniform guess"]
    wanted = [workdir.line(run, config.seeds[0])["uniform_nll"] for run in all_runs]
    assert wanted[0] != wanted[1] and list(guess.get_ydata()) == wanted
    last = [curves[size]["validation_nll"][1] for size in (5, 9)]
    np.testing.assert_allclose(points.get_ydata().astype(float), np.mean(last, axis=1))
    heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(heights, 12.7062047 * np.abs(np.diff(last, axis=1))[:, 0], rtol=1e-6)


def test_the_figure_of_sizes_shows_evaluations_one_two_four_and_the_last():
    pytest.importorskip("matplotlib")
    config = dataclasses.replace(TINY, task="chain_related", num_train=(5, 9))
    nll = np.arange(14.0).reshape(7, 2) + 1
    curves = {size: {"validation_nll": size * nll} for size in (5, 9)}
    epochs = dict.fromkeys((5, 9), 10 * np.arange(7))
    guesses = [{"num_train": size, "uniform_nll": 3.0} for size in (5, 9)]
    (ax,) = relations_report.size_figure(config, curves, epochs, guesses).axes
    drawn = {c.get_label(): np.asarray(c[0].get_ydata(), float) for c in ax.containers}
    assert list(drawn) == [f"epoch {10 * row}" for row in (1, 2, 4, 6)]
    for row in (1, 2, 4, 6):
        mean = 2 * row + 1.5
        np.testing.assert_allclose(drawn[f"epoch {10 * row}"], [5 * mean, 9 * mean])


def test_a_report_draws_the_weights_of_the_largest_size(reported, monkeypatch):
    workdir, config, all_runs = reported
    drawn = artists.of_report(monkeypatch, relations_report.report)
    relations_report.write(workdir, config, all_runs)
    want = np.stack([workdir.curves(all_runs[1], seed)["cosines"] for seed in config.seeds])
    for name in ("cosines", "logits", "gaps"):
        np.testing.assert_array_equal(drawn[name][0]["cosines"], want)
    np.testing.assert_allclose(drawn["gaps"][1], [0, config.num_epochs])
    _, curves, epochs, lines = drawn["sizes"]
    assert list(curves) == list(epochs) == [5, 9] and len(lines) == 4
    for size in (5, 9):
        np.testing.assert_allclose(epochs[size], [0, config.num_epochs])
    relations_report.write(workdir, dataclasses.replace(config, num_train=(5,)), all_runs[:1])
    assert set(drawn) == {"nll", "cosines", "logits", "gaps"}  # of one size there is no curve


def _study_lines():
    return [
        {"factor": "dropout", "value": value, "seed": seed, "uniform_nll": 2.0}
        | {key: 10 * row + seed + place for place, key in enumerate(study_report.KEYS)}
        | {"validation_nll_when_learned": None}
        for row, value in enumerate(("0.0", "0.3"))
        for seed in (0, 1)
    ] + [{"factor": "depth", "value": "0.3", "seed": 0, "train_nll": 99.0, "uniform_nll": 2.0}]


def test_the_study_tells_its_factors_and_values_apart():
    table = study_report.table(_study_lines(), "dropout", ("0.0", "0.3"))
    for row, value in enumerate(("0.0", "0.3")):
        first, *cells = _cells(table, row)
        assert first == value
        for place, cell in enumerate(cells):
            if place == 3:
                assert cell == "none"
            else:
                assert cell == f"{10 * row + place + 0.5:.3f} ± 6.353"
    pytest.importorskip("matplotlib")
    figure = study_report.figure(_study_lines(), "dropout", ("0.0", "0.3"))
    for ax, keys in zip(figure.axes, study_report.DRAWN.values(), strict=True):
        drawn = {c.get_label(): c[0].get_ydata() for c in ax.containers}
        assert list(drawn) == [study_report.KEYS[key] for key in keys]
        for key in keys:
            place = list(study_report.KEYS).index(key)
            want = [np.nan] * 2 if place == 3 else [place + 0.5, place + 10.5]
            np.testing.assert_allclose(drawn[study_report.KEYS[key]], want)
        shown = [c for c in ax.containers if np.isfinite(c[0].get_ydata()).all()]
        for points, _, (bars,) in shown:
            np.testing.assert_array_equal(points.get_xdata(), [0, 1])  # numbers: joined, in place
            assert points.get_linestyle() == "-"
            heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
            np.testing.assert_allclose(heights, 12.7062047, rtol=1e-6)
        assert [x.get_text() for x in ax.get_xticklabels()] == ["0.0", "0.3"]
        artists.hides_nothing(figure)
    # The guess is that of the factor's own sentences: those told in context have another.
    told = {"factor": "in_context", "value": "depth 1, 1 told", "seed": 0, "uniform_nll": 9.0}
    figure = study_report.figure([told, *_study_lines(), told], "dropout", ("0.0", "0.3"))
    (guess,) = [x for x in figure.axes[0].get_lines() if x.get_label() == "uniform guess"]
    assert set(guess.get_ydata()) == {2.0}
    first = [line for line in _study_lines() if line["factor"] == "dropout" and not line["seed"]]
    figure = study_report.figure(first[:1], "dropout", ("0.0",))  # one seed of one value
    nll, asymmetry, choice = figure.axes
    assert nll.containers[0][0].get_xydata().tolist() == [[0, 0]]
    drawn = [[x.get_label() for x in ax.get_lines()].count("uniform guess") for ax in figure.axes]
    assert drawn == [1, 0, 0] and nll.get_ylabel() == "NLL (nats)"
    assert asymmetry.get_ylabel() == "asymmetry" and choice.get_ylabel() == "choice (%)"
    of_old = [{key: x for key, x in line.items() if "choice" not in key} for line in first]
    assert len(study_report.figure(of_old, "dropout", ("0.0",)).axes) == 2


def test_choice_is_drawn_by_rate_share_and_kind_with_what_a_guess_chooses():
    pytest.importorskip("matplotlib")
    cells = {
        ("learning_rate", "0.001"): 10, ("learning_rate", "0.01"): 20,
        ("learning_rate_24", "0.01"): 30, ("learning_rate_24", "0.001"): 40,
        ("learning_rate_24", "0.0003"): 45, ("learning_rate_24", "0.01, untied"): 99,
        ("share_both_ways", "0.7"): 50, ("share_both_ways", "0.1"): 60,
        **{cell: 70 + place for place, cell in enumerate(study_report.KINDS.values())},
    }  # fmt: skip
    lines = [
        {"factor": factor, "value": value, "seed": seed, "choice_withheld": mean + seed}
        for (factor, value), mean in cells.items()
        for seed in (0, 1)
    ]
    rates, shares, kinds = study_report.choice_figure(lines, lambda share: 10 * share).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in rates.get_lines()}
    assert drawn["2 layers"] == [[1, 10.5], [2, 20.5]]
    assert drawn["24 layers"] == [[0, 45.5], [1, 40.5], [2, 30.5]]
    assert [x.get_text() for x in rates.get_xticklabels()] == ["0.0003", "0.001", "0.01"]
    of_shares, of_kinds = (ax.get_lines() for ax in (shares, kinds))
    assert [x.get_xydata().tolist() for x in of_shares if x.get_label() == "2 layers"] == [
        [[0.1, 60.5], [0.7, 50.5]]
    ]
    seeds = [line.get_ydata().tolist() for line in of_kinds if line.get_marker() == "_"]
    assert seeds == [[70 + x, 71 + x] for x in range(6)]
    (means,) = [x.get_ydata().tolist() for x in of_kinds if x.get_label() == "2 layers"]
    assert means == [70.5 + x for x in range(6)]
    assert [x.get_text() for x in kinds.get_xticklabels()] == list(study_report.KINDS)
    for ax, want in ((rates, [7, 7]), (shares, [1, 7]), (kinds, [7, 7])):
        (guess,) = [x for x in ax.get_lines() if x.get_label() == "guess"]
        np.testing.assert_allclose(guess.get_ydata(), want)
        artists.hides_nothing(ax.figure)


def test_the_values_of_a_category_are_drawn_beside_one_another_and_not_joined():
    pytest.importorskip("matplotlib")
    lines = [line | {"value": {"0.0": "gpt2", "0.3": "gru"}[line["value"]]}
             for line in _study_lines() if line["factor"] == "dropout"]  # fmt: skip
    figure = study_report.figure(lines, "dropout", ("gpt2", "gru"))
    for ax, num in zip(figure.axes, map(len, study_report.DRAWN.values()), strict=True):
        points = [c[0] for c in ax.containers]
        places = np.array([line.get_xdata() for line in points])
        shifts = 0.16 * (np.arange(num) - (num - 1) / 2)  # in the legend's order, about the value
        np.testing.assert_allclose(places, shifts[:, None] + np.arange(2))
        assert {line.get_linestyle() for line in points} == {"None"}
        assert [line.get_marker() for line in points] == list("osD")[:num]
        assert ax.get_xlim() == (-0.5, 1.5)
        artists.hides_nothing(figure)


def test_facts_told_are_drawn_by_depth():
    pytest.importorskip("matplotlib")
    values = [f"depth {n}, {m} told" for n in (1, 2) for m in (1, 8)]
    lines = [
        {"factor": "in_context", "value": value, "seed": seed, "validation_nll": 99.0}
        | {"lowest_validation_nll": 10 * place + seed}
        for place, value in enumerate(values)
        for seed in (0, 1)
    ]
    assert study_report.figures("in_context_more") is study_report.in_context_figure
    assert study_report.figures("depth") is study_report.figure
    (ax,) = study_report.in_context_figure(lines, "in_context", values).axes
    drawn = {c.get_label(): c[0].get_xydata().tolist() for c in ax.containers}
    assert drawn == {"1 layer": [[1, 0.5], [8, 10.5]], "2 layers": [[1, 20.5], [8, 30.5]]}
    (guess,) = [x for x in ax.get_lines() if x.get_label() == "guess among those told"]
    np.testing.assert_allclose(guess.get_xydata(), [[1, 0], [8, np.log(8)]])
    assert study_report.guesses([{"uniform_nll": x} for x in (2.0, 1.5, 2.0)]) == "1.500 or 2.000"


def test_the_study_changes_one_factor_and_compiles_its_base_once(tmp_path):
    config = relations_study.Config(factors=("dropout", "family", "loss"), vocab_size=40)
    planned = {run.name: run for run in relations_study.plan(config, tmp_path)}
    assert len(planned) == 3 + 4 + 3
    base = planned["factor=family,value=gpt2"]
    for same in ("factor=dropout,value=0.0", "factor=loss,value=last_word"):
        assert planned[same].step is base.step and planned[same].evaluate is base.evaluate
    assert planned["factor=dropout,value=0.3"].step is not base.step


def test_a_network_learns_as_its_flags_say(monkeypatch):
    told = {}
    make = lambda rate, **how: told.update(how, rate=rate)  # noqa: E731
    monkeypatch.setattr(relations_system.training, "make_optimizer", make)
    assert _task(weight_decay=0.5, l2=0.25, lr=0.125, dropout=0.1).dropout
    assert told == dict(rate=0.125, weight_decay=0.5, l2=0.25, clip_norm=None)
    assert not _task(dropout=0.0).dropout


def test_a_value_of_the_study_trains_what_its_name_says(tmp_path):
    config = relations_study.Config(factors=("loss",), vocab_size=40)
    scored = {
        run.identity["value"]: run.data(0)["scored_BL"][0].tolist()
        for run in relations_study.plan(config, tmp_path)
    }
    last, every = [False, False, True], [True] * 3
    assert scored == {"last word": last, "whole": every, "masked, whole": every}


def test_heads_of_the_study_say_what_stands_under_them():
    heads = {
        "train_nll": "training NLL", "validation_nll": "withheld NLL",
        "lowest_validation_nll": "its lowest",
        "validation_nll_when_learned": "when training < 0.05", "gap_given": "trained gap",
        "gap_withheld": "withheld gap", "asymmetry_trained": "asymmetry, trained both ways",
        "asymmetry_withheld": "asymmetry, withheld",
        "choice_given": "trained choice %", "choice_withheld": "withheld choice %",
    }  # fmt: skip
    line = {"factor": "depth", "value": "1"} | {key: place for place, key in enumerate(heads)}
    head, _, row = study_report.table([line], "depth", ["1"]).splitlines()
    said = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert said == {"depth": "1"} | {name: f"{n}.000" for n, name in enumerate(heads.values())}


def test_heads_of_relations_say_what_stands_under_them(reported, capsys):
    workdir, config, all_runs = reported
    relations_report.write(workdir, config, all_runs)
    head, _, row, *_ = (x.strip("| ").split(" | ") for x in capsys.readouterr().out.splitlines())
    said = dict(zip(head, row, strict=True))
    lines = [workdir.line(all_runs[0], seed) for seed in config.seeds]
    for name, key in (
        ("training NLL", "train_nll"),
        ("validation NLL", "validation_nll"),
        ("its lowest", "lowest_validation_nll"),
        ("uniform guess", "uniform_nll"),
        ("trained choice %", "choice_given"),
        ("withheld choice %", "choice_withheld"),
    ):
        assert said[name].startswith(f"{np.mean([line[key] for line in lines]):.3f} ±"), name


def test_kinds_of_positions_are_what_their_names_say():
    kinds = {"absolute": "learned", "rotary": "rope", "null": "none"}
    assert kinds == relations_system.POSITIONS


@pytest.mark.parametrize("family", ["gpt2", "masked"])
def test_the_step_is_of_the_objective_that_is_asked_for(family):
    task = _task(family=family, dropout=0.1)
    assert task.step.keywords == dict(objective=task._ask, dropout=True)
    line = task.run({}, {"more": 7}).summarize(
        {"eval_step": np.array([0]), "train_nll": np.ones(1), "validation_nll": np.ones(1)}
    )
    assert line["more"] == 7 and line["train_nll"] == 1
    step = dataclasses.replace(task, whole=True, dropout=False).step
    objective = step.keywords["objective"]
    assert not step.keywords["dropout"]
    if family == "gpt2":
        assert objective is objectives.next_token
    else:
        assert objective.func is objectives.masked_diffusion
        assert objective.keywords == dict(mask_id=task.mask_id, weighting="k")


def test_weights_of_a_masked_model_are_read_at_its_mask():
    read = []

    def apply_fn(params, tokens_BL):
        read.append(np.asarray(tokens_BL))
        return jnp.zeros((*tokens_BL.shape, task.data.vocab_size + 1))

    task = _task(family="masked")
    task.weights(task.init(0).replace(apply_fn=apply_fn))
    assert len(read) == len(task.data.panels)
    assert all((tokens_BL[:, -1] == task.mask_id).all() for tokens_BL in read)


def test_the_base_of_the_study_is_what_its_report_says_and_values_change_what_they_name():
    study = relations_study.Config(lr=0.5, n_layers=3, embed_dim=8, num_epochs=6, seeds=(4,))
    base = study.relations({})
    assert (base.lr, base.n_layers, base.embed_dim, base.num_epochs) == (0.5, 3, 8, 6)
    assert (base.dropout, base.weight_decay, base.l2, base.seeds) == (0.0, 0.01, 0.0, (4,))
    for factor, field in (
        *((x, x) for x in ("weight_decay", "l2", "dropout", "family")), ("depth", "n_layers")
    ):  # fmt: skip
        for value, changes in relations_study.FACTORS[factor].items():
            alone = {field: type(getattr(base, field))(value)}
            alone |= {"weight_decay": 0.0} if factor == "l2" else {}
            assert study.relations(changes) == dataclasses.replace(base, **alone)
