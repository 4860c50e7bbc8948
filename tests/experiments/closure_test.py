"""Closure: known answers through the code that reports them, and what is refused."""

import dataclasses
import itertools
import subprocess
import sys
import types
from pathlib import Path

import artists
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models, training
from dirasym.data.families import RELATIONS
from dirasym.types import Batch
from dirasym.workdir import WorkDir
from experiments import closure
from experiments.reports import closure as closure_report
from experiments.systems import families

ROOT = Path(__file__).parents[2]
TINY = families.Config(
    weight_decays=("0", "3"), closures=(0, 2), widths=(8,), seeds=(0, 1), num_families=6,
    withheld_share=0.5, n_layers=2, n_heads=2, num_steps=2, eval_every=1, batch_size=16,
)  # fmt: skip


def _learner(config=TINY, level=2):
    graph = config.graph(level)
    network = models.gpt2(
        graph.vocab_size, 0.0, num_layers=2, num_heads=2, width=config.widths[0], max_len=2
    )
    model = models.Transformer(network)
    optimizer = families.decayed_adamw(config.lr)
    return families.ClosureLearner(config, graph, model, models.make_apply_fn(model), optimizer)


def test_an_oracle_table_gives_its_accuracies_gaps_and_asymmetry():
    """Half of what is given is right; the withheld say another person of the family, or one of
    another family."""
    learner = _learner()
    graph, values = learner.graph, {}
    table = np.zeros((graph.vocab_size,) * 3, np.float32)
    for s, r, o in graph.train_EL:
        table[s, r, o] = 4.0
    num = len(graph.withheld_EL)
    half, quarter = num // 2, num // 4
    for s, r, o in graph.given_EL[half:]:
        table[s, r, o] = -1.0
    for number, (s, r, o) in enumerate(graph.withheld_EL):
        table[s, r, o] = 1.0
        if number < quarter:  # right
            table[s, r, o] = 2.0
        elif number < half:  # of the family, who is nobody's husband here
            table[s, r, s] = 3.0
        else:  # another family's husband
            table[s, r, graph.withheld_EL[number - half, 2]] = 3.0

    def apply_fn(params, tokens_BL):
        before_BL = jnp.pad(tokens_BL[:, :-1], ((0, 0), (1, 0)))
        return params[before_BL, tokens_BL]

    parts = dict(train=graph.train_EL, forward=graph.given_EL, reverse=graph.withheld_EL)
    for name, facts_EL in parts.items():
        values |= families.answered(apply_fn, table, facts_EL, graph.family_V, name)
    assert values["forward_accuracy"] == pytest.approx(half / num)
    lost = num - half
    assert values["train_accuracy"] == pytest.approx(1 - lost / len(graph.train_EL))
    assert values["reverse_accuracy"] == pytest.approx(quarter / num)
    assert values["reverse_family"] == pytest.approx(half / num)
    assert values["reverse_choice"] == pytest.approx(half / num)  # oneself is no husband
    logits = np.array([2.0] + [0] * (graph.vocab_size - 1))
    right = -np.log(np.exp(2) / np.exp(logits).sum())
    one = families.answered(apply_fn, table, graph.withheld_EL[:quarter], graph.family_V, "reverse")
    assert one["reverse_nll"] == pytest.approx(right, rel=1e-5)


def test_asymmetry_and_gaps_compare_the_same_pairs():
    learner = _learner()
    graph = learner.graph
    table = np.zeros((graph.vocab_size,) * 3, np.float32)
    for s, r, o in graph.given_EL:
        table[s, r, o] = 3.0
    for s, r, o in graph.withheld_EL:
        table[s, r, o] = 1.0

    def apply_fn(params, tokens_BL):
        before_BL = jnp.pad(tokens_BL[:, :-1], ((0, 0), (1, 0)))
        return jnp.asarray(table)[before_BL, tokens_BL]

    state = learner.init(0).replace(apply_fn=apply_fn)
    values = learner.evaluate(state)
    assert values["asymmetry"] == pytest.approx(0.5, rel=1e-5)  # |3 − 1| / (3 + 1)
    assert values["gap_given"] == pytest.approx(3) and values["gap_withheld"] == pytest.approx(1)


