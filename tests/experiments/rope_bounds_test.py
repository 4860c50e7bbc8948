import dataclasses

import artists
import jax
import numpy as np
import pytest

from dirasym import report
from dirasym.analysis import rope
from dirasym.pieces import compute
from dirasym.workdir import WorkDir
from experiments import rope_bounds
from experiments.reports import rope_bounds as rope_report

SMALL = rope_bounds.Config(
    sampled_width=2, sampled_distances=(1, 3), rhos=(0, 50), num_queries=64, num_keys=512, seed=1
)


def _one_plane(rho, ahead, behind):
    """Corr(S_fwd, S_rev | q) in one plane of angle 1, where it is the same for every q."""
    above = np.cos(ahead + behind) + rho * np.cos(ahead - behind)
    return above / np.sqrt((1 + rho * np.cos(2 * ahead)) * (1 + rho * np.cos(2 * behind)))


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_in_one_plane_the_correlation_is_known(rho):
    line, curves = rope_bounds.sample(SMALL, 1, 3, rho)
    want = _one_plane(rho, 1, 3)
    assert line["exact"] == pytest.approx(want, rel=1e-12)
    assert line["exact_error"] < 1e-12 and curves == {}
    assert line["bound"] == pytest.approx(np.cos(4), rel=1e-6)
    assert abs(line["sampled"] - want) < 5 * line["sampled_error"] < 0.05
    assert line["head_dim"] == 2


def test_a_cell_of_table_3_is_the_bound_as_the_paper_prints_it():
    line, _ = rope_bounds.cell(10, 64, 0.05, 0.981)
    cos = np.cos(20 * 10_000.0 ** (-np.arange(64) / 64))
    mean, variance = cos.mean(), cos.var() / 65
    want = (mean - 0.05) ** 2 / (variance + (mean - 0.05) ** 2)
    assert line["bound"] == pytest.approx(want, rel=1e-6)
    assert (line["printed"], line["paper"]) == (0.981, 0.981)


def test_printed_is_rounded_to_four_decimals_and_cut_to_three():
    for value, want in ((0.98149, 0.981), (0.98199, 0.982), (0.98194, 0.981), (0.5, 0.5)):
        assert rope_bounds.as_printed(value) == want


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    workdir = WorkDir(tmp_path_factory.mktemp("run"))
    compute(rope_bounds.pieces(SMALL), workdir)
    rope_report.write(workdir, SMALL)
    return workdir


def test_all_cells_of_table_3_agree_and_stand_at_their_place(reported):
    text = (reported.path / "report.md").read_text()
    assert "60 of 60 cells agree" in text
    places = {(delta, m) for delta in (10, 20, 30, 40, 50) for m in (64, 128)}
    assert set(rope_report.PAPER_TABLE_3) == places
    rows = [row for row in text.splitlines() if row.startswith("| 30 | 128 |")]
    assert rows == [
        "| 30 | 128 | 0.981 (0.981) | 0.976 (0.976) | 0.969 (0.969) | 0.958 (0.958) | "
        "0.939 (0.939) | 0.906 (0.906) |"
    ]


def test_the_tables_of_traces_and_correlations_hold_the_numbers(reported):
    text = (reported.path / "report.md").read_text()
    deltas = np.arange(1, 101)
    trace = rope.trace(deltas, 16)
    integral = rope.cosine_integral_approximation(deltas)
    row = (
        f"| 16 | {trace.min():.3f} | {deltas[trace.argmin()]} | "
        f"{np.abs(trace - integral).max():.3f} |"
    )
    assert row in text
    (line,) = report.select(reported.results(), what="equal", delta=3, rho=0.5)
    difference = (line["sampled"] - line["exact"]) / np.hypot(
        line["sampled_error"], line["exact_error"]
    )
    assert line["exact"] == pytest.approx(_one_plane(0.5, 3, 3), rel=1e-12)
    row = (
        f"| 0.5 | 3 | {line['sampled']:.4f} ± {line['sampled_error']:.4f} | "
        f"{line['exact']:.4f} ± {line['exact_error']:.4f} | {difference:.1f} | "
        f"{line['bound']:.4f} |"
    )
    assert row in text
    (unequal,) = report.select(reported.results(), what="unequal")
    assert unequal["head_dim"] == 16 and unequal["delta"] == "5, 34"
    assert f"distances fails by {unequal['bound'] - unequal['exact']:.4f}" in text
    assert unequal["bound"] > unequal["exact"]


