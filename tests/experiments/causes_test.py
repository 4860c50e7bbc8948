"""Every number of causes and dial is that of models, gradients and histories that are known."""

import dataclasses
import functools
import itertools
import types

import artists
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dirasym.data import case_pairs
from dirasym.data.case_pairs import LOWER, MASK, NUM_LETTERS, PAD, UPPER, VOCAB_SIZE
from dirasym.report import COLORS
from dirasym.workdir import WorkDir
from experiments import causes as page
from experiments import dial
from experiments.reports import causes as tables
from experiments.reports import dial as dial_tables
from experiments.systems import causes
from experiments.systems.causes import Cell, Task

CONFIG = page.Config(length=6, width=8, steps=20, eval_every=4, batch_size=8, cells=("leading",))
# Logit of the true letter over that of all others, by question; and of a rival letter.
KNOWN = {"forward": (3.0, 0.0), "reverse": (1.0, 2.0), "source": (2.0, -1.0)}


def _question(given, asked_is_behind):
    if given < NUM_LETTERS:
        return "forward" if asked_is_behind else None
    return "reverse" if asked_is_behind else "source"


def _known(tokens, before):
    """Logits of a model that answers the three questions as KNOWN says, and across a border less.

    `before`: it reads BOS and what stands before the asked place, so that the source sees nothing.
    """
    tokens = np.asarray(tokens)
    logits = np.zeros((*tokens.shape, VOCAB_SIZE), np.float32)
    for row, place in np.ndindex(*tokens.shape):
        seen = tokens[row, : place + 1] if before else tokens[row]
        letters = np.flatnonzero(seen < PAD)
        if not len(letters):
            continue
        given, at = int(seen[letters[0]]), int(letters[0]) - before
        name = _question(given, place > at)
        if name is None:
            continue
        true = given + NUM_LETTERS if given < NUM_LETTERS else given - NUM_LETTERS
        rival = (true + 1) % NUM_LETTERS + NUM_LETTERS * (true >= NUM_LETTERS)
        own, other = KNOWN[name]
        logits[row, place, true] = own - (at // 2 != place // 2) * (not before)
        logits[row, place, rival] = other
    return logits


def _task(cell, before=False):
    task = Task(cell, CONFIG)

    def apply_fn(params, tokens_BL):
        shape = jax.ShapeDtypeStruct((*tokens_BL.shape, VOCAB_SIZE), jnp.float32)
        return jax.pure_callback(lambda tokens: _known(tokens, before), shape, tokens_BL)

    task.__dict__["apply_fn"] = apply_fn
    return task


def _p(own, other):
    return 100 * np.exp(own) / (np.exp(own) + np.exp(other) + VOCAB_SIZE - 3)  # without [M]


def test_a_model_with_known_answers_gives_them_within_blocks_and_across():
    values = _task(Cell("blocks", block=2)).probabilities({})
    for name, (own, other) in KNOWN.items():
        within, across = _p(own, other), _p(own - 1, other)
        np.testing.assert_allclose(values[f"p_{name}_within"], within, rtol=1e-5)
        np.testing.assert_allclose(values[f"p_{name}_across"], across, rtol=1e-5)
        # Of 15 placements of L = 6, 3 fall within a block of two.
        np.testing.assert_allclose(values[f"p_{name}"], (3 * within + 12 * across) / 15, rtol=1e-5)
        for where, less in (("_within", 0), ("_across", 1)):
            want = 100.0 * (own - less > other)
            np.testing.assert_allclose(values[f"choice_{name}{where}"], want, rtol=1e-5)


def test_a_model_of_the_next_token_reads_what_stands_before():
    values = _task(Cell("causal", "next_token"), before=True).probabilities({})
    for name in ("forward", "reverse"):
        np.testing.assert_allclose(values[f"p_{name}"], _p(*KNOWN[name]), rtol=1e-5)
    # Nothing of the pair stands before the source: all tokens alike.
    np.testing.assert_allclose(values["p_source"], 100 / (VOCAB_SIZE - 1), rtol=1e-5)
    assert values["choice_source"] == 0  # a tie is no choice
    assert "p_reverse_within" not in values


def test_generations_are_counted_in_the_order_of_the_network():
    """Rank 1 answers alone: forward always holds the letter asked for, reverse its rival."""
    task = _task(Cell())
    one = dataclasses.replace(CONFIG, top_k=1, generations=1)
    task = dataclasses.replace(task, config=one)
    task.__dict__["apply_fn"] = _task(Cell()).apply_fn
    state = task.init(0)
    values = task.generated(state)
    assert values["percent_forward"] == 100 and values["percent_reverse"] == 0


def test_cosines_are_those_of_the_questions_gradients():
    params = {"blocks_0": {"attention": {
        name: {"kernel": np.array([1.0, 2.0], np.float32) * (n + 1)}
        for n, name in enumerate(("query", "value"))
    }}, "embed": np.ones(1, np.float32)}  # fmt: skip
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4, 3, 5)).astype(np.float32)
    vectors[1, 0] = -1e-22 * np.abs(vectors[1, 0])  # the gradient of what is answered for sure
    vectors[2, 0, :2] *= 1e-17  # its queries and keys alone
    vectors[3, 0] = 0

    def loss(params, vector):
        of = params["blocks_0"]["attention"]
        flat = [of["query"]["kernel"], of["value"]["kernel"], params["embed"]]
        return jnp.concatenate(flat) @ vector

    got = causes.gradient_cosines(loss, params, [vectors])
    for part, side in (("routing", slice(2)), ("storage", slice(2, 4)), ("total", slice(None))):
        for example, (a, b) in itertools.product(range(4), itertools.product(range(3), repeat=2)):
            x, y = vectors[example, a, side], vectors[example, b, side]
            x, y = x.astype(np.float64), y.astype(np.float64)
            nothing = example == 3 or (example == 2 and part == "routing")
            is_undefined = nothing and 0 in (a, b)
            length = np.linalg.norm(x) * np.linalg.norm(y)
            want = np.nan if is_undefined else x @ y / length
            np.testing.assert_allclose(got[part][example, a, b], want, atol=1e-5)


