"""A model whose every answer is written down by hand is read as what it is."""

import dataclasses
import functools
import inspect
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import intervals, measuring, models
from dirasym.analysis import attention
from dirasym.analysis.questions import Questions, by_block
from dirasym.data import facts
from dirasym.data.pairs import Pairs
from dirasym.data.tokenizers import Characters, Words
from dirasym.measuring import measure
from dirasym.progress import Parts
from dirasym.reading import MEASURES, SHARES, Asked, Direction, Reading

PAIRS = Pairs(
    (("Ann Bo", "Cy"), ("Dee", "Ed Fay"), ("Gil", "Hal"), ("Ivy", "Jo")),
    "{a}'s child is {b}",
    "{b}'s parent is {a}",
)
WORDS = Words([*PAIRS.fact_set().texts(), "of"])
# By prompt: what is said, and probabilities of its first token; the rest is shared by the others.
TOLD = {
    "Ann Bo's child is": ("Cy", dict(Cy=0.5, Ed=0.3)),
    "Dee's child is": ("Ed Fay", dict(Ed=0.6, Cy=0.1)),
    "Gil's child is": ("Hal of", dict(Hal=0.4, Cy=0.3)),
    "Ivy's child is": ("of", dict(of=0.5, Cy=0.2, Jo=0.1)),
    "Cy's parent is": ("Ann Bo", dict(Ann=0.4, of=0.3)),
    "Ed Fay's parent is": ("Ed Fay", dict(Ed=0.4, Ann=0.2, Dee=0.05)),
    "Hal's parent is": ("Hal of", dict(Hal=0.5, Ann=0.25, Gil=0.2)),
    "Jo's parent is": ("Jo", dict(Jo=0.3, of=0.25, Ivy=0.2, Dee=0.1)),
}
# Exact: Cy, Ed Fay | Ann Bo. Begun: and Hal of |. Copied: none | Ed Fay, Jo. Choice: not Jo | not
# Dee, not Gil. Rank: 1, 1, 1, 3 | 1, 3, 3, 3.
COUNTS = {"accuracy": (2, 1), "begun": (3, 1), "copied": (0, 2), "choice": (3, 2)}
P_TRUE = {"forward": (0.5, 0.6, 0.4, 0.1), "reverse": (0.4, 0.05, 0.2, 0.2)}
RANKS = {"forward": (1, 1, 1, 3), "reverse": (1, 3, 3, 3)}
WORTH = {"Cy": (1.0, 2.0), "Ed": (4.0, -1.0), "Fay": (2.0, 7.0), "Hal": (-1.0, 1.0), "Jo": (0.0, 3)}
TILT_V = np.arange(WORDS.vocab_size) / 10
PARAMS = {
    "blocks_0": {
        "attention": {
            "value": {"kernel": jnp.zeros(())},  # tilts the logits
            "query": {"kernel": jnp.ones(())},  # scales them
        },
        "mlp": {"up": {"kernel": jnp.zeros(())}},  # has no part in them
    }
}


def _p(shares):
    """Probabilities of all tokens but [M]; those not named have equal small ones."""
    p_V = np.full(WORDS.vocab_size, np.nan)
    p_V[WORDS.mask_id] = 0
    for word, share in shares.items():
        p_V[WORDS.encode([word])[0][0]] = share
    return np.where(np.isnan(p_V), (1 - np.nansum(p_V)) / np.isnan(p_V).sum(), p_V)


def _padded(texts, fill):
    rows = WORDS.encode(texts)
    longest = max(map(len, rows))
    return jnp.array([[*row, *[fill] * (longest - len(row))] for row in rows])


PROMPT_QL = _padded(list(TOLD), -1)
SAID_QN = jnp.pad(
    _padded([said for said, _ in TOLD.values()], WORDS.eos_id),
    ((0, 0), (0, 1)),
    constant_values=WORDS.eos_id,
)
LOGIT_QV = jnp.log(jnp.maximum(jnp.stack([_p(shares) for _, shares in TOLD.values()]), 1e-30))


def _logits(params, tokens_BL, valid_BL, masked):
    order_BL = jnp.argsort(~valid_BL, axis=1, stable=True)
    row_BL = jnp.take_along_axis(jnp.where(valid_BL, tokens_BL, -1), order_BL, axis=1)
    short = max(PROMPT_QL.shape[1] - row_BL.shape[1], 0)
    row_BL = jnp.pad(row_BL, ((0, 0), (0, short)), constant_values=-1)
    same_BQL = row_BL[:, None, : PROMPT_QL.shape[1]] == PROMPT_QL[None]
    asked_B = jnp.argmax((same_BQL | (PROMPT_QL == -1)[None]).all(axis=-1), axis=1)
    size_B = jnp.sum(PROMPT_QL >= 0, axis=1)[asked_B]
    place_BL = jnp.cumsum(valid_BL, axis=1) - masked - size_B[:, None]
    next_BL = jnp.take_along_axis(SAID_QN[asked_B], jnp.clip(place_BL, 0, 2), axis=1)
    logits_BLV = jnp.where(
        (place_BL == 0)[..., None],
        LOGIT_QV[asked_B][:, None],
        30.0 * jax.nn.one_hot(next_BL, len(TILT_V)),
    )
    attention = params["blocks_0"]["attention"]
    tilt_V = attention["value"]["kernel"] * TILT_V
    return attention["query"]["kernel"] * logits_BLV + tilt_V[None, None]


@functools.cache
def _model(kind, takes_valid):
    masked = int(kind == "masked")
    if takes_valid:
        return lambda params, tokens_BL, *, valid_BL: _logits(params, tokens_BL, valid_BL, masked)
    return lambda params, tokens_BL: _logits(
        params, tokens_BL, jnp.ones(tokens_BL.shape, bool), masked
    )


def _internals(params, tokens_EL):
    """One layer of two heads; a score is a token's worth, in the second head the same both ways."""
    worth_WV = np.zeros((2, WORDS.vocab_size), np.float32)
    for word, worth in WORTH.items():
        worth_WV[:, WORDS.encode([word])[0][0]] = worth
    after, before = (jnp.asarray(w_V)[tokens_EL][:, None] for w_V in worth_WV)
    length = tokens_EL.shape[1]
    ahead = (jnp.arange(length)[None] > jnp.arange(length)[:, None])[None]
    both = jnp.broadcast_to(after, (len(tokens_EL), length, length))
    scores = jnp.stack([jnp.where(ahead, after, before), both], axis=1)[None]
    return {"scores": scores, "weights": scores}


@pytest.fixture(scope="module", params=["masked", "causal"])
def read(request):
    return measure(
        _model(request.param, True), PARAMS, PAIRS, WORDS, kind=request.param, level=0.9,
        attention=True, internals=_internals, attention_distance=2, progress=False,
        blocks="module" if request.param == "causal" else None,
    )  # fmt: skip


