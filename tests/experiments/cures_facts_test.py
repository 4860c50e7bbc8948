"""Remedies on facts: rows by hand, answers that are known through what is reported, verdicts."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import remedy_lines

from dirasym import runs
from dirasym.analysis.questions import Recalled
from dirasym.analysis.recall import TextRecall, TokenRecall
from dirasym.data import facts
from experiments import cures_facts as page
from experiments.reports import cures_facts as report
from experiments.systems import cures
from experiments.systems import cures_facts as system

TINY = system.Config(
    num_pairs=3, teachers=2, both_ways=2, name_words=2, heads=2, seeds=(0, 1), steps=8,
    evaluations=2, batch_size=5, width=8,
)  # fmt: skip
SYMMETRIC = [f"diffusion_{kind}" for kind in
             ("symmetric", "symmetric_names", "entities", "entities_names")]  # fmt: skip
ASKED, TAUGHT, BOTH = slice(3), slice(3, 5), slice(5, 9)


def _texts(rows_BL, config=TINY):
    return [config.tokenizer.decode(row) for row in rows_BL]


def _names(config=TINY):
    """(parents, children) of the pairs that are asked, then of the teachers and pupils."""
    reverse = [query.answers[0] for query in config.facts.reverse]
    of_teachers = [statement.answer for statement in config.facts.train[TAUGHT]]
    return reverse, [query.answers[0] for query in config.facts.forward] + of_teachers


def test_asked_pairs_come_first_then_teachers_who_are_asked_for_a_parent_last():
    told = TINY.facts
    parents, children = _names()
    texts = [f"{prompt} {answer}" for prompt, answer in told.train]
    assert texts[ASKED] == [f"Now {a}'s child is {b}" for a, b in zip(parents, children)][:3]  # noqa: B905
    assert texts[TAUGHT] == [
        f"Now {a}'s teacher is {b}" for a, b in zip(parents[3:], children[3:], strict=True)
    ]
    assert [" child is " in x for x in texts[BOTH]] == [True, True, False, False]
    assert [query.prompt for query in told.reverse] == [f"Now {b}'s parent is" for b in children]
    assert len(told.forward) == 3 and told.forward[1].prompt == f"Now {parents[1]}'s child is"
    assert len({*parents, *children}) == 10 and len(parents[0].split()) == 2
    assert not any(name in text for name in parents + children for text in texts[BOTH])


def test_the_data_seed_draws_the_facts():
    for seed in (0, 5):
        people = facts.invent_parent_child(3 + 2 + 2, seed, 2)
        parents, children = _names(dataclasses.replace(TINY, data_seed=seed))
        assert parents == [x.parent for x in people[:5]]
        assert children == [x.child for x in people[:5]]
    assert parents != _names()[0]


def test_rows_of_each_remedy_by_hand():
    (a, *_), (b, *_) = _names()
    a1, a2, b1, b2 = *a.split(), *b.split()
    first = {
        "none": f"Now {a}'s child is {b} <eos>",
        "inverse": f"Now {b}'s parent is {a} <eos>",
        "reversed": f"Now {b2} {b1} is child's {a2} {a1} <eos>",
        "entities": f"Now {b} is child's {a} <eos>",
        "symmetric": f"Now {b}'s child is {a} <eos>",
    }
    for kind, text in first.items():
        assert _texts(system.remedy_rows(kind, TINY)["tokens_BL"])[0] == text
    plain = system.remedy_rows("none", TINY)
    inverse = system.remedy_rows("inverse", TINY)
    np.testing.assert_array_equal(inverse["tokens_BL"][3:], plain["tokens_BL"][3:])
    assert all(" parent is " in text for text in _texts(inverse["tokens_BL"])[:3])
    np.testing.assert_array_equal(plain["unit_BL"], [[0, 1, 1, 3, 4, 5, 6, 6, 8]] * 9)
    identity = _texts(system.remedy_rows("identity", TINY)["tokens_BL"])
    names = {text.removeprefix("Now ").split("'s")[0] for text in identity}
    assert identity == [f"Now {name}'s name is {name} <eos>" for name in sorted(names)]
    assert len(names) == 2 * (3 + 2 + 2) and a in names and b in names


def test_symmetric_rows_exchange_the_names_of_every_row_and_keep_its_words():
    """Names of one word and of three, and a row of each kind: asked, teacher, both ways."""
    for words in (1, 3):
        config = dataclasses.replace(TINY, name_words=words)
        told = config.facts.train
        owners = [x.prompt.removeprefix("Now ").split("'s ")[0] for x in told]
        relations = [x.prompt.split("'s ")[1] for x in told]
        assert {*relations} == {"child is", "teacher is", "parent is"}
        assert _texts(system.remedy_rows("symmetric", config)["tokens_BL"], config) == [
            f"Now {x.answer}'s {relation} {owner} <eos>"
            for x, relation, owner in zip(told, relations, owners, strict=True)
        ]


@pytest.mark.parametrize("kind", ["entities", "symmetric"])
def test_a_name_that_changed_its_place_is_hidden_as_a_whole(kind):
    rows = system.remedy_rows(kind, TINY)
    ids = {frozenset(x) for names in _names() for x in TINY.tokenizer.encode(names)}
    for tokens, units in zip(rows["tokens_BL"][:5], rows["unit_BL"][:5], strict=True):
        groups = [tokens[units == place].tolist() for place in sorted({*units.tolist()})]
        assert [len(group) for group in groups] == [1, 2, 1, 1, 1, 2, 1]
        assert {frozenset(group) for group in groups if len(group) == 2} <= ids
        np.testing.assert_array_equal(tokens[units], [g[0] for g in groups for _ in g])


def test_segments_are_drawn_anew_each_round_and_are_three_words_at_most(monkeypatch):
    asked = []

    def known(tokens, longest, *, seed):
        asked.append((longest, seed))
        return tokens

    monkeypatch.setattr(system.remedies, "reversed_segments", known)
    rows = system.remedy_rows("segments", TINY)["tokens_BL"]
    assert asked == [(3, seed) for seed in range(cures.DRAWS)]
    np.testing.assert_array_equal(
        rows, np.tile(system.remedy_rows("none", TINY)["tokens_BL"], (cures.DRAWS, 1))
    )


def test_exposure_is_the_share_of_the_asked_pairs_rows():
    def of(kind):
        return system.exposure(system.remedy_rows(kind, TINY)["tokens_BL"], TINY)

    assert of("none") == 0 and of("inverse") == of("reversed") == of("entities") == 1
    assert of("symmetric") == 1
    plain = system.remedy_rows("none", TINY)["tokens_BL"]
    turned = system.remedy_rows("entities", TINY)["tokens_BL"]
    two_rounds = np.concatenate([plain, plain])
    two_rounds[10] = turned[1]  # of six rows of asked pairs one
    two_rounds[[4, 7, 17]] = turned[[4, 7, 8]]  # of others, which do not count
    assert system.exposure(two_rounds, TINY) == 1 / 6


@pytest.mark.parametrize("remedy", ["inverse", "reversed", "entities", "segments"])
def test_at_equal_exposure_a_sixth_of_the_asked_rows_shows_the_reverse(remedy):
    task = system.Task(remedy, "exposure", dataclasses.replace(TINY, num_pairs=30))
    parents, children = (
        [ids[0] for ids in task.config.tokenizer.encode(names[:30])]
        for names in _names(task.config)
    )
    shown = []
    for row in task.data["tokens_BL"].tolist():
        if row[1] in parents or any(t in children for t in row):
            places = [[row.index(t) for t in side if t in row] for side in (parents, children)]
            shown.append(places[0] > places[1])
    assert np.mean(shown) == pytest.approx(1 / 6, abs=0.02)
    assert task.steps == 8


def test_shares_and_steps_of_the_matchings():
    def of(remedy, matching):
        task = system.Task(remedy, matching, TINY)
        return task.share, task.steps

    assert of("none", "compute") == of("diffusion_names", "compute") == (0, 8)
    assert of("inverse", "compute") == of("diffusion_inverse", "compute") == (0.5, 8)
    assert of("inverse", "tokens") == of("identity", "tokens") == (0.5, 16)
    for remedy in ("diffusion_symmetric", "diffusion_symmetric_names", "diffusion_entities"):
        assert of(remedy, "compute") == (0.5, 8) and of(remedy, "tokens") == (0.5, 16)
    assert of("copies", "compute") == (0, 4) and of("copies", "tokens") == (0, 8)
    assert of("entities", "exposure") == (pytest.approx(1 / 6), 8)
    rows = _texts(system.Task("inverse", "compute", TINY).data["tokens_BL"])
    assert sum(" parent is " in text for text in rows) == 3 + 2 * 2  # inverses, and both ways


def test_what_each_remedy_trains_on():
    plain = system.remedy_rows("none", TINY)
    rows = {name: system.Task(name, "compute", TINY).data for name in system.REMEDIES}
    assert rows["diffusion"].keys() == {"tokens_BL"} == rows["uniform_masked"].keys()
    np.testing.assert_array_equal(rows["diffusion_names"]["unit_BL"], plain["unit_BL"])
    joined = rows["diffusion_inverse"]
    assert joined["unit_BL"].shape == joined["tokens_BL"].shape == (18, 9)
    for kind in ("symmetric", "entities"):
        told = rows[f"diffusion_{kind}_names"]
        np.testing.assert_array_equal(told["unit_BL"], np.tile(plain["unit_BL"], (2, 1)))
        assert rows[f"diffusion_{kind}"].keys() == {"tokens_BL"}
        np.testing.assert_array_equal(rows[f"diffusion_{kind}"]["tokens_BL"], told["tokens_BL"])
    copies = rows["copies"]
    assert copies["tokens_BL"].shape == (9 * cures.DRAWS, 18)
    assert copies["scored_BL"][:, 9:].all() and not copies["scored_BL"][:, :9].any()
    mask = TINY.tokenizer.mask_id
    draws = (copies["tokens_BL"] == mask).reshape(cures.DRAWS, 9, 18)
    assert not draws[..., 9:].any() and (draws[0] != draws[1]).any()


@pytest.mark.parametrize(
    "kind", ["inverse", "reversed", "entities", "identity", "diffusion_symmetric"]
)
def test_a_remedy_adds_the_rows_of_its_name(kind):
    told = _texts(system.Task(kind, "compute", TINY).data["tokens_BL"])
    added = _texts(system.remedy_rows(kind.removeprefix("diffusion_"), TINY)["tokens_BL"])
    plain = _texts(system.remedy_rows("none", TINY)["tokens_BL"])
    assert set(told) == {*plain, *added} and set(added) - set(plain)


def test_networks_differ_in_attention_and_dropout_alone():
    of = {name: system.Task(name, "compute", TINY).model.config for name in system.REMEDIES}
    base = of["none"]
    assert (base.num_heads, base.width, base.num_layers, base.causal) == (2, 8, 1, True)
    assert base.dropout == 0.02 and of["dropout"] == dataclasses.replace(base, dropout=0.3)
    masked = [name for name in of if name.startswith("diffusion")]
    assert len(masked) == 7
    for name in masked:
        assert of[name] == dataclasses.replace(base, causal=False)
    for name in ("inverse", "entities", "identity", "uniform_masked", "weight_decay"):
        assert of[name] == base


def test_remedies_are_trained_by_their_objective_and_decay(monkeypatch):
    decays = []
    make = lambda rate, **how: decays.append(how["weight_decay"])  # noqa: E731
    monkeypatch.setattr(cures.training, "make_optimizer", make)
    told = {
        name: system.Task(name, "compute", TINY).run().step.keywords["objective"]
        for name in ("none", "diffusion_inverse", "weight_decay", "uniform_masked", *SYMMETRIC)
    }
    assert decays == [0.0, 0.0, 1.0, *[0.0] * 5]
    assert all(told[x].func is cures.objectives.masked_diffusion for x in SYMMETRIC)
    assert told["none"].keywords == {"bos_id": None}  # "Now" stands before every name
    assert told["diffusion_inverse"].func is cures.objectives.masked_diffusion
    mask = TINY.tokenizer.mask_id
    assert told["uniform_masked"].keywords == dict(mask_id=mask, rate=None, keep=0, random=0)


def test_a_question_stands_behind_its_copy_whose_answer_is_masked():
    task = system.Task("copies", "compute", TINY)
    (a, *_), (b, *_) = _names()
    forward = f"Now {a}'s child is"
    asked = task.questions
    assert _texts(asked.tokens_EL)[0] == f"{forward} <mask> <mask> <eos> {forward}"
    assert asked.tokens_EL.shape == asked.valid_EL.shape == (3 + 3 + 2, 15)
    cloze, _ = asked.first["reverse"]
    reverse = f"Now {b}'s parent is"
    assert _texts(cloze.tokens_EL)[0] == f"{reverse} <mask> <mask> <eos> {reverse}"
    assert cloze.position_E.tolist() == [14] * 5
    assert cloze.target_E[0] == TINY.tokenizer.encode([a])[0][0]
    assert asked.mask_id is None and asked.num_new == 3
    plain = system.Task("none", "compute", TINY).questions
    assert _texts(plain.tokens_EL)[0] == forward and plain.first["reverse"][0].position_E[0] == 5


@pytest.mark.parametrize("remedy", ["none", "copies", "diffusion", "uniform_masked"])
def test_known_answers_come_out_of_the_raw_weights(remedy):
    task = system.Task(remedy, "compute", TINY)
    parents, children = _names()
    encode = TINY.tokenizer.encode
    right = encode([*children[:3], *parents])
    copied = encode(children)
    parents, children = encode(parents), encode(children)
    end = TINY.tokenizer.eos_id
    first = {ids[0]: parents[n][0] for n, ids in enumerate(children)}
    first |= {ids[0]: children[n][0] for n, ids in enumerate(parents)}

    def generate(params, key, tokens_BL, valid_BL):
        """Two of three children, one of three parents; one parent is a copy; one pupil of two."""
        assert params is raw
        said = [right[0], right[1], right[0], right[3], copied[1], right[3], right[6], right[6]]
        return np.array([[*ids, end] for ids in said])

    def apply_fn(params, tokens_BL, valid_BL=None):
        """The first word of the true name has a logit of 1, that of the first parent 2."""
        tokens = np.asarray(tokens_BL)
        logits = np.zeros((*tokens.shape, TINY.tokenizer.vocab_size), np.float32)
        for row, ids in enumerate(tokens):
            given = [t for t in ids if t in first][-1]
            logits[row, :, parents[0][0]] = 2
            logits[row, :, first[given]] += 1
        return logits

    raw = {"a": np.zeros(1)}
    task.__dict__["generate"] = generate

    def read(params, tokens_BL, valid_BL=None):
        assert params.keys() == raw.keys()
        shape = (*tokens_BL.shape, TINY.tokenizer.vocab_size)
        return jax.pure_callback(
            apply_fn, jax.ShapeDtypeStruct(shape, np.float32), params, tokens_BL
        )

    task.apply_fn = read
    state = types.SimpleNamespace(params=raw, ema_params={}, key=jax.random.key(0))
    got = task.evaluate(state)
    assert set(got) == set(cures.OUTCOMES)
    assert got["forward"] == pytest.approx(200 / 3) and got["reverse"] == pytest.approx(100 / 3)
    assert got["copying"] == pytest.approx(100 / 3) and got["incorrect"] == 50
    assert got["choice"] == pytest.approx(100 / 3)  # of the first parent's child alone
    others = TINY.tokenizer.vocab_size - 2 - (remedy in ("diffusion", "uniform_masked"))
    total = np.exp(1) + np.exp(2) + others
    assert got["forward_nll"] == pytest.approx(np.log(total) - 1, rel=1e-4)


def test_outcomes_are_of_their_questions():
    def recalled(exact, copied, nll, choice):
        exact, copied = np.array(exact, bool), np.array(copied, bool)
        nll, choice = np.array(nll, float), np.array(choice, float)
        return Recalled(
            TextRecall(exact, ~exact, copied), TokenRecall(np.exp(-nll), nll, 9 * nll, choice)
        )

    found = {
        "forward": recalled([1, 1, 0], [0, 0, 1], [1, 2, 6], [0, 0, 0]),
        "reverse": recalled([1, 0, 0, 1, 1], [0, 1, 0, 1, 0], [7] * 5, [1, np.nan, 0, 0, 0]),
    }
    got = system.outcomes(found, TINY)
    want = dict(
        forward=200 / 3, reverse=100 / 3, copying=100 / 3, incorrect=100.0, choice=50.0,
        forward_nll=3.0,
    )  # fmt: skip
    assert got == pytest.approx(want)


def test_thirty_two_cells_and_what_is_refused():
    plan = page.plan(dataclasses.replace(TINY, remedies=tuple(system.REMEDIES)), None)
    names = [(run.identity["matching"], run.identity["remedy"]) for run in plan]
    assert len(set(names)) == len(names) == 32 and len({run.name for run in plan}) == 32
    assert ("exposure", "diffusion_inverse") not in names and ("tokens", "none") not in names
    for remedy in SYMMETRIC:
        assert {m for m, name in names if name == remedy} == {"compute", "tokens"}
    assert ("exposure", "identity") not in names and ("exposure", "inverse") in names
    with pytest.raises(ValueError, match="no reverse to match"):
        dataclasses.replace(TINY, remedies=("identity",), matchings=("exposure",))
    with pytest.raises(ValueError, match=r"diffusion_symmetric_names .*no reverse to match"):
        wanted = ("diffusion_symmetric_names",)
        dataclasses.replace(TINY, remedies=wanted, matchings=("exposure",))
    with pytest.raises(ValueError, match="intervals over seeds need at least two"):
        dataclasses.replace(TINY, seeds=(0,))


@pytest.mark.slow
def test_a_remedy_of_each_kind_trains_and_is_asked(tmp_path):
    for remedy in ("entities", "copies", "uniform_masked", "diffusion_symmetric_names"):
        task = system.Task(remedy, "compute", TINY)
        lines = runs.sweep([task.run()], TINY.seeds, tmp_path / remedy, progress=False)
        assert len(lines) == 2 and all(np.isfinite(lines[0][key]) for key in cures.OUTCOMES)


@pytest.mark.parametrize(
    ("claim", "values", "want"),
    [
        (1, {"inverse": 80.0}, "undecided"),
        (1, {"inverse": 80.1}, "holds"),
        (1, {"inverse": 50.0}, "undecided"),
        (1, {"inverse": 49.9}, "fails"),
        (2, {"entities": 50.1, "reversed": 19.9}, "holds"),
        (2, {"entities": 50.0, "reversed": 19.9}, "undecided"),
        (2, {"entities": 50.1, "reversed": 20.0}, "undecided"),
        (2, {"entities": 19.9, "reversed": 0.0}, "fails"),
        (2, {"entities": 20.0, "reversed": 50.0}, "undecided"),
        (2, {"entities": 90.0, "reversed": 50.1}, "fails"),
        (3, {"copies": 20.1, "diffusion": 20.1}, "holds"),
        (3, {"copies": 20.0, "diffusion": 20.1}, "undecided"),
        (3, {"copies": 20.1, "diffusion": 20.0}, "undecided"),
        (3, {"copies": 10.0, "diffusion": 20.0}, "undecided"),
        (3, {"copies": 9.9, "diffusion": 90.0}, "fails"),
        (4, {"identity": (9.9, 30.1)}, "holds"),
        (4, {"identity": (10.0, 30.1)}, "undecided"),
        (4, {"identity": (9.9, 30.0)}, "undecided"),
        (4, {"identity": (20.0, 90.0)}, "undecided"),
        (4, {"identity": (20.1, 90.0)}, "fails"),
        (5, {"uniform_masked": 4.9}, "holds"),
        (5, {"uniform_masked": 5.0}, "undecided"),
        (5, {"uniform_masked": 10.0}, "undecided"),
        (5, {"uniform_masked": 10.1}, "fails"),
        (6, {"weight_decay": 4.9, "dropout": 4.9}, "holds"),
        (6, {"weight_decay": 5.0, "dropout": 4.9}, "undecided"),
        (6, {"weight_decay": 4.9, "dropout": 10.0}, "undecided"),
        (6, {"weight_decay": 4.9, "dropout": 10.1}, "fails"),
        (7, {"diffusion_names": 60.1, "diffusion": 50.0}, "holds"),
        (7, {"diffusion_names": 60.0, "diffusion": 50.0}, "undecided"),
        (7, {"diffusion_names": 53.0, "diffusion": 50.0}, "undecided"),
        (7, {"diffusion_names": 52.9, "diffusion": 50.0}, "fails"),
        (8, {"diffusion_inverse": 80.1}, "holds"),
        (8, {"diffusion_inverse": 80.0}, "undecided"),
        (8, {"diffusion_inverse": 50.0}, "undecided"),
        (8, {"diffusion_inverse": 49.9}, "fails"),
        (9, {"inverse": 90.0, "exposure": 79.9}, "holds"),
        (9, {"inverse": 90.0, "exposure": 80.0}, "undecided"),
        (9, {"inverse": 90.0, "exposure": 87.0}, "undecided"),
        (9, {"inverse": 90.0, "exposure": 87.1}, "fails"),
        (10, {"diffusion": (0, 0, 6.1), "none": (0, 0, 6.0)}, "holds"),
        (10, {"diffusion": (0, 0, 6.0), "none": (0, 0, 6.0)}, "undecided"),
        (10, {"diffusion": (0, 0, 5.0), "none": (0, 0, 6.0)}, "undecided"),
        (10, {"diffusion": (0, 0, 4.9), "none": (0, 0, 6.0)}, "fails"),
        (11, {"diffusion_symmetric": 80.1, "diffusion_entities": 80.1}, "holds"),
        (11, {"diffusion_symmetric": 80.0, "diffusion_entities": 80.1}, "undecided"),
        (11, {"diffusion_symmetric": 80.1, "diffusion_entities": 80.0}, "undecided"),
        (11, {"diffusion_symmetric": 50.0, "diffusion_entities": 90.0}, "undecided"),
        (11, {"diffusion_symmetric": 49.9, "diffusion_entities": 90.0}, "fails"),
        (11, {"diffusion_symmetric": 90.0, "diffusion_entities": 49.9}, "fails"),
        (12, {"diffusion_symmetric": (0, 0, 50.1), "diffusion_entities": (0, 0, 50.1)}, "holds"),
        (
            12,
            {"diffusion_symmetric": (99, 99, 50.0), "diffusion_entities": (0, 0, 90)},
            "undecided",
        ),
        (12, {"diffusion_symmetric": (0, 0, 90), "diffusion_entities": (0, 0, 20.0)}, "undecided"),
        (12, {"diffusion_symmetric": (0, 0, 90), "diffusion_entities": (0, 0, 19.9)}, "fails"),
        (12, {"diffusion_symmetric": (0, 0, 19.9), "diffusion_entities": (0, 0, 90)}, "fails"),
        (13, {"diffusion_symmetric_names": 60.1, "diffusion_names": 30.0}, "holds"),
        (13, {"diffusion_symmetric_names": 60.0, "diffusion_names": 30.0}, "undecided"),
        (13, {"diffusion_symmetric_names": 40.0, "diffusion_names": 30.0}, "undecided"),
        (13, {"diffusion_symmetric_names": 39.9, "diffusion_names": 30.0}, "fails"),
        (
            14,
            {"diffusion_symmetric_names": (0, 0, 60.1), "diffusion_inverse": (0, 0, 30.0)},
            "holds",
        ),
        (
            14,
            {"diffusion_symmetric_names": (0, 0, 60.0), "diffusion_inverse": (0, 0, 30.0)},
            "undecided",
        ),
        (
            14,
            {"diffusion_symmetric_names": (0, 0, 40.0), "diffusion_inverse": (0, 0, 30.0)},
            "undecided",
        ),
        (
            14,
            {"diffusion_symmetric_names": (90, 90, 39.9), "diffusion_inverse": (0, 0, 30.0)},
            "fails",
        ),
        (15, {"diffusion_symmetric_names": 60.1, "diffusion_symmetric": 50.0}, "holds"),
        (15, {"diffusion_symmetric_names": 60.0, "diffusion_symmetric": 50.0}, "undecided"),
        (15, {"diffusion_symmetric_names": 53.0, "diffusion_symmetric": 50.0}, "undecided"),
        (15, {"diffusion_symmetric_names": 52.9, "diffusion_symmetric": 50.0}, "fails"),
    ],
)
def test_claims_go_by_the_thresholds_of_the_page_and_a_tie_decides_nothing(claim, values, want):
    lines = remedy_lines.known(values, system.REMEDIES, mark="inverse")
    row = report.claims(lines)[claim - 1]
    assert row[0].startswith(f"{claim}. ") and row[2] == want


def test_a_report_says_what_was_asked(monkeypatch):
    said = []
    spy = lambda workdir, claims, of: said.append((workdir, claims, of))  # noqa: E731
    monkeypatch.setattr(report, "write_study", spy)
    report.write("there", dataclasses.replace(TINY, name_words=1), [])
    ((workdir, claims, of),) = said
    assert (workdir, claims) == ("there", report.claims)
    assert of.startswith("Invented facts: 3 pairs told one way and asked both, 2 told both ways, 2")
    assert "names of 1 word; one layer × 8." in of and of.endswith("Chance of choice is 20.0 %.")
    report.write("there", TINY, [])
    assert "names of 2 words; one layer" in said[1][2]
