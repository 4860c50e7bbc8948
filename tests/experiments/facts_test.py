import collections
import dataclasses
import json
import pathlib
import types

import commands
import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest

from dirasym import models, readers
from dirasym.analysis import queries
from dirasym.data import facts, tokenizers
from dirasym.usage import UsageError
from experiments import adapt_masked
from experiments import facts as page
from experiments.systems import facts as system

ROOT = pathlib.Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures"
PUBLIC = ROOT.parent / "shared/data/reversal_curse"
TINY = system.Config(
    num_pairs=4, both_ways=3, name_words=2, width=16, layers=1, heads=2, kv_heads=1, seeds=(0,),
    epochs=1, eval_epochs=1, gradient_examples=2, attention_examples=3, attention_distance=3,
)  # fmt: skip
OWN = dict(pairs="x.csv", forward="{a} has {b}", reverse="{b} of {a}")


def _run(command: str, workdir: str, **environment: str):
    """A command of the experiments in a process of its own."""
    return commands.run([*command.split(), workdir], env=environment)


def _task(kind, data="p2c", **changes):
    """What is trained and asked, of TINY with some changes."""
    config = dataclasses.replace(TINY, data=(data,), **changes)
    opened = None
    if config.model_id:
        opened = system.open_pretrained(config.model_id, config.mask_id, scan_layers=True)
    return system.Task(data, kind, config, opened)


@pytest.mark.parametrize("kind", ["mdm", "arm"])
def test_a_run_is_evaluated_both_ways(kind, tmp_path):
    task = _task(kind, **({} if kind == "mdm" else dict(gradient_examples=0)))
    state = task.trained.state(0)
    values = task.evaluate(state)
    assert all(np.isfinite(values[f"{name}_p"]) for name in ("forward", "reverse"))
    found = task.finish(state, tmp_path)
    if kind == "mdm":
        assert values["gradient_cosine_total"].shape == (2,)
        mean = found["attention_mean"]
        assert mean.shape == (1, 2, 5) and np.isfinite(mean).all()
    assert kind == "mdm" or not found


@pytest.mark.parametrize("kind", ["mdm", "arm"])
def test_what_a_known_model_answers_is_what_is_recorded(kind, monkeypatch):
    """Its probabilities and its words are written down by hand, unlike in the two directions."""
    task = _task(kind, gradient_examples=0)
    size = task.tokenizer.vocab_size
    common = task.tokenizer.encode(["'s"])[0][0]  # no answer's, and no question's first
    rows, places, logits = [], [], []
    shares = {"forward": [0.5, 0.4, 0.3, 0.6], "reverse": [0.05, 0.1, 0.2, 0.01]}
    for name, (questions, _) in task.questions.first.items():
        assert len(questions.target_E) == 4
        for e, share in enumerate(shares[name]):
            row_V = np.full(size, 1e-6)
            row_V[common] = 0.45  # more probable than two of the forward answers, and all reverse
            # The next fact's answer, a rival: less probable forward, more so in reverse.
            row_V[questions.target_E[e - 1]] = 0.15
            row_V[questions.target_E[e]] = share
            if kind == "mdm":
                row_V[task.tokenizer.mask_id] = 0  # excluded whatever its logit is
            logits.append(np.log(row_V / row_V.sum() + (row_V == 0) * 1e3))
            rows.append(questions.tokens_EL[e][questions.valid_EL[e]])
            places.append(questions.position_E[e])
    firsts = np.array([row[:2] for row in rows])  # a name of two words says which question it is
    assert len(np.unique(firsts, axis=0)) == len(rows)

    def apply_fn(variables, tokens_BL, *, valid_BL=None):
        is_row_BR = (tokens_BL[:, None, :2] == firsts[None]).all(-1)
        asked_BRL = is_row_BR[..., None] & (
            np.arange(tokens_BL.shape[1])[None, None] == np.array(places)[None, :, None]
        )
        decoy_V = 9.0 * np.eye(size)[common]
        said_BLV = jnp.einsum("brl,rv->blv", asked_BRL.astype(float), np.array(logits))
        return jnp.where(asked_BRL.any(1)[..., None], said_BLV, decoy_V[None, None])

    said = [query.answers[0] for query in task.questions.queries]
    asked = [query.prompt for query in task.questions.queries]
    said[1], said[2] = asked[1].split("'s")[0], f"{said[2]} and more"
    said[4:] = ["nobody", said[5], f"{said[6]} too", " ".join(asked[7].split()[:2])]
    state = task.trained.state(0)
    monkeypatch.setattr(task, "trained", types.SimpleNamespace(apply_fn=apply_fn))
    monkeypatch.setattr(type(task.questions), "said", lambda *_: said)
    values = task.evaluate(state)
    want_p = {
        name: np.mean([x / (x + 0.6 + (size - 3 - (kind == "mdm")) * 1e-6) for x in shares[name]])
        for name in shares
    }
    for name, percents, rank in (
        ("forward", dict(percent=50, begun_percent=75, copied_percent=25), 1.5),
        ("reverse", dict(percent=25, begun_percent=50, copied_percent=25), 3.0),
    ):
        assert values[f"{name}_rank"] == rank
        assert values[f"{name}_p"] == pytest.approx(want_p[name], rel=1e-5)
        assert values[f"{name}_choice_percent"] == (100 if name == "forward" else 25)
        for measure, percent in percents.items():
            assert values[f"{name}_{measure}"] == percent, (name, measure)


