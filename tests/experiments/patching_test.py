"""Exchanged parts are those of weights that are told apart; verdicts are of lines made by hand."""

import dataclasses
import json

import artists
import jax
import numpy as np
import pytest

from dirasym.data import case_pairs
from dirasym.data.case_pairs import NUM_LETTERS, PAD
from dirasym.workdir import WorkDir
from experiments import patching as page
from experiments.reports import causes as causes_tables
from experiments.reports import patching as tables
from experiments.systems import causes

CONFIG = page.Config(length=4, width=8, steps=20, eval_every=4, batch_size=8, seeds=(0, 1, 2))
VALUES = {"blocks_0/attention/value/kernel", "blocks_0/attention/out/kernel"}
MLP = {f"blocks_0/mlp/{name}/{leaf}" for name in ("up", "down") for leaf in ("kernel", "bias")}
ROUTING = {"blocks_0/attention/query/kernel", "blocks_0/attention/key/kernel"}
ENDS = {"embed/embedding", "head/kernel", "head/bias"}
LEAVES = {
    "values": VALUES, "mlp": MLP, "storage": VALUES | MLP, "routing": ROUTING, "ends": ENDS,
}  # fmt: skip


def _filled(value, seed=0):
    """The network's parameters, every number of them the same."""
    params = causes.Task(page.MASKED, CONFIG).init(seed).params
    return jax.tree.map(lambda x: np.full(x.shape, value, np.float32), params)


@pytest.mark.parametrize("part", page.PARTS)
def test_a_part_that_is_exchanged_is_exactly_its_leaves(part):
    own = _filled(1.0)
    other = page.named(_filled(2.0))
    mixed = page.patched(own, other, part)
    assert jax.tree.structure(mixed) == jax.tree.structure(own)
    changed = {path for path, x in page.named(mixed).items() if (x == 2).all()}
    kept = {path for path, x in page.named(mixed).items() if (x == 1).all()}
    assert changed == LEAVES.get(part, set(other)) and changed | kept == set(other)
    assert (page.named(own)["embed/embedding"] == 1).all()


def test_rows_that_tell_the_reverse_have_every_placement_with_B_before_a():
    a_only = page.Pupil(page.A_ONLY, "reverse").rows(4)
    forward = page.Pupil(page.A_ONLY).rows(4)
    tokens_BL, letters = a_only["tokens_BL"], NUM_LETTERS
    first, second = np.nonzero(tokens_BL != PAD)[1].reshape(-1, 2).T
    rows = np.arange(len(tokens_BL))
    assert (tokens_BL[rows, first] == tokens_BL[rows, second] + letters).all()
    want = sorted(map(tuple, case_pairs.placements(4).tolist() * letters))
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == want
    np.testing.assert_array_equal(a_only["scored_BL"], (tokens_BL < letters) | (tokens_BL == PAD))
    assert a_only["noised_BL"].all()
    first, second = np.nonzero(forward["tokens_BL"] != PAD)[1].reshape(-1, 2).T
    assert (forward["tokens_BL"][rows, first] < letters).all()
    assert set(page.Pupil(page.NEXT, "reverse").rows(4)) == {"tokens_BL"}


def test_a_twin_begins_at_the_same_weights_and_has_other_noise(tmp_path):
    planned = page.plan(dataclasses.replace(CONFIG, pairs=("answer", "target")), tmp_path)
    told = [(run.identity["predicted"], run.identity["told"]) for run in planned[::2]]
    assert told == [("B", "forward"), ("A", "reverse"), ("A", "forward")]
    for own, twin in zip(planned[::2], planned[1::2], strict=True):
        assert (own.identity["training"], twin.identity["training"]) == ("own", "twin")
        assert own.identity | {"training": "twin"} == twin.identity
        assert own.step is twin.step and own.data(0) is twin.data(5)
        one, two = own.init(3), twin.init(3)
        jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
        assert (jax.random.key_data(one.key) != jax.random.key_data(two.key)).any()
        rows = page.Pupil(page.Cell(predicted=own.identity["predicted"]), own.identity["told"])
        np.testing.assert_array_equal(own.data(0)["tokens_BL"], rows.rows(4)["tokens_BL"])