def test_every_share_has_its_wilson_interval(read):
    for name, counts in COUNTS.items():
        for side, count in zip(("forward", "reverse"), counts, strict=True):
            want = intervals.wilson_interval(count, 4, 0.9)
            np.testing.assert_allclose(getattr(getattr(read, side), name), want)


def test_a_share_is_of_the_questions_that_have_one():
    of = dict(prompt="", answers=(), said="", accuracy=1.0, begun=1.0, copied=0.0, p_true=0.5,
              nll=0.7, rank=1.0)  # fmt: skip
    asked = [Asked(**of, choice=x) for x in (1.0, 0.0, np.nan, np.nan, np.nan)]
    found = Direction.of(asked, 0.9)
    np.testing.assert_allclose(found.choice, intervals.wilson_interval(1, 2, 0.9))
    np.testing.assert_allclose(found.accuracy, intervals.wilson_interval(5, 5, 0.9))


def test_probabilities_and_ranks_are_the_known_ones_with_bootstrap_intervals(read):
    for side in ("forward", "reverse"):
        found, p_E = getattr(read, side), np.array(P_TRUE[side])
        np.testing.assert_allclose([a.p_true for a in found.asked], p_E, rtol=1e-4)
        np.testing.assert_allclose([a.nll for a in found.asked], -np.log(p_E), rtol=1e-4)
        assert [a.rank for a in found.asked] == list(RANKS[side])
        for name, values, middle in (
            ("p_true", p_E, np.mean),
            ("nll", -np.log(p_E), np.mean),
            ("rank", RANKS[side], np.median),
        ):
            want = intervals.bootstrap_interval(values, middle, 0.9)
            np.testing.assert_allclose(getattr(found, name), want, rtol=1e-4)
    assert [a.said for a in read.reverse.asked] == [TOLD[a.prompt][0] for a in read.reverse.asked]


def test_gradients_are_those_of_the_formula(read):
    if read.kind == "masked":
        assert read.alignment is None and "blocks" in read.absent["alignment"]
        return
    gradients = []  # [side, pair, (tilt, scale)] of −log p(target)
    for questions in (read.forward.asked, read.reverse.asked):
        rows = []
        for one in questions:
            p_V, target = _p(TOLD[one.prompt][1]), WORDS.encode([one.answers[0]])[0][0]
            logit_V = np.log(np.maximum(p_V, 1e-30))
            rows.append([p_V @ x_V - x_V[target] for x_V in (TILT_V, logit_V)])
        gradients.append(rows)
    fwd, rev = np.array(gradients)
    inner = (fwd * rev).sum(axis=1)
    cosine = inner / np.linalg.norm(fwd, axis=1) / np.linalg.norm(rev, axis=1)
    found, block = read.alignment, "blocks_0/attention"
    for name in (block, "total"):
        want = intervals.bootstrap_interval(cosine, level=0.9)
        np.testing.assert_allclose(found.cosine[name], want, rtol=1e-3)
        want = intervals.bootstrap_interval(inner, level=0.9)
        np.testing.assert_allclose(found.inner[name], want, rtol=1e-3)
    norms = np.linalg.norm(fwd, axis=1).mean(), np.linalg.norm(rev, axis=1).mean()
    assert not np.isclose(*norms)
    np.testing.assert_allclose(found.norm_fwd[block].estimate, norms[0], rtol=1e-3)
    np.testing.assert_allclose(found.norm_rev[block].estimate, norms[1], rtol=1e-3)
    assert found.count == 4
    # Of one number each, cosines are signs.
    storage, routing = np.sign(fwd * rev).mean(axis=0)
    assert storage != routing
    np.testing.assert_allclose(read.storage.estimate, storage, rtol=1e-5)
    np.testing.assert_allclose(read.routing.estimate, routing, rtol=1e-5)
    assert found.norm_fwd["blocks_0/mlp"].estimate == 0 and "blocks_0/mlp" not in found.cosine
    assert read.absent["cosine of blocks_0/mlp"] == "a gradient is zero in every pair"


@pytest.mark.parametrize("kind", ["masked", "causal"])
@pytest.mark.parametrize("stops", [("", "."), (".", "."), (".", "")])
def test_a_full_stop_takes_no_gradient_away(kind, stops):
    """A model that reads nothing behind a place has the same gradients there, stop or not."""
    words = Words([*PAIRS.fact_set().texts(), "."])
    names = ("embed", jax.random.key(0)), ("head", jax.random.key(1))
    params = {name: jax.random.normal(key, (words.vocab_size, 8)) for name, key in names}

    def apply_fn(params, tokens_BL):
        return jnp.cumsum(params["embed"][tokens_BL], axis=1) @ params["head"].T

    found = []
    for forward, reverse in (("", ""), stops):
        pairs = Pairs(PAIRS.names, PAIRS.forward + forward, PAIRS.reverse + reverse)
        how = dict(kind=kind, blocks="module", progress=False)
        found.append(measure(apply_fn, params, pairs, words, **how).alignment)
    plain, stopped = found
    assert stopped.count == plain.count == 4 and set(plain.cosine) == {"embed", "head", "total"}
    for name in ("cosine", "inner", "norm_fwd", "norm_rev"):
        for block, bounds in getattr(plain, name).items():
            np.testing.assert_allclose(getattr(stopped, name)[block], bounds, rtol=1e-4, atol=1e-6)


def test_attention_is_correlated_over_names(read):
    if read.kind == "causal":
        assert read.attention_correlation is None
        assert read.absent["attention"] == "a causal model attends to nothing ahead"
        return
    mean = [WORTH["Cy"], np.mean([WORTH["Ed"], WORTH["Fay"]], axis=0), WORTH["Hal"], WORTH["Jo"]]
    r = np.corrcoef(*np.transpose(mean))[0, 1]
    np.testing.assert_allclose(read.attention_correlation, [[[r] * 3, [1.0] * 3]], atol=1e-6)
    np.testing.assert_array_equal(read.attention.total, [2, 3, 4])
    assert (read.attention.low <= read.attention.mean + 1e-6).all()


