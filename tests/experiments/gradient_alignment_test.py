"""Every number of gradient_alignment is that of gradients and histories that are known."""

import dataclasses
import types

import artists
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models, report
from dirasym.analysis import case_recall, lemmas, neglected, theorem_b1, tracking
from dirasym.data import case_pairs
from dirasym.workdir import WorkDir
from experiments import gradient_alignment
from experiments.reports import alignment as tables
from experiments.systems import alignment, toy


@pytest.mark.slow
def test_the_minimal_encoder_is_the_theorems_full_model():
    """Blocks of the trained network's own gradients are those that `neglected_terms` calls full."""
    config = gradient_alignment.Config(width=8, examples=26)
    task = toy.Task("mdm", 2, config.toy_config(2, attention_only=True, dropout=0.0))
    measure = jax.jit(lambda state: alignment.measurements(task, 26, 2, state))
    state = task.init(0)
    values = measure(state)
    rows = case_recall.sampled_rows(case_pairs.mask_queries(2, "forward"), 26)
    letters = case_pairs.mask_queries(2, "forward").letter_E[rows]
    for block, layer in (("W_Q", "query"), ("W_K", "key"), ("W_V", "value")):
        want = np.asarray(values[f"full/{block}"])[letters]
        scale = np.abs(want).max()
        np.testing.assert_allclose(values[f"inner/{layer}"], want, atol=1e-4 * scale)
    letter = 3
    pair = dict(context=case_pairs.UPPER[letter], target=case_pairs.LOWER[letter])
    one, how = theorem_b1.OneLayer.from_transformer(
        state.params, task.network, mask_id=case_pairs.MASK, **pair
    )
    b1 = theorem_b1.theorem_b1(one, 1, 1, **how)
    for block, scale in zip(theorem_b1.BLOCKS, b1.scale, strict=True):
        got, want = values[f"theorem/{block}"][letter], getattr(b1.inner, block)
        np.testing.assert_allclose(got, want, atol=1e-4 * float(scale))


def test_attention_is_read_at_every_letter_and_distance():
    ask = case_recall.sampled_queries(6, per_cell=2)
    forward, reverse = ask["forward"], ask["reverse"]
    cells = set(zip(forward.letter_E.tolist(), forward.distance_E.tolist(), strict=True))
    assert len(cells) == 26 * 5
    np.testing.assert_array_equal(forward.position_E, reverse.context_E)
    np.testing.assert_array_equal(forward.context_E, reverse.position_E)
    assert len(forward.letter_E) == 26 * (2 * 4 + 1)


def test_rows_stand_for_all_placements_of_their_distance():
    """At L = 6: 5, 4, 3, 2, 1 of 15 placements, and two rows a distance but the longest's one."""
    asked = case_recall.sampled_queries(6, per_cell=2)["reverse"]
    share_E = case_recall.shares(asked)
    for distance, rows in ((1, 2), (2, 2), (4, 2), (5, 1)):
        want = (6 - distance) / 15 / 26 / rows
        np.testing.assert_allclose(share_E[asked.distance_E == distance], want)
    np.testing.assert_allclose(share_E @ asked.distance_E, 7 / 3)  # mean distance: (L + 1) / 3
    everywhere = case_recall.sampled_queries(6, per_cell=5)["forward"]
    np.testing.assert_allclose(case_recall.shares(everywhere), 1 / 26 / 15)


