"""Cures: rows by hand, models whose answers are known through what is reported, bad input."""

import dataclasses
import types

import artists
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import remedy_lines

from dirasym import runs
from dirasym.data import case_pairs
from dirasym.data.case_pairs import LOWER, MASK, PAD, UPPER, VOCAB_SIZE
from experiments import cures
from experiments.reports import cures as cures_report
from experiments.systems import cures as system

TINY = system.Config(
    length=4, lone=6, seeds=(0, 1), steps=8, evaluations=2, batch_size=16, width=8, generations=2
)


def test_plain_rows_are_the_pairs_and_lone_letters_as_often():
    rows = system.plain_rows(4, 6)
    assert len(rows) == (20 + 6 + 6) * 6
    training_set = case_pairs.training_set(4)[: 20 * 6]
    np.testing.assert_array_equal(rows[: 20 * 6], training_set)
    lone = rows[20 * 6 :]
    assert ((lone != PAD).sum(axis=1) == 1).all()
    assert set(lone[lone != PAD]) == {*range(20, 26), *range(46, 52)}
    assert set(np.flatnonzero((lone == 20).any(axis=0))) == {0, 1, 2, 3}


def test_exposures_are_those_of_the_matchings():
    plain = system.plain_rows(10, 4)
    assert system.exposure(plain) == 0 == system.exposure(system.remedy_rows("identity", plain))
    assert system.exposure(system.remedy_rows("reversed", plain)) == 1
    of_segments = system.exposure(system.remedy_rows("segments", plain))
    assert 0.3 < of_segments < 1
    for remedy in ("reversed", "segments"):
        task = system.Task(remedy, "exposure", dataclasses.replace(TINY, length=10, lone=4))
        rows = task.data["tokens_BL"]
        paired = (rows != PAD).sum(axis=1) == 2
        assert system.exposure(rows[paired]) == pytest.approx(1 / 6, abs=0.01)
        assert task.steps == TINY.steps


def test_the_first_letter_counts_as_exposed_too():
    pair = np.array([[UPPER[0], LOWER[0], PAD, PAD], [LOWER[0], PAD, UPPER[0], PAD]])
    assert system.exposure(pair) == 0.5
    assert system.exposure(pair[:1]) == 1 and system.exposure(pair[1:]) == 0


def test_a_line_holds_the_last_evaluation_and_how_the_remedy_was_told():
    history = {key: np.array([1.0, 9.0, place]) for place, key in enumerate(system.OUTCOMES)}
    line = system.summarize(0.25, 7, history | {"loss": np.array([5.0, 2.0, 3.0])})
    last = {key: place for place, key in enumerate(system.OUTCOMES)}
    assert line == last | {"share": 0.25, "steps": 7, "loss": 3.0}


def test_steps_and_shares_of_the_matchings():
    def of(remedy, matching):
        task = system.Task(remedy, matching, TINY)
        return task.share, task.steps

    assert of("none", "compute") == (0, 8) == of("diffusion", "compute")
    assert of("reversed", "compute") == (0.5, 8) and of("reversed", "tokens") == (0.5, 16)
    assert of("copies", "compute") == (0, 4) and of("copies", "tokens") == (0, 8)
    assert system.Task("copies", "tokens", TINY).data["tokens_BL"].shape[1] == 8
    rows = system.Task("identity", "compute", TINY).data["tokens_BL"]
    same = [len(set(row[row != PAD])) == 1 and (row != PAD).sum() == 2 for row in rows]
    assert np.mean(same) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("remedy", "matching", "steps"),
    [("none", "compute", 8), ("copies", "compute", 4), ("reversed", "tokens", 16)],
)
def test_every_run_is_asked_as_often_and_at_its_end(remedy, matching, steps):
    run = system.Task(remedy, matching, TINY).run()
    assert run.num_steps == steps and run.eval_every == steps // TINY.evaluations


def test_seventeen_cells_of_which_each_is_told_apart():
    config = dataclasses.replace(TINY, seeds=(0, 1))
    runs = cures.plan(config, None)
    assert len({run.name for run in runs}) == len(runs) == 17
    names = {(run.identity["remedy"], run.identity["matching"]) for run in runs}
    assert ("none", "tokens") not in names and ("identity", "exposure") not in names


CONFIG = dataclasses.replace(TINY, generations=4)
NUM = 20