def test_the_probe_reads_the_withheld_relation_and_its_inverse():
    learner = _learner(dataclasses.replace(TINY, num_families=40))
    graph = learner.graph
    persons = graph.vocab_size - len(RELATIONS)
    hidden_PD = np.random.default_rng(0).normal(size=(persons, 30)).astype(np.float32)
    # Each husband is his wife's vector, moved from one plane into another.
    for s, _, o in np.concatenate([graph.shown_EL, graph.withheld_EL]) - len(RELATIONS):
        code = hidden_PD[s, :15]
        hidden_PD[s], hidden_PD[o] = np.r_[code, 0 * code], np.r_[0 * code, code]
    got = families.probed(jnp.asarray(hidden_PD), graph)
    assert got["probe_hits"] > 0.9 and got["probe_transpose"] > 0.8
    shuffled = np.random.default_rng(1).permutation(hidden_PD)
    got = families.probed(jnp.asarray(shuffled), graph)
    assert got["probe_hits"] < 0.2 and abs(got["probe_transpose"]) < 0.3


def test_hidden_states_are_read_between_the_layers_of_persons_alone():
    learner = _learner()
    params = learner.init(0).params
    hidden_PD = families.hidden_states(learner.model, params, learner.graph)
    assert hidden_PD.shape == (60, 8)
    np.testing.assert_allclose(hidden_PD.mean(axis=0), 0, atol=1e-6)
    other = jax.tree.map(lambda x: x, params)
    other["blocks_1"] = jax.tree.map(lambda x: x + 1, params["blocks_1"])  # above what is read
    np.testing.assert_array_equal(
        hidden_PD, families.hidden_states(learner.model, other, learner.graph)
    )
    other["blocks_0"] = jax.tree.map(lambda x: x + 0.1, params["blocks_0"])
    assert (hidden_PD != families.hidden_states(learner.model, other, learner.graph)).any()


def test_decay_is_a_number_of_the_state_and_steps_as_adamw():
    learner = _learner()
    run = learner.run({"weight_decay": "3"}, 3.0)
    rows = {name: x[:16] for name, x in learner.data.items()}
    batch = Batch(**rows, index_B=np.arange(16), global_size=16)
    state, plain = run.init(0), learner.init(0)
    step = jax.jit(run.step)
    stepped, _ = step(state, batch)
    fixed = training.make_optimizer(TINY.lr, weight_decay=3.0, clip_norm=None)
    want = training.create_state(plain.apply_fn, plain.params, fixed, plain.key)
    want, _ = step(want, batch)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), stepped.params, want.params
    )
    without, _ = step(plain, batch)
    gone = jax.tree.map(lambda x, y: np.abs(x - y).max(), stepped.params, without.params)
    assert max(jax.tree.leaves(gone)) > 1e-4
    same = learner.run({"weight_decay": "0"}, 0.0)
    assert run.step is same.step and run.init(0).tx is same.init(0).tx  # one program


def _line(width, closure, decay, seed, **values):
    keys = {key: 0.0 for key in closure_report.COLUMNS.values()}
    return {"width": width, "closure": closure, "weight_decay": decay, "seed": seed} | keys | values


LINES = [
    _line(64, closure, decay, seed, reverse_accuracy=value + seed / 10, train_accuracy=1.0)
    for closure, decay, value in ((0, "0", 0.0), (0, "3", 0.1), (6, "0", 0.2), (6, "3", 0.8))
    for seed in (0, 1)
]


def test_the_table_and_the_diagram_put_each_cell_in_its_place():
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in closure_report.table(LINES).splitlines()
    ]
    place = rows[0].index("reverse %")
    found = {tuple(row[:4]): row[place] for row in rows[2:]}
    assert found == {
        ("64", "0", "0", "2"): "5.0 ± 63.5",
        ("64", "0", "3", "2"): "15.0 ± 63.5",
        ("64", "6", "0", "2"): "25.0 ± 63.5",
        ("64", "6", "3", "2"): "85.0 ± 63.5",
    }
    assert rows[2][rows[0].index("told %")] == "100.0 ± 0.0"
    np.testing.assert_allclose(closure_report.phase(LINES, 64), [[5, 15], [25, 85]])
    gap = closure_report.phase([line for line in LINES if line["weight_decay"] != "3"
                                or line["closure"] != 0], 64)  # fmt: skip
    assert np.isnan(gap[0, 1]) and gap[1, 1] == pytest.approx(85)
    third = [_line(64, 6, "3", 2, reverse_accuracy=0.35, train_accuracy=1.0)]  # 80, 90 and 35
    assert closure_report.phase(LINES + third, 64)[1, 1] == pytest.approx(205 / 3)
    assert closure_report.values_of([_line(x, 0, "0", 0) for x in (128, 64, 8)], "width") == [
        8, 64, 128,
    ]  # fmt: skip