def test_what_is_tracked_of_two_losses_whose_gradients_are_known():
    """L_f = a·w and L_r = b·w + ‖w‖²/2, block by block, and a step's error of ‖ηg_f‖²/2."""
    w = {"x": np.array([2.0, -1.0], np.float32), "y": np.array([0.5], np.float32)}
    a = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, -1.0], [1.0, 1.0, 0.5]], np.float32)
    b = np.array([[0.5, 1.0, 0.0], [-2.0, 0.0, 1.0], [1.0, -3.0, 0.25]], np.float32)
    flat = np.concatenate([w["x"], w["y"]])

    def dot(params, v):
        return params["x"] @ v[:2] + params["y"] @ v[2:]

    got = tracking.track_alignment(
        lambda p, e: dot(p, e[0]),
        lambda p, e: dot(p, e[1]) + (p["x"] @ p["x"] + p["y"] @ p["y"]) / 2,
        jax.tree.map(jnp.asarray, w),
        (a, b),
        "x|y",
    )
    reverse = b + flat
    for block, side in (("x", slice(2)), ("y", slice(2, None)), ("total", slice(None))):
        inner = (a[:, side] * reverse[:, side]).sum(1)
        norms = [np.linalg.norm(v[:, side], axis=1) for v in (a, reverse)]
        np.testing.assert_allclose(got[f"inner/{block}"], inner, rtol=1e-5, atol=1e-6)
        with np.errstate(invalid="ignore"):
            cosine = inner / norms[0] / norms[1]
        np.testing.assert_allclose(got[f"cosine/{block}"], cosine, rtol=1e-5, atol=1e-6)
    g_f, g_r = a.mean(0), reverse.mean(0)
    size = np.linalg.norm(g_f)
    np.testing.assert_allclose(
        got["cosine_of_means"], g_f @ g_r / size / np.linalg.norm(g_r), rtol=1e-5
    )
    predicted = -tracking.STEP_LENGTHS / size * (g_f @ g_r)
    np.testing.assert_allclose(got["predicted"], predicted, rtol=1e-4)
    measured = predicted + tracking.STEP_LENGTHS**2 / 2
    np.testing.assert_allclose(got["measured"], measured, rtol=1e-3, atol=1e-6)


def test_steps_are_a_hundredth_to_a_tenth():
    np.testing.assert_allclose(
        tracking.STEP_LENGTHS, [0.01, 0.01778279, 0.03162278, 0.05623413, 0.1], rtol=1e-6
    )


def test_what_is_tracked_of_the_theorem_is_its_closed_form_pair_by_pair():
    config = models.attention_only(9, width=4, residual=False, rope_base=50.0)
    rng = np.random.default_rng(4)
    kernel = lambda *shape: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}  # noqa: E731
    attend = {name: kernel(4, 1, 4) for name in ("query", "key", "value", "out")}
    params = {
        "embed": {"embedding": kernel(9, 4)["kernel"]},
        "blocks_0": {"attention": attend | {"out": kernel(1, 4, 4)}},
        "head": kernel(4, 9),
    }
    context, target = np.array([3, 7]), np.array([5, 1])
    got = jax.jit(
        lambda p: tracking.track_theorem(p, config, mask_id=2, context=context, target=target)
    )(params)

    @jax.jit
    def closed(params, context, target):
        one, how = theorem_b1.OneLayer.from_transformer(
            params, config, mask_id=2, context=context, target=target
        )
        b1 = theorem_b1.theorem_b1(one, 1, 1, **how)
        dropped = neglected.neglected_terms(one, 1, 1, **how)
        return b1, dropped.full, lemmas.check_corollary_b2(one, 1, 1, **how)

    for pair in (0, 1):
        b1, full, corollary = closed(params, context[pair], target[pair])
        for block, scale in zip(theorem_b1.BLOCKS, b1.scale, strict=True):
            how = dict(atol=1e-5 * float(scale))
            np.testing.assert_allclose(
                got[f"theorem/{block}"][pair], getattr(b1.inner, block), **how
            )
            np.testing.assert_allclose(got[f"full/{block}"][pair], getattr(full, block), rtol=1e-4)
        for name in tracking.ASSUMPTIONS:
            assert got[f"assumption/{name}"][pair] == getattr(corollary, name)
        np.testing.assert_allclose(got["theorem_cosine"][pair], corollary.cosine, rtol=1e-4)
    assert {x.shape for x in got.values()} == {(2,)}


COSINES = {  # by seed: [evaluation, placement]; medians 0.9, 0.5, 0.25, 0.3; 0.8, 0.4, 0.2, 0.2
    0: [[0.9, 0.1, 0.95], [0.5, 0.7, -0.2], [0.2, 0.25, 0.9], [0.1, 0.3, 0.4]],
    1: [[0.8, 0.1, 0.95], [0.4, 0.7, -0.2], [0.2, 0.15, 0.9], [0.1, 0.2, 0.4]],
}
MEANS = np.array([-0.9, 0.6, 0.4, 0.7])


