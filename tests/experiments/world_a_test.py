import json
import math
import pathlib
import types

import commands
import jax
import jax.numpy as jnp
import pytest

from dirasym import models
from dirasym.data import string_maps, tokenizers
from experiments import world_a as page
from experiments import world_a_mlp
from experiments.systems import world_a

ROOT = pathlib.Path(__file__).parent.parent.parent
# Seed 001's "Output Format", and what the original's lines hold beside it.
KEYS = """world exp_id run_id run_type K direction seed model_id n_pairs final_train_loss
theoretical_min excess_loss run_wall_time_sec train_curve batch_size str_len max_len epochs lr
weight_decay total_params trainable_params lora_trainable_params lora_alpha lora_dropout lora_r
reg_dropout log_base layers width heads""".split()
MLP_KEYS = """arch K direction seed n_pairs final_loss theoretical_min excess_loss epochs lr
batch_size train_curve layers width total_params""".split()
RELATIONS = f"{ROOT}/docs/results/relations/chain_quick.jsonl"
OURS = """excess_nats_per_string eval_excess_nats_per_string floor_kind floor_nats_per_string
tokens_per_target bits_to_store_per_pair""".split()


def _run(module, *arguments):
    return commands.run([f"experiments.{module}", "--preset=smoke", "--noprogress", *arguments])


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _setting(tmp_path, **flags):
    return world_a.Setting(world_a.Config(**flags), tmp_path)


def _task(tmp_path, number=0, **flags):
    setting = _setting(tmp_path, **flags)
    return world_a.Task(setting, world_a.regimes(setting.config)[number])


needs_gpt2 = pytest.mark.skipif(
    next(tokenizers._installed_merges(), None) is None, reason="needs GPT-2's merges"
)


def test_defaults_are_those_of_the_original_scripts():
    config = world_a.Config()
    assert config.modes == ("scratch", "finetune", "finetune_reg", "lora")
    assert (config.model_id, config.Ks, config.n_pairs) == ("gpt2", (1, 5, 8), 40_000)
    assert (config.str_len, config.tokenizer) == (8, "gpt2")
    assert (config.epochs, config.batch_size, config.lr, config.seeds) == (20, 64, 1e-4, (0,))
    assert (config.lora_ranks, config.lora_alpha) == ((8, 64, 256), 32)
    assert (config.reg_weight_decay, config.reg_dropout) == (0.1, 0.1)
    got = [(r.run_type, r.lora_r, r.lr, r.weight_decay, r.dropout) for r in world_a.regimes(config)]
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
    assert (mlp.batch_size, mlp.lr, mlp.d_emb) == (256, 1e-3, 64)
    assert (mlp.d_hidden, mlp.n_layers) == (512, 4)


def test_activations_may_be_bfloat16_and_weights_stay_float32(tmp_path):
    task = _task(tmp_path, modes=("scratch",), Ks=(5,), n_pairs=40, tokenizer="characters",
                 layers=1, width=16, heads=2, dtype="bfloat16")  # fmt: skip
    state = jax.eval_shape(lambda: task.trainable.state(0))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert task.model.config.dtype == jnp.bfloat16
    assert world_a.Config().dtype == "float32"


