"""`experiments.measure`: a file of pairs and a Hugging Face directory, in a process of its own."""

import json
import pathlib
import types

import commands
import numpy as np
import pytest

from dirasym import pieces
from dirasym.reading import Reading
from experiments import measure as page
from experiments.systems import facts

ROOT = pathlib.Path(__file__).parents[2]
WORDING = ("--forward=The capital of {a} is {b}", "--reverse={b} is the capital of {a}")

_WORDS = dict(forward="The capital of {a} is {b}", reverse="{b} is the capital of {a}")


def _run(workdir, *arguments):
    return commands.run(["experiments.measure", f"--workdir={workdir}", *arguments])


def _facts(tmp_path):
    path = tmp_path / "capitals.csv"
    path.write_text("country,city\nFrance,Paris\nSpain,Madrid\nPeru,Lima\n")
    return f"--pairs={path}"


@pytest.mark.slow
def test_a_directory_is_read_on_a_users_own_file(tiny_directory, tmp_path):
    given = (f"--model_id={tiny_directory(tmp_path)}", _facts(tmp_path), *WORDING)
    done = _run(tmp_path / "run", *given, "--columns=country,city", "--noattention", "--level=0.9")
    assert done.returncode == 0, done.stderr
    reading = Reading.load(tmp_path / "run" / "reading.json")
    assert (reading.kind, reading.level, reading.forward.count) == ("causal", 0.9, 3)
    assert reading.forward.asked[2].prompt == "The capital of Peru is"
    assert "blocks_1/mlp" in reading.alignment.cosine
    assert str(reading) in done.stdout and str(reading) in (tmp_path / "run/report.md").read_text()
    (line,) = map(json.loads, (tmp_path / "run/results.jsonl").read_text().splitlines())
    assert line["model"] == "llama"
    assert line["reverse_p_true"] == pytest.approx(list(reading.reverse.p_true))
    assert (tmp_path / "run" / "figures" / "reading.png").exists()


def test_an_untrained_network_is_at_chance(monkeypatch):
    measured = page.prepared(page.Config(num_pairs=8, attention=True, attention_distance=2))
    reading = measured.reading()
    assert reading.kind == "masked" and reading.attention_correlation.shape == (2, 4, 3)
    size = measured.questions.tokenizer.vocab_size
    for side in (reading.forward, reading.reverse):
        assert 0.3 / size < side.p_true.estimate < 3 / size
        assert side.accuracy.estimate == 0


def test_aliases_are_right_answers_here_and_in_fine_tuning(tmp_path):
    path = tmp_path / "capitals.csv"
    path.write_text("country,city\nNetherlands|Holland,Amsterdam\nSpain,Madrid\n")
    given = dict(pairs=str(path), columns=("country", "city"), aliases="|")
    given |= dict(forward="The capital of {a} is {b}", reverse="{b} is the capital of {a}")
    asked = page.prepared(page.Config(**given)).questions.queries
    trained = facts.fact_set("pairs", facts.Config(data=("pairs",), **given))
    for queries in (asked, (*trained.forward, *trained.reverse)):
        answers = [query.answers for query in queries]
        assert ("Netherlands", "Holland") in answers and ("Madrid",) in answers
        prompts = [query.prompt for query in queries]
        assert "The capital of Spain is" in prompts and "Amsterdam is the capital of" in prompts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pairs=nowhere.csv"], "nowhere.csv: No such file"),
        (["--columns=country"], "--columns=country must be two"),
        (["--columns=country,town"], "no column 'town'"),
        (["--forward=The capital is {b}"], "lacks {a}"),
        (["--level=95"], "--level=95.0 must be between 0 and 1"),
        (["--adapters=x"], "--adapters needs --model_id=DIR"),
        (["--blocks=heads"], "blocks matches no parameter"),
        (["--max_new=200"], "the context has 128"),
        (["--model_id=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    arguments, message, tmp_path, monkeypatch, capsys
):
    given = dict(pairs=_facts(tmp_path).removeprefix("--pairs="), columns=("country", "city"))
    given |= {word.split("=", 1)[0].strip("-"): word.split("=", 1)[1] for word in WORDING}
    for argument in arguments:
        name, value = argument.removeprefix("--").split("=", 1)
        kind = page.Config.__dataclass_fields__[name].type
        given[name] = tuple(value.split(",")) if name == "columns" else kind(value)
    with pytest.raises(ValueError, match=message.replace("{", r"\{")) as error:
        page.plan(page.Config(**given), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(adapters="x"), "--adapters needs --model_id=DIR"),
        (dict(mask_id=3), "--mask_id needs --model_id=DIR"),
        (dict(dtype="bfloat16"), "--dtype needs --model_id=DIR"),
        (dict(columns=("x", "y")), "--columns needs --pairs=FILE"),
        (dict(aliases="|"), "--aliases needs --pairs=FILE"),
        (dict(encoding="latin-1"), "--encoding needs --pairs=FILE"),
        (dict(gradient_pairs=3), "--gradient_pairs needs --blocks"),
        (dict(pairs="x"), "--pairs=FILE needs --forward and --reverse"),
        (dict(pairs="x", forward="{a} has {b}"), "--pairs=FILE needs --forward and --reverse"),
        (dict(pairs="x", reverse="{b} is of {a}"), "--pairs=FILE needs --forward and --reverse"),
        (dict(reverse="{b} is of {a}"), "neither goes without the other"),
    ],
)
def test_flags_that_nothing_would_read_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        page.Config(**fields)