@pytest.mark.slow
def test_answers_that_begin_alike_are_no_choice():
    task = _task("mdm", "p2d")  # all forward answers begin with "the"
    assert not task.questions.first["forward"][1].is_asked_E.any()
    assert task.questions.first["reverse"][1].is_asked_E.all()
    assert np.isnan(task.evaluate(task.trained.state(0))["forward_choice_percent"])


def test_names_are_noised_as_wholes_in_rows_that_go_on_with_ends():
    rows = _task("mdm", noising="names").rows
    assert rows["unit_BL"].shape == rows["tokens_BL"].shape
    np.testing.assert_array_equal(rows["unit_BL"][0], [0, 0, 2, 3, 4, 5, 5, 7])


@pytest.mark.skipif(not PUBLIC.exists(), reason="public files are not here")
def test_pairs_told_both_ways_can_come_from_the_file():
    config = dataclasses.replace(TINY, data_path=str(PUBLIC), both_ways_from="file")
    asked = system.fact_set("p2c", dataclasses.replace(config, both_ways=0))
    told = system.fact_set("p2c", config)
    assert told.forward == asked.forward and told.train[:4] == asked.train
    assert len(told.train) == 4 + 2 * 3
    names = {name for query in asked.forward + asked.reverse for name in query.answers}
    assert not names & {statement.answer for statement in told.train[4:]}


def test_causal_rows_score_answers_and_masked_rows_go_on_with_ends():
    causal, masked = (_task(kind) for kind in ("arm", "mdm"))
    rows = causal.rows
    assert (rows["tokens_BL"][~rows["valid_BL"]] == causal.tokenizer.pad_id).all()
    assert rows["scored_BL"].sum(axis=1).max() == 3  # two words and the end
    assert "valid_BL" not in masked.rows and masked.rows["scored_BL"].all()
    scored = _task("mdm", noising="answer").rows["scored_BL"]
    assert not scored[:, :4].any() and scored[:, -1].all()


def test_paired_queries_ask_for_the_first_entity():
    data = facts.parent_child(facts.invent_parent_child(3, words=1), "p2c")
    tokenizer = tokenizers.Words(data.texts())
    pair = queries.paired_queries(data, tokenizer, masked=True)
    statement, query = data.train[0], data.reverse[0]
    parent = query.answers[0]
    whole = f"{statement.prompt} {statement.answer}"
    forward, reverse = (side.tokens_EL[0][side.valid_EL[0]] for side in pair)
    assert tokenizer.decode(forward) == whole.replace(parent, "<mask>")
    assert tokenizer.decode(reverse) == f"{query.prompt} <mask>"
    assert tokenizer.decode([side.target_E[0] for side in pair]) == f"{parent} {parent}"
    causal = queries.paired_queries(data, tokenizer, masked=False)
    answers = [side.target_E[0] for side in causal]
    assert tokenizer.decode(answers) == f"{statement.answer} {parent}"


