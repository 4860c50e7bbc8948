"""What two questions' states share is known for states that are made by hand."""

import types

import jax
import numpy as np
import pytest

from dirasym import models
from experiments import causes as page
from experiments import geometry
from experiments.systems import causes
from experiments.systems.causes import Cell

CONFIG = page.Config(length=4, width=8, steps=20, eval_every=4, cells=("leading",))
LETTER = np.repeat(np.arange(26), 6)
RNG = np.random.default_rng(0)


def test_questions_that_code_a_letter_alike_are_told_from_those_that_do_not():
    code_XD, other_XD = RNG.normal(size=(2, 26, 40))
    noise = 0.05 * RNG.normal(size=(3, len(LETTER), 40))
    hidden = {
        "forward": code_XD[LETTER] + noise[0],
        "reverse": other_XD[LETTER] + 9 + noise[1],
        "source": other_XD[LETTER] - 4 + noise[2],
    }
    found = geometry.shared(hidden, LETTER)
    assert set(found) == set(geometry.COLUMNS.values())
    for kind in ("nearest", "probe"):
        assert found[f"{kind}_order"] == 100  # source and reverse
        assert found[f"{kind}_target"] < 20 and found[f"{kind}_answer"] < 20
    assert found["probe_held_out"] == 100
    swapped = {"forward": hidden["reverse"], "reverse": hidden["forward"], "source": noise[2]}
    found = geometry.shared(swapped | {"source": hidden["forward"]}, LETTER)
    assert found["nearest_order"] == 100 and found["nearest_target"] < 20


def test_a_probe_is_held_out_and_fitted_on_the_first_question():
    item_XD = RNG.normal(size=(26, 40))
    alike = item_XD[LETTER]
    odd = alike.copy()
    odd[1::2] = RNG.normal(size=(len(LETTER) // 2, 40))  # half of the rows say nothing
    found = geometry.shared({"forward": odd, "reverse": alike, "source": alike}, LETTER)
    assert found["probe_held_out"] < 25
    assert found["probe_answer"] > 90
    found = geometry.shared({"forward": alike, "reverse": odd, "source": alike}, LETTER)
    assert 45 < found["probe_answer"] < 60


@pytest.mark.parametrize("cell", [Cell(), Cell("causal", "next_token")])
def test_states_are_what_the_head_reads_where_a_question_asks(cell):
    task = causes.Task(cell, CONFIG)
    params = task.init(0).params
    hidden = geometry.hidden(task, params)
    apply_fn = models.make_apply_fn(models.Transformer(task.network))
    head = params["head"]
    for name, asked in task.questions.items():
        want = task.logits(params, asked.tokens_EL, asked.position_E, apply_fn)
        got = np.asarray(hidden[name]) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        np.testing.assert_allclose(got[:, :-1], want[:, :-1], atol=1e-5)  # [M] is left out there


def test_the_moving_average_is_looked_at_when_it_is_trained(monkeypatch, tmp_path):
    seen = []

    def known(task, params):
        seen.append(params)
        return {name: RNG.normal(size=(156, 4)) for name in causes.QUESTIONS}

    monkeypatch.setattr(geometry, "hidden", known)
    run = geometry.plan(CONFIG, tmp_path)[0]
    values = run.finish(types.SimpleNamespace(params="raw", ema_params="average"), tmp_path)
    assert seen == ["average"]
    assert {name: np.shape(x) for name, x in values.items()} == dict.fromkeys(
        geometry.COLUMNS.values(), (1,)
    )


def test_untrained_networks_are_those_of_the_seeds(monkeypatch):
    asked = []

    def known(task, state, folder):
        asked.append(state)
        return {"nearest_order": np.array([len(asked)])}

    monkeypatch.setattr(geometry, "looked_at", known)
    config = page.Config(length=4, width=8, seeds=(0, 3), cells=("bidirectional",))
    lines = geometry.untrained(config)
    assert [(x["seed"], x["nearest_order"]) for x in lines] == [(0, 1), (3, 2)]
    assert lines[0]["attention"] == "bidirectional"
    leaves = [jax.tree.leaves(state.ema_params) for state in asked]
    assert any((x != y).any() for x, y in zip(*leaves, strict=True))


def test_verdicts_are_those_of_masked_diffusion_of_both():
    line = {"attention": "bidirectional", "objective": "masked_diffusion", "predicted": "both",
            "positions": "rope", "layers": 1}  # fmt: skip

    def lines(kind, answer, order):
        return [
            line | {"seed": n, "nearest_answer": 60, "nearest_order": 60, "probe_answer": 60,
                    "probe_order": 60, f"{kind}_answer": answer + n, f"{kind}_order": order + n}
            for n in range(2)
        ]  # fmt: skip

    other = [x | {"predicted": "B", "nearest_answer": 99} for x in lines("nearest", 1, 90)]
    for kind, place in (("nearest", 0), ("probe", 1)):
        row = geometry.claims(lines(kind, 1, 90) + other)[place]
        assert row[0].startswith(f"{5 + place}.") and row[2] == "holds"
        assert "*answer*: 1.5 (" in row[1] and "*order*: 90.5 (" in row[1]
        assert geometry.claims(lines(kind, 80, 90))[place][2] == "fails"
        assert geometry.claims(lines(kind, 12, 90))[place][2] == "undecided"
        assert geometry.claims(lines(kind, 1, 45))[place][2] == "undecided"


def test_the_tables_say_what_was_measured():
    line = dict.fromkeys(geometry.COLUMNS.values(), 7.0)
    line |= page.identity(Cell()) | {"seed": 0, "probe_target": 9.0}
    rows = geometry.table([line, line | {"seed": 1}]).splitlines()
    names = [name.strip() for name in rows[0].split("|")]
    values = dict(zip(names, (x.strip() for x in rows[2].split("|")), strict=True))
    assert values["probe, *target* %"] == "9.0 ± 0.0" and values["seeds"] == "2"
    assert "reverse %" not in names
    trained = line | {"percent_forward": 1.0, "percent_reverse": 2.0}
    assert "| 1.0 ± 0.0 | 2.0 ± 0.0 | 7.0" in geometry.table([trained, trained | {"seed": 1}])


def test_the_line_is_of_the_last_evaluation():
    history = {key: np.array([1.0, 5.0]) for key in geometry.COLUMNS.values()}
    history |= {"percent_forward": np.array([1, 2.0]), "percent_reverse": np.array([3, 4.0])}
    found = geometry.summarize(history | {"choice_reverse": np.array([9, 6.0])})
    assert found["percent_reverse"] == 4 and found["choice_reverse"] == 6
    assert found["probe_order"] == 5