def test_a_bad_file_ends_the_command_with_status_2(tmp_path):
    done = _run(tmp_path / "run", "--pairs=nowhere.csv", *WORDING)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.count("\n") == 1 and "nowhere.csv: No such file" in done.stderr


def test_a_line_holds_both_directions(monkeypatch, tmp_path):
    sides = {
        name: types.SimpleNamespace(**dict.fromkeys(page.MEASURES, (place + 0.5, place, np.nan)))
        for place, name in enumerate(("forward", "reverse"))
    }
    reading = types.SimpleNamespace(kind="causal", seconds={}, save=lambda path: None, **sides)
    measured = types.SimpleNamespace(reading=lambda progress: reading)
    monkeypatch.setattr(page, "prepared", lambda config: measured)
    monkeypatch.setattr(page.flags, "FLAGS", types.SimpleNamespace(progress=False))
    line, _ = page.read(page.Config(), tmp_path)
    assert line["forward_p_true"] == [0.5, 0, None] and line["reverse_p_true"] == [1.5, 1, None]


def test_a_measurement_is_prepared_as_the_flags_say(monkeypatch):
    told = []
    monkeypatch.setattr(page, "prepare", lambda *given, **how: told.append((given, how)))
    asked = dict(level=0.9, blocks="layer", attention=True, chunk_size=3, gradient_pairs=2)
    asked |= dict(attention_distance=4)
    page.prepared(page.Config(num_pairs=5, seed=11, max_new=7, **asked))
    (((_, _, pairs, _), how),) = told
    assert how == asked | dict(num_new=7)
    invented = page.facts.invent_parent_child(5, 11)
    assert pairs.names == tuple((pair.parent, pair.child) for pair in invented)


@pytest.mark.parametrize(
    ("kind", "causal"), [("auto", {}), ("causal", {"causal": True}), ("masked", {"causal": False})]
)
def test_a_directory_is_opened_as_the_flags_say(kind, causal, monkeypatch):
    told = []
    spy = lambda *given, **how: told.append((given, how)) or (None, None)  # noqa: E731
    monkeypatch.setattr(page.models, "load_pretrained", spy)
    monkeypatch.setattr(page.tokenizers, "from_directory", spy)
    page._opened(page.Config(model_id="x", kind=kind, mask_id=7, dtype="bfloat16", num_pairs=3))
    types_ = dict(param_dtype="bfloat16", dtype="bfloat16")
    assert told == [(("x",), dict(mask_id=7)), (("x",), types_ | causal)]


def test_the_report_says_how_many_names_have_several_partners_and_what_is_drawn(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "capitals.csv"
    path.write_text("country,city\nFrance,Paris\nFrance,Lyon\nPeru,Lima\n")
    config = page.Config(pairs=str(path), columns=("country", "city"), **_WORDS)
    monkeypatch.setattr(page.flags, "FLAGS", types.SimpleNamespace(progress=False))
    monkeypatch.setattr(page.work, "all_done", pieces.compute)
    page.compute(page.WorkDir(tmp_path / "run", {"experiment": "measure"}), config, ())
    said = "1 name stands in several pairs: any partner is a right answer"
    report = (tmp_path / "run/report.md").read_text()
    assert said in capsys.readouterr().out and said in report
    assert "*Below: shares" in report and "docs/glossary.md" in report
    with pytest.raises(ValueError, match=r"run is of `measure`: choose another --workdir$"):
        page.WorkDir(tmp_path / "run", {"experiment": "facts", "seeds": [1]})
    with pytest.raises(ValueError, match="empty: no model in it"):
        (tmp_path / "empty").mkdir()
        page.tokenizers.from_directory(tmp_path / "empty")