def _history(model, seed, layers=1):
    """Known curves of four evaluations."""
    rise = np.array([0.1, 0.2, 0.4, 0.8])
    history = {
        "eval_step": np.array([0, 10, 20, 30]),
        "p_forward": rise + 0.01 * seed,
        "p_reverse": rise / 2 + 0.01 * seed,
        "wall_time_sec": np.zeros(()),
    }
    if model == "arm":
        return history
    eta = tracking.STEP_LENGTHS
    correlation = np.array([[[0.2, 0.4]], [[0.6, 0.9]]])[:layers] + 0.01 * seed
    return history | {
        "cosine/total": np.array(COSINES[seed]),
        "cosine_of_means": MEANS + 0.01 * seed,
        "predicted": np.tile(-eta, (4, 1)),
        "measured": np.stack([-eta + (3 + seed) * eta**power for power in (2.0, 2.5, 1.5, 3.0)]),
        "weight_forward": np.full((4, layers, 2), 0.5) * rise[:, None, None],
        "weight_reverse": np.full((4, layers, 2), 0.3) * rise[:, None, None],
        "weight_forward_all": np.full((4, layers, 2), 0.7) * rise[:, None, None],
        "weight_reverse_all": np.full((4, layers, 2), 0.2) * rise[:, None, None],
        "correlation_total": np.array([2, 3]),
        "correlation_mean": correlation,
        "correlation_low": correlation - 0.1,
        "correlation_high": correlation + 0.2,
    }