def _claimed(reverse, told=1.0):
    """Claims of three seeds whose reverse accuracy in a cell is known; hits are half of it."""
    lines = [
        _line(64, closure, decay, seed, train_accuracy=told, reverse_accuracy=x + seed / 100,
              probe_hits=x / 2)
        for (closure, decay), x in reverse.items() for seed in range(3)
    ]  # fmt: skip
    return closure_report.claims(lines[::-1])


def test_claims_go_by_the_thresholds_of_the_page():
    expected = {(0, "0"): 0.0, (0, "3"): 0.01, (6, "0"): 0.1, (6, "1"): 0.9, (6, "3"): 0.95}
    rows = _claimed(expected)
    assert [row[2] for row in rows] == ["holds"] * 4
    # Half an interval of 0.01 a seed is Student's 4.30 / √3: 2.5 points.
    assert rows[0][1].endswith("decay 0: 1.0 (−1.5 to 3.5); decay 3: 2.0 (−0.5 to 4.5)")
    assert "less closure 0: 94.0 (94.0 to 94.0); less decay 0: 85.0 (85.0" in rows[2][1]
    assert rows[3][1].startswith("rank correlation of probe hits over 5 cells: 1.00")
    against = {(0, "0"): 0.4, (0, "3"): 0.3, (6, "0"): 0.02, (6, "1"): 0.01, (6, "3"): 0.0}
    assert [row[2] for row in _claimed(against)] == ["fails", "fails", "fails", "holds"]
    free = _claimed(expected | {(6, "0"): 1.0})  # the graph reverses without decay
    assert free[1][2] == "undecided"
    unlearned = _claimed(expected, told=0.94)
    assert {row[2] for row in unlearned} == {"undecided"} and "has not learned" in unlearned[2][1]


def test_the_figure_of_widths_holds_cells_that_learn():
    pytest.importorskip("matplotlib")
    wide = [
        line | {"width": 128, "reverse_accuracy": line["reverse_accuracy"] / 2}
        | {"train_accuracy": 0.94 if line["weight_decay"] == "3" and line["closure"] else 1.0}
        for line in LINES
    ]  # fmt: skip
    isolated, closed = closure_report.width_figure([*LINES, *wide], (0, 6)).axes
    drawn = {line.get_label(): line for line in closed.get_lines() if line.get_label()[0] != "_"}
    assert list(drawn) == ["width 64", "width 128"] == artists.entries(closed.get_legend())
    assert list(drawn["width 64"].get_xdata()) == [0, 3]
    np.testing.assert_allclose(drawn["width 64"].get_ydata(), [25, 85])
    assert list(drawn["width 128"].get_xdata()) == [0.03]  # at decay 3 it has not learned
    np.testing.assert_allclose(drawn["width 128"].get_ydata(), [12.5])
    dots = [list(x.get_ydata()) for x in closed.get_lines() if x.get_label()[0] == "_"]
    np.testing.assert_allclose(dots, [[20, 30], [80, 90], [10, 15]])
    drawn = {line.get_label(): line for line in isolated.get_lines()}
    np.testing.assert_allclose(drawn["width 128"].get_ydata(), [2.5, 7.5])
    artists.hides_nothing(closed.figure)