@pytest.mark.parametrize("cell", [Cell(), Cell("blocks", block=2), Cell("causal", "next_token")])
def test_the_pairs_of_questions_have_their_own_names(cell, monkeypatch):
    """Order is source and reverse, target forward and source, answer forward and reverse."""
    task = Task(cell, CONFIG)
    rows = []

    def known(loss, params, examples):
        rows.append(examples)
        count = len(examples[0])
        product = np.fromfunction(lambda e, a, b: 10.0 * a + b + 100 * (e >= 26), (count, 3, 3))
        return {part: product + n for n, part in enumerate(causes.PARTS)}

    monkeypatch.setattr(causes, "gradient_cosines", known)
    values = task.cosines({})
    forward, reverse, source = range(3)
    assert list(causes.QUESTIONS) == ["forward", "reverse", "source"]
    for pair, (a, b) in dict(order=(source, reverse), target=(forward, source),
                             answer=(forward, reverse)).items():  # fmt: skip
        np.testing.assert_allclose(values[f"cosine_{pair}"], 10 * a + b + np.arange(3))
        if cell.block:
            want = 100 + 10 * a + b + np.arange(3)
            np.testing.assert_allclose(values[f"cosine_{pair}_within"], want)
    ((tokens, position, target),) = rows
    letters = np.arange(len(tokens)) % 26
    np.testing.assert_array_equal(target[:, forward], UPPER[letters])
    np.testing.assert_array_equal(target[:, reverse], LOWER[letters])
    assert (np.take_along_axis(tokens, position[..., None], 2) == MASK).all()
    np.testing.assert_array_equal(position[:, forward], position[:, reverse])
    if cell.block:
        places = np.stack([position[:, forward], position[:, source]], 1) // 2
        np.testing.assert_array_equal(places[26:52, 0] == places[26:52, 1], np.ones(26, bool))
        assert (places[52:, 0] != places[52:, 1]).all()


def test_a_letter_is_asked_in_a_row_that_is_allowed():
    """Cosines within a block and across a border are of rows of their kind alone."""
    letter_E = np.repeat(np.arange(26), 4)
    allowed_E = np.tile([False, True, False, False], 26)
    np.testing.assert_array_equal(causes.one_a_letter(letter_E, allowed_E), np.arange(26) * 4 + 1)
    rows = causes.one_a_letter(letter_E[::-1], ~allowed_E)
    np.testing.assert_array_equal(letter_E[::-1][rows], np.arange(26))
    assert (~allowed_E)[rows].all()


def test_the_attention_correlation_is_over_letters():
    placed = Task(Cell(), CONFIG).placed()
    letter = placed["forward"].item_E
    noise = np.random.default_rng(0).normal(size=26)
    scores = {
        "scores_forward": np.tile(noise[letter] + placed["forward"].distance_E, (2, 1, 1)),
        "scores_reverse": np.stack([2 * noise[letter][None], -noise[letter][None]]),
    }
    got = causes.with_correlation(scores | {"p_forward": 1.0})
    np.testing.assert_allclose(got.pop("attention_correlation"), [0.0], atol=1e-6)  # 1 and -1
    assert got == {"p_forward": 1.0}
    assert (placed["forward"].query_E < placed["forward"].key_E).all()
    assert (placed["reverse"].query_E > placed["reverse"].key_E).all()
    causal = Task(Cell("causal", "next_token"), CONFIG).placed()["reverse"]
    assert set(np.unique(causal.tokens_EL)) == {*UPPER.tolist(), PAD}


def _history(**changes):
    steps = np.arange(11) * 100
    rising = np.linspace(0, 100, 11)
    cosine = np.arange(33).reshape(11, 3) / 100
    history = dict(
        eval_step=steps, percent_forward=rising, percent_reverse=2 * rising[::-1],
        choice_forward=np.minimum(2 * rising, 100), choice_source=rising, p_reverse=rising / 4,
        cosine_order=cosine, attention_correlation=steps[:, None] / 1000, loss=np.ones(1000),
    )  # fmt: skip
    return history | changes


def test_a_line_holds_the_end_the_early_and_the_moment_of_equal_forward():
    line = page.summarize("both", _history())
    assert line["percent_forward"] == 100 and line["p_reverse"] == 25
    assert line["steps_to_fit"] == 500  # choice is 100 there, 80 before
    assert line["reverse_at_equal_forward"] == pytest.approx(20)  # at step 900
    assert line["early_attention_correlation"] == 0.2 and line["attention_correlation"] == 1
    assert line["early_cosine_order_routing"] == pytest.approx(0.07)
    assert line["cosine_order_total"] == pytest.approx(0.32)
    ten = {name: x[:10] for name, x in _history().items()}  # nine evaluations after the first
    assert page.summarize("both", ten)["early_attention_correlation"] == 0.1
    assert page.summarize("A", _history())["steps_to_fit"] == 900
    never = page.summarize("both", _history(percent_forward=np.zeros(11)))
    assert never["reverse_at_equal_forward"] is None
    no_gradient = page.summarize("both", _history(cosine_order=np.full((11, 3), np.nan)))
    assert no_gradient["early_cosine_order_routing"] is None