@pytest.mark.parametrize("name", ["c2p", "p2d", "d2p", "trex"])
def test_every_data_set_can_be_invented(name):
    data = system.fact_set(name, TINY)
    assert data.train and data.forward and data.reverse
    assert queries.paired_queries(data, tokenizers.Words(data.texts()), masked=True) is not None


def test_weights_that_do_not_fit_are_named(tiny_directory, tmp_path):
    with pytest.raises(UsageError, match="no tokenizer"):
        _task("arm", model_id=str(FIXTURES / "llama"))
    with pytest.raises(UsageError, match="has 270 tokens, the embedding 260"):
        _task("arm", model_id=str(tiny_directory(tmp_path, tokens=270)))
    with pytest.raises(UsageError, match=r"nowhere.*config\.json"):
        _task("arm", model_id="nowhere")
    with pytest.raises(ValueError, match="the context has 128"):
        _task("arm", max_new=200)


def test_settings_of_decoding_are_refused_before_training():
    with pytest.raises(ValueError, match="3 steps do not divide into 2 blocks"):
        _task("mdm", decode_steps=3, max_new=4, block_length=2)


def test_adapters_that_could_not_be_saved_are_refused_before_training(tiny_directory, tmp_path):
    model_id = str(tiny_directory(tmp_path))
    for targets in ("head$", "c_attn"):
        words = r"head/a has no place|match no linear layer|match the head"
        with pytest.raises(ValueError, match=words):
            _task("arm", model_id=model_id, lora_rank=2, lora_targets=targets)


def test_a_correlation_beyond_the_context_is_refused_before_training():
    with pytest.raises(ValueError, match="rows of 202 tokens, and the context has 128"):
        _task("mdm", attention_distance=200)


def test_a_correlation_of_too_few_names_is_refused_before_training():
    with pytest.raises(ValueError, match="of 2 names, 3 are needed"):
        _task("mdm", num_pairs=2, both_ways=0)
    _task("arm", num_pairs=2, both_ways=0)  # a causal model has no such figure


def test_special_ids_must_be_in_the_vocabulary(tiny_directory, tmp_path):
    directory = tiny_directory(tmp_path)
    path = directory / "config.json"
    fields = json.loads(path.read_text())
    for change, message in (
        ({"mask_token_id": 260}, "mask_token_id 260 is not below the vocabulary's 260"),
        ({"eos_token_id": 300}, "eos_token_id 300 is not below"),
        ({"eos_token_id": []}, "has no eos_token_id"),
        ({"eos_token_id": 259, "mask_token_id": None}, "cannot be the end of text, 259"),
    ):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(UsageError, match=message):
            system.open_pretrained(directory, -1)
    path.write_text(json.dumps(fields | {"mask_token_id": None}))
    assert system.open_pretrained(directory, -1).tokenizer.mask_id == 259
    assert system.open_pretrained(directory, 257).tokenizer.mask_id == 257
    tokenizer = directory / "tokenizer.json"
    vocab = json.loads(tokenizer.read_text())
    vocab["model"]["vocab"]["far"] = 500  # few tokens, but one of a high id
    tokenizer.write_text(json.dumps(vocab))
    with pytest.raises(UsageError, match="has 501 tokens, the embedding 260"):
        system.open_pretrained(directory, -1)


@pytest.mark.parametrize("kind", members.quick(["mdm", "arm"], ["mdm"]))
def test_lora_on_a_directory_trains_adapters_alone(tiny_directory, kind, tmp_path):
    model_id = str(tiny_directory(tmp_path))
    task = _task(kind, model_id=model_id, lora_rank=2, gradient_examples=0)
    assert task.trained.model.config.causal == (kind == "arm") and task.tokenizer.mask_id == 259
    state = task.trained.state(0)
    assert set(state.params) == {"lora"} and set(state.frozen) == {"params"}
    task.finish(state, tmp_path / "adapters")
    base, _ = models.load_pretrained(model_id)  # under the names of the weights they adapt
    assert models.load_adapters(tmp_path / "adapters", base)[0].rank == 2
    assert np.isfinite(task.evaluate(state)["forward_p"])


