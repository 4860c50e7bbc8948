import dataclasses
import pathlib

import artists
import commands
import numpy as np
import pytest
import scipy.special

from dirasym import report
from dirasym.analysis import row_dynamics
from dirasym.workdir import WorkDir
from experiments import training_dynamics
from experiments.reports import training_dynamics as dynamics_report
from experiments.systems import training_dynamics as dynamics

ROOT = pathlib.Path(__file__).parents[2]
SMALL = dynamics.Config(
    widths=(8, 12), seeds=(0, 1), vocab_size=8, num_pairs=4, num_times=10, final_loss=0.01
)


@pytest.fixture
def orthonormal(monkeypatch):
    """Embeddings of which no two overlap: the closed form is exact."""
    monkeypatch.setattr(dynamics, "random_signs", lambda key, shape: np.eye(*shape))


def test_orthonormal_embeddings_follow_the_closed_form_and_leave_the_reverse_alone(orthonormal):
    line, curves = dynamics.solve_bilinear(SMALL, width=8, seed=0)
    rate = 1 / 6  # 4 forward pairs, 2 of them in both directions
    want_T = -np.log(row_dynamics.row_probability(curves["time"], 8, rate))
    np.testing.assert_allclose(curves["loss"], want_T, rtol=1e-5)
    np.testing.assert_allclose(curves["reverse_loss"], np.log(8), rtol=1e-12)
    assert line["reached"] and line["loss"] <= 0.01 < curves["loss"][-2]
    assert line["loss"] == curves["loss"][-1]
    assert line["reverse_loss"] == pytest.approx(np.log(8), rel=1e-12)
    assert line["epsilon"] == pytest.approx(0, abs=1e-12)
    assert line["reverse_deviation"] == pytest.approx(0, abs=1e-12)
    assert line["asymmetry"] == pytest.approx(1)  # the reverse block is zero
    assert line["predicted_time"] == row_dynamics.time_to_loss(0.01, 8, rate)
    before, after = curves["time"][-2:]
    assert before < line["time"] <= after
    # Between the two as the logarithms of their losses are.
    logs = np.log(curves["loss"][-2:])
    between = (logs[0] - np.log(0.01)) / (logs[0] - logs[1])
    assert line["time"] == pytest.approx(before + between * (after - before))
    # Tokens A and B of the pairs whose reverse is asked: A → B alone has weights.
    weights = curves["weights"] - curves["weights"].mean(axis=1, keepdims=True)
    trained = np.zeros((4, 4), bool)
    trained[[0, 1], [2, 3]] = True
    assert (weights[trained] > 1).all() and (weights[~trained] < 0.1).all()
    np.testing.assert_allclose(weights[2:], 0, atol=1e-12)


def test_descent_begins_where_the_flow_does_and_its_first_step_is_known(orthonormal):
    config = dataclasses.replace(SMALL, step_size=0.5)
    line, curves = dynamics.compare_descent(config)
    assert curves["loss"][0] == curves["flow_loss"][0] == pytest.approx(np.log(8), rel=1e-12)
    # From zero every row has the gradient (1_y − 1/M)/n.
    gap = 0.5 / 6
    assert curves["loss"][1] == pytest.approx(np.log1p(7 * np.exp(-gap)), rel=1e-12)
    np.testing.assert_array_equal(curves["time"], 0.5 * np.arange(line["num_steps"] + 1))
    assert curves["flow_loss"][-1] == pytest.approx(np.log(8) / 2, rel=0.05)
    assert line["largest_difference"] == np.abs(curves["loss"] - curves["flow_loss"]).max()
    finer, _ = dynamics.compare_descent(dataclasses.replace(SMALL, step_size=0.25))
    assert finer["largest_difference"] == pytest.approx(line["largest_difference"] / 2, rel=0.1)


@pytest.fixture(scope="module")
def cases():
    return {case: dynamics.solve_one_layer(case) for case in dynamics.CASES}