def _generate(rows_EL, key):
    """By hand: of 4 generations from a: 3 have B. Of 4 from B: 1 has a, 2 repeat B.

    From a lone uppercase, 1 of 4 names the first lowercase.
    """
    del key
    out = np.full(rows_EL.shape, PAD)
    for row, given in enumerate(np.asarray(rows_EL)[:, 0]):
        out[row, 0] = given
        turn = row % 4
        if given < 26:
            out[row, 2] = UPPER[given] if turn < 3 else UPPER[(given + 1) % 26]
        elif given - 26 < NUM:
            out[row, 1] = [LOWER[given - 26], given, given, LOWER[(given - 25) % 26]][turn]
        elif turn == 0:
            out[row, 3] = LOWER[0]
    return jnp.asarray(out)


def _read(rows_EL):
    """B has 0.4 of uppercases' 0.5 behind a; of lowercases the partner leads for a quarter."""
    p_ELV = np.zeros((*rows_EL.shape, VOCAB_SIZE), np.float32)
    p_ELV[..., PAD] = 0.5
    for row, tokens in enumerate(np.asarray(rows_EL)):
        (letter,) = tokens[(tokens != PAD) & (tokens != MASK)]
        if letter < 26:
            p_ELV[row, :, UPPER[letter]] = 0.4
            p_ELV[row, :, UPPER[(letter + 1) % 26]] = 0.1
            p_ELV[row, tokens != MASK] = 1 / VOCAB_SIZE  # not asked
        else:
            is_first = letter - 26 < NUM / 4
            p_ELV[row, 1:, LOWER[letter - 26]] = 0.3 if is_first else 0.1
            p_ELV[row, 1:, LOWER[(letter - 25) % NUM]] = 0.2
            p_ELV[row, 1:, LOWER[25]] = 0.9  # has no partner: no candidate
            p_ELV[row, 0, LOWER[letter - 26]] = 1  # not asked
    return jnp.asarray(p_ELV)


def test_a_known_model_gives_its_outcomes():
    got = system.outcomes(_read, _generate, jax.random.key(0), CONFIG)
    want = dict(forward=75, reverse=25, copying=50, incorrect=25, choice=25)
    for name, value in want.items():
        assert got[name] == pytest.approx(value), name
    assert got["forward_nll"] == pytest.approx(np.log(0.5 / 0.4), rel=1e-5)
    assert set(got) == set(system.OUTCOMES)


def test_copies_are_read_and_continued_behind_the_masked_copy():
    task, seen = system.Task("copies", "compute", TINY), []

    def apply_fn(params, tokens_BL):
        """The token after each is the one that stood in the copy at its place, [M] as `a`."""
        seen.append(tokens_BL.shape)
        length = tokens_BL.shape[1] // 2
        wanted_BL = jnp.roll(tokens_BL, length - 1, axis=1)
        wanted_BL = jnp.where(wanted_BL == MASK, LOWER[0], wanted_BL)
        return 50.0 * jax.nn.one_hot(wanted_BL, VOCAB_SIZE)

    task.apply_fn = apply_fn
    rows = np.array([[UPPER[3], MASK, MASK, MASK]], np.int32)
    p_ELV = task.read(None, rows)
    np.testing.assert_array_equal(jnp.argmax(p_ELV, -1), [[UPPER[3], 0, 0, 0]])
    out = task.generate(None, jnp.asarray(rows), jax.random.key(0))
    np.testing.assert_array_equal(out, [[UPPER[3], 0, 0, 0]])
    assert set(seen) == {(1, 8)}


LINES = [
    {"remedy": remedy, "matching": matching, "seed": seed}
    | {"share": 0.25 if row == 2 else 0.5, "steps": 9 if row == 2 else 8}
    | {key: 10 * row + seed + place for place, key in enumerate(cures_report.COLUMNS.values())}
    for row, (remedy, matching) in enumerate(
        [("none", "compute"), ("reversed", "compute"), ("reversed", "tokens")]
    )
    for seed in (0, 1)
]


def test_heads_of_cures_are_names_of_outcomes():
    heads = {"forward %", "reverse %", "choice %", "copying %", "incorrect %"}
    percents = {head: head.removesuffix(" %") for head in heads}
    assert cures_report.COLUMNS == percents | {"forward NLL": "forward_nll"}


