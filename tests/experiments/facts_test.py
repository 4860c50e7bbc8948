import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dirasym import models
from dirasym.analysis import recall
from dirasym.data import facts, tokenizers
from experiments import adapt_masked, facts_task, harness

ROOT = pathlib.Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures"
PUBLIC = ROOT.parent / "shared/data/reversal_curse"
TINY = facts_task.Config(
    num_pairs=4, both_ways=3, name_words=2, width=16, layers=1, heads=2, kv_heads=1, seeds=(0,),
    epochs=1, eval_epochs=1, gradient_examples=2, attention_examples=3, attention_distance=3,
)  # fmt: skip


def _run(command: str, workdir: str, **environment: str):
    """A command of the experiments in a process of its own, on CPU."""
    return subprocess.run(
        [sys.executable, *command.split(), workdir],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    )


def _tokenizer(data):
    texts = [" ".join(text) for text in data.train]
    texts += [f"{q.prompt} {x}" for q in data.forward + data.reverse for x in q.answers]
    return tokenizers.Words(texts)


ROWS = 260  # of the embedding below: 256 bytes, the end of text, and [M] last


def _tiny_directory(tmp_path, tokens=257):
    """A small LLaMA that knows nothing, with a tokenizer of bytes (and so many tokens)."""
    hf = pytest.importorskip("tokenizers")
    config = models.llama(
        ROWS, num_layers=2, width=16, num_heads=4, num_kv_heads=4, mlp_width=24, max_len=256,
        rope_base=10_000.0, rope_scaling=None,
    )  # fmt: skip
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    directory = tmp_path / "llama"
    models.save_pretrained(directory, model, params, more_fields={"eos_token_id": 256})
    letters = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    vocabulary |= {f"<{number}>": number for number in range(256, tokens)}
    tokenizer = hf.Tokenizer(hf.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize("model", ["mdm", "arm"])
def test_a_run_is_evaluated_both_ways(model):
    config = TINY if model == "mdm" else dataclasses.replace(TINY, gradient_examples=0)
    task = facts_task.Task("p2c", model, config)
    state = task.state(0)
    values = task.evaluate(state)
    for name in ("forward", "reverse"):
        assert 0 <= values[f"{name}_p"][0] < 0.5 and values[f"{name}_percent"].shape == (1,)
        assert 1 <= values[f"{name}_rank"][0] <= task.tokenizer.vocab_size
    if model == "mdm":
        assert values["gradient_cosine_total"].shape == (1, 2)
        found = task.attention_correlation(state)
        assert found["mean"].shape == (1, 2, 5) and np.isfinite(found["mean"]).all()


def _first_answers(task, direction):
    """First token of each question's answer."""
    return task.asked[direction][0].target_E


def test_a_choice_is_among_answers_that_their_first_tokens_tell_apart():
    class Certain(facts_task.Task):
        """Gives tokens the logits `favoured`, whatever it is asked."""

        def __init__(self, favoured):
            super().__init__("p2c", "arm", dataclasses.replace(TINY, gradient_examples=0))
            logits = np.zeros(self.tokenizer.vocab_size, np.float32)
            for place, token in enumerate(favoured(self)):
                logits[token] = 20 - place
            self.apply_fn = lambda variables, tokens, valid_BL: np.broadcast_to(
                logits, (*tokens.shape, len(logits))
            )
            self.answers = lambda variables, key: ["?"] * len(self.data.forward + self.data.reverse)

        def share(self):
            values = self.evaluate(self.state(0))
            return values["forward_choice_percent"][0], values["reverse_choice_percent"][0]

    # Four pairs: naming one child to all is right once; words of no answer do not matter.
    first_child = Certain(lambda task: [2, *_first_answers(task, "forward")[:1]])
    assert first_child.share() == (25.0, 0.0)
    # Equally probable answers are no choice.
    assert Certain(lambda task: []).share() == (0.0, 0.0)
    # Nor is a word of the question a rival: the child itself, asked for its parent.
    copies = Certain(lambda task: [_first_answers(task, way)[0] for way in ("forward", "reverse")])
    assert copies.share() == (25.0, 25.0)


def test_answers_that_begin_alike_are_no_choice():
    task = facts_task.Task("p2d", "mdm", dataclasses.replace(TINY, data=("p2d",)))
    # All forward answers begin with "the".
    assert not task.asked["forward"][1].is_asked_E.any()
    assert task.asked["reverse"][1].is_asked_E.all()
    assert np.isnan(task.evaluate(task.state(0))["forward_choice_percent"][0])


def test_names_are_noised_as_wholes_in_rows_that_go_on_with_ends():
    task = facts_task.Task("p2c", "mdm", dataclasses.replace(TINY, noising="names"))
    unit = task.arrays["unit_BL"]
    assert unit.shape == task.arrays["tokens_BL"].shape
    np.testing.assert_array_equal(unit[0], [0, 0, 2, 3, 4, 5, 5, 7])


@pytest.mark.skipif(not PUBLIC.exists(), reason="public files are not here")
def test_pairs_told_both_ways_can_come_from_the_file():
    config = dataclasses.replace(TINY, data_path=str(PUBLIC), both_ways_from="file")
    asked = facts_task.fact_set("p2c", dataclasses.replace(config, both_ways=0))
    told = facts_task.fact_set("p2c", config)
    assert told.forward == asked.forward and told.train[:4] == asked.train
    assert len(told.train) == 4 + 2 * 3
    names = {name for query in asked.forward + asked.reverse for name in query.answers}
    assert not names & {statement.answer for statement in told.train[4:]}


def test_causal_rows_score_answers_and_masked_rows_go_on_with_ends():
    causal, masked = (facts_task.Task("p2c", model, TINY) for model in ("arm", "mdm"))
    tokens = causal.arrays["tokens_BL"]
    assert (tokens[~causal.arrays["valid_BL"]] == causal.tokenizer.pad_id).all()
    assert causal.arrays["scored_BL"].sum(axis=1).max() == 3  # two words and the end
    assert "valid_BL" not in masked.arrays and masked.arrays["scored_BL"].all()
    answer = dataclasses.replace(TINY, noising="answer")
    scored = facts_task.Task("p2c", "mdm", answer).arrays["scored_BL"]
    assert not scored[:, :4].any() and scored[:, -1].all()


def test_paired_queries_ask_for_the_first_entity():
    data = facts.parent_child(facts.invent_parent_child(3, words=1), "p2c")
    tokenizer = _tokenizer(data)
    pair = recall.paired_queries(data, tokenizer, masked=True)
    statement, query = data.train[0], data.reverse[0]
    parent = query.answers[0]
    whole = f"{statement.prompt} {statement.answer}"
    forward, reverse = (side.tokens_EL[0][side.valid_EL[0]] for side in pair)
    assert tokenizer.decode(forward) == whole.replace(parent, "<mask>")
    assert tokenizer.decode(reverse) == f"{query.prompt} <mask>"
    assert tokenizer.decode([side.target_E[0] for side in pair]) == f"{parent} {parent}"
    causal = recall.paired_queries(data, tokenizer, masked=False)
    answers = [side.target_E[0] for side in causal]
    assert tokenizer.decode(answers) == f"{statement.answer} {parent}"


@pytest.mark.parametrize("name", ["c2p", "p2d", "d2p", "trex"])
def test_every_data_set_can_be_invented(name):
    data = facts_task.fact_set(name, TINY)
    assert data.train and data.forward and data.reverse
    assert recall.paired_queries(data, _tokenizer(data), masked=True) is not None


def test_weights_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(harness.UsageError, match="no tokenizer"):
        facts_task.Task("p2c", "arm", dataclasses.replace(TINY, model_id=str(FIXTURES / "llama")))
    big = str(_tiny_directory(tmp_path, tokens=270))
    with pytest.raises(harness.UsageError, match="has 270 tokens, the embedding 260"):
        facts_task.Task("p2c", "arm", dataclasses.replace(TINY, model_id=big))
    with pytest.raises(harness.UsageError, match=r"nowhere.*config\.json"):
        facts_task.Task("p2c", "arm", dataclasses.replace(TINY, model_id="nowhere"))
    with pytest.raises(harness.UsageError, match="the context has 128"):
        facts_task.Task("p2c", "arm", dataclasses.replace(TINY, max_new=200))


def test_settings_of_decoding_are_refused_before_training():
    config = dataclasses.replace(TINY, decode_steps=3, max_new=4, block_length=2)
    with pytest.raises(harness.UsageError, match="3 steps do not divide into 2 blocks"):
        facts_task.Task("p2c", "mdm", config)


def test_adapters_that_could_not_be_saved_are_refused_before_training(tmp_path):
    config = dataclasses.replace(TINY, model_id=str(_tiny_directory(tmp_path)), lora_rank=2)
    config = dataclasses.replace(config, lora_targets="head$")
    with pytest.raises(harness.UsageError, match=r"head/a has no place|match no linear layer"):
        facts_task.Task("p2c", "arm", config).state(0)


def test_special_ids_must_be_in_the_vocabulary(tmp_path):
    directory = _tiny_directory(tmp_path)
    path = directory / "config.json"
    fields = json.loads(path.read_text())
    config = dataclasses.replace(TINY, model_id=str(directory))
    for change, message in (
        ({"mask_token_id": 260}, "mask_token_id 260 is not below the vocabulary's 260"),
        ({"eos_token_id": 300}, "eos_token_id 300 is not below"),
        ({"eos_token_id": []}, "has no eos_token_id"),
        ({"eos_token_id": 259, "mask_token_id": None}, "cannot be the end of text, 259"),
    ):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(harness.UsageError, match=message):
            facts_task.open_tokenizer(config)
    path.write_text(json.dumps(fields | {"mask_token_id": None}))
    assert facts_task.open_tokenizer(config).mask_id == 259
    tokenizer = directory / "tokenizer.json"
    vocab = json.loads(tokenizer.read_text())
    vocab["model"]["vocab"]["far"] = 500  # few tokens, but one of a high id
    tokenizer.write_text(json.dumps(vocab))
    with pytest.raises(harness.UsageError, match="has 501 tokens, the embedding 260"):
        facts_task.open_tokenizer(config)


def test_lora_on_a_directory_trains_adapters_alone(tmp_path):
    model_id = str(_tiny_directory(tmp_path))
    config = dataclasses.replace(TINY, model_id=model_id, lora_rank=2, gradient_examples=0)
    task = facts_task.Task("p2c", "mdm", config)
    assert not task.model.config.causal and task.tokenizer.mask_id == 259
    state = task.state(0)
    assert set(state.params) == {"lora"} and set(state.frozen) == {"params"}
    task.save_adapters(state, tmp_path / "adapters")
    base, _ = models.load_pretrained(model_id)  # under the names of the weights they adapt
    assert models.load_adapters(tmp_path / "adapters", base)[0].rank == 2
    assert task.evaluate(state)["forward_percent"].shape == (1,)
    with pytest.raises(harness.UsageError, match="match no linear layer"):
        facts_task.Task("p2c", "mdm", dataclasses.replace(config, lora_targets="c_attn")).state(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(lora_rank=4), "--lora_rank needs weights"),
        (dict(epochs=7, eval_epochs=2), "--epochs=7 is not a multiple"),
        (dict(data=("trex",), data_path="/nowhere"), "holds no .json file"),
        (dict(attention_examples=2), "3 or more, or 0"),
    ],
)
def test_configurations_that_cannot_be_are_named(fields, message):
    with pytest.raises((ValueError, harness.UsageError), match=message):
        dataclasses.replace(TINY, **fields)