def test_weights_that_are_kept_and_answers_are_the_moving_average(tmp_path):
    (own, _) = page.trained(page.PAIRS["order"][0], CONFIG).values()
    state = own.init(0)
    state = state.replace(ema_params=_filled(0.25), params=_filled(0.5))
    assert own.finish(state, tmp_path) == {}
    with np.load(tmp_path / "weights.npz") as kept:
        assert set(kept) == set(page.named(state.params))
        assert all((kept[path] == 0.25).all() for path in kept)
    state = state.replace(ema_params=own.init(1).params)
    asked = own.evaluate(state)
    task = causes.Task(page.MASKED, CONFIG)
    want = page.answers(task, state.ema_params)
    assert set(asked) == set(want) and all(np.allclose(asked[k], want[k]) for k in want)
    history = {"loss": np.ones(3), "choice_forward": np.array([1, 7.0]), "among_forward": [2, 8.0]}
    assert own.summarize(history) == {"choice_forward": 7.0, "among_forward": 8.0}


@pytest.mark.parametrize("network", [page.MASKED, page.NEXT])
def test_P_true_in_its_case_is_known_of_a_model_that_is_known(network):
    """The letter of the pair has a logit of 2, the first one of its case 1, those of the other 9.

    P(true) over all tokens is small, while of the 26 letters of its case it is as by hand.
    """
    task = causes.Task(network, CONFIG)
    letters = {"lower": case_pairs.LOWER, "upper": case_pairs.UPPER}

    def known(params, tokens_EL, position_E, apply_fn=None):
        """Logits by the rule, of one of the task's questions."""
        asked = next(q for q in task.questions.values() if q.tokens_EL is tokens_EL)
        of, other = ("lower", "upper") if asked.target_E[0] < NUM_LETTERS else ("upper", "lower")
        logits = np.zeros((len(tokens_EL), case_pairs.VOCAB_SIZE), np.float32)
        logits[:, letters[other]] = 9
        logits[:, letters[of][0]] = 1
        logits[np.arange(len(tokens_EL)), asked.target_E] = 2
        return logits

    task.__dict__["logits"] = known
    got = page.answers(task, {})
    one, two = np.exp([1, 2])
    pairs_of_25, first_pair = two / (two + one + 24), two / (two + 25)
    want = 100 * (25 * pairs_of_25 + first_pair) / 26
    for name in task.questions:
        assert got[f"among_{name}"] == pytest.approx(want, rel=1e-5)
        assert got[f"p_{name}"] < 0.1 and got[f"choice_{name}"] == pytest.approx(100)
    assert set(got) == {f"{k}_{n}" for k in ("p", "choice", "among") for n in task.questions}


def test_who_gives_which_part_to_whom(monkeypatch):
    """The networks are numbers: what is answered is the code of own and of what was taken."""
    config = dataclasses.replace(CONFIG, pairs=("target", "answer"))
    code = {page.B_ONLY: 1000, page.A_ONLY: 2000}
    kinds = {"own": 10, "twin": 20, "untrained": 30}

    def weights(network, training, seed):
        number = code[network.cell] + kinds[training] + seed + 100 * (network.told == "reverse")
        return page.named(_filled(number))

    def probabilities(self, params):
        of = page.named(params)
        return {"own": of["final_norm/scale"][0], "value": of[min(VALUES)].max(),
                "up": of["blocks_0/mlp/up/bias"][0], "end": of["head/bias"][0]}  # fmt: skip

    monkeypatch.setattr(causes.Task, "probabilities", probabilities)
    lines = list(page.exchanges(config, weights))
    num_params = sum(x.size for x in jax.tree.leaves(_filled(0)))
    assert len(lines) == 2 * 2 * 3 * len(tables.GIVERS)
    by = {(x["pair"], x["into"], x["giver"], x["seed"]): x for x in lines}
    for pair, other_of in (("target", (2000, 1000)), ("answer", (2100, 1000))):
        for into, own in ((0, 1000), (1, other_of[0])):
            for seed in (0, 1, 2):
                given = {
                    "other": other_of[into] + 10 + seed, "twin": own + 20 + seed,
                    "untrained": own + 30 + seed, "stranger": own + 10 + (seed + 1) % 3,
                }  # fmt: skip
                for giver, number in given.items():
                    line = by[pair, into, giver, seed]
                    assert line["total_params"] == num_params
                    mine = own + 10 + seed
                    assert line["own_storage"] == line["own_ends"] == mine
                    assert line["own_all"] == line["value_all"] == number
                    assert line["value_values"] == line["value_storage"] == number
                    assert line["up_mlp"] == line["up_storage"] == line["end_ends"] == number
                    assert line["up_values"] == line["end_storage"] == line["value_mlp"] == mine
                    assert line["value_routing"] == line["up_ends"] == mine