def test_the_one_layer_flow_is_the_closed_form_and_the_breaks_are_what_they_are(cases):
    size = dynamics.ONE_LAYER_VOCAB
    sentences = {"one_way": 3, "others_both_ways": 5, "chain": 6, "both_ways": 6}
    for case, count in sentences.items():
        line, curves = cases[case]
        want_T = row_dynamics.row_probability(curves["time"], size, 1 / count)
        np.testing.assert_array_equal(curves["closed_form"], want_T)
        np.testing.assert_allclose(curves["forward"], want_T, atol=1e-6)
        assert line["forward"] == curves["forward"][-1] and line["reverse"] == curves["reverse"][-1]
        assert line["probability_error"] == np.abs(curves["forward"] - want_T).max() < 1e-6
        assert line["gap_error"] < 1e-5 and line["largest_z"] < 1e-10
        deviation = np.abs(size * curves["reverse"] - 1).max()
        assert line["reverse_deviation"] == pytest.approx(deviation, rel=1e-12)
        if case == "both_ways":
            np.testing.assert_allclose(curves["reverse"], want_T, atol=1e-6)
        elif case == "chain":  # where B goes on to C, and A is one of the others
            np.testing.assert_allclose(curves["reverse"], (1 - want_T) / (size - 1), atol=1e-7)
        else:
            np.testing.assert_allclose(curves["reverse"], 1 / size, atol=1e-12)
    line, curves = cases["chain"]
    want_T = (1 - curves["closed_form"]) / (size - 1)
    np.testing.assert_allclose(curves["composed"], want_T, atol=1e-7)
    assert line["composed"] == curves["composed"][-1]
    assert line["composed_error"] == np.abs(curves["composed"] - want_T).max()
    # Held symmetric, the untrained direction weighs as much; only its rivals are not pushed down.
    _, curves = cases["symmetric"]
    assert (np.diff(curves["reverse"]) > 0).all() and curves["reverse"][-1] > 0.9
    assert (curves["reverse"][1:] < curves["forward"][1:]).all()
    np.testing.assert_allclose(curves["weights"], curves["weights"].T, atol=1e-12)
    line, curves = cases["attends_to_itself"]
    assert line["reverse_deviation"] == np.abs(size * curves["reverse"] - 1).max() > 0.3


def test_a_symmetric_loss_gives_one_score_both_readings(cases):
    line, curves = cases["symmetric_loss"]
    # A pair's score rises against 19 others in its row and in its column: the same law twice.
    np.testing.assert_allclose(curves["reverse_by_score"], curves["forward"], atol=1e-7)
    assert line["reverse_by_score"] == curves["reverse_by_score"][-1] > 0.99
    # The weight from B to A is another number, and nothing raises it above its row.
    a, b = dynamics.PAIRS[0]
    weights = curves["weights"]
    assert weights[b, a] == pytest.approx(weights[b].max()) and weights[b, a] < 0.01 < weights[a, b]
    assert abs(line["reverse"] - 1 / dynamics.ONE_LAYER_VOCAB) < 0.01
    score = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [0.2, 0.1, 0.0]])
    rows, columns = scipy.special.log_softmax(score, 1), scipy.special.log_softmax(score, 0)
    want = -(rows[0, 1] + rows[1, 2] + columns[0, 1] + columns[1, 2]) / 4
    assert float(dynamics.symmetric_loss(score, [0, 1], [1, 2])) == pytest.approx(want, rel=1e-5)
    swapped = float(dynamics.symmetric_loss(score.T, [1, 2], [0, 1]))
    assert swapped == pytest.approx(want, rel=1e-5)


def test_a_chain_in_one_sentence_is_read_where_it_was_trained(cases):
    a, b = dynamics.PAIRS[0]
    for case in ("joint_chain", "joint_chain_last"):
        line, curves = cases[case]
        last = scipy.special.softmax(curves["weights"][a])
        assert line["composed"] == pytest.approx(last[b + 6], rel=1e-6)
        assert line["forward"] == pytest.approx(last[b], rel=1e-6)
        assert line["highest_composed"] == curves["composed"].max()
    whole, alone = cases["joint_chain"], cases["joint_chain_last"]
    assert whole[0]["highest_composed"] > 1.5 / dynamics.ONE_LAYER_VOCAB > whole[0]["composed"]
    assert whole[0]["forward"] > 0.99 > alone[0]["forward"]
    # With a loss on C alone, A and B stand in its context alike: both rows learn it.
    assert alone[0]["composed"] > 0.9 and np.argmax(alone[1]["weights"][a]) == b + 6