def test_bounds_of_attention_are_of_200_draws_of_names():
    names = tuple((f"x{n}", f"y{n} z" if n % 2 else f"y{n}") for n in range(11))
    pairs = Pairs(names, "{a} begot {b}", "{b} is of {a}")
    words = Words(pairs.fact_set().texts())
    guess = lambda params, tokens_BL: jnp.zeros((*tokens_BL.shape, words.vocab_size))  # noqa: E731
    worth_V = jnp.asarray(np.random.default_rng(0).normal(size=words.vocab_size))

    def internals(params, tokens_EL):
        x_EL = worth_V[tokens_EL]
        ahead_LL = jnp.triu(jnp.ones((x_EL.shape[1],) * 2, bool))
        scores = x_EL[:, None] * jnp.where(ahead_LL[None], 1, x_EL[:, None])  # of keys
        return {"scores": scores[None, :, None], "weights": scores[None, :, None]}

    read = measure(
        guess, {}, pairs, words, kind="masked", attention=True, internals=internals, level=0.8,
        attention_names=7, attention_distance=2,
    )  # fmt: skip
    want = attention.name_correlation(
        internals, {}, words.encode(sorted(b for _, b in names)[:7]), 2, mask_id=words.mask_id,
        fill_id=words.eos_id, resamples=200, level=0.8,
    )  # fmt: skip
    for name in ("total", "mean", "low", "high"):
        np.testing.assert_allclose(
            getattr(read.attention, name), getattr(want, name), atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_model_that_cannot_be_told_of_padding_is_read_alike(kind):
    told, untold = (
        measure(_model(kind, valid), PARAMS, PAIRS, WORDS, kind=kind, left=left, chunk_size=3)
        for valid, left in ((True, True), (False, False))
    )
    for side in ("forward", "reverse"):
        for one, other in zip(getattr(told, side).asked, getattr(untold, side).asked, strict=True):
            assert one[:3] == other[:3]
            np.testing.assert_allclose(one[3:], other[3:], rtol=1e-5)
        assert getattr(told, side).accuracy == getattr(untold, side).accuracy
        p_true = [a.p_true for a in getattr(told, side).asked]
        np.testing.assert_allclose(p_true, P_TRUE[side], rtol=1e-4)


def test_any_right_answer_is_right():
    """Cy has two parents, one of them named by another question's answer too."""
    names = (("of", "Cy"), ("Ann Bo", "Cy"), ("Gil", "Hal"), ("of", "Jo"))
    pairs = Pairs(names, "{a}'s child is {b}", "{b}'s parent is {a}", several=True)
    model = _model("causal", True)
    read, first = (
        measure(model, PARAMS, pairs, WORDS, kind="causal", answers=answers).reverse.asked
        for answers in ("any", "first")
    )
    assert [a.answers for a in read] == [("of", "Ann Bo"), ("Gil",), ("of",)]
    np.testing.assert_allclose([a.p_true for a in read], [0.7, 0.2, 0.25], rtol=1e-4)
    np.testing.assert_allclose([a.nll for a in read], -np.log([0.7, 0.2, 0.25]), rtol=1e-4)
    np.testing.assert_allclose([a.p_true for a in first], [0.3, 0.2, 0.25], rtol=1e-4)
    # Hal's Gil loses to Ann; Cy's Ann beats Gil, and "of", the first of its answers, is no rival.
    assert [a.choice for a in read] == [1.0, 0.0, 1.0]
    assert [a.rank for a in read] == [1.0, 3.0, 2.0]


def test_intervals_over_several_parameter_sets_are_students():
    def scaled(scale):
        blocks = PARAMS["blocks_0"]
        query = {"query": {"kernel": jnp.float32(scale)}}
        return {"blocks_0": blocks | {"attention": blocks["attention"] | query}}

    sets = [scaled(1.0), scaled(2.0), scaled(0.5)]
    read = measure(_model("causal", True), sets, PAIRS, WORDS, kind="causal", blocks="layer")
    for side in ("forward", "reverse"):
        want = []
        for scale in (1.0, 2.0, 0.5):
            p_E = []
            for one in getattr(read.of_sets[0], side).asked:
                p_V = _p(TOLD[one.prompt][1]) ** scale
                p_E.append(p_V[WORDS.encode([one.answers[0]])[0][0]] / p_V.sum())
            want.append(np.mean(p_E))
        mean, half = intervals.student_interval(want)
        got = getattr(read, side).p_true
        np.testing.assert_allclose(got, [mean, mean - half, mean + half], rtol=1e-4)
    assert read.over == "sets" and len(read.of_sets) == 3
    cosines = [one.storage.estimate for one in read.of_sets]
    np.testing.assert_allclose(read.storage.estimate, np.mean(cosines))
    assert Reading.from_json(read.to_json()) == read
    assert "mean of 3 sets" in str(read)


@pytest.mark.parametrize("num_sets", [1, 2])
def test_bars_name_the_set_where_there_are_several(num_sets, monkeypatch):
    titles = []
    monkeypatch.setattr(
        measuring,
        "Parts",
        lambda shown, title: titles.append((shown, title)) or Parts(shown, title),
    )
    sets = [PARAMS] * num_sets
    measure(_model("causal", True), sets, PAIRS, WORDS, kind="causal", progress=False)
    wanted = [""] if num_sets == 1 else [", set 1 of 2", ", set 2 of 2"]
    assert titles == [(False, title) for title in wanted]


def test_json_says_the_format_of_files_that_are_there(read):
    assert read.to_json()["format"] == 1


def test_json_goes_both_ways(read, tmp_path):
    path = tmp_path / "reading.json"
    read.save(path)
    back = Reading.load(path)
    assert back == read and back.forward == read.forward and str(back) == str(read)
    assert "NaN" not in path.read_text()
    path.write_text('{"kind": "masked"}')
    with pytest.raises(ValueError, match=r"reading\.json: this is no reading: it has no 'over'"):
        Reading.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(kind="foo"), "kind must be one of causal, masked, got 'foo'"),
        (dict(level=1.5), "level must be between 0 and 1, got 1.5"),
        (dict(level="x"), "level must be between 0 and 1, got 'x'"),
        (dict(over=7), "over must be one of pairs, sets, got 7"),
        (dict(forward=None), "forward must hold the measures of a direction, got None"),
        (dict(reverse=[]), r"reverse must hold the measures of a direction, got \[\]"),
        (dict(accuracy=None), "accuracy must be an estimate and two ends, got None"),
        (dict(accuracy=[1, 2]), r"accuracy must be an estimate and two ends, got \[1, 2\]"),
        (dict(format=2), "format 2 is not known"),
    ],
)
def test_json_that_is_no_reading_is_told_by_its_key(read, change, says):
    fields = read.to_json()
    if "accuracy" in change:
        change = dict(reverse=fields["reverse"] | change)
    with pytest.raises(ValueError, match=f"this is no reading: {says}"):
        Reading.from_json(fields | change)


def test_blocks_that_do_not_divide_are_refused_before_anything_is_asked():
    pairs = Pairs((("Ann", "Bo"), ("Dee", "Ed")), "{a} has {b}", "{b} is of {a}")
    words = Words(pairs.fact_set().texts())

    def guess(params, tokens_BL):
        return jnp.zeros((*tokens_BL.shape, words.vocab_size))

    with pytest.raises(ValueError, match="3 new tokens do not divide into blocks of 2"):
        measuring.prepare(guess, {}, pairs, words, kind="masked", num_new=3, block_length=2)