def test_all_of_another_network_is_that_network(tmp_path):
    """Through files: training's last line, and the exchange of all, answer alike."""
    config = dataclasses.replace(CONFIG, pairs=("answer",), seeds=(0, 1))
    workdir = WorkDir(tmp_path / "run")
    planned = page.plan(config, workdir.path)
    own = {}
    for number, run in enumerate(planned):
        for seed in config.seeds:
            state = run.init(seed)
            state = state.replace(ema_params=run.init(10 + 2 * number + seed).params)
            run.finish(state, workdir.folder(run, seed))
            found = {k: float(x) for k, x in run.evaluate(state).items()}
            own[run.identity["predicted"], run.identity["training"], seed] = found
            workdir.record(run, seed, found)
    page.write(workdir, config, planned)
    read = (workdir.path / "patches.jsonl").read_text(encoding="utf-8").splitlines()
    by = {(x["into"], x["giver"], x["seed"]): x for x in map(json.loads, read)}
    untrained = causes.Task(page.B_ONLY, config)
    for seed in (0, 1):
        want = {
            "other": own["A", "own", seed], "twin": own["B", "twin", seed],
            "stranger": own["B", "own", 1 - seed],
            "untrained": page.answers(untrained, untrained.init(seed).params),
        }  # fmt: skip
        for giver, answers in want.items():
            for key, x in answers.items():
                assert by[0, giver, seed][f"{key}_all"] == pytest.approx(float(x), abs=1e-3)
        other = own["B", "own", seed]
        assert by[1, "other", seed]["p_reverse_all"] == pytest.approx(other["p_reverse"], abs=1e-3)
    text = (workdir.path / "report.md").read_text(encoding="utf-8")
    assert "L = 4, 20 steps of 8; words and thresholds" in text
    assert "| answer | forward | values |" in text and "9. distinct entries by direction" in text


def test_a_stranger_is_of_another_seed():
    with pytest.raises(ValueError, match="no seed comes twice"):
        page.Config(seeds=(0, 0))


# ---------------------------------------------------------------------------------------
# Tables


def _lines(pair="order", seeds=(0, 1, 2), **changes):
    """Of both receivers, all parts: 90 by the twin, 20 untrained, and what is told apart."""
    values = {"other": 80.0, "twin": 90.0, "untrained": 20.0, "stranger": 5.0} | changes
    lines = []
    for into, question in enumerate(tables.QUESTIONS[pair]):
        gained = tables.QUESTIONS[pair][1 - into]
        for giver in tables.GIVERS:
            for seed in seeds:
                line = {"pair": pair, "into": into, "giver": giver, "seed": seed}
                for part in tables.PARTS:
                    both = {f"choice_{question}_{part}": values[giver] + seed,
                            f"choice_{gained}_{part}": 40.0 + 10 * into,
                            f"p_{question}_{part}": 50.0, f"p_{gained}_{part}": 60.0}  # fmt: skip
                    line |= both
                lines.append(line)
    return lines[::-1]


def test_questions_and_parts_are_those_of_the_page():
    assert list(tables.PARTS) == list(page.PARTS) and set(tables.QUESTIONS) == set(page.PAIRS)
    # What of a pair's networks was trained: the target and what it is told beside.
    trained = {
        "forward": lambda n: n.told == "forward" and n.cell.predicted in ("B", "both"),
        "source": lambda n: n.told == "forward" and n.cell.predicted in ("A", "both"),
        "reverse": lambda n: n.told == "reverse" and n.cell.predicted in ("A", "both"),
    }
    for pair, networks in page.PAIRS.items():
        for network, question in zip(networks, tables.QUESTIONS[pair], strict=True):
            assert trained[question](network)
            assert question != "source" or not network.cell.reads_before