def test_the_figures_hold_the_numbers():
    pytest.importorskip("matplotlib")
    isolated, closed = closure_report.decay_figure(LINES).axes
    drawn = {c.get_label(): c[0] for c in closed.containers}
    assert list(drawn["reverse"].get_xdata()) == [0, 3]
    np.testing.assert_allclose(drawn["reverse"].get_ydata().astype(float), [25, 85])
    drawn = {c.get_label(): c[0] for c in isolated.containers}
    np.testing.assert_allclose(drawn["reverse"].get_ydata().astype(float), [5, 15])
    told, _, own = closure_report.DRAWN
    for label, share in ((told, 100.0), (own, 0.0)):
        np.testing.assert_allclose(drawn[label].get_ydata().astype(float), [share] * 2)
    assert artists.entries(isolated.get_legend()) == list(closure_report.DRAWN)
    assert (isolated.get_title(), closed.get_title()) == (
        "closure 0, width 64", "closure 6, width 64",
    )  # fmt: skip
    artists.hides_nothing(isolated.figure)
    ax = closure_report.phase_figure(LINES).axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[5, 15], [25, 85]])
    assert ax.images[0].get_clim() == (0, 100)  # the bar is read in percent
    written = {(text.get_position(), text.get_text()) for text in ax.texts}
    assert written == {((0, 0), "5"), ((1, 0), "15"), ((0, 1), "25"), ((1, 1), "85")}
    assert [[x.get_text() for x in labels] for labels in
            (ax.get_xticklabels(), ax.get_yticklabels())] == [["0", "3"], ["0", "6"]]  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "changes", "want"),
    [
        (1, {(0, "0"): 0.1}, "undecided"),
        (1, {(0, "0"): 0.099}, "holds"),
        (1, {(0, "3"): 0.2}, "undecided"),
        (1, {(0, "3"): 0.201}, "fails"),
        (1, {(0, "3"): 0.200004}, "undecided"),  # to a thousandth of a point
        (2, {(6, "0"): 0.3}, "undecided"),
        (2, {(6, "0"): 0.299}, "holds"),
        (2, {(6, "1"): 0.5}, "undecided"),
        (2, {(6, "1"): 0.501}, "holds"),
        (2, {(6, "0"): 0.5, (6, "1"): 0.5, (6, "3"): 0.5}, "fails"),
        (2, {(6, "0"): 0.501, (6, "1"): 0.5, (6, "3"): 0.5}, "undecided"),
        (3, {(0, "3"): 0.55, (6, "0"): 0.0}, "undecided"),
        (3, {(0, "3"): 0.549, (6, "0"): 0.0}, "holds"),
        (3, {(0, "3"): 0.0, (6, "0"): 0.85}, "undecided"),
        (3, {(0, "3"): 0.0, (6, "0"): 0.851}, "fails"),
        (3, {(0, "3"): 0.0, (6, "0"): 0.850004}, "undecided"),
    ],
)
def test_a_tie_with_a_threshold_decides_nothing(claim, changes, want):
    """Seeds that agree: an interval of no width, which stands on the threshold itself."""
    shares = {(0, "0"): 0.0, (0, "3"): 0.0, (6, "0"): 0.1, (6, "1"): 0.9, (6, "3"): 0.95} | changes
    lines = [
        _line(64, *cell, seed, train_accuracy=0.95, reverse_accuracy=share, probe_hits=share)
        for cell, share in shares.items() for seed in range(3)
    ]  # fmt: skip
    assert closure_report.claims(lines)[claim - 1][2] == want
    shares = [key for key in lines[0] if key.endswith(("accuracy", "hits"))]  # as they are kept
    kept = [line | {key: float(np.float32(line[key])) for key in shares} for line in lines]
    assert closure_report.claims(kept)[claim - 1][2] == want


def test_cells_are_compared_by_the_seeds_that_both_have():
    cells = [(6, "3", 0, 0.9), (6, "3", 1, 0.8), (6, "3", 5, 0.0)]  # points: 80 and 60
    cells += [(0, "3", 7, 0.99), (0, "3", 1, 0.2), (0, "3", 0, 0.1)]
    cells += [(6, "0", seed, 0.5) for seed in (1, 0)]
    lines = [_line(64, *cell, train_accuracy=1.0, reverse_accuracy=share, probe_hits=share)
             for *cell, share in cells]  # fmt: skip
    told = closure_report.claims(lines)[2][1]
    assert told.startswith("closure 6, decay 3, less closure 0: 70.0 (")
    assert "; less decay 0: 35.0 (" in told


def test_a_cell_says_a_share_in_percent_and_all_else_as_it_is():
    lines = [{"asymmetry": 0.25, "reverse_choice": 0.25}, {"asymmetry": 0.25}]
    assert closure_report.cell(lines, "asymmetry") == "0.25 ± 0.00"
    assert closure_report.cell(lines, "reverse_choice") == "25.0"
    assert closure_report.cell(lines, "probe_hits") == "none"