@needs_gpt2
def test_gpt2_small_has_its_parameters(tmp_path):
    task = _task(tmp_path, modes=("scratch",), Ks=(5,), n_pairs=40)
    assert task.setting.model_config() == models.gpt2(dropout=0.0)
    assert task.num_params == (124_439_808, 0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(n_pairs=41), "multiple of 5, got 41"),
        (dict(Ks=(0,)), "K must be a whole number from 1"),
        (dict(n_pairs=40, Ks=(1,), str_len=1), "only 36 of 1 characters"),
        (dict(model_id="/nowhere"), "neither a directory nor one of gpt2"),
        (dict(modes=("lora",), lora_ranks=(800,)), "--lora_ranks: LoRA rank 800 exceeds .*768"),
        (dict(attention="bidirectional", modes=("lora",)), "--modes=scratch"),
        (dict(objectives=("parallel",)), "no --objectives go with --attention=causal"),
        (dict(tokenizer="/nowhere.json"), "--tokenizer=.* no tokenizer at /nowhere.json"),
        (dict(control="exchangeable", n_pairs=40), "multiple of 25, got 40"),
        (dict(mlp_results="/nowhere"), "^/nowhere: No such file"),
        (dict(width=100), "not divisible by num_heads 12"),
        (dict(dropout=1.0), "--dropout must be below 1, got 1.0"),
        (dict(modes=("finetune_reg",), reg_dropout=1.5), "--reg_dropout must be below 1"),
        (dict(str_len=509), "--str_len=509 makes rows of 1025 tokens, and .* holds 1024"),
        (dict(mlp_results=__file__), "world_a_test.py: line 1 is not JSON"),
        (dict(mlp_results=RELATIONS), "holds other lines than those of world_a_mlp"),
    ],
)
def test_bad_flags_are_named_and_nothing_is_written(flags, words, tmp_path):
    few = {"tokenizer": "characters", "Ks": (5,), "n_pairs": 40, "modes": ("scratch",), "layers": 1}
    with pytest.raises(ValueError, match=words) as error:
        page.plan(world_a.Config(**few | flags), tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_directory_that_lacks_a_key_is_refused(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    fixture = ROOT / "tests/fixtures/gpt2"
    (tmp_path / "config.json").write_text((fixture / "config.json").read_text())
    weights = safetensors.load_file(fixture / "model.safetensors")
    del weights["transformer.wpe.weight" if "transformer.wpe.weight" in weights else "wpe.weight"]
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    flags = dict(model_id=str(tmp_path), tokenizer="characters", Ks=(5,), n_pairs=40)
    with pytest.raises(ValueError, match=r"wpe\.weight"):
        page.plan(world_a.Config(**flags), tmp_path)


def test_the_papers_floors_and_the_exact_ones(tmp_path):
    flags = dict(tokenizer="characters", Ks=(5,), n_pairs=50, modes=("scratch",), layers=1)
    task = _task(tmp_path, **flags)
    forward, inverse = (task.case(5, direction) for direction in string_maps.DIRECTIONS)
    assert forward.of.published_floor("forward") == 0
    assert inverse.of.published_floor("inverse") == math.log(5)
    assert forward.floor.nats_per_string == 0
    assert inverse.floor.nats_per_string == pytest.approx(math.log(5))
    assert inverse.floor.tokens_per_target == 9 and task.setting.length == 23
    parallel = _task(tmp_path, 1, attention="bidirectional", **flags)
    assert parallel.case(5, "inverse").floor.nats_per_string > 8
    control = _task(tmp_path, **flags, control="exchangeable")
    for direction in string_maps.DIRECTIONS:
        case = control.case(5, direction)
        assert case.of.published_floor(direction) == math.log(5)
        assert case.floor.nats_per_string == pytest.approx(math.log(5))


def test_the_longest_strings_that_a_model_holds(tmp_path):
    few = dict(tokenizer="characters", Ks=(5,), n_pairs=5, modes=("scratch",), layers=1)
    assert _setting(tmp_path, str_len=508, **few).length == 1023


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
    flags = dict(Ks=(5,), n_pairs=50, layers=1, width=12)
    name = _spelled(tmp_path, letters)
    case = _task(tmp_path, modes=("scratch",), tokenizer=name, **flags).case(5, "inverse")
    assert case.floor.tokens_per_target == case.data["scored_BL"].sum(axis=1).mean() == 9
    with pytest.raises(ValueError, match="the texts of pretraining") as error:
        _setting(tmp_path, modes=("finetune",), tokenizer=name, **flags)
    assert len(str(error.value)) < 400
    with pytest.raises(ValueError, match=r"--tokenizer=.*turns"):
        _setting(tmp_path, tokenizer=_spelled(tmp_path, letters[1:]), **flags)


def test_a_rank_fits_the_smallest_layer(tmp_path):
    network = models.gpt2(97, num_layers=1, width=16, num_heads=2, mlp_width=8)
    model = models.Transformer(network)
    models.save_pretrained(
        tmp_path,
        model,
        jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"],
    )
    flags = dict(modes=("lora",), model_id=str(tmp_path), tokenizer="characters")
    flags |= dict(Ks=(5,), n_pairs=50)
    (run, _) = page.plan(world_a.Config(lora_ranks=(8,), **flags), tmp_path)
    assert run.identity["lora_r"] == 8
    with pytest.raises(ValueError, match=r"--lora_ranks: LoRA rank 9 exceeds .*mlp/down, 8 × 16"):
        page.plan(world_a.Config(lora_ranks=(9,), **flags), tmp_path)


def test_runs_of_a_regime_share_a_program(tmp_path):
    few = dict(tokenizer="characters", Ks=(1, 5), n_pairs=50, layers=1, width=12, seeds=(0, 1))
    config = world_a.Config(modes=("scratch",), **few)
    all_runs = page.plan(config, tmp_path)
    assert [(run.identity["K"], run.identity["direction"]) for run in all_runs] == [
        (1, "A->B"),
        (1, "B->A"),
        (5, "A->B"),
        (5, "B->A"),
    ]
    states = [run.init(seed) for run in all_runs[:3:2] for seed in config.seeds]
    for shared in ({run.step for run in all_runs}, {x.tx for x in states}):
        assert len(shared) == 1
    assert len({state.apply_fn for state in states}) == 1
    assert len({run.data(seed)["tokens_BL"].shape for run in all_runs for seed in (0, 1)}) == 1


@pytest.mark.slow
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


SMALL = ["--Ks=5", "--n_pairs=50", "--width=16", "--pretrain_steps=2", "--directions=inverse"]


@pytest.mark.slow
def test_gpt2_runs_from_scratch_and_by_lora_on_a_model_pretrained_here(tmp_path):
    result = _run("world_a", f"--workdir={tmp_path}", "--modes", "scratch", "lora", *SMALL)
    assert result.returncode == 0, result.stderr
    scratch, adapted = _lines(tmp_path / "results.jsonl")
    for line in (scratch, adapted):
        assert {*KEYS, *OURS} <= line.keys()
        assert line["direction"] == "B->A" and len(line["train_curve"]) == line["epochs"] == 2
        assert line["theoretical_min"] == pytest.approx(math.log(5))
        assert (line["layers"], line["width"], line["heads"]) == (1, 16, 2)
        total = line["excess_nats_per_string"] + line["floor_nats_per_string"]
        assert total / 9 == pytest.approx(line["final_train_loss"], rel=0.01)
    assert (scratch["run_type"], scratch["run_id"], scratch["lora_r"]) == ("scratch", 1, None)
    assert (adapted["run_type"], adapted["run_id"], adapted["lora_r"]) == ("lora", 2, 4)
    assert scratch["total_params"] == scratch["trainable_params"]
    # c_attn 16 -> 48 and c_proj 16 -> 16 and 64 -> 16, by rank 4
    assert adapted["lora_trainable_params"] == 4 * (64 + 32 + 80)
    assert adapted["total_params"] == scratch["total_params"] + adapted["trainable_params"]
    assert "pydoc_data.topics" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "pretrained/model/model.safetensors").exists()


def test_a_dry_run_pretrains_nothing(tmp_path):
    result = _run("world_a", f"--workdir={tmp_path}/run", "--modes=lora", "--dry_run", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "run_type=lora,lora_r=4" in result.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--modes", "scratch", "magic"),
            "'magic' is not among scratch|finetune|finetune_reg|lora",
        ),
        ((f"--output={ROOT}",), "cannot be used: Is a directory"),
        ((f"--output={ROOT}/README.md",), "README.md cannot be used: not a file of JSON lines"),
        (("--n_pairs=41",), "multiple of 5, got 41"),
    ],
)
def test_a_bad_flag_ends_in_one_line_with_status_2(arguments, words, tmp_path):
    result = _run("world_a", f"--workdir={tmp_path}/run", *arguments)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