def test_statistics_by_hand():
    """Need 90 − 20; lean 80 − (90 + 20) / 2; paired by seed, so that seeds that move go out."""
    found, word = tables.judged(_lines(), "order", 1, "mlp")
    assert word == "shared"
    assert found["need"] == (70, 70, 70) and found["lean"] == (25, 25, 25)
    assert found["other"].estimate == 81 and found["stranger"].estimate == 6
    assert found["gained"] == (50, 50, 50)
    middle, low, high = found["twin"]  # Student's t of 2 degrees, over seeds 90, 91, 92
    assert middle == 91 and high - middle == pytest.approx(4.30265 / 3**0.5, rel=1e-4)
    assert middle - low == pytest.approx(high - middle)


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, "shared"),
        ({"other": 56.0}, "shared"),
        ({"other": 55.0}, "undecided"),  # lean 0
        ({"other": 54.0}, "distinct"),
        ({"other": 1.0}, "distinct"),
        ({"untrained": 79.0}, "distinct"),  # need 11, lean -4.5
        ({"untrained": 80.0}, "undecided"),  # need 10
        ({"untrained": 81.0}, "not needed"),
        ({"untrained": 95.0}, "not needed"),
        ({"twin": 47.0}, "shared"),  # 48 (45.5 to 50.5)
        ({"twin": 46.0}, "drifts"),  # 47 (44.5 to 49.5)
        ({"seeds": (0,)}, "undecided"),
    ],
)
def test_verdicts_are_those_of_the_thresholds(changes, want):
    for into in (0, 1):
        _, word = tables.judged(_lines(**changes), "order", into, "values")
        assert word == want


def test_an_interval_that_ends_on_its_threshold_decides_nothing():
    def word(twin, need=(20, 15, 25), lean=(5, 1, 9), least=50):
        return tables.word_of(*(tables.Bounds(*x) for x in (twin, need, lean)), least)

    on_it, below = (47, 44, 50), (47, 44, 49.9)
    assert word(on_it) == "shared" and word(below) == "drifts" == word(on_it, least=51)
    assert word(on_it, need=(6, 2, 10)) == "undecided" != word(on_it, need=(6, 2, 9.9))
    assert word(on_it, need=(20, 10, 30)) == "undecided" != word(on_it, need=(20, 10.1, 30))
    assert word(on_it, lean=(5, 0, 10)) == "undecided" == word(on_it, lean=(-5, -10, 0))
    assert word(on_it, lean=(-5, -10, -0.1)) == "distinct"


@pytest.mark.parametrize(
    ("pair", "words", "want"),
    [
        ("order", ("shared", "shared"), "holds"),
        ("order", ("shared", "not needed"), "undecided"),
        ("order", ("shared", "distinct"), "fails"),
        ("order", ("drifts", "drifts"), "undecided"),
        ("target", ("distinct", "distinct"), "holds"),
        ("answer", ("distinct", "undecided"), "undecided"),
        ("answer", ("not needed", "shared"), "fails"),
        ("next_token", ("distinct", "distinct"), "holds"),
        ("next_token", ("shared", "shared"), "fails"),
    ],
)
def test_claims_ask_both_receivers_for_their_storage(pair, words, want):
    values = {"shared": {}, "distinct": {"other": 30.0}, "not needed": {"untrained": 88.0},
              "drifts": {"twin": 10.0}, "undecided": {"other": 55.0}}  # fmt: skip
    lines = [
        line for into, word in enumerate(words) for line in _lines(pair, **values[word])
        if line["into"] == into
    ]  # fmt: skip
    for line in lines:  # no other part decides
        line |= {key: 50.0 for key in line if key.startswith("choice") and "storage" not in key}
    ((claim, text, got),) = tables.claims(lines)
    assert got == want and claim[: claim.index(".")] in ("7", "8", "9", "10")
    first, second = text.split("; ")
    assert first.endswith(f", {words[0]}") and second.endswith(f", {words[1]}")
    assert first.startswith(tables.QUESTIONS[pair][0])


