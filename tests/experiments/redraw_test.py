"""What the figures of the docs draw is what their labels say, by the numbers on file."""

import re

import numpy as np
import pytest

from dirasym import report, results
from experiments import relations
from experiments.tables import index
from experiments.tools import redraw

RESULTS = redraw.DOCS / "results"


ABOUT = index.folders()


def _lines(name, **values):
    return report.select(results.read_results(RESULTS / f"{name}.jsonl"), **values)


def _last(lines, key):
    return [line[key] for line in sorted(lines, key=lambda line: line["seed"])]


@pytest.fixture(scope="module")
def drawn():
    """What each figure is given."""
    pytest.importorskip("matplotlib")
    return {name: getattr(draw, "args", ()) for name, draw in redraw.figures().items()}


def test_curves_of_seeds_are_stacked_as_a_work_directory_stacks_them(tmp_path, monkeypatch):
    monkeypatch.setattr(redraw, "DOCS", tmp_path)
    (tmp_path / "results/a/curves").mkdir(parents=True)
    shapes = {"eval_step": (3,), "p": (3,), "cosine": (3, 5), "attention_mean": (2, 4)}
    for seed in (4, 2):
        of = {key: 10 * seed + np.arange(np.prod(shape)) for key, shape in shapes.items()}
        of = {key: x.reshape(shapes[key]) for key, x in of.items()}
        np.savez(tmp_path / f"results/a/curves/run,seed={seed}.npz", **of)
    found = redraw.stacked("a", "run", (4, 2), ("attention",))
    assert {key: x.shape for key, x in found.items()} == {
        "eval_step": (3,), "p": (3, 2), "cosine": (3, 2, 5), "attention_mean": (2, 2, 4),
    }  # fmt: skip
    np.testing.assert_array_equal(found["p"], [[40, 20], [41, 21], [42, 22]])
    np.testing.assert_array_equal(found["cosine"][1], [np.arange(45, 50), np.arange(25, 30)])
    np.testing.assert_array_equal(found["attention_mean"][1, 1], [24, 25, 26, 27])


def test_bars_are_of_the_runs_that_they_name():
    for label, (folder, file) in redraw.REVERSE_QUESTIONS.items():
        commands = ABOUT[folder]["commands"]
        of = {name: x for names, x in commands.items() for name in names.split(", ")}
        at_once = file.endswith("_at_once")
        command = of[file.removesuffix("_at_once")]
        assert at_once == ("names whole" in label) == ("--noising=names" in command)
        models = {line["model"] for line in _lines(f"{folder}/{file}")}
        assert models == {"arm" if "causal" in label else "mdm"}
        if folder == "facts_names":
            words, both_ways = map(int, re.findall(r"\d+", label))
            assert f"--name_words={words} --both_ways={both_ways}" in command
        else:
            assert ("masked" in label) == ("runs/mdm/model" in command)
            assert ("LoRA" in label) == ("--lora_rank=0" not in command)


def test_curves_of_causes_end_where_the_lines_of_their_label_do(drawn):
    cells = {
        "bidirectional, both": ("bidirectional", "masked_diffusion", "both"),
        "A only": ("bidirectional", "masked_diffusion", "A"),
        "B only": ("bidirectional", "masked_diffusion", "B"),
        "causal, next token": ("causal", "next_token", "both"),
    }
    (curves,) = drawn["causes_training"]
    assert curves.keys() == cells.keys()
    for label, (attention, objective, predicted) in cells.items():
        of = _lines("causes/leading", attention=attention, objective=objective, predicted=predicted)
        of = report.select(of, positions="rope", layers=1)
        for key in ("percent_forward", "percent_reverse"):
            np.testing.assert_allclose(curves[label][key][-1], _last(of, key), rtol=1e-6)