def test_probabilities_are_read_at_the_asked_pair(cases):
    a, b = dynamics.PAIRS[0]
    for case in ("one_way", "others_both_ways", "chain", "both_ways", "symmetric"):
        line, curves = cases[case]
        assert line["forward"] == pytest.approx(scipy.special.softmax(curves["weights"][a])[b])
        assert line["reverse"] == pytest.approx(scipy.special.softmax(curves["weights"][b])[a])


# ---------------------------------------------------------------------------------------
# Tables and figures


def _made_up(width, seed):
    return {
        "part": "bilinear", "width": width, "seed": seed, "reached": width > 8,
        "loss": 0.001 * seed, "reverse_loss": 2.0 + seed, "epsilon": 0.1 * width + seed,
        "reverse_deviation": {8: 0.5, 12: 0.009}[width] + 0.0001 * seed, "asymmetry": 0.25,
        "time": 30.0 + 40 * seed, "predicted_time": 20.0 + 20 * seed,
    }  # fmt: skip


LINES = [_made_up(width, seed) for width in SMALL.widths for seed in SMALL.seeds]


def test_the_bilinear_table_holds_means_and_intervals():
    rows = dynamics_report.bilinear_table(SMALL, LINES).splitlines()
    header, first, second = ([x.strip() for x in rows[k].strip("|").split("|")] for k in (0, 2, 3))
    assert header[:3] == ["width", "ε", "final L"]
    # Student's t of one degree of freedom: 12.706 · half the difference.
    assert first[:4] == ["8", "1.3000 ± 6.3531", "0.00050 ± 0.00635", "2.500 ± 6.353"]
    assert first[4:6] == ["0.5000 ± 0.0006", "0.250 ± 0.000"]
    assert [len(x.split(" ± ")[0]) for x in second[1:6]] == [6, 7, 5, 6, 5]  # as many digits
    assert first[-1] == "not reached" and second[-1] == "1.62"  # of 1.5 and 1.75
    assert second[:2] == ["12", "1.7000 ± 6.3531"] and second[-2] == "0.250 ± 0.000"


def test_the_sentence_names_the_width_from_which_all_seeds_stay():
    assert "From width 12 on" in dynamics_report.within_sentence(SMALL, LINES)
    on_it = [line | {"reverse_deviation": 0.01} for line in LINES[-1:]]  # within means up to
    assert "From width 12 on" in dynamics_report.within_sentence(SMALL, LINES[:-1] + on_it)
    moved = [line | {"reverse_deviation": 0.0101} for line in LINES[-1:]]
    assert "At no width" in dynamics_report.within_sentence(SMALL, LINES[:-1] + moved)