def test_a_missing_file_ends_in_one_line_and_writes_nothing(tmp_path):
    command = "-m experiments.facts --preset=smoke --data_path=/nowhere"
    done = _run(command, f"--workdir={tmp_path}/x")
    assert done.returncode == 2, done.stderr
    assert "parent_child_pairs.csv" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--lora_targets=c_attn", "match no linear layer"), ("--lora_targets=(", "not a regex")],
)
def test_a_refusal_after_loading_writes_nothing(flags, message, tmp_path):
    directory = _tiny_directory(tmp_path)
    command = f"-m experiments.facts --preset=paper --lora_rank=2 --model_id={directory} {flags}"
    done = _run(command, f"--workdir={tmp_path}/x")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mdm", "arm"])
def test_adapted_weights_are_a_model_of_the_same_size(model, tmp_path):
    directory = _tiny_directory(tmp_path)
    command = f"-m experiments.adapt_masked --preset=smoke --model_id={directory} --noprogress"
    control = " --causal" if model == "arm" else ""
    done = _run(command + control, f"--workdir={tmp_path}/x")
    assert done.returncode == 0, done.stderr
    config = dataclasses.replace(TINY, model_id=str(tmp_path / "x/model"))
    task = facts_task.Task("p2c", model, config)
    assert task.model.config.causal == (model == "arm") and task.tokenizer.mask_id == 259