def test_an_interval_of_a_share_is_printed_inside_its_range(read):
    asked = [one._replace(accuracy=0.0, p_true=0.0) for one in read.forward.asked]
    low = dataclasses.replace(read, forward=Direction.of(asked, read.level))
    asked = [one._replace(accuracy=1.0, p_true=1.0) for one in read.forward.asked]
    both = Reading.over_sets([low, dataclasses.replace(read, forward=Direction.of(asked, 0.95))])
    assert both.forward.accuracy.low < 0 and both.forward.accuracy.high > 1  # Student's
    shown = str(both)
    assert "50.0 (0.0, 100.0)" in shown and "0.500 (0.000, 1.000)" in shown
    assert "50.0 (0.0, 100.0)" in both._repr_html_()


def test_it_shows_itself_as_a_table_a_frame_and_a_figure(read, tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    lines = str(read).splitlines()
    assert lines[0].startswith(f"{read.kind} model, 4 questions forward, 4 in reverse; value (90%")
    fewer = dataclasses.replace(read, reverse=dataclasses.replace(read.reverse, count=3))
    assert "4 questions forward, 3 in reverse" in str(fewer)
    (row,) = [line for line in lines if line.startswith("| accuracy %")]
    low, high = (100 * x for x in intervals.wilson_interval(2, 4, 0.9)[1:])
    assert row.startswith(f"| accuracy % | 50.0 ({low:.1f}, {high:.1f}) | 25.0 (")
    for name, factor, digits in (("rank", 1, 1), ("p_true", 1, 3), ("copied", 100, 1)):
        bounds = getattr(read.reverse, name)
        estimate, low, high = (f"{factor * x:.{digits}f}" for x in bounds)
        assert any(line.endswith(f"| {estimate} ({low}, {high}) |") for line in lines), name
    frame = read.to_frame()
    assert set(MEASURES) == set(frame[frame.part == "reverse"].name)
    (share,) = frame[(frame.part == "reverse") & (frame.name == "copied")].estimate
    assert share == 0.5
    figure = read.figure(tmp_path / "reading.png")
    assert len(figure.axes) == 2 and (tmp_path / "reading.png").stat().st_size > 1000
    (forward, _) = figure.axes[0].containers
    assert list(forward.lines[0].get_ydata()) == [0.5, 0.75, 0.0, 0.75]
    if read.alignment is not None:
        (cosines,) = figure.axes[1].containers
        told = read.alignment.roles | read.alignment.cosine
        assert list(cosines.lines[0].get_xdata()) == [value.estimate for value in told.values()]
        ((low, high), *_) = (bar[:, 0] for bar in cosines.lines[2][0].get_segments())
        first = next(iter(told.values()))
        np.testing.assert_allclose((low, high), (first.low, first.high))
        assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == list(told)
    page = read._repr_html_()
    assert "<td>accuracy %</td>" in page and "data:image/png;base64," in page


def test_shares_stand_beside_their_names_and_correlations_over_their_distance(read):
    pytest.importorskip("matplotlib")
    figure = read.figure()
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == list(SHARES)
    np.testing.assert_array_equal(ax.get_xticks(), range(4))
    forward, reverse = ax.containers
    assert (forward.get_label(), reverse.get_label()) == ("forward", "reverse")
    left, right = (np.array(points.lines[0].get_xdata(), float) for points in ax.containers)
    np.testing.assert_allclose((left + right) / 2, np.arange(4), atol=1e-9)
    assert (left < np.arange(4)).all()
    assert list(reverse.lines[0].get_ydata()) == [0.25, 0.25, 0.5, 0.5]
    assert ax.get_ylim()[0] < 0 and ax.get_ylim()[1] > 1  # shares of none and of all are seen
    if read.attention is None:
        ax = figure.axes[1]
        assert [0, 0] in [list(line.get_xdata()) for line in ax.get_lines()]
        lows = [x.low for x in read.alignment.cosine.values()]
        assert ax.get_xlim()[0] < min(0, *lows) and ax.get_xlim()[1] > 1
        return
    rng = np.random.default_rng(0)
    for layers in (1, 8, 9):
        mean_LNT = rng.uniform(-1, 1, (layers, 2, 3))
        coupled = read.attention._replace(mean=mean_LNT, low=mean_LNT - 1, high=mean_LNT + 1)
        other = dataclasses.replace(read, attention=coupled)
        ax = other.figure().axes[-1]
        *lines, zero = ax.get_lines()
        assert len(lines) == layers and list(zero.get_ydata()) == [0, 0]
        for number, line in enumerate(lines):
            assert line.get_label() == f"layer {number}"
            np.testing.assert_array_equal(line.get_xdata(), [2, 3, 4])
            np.testing.assert_allclose(line.get_ydata(), mean_LNT[number].mean(axis=0))
        assert (ax.get_legend() is not None) == (layers <= 8)
        a, b, c = mean_LNT[-1].mean(axis=0)
        assert f"| layer {layers - 1} | {a:.2f} | {b:.2f} | {c:.2f} |" in str(other)
        assert "mean over heads, at total distance Δ₁ + Δ₂ (tokens) of | 2 | 3 | 4 |" in str(other)
        frame = list(other._numbers())[-1]
        x = mean_LNT[-1, -1, -1]
        assert frame[:2] == ("attention correlation", f"layer {layers - 1}, head 1, distance 4")
        np.testing.assert_allclose(frame[2], [x, x - 1, x + 1])


def test_attention_is_read_of_three_names_that_fit_the_context(monkeypatch):
    """The longest name, Ed Fay, has two tokens."""
    read_of = lambda *args, **how: how["resamples"]  # noqa: E731
    monkeypatch.setattr(measuring.attention_scores, "name_correlation", read_of)
    network = types.SimpleNamespace(kind="masked", internals=_internals, max_len=0)

    def found(max_len=0, **settings):
        m = measuring.prepare(
            _model("masked", True), PARAMS, PAIRS, WORDS, kind="masked", **settings
        )
        network.max_len, absent = max_len, {}
        coupled = measuring._attention(dataclasses.replace(m, network=network), PARAMS, absent)
        assert coupled == (None if absent else 200)
        return absent.get("attention")

    assert found(attention_names=3) is found(10, attention_distance=8) is found() is None
    assert found(attention_names=2) == "a correlation needs 3 names, there are 2"
    assert found(10, attention_distance=9) == "names at attention_distance=9 exceed the context"


def test_sets_without_a_number_in_one_have_none(read):
    """Student's interval of every attention number; what one set lacks is not there."""
    if read.attention is None:
        return
    coupled = read.attention
    shifted = coupled._replace(mean=coupled.mean + 0.2)
    without = dataclasses.replace(read.forward, choice=None)
    other = dataclasses.replace(read, attention=shifted, forward=without)
    found = Reading.over_sets([read, other])
    mean, half = intervals.student_interval([0.0, 0.2], 0.9)
    np.testing.assert_allclose(found.attention.mean, coupled.mean + mean)
    np.testing.assert_allclose(found.attention.low, coupled.mean + mean - half)
    np.testing.assert_allclose(found.attention.high, coupled.mean + mean + half)
    assert found.forward.choice is None and found.reverse.choice.estimate == 0.5
    assert found.forward.count == 4 and found.forward.asked == () and found.level == 0.9
    for part, seconds in read.seconds.items():
        np.testing.assert_allclose(found.seconds[part], 2 * seconds)
    part, spent = next(iter(read.seconds.items()))
    assert Reading.over_sets([read, dataclasses.replace(read, seconds={})]).seconds[part] == spent
    (line,) = [line for line in str(found).splitlines() if line.startswith("| choice %")]
    assert line.startswith("| choice % | – | 50.0 (50.0, 50.0) |")
    assert Reading.over_sets([read, dataclasses.replace(read, attention=None)]).attention is None
    with pytest.raises(ValueError, match="several readings of the same questions"):
        Reading.over_sets([read])
    with pytest.raises(ValueError, match="several readings of the same questions"):
        Reading.over_sets([read, dataclasses.replace(read, forward=read.reverse)])
    first, *others = read.forward.asked
    told = first._replace(answers=("Zed",))
    changed = dataclasses.replace(read.forward, asked=(told, *others))
    with pytest.raises(ValueError, match="several readings of the same questions"):
        Reading.over_sets([read, dataclasses.replace(read, forward=changed)])


def test_more_pairs_than_are_compared_at_a_time_are_all_compared():
    """One vector of logits for any prompt: ∇ = p − e of the right token."""
    names = tuple((f"{n} x", f"{n} y") for n in range(11))
    pairs = Pairs(names, "{a} begot {b}", "{b} is of {a}")
    words = Words(pairs.fact_set().texts())

    def guess(params, tokens_BL):
        return jnp.broadcast_to(params, (*tokens_BL.shape, words.vocab_size))

    params = {"w": jnp.linspace(-1, 1, words.vocab_size)}
    how = dict(kind="causal", blocks="w", num_new=1)
    read = measure(lambda p, tokens_BL: guess(p["w"], tokens_BL), params, pairs, words, **how)
    p_V = np.exp(params["w"]) / np.exp(params["w"]).sum()
    inner = []
    for one, other in names:
        a, b = (words.encode([name.split()[0]])[0][0] for name in (one, other))
        eye = np.eye(words.vocab_size)
        inner.append((p_V - eye[b]) @ (p_V - eye[a]))
    assert read.alignment.count == 11
    np.testing.assert_allclose(read.alignment.inner["w"].estimate, np.mean(inner), rtol=1e-5)


def test_a_transformer_is_read_with_its_attention_and_padding_on_either_side():
    config = models.llada(
        WORDS.vocab_size, num_layers=2, width=8, num_heads=2, num_kv_heads=2, mlp_width=8,
        max_len=16, rope_base=10_000.0, rope_scaling=None,
    )  # fmt: skip
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    how = dict(attention=True, attention_distance=2)
    read = measure(model, params, PAIRS, WORDS, **how)
    assert read.kind == "masked" and read.attention_correlation.shape == (2, 2, 3)
    left = measure(model, params, PAIRS, WORDS, left=True)
    for side in ("forward", "reverse"):
        np.testing.assert_allclose(
            getattr(left, side).p_true, getattr(read, side).p_true, rtol=1e-4
        )
    with pytest.raises(ValueError, match="kind is 'causal', and the model is masked"):
        measure(model, params, PAIRS, WORDS, kind="causal")
    with pytest.raises(ValueError, match="tokens after it are 20, the context has 16"):
        measure(model, params, PAIRS, WORDS, num_new=15)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_reading_has_the_numbers_of_the_facts_page(kind):
    """Of a network of random weights, on facts of which some have two right answers."""
    told = [facts.ParentChild(f"c{n}", f"p{n}", (f"p{n}", f"q{n}")) for n in range(5)]
    data = facts.parent_child(told)
    words = Words(data.texts())
    model = models.Transformer(
        (models.llama if kind == "causal" else models.llada)(
            words.vocab_size, num_layers=1, width=16, num_heads=2, num_kv_heads=2, mlp_width=16,
            max_len=16, rope_base=10_000.0, rope_scaling=None,
        )
    )  # fmt: skip
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    params = jax.tree.map(lambda x: 5 * x, params)
    asked = Questions.of(data, words, masked=kind == "masked")
    make = models.make_apply_fn if kind == "masked" else models.make_extend_fn
    said = asked.said(asked.generator(make(model)), params, jax.random.key(0))
    want = asked.recall(models.make_apply_fn(model), params, said)
    read = measure(model, params, data, words, answers="first")
    for side in ("forward", "reverse"):
        got, line = getattr(read, side), want[side].summary()
        names = {"accuracy": "percent", "begun": "begun_percent", "copied": "copied_percent"}
        for name, key in (names | {"choice": "choice_percent"}).items():
            np.testing.assert_allclose(100 * getattr(got, name).estimate, line[key])
        np.testing.assert_allclose(got.p_true.estimate, line["p"], rtol=1e-5)
        assert got.rank.estimate == line["rank"]
    assert [one.said for one in read.reverse.asked] == said[asked.sides["reverse"]]


@pytest.mark.slow
def test_adapters_that_do_nothing_change_nothing():
    config = models.llama(
        WORDS.vocab_size, num_layers=1, width=8, num_heads=2, num_kv_heads=2, mlp_width=8,
        max_len=16, rope_base=10_000.0, rope_scaling=None,
    )  # fmt: skip
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    adapted = models.LoRA(model, models.LoRAConfig(1, 1.0, "(query|value)$"))
    adapters = models.lora.init_adapters(adapted, params, jax.random.key(1))
    base = measure(model, params, PAIRS, WORDS)
    read = measure(adapted, {"params": params, "lora": adapters}, PAIRS, WORDS, blocks="module")
    assert read.kind == base.kind == "causal"
    for one, other in zip(read.forward.asked, base.forward.asked, strict=True):
        assert one[:3] == other[:3]
        np.testing.assert_allclose(one[3:], other[3:], rtol=1e-5)
    assert read.storage is not None and read.routing is not None


def _words(**changes):
    words = Words(TOLD)
    for name, value in changes.items():
        setattr(words, name, value)
    return words


def _encoding(change):
    words = Words(TOLD)
    words.encode = lambda texts: change(Words.encode(words, texts))
    return words


def test_every_parameter_set_is_of_one_vocabulary():
    apply_fn = lambda params, tokens_BL: params[tokens_BL]  # noqa: E731
    sets = [jnp.ones((30, 30)), jnp.ones((30, 3))]
    with pytest.raises(ValueError, match=r"the tokenizer has .. tokens, the model 3"):
        measure(apply_fn, sets, PAIRS, WORDS, kind="causal")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind=None), "kind must be 'causal' or 'masked' where the model is an apply_fn"),
        (dict(kind="mdm"), "kind must be 'causal' or 'masked', got 'mdm'"),
        (dict(level=95), "level must be between 0 and 1, got 95"),
        (dict(level=1), "level must be between 0 and 1, got 1"),
        (dict(level=0), "level must be between 0 and 1, got 0"),
        (dict(level=1.5), "level must be between 0 and 1, got 1.5"),
        (dict(level="95"), "level must be between 0 and 1, got '95'"),
        (dict(remasking="low"), "remasking must be 'low_confidence' or 'random', got 'low'"),
        *(
            ({name: 1.5}, f"{name} must be a whole number from {least}, got 1.5")
            for name, least in dict(
                num_new=0,
                decode_steps=0,
                block_length=0,
                seed=0,
                chunk_size=1,
                gradient_pairs=1,
                attention_names=1,
                attention_distance=1,
            ).items()
        ),
        (dict(tokenizer=_words(vocab_size="x")), "tokenizer: vocab_size must be a whole number"),
        (dict(tokenizer=_words(eos_id=9999)), "tokenizer: eos_id is 9999, and its vocabulary has"),
        (dict(tokenizer=_words(pad_id=-1)), "tokenizer: pad_id is -1, and its vocabulary has"),
        (dict(tokenizer=_words(mask_id=2.0)), "tokenizer: mask_id must be a whole number, got 2.0"),
        (dict(tokenizer=_words(eos_id=None)), "tokenizer: eos_id must be a whole number, got None"),
        (dict(tokenizer=_words(eos_id=7)), "tokenizer: .* holds token 7, its eos_id"),
        (dict(tokenizer=_encoding(lambda rows: rows[:-1])), r"encode gave \d+ rows for \d+ texts"),
        (
            dict(tokenizer=_encoding(lambda rows: [[float(x) for x in row] for row in rows])),
            r"encode turns .* into \d+\.0, no token's id",
        ),
        (dict(answers="all"), "answers must be 'any' or 'first'"),
        (dict(chunk_size=0), "chunk_size must be a whole number from 1, got 0"),
        (
            dict(
                model=lambda p, tokens_BL, **_: jnp.where(  # once something is revealed
                    (jnp.sum(tokens_BL == 2, axis=1) < 3)[:, None, None],
                    jnp.nan,
                    jnp.zeros((*tokens_BL.shape, 30)),
                )
            ),
            "probabilities are NaN at",
        ),
        (
            dict(
                kind="causal",
                model=lambda p, tokens_BL: jnp.where(
                    jnp.arange(tokens_BL.shape[1])[None, :, None] < 6,
                    jnp.zeros((*tokens_BL.shape, 30)),
                    jnp.nan,
                ),
            ),
            "probabilities are NaN at",
        ),
        (dict(tokenizer=_words(mask_id=1)), r"\[M\] cannot be the end of text, 1"),
        (dict(tokenizer=_words(mask_id=7)), r"holds token 7, \[M\]"),
        (dict(gradient_pairs=0), "gradient_pairs must be a whole number from 1, got 0"),
        (dict(attention_names=-1), "attention_names must be a whole number from 1, got -1"),
        (dict(decode_steps=-1), "decode_steps must be a whole number from 0, got -1"),
        (dict(tokenizer=Words([*TOLD, "a b c d e"])), "the tokenizer has .. tokens, the model"),
        (dict(tokenizer=Characters("abc")), r"needs \[M\], and its tokenizer has none"),
        (dict(model=lambda p, tokens_BL: tokens_BL.astype(float)), r"must give logits \[B, L, V\]"),
        (dict(model="gpt2"), "model must be a Transformer or an apply_fn"),
        (
            dict(model=lambda p, tokens_BL: jnp.zeros((*tokens_BL.shape, 30), int)),
            "must give logits, which are floats, got int",
        ),
        (dict(blocks="heads"), "blocks matches no parameter"),
        (
            dict(model=lambda p, tokens_BL, **_: jnp.full((*tokens_BL.shape, 30), jnp.nan)),
            'probabilities are NaN at "Ann Bo\'s child is"',
        ),
    ],
)
def test_what_cannot_be_is_one_clear_error(change, message):
    given = dict(model=_model("masked", True), tokenizer=WORDS, kind="masked", progress=False)
    given |= change
    model, tokenizer = given.pop("model"), given.pop("tokenizer")
    with pytest.raises(ValueError, match=message):
        measure(model, PARAMS, PAIRS, tokenizer, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(pairs=[("a", "b")]), "pairs must be Pairs or a FactSet, got a list"),
        (dict(tokenizer=None), "tokenizer: a NoneType has no vocab_size; `tokenizers.load` and"),
        (dict(tokenizer=types.SimpleNamespace(vocab_size=9, encode=len)), "has no eos_id"),
    ],
)
def test_what_is_of_another_kind_is_named(change, message):
    given = dict(pairs=PAIRS, tokenizer=WORDS) | change
    with pytest.raises(TypeError, match=message):
        measure(_model("causal", True), PARAMS, kind="causal", progress=False, **given)