def test_figures_hold_the_curves(cases):
    pytest.importorskip("matplotlib")
    bilinear = {
        (width, seed): {
            "time": np.array([1.0, 2.0]),
            "loss": np.array([width, seed]) + 1.0,
            "reverse_loss": np.array([seed, width]) + 10.0,
            "weights": np.full((3, 3), width + seed) * np.eye(3),
        }
        for width in SMALL.widths
        for seed in SMALL.seeds
    }
    figure = dynamics_report.loss_figure(SMALL, bilinear)
    drawn = [line.get_ydata() for line in figure.axes[0].get_lines()]
    for line, key in zip(drawn[:4], [(8, 0), (8, 0), (8, 1), (8, 1)], strict=True):
        wanted = [bilinear[key][name] for name in ("loss", "reverse_loss")]
        assert any(np.array_equal(line, x) for x in wanted)
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    np.testing.assert_array_equal(drawn[labels.index("forward")], bilinear[8, 0]["loss"])
    np.testing.assert_array_equal(drawn[labels.index("reverse")], bilinear[8, 0]["reverse_loss"])

    figure = dynamics_report.width_figure(SMALL, LINES)
    for ax, key in zip(figure.axes, ("epsilon", "reverse_deviation", "asymmetry"), strict=True):
        want = [np.mean([x[key] for x in LINES if x["width"] == w]) for w in SMALL.widths]
        np.testing.assert_allclose(ax.containers[0][0].get_ydata(), want)
    (within,) = (x for x in figure.axes[1].get_lines() if x.get_label() == "1 %")
    assert set(within.get_ydata()) == {dynamics_report.WITHIN} == {0.01}

    just_curves = {case: curves for case, (_, curves) in cases.items()}
    left, right = dynamics_report.one_layer_figure(just_curves).axes
    lines = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    np.testing.assert_array_equal(lines["p(B|A)"], just_curves["chain"]["forward"][1:])
    np.testing.assert_array_equal(lines["p(C|A)"], just_curves["chain"]["composed"][1:])
    np.testing.assert_array_equal(lines["p(A|B), untrained"], just_curves["one_way"]["reverse"][1:])
    errors = {line.get_label(): line.get_ydata() for line in right.get_lines()}
    chain = just_curves["chain"]
    np.testing.assert_array_equal(
        errors["p(B|A)"], np.abs(chain["forward"] - chain["closed_form"])[1:]
    )

    (ax,) = dynamics_report.break_figure(just_curves).axes
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    for case, label in dynamics.CASES.items():
        if "chain" not in case:
            np.testing.assert_array_equal(lines[label], just_curves[case]["reverse"][1:])

    figure = dynamics_report.weight_figure(SMALL, bilinear, just_curves)
    shown = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    wanted = [bilinear[8, 0], bilinear[12, 0], just_curves["one_way"], just_curves["symmetric"]]
    for image, curves in zip(shown, wanted, strict=True):
        np.testing.assert_array_equal(image, curves["weights"])
    limits = {ax.images[0].get_clim() for ax in figure.axes if ax.images}
    assert limits == {(-limit, limit) for limit in [max(np.abs(x).max() for x in shown)]}

    # Of three widths the first and the last are shown, of three seeds the first.
    config = dataclasses.replace(SMALL, widths=(8, 10, 12), seeds=(5, 0, 7))
    known = {(w, s): {"weights": np.eye(3) * -(w + s / 10)} for w in (8, 10, 12) for s in (5, 0, 7)}
    axes = dynamics_report.weight_figure(config, known, just_curves).axes
    assert [ax.get_title() for ax in axes[:2]] == ["bilinear, width 8", "bilinear, width 12"]
    np.testing.assert_allclose([ax.images[0].get_array().min() for ax in axes[:2]], [-8.5, -12.5])
    low, high = axes[0].images[0].get_clim()  # the largest may be below zero
    assert -low == high == max([12.5, *(np.abs(x).max() for x in shown[2:])])


KEYS = (
    "forward", "probability_error", "gap_error", "reverse", "reverse_deviation", "largest_z",
    "composed", "composed_error", "highest_composed", "reverse_by_score",
)  # fmt: skip


def _one_layer_lines():
    """A line a case, every number its own."""
    return [
        {"part": "one_layer", "case": case}
        | {key: (1 + place + len(KEYS) * row) / 1000 for place, key in enumerate(KEYS)}
        for row, case in enumerate(dynamics.CASES)
    ]


def test_the_one_layer_table_holds_the_lines():
    lines = _one_layer_lines()
    text = dynamics_report.one_layer_table(lines)
    rows = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("|")][2:]
    for cells, line in zip(rows, lines, strict=True):
        label = dynamics.CASES[line["case"]]
        follows = "break" not in label or line["case"] == "both_ways"
        errors = [f"{line[key]:.1e}" * follows for key in ("probability_error", "gap_error")]
        rest = [f"{line['reverse_deviation']:.1e}", f"{line['largest_z']:.1e}"]
        first, last = f"{line['forward']:.5f}", f"{line['reverse']:.5f}"
        assert cells == [label, first, *errors, last, *rest]
    of = {line["case"]: line for line in lines}
    chain, joint = of["chain"], of["joint_chain"]
    sentences = text.rpartition("\n\n")[2]
    assert f"p(C|A) ends at {chain['composed']:.1e}, and is" in sentences
    assert f"to {chain['composed_error']:.1e}. Where" in sentences
    assert f"reaches {joint['highest_composed']:.3f} and ends at {joint['composed']:.1e}; " in (
        sentences
    )
    assert f"alone it ends at {of['joint_chain_last']['composed']:.5f}." in sentences
    assert f"p(A|B) = {of['symmetric_loss']['reverse_by_score']:.5f}." in sentences