def test_a_measure_is_the_mean_of_the_seeds_that_have_it():
    lines = [{"x": None, "y": None}, {"x": 1.0, "y": None}, {"x": 3.0, "y": None}]
    assert tables.mean(lines, "x") == tables.interval(lines, "x").estimate == 2
    assert np.isnan(tables.mean(lines, "y")) and np.isnan(tables.interval(lines, "y").estimate)


def test_the_fraction_is_sixty_of_the_cells_that_can_be():
    every = [Cell(*values) for values in itertools.product(*causes.FACTORS.values())]
    can_be = [cell for cell in every if cell.why_not(10) is None]
    assert len(can_be) == 330 and len(page.core()) == 22
    assert len(page.fraction()) == 60 and set(page.fraction()) < set(can_be)
    named = page.Cells(cells=("positions", "depth")).parsed
    assert named[:20] == [*page.positions()] and {cell.layers for cell in named[:20]} == {1}
    assert {(cell.positions, cell.layers) for cell in named[20:]} == {("rope", 2), ("rope", 4)}
    assert len(named) == 30 and not {*named} & {*page.core()} and {*named} < {*page.fraction()}
    assert page.parse("causal/next_token") == Cell("causal", "next_token")
    assert page.parse("bidirectional/fixed_rate/B/none/4") in can_be
    with pytest.raises(ValueError, match="'down' of"):
        page.parse("causal/down")


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (Cell(objective="next_token"), "its own target"),
        (Cell("causal", predicted="A"), "nothing to learn"),
        (Cell("blocks", block=4), "does not divide L = 6"),
        (Cell("blocks", "fixed_rate", block=2), "trained by masked diffusion"),
        (Cell(block=2), "need attention in blocks"),
        (Cell("blocks", block=1, placed="within"), "no pair falls within"),
        (Cell("blocks", block=6, placed="across"), "no pair falls across"),
    ],
)
def test_cells_that_cannot_be_are_refused(cell, reason):
    with pytest.raises(ValueError, match=reason):
        Task(cell, CONFIG)


def test_configurations_that_do_not_fit():
    with pytest.raises(ValueError, match="at least two"):
        page.Config(seeds=(0,))
    with pytest.raises(ValueError, match="20 % of training"):
        page.Config(steps=100, eval_every=50)
    with pytest.raises(ValueError, match="does not divide"):
        dial.Config(sizes=(3,))
    with pytest.raises(ValueError, match="no pair falls within"):
        dial.Config(apart=(1,))