def test_a_mask_outside_the_vocabulary_and_a_missing_keyword_are_named():
    words = Words([*PAIRS.fact_set().texts(), "of"])
    words.mask_id = 99
    with pytest.raises(ValueError, match="mask_id 99 is none of the model's"):
        measure(_model("masked", True), PARAMS, PAIRS, words, kind="masked")

    def conditioned(params, tokens_BL, *, class_B):
        return tokens_BL

    with pytest.raises(TypeError, match="apply_fn needs class_B, which is not given here"):
        measure(conditioned, PARAMS, PAIRS, WORDS, kind="masked")
    with pytest.raises(
        TypeError, match=r"measure\(\) got an unexpected keyword argument 'num_neww'"
    ):
        measure(_model("masked", True), PARAMS, PAIRS, WORDS, kind="masked", num_neww=3)


class _Pieces:
    """Up to three letters a token, with the space before them."""

    pad_id, eos_id, mask_id = 0, 1, 2

    def __init__(self, texts):
        pieces = sorted({piece.group() for text in texts for piece in self._cut(text)})
        self._pieces = ["", "", "", *pieces]
        self.vocab_size = len(self._pieces)

    @staticmethod
    def _cut(text):
        return re.finditer(r" ?[^ ]{1,3}", text)

    def encode(self, texts):
        return [[self._pieces.index(piece.group()) for piece in self._cut(t)] for t in texts]

    def offsets(self, texts):
        return [[piece.span() for piece in self._cut(text)] for text in texts]

    def decode(self, ids):
        return "".join(self._pieces[number] for number in ids)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_tokenizer_that_is_built_from_the_texts_knows_all_that_is_asked(kind):
    """Also where a word after a space is another token than the word alone."""
    pieces = _Pieces(PAIRS.fact_set().texts())

    def read(tokenizer):
        params = {"table": jax.random.normal(jax.random.key(0), (tokenizer.vocab_size,) * 2)}
        apply_fn = lambda params, tokens_BL: params["table"][tokens_BL]  # noqa: E731
        return measure(apply_fn, params, PAIRS, tokenizer, kind=kind, blocks="layer")

    assert read(pieces).alignment.count == 4
    pieces.offsets = lambda texts: [row[:-1] for row in _Pieces.offsets(pieces, texts)]
    if kind == "masked":
        with pytest.raises(ValueError, match="offsets must give a place for each id of encode"):
            read(pieces)