def test_the_line_takes_medians_after_the_start_and_the_last():
    line = alignment.summarize(_history("mdm", 0))
    assert line["median_cosine_min"] == 0.25 and line["median_cosine_last"] == 0.3
    assert line["cosine_of_means_min"] == 0.4  # −0.9 is of step 0
    assert (line["final_p_forward"], line["final_p_reverse"]) == (0.8, 0.4)
    np.testing.assert_allclose(line["score_correlation_mean"], 0.3)
    np.testing.assert_allclose(line["first_order_slope"], 2.25, rtol=1e-9)  # of 2, 2.5, 1.5, 3
    lower = _history("mdm", 0)
    lower["cosine/total"][0] = -0.9
    assert alignment.summarize(lower)["median_cosine_min"] == 0.25
    assert set(alignment.summarize(_history("arm", 0))) == {"final_p_forward", "final_p_reverse"}


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A work directory whose histories are known, and its runs."""
    config = gradient_alignment.Config(
        parts=("full",), lengths=(4,), layers=(1, 2), seeds=(0, 1), steps=30, eval_every=10, width=8
    )
    workdir = WorkDir(tmp_path_factory.mktemp("alignment"), {})
    all_runs = gradient_alignment.plan(config, workdir.path)
    for run in all_runs:
        for seed in config.seeds:
            history = _history(run.identity["model"], seed, run.identity["layers"])
            workdir.save_curves(run, seed, history)
            workdir.record(run, seed, run.summarize(history))
    curves = {
        tuple(run.identity.values()): workdir.stacked(
            run,
            config.seeds,
            shared=("eval_step", "correlation_total"),
            seeds_first=("correlation_",),
        )
        for run in all_runs
    }
    return types.SimpleNamespace(config=config, workdir=workdir, runs=all_runs, curves=curves)


def test_the_table_says_means_and_intervals_beside_the_paper(reported, capsys):
    tables.write(reported.workdir, reported.config, reported.runs)
    printed = capsys.readouterr().out.splitlines()
    # Two seeds: mean ± 12.706 · half the difference.
    one = "0.225 ± 0.318 | 0.250 ± 0.635 | 0.405 ± 0.064 | 0.305 ± 0.064"
    p = "0.805 ± 0.064 | 0.405 ± 0.064"
    assert f"| full | MDM | 4 | 1 | > 0.6 | {one} | {p} | 2.250 ± 0.000 |" in printed
    two = "0.225 ± 0.318 | 0.250 ± 0.635 | 0.405 ± 0.064 | 0.530 ± 0.064"
    assert f"| full | MDM | 4 | 2 |  | {two} | {p} | 2.250 ± 0.000 |" in printed
    assert f"| full | ARM | 4 | 1 |  |  |  |  |  | {p} |  |" in printed


def _line(ax, label):
    (line,) = (line for line in ax.get_lines() if line.get_label() == label)
    return line


def test_figures_draw_the_curves(reported):
    pytest.importorskip("matplotlib")
    config, curves = reported.config, reported.curves
    axes = tables.length_figure(curves, config).axes
    rise = _history("mdm", 0)["p_forward"]
    for model in ("MDM", "ARM"):
        forward, reverse = (_line(axes[1], f"{model} {way}") for way in ("forward", "reverse"))
        np.testing.assert_allclose(forward.get_ydata(), rise + 0.005)
        np.testing.assert_allclose(reverse.get_ydata(), rise / 2 + 0.005)
    medians = [  # a box a moment: the fifth of seven lines is the median
        line.get_ydata()[0]
        for line in axes[0].get_lines()
        if len(line.get_ydata()) == 2 and line.get_color() == report.COLORS[1]
    ]
    both = np.stack([COSINES[0], COSINES[1]], axis=1).reshape(4, -1)
    np.testing.assert_allclose(medians, np.median(both, axis=1))
    top, bottom = tables.attention_figure(curves, config).axes
    np.testing.assert_allclose(top.get_lines()[0].get_ydata(), [0.205, 0.405])
    np.testing.assert_array_equal(top.get_lines()[0].get_xdata(), [2, 3])
    np.testing.assert_allclose(_line(bottom, "forward").get_ydata(), 0.7 * rise)
    np.testing.assert_allclose(_line(bottom, "reverse").get_ydata(), 0.2 * rise)
    dotted = [x for x in bottom.get_lines() if x.get_linestyle() == ":" and x.get_lw() > 1]
    np.testing.assert_allclose([x.get_ydata() for x in dotted], [0.5 * rise, 0.3 * rise])
    lines = [
        dict(model="mdm", length=4, layers=n, seed=s, median_cosine_last=0.1 * n + 0.2 * s)
        | dict(score_correlation_mean=0.5 + 0.1 * n * s)
        for n in (1, 2)
        for s in (0, 1)
    ]
    left, right = tables.depth_figure(lines, [4], [1, 2]).axes
    for ax, *want in (
        (left, [0.2, 0.3], [0.1, 0.2], [0.3, 0.4]),
        (right, [0.55, 0.6], [0.5, 0.5], [0.6, 0.7]),
    ):
        for line, y in zip(ax.get_lines(), want, strict=False):  # the mean, and a line a seed
            np.testing.assert_array_equal(line.get_xdata(), [1, 2])
            np.testing.assert_allclose(line.get_ydata(), y)
    ax = tables.first_order_figure(curves).axes[0]
    found = [line.get_ydata() for line in ax.get_lines()]
    for power in (2.0, 2.5, 1.5, 3.0):
        want = 3 * tracking.STEP_LENGTHS**power
        assert any(len(y) == 5 and np.allclose(y, want) for y in found), power


def _minimal(seed):
    """Curves of the two-letter part, three evaluations, letters last: all different."""
    rng = np.random.default_rng(seed)
    history = {"eval_step": np.array([0, 10, 20]), "cosine/total": rng.uniform(0.5, 1, (3, 26))}
    history |= {f"p_{way}": rng.uniform(0, 1, 3) for way in ("forward", "reverse")}
    for part in ("theorem", "full"):
        history |= {f"{part}/W_{x}": rng.uniform(0.1, 1, (3, 26)) for x in "QKVO"}
    shares = {f"assumption/{name}": rng.random((3, 26)) < 0.5 for name in tracking.ASSUMPTIONS}
    return history | shares


def test_the_figure_of_two_letters_draws_cosines_blocks_and_assumptions():
    pytest.importorskip("matplotlib")
    of_seed = [_minimal(0), _minimal(1)]
    c = {key: np.stack([x[key] for x in of_seed], axis=1) for key in of_seed[0]}  # [time, seed, ..]
    curves = {("minimal", "mdm", 2, 1): c | {"eval_step": of_seed[0]["eval_step"]}}
    curves["minimal", "arm", 2, 1] = {
        "eval_step": of_seed[0]["eval_step"],
        **{f"p_{way}": c[f"p_{way}"] / 2 for way in ("forward", "reverse")},
    }
    rise, cosine, blocks, assumptions = tables.minimal_figure(curves).axes
    for way in ("forward", "reverse"):
        for model, share, color in (("MDM", 1, tables.COLORS[way]), ("ARM", 2, "grey")):
            line = _line(rise, f"{model} {way}")
            np.testing.assert_allclose(line.get_ydata(), c[f"p_{way}"].mean(1) / share)
            assert line.get_color() == color
            assert line.get_linestyle() == ("-" if way == "forward" else "--")
    apart = 1 - c["cosine/total"]
    for label, of_letters in (("median letter", np.median), ("furthest letter", np.max)):
        want = of_letters(apart, axis=2)
        np.testing.assert_allclose(_line(cosine, label).get_ydata(), want.mean(axis=1))
        shown = [line.get_ydata() for line in cosine.get_lines()]
        for seed in (0, 1):
            assert any(np.array_equal(y, want[:, seed]) for y in shown)
    theirs = [line for line in cosine.get_lines() if line.get_linestyle() == ":"]
    assert [set(line.get_ydata()) for line in theirs] == [{1e-3}]
    for number, block in enumerate(("W_Q", "W_K", "W_V", "W_O")):
        theorem = _line(blocks, block)
        np.testing.assert_allclose(theorem.get_ydata(), c[f"theorem/{block}"].mean((1, 2)))
        assert theorem.get_linestyle() == "-" and theorem.get_color() == report.color(number)
        full = c[f"full/{block}"].mean((1, 2))
        (dotted,) = (x for x in blocks.get_lines() if np.allclose(x.get_ydata(), full))
        assert dotted.get_linestyle() == ":" and dotted.get_color() == report.color(number)
        for seed in (0, 1):
            want = c[f"theorem/{block}"].mean(axis=2)[:, seed]
            assert any(np.allclose(x.get_ydata(), want) for x in blocks.get_lines())
    words = ("(i) not saturated", "(ii) signals aligned", "(iii) margins agree", "(iv) RoPE pos")
    for row, (band, text, name, word) in enumerate(
        zip(assumptions.collections, assumptions.texts, tracking.ASSUMPTIONS, words, strict=True)
    ):
        share = c[f"assumption/{name}"].mean((1, 2))
        x, y = band.get_paths()[0].vertices.T
        for step, height in zip((0, 10, 20), share, strict=True):  # a band of 0.9 where all hold
            top = y[np.isclose(x, step)].max()
            assert top + row == pytest.approx(0.9 * height)
        assert y.min() == pytest.approx(-row)
        assert text.get_text().startswith(word)
        assert text.get_text().endswith(f": {share[-1]:.0%}")
        assert -row < text.get_position()[1] < 0.9 - row
    artists.hides_nothing(rise.figure)
    equal = {"cosine/total": np.ones_like(c["cosine/total"])}  # float32 may say 1, and more
    curves["minimal", "mdm", 2, 1] |= equal
    cosine = tables.minimal_figure(curves).axes[1]
    assert set(_line(cosine, "median letter").get_ydata()) == {1e-8}
    assert set(_line(cosine, "furthest letter").get_ydata()) == {1e-8}


def test_a_report_draws_what_was_run(reported, monkeypatch):
    drawn = artists.of_report(monkeypatch, tables.report)
    for changes, names in (
        (dict(), {"first_order", "alignment", "attention", "depth"}),
        (dict(layers=(1,)), {"first_order", "alignment", "attention"}),
        (dict(parts=("minimal",)), {"first_order", "minimal"}),
        (dict(models=("arm",)), {"first_order"}),
    ):
        config = dataclasses.replace(reported.config, **changes)
        tables.write(reported.workdir, config, reported.runs)
        assert set(drawn) == names


def test_the_bands_of_attention_and_the_titles_are_of_their_length_and_depth(reported):
    pytest.importorskip("matplotlib")
    config, curves = reported.config, reported.curves
    top, bottom = tables.attention_figure(curves, config).axes
    low, high = (np.array([0.205, 0.405]) + change for change in (-0.1, 0.2))
    x, y = top.collections[0].get_paths()[0].vertices.T
    for place, total in enumerate((2, 3)):
        at = y[x == total]
        assert (at.min(), at.max()) == (pytest.approx(low[place]), pytest.approx(high[place]))
    assert artists.words(top) == ("L = 4", "Δ₁ + Δ₂ (tokens)", "Corr(S_fwd, S_rev)")
    assert artists.words(bottom) == ("", "step", "weight, [M] → uppercase")
    axes = tables.length_figure(curves, config).axes
    assert [ax.get_title() for ax in axes[::2]] == ["L = 4, depth 1", "L = 4, depth 2"]
    titles = [ax.get_title() for ax in tables.first_order_figure(curves).axes]
    assert titles == ["L = 4, 1 layer", "L = 4, 2 layers"]
    for figure in (tables.attention_figure(curves, config), tables.length_figure(curves, config)):
        artists.hides_nothing(figure)


def test_what_is_tracked_is_of_the_raw_weights_by_direction(monkeypatch):
    """What reads is replaced by the weights and rows that it was given."""
    task = toy.Task("mdm", 6, gradient_alignment.Config(width=8).toy_config(6))
    asked = case_recall.sampled_queries(6, 2)
    paid = {name: types.SimpleNamespace(weights=1.0 * q.distance_E) for name, q in asked.items()}
    read = lambda f, params, q, **_: params  # noqa: E731
    track = lambda f, r, params, matched, _: dict(params=params, matched=matched)  # noqa: E731
    monkeypatch.setattr(case_recall, "true_probability", read)
    pay = lambda f, params, _: {"raw": paid}[params]  # noqa: E731
    monkeypatch.setattr(case_recall, "attention_to_context", pay)
    monkeypatch.setattr(tracking, "track_alignment", track)
    state = types.SimpleNamespace(params="raw", ema_params="ema")
    values = alignment.measurements(task, 4, 2, state)
    assert (values["p_forward"], values["p_reverse"], values["params"]) == ("raw",) * 3
    mean = asked["forward"].distance_E.mean()
    assert values["weight_forward"] == pytest.approx(mean) != pytest.approx(7 / 3)
    assert values["weight_forward_all"] == pytest.approx(7 / 3)  # of all placements
    for cloze, is_before in zip(values["matched"], (True, False), strict=True):
        upper = np.argmax((cloze.tokens_EL >= 26) & (cloze.tokens_EL < 52), axis=1)
        assert ((cloze.position_E < upper) == is_before).all()


def test_the_papers_cosines_stand_beside_ours():
    """Section 5 of arXiv 2602.02133."""
    assert tables.PAPER == {"minimal": "0.999", "full": "> 0.6"}


def test_two_letters_are_learned_by_attention_alone_without_dropout(monkeypatch):
    spy = lambda part, task, config: (part, task)  # noqa: E731
    monkeypatch.setattr(gradient_alignment, "run_of", spy)
    config = gradient_alignment.Config(
        lengths=(4,), steps=30, eval_every=10, minimal_steps=6, minimal_every=3,
        minimal_warmup=5, batch_size=9, width=8,
    )  # fmt: skip
    for part, task in gradient_alignment.plan(config, None):
        c, minimal = task.config, part == "minimal"
        assert (task.length, c.batch_size, c.width) == (2 if minimal else 4, 9, 8)
        assert (c.attention_only, c.dropout) == ((True, 0) if minimal else (False, 0.02))
        assert (c.steps, c.eval_every) == ((6, 3) if minimal else (30, 10))
        assert c.warmup_steps == (5 if minimal else 1000)