def test_numbers_of_the_diagram_are_white_on_dark_and_black_on_light():
    pytest.importorskip("matplotlib")
    shares = {"0": 0.594, "1": 0.6, "3": 0.604}
    lines = [_line(64, 0, decay, 0, reverse_accuracy=x) for decay, x in shares.items()]
    ax = closure_report.phase_figure(lines).axes[0]
    written = [(text.get_text(), text.get_color()) for text in ax.texts]
    assert written == [("59", "white"), ("60", "black"), ("60", "black")]


def test_a_rank_correlation_needs_three_cells_that_have_learned():
    cells = [(0, "0"), (6, "0"), (6, "3")]
    for told, words in (((1.0, 1.0, 1.0), "3 cells: 1.00"), ((1.0, 1.0, 0.94), "2 cells: nan")):
        lines = [
            _line(64, *cell, seed, train_accuracy=share, reverse_accuracy=place / 3,
                  probe_hits=place / 3)
            for place, (cell, share) in enumerate(zip(cells, told, strict=True))
            for seed in range(3)
        ]  # fmt: skip
        assert words in closure_report.claims(lines)[3][1]


def test_the_rank_correlation_is_of_means_and_not_of_the_ends_of_intervals(monkeypatch):
    told = []
    spy = lambda *given: told.append(given) or closure_report.Bounds(0.5, 0.4, 0.6)  # noqa: E731
    monkeypatch.setattr(closure_report.effects, "rank_correlation", spy)
    lines = [
        _line(64, closure, decay, seed, train_accuracy=1.0, reverse_accuracy=x + spread * seed,
              probe_hits=x / 2)
        for closure, decay, x, spread in
        ((0, "0", 0.1, 0.1), (6, "0", 0.3, 0.0), (6, "3", 0.5, 0.2))
        for seed in range(3)
    ]  # fmt: skip
    closure_report.claims(lines)
    ((hits, reverse),) = told
    np.testing.assert_allclose(hits, [5, 15, 25])
    np.testing.assert_allclose(reverse, [20, 30, 70])


def test_cells_of_the_same_answers_are_ties_whichever_seed_gave_them(monkeypatch):
    """As their lines keep them, in float32, and summed in any order."""
    told = []
    spy = lambda *given: told.append(given) or closure_report.Bounds(0.5, 0.4, 0.6)  # noqa: E731
    monkeypatch.setattr(closure_report.effects, "rank_correlation", spy)
    shares = [float(np.float32(share)) for share in (26 / 27, 11 / 27, 1 / 27)]
    cells = [(0, "0"), (0, "3"), (2, "0"), (2, "3"), (6, "0"), (6, "3")]
    lines = [
        _line(64, *cell, seed, train_accuracy=1.0, reverse_accuracy=share, probe_hits=share)
        for cell, order in zip(cells, itertools.permutations(shares), strict=True)
        for seed, share in enumerate(order)
    ]  # fmt: skip
    closure_report.claims(lines)
    ((hits, reverse),) = told
    assert len(hits) == 6 and len(set(hits)) == len(set(reverse)) == 1


def test_a_tie_of_the_rank_correlation_decides_nothing(monkeypatch):
    expected = {(0, "0"): 0.0, (6, "0"): 0.5, (6, "3"): 0.9}
    for rank, want in ((0.7, "undecided"), (0.71, "holds"), (0.3, "undecided"), (0.29, "fails")):
        of = closure_report.Bounds(rank, rank - 0.1, rank + 0.1)
        monkeypatch.setattr(closure_report.effects, "rank_correlation", lambda *_, of=of: of)
        assert _claimed(expected)[3][2] == want


def test_a_report_draws_a_diagram_of_more_than_one_closure(tmp_path, monkeypatch):
    drawn = artists.of_report(monkeypatch, closure_report.report)
    for lines, names in ((LINES, {"decay", "phase"}), (LINES[:2], {"decay"})):
        workdir = types.SimpleNamespace(path=tmp_path, results=lambda lines=lines: lines)
        closure_report.write(workdir, TINY, [])
        assert set(drawn) == names