def test_weights_are_read_once_for_all_runs(tiny_directory, tmp_path, monkeypatch):
    calls = []
    load = models.load_pretrained
    monkeypatch.setattr(models, "load_pretrained", lambda *x, **y: calls.append(x) or load(*x, **y))
    config = dataclasses.replace(
        TINY, model_id=str(tiny_directory(tmp_path)), data=("p2c", "c2p"), gradient_examples=0
    )
    planned = page.plan(config, tmp_path / "x")
    assert len(calls) == 1 and not (tmp_path / "x").exists()
    assert [run.name for run in planned] == [
        f"data={data},model={kind}" for data in ("p2c", "c2p") for kind in ("mdm", "arm")
    ]
    first, again = planned[0].init(0), planned[0].init(1)
    for one, other in zip(*map(jax.tree.leaves, (first.params, again.params)), strict=True):
        assert one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer()  # each may be donated


def test_facts_of_ones_own_are_trained_one_way_and_asked_both_ways(tmp_path):
    (tmp_path / "capitals.csv").write_text(
        "country,city\nFrance,Paris\nPeru,Lima\nChad,N'Djamena\n"
    )
    given = dict(
        pairs=str(tmp_path / "capitals.csv"), columns=("country", "city"),
        forward="The capital of {a} is {b}", reverse="{b} is the capital of {a}",
    )  # fmt: skip
    task = _task("mdm", "pairs", **given)
    assert task.facts.train[1] == ("The capital of Peru is", "Lima")
    assert task.facts.reverse[2] == ("N'Djamena is the capital of", ("Chad",))
    assert task.identity == {"data": "pairs", "model": "mdm"}
    table = "country,city\nPerú,Lima\nChad,X\nMalí,Y\n"
    (tmp_path / "old.csv").write_bytes(table.encode("latin-1"))
    old = given | dict(pairs=str(tmp_path / "old.csv"))
    read = _task("mdm", "pairs", **old, encoding="latin-1").facts
    assert read.train[0] == ("The capital of Perú is", "Lima")
    with pytest.raises(ValueError, match=r"--data=pairs: .*old\.csv: line 2 is not UTF-8"):
        _task("mdm", "pairs", **old)
    with pytest.raises(ValueError, match=r"--data=pairs: .*capitals.csv has no column 'a'"):
        _task("mdm", "pairs", **given | dict(columns=("a", "b")))
    with pytest.raises(ValueError, match=r"--data=pairs: .*lacks \{a\}"):
        _task("mdm", "pairs", **given | dict(reverse="{b} is a capital"))