def test_claims_have_the_numbers_of_the_design():
    every = [line for pair in tables.QUESTIONS for line in _lines(pair)]
    assert [row[0].partition(".")[0] for row in tables.claims(every)] == ["7", "8", "9", "10"]
    assert tables.claims(_lines("answer"))[0][1] == (
        "forward: need 70 (70 to 70), lean 25 (25 to 25), shared; "
        "reverse: need 70 (70 to 70), lean 25 (25 to 25), shared"
    )


def test_claim_4_reads_the_storage_of_A_only_in_B_only():
    lines = _lines("target") + _lines("answer", other=1.0)
    for line in lines:
        is_it = (line["pair"], line["into"], line["giver"]) == ("target", 0, "other")
        line["choice_reverse_storage"] = 60.0 if is_it else 5.0
        line["choice_reverse_values"] = 7.0
    moved = tables.transplants(lines)
    assert sorted(line["seed"] for line in moved) == [0, 1, 2]
    assert {line["choice_reverse"] for line in moved} == {60.0}
    ((claim, _, word),) = causes_tables.claims([], moved)
    assert claim.startswith("4.") and word == "holds"


def test_a_row_of_parts_says_each_giver_under_its_head():
    rows = [x.strip("| ").split(" | ") for x in tables.part_table(_lines()).splitlines()]
    assert len(rows) == 2 + 2 * len(tables.PARTS)
    said = dict(zip(rows[0], rows[2], strict=True))
    assert (said["pair"], said["own question"], said["part"]) == ("order", "source", "values")
    assert said["other %"] == "81 (79 to 83)" and said["twin %"] == "91 (89 to 93)"
    assert said["untrained %"] == "21 (19 to 23)" and said["stranger %"] == "6 (4 to 8)"
    assert said["need"] == "70 (70 to 70)" and said["lean"] == "25 (25 to 25)"
    assert said["verdict"] == "shared" and said["gained %"] == "40 (40 to 40)"
    assert rows[-1][1:3] == ["reverse", "all"] and rows[-1][-1] == "50 (50 to 50)"


def test_each_part_has_numbers_of_its_own_in_the_table_and_the_figure():
    """Each part is one above the one before it; what is gained is told apart by giver too."""
    lines = _lines("target")
    for line in lines:
        question, gained = tables.QUESTIONS["target"][:: 1 - 2 * line["into"]]
        for number, part in enumerate(tables.PARTS):
            line[f"choice_{question}_{part}"] += number
            line[f"choice_{gained}_{part}"] += number + 7 * tables.GIVERS.index(line["giver"])
    head, _, *rows = (x.strip("| ").split(" | ") for x in tables.part_table(lines).splitlines())
    for row, values in enumerate(rows):
        said = dict(zip(head, values, strict=True))
        into, number = divmod(row, len(tables.PARTS))
        for giver, value in zip(tables.GIVERS, (81, 91, 21, 6), strict=True):
            assert said[f"{giver} %"].startswith(f"{value + number} (")
        own = 40 + 10 * into + number
        assert said["gained %"] == f"{own} ({own} to {own})"
    pytest.importorskip("matplotlib")
    for ax in tables.figure(lines).axes:
        heights = [np.asarray(of.lines[0].get_ydata(), float) for of in ax.containers]
        np.testing.assert_allclose(heights, np.add.outer([81, 91, 21, 6], np.arange(6)))


