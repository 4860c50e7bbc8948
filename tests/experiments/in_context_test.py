"""Facts told in the prompt and drawn anew: what is measured and shown of them."""

import dataclasses
import math

import artists
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models
from dirasym.data.relations import fresh_in_context
from experiments import relations_study
from experiments.reports import relations_study as study_report
from experiments.systems import relations
from experiments.systems.in_context import InContext, Prompts

TINY = relations.Config(n_layers=1, n_heads=2, embed_dim=8, dropout=0.0, batch_size=4, lr=1e-3)
FRESH = relations_study.FRESH


def _nearest(params, tokens_BL):
    """Logit ln 7 for the A told last, and 0 for all others."""
    del params
    a_B = tokens_BL[:, 9]
    logits_BV = jnp.log(7.0) * jax.nn.one_hot(a_B, 23)
    return jnp.broadcast_to(logits_BV[:, None], (*tokens_BL.shape, 23))


def _matching(params, tokens_BL):
    """Logit 30 for the A told before the B that is asked about."""
    del params
    told = [(tokens_BL[:, 3 * n], tokens_BL[:, 3 * n + 2]) for n in range(4)]
    a_B = sum(jnp.where(b == tokens_BL[:, 13], a, 0) for a, b in told)
    return jnp.broadcast_to(30 * jax.nn.one_hot(a_B, 23)[:, None], (*tokens_BL.shape, 23))


def _cell():
    return InContext(Prompts(num_facts=4, num_names=10), TINY, 20)


def test_answers_are_counted_by_the_place_of_the_fact_asked():
    cell = _cell()
    state = cell.learner.init(0)
    got = cell.evaluate(state.replace(apply_fn=_nearest))
    other = math.log(7 + 22)
    np.testing.assert_allclose(got["nll_by_place"], [other] * 3 + [other - math.log(7)], rtol=1e-5)
    np.testing.assert_allclose(got["accuracy_by_place"], [0, 0, 0, 1])
    np.testing.assert_allclose(got["accuracy"], 0.25)
    np.testing.assert_allclose(got["validation_nll"], other - math.log(7) / 4, rtol=1e-5)
    got = cell.evaluate(state.replace(apply_fn=_matching))
    np.testing.assert_allclose(got["accuracy_by_place"], 1)
    np.testing.assert_allclose(got["validation_nll"], 0, atol=1e-6)


def test_a_result_line_says_the_last_evaluation_and_when_it_answered():
    history = {
        "eval_step": np.array([0, 1, 2, 3]),
        "loss": np.array([9.0, 9, 4]),
        "validation_nll": np.array([5.0, 1, 2, 3]),
        "accuracy": np.array([0.1, 0.89, 0.9, 0.5]),
        "nll_by_place": np.arange(16.0).reshape(4, 4),
        "accuracy_by_place": np.arange(16.0).reshape(4, 4) / 16,
    }
    cell = _cell()
    line = cell.summarize(history)
    assert (line["num_facts"], line["num_names"], line["num_asked"]) == (4, 10, None)
    sizes = models.sizes(cell.run({"value": 1}).network, cell.learner.init(0).params)
    assert (sizes["layers"], sizes["width"], sizes["heads"]) == (1, 8, 2)
    embeddings, norms, attention, mlp = (23 + 16) * 8, 3 * 16, 4 * 72, 288 + 264
    assert sizes["total_params"] == embeddings + norms + attention + mlp
    assert (line["train_nll"], line["validation_nll"], line["lowest_validation_nll"]) == (4, 3, 1)
    assert (line["accuracy"], line["steps_to_answer"]) == (0.5, 2)
    assert line["nll_by_place"] == [12, 13, 14, 15]
    assert line["accuracy_by_place"] == [0.75, 0.8125, 0.875, 0.9375]
    assert line["uniform_nll"] == math.log(10) and line["num_sentences"] == 80
    assert line["num_validation_sentences"] == 2000
    assert _cell().summarize(history | {"accuracy": np.zeros(4)})["steps_to_answer"] is None
    longer = InContext(Prompts(num_facts=4, num_names=10), TINY, 60)  # of which 3 are a twentieth
    losses = np.array([9.0, 9, 6, 2, 1])
    assert longer.summarize(history | {"loss": losses})["train_nll"] == 3


def test_a_cells_sentences_are_of_its_prompts_and_of_the_data_seed():
    told = []
    for num_asked, seed in ((None, 0), (None, 5), (2, 0)):
        c = dataclasses.replace(TINY, data_seed=seed)
        data = InContext(Prompts(4, 10, num_asked), c, 20).data
        want = fresh_in_context(10, num_facts=4, num_asked=num_asked, num_train=80, seed=seed)
        np.testing.assert_array_equal(data.train_EL, want.train_EL)
        np.testing.assert_array_equal(data.validation_EL, want.validation_EL)
        told.append(data.train_EL)
    assert (told[0] != told[1]).any() and (told[0] != told[2]).any()