@pytest.mark.parametrize(
    ("kind", "model_type", "usual", "trex"),
    [
        ("mdm", "llada", 5e-5, 2e-4),
        ("mdm", "qwen2", 5e-5, 2e-4),  # made masked: as LLaDA
        ("arm", "llama", 5e-5, 9e-5),
        ("arm", "qwen2", 1e-4, 5e-5),
        ("arm", "gpt2", 5e-5, 9e-5),  # not among the paper's
        ("arm", None, 5e-5, 9e-5),
    ],
)
def test_the_paper_preset_has_the_papers_rates(kind, model_type, usual, trex):
    config = system.Config(learning_rate=page.PRESETS["paper"]["learning_rate"])
    for data, rate in (("p2c", usual), ("d2p", usual), ("trex", trex)):
        assert system.rate(data, kind, model_type, config) == rate
        assert system.rate(data, kind, model_type, system.Config(learning_rate=0.0)) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(lora_rank=4), "--lora_rank needs --model_id=DIR"),
        (dict(mask_id=0), "--mask_id needs --model_id=DIR"),
        (dict(lora_dropout=0.1), "--lora_dropout needs --lora_rank"),
        (dict(lora_alpha=1.0), "--lora_alpha needs --lora_rank"),
        (dict(lora_targets="out$"), "--lora_targets needs --lora_rank"),
        (dict(epochs=7, eval_epochs=2), "--epochs=7 is not a multiple"),
        (dict(attention_examples=2), "3 or more, or 0"),
        (dict(lora_dropout=1.0), "--lora_dropout=1.0 must be below 1"),
        (dict(both_ways_from="file"), "--both_ways_from=file needs --data_path"),
        (dict(data=("pairs",), pairs="x.csv"), "--data=pairs needs --pairs=FILE, --forward"),
        (dict(data=("pairs",), data_path="x", **OWN), "--data_path needs public files"),
        (dict(columns=("a",)), "--columns=a must be two"),
        *((dict([given]), f"--{given[0]} needs --data=pairs") for given in OWN.items()),
        (dict(columns=("x", "y")), "--columns needs --data=pairs"),
        (dict(aliases="|"), r"--aliases needs --data=pairs"),
        (dict(encoding="latin-1"), "--encoding needs --data=pairs"),
        (dict(learning_rate=-0.5), "--learning_rate=-0.5 is negative"),
    ],
)
def test_configurations_that_cannot_be_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_a_file_that_nothing_reads_is_refused(tmp_path):
    (tmp_path / "capitals.csv").write_text("a,b\nFrance,Paris\n")
    given = ("--forward={a} has {b}", "--reverse={b} of {a}", f"--workdir={tmp_path}/x")
    file = f"--pairs={tmp_path / 'capitals.csv'}"
    done = commands.run(["experiments.facts", "--preset=smoke", file, *given])
    assert done.returncode == 2 and "--pairs needs --data=pairs" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


def test_facts_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"--data=trex: .*holds no .json file"):
        _task("mdm", "trex", data_path="/nowhere")


def test_a_missing_file_ends_in_one_line_and_writes_nothing(tmp_path):
    command = "experiments.facts --preset=smoke --data_path=/nowhere"
    done = _run(command, f"--workdir={tmp_path}/x")
    assert done.returncode == 2, done.stderr
    assert "parent_child_pairs.csv" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--lora_targets=c_attn", "match no linear layer"), ("--lora_targets=(", "not a regex")],
)
def test_a_refusal_after_loading_writes_nothing(tiny_directory, flags, message, tmp_path):
    directory = tiny_directory(tmp_path)
    command = f"experiments.facts --preset=paper --lora_rank=2 --model_id={directory} {flags}"
    done = _run(command, f"--workdir={tmp_path}/x")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mdm", "arm"])
def test_adapted_weights_are_a_model_of_the_same_size(tiny_directory, model, tmp_path):
    directory = tiny_directory(tmp_path)
    command = f"experiments.adapt_masked --preset=smoke --model_id={directory} --noprogress"
    control = " --causal" if model == "arm" else ""
    done = _run(command + control, f"--workdir={tmp_path}/x")
    assert done.returncode == 0, done.stderr
    task = _task(model, model_id=str(tmp_path / "x/model"))
    assert task.trained.model.config.causal == (model == "arm")
    assert task.tokenizer.mask_id == 259
    (line,) = readers.read_json_lines(tmp_path / "x/results.jsonl")
    assert line[1]["causal"] == (model == "arm") and line[1]["seed"] == 0
    assert line[1]["tokens_read"] == 4 * 8 * 16


@pytest.mark.parametrize(("causal", "first", "last"), [(True, 15, 40), (False, 3, 8)])
def test_an_adaptation_says_what_it_read_and_its_first_and_last_losses(causal, first, last):
    """A masked loss is a sequence's, and is shared among its 5 tokens."""
    config = adapt_masked.Config(steps=4, save_every=2, batch_size=3, length=5, causal=causal)
    line = adapt_masked.summarize(config, {"loss": np.array([10.0, 20.0, 30.0, 50.0])})
    known = dict(tokens_read=60, first_nats_per_token=first, last_nats_per_token=last)
    assert line == known