def test_a_tokenizer_whose_ids_are_none_of_its_own_is_named():
    class Negative(Words):
        def encode(self, texts):
            return [[-number for number in row] for row in super().encode(texts)]

        def decode(self, ids):
            return super().decode([-number for number in ids])

    for tokenizer in (Negative(TOLD), _words(vocab_size=3)):
        with pytest.raises(ValueError, match=r"tokenizer: .* has token .*, and its vocabulary"):
            measure(_model("causal", True), PARAMS, PAIRS, tokenizer, kind="causal")


def _transformer(is_causal, dtype):
    make = models.llama if is_causal else models.llada
    config = make(
        WORDS.vocab_size, num_layers=2, width=16, num_heads=2, num_kv_heads=2, mlp_width=16,
        max_len=32, rope_base=10_000.0, rope_scaling=None,
    )  # fmt: skip
    model = models.Transformer(dataclasses.replace(config, dtype=dtype, param_dtype=dtype))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
    return models.make_apply_fn(model), params


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_looks_ahead_is_not_causal(dtype):
    def read(apply_fn, params, kind="causal"):
        return measure(apply_fn, params, PAIRS, WORDS, kind=kind, progress=False)

    apply_fn, params = _transformer(False, jnp.dtype(dtype))
    with pytest.raises(ValueError, match="kind is 'causal', and the model looks ahead"):
        read(apply_fn, params)
    assert read(apply_fn, params, "masked").forward.count == 4
    apply_fn, params = _transformer(True, jnp.dtype(dtype))
    assert read(apply_fn, params).forward.count == 4

    def bag(params, tokens_BL, *, valid_BL):
        return jnp.broadcast_to(params[tokens_BL].sum(1, keepdims=True), (*tokens_BL.shape, 30))

    table = jax.random.normal(jax.random.key(1), (30, 30), jnp.dtype(dtype))
    with pytest.raises(ValueError, match="kind is 'causal', and the model looks ahead"):
        read(bag, table)