def test_the_table_of_traces_reaches_to_the_largest_distance(reported, monkeypatch):
    """Up to 3 tokens the trace falls, so that its smallest is the last."""
    monkeypatch.setattr(rope_report.report, "write", lambda path, text, *_, **__: said.append(text))
    said = []
    rope_report.write(reported, dataclasses.replace(SMALL, max_distance=3, widths=(16,)))
    trace = rope.trace(np.arange(1, 4), 16)
    assert trace.argmin() == 2 and f"| 16 | {trace.min():.3f} | 3 |" in said[0]
    assert "Smallest (1/D) Tr R(Δ) for Δ = 1..3;" in said[0]


def test_the_figure_holds_traces_and_correlations(reported):
    pytest.importorskip("matplotlib")
    samples = report.select(reported.results(), what="equal")
    left, right = rope_report.figure(SMALL, samples).axes
    deltas = np.arange(1, 101)
    lines = {line.get_label(): line.get_ydata() for line in left.get_lines()}
    np.testing.assert_allclose(lines["D = 64"], rope.trace(deltas, 64))
    np.testing.assert_allclose(lines["D → ∞"], rope.cosine_integral_approximation(deltas))
    exact = {line.get_label(): line.get_ydata() for line in right.get_lines()}
    for rho in (0.0, 0.5):
        drawn = exact[f"ρ = {rho:g}"]
        np.testing.assert_allclose(drawn, [_one_plane(rho, 1, 1), _one_plane(rho, 3, 3)])
    bound = rope.trace_bound(np.array([1, 3]), SMALL.sampled_width)
    np.testing.assert_allclose(exact["Theorem 4.1's bound"], bound)
    sampled = [c[0].get_ydata() for c in right.containers]
    want = [
        next(x["sampled"] for x in samples if (x["rho"], x["delta"]) == (0.5, delta))
        for delta in (1, 3)
    ]
    np.testing.assert_array_equal(sampled[1], want)
    errors = [
        next(x["sampled_error"] for x in samples if (x["rho"], x["delta"]) == (0.5, delta))
        for delta in (1, 3)
    ]
    heights = [np.diff(bar[:, 1])[0] for bar in right.containers[1][2][0].get_segments()]
    np.testing.assert_allclose(heights, 2 * 1.96 * np.array(errors))
    colors = {line.get_label(): line.get_color() for line in right.get_lines()}
    assert right.containers[1][0].get_color() == colors["ρ = 0.5"]
    (theirs,) = (line for line in left.get_lines() if line.get_linestyle() == ":")
    assert set(theirs.get_ydata()) == {rope_report.PAPER_LINE} == {0.435}
    named = [(x.get_text(), x.get_position()[1]) for x in left.texts if "paper" in x.get_text()]
    assert named == [("paper: 0.435", pytest.approx(0.415))]  # under its line
    assert [x.get_text() for x in right.get_xticklabels()] == ["1", "3"]
    artists.hides_nothing(left.figure)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(widths=(7,)), "head width 7 is not even"),
        (dict(rhos=(101,)), "are percentages"),
    ],
)
def test_bad_flags(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **changes)


def test_a_correlation_is_sampled_as_often_as_the_flags_say(monkeypatch):
    sample, told = rope.monte_carlo_correlation, []

    def spy(key, *given, **how):
        told.append((key, how))
        return sample(key, *given, **how)

    monkeypatch.setattr(rope_bounds.rope, "monte_carlo_correlation", spy)
    config = dataclasses.replace(SMALL, seed=3, num_queries=8, num_keys=9)
    rope_bounds.sample(config, 1, 3, 0.5)
    ((key, how),) = told
    assert how == dict(rho=0.5, num_queries=8, num_keys=9) and key == jax.random.key(3)