def test_the_text_of_an_adaptation_can_tell_facts_both_ways_and_repeat_them(
    tiny_directory, tmp_path
):
    config = adapt_masked.Config(model_id=str(tiny_directory(tmp_path)), num_pairs=3)
    once = adapt_masked.texts(config)
    both = adapt_masked.texts(dataclasses.replace(config, both_ways=True, fact_repeats=2))
    told = [text for text in both if "'s parent is" in text]
    assert not any("'s parent is" in text for text in once) and len(told) == 2 * 3
    assert len(set(told)) == 3 and set(once) < set(both)


@pytest.mark.slow
def test_seeds_in_one_program_are_the_seeds_one_by_one(tmp_path):
    flags = "--preset=smoke --seeds=1,2 --epochs=4 --eval_epochs=2 --noprogress"
    lines = {}
    for together in ("yes", "no"):
        workdir = tmp_path / together
        done = _run(
            f"experiments.facts {flags} --seeds_together={together}", f"--workdir={workdir}"
        )
        assert done.returncode == 0, done.stderr
        lines[together] = [json.loads(x) for x in (workdir / "results.jsonl").open()]
    for one, other in zip(lines["yes"], lines["no"], strict=True):
        assert (one["model"], one["seed"]) == (other["model"], other["seed"])
        for key in ("final_loss", "forward_p", "reverse_p"):
            np.testing.assert_allclose(one[key], other[key], rtol=1e-4)


@pytest.mark.slow
def test_the_command_shares_weights_among_devices(tmp_path):
    flags = "--preset=smoke --models=arm --epochs=4 --eval_epochs=2 --heads=8 --kv_heads=4"
    losses = []
    for name, devices in (("one", ""), ("eight", "--num_devices=8 --model_devices=4")):
        done = _run(
            f"experiments.facts {flags} {devices} --noprogress",
            f"--workdir={tmp_path}/{name}",
            XLA_FLAGS="--xla_force_host_platform_device_count=8",
        )
        assert done.returncode == 0, done.stderr
        (line,) = (tmp_path / name / "results.jsonl").read_text().splitlines()
        losses.append(json.loads(line)["final_loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--num_pairs=30000", "more than can be invented"), ("--length=99999999", "whole text")],
)
def test_an_adaptation_that_cannot_be_is_refused(tiny_directory, flags, message, tmp_path):
    command = f"experiments.adapt_masked --model_id={tiny_directory(tmp_path)} {flags}"
    done = _run(command, f"--workdir={tmp_path}/x")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