def test_the_table_and_the_figure_put_each_cell_in_its_place():
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in cures_report.table(LINES).splitlines()
    ]
    assert [row[:2] for row in rows[2:]] == [
        ["compute", "none"], ["compute", "reversed"], ["tokens", "reversed"],
    ]  # fmt: skip
    assert rows[2][2:5] == ["0.50", "8", "2"] and rows[4][2:5] == ["0.25", "9", "2"]
    assert rows[3][5:7] == ["10.5 ± 6.4", "11.50 ± 6.35"]
    assert rows[0][7] == "reverse %" and rows[4][7] == "22.5 ± 6.4"
    pytest.importorskip("matplotlib")
    compute, tokens = cures_report.figure(LINES).axes
    drawn = {c.get_label(): np.asarray(c[0].get_ydata(), float) for c in compute.containers}
    for key, label in cures_report.NAMES.items():
        place = list(cures_report.COLUMNS.values()).index(key)
        np.testing.assert_allclose(drawn[label], [place + 0.5, place + 10.5])
    assert [x.get_text() for x in tokens.get_xticklabels()] == ["reversed"]
    assert [ax.get_title() for ax in (compute, tokens)] == ["equal compute", "equal tokens"]
    assert [ax.get_ylabel() for ax in (compute, tokens)] == ["share of answers (%)", ""]
    places = np.stack([np.asarray(c[0].get_xdata(), float) for c in compute.containers])
    np.testing.assert_array_equal(np.round(places), [[0, 1]] * 3)  # at its remedy,
    assert (np.diff(places, axis=0) > 0.1).all()  # and beside one another in the legend's order
    assert artists.entries(compute.figure.legends[0]) == list(cures_report.NAMES.values())
    artists.hides_nothing(compute.figure)


@pytest.mark.parametrize(
    ("claim", "values", "want"),
    [
        (1, {"reversed": 80.0}, "undecided"),
        (1, {"reversed": 80.1}, "holds"),
        (1, {"reversed": 50.0}, "undecided"),
        (1, {"reversed": 49.9}, "fails"),
        (2, {"copies": 20.0, "diffusion": 30.0}, "undecided"),
        (2, {"copies": 20.1, "diffusion": 20.1}, "holds"),
        (2, {"copies": 10.0, "diffusion": 60.0}, "undecided"),
        (2, {"copies": 60.0, "diffusion": 9.9}, "fails"),
        (3, {"identity": (10.0, 31.0)}, "undecided"),
        (3, {"identity": (9.9, 31.0)}, "holds"),
        (3, {"identity": (9.9, 30.0)}, "undecided"),
        (3, {"identity": (20.0, 31.0)}, "undecided"),
        (3, {"identity": (20.1, 31.0)}, "fails"),
        (4, {"uniform_masked": 5.0}, "undecided"),
        (4, {"uniform_masked": 4.9}, "holds"),
        (4, {"uniform_masked": 10.0}, "undecided"),
        (4, {"uniform_masked": 10.1}, "fails"),
        (5, {"weight_decay": 4.9, "dropout": 5.0}, "undecided"),
        (5, {"weight_decay": 4.9, "dropout": 4.9}, "holds"),
        (5, {"weight_decay": 10.0, "dropout": 1.0}, "undecided"),
        (5, {"weight_decay": 1.0, "dropout": 10.1}, "fails"),
        (6, {"reversed": 90.0, "exposure": 80.0}, "undecided"),
        (6, {"reversed": 90.0, "exposure": 79.9}, "holds"),
        (6, {"reversed": 90.0, "exposure": 87.0}, "undecided"),
        (6, {"reversed": 90.0, "exposure": 87.1}, "fails"),
        (7, {"diffusion": (0.0, 0.0, 6.0), "none": (0.0, 0.0, 6.0)}, "undecided"),
        (7, {"diffusion": (0.0, 0.0, 6.1), "none": (0.0, 0.0, 6.0)}, "holds"),
        (7, {"diffusion": (0.0, 0.0, 5.0), "none": (0.0, 0.0, 6.0)}, "undecided"),
        (7, {"diffusion": (0.0, 0.0, 4.9), "none": (0.0, 0.0, 6.0)}, "fails"),
    ],
)
def test_a_tie_with_a_threshold_decides_nothing(claim, values, want):
    lines = remedy_lines.known(values, system.REMEDIES)
    row = cures_report.claims(lines)[claim - 1]
    assert row[0].startswith(f"{claim}.") and row[2] == want