TINY = dict(tokenizer="characters", Ks=(1,), layers=1, width=12)


@pytest.fixture
def unlearned(monkeypatch):
    """Tasks are made and learn nothing, which spares their compilation."""
    made = types.SimpleNamespace(num_params=(1, 0))
    monkeypatch.setattr(world_a, "Learner", lambda *_, **__: made)


@pytest.mark.usefixtures("unlearned")
def test_a_regime_has_its_own_decay_and_dropout(tmp_path, monkeypatch):
    decays = []
    make = lambda rate, **how: decays.append(how["weight_decay"])  # noqa: E731
    monkeypatch.setattr(world_a.training, "make_optimizer", make)
    setting = _setting(tmp_path, **TINY, n_pairs=4, modes=("scratch",))
    regime = world_a.Regime("scratch", "next_token", 1e-3, weight_decay=0.7, dropout=0.3)
    shape = world_a.Task(setting, regime).model.config
    assert decays == [0.7]
    assert (shape.dropout, shape.embed_dropout, shape.attention_dropout) == (0.3,) * 3


def test_maps_are_those_of_the_original_script():
    want = string_maps.StringMap(5, 40_000, 8, seed=47)
    assert world_a.string_map(world_a.Config(), 5) == want
    assert world_a.string_map(world_a.Config(), 8).seed == 50