def test_seeds_that_share_weights_among_devices_train_apart(tmp_path):
    flags = "--num_devices=2 --model_devices=2 --seeds_together=yes"
    done = _run(
        f"experiments.facts --preset=smoke {flags}",
        f"--workdir={tmp_path}/x",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    assert done.returncode == 2 and "without axis 'model'" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


def test_weights_are_not_shared_among_devices_that_are_not_there(tmp_path):
    command = "experiments.facts --preset=smoke --model_devices=2"
    done = _run(command, f"--workdir={tmp_path}/x")
    assert done.returncode == 2 and "model_devices=2 needs num_devices" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.parametrize("noising", ["whole", "answer"])
def test_a_masked_model_is_trained_as_llada(noising, monkeypatch):
    told = {}
    make = lambda rate, **how: told.update(how, rate=rate)  # noqa: E731
    monkeypatch.setattr(system.training, "make_optimizer", make)
    changes = dict(noising=noising, weight_decay=0.5, warmup_steps=7, learning_rate=0.25)
    objective = _task("mdm", **changes).run(dict).step.keywords["objective"]
    assert told == dict(rate=0.25, weight_decay=0.5, warmup_steps=7)
    assert objective.func is system.objectives.masked_diffusion
    assert objective.keywords["schedule"] is system.objectives.llada_schedule
    assert objective.keywords["weighting"] == "t"
    assert objective.keywords["per_token"] == (noising == "answer")


@pytest.mark.parametrize("causal", [True, False])
def test_an_adaptation_trains_as_its_flags_say_and_masked_as_llada(
    causal, tiny_directory, tmp_path, monkeypatch
):
    made, rates = [], []
    pretrain = lambda *given, **how: made.append((given, how)) or types.SimpleNamespace(run=dict)  # noqa: E731
    monkeypatch.setattr(adapt_masked.pretraining, "Pretraining", pretrain)
    optimize = lambda rate, **how: rates.append((rate, how))  # noqa: E731
    monkeypatch.setattr(adapt_masked.training, "make_optimizer", optimize)
    directory = str(tiny_directory(tmp_path))
    config = adapt_masked.Config(
        model_id=directory, num_pairs=2, length=8, steps=6, save_every=3, batch_size=5,
        learning_rate=0.5, warmup_steps=7, weight_decay=0.25, causal=causal,
    )  # fmt: skip
    adapt_masked.plan(config, tmp_path)
    assert rates == [(0.5, dict(warmup_steps=7, weight_decay=0.25))]
    (((*_, objective, _), how),) = made
    assert (how["num_steps"], how["eval_every"], how["batch_size"]) == (6, 3, 5)
    of = adapt_masked.open_pretrained(directory, -1, causal=causal)[0]
    assert how["more_fields"] == {"eos_token_id": of.eos_id, "mask_token_id": of.mask_id}
    if causal:
        assert objective is system.objectives.next_token
        return
    assert objective.func is system.objectives.masked_diffusion
    assert objective.keywords["schedule"] is system.objectives.llada_schedule
    assert objective.keywords["weighting"] == "t"


@pytest.mark.parametrize(("rank", "stored"), [(0, "float32"), (4, "bfloat16")])
def test_weights_are_opened_in_the_type_of_the_flag(rank, stored, monkeypatch):
    opened = []
    spy = lambda *given, **how: opened.append((given, how))  # noqa: E731
    monkeypatch.setattr(page.facts, "open_pretrained", spy)
    tasks = lambda *given: types.SimpleNamespace(run=lambda summarize: given)  # noqa: E731
    monkeypatch.setattr(page.facts, "Task", tasks)
    monkeypatch.setattr(page.devices, "mesh", lambda *sizes: None)
    none = types.SimpleNamespace(value=None)
    monkeypatch.setattr(page.flags, "FLAGS", collections.defaultdict(lambda: none))
    page.plan(system.Config(model_id="x", mask_id=7, lora_rank=rank, dtype="bfloat16"), None)
    ((given, how),) = opened
    assert given == ("x", 7) and jnp.dtype(how.pop("param_dtype")) == stored
    assert how == dict(shardings=None, dtype="bfloat16", scan_layers=True)


@pytest.mark.parametrize("kind", ["mdm", "arm"])
def test_a_network_from_scratch_has_what_its_flags_name(kind):
    size = dict(layers=3, heads=4, kv_heads=2, width=16, positions="alibi", dtype="bfloat16")
    network = system.from_scratch(kind, 9, dataclasses.replace(TINY, **size))
    assert (network.num_layers, network.num_heads, network.num_kv_heads) == (3, 4, 2)
    assert (network.width, network.positions, network.dtype) == (16, "alibi", jnp.bfloat16)
    assert (network.vocab_size, network.causal) == (9, kind == "arm")


@pytest.mark.parametrize(("positions", "fused"), [("rope", ()), ("learned", models.lora.QKV)])
def test_adapters_have_what_their_flags_name(positions, fused):
    config = types.SimpleNamespace(
        lora_rank=3, lora_alpha=7.0, lora_targets="query$", lora_dropout=0.25
    )
    opened = types.SimpleNamespace(
        model=types.SimpleNamespace(config=types.SimpleNamespace(positions=positions))
    )
    task = types.SimpleNamespace(config=config, pretrained=opened)
    want = models.LoRAConfig(3, 7.0, "query$", dropout=0.25, fused=fused)
    assert system.Task._lora(task) == want