def test_which_letters_are_scored_and_which_pairs_there_are():
    both = causes.training_rows(Cell(), 6)
    only = causes.training_rows(Cell(predicted="B"), 6)
    assert set(both) == {"tokens_BL"}
    lower = only["tokens_BL"] < NUM_LETTERS
    np.testing.assert_array_equal(only["scored_BL"], ~lower)
    assert only["noised_BL"].all() and lower.sum() == len(lower)
    within = causes.training_rows(Cell("blocks", block=3, placed="within"), 6)["tokens_BL"]
    across = causes.training_rows(Cell("blocks", block=3, placed="across"), 6)["tokens_BL"]
    assert (len(within), len(across)) == (26 * 6, 26 * 9)
    for rows, same in ((within, True), (across, False)):
        first, second = np.nonzero(rows != PAD)[1].reshape(-1, 2).T
        assert ((first // 3 == second // 3) == same).all()
    together = np.concatenate([within, across]).tolist()
    assert sorted(together) == sorted(case_pairs.training_set(6).tolist())


# ---------------------------------------------------------------------------------------
# Tables


def _line(cell, seed, reverse, order=0.6, target=0.1, choice=1.0, **changes):
    cosines = {
        f"early_cosine_{pair}_{part}": {"order": order, "target": target}.get(pair, 0.0)
        for pair in causes.PAIRS
        for part in causes.PARTS
    }
    of = page.identity(cell) | cosines | dict(
        seed=seed, percent_forward=90.0, percent_reverse=reverse + seed, p_reverse=5.0,
        choice_reverse=choice + seed / 10, choice_source=99.0, steps_to_fit=None,
        reverse_at_equal_forward=None, early_attention_correlation=reverse / 100,
    )  # fmt: skip
    return of | changes


def _verdicts(**changes):
    of = dict(both=50.0, A=48.0, B=0.0, order=0.6, target=0.1, choice=1.0) | changes
    lines = [
        _line(Cell(predicted=predicted), seed, of[predicted],
              of["order"], of["target"], of["choice"] if predicted == "B" else 90.0)
        for predicted in ("both", "A", "B") for seed in (0, 1, 2)
    ]  # fmt: skip
    return {row[0][0]: row[2] for row in tables.claims(lines)}


def test_a_row_says_of_how_many_seeds_it_is():
    fitted = [_line(Cell(), seed, 50.0, steps_to_fit=[100, 300, None][seed]) for seed in range(3)]
    one = [_line(Cell(), seed, 50.0, steps_to_fit=[100, None, None][seed]) for seed in range(3)]
    every = [_line(Cell(), seed, 50.0, steps_to_fit=100) for seed in range(3)]
    none = [_line(Cell(), seed, 50.0) for seed in range(3)]
    fits = list(tables.CELL_COLUMNS).index("steps to fit")
    (*_, row) = tables.cell_table(none).splitlines()
    assert row.strip("| ").split(" | ")[6 + fits] == "–"
    cells = [tables.cell_table(lines).splitlines()[2] for lines in (fitted, one, every)]
    assert "| 200 ± 1271 (2 of 3) |" in cells[0] and "| 100 (1 of 3) |" in cells[1]
    assert "| 100 ± 0 |" in cells[2]


def test_claims_are_judged_by_the_thresholds_that_were_written_first():
    assert _verdicts() == {"1": "holds", "2": "holds", "3": "holds"}
    assert _verdicts(A=5.0)["1"] == "fails" and _verdicts(A=25.0)["1"] == "undecided"
    assert _verdicts(order=0.2)["1"] == "fails"
    assert _verdicts(choice=30.0)["2"] == "fails" and _verdicts(choice=12.0)["2"] == "undecided"
    assert _verdicts(B=4.5)["2"] == "undecided"
    assert _verdicts(target=0.5)["3"] == "fails" and _verdicts(target=0.25)["3"] == "undecided"
    for choice, want in ((60.0, "holds"), (5.0, "fails"), (30.0, "undecided")):
        moved = [{"seed": seed, "choice_reverse": choice + seed} for seed in range(3)]
        ((_, _, got),) = tables.claims([], moved)
        assert got == want


@pytest.mark.parametrize(
    ("claim", "changes", "want"),
    [
        ("1", dict(A=25.0), "undecided"),
        ("1", dict(A=25.5), "holds"),
        ("1", dict(A=24.5), "fails"),
        ("1", dict(order=0.3), "undecided"),
        ("1", dict(order=0.31), "holds"),
        ("1", dict(order=0.29), "fails"),
        ("2", dict(B=5.0), "undecided"),
        ("2", dict(B=4.9), "holds"),
        ("2", dict(choice=10.0), "undecided"),
        ("2", dict(choice=9.9), "holds"),
        ("2", dict(choice=20.0), "undecided"),
        ("2", dict(choice=20.1), "fails"),
        ("3", dict(order=0.75, target=0.25), "undecided"),
        ("3", dict(order=0.75, target=0.24), "holds"),
        ("3", dict(order=0.75, target=0.375), "undecided"),
        ("3", dict(order=0.75, target=0.38), "fails"),
        ("4", dict(moved=50.0), "undecided"),
        ("4", dict(moved=50.1), "holds"),
        ("4", dict(moved=10.0), "undecided"),
        ("4", dict(moved=9.9), "fails"),
    ],
)
def test_a_tie_with_a_threshold_decides_nothing(claim, changes, want):
    """Seeds that agree have an interval of no width, which stands on the threshold itself."""
    of = dict(both=50.0, A=48.0, B=0.0, order=0.6, target=0.1, choice=1.0, moved=60.0) | changes
    lines = [
        _line(Cell(predicted=predicted), seed, 0.0, of["order"], of["target"])
        | dict(percent_reverse=of[predicted], choice_reverse=of["choice"])
        for predicted in ("both", "A", "B") for seed in (0, 1, 2)
    ]  # fmt: skip
    moved = [{"seed": seed, "choice_reverse": of["moved"]} for seed in (0, 1, 2)]
    assert {row[0][0]: row[2] for row in tables.claims(lines, moved)}[claim] == want


def test_a_claim_is_judged_by_seeds_that_both_cells_have_and_that_reverse():
    line = functools.partial(_line, Cell())
    alone = [_line(Cell(predicted="A"), seed, 30.0 - seed) for seed in (1, 2, 3)]
    both = [line(0, 1.0), line(1, 59.0), line(2, 58.0), line(3, -3.0)]
    (row, *_) = tables.claims(both + alone)
    assert row[0].startswith("1.") and "both: 0.50 (0.50 to 0.50)" in row[1]
    for missing in ([], both[:1], [line(1, -1.0)]):  # nothing, no seed of both, none that reverses
        assert not [row for row in tables.claims(missing + alone) if row[0].startswith("1.")]


def test_effects_and_mechanism_are_those_of_the_lines():
    cells = {
        Cell(): 60,
        Cell(predicted="B"): 0,
        Cell("causal"): 20,
        Cell("causal", "next_token"): 5,
    }
    lines = [_line(cell, seed, value) for cell, value in cells.items() for seed in (0, 2)]
    found, aliases = tables.found_effects(lines)
    assert aliases == (("objective=next_token", "attention=causal:objective=next_token"),)
    assert found["predicted=B"].estimate == pytest.approx(-60)
    assert found["attention=causal"].estimate == pytest.approx(-40)
    assert found["constant"].estimate == pytest.approx(61)
    early = [line | {"reverse_at_equal_forward": 7.0 * line["seed"] + n} for n, line in
             enumerate(lines)]  # fmt: skip
    early[5]["reverse_at_equal_forward"] = None  # a seed of causal masked diffusion: no such cell
    equal, _ = tables.found_effects(early, "reverse_at_equal_forward")
    assert equal["constant"].estimate == pytest.approx(7.5)  # 0 and 15
    assert equal["predicted=B"].estimate == pytest.approx(2)
    assert equal.keys() == {"constant", "predicted=B"}  # of one causal cell nothing is told apart
    measured = {name: (rank, area) for name, rank, area in tables.mechanism(lines)}
    rank, area = measured["attention correlation"]
    assert rank.estimate == pytest.approx(1) and area.estimate == 1  # one of four above 45
    text = tables.cell_table(lines)
    assert "| causal | next_token | both | rope | 1 | 2 | 90.0 ± 0.0 | 6.0 ± 12.7 |" in text


def test_measures_that_differ_by_rounding_alone_are_ties():
    """1 and 1 + 2e-16 are one rank: of three cells that do not reverse one ties with the best."""
    cells = {Cell(): 60, Cell("causal"): 0, Cell(predicted="B"): 0, Cell("causal", "next_token"): 0}
    values = 1.0, 1.0 + 2.0**-52, 0.5, 0.25
    lines = [
        _line(cell, seed, reverse) | {"early_attention_correlation": value}
        for (cell, reverse), value in zip(cells.items(), values, strict=True) for seed in (0, 2)
    ]  # fmt: skip
    *_, (name, rank, area) = tables.mechanism(lines)
    assert name == "attention correlation" and area.estimate == pytest.approx((0.5 + 1 + 1) / 3)
    # Ranks 3.5, 3.5, 2, 1 with 4, 2, 2, 2.
    assert rank.estimate == pytest.approx(np.corrcoef([3.5, 3.5, 2, 1], [4, 2, 2, 2])[0, 1])


def test_measures_are_ranked_to_nine_digits():
    """Sums of five numbers differ by less; what differs by more is no tie."""
    cells = {Cell(): 60, Cell("causal"): 0, Cell(predicted="B"): 0}
    for apart, want in ((3e-10, 0.75), (3e-9, 1.0)):
        lines = [
            _line(cell, seed, reverse) | {"early_attention_correlation": value}
            for (cell, reverse), value in zip(cells.items(), (0.5 + apart, 0.5, 0.1), strict=True)
            for seed in (0, 2)
        ]  # fmt: skip
        *_, (_, _, area) = tables.mechanism(lines)
        assert area.estimate == pytest.approx(want)


def test_a_cell_reverses_above_half_of_its_forward_accuracy():
    """Of the area under the curve: on the half itself it does not."""
    cells = {Cell(): 60.0, Cell("causal"): 45.0, Cell(predicted="B"): 0.0}
    lines = [
        _line(cell, seed, 0.0) | {"percent_reverse": reverse, "percent_forward": 90.0}
        | {"early_attention_correlation": value}
        for (cell, reverse), value in zip(cells.items(), (0.5, 0.9, 0.1), strict=True)
        for seed in (0, 2)
    ]  # fmt: skip
    *_, (_, _, area) = tables.mechanism(lines)
    assert area.estimate == pytest.approx(0.5)  # 0.5 is above 0.1 and below 0.9


def test_the_figures_of_causes_draw_the_cells():
    pytest.importorskip("matplotlib")
    cells = {Cell(): 60.0, Cell(predicted="B"): 10.0, Cell("causal"): 20.0}
    lines = [_line(cell, seed, value) for cell, value in cells.items() for seed in (0, 2)]
    table = tables.effect_table(lines).splitlines()
    rows = [row.split("|")[1].strip() for row in table if row.startswith("| ")]
    assert rows[2:] == ["constant", "predicted=B", "attention=causal"]  # 61, −50, −40 points
    (chart,) = tables.effect_figure(lines).axes
    assert [set(x.get_xdata()) for x in chart.get_lines() if x.get_color() == "gray"] == [{0}]
    assert [x.get_text() for x in chart.get_yticklabels()] == ["attention: causal", "predicted: B"]
    np.testing.assert_allclose(chart.containers[0][0].get_xydata(), [[-40, 0], [-50, 1]])
    *others, correlation = tables.mechanism_figure(lines).axes
    assert [ax.get_ylabel() for ax in (*others, correlation)] == ["reverse accuracy (%)", "", ""]
    drawn = {line.get_label(): line.get_xydata() for line in correlation.get_lines()}
    np.testing.assert_allclose(drawn["predicted: both"], [[0.6, 61.0], [0.2, 21.0]])
    np.testing.assert_allclose(drawn["predicted: B"], [[0.1, 11.0]])
    curves = {
        name: {"eval_step": np.array([0, 5])}
        | {"cosine_order": place + np.arange(12.0).reshape(2, 2, 3)}
        | {f"percent_{way}": np.full((2, 2), 10.0 * place + n)
           for n, way in enumerate(("forward", "reverse"))}
        for place, name in enumerate(("one", "two"))
    }  # fmt: skip
    figures = [ax.get_lines() for ax in tables.training_figure(curves).axes]
    labels = [ax.get_ylabel() for ax in tables.training_figure(curves).axes]
    assert labels == ["forward (%)", "reverse (%)", "storage cosine, order"]
    names = [artists.entries(tables.training_figure(curves).legends[0])]
    assert names == [["one", "two"]]
    means = [[list(x.get_ydata()) for x in of if x.get_label() in curves] for of in figures]
    assert means == [[[0, 0], [10, 10]], [[1, 1], [11, 11]], [[1.5, 7.5], [2.5, 8.5]]]


def test_the_figure_of_positions_and_depth_draws_masked_diffusion_of_both():
    pytest.importorskip("matplotlib")
    cells = {Cell(): 60.0, Cell(positions="none"): 10.0, Cell(positions="learned", layers=4): 20.0}
    other = {Cell(objective="any_order"): 50.0, Cell("causal", positions="none"): 90.0}
    one = [_line(c, seed, x) for c, x in (cells | other).items() for seed in (0, 2)]
    two = [_line(Cell(layers=2), seed, 30.0) for seed in (0, 2)]
    axes = tables.further_figure({"one": one, "two": two}).axes
    marks = [
        {bar.get_label(): bar[0].get_xydata().round(6).tolist() for bar in ax.containers}
        for ax in axes
    ]
    # `_line` adds 0 and 2 to the value of seeds 0 and 2: a mean of 1, an interval of 12.7 each way.
    assert marks[0] == {"one": [[-0.1, 61.0], [3.9, 11.0]], "two": []}
    assert marks[1] == {"one": [], "two": [[0.1, 31.0]]}
    assert marks[2] == {"one": [[2.9, 21.0]], "two": []}
    (low, high) = axes[1].containers[1].lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose([low, high], [31 - 12.706, 31 + 12.706], atol=1e-3)
    ticks = [[x.get_text() for x in ax.get_xticklabels()] for ax in axes]
    assert ticks == [["rope", "alibi", "sinusoidal", "learned", "none"]] * 3
    assert [artists.words(ax)[0] for ax in axes] == ["1 layer", "2 layers", "4 layers"]
    assert artists.words(axes[0])[2] == "reverse accuracy (%)"


def test_the_figure_of_training_draws_the_first_six_cells(tmp_path, monkeypatch):
    drawn = artists.of_report(monkeypatch, tables.report)
    for part in ("cell_table", "effect_table", "mechanism_table", "claim_table"):
        monkeypatch.setattr(tables, part, lambda *args: "")
    workdir = WorkDir(tmp_path / "run")
    monkeypatch.setattr(workdir, "stacked", lambda run, seeds: run.name)
    all_runs = page.plan(dataclasses.replace(CONFIG, cells=("core",)), workdir.path)
    tables.write(workdir, CONFIG, all_runs)
    (curves,) = drawn["training"]
    assert list(curves.values()) == [run.name for run in all_runs[:6]]
    assert next(iter(curves)) == "bidirectional/masked_diffusion/both/rope/1"


def test_the_figure_of_the_dial_draws_each_kind_of_pairs():
    pytest.importorskip("matplotlib")
    lines = [
        {"block": block, "placed": placed, "seed": seed, "percent_forward": 90.0 + block}
        | {"percent_reverse": 10.0 * block + seed, "p_reverse_within": 4.0}
        | {"p_reverse_across": None}
        | {f"cosine_order_{where}_storage": 0.5 for where in ("within", "across")}
        for block in (2, 5) for placed in ("anywhere", "across") for seed in (0, 2)
    ]  # fmt: skip
    blue, red, green, pink = COLORS[:4]
    accuracy, p, cosine = dial_tables.figure(lines).axes
    drawn = [(c[0].get_color(), c[0].get_marker(), c[0].get_xydata().tolist())
             for c in accuracy.containers]  # fmt: skip
    marks = [dial_tables.MARKS[placed][0] for placed in ("anywhere", "across")]
    assert drawn == [
        (blue, marks[0], [[2, 92], [5, 95]]), (blue, marks[1], [[2, 92], [5, 95]]),
        (red, marks[0], [[2, 21], [5, 51]]), (red, marks[1], [[2, 21], [5, 51]]),
    ]  # fmt: skip
    assert [c[0].get_color() for c in p.containers] == [green, green]  # nothing asked across
    low, high = accuracy.containers[2][2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose([low, high], [21 - 12.706, 21 + 12.706], atol=1e-3)
    legend = [text.get_text() for text in accuracy.figure.legends[0].get_texts()]
    assert legend[:4] == ["forward", "reverse", "asked within a block", "asked across a border"]
    assert legend[4:] == [f"trained on pairs {placed}" for placed in dial_tables.MARKS]
    colors = [handle.get_color() for handle in accuracy.figure.legends[0].get_lines()[:4]]
    assert colors == [blue, red, green, pink]  # as the curves have them
    assert [ax.get_ylim()[1] for ax in (accuracy, p, cosine)] == [105, 105, 1.05]
    assert list(accuracy.get_xticks()) == [2, 5]
    assert [ax.get_xlabel() for ax in (accuracy, p, cosine)] == ["", "", "block size (tokens)"]
    assert accuracy.get_shared_x_axes().joined(accuracy, p)
    assert accuracy.get_shared_x_axes().joined(accuracy, cosine)
    assert [c[0].get_color() for c in cosine.containers] == [green, green, pink, pink]


def _dial(block, placed, seed, within, across, reverse=0.0):
    line = {"block": block, "placed": placed, "seed": seed, "percent_reverse": reverse + seed / 10}
    if within is not None:
        line["p_reverse_within"] = within
    if across is not None:
        line["p_reverse_across"] = across + seed / 10
    return line


def test_the_dials_claims_compare_across_with_within():
    lines = [_dial(5, "anywhere", seed, 50.0, 5.0) for seed in range(3)]
    lines += [_dial(2, "anywhere", seed, 50.0, 40.0) for seed in range(3)]
    lines += [_dial(1, "anywhere", seed, None, 1.0) for seed in range(3)]
    lines += [_dial(5, "across", seed, 50.0, 1.0, reverse=2.0) for seed in range(3)]
    got = {row[0]: (row[1], row[2]) for row in dial_tables.claims(lines)}
    assert got["dies across borders, block 5"] == ("ratio 0.10 (0.10 to 0.11)", "holds")
    assert got["rival: answers across borders, block 5"][1] == "fails"
    assert got["dies across borders, block 2"][1] == "fails"
    pytest.importorskip("matplotlib")
    curves = dial_tables.figure(lines).axes[1].containers
    drawn = [np.stack(curve[0].get_data()) for curve in curves]
    within, across = [[2, 5], [50, 50]], [[1, 2, 5], [1.1, 40.1, 5.1]]
    for got_curve, want in zip(drawn, (within, [[5], [50]], across, [[5], [1.1]]), strict=True):
        np.testing.assert_allclose(np.asarray(got_curve, float), want)
    assert got["rival: answers across borders, block 2"][1] == "holds"
    assert got["none from pairs across borders, block 5"] == ("reverse 2.1 (1.9 to 2.3) %", "holds")
    assert len(got) == 5


@pytest.mark.parametrize(
    ("placed", "value", "want"),
    [
        ("anywhere", 12.5, ["undecided", "fails"]),  # a ratio of 0.25, on the threshold
        ("anywhere", 12.0, ["holds", "fails"]),
        ("anywhere", 13.0, ["fails", "fails"]),
        ("anywhere", 25.0, ["fails", "undecided"]),
        ("anywhere", 25.5, ["fails", "holds"]),
        ("across", 5.0, ["undecided"]),
        ("across", 4.9, ["holds"]),
        ("across", 5.1, ["fails"]),
    ],
)
def test_a_tie_with_a_threshold_of_the_dial_decides_nothing(placed, value, want):
    lines = [
        {"block": 2, "placed": placed, "seed": seed, "percent_reverse": value}
        | {"p_reverse_within": 50.0, "p_reverse_across": value}
        for seed in range(3)
    ]
    assert [row[2] for row in dial_tables.claims(lines)] == want


def test_the_table_of_the_dial_has_a_column_a_measure():
    keys = dial_tables.COLUMNS.values()
    lines = [
        {"block": 2, "placed": "within", "seed": seed}
        | {key: None if key.endswith("across") else 10.0 * n + seed for n, key in enumerate(keys)}
        for seed in (0, 1)
    ]
    row = dial_tables.table(lines[::-1]).splitlines()[-1].strip("| ").split(" | ")
    digits = [1] * 6 + [2] * 2
    want = [
        "" if key.endswith("across") else f"{10 * n + 0.5:.{d}f} ± {6.3531:.{d}f}"
        for (n, key), d in zip(enumerate(keys), digits, strict=True)
    ]
    assert row == ["within", "2", "2", *want]
    heads = ["reverse within: P(true) %", "choice %", "reverse across: P(true) %"]
    heads += ["choice, across %", "across"]
    assert [dial_tables.COLUMNS[head] for head in heads] == [
        "p_reverse_within", "choice_reverse_within", "p_reverse_across", "choice_reverse_across",
        "cosine_order_across_storage",
    ]  # fmt: skip


def _curves(line):
    """Two evaluations that end in the line."""
    keys = ("percent_forward", "percent_reverse")
    rising = {key: np.array([0.0, line[key]]) for key in keys}
    return rising | {"eval_step": np.array([0, 20]), "cosine_order": np.ones((2, 3))}


def test_reports_are_written_from_lines_and_curves_alone(tmp_path, capsys, monkeypatch):
    workdir = WorkDir(tmp_path / "causes")
    all_runs = page.plan(CONFIG, workdir.path)
    reverse = {"both": 50.0, "A": 45.0, "B": 0.0}
    for run, cell in zip(all_runs, CONFIG.parsed, strict=True):
        for seed in CONFIG.seeds:
            line = _line(cell, seed, reverse[cell.predicted])
            workdir.record(run, seed, line)
            workdir.save_curves(run, seed, _curves(line))
    tables.write(workdir, CONFIG, all_runs)
    text = (workdir.path / "report.md").read_text()
    assert "| predicted=B | −50.0 (−50.0 to −50.0) |" in text
    assert "| 3. distinct entries by target |" in text and "| holds |" in text
    assert {path.stem for path in workdir.path.glob("figures/*.png")} == {
        "training", "effects", "mechanism",
    }  # fmt: skip
    few = dataclasses.replace(CONFIG, cells=("bidirectional", "causal/next_token"))
    lines = [_line(cell, seed, 40.0) for cell in few.parsed for seed in few.seeds]
    two = WorkDir(tmp_path / "two")
    two_runs = page.plan(few, tmp_path)
    for run, line in zip(np.repeat(two_runs, len(few.seeds)), lines, strict=True):
        two.record(run, line["seed"], line)
        two.save_curves(run, line["seed"], _curves(line))
    tables.write(two, few, two_runs)
    short = (two.path / "report.md").read_text()
    assert "left out: attention=causal, objective=next_token" in short
    assert "rank correlation" in text and "rank correlation" not in short  # of two cells
    config = dial.Config(length=4, width=8, sizes=(1, 2), apart=(2,), steps=20, eval_every=4)
    workdir = WorkDir(tmp_path / "dial")
    all_runs = dial.plan(config, workdir.path)
    for run, seed in itertools.product(all_runs, config.seeds):
        cosines = {f"cosine_order_{where}_storage": 0.5 for where in ("within", "across")}
        within = None if run.identity["block"] == 1 else 50.0
        line = _dial(run.identity["block"], run.identity["placed"], seed, within, 5.0)
        workdir.record(run, seed, line | cosines | {"percent_forward": 99.0})
    dial_tables.write(workdir, config, all_runs)
    text = (workdir.path / "report.md").read_text()
    assert "| across | 2 | 5 | 99.0 ± 0.0 |" in text and "| anywhere | 1 | 5 |" in text
    assert "dies across borders, block 2" in capsys.readouterr().out


def test_accuracy_is_of_the_average_and_gradients_are_of_the_weights(monkeypatch):
    """What reads a network is replaced by the weights that it was given."""
    generate = lambda apply_fn, params, *_, **__: params  # noqa: E731
    monkeypatch.setattr(causes.case_recall, "generation_percent", generate)
    for name in ("probabilities", "cosines", "scores"):
        monkeypatch.setattr(Task, name, lambda self, params, name=name: {name: params})
    state = types.SimpleNamespace(params="raw", ema_params="ema", key=jax.random.key(0))
    assert Task(Cell(), CONFIG).answers(state) == {
        "percent_forward": "ema", "percent_reverse": "ema", "probabilities": "ema",
        "cosines": "raw", "scores_scores": "raw",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "kind", "order", "block"),
    [
        (Cell(), "masked", "random", None),
        (Cell("causal"), "masked", "left_to_right", None),
        (Cell("causal", "next_token"), "causal", "left_to_right", None),
        (Cell("blocks", block=2), "masked", "random", 2),
    ],
)
def test_a_cell_generates_as_its_network_reads(cell, kind, order, block, monkeypatch):
    asked = []
    generate = lambda *_, **how: asked.append(how)  # noqa: E731
    monkeypatch.setattr(causes.case_recall, "generation_percent", generate)
    Task(cell, CONFIG).generated(types.SimpleNamespace(ema_params={}, key=jax.random.key(0)))
    sampled = dict(generations=CONFIG.generations, top_k=CONFIG.top_k)
    assert asked == [dict(kind=kind, order=order, block_size=block, **sampled)] * 2


@pytest.mark.parametrize(
    ("cell", "name", "settings"),
    [
        (Cell("causal", "next_token"), "next_token", dict(bos_id=MASK)),
        (Cell(), "masked_diffusion", dict(mask_id=MASK)),
        (Cell(objective="any_order"), "masked_diffusion", dict(mask_id=MASK, weighting="k")),
        (Cell(objective="uniform_rate"), "masked_lm", dict(mask_id=MASK, rate=None)),
        (Cell(objective="fixed_rate"), "masked_lm", dict(mask_id=MASK, rate=0.15)),
    ],
)
def test_a_cell_is_trained_by_the_objective_that_it_names(cell, name, settings):
    found = causes.objective(cell, CONFIG.length, CONFIG.batch_size)
    assert found.func is getattr(causes.objectives, name)
    told = {key: x for key, x in found.keywords.items() if key != "capacity"}
    assert told == settings | (dict(keep=0, random=0) if name == "masked_lm" else {})


def test_with_A_alone_predicted_uppercases_are_left_out():
    rows = causes.training_rows(Cell(predicted="A"), 6)
    upper = (rows["tokens_BL"] >= NUM_LETTERS) & (rows["tokens_BL"] < PAD)
    np.testing.assert_array_equal(rows["scored_BL"], ~upper)
    assert rows["noised_BL"].all() and upper.sum() == len(upper)


def test_a_cell_is_optimized_at_the_rate_and_warm_up_of_its_flags(monkeypatch):
    asked = []

    def known(*args, **settings):
        asked.append((args, settings))
        return optax.sgd(0.1)

    monkeypatch.setattr(causes.training, "make_optimizer", known)
    config = dataclasses.replace(CONFIG, learning_rate=0.5, warmup_steps=7)
    assert Task(Cell(), config).init(0).ema_params is not None
    assert asked == [((0.5,), dict(warmup_steps=7))]


@pytest.mark.parametrize(
    "cell",
    [
        Cell(positions="alibi", layers=2),
        Cell("causal", "next_token", positions="learned"),
        Cell("blocks", layers=4, block=2),
    ],
)
def test_a_network_has_what_its_cell_and_its_flags_name(cell):
    config = dataclasses.replace(CONFIG, length=6, dropout=0.25, width=16)
    network = Task(cell, config).network
    assert (network.positions, network.num_layers) == (cell.positions, cell.layers)
    assert (network.causal, network.block_size) == (cell.attention == "causal", cell.block or None)
    assert (network.dropout, network.width, network.max_len) == (0.25, 16, 6)
    assert network.vocab_size == case_pairs.VOCAB_SIZE


def test_a_cell_is_averaged_with_the_decay_of_its_flag():
    run = Task(Cell(), dataclasses.replace(CONFIG, ema_decay=0.5)).run({})
    assert run.step.keywords["ema_decay"] == 0.5


def test_heads_of_cells_say_what_stands_under_them():
    heads = {
        "percent_forward": "forward %", "percent_reverse": "reverse %",
        "p_reverse": "reverse: P(true) %", "choice_reverse": "choice %",
        "choice_source": "source: choice %",
        "reverse_at_equal_forward": "reverse % at forward 90 %",
    }  # fmt: skip
    line = _line(Cell(), 0, 0.0) | {key: place + 1.0 for place, key in enumerate(heads)}
    head, _, row = (x.strip("| ").split(" | ") for x in tables.cell_table([line]).splitlines())
    said = dict(zip(head, row, strict=True))
    assert {name: said[name] for name in heads.values()} == {
        name: f"{place + 1:.1f}" for place, name in enumerate(heads.values())
    }


def test_a_cell_is_summarised_by_what_it_predicts(tmp_path):
    planned = page.plan(dataclasses.replace(CONFIG, cells=("leading",)), tmp_path)
    told = [run.summarize.args for run in planned]
    assert told == [("both",), ("A",), ("B",), ("both",)]
    config = dial.Config(length=4, width=8, sizes=(1, 2), apart=(2,), steps=20, eval_every=4)
    assert {run.summarize.args for run in dial.plan(config, tmp_path)} == {("both",)}
