import json
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dirasym.data import string_maps, tokenizers
from experiments import world_a, world_a_mlp, world_a_report, world_a_task

ROOT = pathlib.Path(__file__).parent.parent.parent
SMOKE = ("--preset=smoke", "--noprogress")
# Seed 001's "Output Format", and what the original's lines hold beside it.
KEYS = """world exp_id run_id run_type K direction seed model_id n_pairs final_train_loss
theoretical_min excess_loss run_wall_time_sec train_curve batch_size str_len max_len epochs lr
weight_decay total_params trainable_params lora_trainable_params lora_alpha lora_dropout lora_r
reg_dropout log_base""".split()
MLP_KEYS = """arch K direction seed n_pairs final_loss theoretical_min excess_loss epochs lr
batch_size train_curve""".split()
OURS = """excess_nats_per_string eval_excess_nats_per_string floor_kind floor_nats_per_string
tokens_per_target bits_to_store_per_pair""".split()


def _run(module, *arguments):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            f"experiments.{module}",
            "--preset=smoke",
            "--noprogress",
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


needs_gpt2 = pytest.mark.skipif(
    next(tokenizers._installed_merges(), None) is None, reason="needs GPT-2's merges"
)


@needs_gpt2
def test_defaults_are_those_of_the_original_scripts():
    config = world_a.Config()
    assert config.modes == ("scratch", "finetune", "finetune_reg", "lora")
    assert (config.model_id, config.Ks, config.n_pairs, config.str_len) == (
        "gpt2",
        (1, 5, 8),
        40_000,
        8,
    )
    assert (config.epochs, config.batch_size, config.lr, config.seeds) == (20, 64, 1e-4, (0,))
    assert (config.lora_ranks, config.lora_alpha) == ((8, 64, 256), 32)
    assert (config.reg_weight_decay, config.reg_dropout) == (0.1, 0.1)
    assert world_a.model_config(config) == world_a.models.gpt2(dropout=0.0)
    got = [(r.mode, r.rank, r.lr, r.weight_decay, r.dropout) for r in world_a.regimes(config)]
    assert got == [
        ("scratch", None, 1e-4, 0.01, 0.1),
        ("finetune", None, 1e-4, 0.01, 0.1),
        ("finetune_reg", None, 1e-4, 0.1, 0.1),
        ("lora", 8, 1e-4, 0.01, 0.1),
        ("lora", 64, pytest.approx(8e-4), 0.01, 0.1),
        ("lora", 256, 1e-3, 0.01, 0.1),
    ]
    mlp = world_a_mlp.Config()
    assert (mlp.Ks, mlp.n_pairs, mlp.str_len, mlp.epochs) == ((1, 5, 8), 40_000, 8, 50)
    assert (mlp.batch_size, mlp.lr, mlp.d_emb, mlp.d_hidden, mlp.n_layers) == (
        256,
        1e-3,
        64,
        512,
        4,
    )


@needs_gpt2
def test_gpt2_small_has_its_parameters():
    shapes = jax.eval_shape(
        world_a.models.Transformer(world_a.model_config(world_a.Config())).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 1), np.int32),
    )
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 124_439_808


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(n_pairs=41), "multiple of 5, got 41"),
        (dict(Ks=(0,)), "K must be at least 1"),
        (dict(n_pairs=40, Ks=(1,), str_len=1), "only 36 of 1 characters"),
        (dict(model_id="/nowhere"), "neither a directory nor one of gpt2"),
        (dict(lora_ranks=(800,)), "800 does not fit layers of width 768"),
        (dict(attention="bidirectional"), "--modes=scratch"),
        (dict(objectives=("parallel",)), "no --objectives go with --attention=causal"),
        (dict(tokenizer="/nowhere.json"), "no tokenizer at /nowhere.json"),
        (dict(control="exchangeable", n_pairs=40), "multiple of 25, got 40"),
        (dict(mlp_results="/nowhere"), "--mlp_results=/nowhere is not a file"),
        (dict(width=100), "not divisible by num_heads 12"),
        (dict(dropout=1.0), "--dropout must be below 1, got 1.0"),
        (dict(modes=("finetune_reg",), reg_dropout=1.5), "--reg_dropout must be below 1"),
        (dict(str_len=509), "--str_len=509 makes rows of 1025 tokens, and .* holds 1024"),
        (dict(mlp_results=__file__), "holds other lines than those of world_a_mlp"),
    ],
)
def test_bad_flags_are_named(flags, words):
    with pytest.raises(ValueError, match=words) as error:
        world_a.Config(**({"tokenizer": "characters", "Ks": (5,), "n_pairs": 40} | flags))
    assert "\n" not in str(error.value)