def test_gradients_of_world_a_are_of_the_direction_that_is_named(drawn):
    (curves,) = drawn["world_a_gradients"]
    arrows = {"forward": "A->B", "inverse": "B->A"}
    assert set(curves) == {f"K = {K} {name}" for K in (1, 5) for name in arrows}
    for K in (1, 5):
        for name, arrow in arrows.items():
            (line,) = _lines("world_a_gradients/results", K=K, direction=arrow)
            nats = curves[f"K = {K} {name}"]["nats_per_string"][:, 0]
            np.testing.assert_allclose(
                nats - line["floor_nats_per_string"],
                line["eval_excess_nats_per_string_curve"],
                rtol=1e-5,
            )


def test_the_reverse_panel_shows_the_end_of_the_runs_of_its_command(drawn):
    curves, config = drawn["toy_reverse_panel"]
    command = ABOUT["toy_reversal"]["commands"]["length_20"]
    assert f"--lengths={config.lengths[0]} --steps={config.shown_step} " in command
    for model in config.models:
        of = curves[model, config.lengths[0]]
        moment = config.shown_step // config.eval_every
        assert of["eval_step"][moment] == of["eval_step"][-1] == config.shown_step
        lines = _lines("toy_reversal/length_20", model=model)
        for key in ("p_forward_raw", "p_reverse_raw"):
            np.testing.assert_allclose(of[key][moment], _last(lines, key), rtol=1e-6)


@pytest.mark.parametrize(
    ("figure", "folder", "models", "seeds"),
    [
        ("facts_quick_accuracy", "facts_quick", ("mdm", "arm"), (1, 42, 1234)),
        ("facts_smollm2_accuracy", "facts_smollm2_arm", ("arm",), (1, 42, 1234)),
    ],
)
def test_accuracies_on_facts_end_where_the_lines_do(drawn, figure, folder, models, seeds):
    (panels,) = drawn[figure]
    names = {"mdm": "masked diffusion (MDM)", "arm": "autoregressive (ARM)"}
    assert list(panels) == [names[model] for model in models]
    for model in models:
        of = _lines(f"{folder}/results", model=model)
        assert sorted(line["seed"] for line in of) == list(seeds)
        for key in ("forward_percent", "reverse_percent"):
            np.testing.assert_allclose(panels[names[model]][key][-1], _last(of, key), rtol=1e-6)


def test_epochs_of_relations_are_those_of_the_command(drawn):
    for task, place in (("reversal", 2), ("chain", 1)):
        command = ABOUT["relations"]["commands"]
        of = next(x for names, x in command.items() if f"{task}_quick" in names)
        assert "--preset=quick" in of and "--num_epochs" not in of
        name = "relations_reversal_nll" if task == "reversal" else "relations_chain_gaps"
        epochs = drawn[name][place]
        (epochs,) = epochs.values() if isinstance(epochs, dict) else (epochs,)
        assert (epochs[0], epochs[-1]) == (0, relations.PRESETS["quick"]["num_epochs"])


def test_the_study_draws_the_longest_run_of_a_seed():
    """Seeds that were trained again for longer are drawn once, and none is lost."""
    parts = ("results", "results_seed_2", "results_unit", "results_zero_heads")
    longest = {}
    for line in (line for part in parts for line in _lines(f"toy_study/{part}")):
        key = line["init"], line["seed"]
        longest[key] = max(longest.get(key, 0), line["eval_step"][-1])
    asked = []
    spy = lambda lines, inits, orders: asked.extend(lines)  # noqa: E731
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(redraw.toy_study_report, "figure", spy)
        redraw.study_figure(["default"])
    assert {(x["init"], x["seed"]): x["eval_step"][-1] for x in asked} == longest
    assert len(asked) == len(longest)


def test_remedies_on_facts_are_those_of_names_of_two_words(drawn):
    (lines,) = drawn["cures_facts"]
    page = (redraw.DOCS / "cures.md").read_text(encoding="utf-8")
    assert "names of two words. Dots are means of 3 seeds" in " ".join(page.split())
    files = "two_words", "symmetric", "symmetric_tokens"
    commands = [ABOUT["cures_facts"]["commands"][file] for file in files]
    assert not any("--name_words=1" in command for command in commands)
    assert lines == [line for file in files for line in _lines(f"cures_facts/{file}")]