def test_the_text_of_an_adaptation_can_tell_facts_both_ways_and_repeat_them(tmp_path):
    config = adapt_masked.Config(model_id=str(_tiny_directory(tmp_path)), num_pairs=3)
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
            f"-m experiments.facts {flags} --seeds_together={together}", f"--workdir={workdir}"
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
            f"-m experiments.facts {flags} {devices} --noprogress",
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
def test_an_adaptation_that_cannot_be_is_refused(flags, message, tmp_path):
    command = f"-m experiments.adapt_masked --model_id={_tiny_directory(tmp_path)} {flags}"
    done = _run(command, f"--workdir={tmp_path}/x")
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


def test_seeds_that_share_weights_among_devices_train_apart(tmp_path):
    flags = "--num_devices=2 --model_devices=2 --seeds_together=yes"
    done = _run(
        f"-m experiments.facts --preset=smoke {flags}",
        f"--workdir={tmp_path}/x",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    assert done.returncode == 2 and "--model_devices=1" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()


def test_weights_are_not_shared_among_devices_that_are_not_there(tmp_path):
    command = "-m experiments.facts --preset=smoke --model_devices=2"
    done = _run(command, f"--workdir={tmp_path}/x")
    assert done.returncode == 2 and "--model_devices=2 needs --num_devices" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()