def test_a_report_sorts_the_pieces_by_part(tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(SMALL, widths=(8, 12), seeds=(0, 1))
    curve = {"time": np.ones(2)}
    pieces, workdir = training_dynamics.pieces(config), WorkDir(tmp_path)
    for number, piece in enumerate(pieces):
        workdir.save_curves(piece, piece.seed, curve | {"number": np.full(2, number)})
        case = piece.identity.get("case")
        found = {"bilinear": lambda piece=piece: _made_up(piece.identity["width"], piece.seed)}
        line = next(iter([x for x in _one_layer_lines() if x["case"] == case]), None)
        line = line or found.get(piece.identity["part"], lambda: dict(DESCENT))()
        workdir.record(piece, piece.seed, line)
    drawn = artists.of_report(monkeypatch, dynamics_report.report)
    dynamics_report.write(workdir, config, pieces)
    numbers = {(*piece.identity.values(), piece.seed): n for n, piece in enumerate(pieces)}
    _, bilinear = drawn["bilinear_losses"]
    assert {key: c["number"][0] for key, c in bilinear.items()} == {
        (width, seed): numbers["bilinear", width, seed] for width in (8, 12) for seed in (0, 1)
    }
    (cases,) = drawn["one_layer"]
    assert {key: c["number"][0] for key, c in cases.items()} == {
        case: numbers["one_layer", case, None] for case in dynamics.CASES
    }
    printed = capsys.readouterr().out
    assert "step size 0.5, width 8: its loss is within 0.0031 nats of the flow's over 7" in (
        printed.replace("\n", " ")
    )


DESCENT = {"part": "descent", "step_size": 0.5, "largest_difference": 0.00312, "num_steps": 7}


def test_the_figure_of_losses_shows_the_first_the_middle_and_the_last_width():
    pytest.importorskip("matplotlib")
    config = dataclasses.replace(SMALL, widths=(8, 10, 12, 14, 16))
    curve = {"time": np.array([1.0, 10.0]), "loss": np.ones(2), "reverse_loss": np.ones(2)}
    bilinear = {(width, seed): curve for width in config.widths for seed in config.seeds}
    axes = dynamics_report.loss_figure(config, bilinear).axes
    assert [ax.get_title() for ax in axes] == ["width 8", "width 12", "width 16"]
    assert artists.entries(axes[-1].get_legend()) == ["forward", "reverse", "ln M, a guess"]
    assert [ax.get_ylabel() for ax in axes] == ["loss (nats)", "", ""]
    alone = dataclasses.replace(config, seeds=(1,))
    (*_, ax) = dynamics_report.loss_figure(alone, bilinear).axes
    assert artists.entries(ax.get_legend()) == ["forward", "reverse", "ln M, a guess"]
    for ax in axes:
        assert ax.get_shared_x_axes().joined(ax, axes[0])
        assert ax.get_shared_y_axes().joined(ax, axes[0])
        colors = {line.get_color() for line in ax.get_lines() if line.get_label() == "forward"}
        assert colors == {report.FORWARD}
        (guess,) = (x for x in ax.get_lines() if x.get_linestyle() == ":")
        np.testing.assert_allclose(guess.get_ydata(), np.log(8))


def test_the_closed_forms_and_intervals_are_drawn_beside_the_flow(cases):
    pytest.importorskip("matplotlib")
    just_curves = {case: curves for case, (_, curves) in cases.items()}
    left, right = dynamics_report.one_layer_figure(just_curves).axes
    chain = just_curves["chain"]
    exact = chain["closed_form"]
    rest = (1 - exact) / (dynamics.ONE_LAYER_VOCAB - 1)  # p(C|A): what A → B leaves, in M − 1
    even = np.full(len(exact), 1 / dynamics.ONE_LAYER_VOCAB)
    smooth = [line.get_ydata() for line in left.get_lines() if line.get_marker() == "None"]
    for got, want in zip(smooth, (exact, rest, even), strict=True):
        np.testing.assert_allclose(got, want[1:])
    errors = {line.get_label(): line.get_ydata() for line in right.get_lines()}
    flow = just_curves["one_way"]["reverse"]
    np.testing.assert_allclose(errors["p(C|A)"], np.abs(chain["composed"] - rest)[1:])
    np.testing.assert_allclose(errors["p(A|B), untrained"], np.abs(flow - even)[1:])
    (ax,) = dynamics_report.break_figure(just_curves).axes
    styles = {line.get_label(): line.get_linestyle() for line in ax.get_lines()}
    assert styles["1/M"] == ":" and styles[dynamics.CASES["symmetric"]] == "-"
    assert styles[dynamics.CASES["one_way"]] == "--"
    (limit,) = (line for line in right.get_lines() if line.get_linestyle() == ":")
    assert set(limit.get_ydata()) == {1e-4}  # what docs/training_dynamics.md allows
    (guess,) = (line for line in ax.get_lines() if line.get_label() == "1/M")
    assert set(guess.get_ydata()) == {1 / dynamics.ONE_LAYER_VOCAB}
    axes = dynamics_report.width_figure(SMALL, LINES).axes
    for ax, half in zip(axes, (6.353, 0.000635, 0.0), strict=True):  # Student's t for two seeds
        low, high = ax.containers[0][2][0].get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(half, rel=1e-3, abs=1e-9)
        dots = [line.get_ydata() for line in ax.get_lines() if line.get_marker() == "."]
        key = ("epsilon", "reverse_deviation", "asymmetry")[axes.index(ax)]
        for seed, y in enumerate(dots):
            assert list(y) == [x[key] for x in LINES if x["seed"] == seed]
    assert [ax.get_yscale() for ax in axes] == ["log", "log", "linear"]


# ---------------------------------------------------------------------------------------
# The command


@pytest.mark.slow
def test_the_plan_names_every_part_and_the_report_reads_them_all(tmp_path, cases, capsys):
    config = dataclasses.replace(SMALL, seeds=(0,), num_times=4)
    pieces = training_dynamics.pieces(config)
    workdir = WorkDir(tmp_path)
    for piece in pieces:
        case = piece.identity.get("case")
        line, curves = cases[case] if case else piece.work()
        workdir.save_curves(piece, piece.seed, curves)
        workdir.record(piece, piece.seed, line)
    dynamics_report.write(workdir, config, pieces)
    printed = capsys.readouterr().out
    for label in dynamics.CASES.values():
        assert f"| {label} |" in printed
    symmetric, _ = cases["symmetric"]
    assert f"| {symmetric['forward']:.5f} |  |  | {symmetric['reverse']:.5f} |" in printed
    one_way, _ = cases["one_way"]
    assert f"| {one_way['forward']:.5f} | {one_way['probability_error']:.1e} |" in printed
    assert len(list((tmp_path / "figures").glob("*.png"))) in (0, 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(step_size=1e6), "diverges.* are stable"),
        (dict(num_pairs=5), "no room for 5 pairs"),
        (dict(both_share=1.0), "leaves no reverse to ask"),
        (dict(widths=(10**14,)), "--widths with --vocab_size=.* numbers"),
        (dict(final_loss=3.0), "final_loss must be in"),
        (dict(step_size=0.0), "step_size must be positive"),
    ],
)
def test_bad_flags(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        training_dynamics.plan(dataclasses.replace(SMALL, **changes), tmp_path)


def test_a_diverging_step_is_refused_before_anything_is_written(tmp_path):
    flags = "--preset=smoke --step_size=1e6 --noprogress".split()
    result = commands.run(["experiments.training_dynamics", f"--workdir={tmp_path}/run", *flags])
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "diverges" in result.stderr and "are stable" in result.stderr
    assert not (tmp_path / "run").exists()


def test_seeds_draw_their_own_embeddings():
    grams = [dynamics.bilinear(SMALL, 12, seed).gram_VV for seed in (0, 0, 1)]
    np.testing.assert_array_equal(grams[0], grams[1])
    assert (grams[0] != grams[2]).any()