@pytest.mark.parametrize("ruled_out", [-1e9, -np.inf])
@pytest.mark.parametrize("behind", [0, 1])
def test_tokens_that_are_ruled_out_hide_no_look_ahead(ruled_out, behind):
    table = jax.random.normal(jax.random.key(1), (30, 30)).at[:, 20:].set(ruled_out)

    def next_too(params, tokens_BL):
        ahead_BL = jnp.roll(tokens_BL, -1, axis=1)
        return params[tokens_BL] + behind * 0.01 * ahead_BL[..., None]

    def read():
        return measure(next_too, table, PAIRS, WORDS, kind="causal", progress=False)

    if behind:
        with pytest.raises(ValueError, match="looks ahead"):
            read()
    else:
        assert read().forward.count == 4


@pytest.mark.parametrize("lacking", ["scores", "weights"])
def test_internals_that_lack_something_are_told_what(lacking):
    def some(params, tokens_EL):
        return {k: v for k, v in _internals(params, tokens_EL).items() if k != lacking}

    how = dict(kind="masked", attention=True, attention_distance=2, internals=some)
    with pytest.raises(ValueError, match=f"internals must give '{lacking}', and gives"):
        measure(_model("masked", True), PARAMS, PAIRS, WORDS, **how)


def test_a_list_that_the_model_can_read_is_one_set(capsys):
    def apply_fn(params, tokens_BL):
        scale, tilt = params
        whole = {"query": {"kernel": scale}, "value": {"kernel": tilt}}
        nested = {"blocks_0": {"attention": whole}}
        return _model("causal", False)(nested, tokens_BL)

    read = measure(apply_fn, [jnp.ones(()), jnp.zeros(())], PAIRS, WORDS, kind="causal")
    assert read.of_sets == () and read.over == "pairs"
    sets = [[jnp.ones(()), jnp.zeros(())]] * 2
    assert not capsys.readouterr().err
    read = measure(apply_fn, sets, PAIRS, WORDS, kind="causal", progress=True)
    assert len(read.of_sets) == 2 and "answers, set 2 of 2: " in capsys.readouterr().err


def test_blocks_are_summed_and_stand_in_the_order_of_their_numbers():
    paths = ("blocks_10/a", "blocks_2/a", "blocks_2/b", "head/a")
    inner = dict(zip(paths, (np.full(2, x) for x in (1.0, 2.0, 4.0, 8.0)), strict=True))
    norms = {path: np.full(2, 3.0) for path in paths}
    found = types.SimpleNamespace(inner=inner, norm_fwd=norms, norm_rev=norms)
    names = {path: path.split("/")[0] if "head" not in path else None for path in paths}
    got = by_block(found, names.get)
    assert list(got["inner"]) == ["blocks_2", "blocks_10", "total"]
    assert [x[0] for x in got["inner"].values()] == [6.0, 1.0, 15.0]
    np.testing.assert_allclose([x[1] for x in got["norm_fwd"].values()], [18**0.5, 3, 6])
    np.testing.assert_allclose([x[1] for x in got["cosine"].values()], [6 / 18, 1 / 9, 15 / 36])


def test_settings_have_a_description_each():
    documented = measuring.Settings.__doc__
    assert all(name in documented for name in measuring.Settings.__dataclass_fields__)


def test_settings_are_those_of_published_numbers_unless_they_are_given():
    for function in (measure, measuring.prepare):
        given = inspect.signature(function).parameters
        assert (given["level"].default, given["attention"].default) == (0.95, False)
    assert dataclasses.asdict(measuring.Settings()) == dict(
        answers="any", num_new=0, decode_steps=0, block_length=0, remasking="low_confidence",
        left=False, chunk_size=64, gradient_pairs=None, roles=measuring.block_names.role,
        attention_names=64, attention_distance=8, seed=0,
    )  # fmt: skip


def test_a_masked_model_answers_as_its_settings_say(monkeypatch):
    told = []
    kept = measuring.decoding.remask

    def remask(apply_fn, params, tokens_BL, valid_BL, key, **how):
        told.append(how)
        seeds.append(key)
        return kept(apply_fn, params, tokens_BL, valid_BL, key, **how)

    seeds = []
    monkeypatch.setattr(measuring.decoding, "remask", remask)
    monkeypatch.setattr(jax, "jit", lambda f, **how: f)
    how = dict(num_new=6, decode_steps=3, block_length=2, remasking="random")
    measure(_model("masked", True), PARAMS, PAIRS, WORDS, kind="masked", seed=5, **how)
    want = dict(mask_id=WORDS.mask_id, num_new=6, num_steps=3, block_length=2)
    assert told == [want | {"remasking": "random"}]
    first = jax.random.fold_in(jax.random.key(5), 0)
    np.testing.assert_array_equal(*map(jax.random.key_data, (seeds[0], first)))