def test_a_row_of_what_is_said_has_P_true_of_the_storage_and_a_verdict_a_part():
    """P(true) of the own question is 40 but where it is said; no twin of so little drifts."""
    lines = _lines("target")
    own = {("values", "untrained"): 40.0, ("mlp", "untrained"): 0.0, ("mlp", "other"): 1.0,
           ("storage", "twin"): 44.0, ("storage", "untrained"): 4.0, ("storage", "other"): 23.0,
           ("routing", "untrained"): 10.0, ("routing", "other"): 40.0,
           ("ends", "untrained"): 60.0}  # fmt: skip
    for line in lines:
        question, gained = tables.QUESTIONS["target"][:: 1 - 2 * line["into"]]
        for part in tables.PARTS:
            line[f"p_{question}_{part}"] = own.get((part, line["giver"]), 40.0) - line["seed"]
            line[f"p_{gained}_{part}"] = 99.0
        if line["into"] and line["giver"] == "other":
            line["p_source_storage"] = 25.0 - line["seed"]
    head, _, forward, source = (
        x.strip("| ").split(" | ") for x in tables.said_table(lines).splitlines()
    )
    said = dict(zip(head, forward, strict=True))
    assert (said["pair"], said["own question"]) == ("target", "forward")
    assert said["storage: other, P(true) %"] == "22 (20 to 24)"
    for line in lines:  # by P(true) in its case the same rule, of its own numbers
        line |= {f"among_{key[2:]}": x - 1 for key, x in line.items() if key.startswith("p_")}
    head_in, _, row_in, _ = (
        x.strip("| ").split(" | ") for x in tables.said_table(lines, "among").splitlines()
    )
    assert row_in[head_in.index("storage: other, P(true) in its case %")] == "21 (19 to 23)"
    assert row_in[-5:] == forward[-5:] and tables.claims(lines, "among")[0][2] == "fails"
    assert said["storage: twin, P(true) %"] == "43 (41 to 45)"
    assert said["storage: untrained, P(true) %"] == "3 (1 to 5)"
    assert said["need"] == "40 (40 to 40)" and said["lean"] == "−1 (−1 to −1)"
    words = {part: said[f"{part}: verdict"] for part in tables.PARTS[:-1]}
    assert words == {"values": "not needed", "mlp": "distinct", "storage": "distinct",
                     "routing": "shared", "ends": "not needed"}  # fmt: skip
    ((claim, text, word),) = tables.claims(lines, "p")
    assert claim.startswith("8.") and text.startswith("forward: need 40 (40 to 40), lean −1 (−1 to")
    assert word == "fails" and "source: need 40 (40 to 40), lean 1 (1 to 1), shared" in text
    assert tables.claim_table(lines, "p") != tables.claim_table(lines)
    other = dict(zip(head, source, strict=True))
    assert (other["own question"], other["lean"]) == ("source", "1 (1 to 1)")
    assert other["storage: verdict"] == "shared"


def test_a_row_of_networks_says_what_they_choose_unpatched():
    named = page.Pupil(page.A_ONLY, "reverse").identity("twin")
    keys = "choice_forward", "choice_reverse", "choice_source"
    lines = [named | {"seed": seed} | dict(zip(keys, (4.0, 98.0, 60.0), strict=True))
             for seed in (0, 1)]  # fmt: skip
    *_, row = tables.network_table(lines).splitlines()
    cells = row.strip("| ").split(" | ")
    assert cells[:6] == ["bidirectional", "masked_diffusion", "A", "reverse", "twin", "2"]
    assert cells[6:] == ["4.0 ± 0.0", "98.0 ± 0.0", "60.0 ± 0.0"]


def test_the_figure_draws_the_own_question_of_each_receiver():
    pytest.importorskip("matplotlib")
    drawn = tables.figure(_lines("order") + _lines("target", other=30.0))
    assert artists.entries(drawn.legends[0]) == list(tables.GIVERS)
    titles = [ax.get_title() for ax in drawn.axes]
    assert titles == ["order: source", "order: reverse", "target: forward", "target: source"]
    chance = [[line for line in ax.get_lines() if line.get_linestyle() == ":"] for ax in drawn.axes]
    assert [set(line.get_ydata()) for (line,) in chance] == [{100 / 26}] * 4
    assert [ax.get_ylabel() for ax in drawn.axes] == ["choice (%)", ""] * 2
    named = [x.get_text() for x in drawn.axes[0].get_xticklabels()]
    assert named == ["values", "MLP", *tables.PARTS[2:]]
    for ax, other in zip(drawn.axes, (81, 81, 31, 31), strict=True):
        heights = [list(of.lines[0].get_ydata()) for of in ax.containers]
        assert heights == [[x] * len(tables.PARTS) for x in (other, 91, 21, 6)]
        (chance,) = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
        assert set(chance.get_ydata()) == {100 / 26}
