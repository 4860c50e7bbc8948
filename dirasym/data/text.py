"""When two texts are one answer, and where names stand in a text."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

# The joiners U+200C and U+200D do show, in Persian, Indic scripts and emoji.
_UNSEEN = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def normalise(text: str) -> str:
    r"""What two texts share that count as one answer.

    Unicode's NFKC in lower case, so that accents may be composed or not and a no-break space is
    a space; runs of white space are one space, at the ends and beside punctuation none, where
    tokenizers put in or leave out what they like. Marks that nobody sees (a space of no width, a
    soft hyphen, marks of direction), which come with what is copied from a page, are nothing.

    Examples:
      >>> normalise("  O' Neil (The\u00a0Rock) ")
      "o'neil(the rock)"
    """
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).lower()
    text = unicodedata.normalize("NFKC", text)
    return re.sub(r" ?([^\w\s]) ?", r"\1", " ".join(text.split()))


def is_exact_match(output: str, answers: Sequence[str]) -> bool:
    """Whether the output is one of the answers, all normalised."""
    return normalise(output) in {normalise(answer) for answer in answers}


def begins_with_answer(output: str, answers: Sequence[str]) -> bool:
    """Whether the output begins with one of the answers, all normalised, and not inside a word.

    Person-Description's trained sentences go on after the name that is asked for, which no
    exact match allows.
    """
    output = normalise(output)
    return any(re.match(_whole(normalise(answer)), output) for answer in answers)


def is_copied(output: str, prompt: str) -> bool:
    """Whether the output is a run of the prompt's words, both normalised, full stops aside.

    "Ben Stiller's parent is" answered by "Ben Stiller.": the name that is asked about, which
    completes itself if names were learned by hiding parts of them.
    """
    words = normalise(output).rstrip(".")
    return bool(words) and re.search(_whole(words), normalise(prompt)) is not None


def _whole(words: str) -> str:
    """A pattern of these words that no letter touches: letters do not touch punctuation."""
    before = r"(?<!\w)" if re.match(r"\w", words) else ""
    return before + re.escape(words) + (r"(?!\w)" if re.search(r"\w\Z", words) else "")


def name_pattern(names: Iterable[str]) -> re.Pattern:
    """Finds whole names, the longest that begins at a place: in "Ann Bowie" there is no "Ann Bo".

    Raises:
      ValueError: there is no name.
    """
    names = sorted(set(names), key=lambda name: (-len(name), name))
    if not all(names) or not names:
        raise ValueError("there is no name to look for")
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, names))})(?!\w)")