@pytest.mark.usefixtures("unlearned")
def test_all_regimes_but_scratch_start_from_the_pretrained_weights(tmp_path):
    setting = _setting(tmp_path, **TINY, n_pairs=4, modes=("scratch",))
    for mode, rank in (("scratch", None), ("finetune", None), ("finetune_reg", None), ("lora", 2)):
        regime = world_a.Regime(mode, "next_token", 1e-3, 0.0, 0.0, rank)
        trained = world_a.Task(setting, regime).trainable
        assert trained.base is None if mode == "scratch" else trained.base == setting.params
        assert (trained.adapters is None) == (mode != "lora")
    assert trained.adapters.dropout == world_a.LORA_DROPOUT == 0.05


def test_the_mlp_is_trained_without_a_clip_as_the_original_was(monkeypatch):
    told = []
    spy = lambda rate, **how: told.append((rate, how))  # noqa: E731
    monkeypatch.setattr(world_a_mlp.training, "make_optimizer", spy)
    learner = world_a_mlp.make_learner(world_a_mlp.Config(Ks=(1,), lr=0.5, batch_size=7))
    assert told == [(0.5, dict(clip_norm=None))]
    assert (learner.token_mean, learner.dropout, learner.batch_size) == ("strings", False, 7)


@pytest.mark.usefixtures("unlearned")
def test_rates_warm_up_over_a_tenth_of_the_steps_and_fall_to_the_end(tmp_path, monkeypatch):
    told = []
    spy = lambda rate, **how: told.append((rate, how))  # noqa: E731
    monkeypatch.setattr(world_a.training, "make_optimizer", spy)
    monkeypatch.setattr(world_a.batching, "pack", lambda *_: jnp.zeros((64, 128), jnp.int32))
    pretrained = dict(pretrain_steps=30, pretrain_lr=0.25, weight_decay=0.125)
    learned = dict(n_pairs=50, batch_size=10, epochs=8, modes=("finetune",))
    setting = _setting(tmp_path, **TINY, **pretrained, **learned)
    assert setting.pretraining.num_steps == 30
    world_a.Task(setting, world_a.Regime("scratch", "next_token", 0.5, 0.75, 0.0))
    assert told == [
        (0.25, dict(warmup_steps=3, decay_steps=30, weight_decay=0.125)),
        (0.5, dict(warmup_steps=4, decay_steps=40, weight_decay=0.75)),
    ]


def test_a_report_says_where_weights_are_from_and_draws_the_mlps_gaps(monkeypatch):
    told = []
    monkeypatch.setattr(page.world_a_report, "write", lambda *given: told.append(given))
    monkeypatch.setattr(page.world_a_report, "read_mlp_results", lambda path: [path])
    line = dict(layers=1, width=12, max_len=9)
    workdir = types.SimpleNamespace(results=lambda: [line])
    for modes, said in ((("scratch",), False), (("scratch", "lora"), True)):
        page.report(workdir, world_a.Config(modes=modes, mlp_results="x"), [])
        *_, notes, others = told.pop()
        assert others == ["x"] and ("not from OpenAI's weights" in notes) == said
        assert notes.startswith("GPT-2 with 1 layers of width 12 (causal attention), tokenizer ")