def test_cells_are_compared_by_the_seeds_that_both_have():
    """In whatever order their lines stand; a seed of one cell alone has nothing to be less than."""

    def line(remedy, seed, reverse):
        return {"matching": "compute", "remedy": remedy, "seed": seed, "reverse": reverse}

    lines = [line("a", 0, 50.0), line("a", 1, 70.0), line("a", 2, 1.0)]
    lines += [line("b", 3, 99.0), line("b", 1, 20.0), line("b", 0, 10.0)]
    cells = ("compute", "a"), ("compute", "b")
    got = cures_report.points_more(lines, "reverse", *cells)  # 50 − 10 and 70 − 20
    np.testing.assert_allclose(got, [45, 45 - 63.531, 45 + 63.531], atol=1e-3)
    less = cures_report.points_more(lines, "reverse", *cells[::-1])
    np.testing.assert_allclose(less, [-45, -45 - 63.531, -45 + 63.531], atol=1e-3)
    assert np.isnan(cures_report.points_more(lines[:3], "reverse", *cells)).all()
    for more, want in ((60.0004, 50), (60.0006, 50.001)):  # to a thousandth of a point
        tie = [line("a", 0, more), line("b", 0, 10.0)]
        assert cures_report.points_more(tie, "reverse", *cells).estimate == want


def test_a_claim_says_its_numbers_to_a_tenth():
    lines = remedy_lines.known({"reversed": 90.04, "exposure": 79.9}, system.REMEDIES)
    rows = cures_report.claims(lines)
    assert rows[0][1] == "`reversed` 90.0 (90.0 to 90.0)"
    told = "at equal exposure 79.9 (79.9 to 79.9); points less 10.1 (10.1 to 10.1)"
    assert rows[5][1] == told


def test_a_cell_of_one_seed_has_a_mean_and_no_interval():
    """A study that is still running, of which the first seed is there."""
    first = [line for line in LINES if line["seed"] == LINES[0]["seed"]]
    rows = [row.strip("| ").split(" | ") for row in cures_report.table(first).splitlines()]
    assert rows[2][:5] == ["compute", "none", "0.50", "8", "1"] and "±" not in "".join(rows[2])


def test_claims_go_by_the_thresholds_of_the_page():
    known = {
        ("none", "compute"): dict(reverse=1.0, incorrect=2.0),
        ("reversed", "compute"): dict(reverse=90.0),
        ("reversed", "exposure"): dict(reverse=70.0),
        ("copies", "compute"): dict(reverse=8.0),
        ("diffusion", "compute"): dict(reverse=60.0, incorrect=9.0),
        ("identity", "compute"): dict(reverse=5.0, copying=20.0),
        ("uniform_masked", "compute"): dict(reverse=20.0),
        ("weight_decay", "compute"): dict(reverse=1.0),
        ("dropout", "compute"): dict(reverse=1.0),
    }
    lines = [
        {"remedy": remedy, "matching": matching, "seed": seed}
        | dict.fromkeys(cures_report.COLUMNS.values(), 0.0)
        | {key: value + seed for key, value in values.items()}
        for (remedy, matching), values in known.items()
        for seed in (0, 1, 2)
    ]
    rows = cures_report.claims(lines[::-1])
    assert [row[0][0] for row in rows] == list("1234567")
    # Half an interval is Student's 4.30 / √3: 2.5.
    assert rows[0][1] == "`reversed` 91.0 (88.5 to 93.5)"
    assert rows[2][1] == "reverse 6.0 (3.5 to 8.5); copying 21.0 (18.5 to 23.5)"
    assert rows[4][1] == "`weight_decay` 2.0 (−0.5 to 4.5); `dropout` 2.0 (−0.5 to 4.5)"
    assert rows[5][1] == "at equal exposure 71.0 (68.5 to 73.5); points less 20.0 (20.0 to 20.0)"
    assert [row[2] for row in rows] == [
        "holds", "undecided", "undecided", "fails", "holds", "holds", "holds"
    ]  # fmt: skip
    near = [line | {key: line[key] - 9 for key in ("reverse", "copying")} for line in lines]
    assert [row[2] for row in cures_report.claims(near)] == [
        "undecided", "fails", "undecided", "undecided", "holds", "holds", "holds"
    ]  # fmt: skip
    tied = [line | {"reverse": 72.9999995 + line["seed"]} if line["matching"] == "exposure"
            else line | {"reverse": 76.0 + line["seed"]} for line in lines]  # fmt: skip
    assert cures_report.claims(tied)[5][2] == "undecided"
    one = [line for line in lines if line["seed"] == 0]
    assert {row[2] for row in cures_report.claims(one)} == {"undecided"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(seeds=(0,)), "intervals over seeds need at least two"),
        (dict(steps=10, evaluations=4), "multiple of 2 x --evaluations=4"),
        (dict(remedies=("identity",), matchings=("exposure",)), "no reverse to match"),
        (dict(remedies=("none",), matchings=("tokens",)), "the same as without matching"),
    ],
)
def test_bad_flags(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **changes)