def test_a_directory_that_lacks_a_key_is_refused(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    fixture = ROOT / "tests/fixtures/gpt2"
    (tmp_path / "config.json").write_text((fixture / "config.json").read_text())
    weights = safetensors.load_file(fixture / "model.safetensors")
    del weights["transformer.wpe.weight" if "transformer.wpe.weight" in weights else "wpe.weight"]
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"wpe\.weight"):
        world_a.Config(model_id=str(tmp_path), tokenizer="characters")


def test_the_papers_floors_and_the_exact_ones():
    config = world_a.Config(tokenizer="characters", Ks=(5,), n_pairs=50)
    texts = world_a.Texts(config)
    forward, inverse = (texts.case(5, d, "next_token") for d in world_a_task.DIRECTIONS)
    assert (forward.theoretical_min, inverse.theoretical_min) == (0, math.log(5))
    assert forward.floor.nats_per_string == 0
    assert inverse.floor.nats_per_string == pytest.approx(math.log(5))
    assert inverse.floor.tokens_per_target == 9 and texts.length == 23
    assert texts.case(5, "inverse", "parallel").floor.nats_per_string > 8
    control = world_a.Config(tokenizer="characters", Ks=(5,), n_pairs=50, control="exchangeable")
    cases = [world_a.Texts(control).case(5, d, "next_token") for d in world_a_task.DIRECTIONS]
    for case in cases:
        assert case.theoretical_min == math.log(5)
        assert case.floor.nats_per_string == pytest.approx(math.log(5))
    assert cases[0].bits == cases[1].bits


def test_the_longest_strings_that_a_model_holds():
    world_a.Config(tokenizer="characters", Ks=(5,), n_pairs=5, str_len=508, modes=("scratch",))


def _spelled(tmp_path, letters):
    """A tokenizer.json that, as LLaMA's, puts a word's mark in front of every text."""
    hf = pytest.importorskip("tokenizers")
    tokenizer = hf.Tokenizer(hf.models.BPE({c: n for n, c in enumerate(["▁", *letters])}, []))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = hf.decoders.Metaspace(prepend_scheme="always", split=False)
    tokenizer.add_special_tokens(["</s>"])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def test_floors_are_of_the_tokens_in_the_row(tmp_path):
    letters = [*string_maps.ALPHABET, ":"]
    flags = dict(Ks=(5,), n_pairs=50, tokenizer=_spelled(tmp_path, letters))
    texts = world_a.Texts(world_a.Config(modes=("scratch",), layers=1, width=12, **flags))
    case = texts.case(5, "inverse", "next_token")
    assert case.floor.tokens_per_target == case.data["scored_BL"].sum(axis=1).mean() == 9
    with pytest.raises(ValueError, match="the texts of pretraining") as error:
        world_a.Config(modes=("finetune",), layers=1, width=12, **flags)
    assert len(str(error.value)) < 400
    with pytest.raises(ValueError, match=r"--tokenizer=.*turns"):
        world_a.Config(**flags | {"tokenizer": _spelled(tmp_path, letters[1:])})


def test_a_rank_fits_the_smallest_layer(tmp_path):
    model = world_a.models.Transformer(
        world_a.models.gpt2(97, num_layers=1, width=16, num_heads=2, mlp_width=8)
    )
    params = world_a.init_params(model, jax.random.key(0))
    world_a.models.save_pretrained(tmp_path, model, params)
    flags = dict(model_id=str(tmp_path), tokenizer="characters", Ks=(5,), n_pairs=50)
    world_a.Config(lora_ranks=(8,), **flags)
    with pytest.raises(ValueError, match="--lora_ranks: 9 does not fit layers of width 8"):
        world_a.Config(lora_ranks=(9,), **flags)


def test_units_of_a_result_line():
    """Two epochs of two batches, the second of one example: means of batches, sums of nats."""
    floor = world_a_task.excess.Floor("joint", 1.5, 3.0)
    case = world_a_task.Case(5, "inverse", {}, floor, math.log(5), 40.0)
    history = {
        "train_nats_per_string": np.array([[9.0], [4.5]]),
        "nats_per_string": np.array([[12.0], [4.0]]),
        "eval_step": np.array([0, 4]),
        "wall_time_sec": np.array(2.0),
    }
    line = world_a_task.measures(case, history, 0, np.array([3.1, 1.6]), "final_train_loss")
    assert (line["K"], line["direction"]) == (5, "B->A")
    assert line["excess_loss"] == pytest.approx(1.6 - math.log(5))
    assert line["excess_nats_per_string"] == pytest.approx(3.0)
    assert line["eval_excess_nats_per_string"] == pytest.approx(2.5)
    assert line["excess_bits_per_stored_bit"] == pytest.approx(2.5 / math.log(2) / 40)
    assert line["eval_epochs"] == [0, 2]