def test_gradients_are_of_so_many_pairs_and_of_the_roles_that_are_named():
    how = dict(kind="causal", blocks="layer", gradient_pairs=3)
    read = measure(_model("causal", True), PARAMS, PAIRS, WORDS, **how)
    assert read.alignment.count == 3
    turned = dict(query="storage", value="routing")
    roles = lambda path: turned.get(path.split("/")[-2])  # noqa: E731
    other = measure(_model("causal", True), PARAMS, PAIRS, WORDS, roles=roles, **how)
    assert (other.storage, other.routing) == (read.routing, read.storage)
    assert read.storage != read.routing


def test_attention_whose_names_say_no_role_is_told():
    def guess(params, tokens_BL):
        total = sum(jax.tree.leaves(params))
        return jnp.broadcast_to(total, (*tokens_BL.shape, WORDS.vocab_size))

    some = jnp.linspace(-1, 1, WORDS.vocab_size)
    named = {"c_proj": {"w": some}, "q_proj": {"w": some}}
    for more, says in (({}, None), ({"c_attn": {"w": some, "b": some}}, "h/attn/c_attn/b and 1 m")):
        params = {"h": {"attn": named | more}}
        read = measure(guess, params, PAIRS, WORDS, kind="causal", blocks="layer")
        assert read.storage is not None and read.routing is not None
        assert (says or "") in read.absent.get("role of some attention", "")
        assert ("role of some attention" in read.absent) == (says is not None)


def test_intervals_over_sets_are_of_the_level_of_the_readings(read):
    shifted = {}
    for side in ("forward", "reverse"):
        one = getattr(read, side)
        p_true = one.p_true._replace(estimate=one.p_true.estimate + 0.2)
        shifted[side] = dataclasses.replace(one, p_true=p_true)
    if read.alignment is not None:
        cosine = {k: x._replace(estimate=x[0] + 0.2) for k, x in read.alignment.cosine.items()}
        shifted["alignment"] = dataclasses.replace(read.alignment, cosine=cosine)
    found = Reading.over_sets([read, dataclasses.replace(read, **shifted)])
    _, half = intervals.student_interval([0.0, 0.2], 0.9)
    bounds = [found.forward.p_true, found.reverse.p_true]
    bounds += [] if read.alignment is None else list(found.alignment.cosine.values())
    for estimate, low, high in bounds:
        np.testing.assert_allclose([estimate - low, high - estimate], half, rtol=1e-5)


def test_gradients_of_a_masked_model_give_its_mask_no_probability():
    """Both questions ask for a: of one vector of logits ∇ is p − e_a, and p is 0 at [M]."""

    def guess(params, tokens_BL):
        return jnp.broadcast_to(params["w"], (*tokens_BL.shape, WORDS.vocab_size))

    params = {"w": jnp.linspace(-1, 1, WORDS.vocab_size)}
    read = measure(guess, params, PAIRS, WORDS, kind="masked", blocks="w")
    p_V = np.exp(params["w"]) * (np.arange(WORDS.vocab_size) != WORDS.mask_id)
    a_E = [row[0] for row in WORDS.encode([a for a, _ in PAIRS.names])]
    want = np.linalg.norm(p_V / p_V.sum() - np.eye(WORDS.vocab_size)[a_E], axis=1).mean()
    for norms in (read.alignment.norm_fwd, read.alignment.norm_rev):
        np.testing.assert_allclose(norms["total"].estimate, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_probabilities_are_no_logits(kind):
    """Their softmax would be nearly flat, and every number of the reading wrong."""
    table = 5 * jax.random.normal(jax.random.key(1), (30, 30))

    def read(of_logits):
        def apply_fn(params, tokens_BL):
            return of_logits(params[tokens_BL])

        return measure(apply_fn, table, PAIRS, WORDS, kind=kind, progress=False)

    with pytest.raises(ValueError, match="gives probabilities"):
        read(jax.nn.softmax)
    logits, log_p = read(lambda logits_BLV: logits_BLV), read(jax.nn.log_softmax)
    np.testing.assert_allclose(log_p.reverse.nll, logits.reverse.nll, rtol=1e-5)
    read(lambda logits_BLV: jax.nn.one_hot(logits_BLV.argmax(-1), 30))  # a table of logits


def test_a_table_says_of_how_many_questions_its_choice_is():
    pairs = Pairs((("Ann", "Bo"), ("Cy", "Cy"), ("Dee", "Bo Fay")), "{a} has {b}", "{b} is of {a}")
    words = Words(pairs.fact_set().texts())

    def guess(params, tokens_BL):
        return jnp.zeros((*tokens_BL.shape, words.vocab_size))

    reading = measure(guess, {}, pairs, words, kind="causal", progress=False)
    assert reading.forward.choice is None  # Bo twice, and Cy stands in its question
    assert "reverse choice by first token, of 2 of 3: " in str(reading)
    twice = measure(guess, [{}, {}], pairs, words, kind="causal", progress=False)
    assert "forward choice by first token" not in str(twice)
    one = Pairs((*pairs.names, ("Eve", "Gil")), "{a} has {b}", "{b} is of {a}")
    known = Words(one.fact_set().texts())

    def other(params, tokens_BL):
        return jnp.zeros((*tokens_BL.shape, known.vocab_size))

    again = measure(other, {}, one, known, kind="causal", progress=False)
    assert again.chosen() == {"forward": "1 of 4", "reverse": "3 of 4"}
    pytest.importorskip("matplotlib")
    figure = reading.figure()
    ax = figure.axes[0]
    assert ax.get_xlabel() == "choice: 2 of 3 reverse questions"
    assert ax.get_ylabel() == "% of the questions"
    assert [ax.yaxis.get_major_formatter()(share, 0) for share in (0, 0.5, 1)] == ["0", "50", "100"]
    title = "3 questions forward, 3 in reverse\n95% intervals over pairs"
    assert figure.get_suptitle() == title


def test_a_causal_network_that_is_called_masked_is_said_to_be_one():
    for is_causal in (True, False):
        apply_fn, params = _transformer(is_causal, jnp.dtype("float32"))
        read = measure(apply_fn, params, PAIRS, WORDS, kind="masked", progress=False)
        said = "the logits at [M] do not depend on the last token behind it"
        assert (said in str(read)) == is_causal
        assert Reading.from_json(read.to_json()) == read


def test_a_table_says_nothing_of_what_was_not_asked_and_counts_one_question():
    pairs = Pairs((("Ann", "Bo"),), "{a} has {b}", "{b} is of {a}")
    words = Words(pairs.fact_set().texts())

    def guess(params, tokens_BL):
        return jnp.zeros((*tokens_BL.shape, words.vocab_size))

    said = str(measure(guess, {}, pairs, words, kind="causal", progress=False))
    assert "asked for" not in said and "1 question forward, 1 in reverse" in said