def test_a_cell_trains_on_last_words_with_the_network_of_its_flags(tmp_path):
    run = _cell().run({"value": "mine"})
    data = run.data(3)
    assert data["tokens_BL"].shape == data["scored_BL"].shape == (80, 16)
    assert data["scored_BL"].sum(axis=0).tolist() == [0] * 15 + [80]
    assert (run.num_steps, run.eval_every, run.batch_size) == (20, 1, 4)
    config = relations_study.Config(factors=(FRESH,), num_steps=20, embed_dim=8)
    planned = relations_study.plan(config, tmp_path)
    assert [run.identity["value"] for run in planned] == list(relations_study.PROMPTS)
    for run, changes in zip(planned, relations_study.PROMPTS.values(), strict=True):
        length = 3 * changes.get("num_facts", 2) + 4
        assert run.data(0)["tokens_BL"].shape == (20 * 64, length)
        embed = jax.eval_shape(run.init, 0).params["embed"]["embedding"]
        assert embed.shape == (3 + 2 * changes.get("num_names", 50), 8)
    with pytest.raises(ValueError, match="--num_steps=30 is not a multiple of 20"):
        relations_study.Config(num_steps=30)


def _lines():
    cells = [(m, 50, None) for m in (1, 2, 4, 8)] + [(4, 50, 2), (2, 12, None), (2, 800, None)]
    return [
        dict(factor=FRESH, value=f"{m} {n} {asked}", num_facts=m, num_names=n, num_asked=asked)
        | dict(accuracy=cell / 10 + seed / 100, train_nll=cell, validation_nll=cell + 0.5)
        | dict(accuracy_by_place=[cell / 10 + place / 100 + seed / 50 for place in range(m)])
        for cell, (m, n, asked) in enumerate(cells)
        for seed in (0, 1)
    ]


def test_three_panels_show_facts_distance_and_names():
    pytest.importorskip("matplotlib")
    assert study_report.figures(FRESH) is study_report.fresh_figure
    figure = study_report.fresh_figure(_lines(), FRESH, ())
    number, distance, names = figure.axes
    drawn = [{c.get_label(): c[0].get_xydata() for c in ax.containers} for ax in figure.axes]
    told = [[1, 0.005], [2, 0.105], [4, 0.205], [8, 0.305]]
    np.testing.assert_allclose(drawn[0]["asked at any place"], told)
    # The last place is the nearest, and stands first.
    anywhere = [[1, 0.24], [2, 0.23], [3, 0.22], [4, 0.21]]
    nearest = [[1, 0.44], [2, 0.43], [3, 0.42], [4, 0.41]]
    assert list(drawn[1]) == ["2 told", "4 told", "4 told, nearest 2 trained"]
    np.testing.assert_allclose(drawn[1]["2 told"], [[1, 0.12], [2, 0.11]])
    np.testing.assert_allclose(drawn[1]["4 told"], anywhere)
    np.testing.assert_allclose(drawn[1]["4 told, nearest 2 trained"], nearest)
    dotted = [x.get_xydata().tolist() for x in distance.get_lines() if x.get_linestyle() == ":"]
    assert dotted == [[[1, 0.5], [2, 0.5]], [[n, 0.25] for n in (1, 2, 3, 4)]]
    base = [[12, 0.505], [50, 0.105], [800, 0.605]]
    np.testing.assert_allclose(drawn[2]["asked at any place"], base)
    assert [ax.get_ylabel() for ax in figure.axes] == ["accuracy, withheld sentences", "", ""]
    told = ["2 told", "4 told", "4 told, nearest 2 trained"]
    assert sorted(artists.entries(distance.get_legend())) == sorted([*told, "guess among the told"])
    colors = {c.get_label(): c[0].get_color() for c in distance.containers}
    apart = number.containers[0][0].get_color(), names.containers[0][0].get_color()
    assert apart[1] == colors["2 told"] and apart[0] not in colors.values()
    guesses = [ax.get_lines()[-1].get_ydata() for ax in (number, names)]
    np.testing.assert_allclose(guesses[0], [1, 1 / 2, 1 / 4, 1 / 8])
    np.testing.assert_allclose(guesses[1], [1 / 2] * 3)
    artists.hides_nothing(figure)


def test_one_seed_of_fresh_facts_is_shown_as_it_is():
    first = [line for line in _lines() if line["accuracy"] * 100 % 2 < 0.5]
    assert len(first) == 7
    table = study_report.fresh_table(first[2:3], FRESH, ["4 50 None"]).splitlines()[-1]
    assert table == "| 4 50 None | 2.000 | 2.500 | 0.200 | 1.386 | 0.250 |"
    pytest.importorskip("matplotlib")
    number, distance, _ = study_report.fresh_figure(first, FRESH, ()).axes
    told = [[1, 0], [2, 0.1], [4, 0.2], [8, 0.3]]
    np.testing.assert_allclose(number.containers[0][0].get_xydata(), told)
    np.testing.assert_allclose(number.get_lines()[-1].get_ydata(), [1, 1 / 2, 1 / 4, 1 / 8])
    np.testing.assert_allclose(distance.containers[0][0].get_xydata(), [[1, 0.11], [2, 0.1]])


def test_heads_of_fresh_facts_say_what_stands_under_them():
    assert study_report.tables("depth") is study_report.table
    table = study_report.tables(FRESH)(_lines()[4:6], FRESH, ["4 50 None"])
    head, _, row = (x.strip("| ").split(" | ") for x in table.splitlines())
    said = dict(zip(head, row, strict=True))
    assert said[FRESH] == "4 50 None" and said["training NLL"].startswith("2.000 ± 0.0")
    assert said["withheld NLL"].startswith("2.500 ±")
    assert said["withheld accuracy"].startswith("0.205 ±")
    assert (said["a guess among the told"], said["its accuracy"]) == ("1.386", "0.250")