@pytest.mark.slow
def test_every_remedy_is_a_run(tmp_path):
    plan = [system.Task(remedy, "compute", TINY).run() for remedy in system.REMEDIES]
    lines = runs.sweep(plan, TINY.seeds, tmp_path, dry_run=True)
    assert all(line["flops"] > 0 for line in lines) and len(lines) == len(system.REMEDIES)


# A remedy of each objective: the kill test of `cures` trains three others.
@pytest.mark.slow
@pytest.mark.parametrize("remedy", ["segments", "uniform_masked", "diffusion_reversed"])
def test_a_remedy_trains_and_is_asked(remedy, tmp_path):
    task = system.Task(remedy, "compute", TINY)
    lines = runs.sweep([task.run()], TINY.seeds, tmp_path, progress=False)
    assert len(lines) == 2
    assert {key for key in system.OUTCOMES if 0 <= lines[0][key]} == set(system.OUTCOMES)


def test_a_masked_model_says_no_mask():
    task = system.Task("diffusion", "compute", TINY)
    sure = 9.0 * jax.nn.one_hot(MASK, VOCAB_SIZE)
    task.apply_fn = lambda params, tokens_BL: jnp.tile(sure, (*tokens_BL.shape, 1))
    p_ELV = task.read(None, np.array([[UPPER[3], MASK, MASK, MASK]]))
    np.testing.assert_allclose(p_ELV[..., :MASK], 1 / (VOCAB_SIZE - 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("remedy", "how"),
    [
        ("none", dict(prompt_length=1, bos_id=MASK)),
        ("uniform_masked", dict(order="left_to_right", mask_id=MASK)),
        ("diffusion", dict(order="random", mask_id=MASK)),
    ],
)
def test_a_remedy_generates_as_it_reads(remedy, how, monkeypatch):
    asked = []
    for name in ("unmask", "left_to_right"):
        said = lambda apply_fn, params, rows, key, **how: (asked.append(how), rows)[1]  # noqa: E731
        monkeypatch.setattr(system.decoding, name, said)
    task = system.Task(remedy, "compute", TINY)
    task.generate(None, np.zeros((1, 4), np.int32), jax.random.key(0))
    assert asked == [how | {"top_k": TINY.top_k}]


def test_remedies_are_trained_by_their_objective_and_decay(monkeypatch):
    decays = []
    make = lambda rate, **how: decays.append(how["weight_decay"])  # noqa: E731
    monkeypatch.setattr(system.training, "make_optimizer", make)
    told = {
        remedy: system.Task(remedy, "compute", TINY).run().step.keywords["objective"]
        for remedy in ("none", "uniform_masked", "diffusion", "weight_decay")
    }
    assert decays == [0.0, 0.0, 0.0, 1.0]
    assert told["none"].keywords == {"bos_id": MASK}
    assert told["diffusion"].func is system.objectives.masked_diffusion
    assert told["uniform_masked"].func is system.objectives.masked_lm
    assert told["uniform_masked"].keywords == dict(mask_id=MASK, rate=None, keep=0, random=0)


@pytest.mark.parametrize("remedy", system.REMEDIES)
def test_networks_differ_in_dropout_and_in_what_they_read_alone(remedy):
    network = system.Task(remedy, "compute", TINY).model.config
    assert (network.width, network.num_layers, network.num_heads) == (TINY.width, 1, 1)
    assert network.causal == (remedy not in ("diffusion", "diffusion_reversed"))
    assert network.dropout == (0.3 if remedy == "dropout" else 0.02)
    if network.causal:  # a copy stands before the row
        assert network.max_len == TINY.length * (1 + (remedy == "copies"))


def test_the_chance_of_a_choice_is_one_in_the_pairs(monkeypatch):
    said = []
    spy = lambda path, text, *_, **__: said.append(text)  # noqa: E731
    monkeypatch.setattr(cures_report.report, "write", spy)
    workdir = types.SimpleNamespace(path=None, results=list)
    cures_report.write(workdir, types.SimpleNamespace(length=6, lone=4, width=8), [])
    assert "L = 6, 22 pairs and 4 letters without a partner; one layer × 8." in said[0]
    assert said[0].endswith("Chance of choice is 4.5 %.")