def test_gaps_are_paired_by_seed():
    lines = [
        {
            "run_type": "scratch",
            "objective": "next_token",
            "K": 5,
            "direction": d,
            "seed": s,
            "u": u,
        }
        for d, s, u in [("A->B", 0, 1.0), ("A->B", 1, 2.0), ("B->A", 1, 3.0), ("B->A", 0, 2.0)]
    ]
    (scratch,) = world_a_report.families(lines)
    assert str(scratch) == "scratch"
    assert world_a_report.gap(lines, scratch, 5, "u").mean == 1
    assert world_a_report.gap(lines, scratch, 1, "u") is None


def test_bits_are_drawn_for_any_number_of_families():
    pytest.importorskip("matplotlib")
    one = dict(run_type="lora", objective="next_token", K=5, direction="A->B", seed=0)
    one |= dict(eval_epochs=[0, 1], eval_excess_nats_per_string_curve=[9.0, 4.0])
    lines = [{**one, "lora_r": rank, "bits_to_store_per_pair": 18.0} for rank in range(1, 12)]
    figure = world_a_report._bits(lines)
    assert len(figure.axes[0].get_lines()) == 11


def test_the_mlp_runs_and_is_not_trained_again(tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text('{"exp_id": "other", "K": 1}\n')
    arguments = [f"--workdir={tmp_path}/run", f"--output={output}", "--Ks", "5", "--n_pairs=50"]
    first = _run("world_a_mlp", *arguments)
    assert first.returncode == 0, first.stderr
    other, *lines = _lines(output)
    assert other == {"exp_id": "other", "K": 1} and len(lines) == 2
    for line in lines:
        assert {*MLP_KEYS, *OURS} <= line.keys()
        assert line["floor_kind"] == "parallel"
        assert line["excess_loss"] == pytest.approx(line["final_loss"] - line["theoretical_min"])
        total = line["excess_nats_per_string"] + line["floor_nats_per_string"]
        assert total / 8 == pytest.approx(line["final_loss"])
    again = _run("world_a_mlp", *arguments)
    assert again.stdout == first.stdout and _lines(output) == [other, *lines]
    assert (tmp_path / "run/report.md").exists() and (tmp_path / "run/figures/gap.png").exists()


@pytest.mark.slow
def test_gpt2_runs_from_scratch_and_by_lora_on_a_model_pretrained_here(tmp_path):
    small = ["--Ks=5", "--n_pairs=50", "--width=16", "--pretrain_steps=2", "--directions=inverse"]
    result = _run("world_a", f"--workdir={tmp_path}", "--modes", "scratch", "lora", *small)
    assert result.returncode == 0, result.stderr
    scratch, adapted = _lines(tmp_path / "results.jsonl")
    for line in (scratch, adapted):
        assert {*KEYS, *OURS} <= line.keys()
        assert line["direction"] == "B->A" and len(line["train_curve"]) == line["epochs"] == 2
        assert line["theoretical_min"] == pytest.approx(math.log(5))
        total = line["excess_nats_per_string"] + line["floor_nats_per_string"]
        assert total / 9 == pytest.approx(line["final_train_loss"], rel=0.01)
    assert (scratch["run_type"], scratch["run_id"], scratch["lora_r"]) == ("scratch", 1, None)
    assert (adapted["run_type"], adapted["run_id"], adapted["lora_r"]) == ("lora", 2, 4)
    assert scratch["total_params"] == scratch["trainable_params"]
    # c_attn 16 -> 48 and c_proj 16 -> 16 and 64 -> 16, by rank 4
    assert adapted["lora_trainable_params"] == 4 * (64 + 32 + 80)
    assert "pydoc_data.topics" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "pretrained/model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--modes", "scratch", "magic"),
            "'magic' is not among scratch|finetune|finetune_reg|lora",
        ),
        ((f"--output={ROOT}",), "cannot be used: Is a directory"),
        ((f"--output={ROOT}/README.md",), "README.md cannot be used: not a file of JSON lines"),
    ],
)
def test_a_bad_flag_ends_in_one_line_with_status_2(arguments, words, tmp_path):
    result = _run("world_a", f"--workdir={tmp_path}/run", *arguments)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not (tmp_path / "run").exists()