@pytest.mark.slow
def test_a_sweep_ends_in_a_report(tmp_path, capsys):
    from dirasym import runs

    config = dataclasses.replace(TINY, closures=(2,))
    planned = closure.plan(config, tmp_path)
    assert [run.identity["weight_decay"] for run in planned] == ["0", "3"]
    workdir = WorkDir(tmp_path / "run")
    lines = runs.sweep(planned, config.seeds, workdir, progress=False)
    assert len(lines) == 4 and {"reverse_accuracy", "probe_hits", "asymmetry"} <= lines[0].keys()
    closure_report.write(workdir, config, planned)
    assert "| 8 | 2 | 3 | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--closures=7", "closure=7: beside husband, wife there are 6 relations"),
        ("--withheld=husband,wife --closures=0,6", "closure=0 leaves nothing to ask"),
        ("--withheld_share=0.001", "asks 0 of 8 families"),
        ("--widths=18 --n_heads=4", "--widths=18 is not a multiple of --n_heads=4"),
        ("--seeds=0", "intervals over seeds need at least two"),
        ("--num_steps=5 --eval_every=2", "not a multiple of --eval_every=2"),
    ],
)
def test_bad_flags(arguments, words, tmp_path):
    given = dict(part.removeprefix("--").split("=") for part in arguments.split())
    lists = ("closures", "widths", "withheld", "seeds")
    values = {
        key: tuple(value.split(",")) if key in lists else float(value)
        for key, value in given.items()
    }
    for key in ("closures", "widths", "seeds"):
        if key in values:
            values[key] = tuple(map(int, values[key]))
    for key in ("n_heads", "num_steps", "eval_every"):
        if key in values:
            values[key] = int(values[key])
    smoke = {k: tuple(v) if isinstance(v, list) else v for k, v in closure.PRESETS["smoke"].items()}
    with pytest.raises(ValueError, match=words):
        families.Config(**smoke | values)


def test_closure_that_leaves_nothing_is_one_line_before_anything_trains(tmp_path):
    said = subprocess.run(
        [sys.executable, "-m", "experiments.closure", "--preset=smoke", "--closures=7",
         f"--workdir={tmp_path}/run"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 2 and said.stderr.count("\n") == 1
    assert "closure=7" in said.stderr and not (tmp_path / "run").exists()


def test_a_line_holds_the_last_evaluation_and_the_step_at_which_the_told_are_known():
    history = {"eval_step": np.array([0, 200, 400, 600]), "loss": np.array([3.0, 1.0, 2.0])}
    history |= {"train_accuracy": np.array([0.0, 0.98, 0.99, 0.97])}
    history |= {"reverse_choice": np.array([0.1, 0.9, 0.4, 0.2]), "asymmetry": np.arange(4.0)[::-1]}
    line = families.summarize(history)
    known = dict(train_accuracy=0.97, reverse_choice=0.2, asymmetry=0.0)
    assert line == known | dict(steps_to_fit=400, loss=2.0)
    never = families.summarize(history | {"train_accuracy": np.full(4, 0.98)})
    assert never["steps_to_fit"] is None


def test_forward_is_what_is_told_and_reverse_what_is_withheld(monkeypatch):
    asked = {}

    def answered(apply_fn, params, facts_EL, family_V, name):
        asked[name] = facts_EL
        return {}

    monkeypatch.setattr(families, "answered", answered)
    monkeypatch.setattr(families.weights, "effective_logits", lambda *_: jnp.eye(2))
    for name in ("hidden_states", "probed"):
        monkeypatch.setattr(families, name, lambda *_: {})
    learner = _learner()
    learner._evaluate(types.SimpleNamespace(apply_fn=None, params={}))
    graph = learner.graph
    wanted = dict(train=graph.train_EL, forward=graph.given_EL, reverse=graph.withheld_EL)
    assert asked.keys() == wanted.keys()
    assert all(np.array_equal(asked[name], wanted[name]) for name in wanted)


def test_a_family_graph_is_learned_by_the_network_of_the_flags(monkeypatch):
    told = []
    learner = lambda config, graph, model, *_: types.SimpleNamespace(  # noqa: E731
        run=lambda identity, decay: (identity, graph, model.config, decay)
    )
    monkeypatch.setattr(closure.families, "ClosureLearner", learner)
    monkeypatch.setattr(closure.families, "decayed_adamw", told.append)
    config = dataclasses.replace(
        TINY, widths=(8, 16), n_layers=3, n_heads=2, lr=0.5, closures=(2, 6)
    )
    for identity, graph, network, decay in closure.plan(config, None):
        assert (network.width, float(identity["weight_decay"])) == (identity["width"], decay)
        assert (network.num_layers, network.num_heads, network.dropout) == (3, 2, 0.0)
        assert graph.trained == config.graph(identity["closure"]).trained
    assert told == [0.5]
