"""Result lines say the sizes of the model that was trained: counted from its parameters."""

import json
import math
import types

import jax
import numpy as np
import optax
import pytest

from dirasym import models, runs, training
from dirasym.workdir import WorkDir
from experiments import geometry, measure, relations_study
from experiments.benchmarks import likelihood
from experiments.systems import training_dynamics as dynamics
from experiments.tools.crash_test import PROGRAMS

SIDES = "forward", "reverse"
NO_RUNS = "measure", "rope_bounds", "training_dynamics"  # they train by no `Run`


def counted(*trees):
    """Sizes of a transformer by the shapes of its parameters, those of adapters counted too."""
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    shapes = {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}
    # Of a scan, which stacks its layers, the first axis is theirs.
    query = [x for path, x in shapes.items() if path.endswith("/query/kernel")]
    *_, width, heads, _ = query[0]
    return {
        "layers": sum(math.prod(shape[:-3]) for shape in query),
        "width": width,
        "heads": heads,
        "total_params": sum(map(math.prod, shapes.values())),
    }


def _planned(name, folder, **changes):
    program = PROGRAMS[name]
    values = program.page.PRESETS["smoke"] | program.changes | program.prepare(folder) | changes
    values = {key: tuple(x) if isinstance(x, list) else x for key, x in values.items()}
    for run in program.page.plan(program.config_type(**values), folder):
        state = jax.eval_shape(lambda run=run: run.init(0))
        yield run, models.sizes(run.network, state.params, state.frozen), state


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in NO_RUNS])
def test_each_run_says_the_sizes_of_its_parameters(name, tmp_path):
    if name == "adapt_masked":
        pytest.importorskip("tokenizers")
    planned = list(_planned(name, tmp_path))
    assert planned
    for _, said, state in planned:
        if isinstance(state.params, dict) and "first_kernel" in state.params:  # the MLP
            p = state.params
            norms = [key for key in p if key.startswith("norm_")]
            total = sum(x.size for x in jax.tree.leaves(p))
            assert said == dict(layers=len(norms), width=len(p["first_bias"]), total_params=total)
        else:
            assert said == counted(state.params, state.frozen)


def test_frozen_weights_and_adapters_count(tmp_path):
    how = dict(modes=("scratch", "lora"), lora_ranks=(4,), Ks=(1,), directions=("forward",))
    (_, bare, _), (_, adapted, state) = _planned("world_a", tmp_path, **how)
    assert adapted == counted(state.params, state.frozen)
    trained = sum(x.size for x in jax.tree.leaves(state.params))
    assert adapted == bare | {"total_params": bare["total_params"] + trained} and trained


@pytest.mark.parametrize("family", ["mlp", "gru"])
def test_networks_without_attention_have_no_heads(family, tmp_path):
    how = dict(factors=("family",), n_layers=3, embed_dim=8)
    runs_ = {run.identity["value"]: x for run, *x in _planned("relations_study", tmp_path, **how)}
    said, state = runs_[family]
    total = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    assert said == dict(layers=3, width=8, total_params=total)
    assert set(runs_) == set(relations_study.FACTORS["family"])


def _objective(apply_fn, params, batch, key, *, rngs=None):
    del key, rngs
    logits = apply_fn({name: params[name] for name in ("embed", "theta")}, batch.tokens_BL)
    return (logits**2).sum(), np.float32(len(batch.tokens_BL)), {}


@pytest.mark.parametrize("network", [None, "itself"])
def test_a_sweep_writes_sizes_where_it_is_told_the_network(network, tmp_path):
    model = models.Bilinear(vocab_size=6, width=4)
    apply_fn = models.make_tokens_apply_fn(model)
    init = training.initializer(model, apply_fn, optax.sgd(1e-3), length=2)
    frozen = {"more": np.zeros((3, 5), np.float32)}
    run = runs.Run(
        {"width": 4},  # known by it already
        data=lambda seed: {"tokens_BL": np.zeros((4, 2), np.int32)},
        step=lambda state, batch: training.train_step(
            state, batch, objective=_objective, dropout=False
        ),
        num_steps=1,
        eval_every=1,
        batch_size=4,
        init=lambda seed: init(seed).replace(frozen=frozen),
        summarize=lambda history: {"done": True},
        network=network and model,
    )
    (line,) = runs.sweep([run], [0], WorkDir(tmp_path), progress=False)
    assert line["width"] == 4 and line["done"]
    assert line.get("total_params") == (6 * 4 + 4 * 4 + 3 * 5 if network else None)
    text = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    assert text.count('"width"') == 1 and json.loads(text) == line


def test_what_is_solved_says_its_sizes():
    config = PROGRAMS["training_dynamics"].config()
    line, _ = dynamics.solve_bilinear(config, 16, 0)
    assert line["width"] == 16 and line["total_params"] == 16 * 16 + 16 * 16  # V = 16 too
    assert "layers" not in line and "heads" not in line
    line, _ = dynamics.solve_one_layer("one_way")
    assert line["layers"] == 1 and line["total_params"] == 2 * 20**2  # Y and Z
    line, _ = dynamics.solve_one_layer("symmetric")
    assert line["layers"] == 1 and line["total_params"] == 20**2


def test_what_is_read_says_its_sizes(monkeypatch, tmp_path):
    config = measure.Config(num_pairs=4)
    _, params, *_ = measure._opened(config)
    sides = {name: types.SimpleNamespace(**dict.fromkeys(measure.MEASURES)) for name in SIDES}
    reading = types.SimpleNamespace(kind="masked", seconds={}, save=lambda path: None, **sides)
    prepared = types.SimpleNamespace(reading=lambda shown: reading)
    monkeypatch.setattr(measure, "prepared", lambda config: prepared)
    monkeypatch.setattr(measure.flags, "FLAGS", types.SimpleNamespace(progress=False))
    line, _ = measure.read(config, tmp_path / "reading.json")
    wanted = counted(params)
    assert {key: line[key] for key in wanted} == wanted


def test_untrained_networks_say_their_sizes(monkeypatch):
    config = PROGRAMS["geometry"].config()
    monkeypatch.setattr(geometry, "looked_at", lambda *given: {"probe": np.zeros(1)})
    line = geometry.untrained(config)[0]
    wanted = counted(geometry.causes.Task(config.parsed[0], config).init(0).params)
    assert {key: line[key] for key in wanted} == wanted and wanted["width"] == config.width


def test_the_benchmark_of_likelihoods_says_the_sizes_of_its_network(monkeypatch):
    model = models.Transformer(models.radd(5, num_layers=3, width=8, num_heads=2))
    tokens = np.zeros((1, 2), np.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    monkeypatch.setattr(likelihood, "trained", lambda steps: (model, params, ["a"], None, 4))
    names = "log_likelihood_E", "standard_error_E", "passes_E"
    found = types.SimpleNamespace(**{name: np.zeros(2) for name in names})
    monkeypatch.setattr(likelihood, "likelihood", lambda *given, **how: found)
    lines = likelihood.variances(likelihood.Config(repeats=2))
    wanted = counted(params)
    assert lines and all({key: line[key] for key in wanted} == wanted for line in lines)
