"""Facts in words: parent–child, person–description and T-REx, read from files or invented.

A fact joins two entities. A `FactSet` trains on statements of one direction and asks both
ways (arXiv 2602.02133 §3, App. C). Everything drawn is a function of a seed.
"""

import csv
import json
import os
import pathlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Direction = Literal["p2c", "c2p"]


class Statement(NamedTuple):
    """Text to train on: a prompt and, after a space, its answer."""

    prompt: str
    answer: str


class Query(NamedTuple):
    """A prompt and the answers that count as right; the first is the one trained, if any is."""

    prompt: str
    answers: tuple[str, ...]


class FactSet(NamedTuple):
    """Statements of the forward direction, and queries both ways.

    `forward[i]` and `reverse[i]` need not ask about the same fact.
    """

    train: tuple[Statement, ...]
    forward: tuple[Query, ...]
    reverse: tuple[Query, ...]


class ParentChild(NamedTuple):
    """A row of the parent–child file; `parents` are all that the file names for the child."""

    child: str
    parent: str
    parents: tuple[str, ...]


class Triple(NamedTuple):
    """Relation(head) = tail; the relation is a noun, such as "capital"."""

    head: str
    relation: str
    tail: str


# ---------------------------------------------------------------------------------------
# Scoring


def normalise(text: str) -> str:
    """Lower case, without surrounding white space."""
    return text.strip().lower()


def is_exact_match(output: str, answers: Sequence[str]) -> bool:
    """Whether the output is one of the answers, both normalised."""
    return normalise(output) in {normalise(answer) for answer in answers}


def begins_with_answer(output: str, answers: Sequence[str]) -> bool:
    """Whether the output begins with one of the answers, both normalised, and not inside a word.

    Person-Description's trained sentences go on after the name that is asked for, which no
    exact match allows.
    """
    starts = "|".join(re.escape(normalise(answer)) for answer in answers)
    return re.match(rf"({starts})(?!\w)", normalise(output)) is not None


def is_copied(output: str, prompt: str) -> bool:
    """Whether the output is a run of the prompt's words, both normalised, full stops aside.

    "Ben Stiller's parent is" answered by "Ben Stiller.": the name that is asked about, which
    completes itself if names were learned by hiding parts of them.
    """
    words = " ".join(normalise(output).split()).rstrip(".")
    prompt = " ".join(normalise(prompt).split())
    return bool(words) and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", prompt) is not None


# ---------------------------------------------------------------------------------------
# Parent–child


def read_parent_child(
    path: str | os.PathLike, num_pairs: int | None = 250, seed: int = 0
) -> list[ParentChild]:
    """Pairs of Berglund et al.'s parent_child_pairs.csv (1513 rows).

    The paper uses 250 pairs and does not say which. Here: rows are shuffled by `seed`, and a
    row is kept if its parent has one child in the whole file and its child is not kept yet,
    so that either direction maps an entity to one other; the first `num_pairs` of them, all
    of them for None. `parents` still lists both parents, since either counts as an answer.

    Raises:
      ValueError: a row without child or parent (its number is named, the header being row
        1), or fewer pairs than asked for.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    parents, children = defaultdict(list), defaultdict(set)
    for number, row in enumerate(rows, 2):
        for name in ("child", "parent"):
            if not (row.get(name) or "").strip():
                raise ValueError(f"{path}: row {number} has no {name}")
        if row["parent"] not in parents[row["child"]]:
            parents[row["child"]].append(row["parent"])
        children[row["parent"]].add(row["child"])
    random.Random(seed).shuffle(rows)
    kept = {}
    for row in rows:
        child, parent = row["child"], row["parent"]
        if child not in kept and len(children[parent]) == 1:
            others = [name for name in parents[child] if name != parent]
            kept[child] = ParentChild(child, parent, (parent, *others))
    return _first(list(kept.values()), num_pairs, path)


def invent_parent_child(num_pairs: int, seed: int = 0, words: int = 2) -> list[ParentChild]:
    """Pairs of invented people, all different; names of `words` words."""
    names = invent_names(2 * num_pairs, seed, words)
    return [
        ParentChild(child, parent, (parent,))
        for child, parent in zip(names[::2], names[1::2], strict=True)
    ]


def parent_child(
    pairs: Sequence[ParentChild],
    direction: Direction = "p2c",
    both_ways: Sequence[ParentChild] = (),
) -> FactSet:
    """Trains "P's child is C" (p2c) or "C's parent is P" (c2p), and asks both.

    Args:
      pairs: trained in one direction, asked in both.
      direction: the one trained.
      both_ways: other pairs, trained in both directions and never asked: they teach a model
        that starts from nothing what the reverse wording means.

    Raises:
      ValueError: an unknown direction.
    """
    if direction not in ("p2c", "c2p"):
        raise ValueError(f"direction must be p2c or c2p, got {direction!r}")

    def ask_child(pair):
        return Query(f"{pair.parent}'s child is", (pair.child,))

    def ask_parent(pair):
        return Query(f"{pair.child}'s parent is", pair.parents)

    forward, reverse = ask_child, ask_parent
    if direction == "c2p":
        forward, reverse = reverse, forward
    train = [*map(forward, pairs), *map(forward, both_ways), *map(reverse, both_ways)]
    return FactSet(
        train=tuple(Statement(query.prompt, query.answers[0]) for query in train),
        forward=tuple(map(forward, pairs)),
        reverse=tuple(map(reverse, pairs)),
    )


# ---------------------------------------------------------------------------------------
# Person–description


def read_person_description(
    directory: str | os.PathLike,
    direction: Literal["p2d", "d2p"] = "p2d",
    num_persons: int | None = 10,
    seed: int = 0,
) -> FactSet:
    """Berglund et al.'s persons (30 a direction, 30 phrasings each).

    The paper uses 10 of the 30 and does not say which; here `seed` draws them from the
    sorted names, all of them for None. Test prompts, 10 a person, are phrased otherwise than
    the training prompts. The files end trained sentences with a full stop and names that are
    asked for without one: such an answer counts either way.

    Raises:
      ValueError: a line that is no JSON object with `prompt` and `completion` (its number is
        named), a line about none of the persons, or fewer persons than asked for.
    """
    if direction not in ("p2d", "d2p"):
        raise ValueError(f"direction must be p2d or d2p, got {direction!r}")
    directory = pathlib.Path(directory)
    parts = {
        "train": _read_prompts(directory / f"{direction}_prompts_train.jsonl"),
        "forward": _read_prompts(directory / f"{direction}_prompts_test.jsonl"),
        "reverse": _read_prompts(directory / f"{direction}_reverse_prompts_test.jsonl"),
    }
    named = parts["reverse" if direction == "p2d" else "forward"]
    persons = sorted({statement.answer for statement in named})
    chosen = random.Random(seed).sample(persons, len(persons))
    chosen = _first(chosen, num_persons, directory)

    def about_chosen(statements):
        for statement in statements:
            text = f"{statement.prompt} {statement.answer}"
            people = [name for name in persons if name in text]
            if len(people) != 1:
                raise ValueError(f"{directory}: {text!r} names {len(people)} of the persons asked")
            if people[0] in chosen:
                yield statement

    kept = {part: tuple(about_chosen(statements)) for part, statements in parts.items()}
    queries = {
        part: tuple(
            Query(prompt, tuple(dict.fromkeys((answer, answer.removesuffix(".") + "."))))
            for prompt, answer in kept[part]
        )
        for part in ("forward", "reverse")
    }
    return FactSet(kept["train"], queries["forward"], queries["reverse"])


def _read_prompts(path: pathlib.Path) -> list[Statement]:
    statements = []
    with path.open() as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                statement = Statement(row["prompt"].strip(), row["completion"].strip())
                if not all(statement):
                    raise ValueError("blank")
            except (ValueError, TypeError, KeyError, AttributeError):
                raise ValueError(f"{path}: row {number} lacks prompt or completion") from None
            statements.append(statement)
    return statements


_OPENINGS = ("", "As many know, ", "It is often told that ", "Of all people, ", "In short, ")
_LINKS = (
    "is known as", "became", "is remembered as", "will always be", "is none other than", "was once",
    "earned fame as", "is celebrated as",
)  # fmt: skip
_WORKS = ("novel", "symphony", "film", "game", "opera", "theorem", "bridge", "garden", "ship")
_ROLES = ("author", "maker", "inventor", "critic", "keeper", "patron", "first owner", "restorer")


def invent_person_description(
    num_persons: int = 10,
    num_phrasings: int = 30,
    direction: Literal["p2d", "d2p"] = "p2d",
    seed: int = 0,
) -> FactSet:
    """Invented persons and descriptions: 30 phrasings to train, 10 others to ask, each way.

    Raises:
      ValueError: more phrasings than there are (30), or an unknown direction.
    """
    if direction not in ("p2d", "d2p"):
        raise ValueError(f"direction must be p2d or d2p, got {direction!r}")
    phrasings = [(opening, link) for opening in _OPENINGS for link in _LINKS]
    if num_phrasings > len(phrasings) - 10:
        raise ValueError(f"there are {len(phrasings) - 10} phrasings, {num_phrasings} asked for")
    random.Random(seed).shuffle(phrasings)
    names = invent_names(2 * num_persons, seed)
    rng = random.Random(seed + 1)
    facts = [
        (person, f"the {rng.choice(_ROLES)} of the {rng.choice(_WORKS)} {title}")
        for person, title in zip(names[::2], names[1::2], strict=True)
    ]

    def forward(opening, link, person, description):
        first, second = (person, description) if direction == "p2d" else (description, person)
        return Statement(f"{opening}{first} {link}", second)

    def reverse(opening, link, person, description):
        return forward(opening, link, description, person)

    train = [forward(*words, *fact) for fact in facts for words in phrasings[10:][:num_phrasings]]
    asked = {
        way: tuple(
            Query(prompt, (answer,))
            for fact in facts
            for prompt, answer in (way(*words, *fact) for words in phrasings[:10])
        )
        for way in (forward, reverse)
    }
    return FactSet(tuple(train), asked[forward], asked[reverse])


# ---------------------------------------------------------------------------------------
# T-REx

_FORWARD = (
    "The {relation} of {head} is",
    "{head}'s {relation} is",
    "{head} has as its {relation}",
    "Asked for the {relation} of {head}, people say",
    "When it comes to {head}, the {relation} is",
)
_REVERSE = "{tail} is the {relation} of"
# Wikidata's labels of properties that are nearly functional both ways.
_LABELS = {
    "P6": "head of government",
    "P35": "head of state",
    "P36": "capital",
    "P37": "official language",
    "P38": "currency",
    "P26": "spouse",
    "P22": "father",
    "P25": "mother",
    "P112": "founder",
    "P127": "owner",
    "P155": "predecessor",
    "P156": "successor",
    "P159": "headquarters",
    "P169": "chief executive",
    "P206": "body of water",
    "P610": "highest point",
    "P1376": "capital territory",
}


def read_trex(
    paths: Iterable[str | os.PathLike],
    num_relations: int = 6,
    facts_per_relation: int = 15,
    seed: int = 0,
) -> list[Triple]:
    """Facts from T-REx's public JSON (Elsahar et al., 2018), their entities renamed.

    Each file is a list of documents with `triples` of `subject`, `predicate` and `object`,
    each with a `uri`. Relations are ranked by how nearly they are one-to-one: the share of
    their distinct facts whose head and tail both occur in one fact of the relation. The
    first `num_relations` that have `facts_per_relation` such facts are used, and `seed`
    draws the facts, no entity twice. Entities get invented names (`invent_names`).

    Raises:
      ValueError: a document or triple without the needed fields (its number is named), or
        too few facts.
    """
    facts: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in paths:
        try:
            documents = json.loads(pathlib.Path(path).read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        if not isinstance(documents, list):
            raise ValueError(f"{path} holds no list of documents")
        for number, document in enumerate(documents, 1):
            for head, relation, tail in _document_triples(path, number, document):
                facts[relation].add((head, tail))

    unique = {}
    for relation, pairs in facts.items():
        heads, tails = (Counter(side) for side in zip(*pairs, strict=True))
        unique[relation] = sorted(
            (head, tail) for head, tail in pairs if heads[head] == tails[tail] == 1
        )
    ranked = sorted(facts, key=lambda r: (-len(unique[r]) / len(facts[r]), -len(facts[r]), r))
    rng = random.Random(seed)
    used: set[str] = set()
    chosen: list[Triple] = []
    relations = 0
    for relation in ranked:
        free = [pair for pair in unique[relation] if not used & set(pair) and pair[0] != pair[1]]
        if len(free) < facts_per_relation or relations == num_relations:
            continue
        relations += 1
        taken = 0
        for head, tail in rng.sample(free, len(free)):
            if taken < facts_per_relation and not used & {head, tail}:
                used |= {head, tail}
                chosen.append(Triple(head, _relation_label(relation), tail))
                taken += 1
    if relations < num_relations or len(chosen) < num_relations * facts_per_relation:
        raise ValueError(
            f"T-REx files hold {relations} relations with {facts_per_relation} one-to-one facts, "
            f"{num_relations} asked for"
        )
    names = iter(invent_names(2 * len(chosen), seed))
    return [Triple(next(names), fact.relation, next(names)) for fact in chosen]


def _document_triples(path, number: int, document: Any) -> Iterable[tuple[str, str, str]]:
    try:
        triples = list(document["triples"])
    except (TypeError, KeyError):
        raise ValueError(f"{path}: document {number} has no triples") from None
    for place, triple in enumerate(triples, 1):
        try:
            uris = [triple[part]["uri"] for part in ("subject", "predicate", "object")]
            if not all(isinstance(uri, str) for uri in uris):
                raise TypeError
        except (TypeError, KeyError):
            raise ValueError(
                f"{path}: document {number}, triple {place} lacks the uri of a subject, "
                "predicate or object"
            ) from None
        yield tuple(uris)


def _relation_label(uri: str) -> str:
    name = re.split(r"[/#]", uri)[-1]
    return _LABELS.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name).lower())


def invent_triples(
    num_relations: int = 6, facts_per_relation: int = 15, seed: int = 0
) -> list[Triple]:
    """Invented facts of T-REx's shape: by default 90 facts of 6 relations.

    Raises:
      ValueError: more relations than there are names for.
    """
    labels = sorted(set(_LABELS.values()))
    if num_relations > len(labels):
        raise ValueError(f"there are {len(labels)} relations, {num_relations} asked for")
    relations = random.Random(seed).sample(labels, num_relations)
    names = iter(invent_names(2 * num_relations * facts_per_relation, seed))
    return [
        Triple(next(names), relation, next(names))
        for relation in relations
        for _ in range(facts_per_relation)
    ]


def relation_facts(triples: Sequence[Triple]) -> FactSet:
    """Five phrasings of each fact, head first, to train; the first to ask, and its inverse."""

    def ask(template, triple, answer):
        return Query(template.format(**triple._asdict()), (answer,))

    return FactSet(
        train=tuple(
            Statement(template.format(**triple._asdict()), triple.tail)
            for triple in triples
            for template in _FORWARD
        ),
        forward=tuple(ask(_FORWARD[0], triple, triple.tail) for triple in triples),
        reverse=tuple(ask(_REVERSE, triple, triple.head) for triple in triples),
    )


# ---------------------------------------------------------------------------------------
# Names and tokens

_ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "th")
_VOWELS = ("a", "e", "i", "o", "u", "ae", "ia")
_CODAS = ("", "l", "n", "r", "s", "th", "x")


def invent_names(count: int, seed: int = 0, words: int = 2) -> list[str]:
    """Different pronounceable names, no word of which is used twice: "Brelan Thosir".

    Raises:
      ValueError: more than 100,000 words, where new ones become hard to find.
    """
    if count * words > 100_000:
        raise ValueError(f"{count} names of {words} words are more than can be invented")
    rng = random.Random(f"names {seed}")  # strings seed alike on every machine
    seen: dict[str, None] = {}
    while len(seen) < count * words:
        syllables = (
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
            for _ in range(rng.choice((2, 3)))
        )
        seen["".join(syllables).capitalize()] = None
    spelled = list(seen)
    return [" ".join(spelled[i : i + words]) for i in range(0, count * words, words)]


class WordTokenizer:
    """Words, such as "O'Connell" and "Mary-Kate", and punctuation marks as tokens.

    Attributes:
      pad_id, eos_id, mask_id: 0, 1 and 2.
      vocab_size: these three and every word seen.
    """

    pad_id, eos_id, mask_id = 0, 1, 2
    _WORD = re.compile(r"'s\b|\w+(?:[-'’.](?!s\b)\w+)*|[^\w\s]")

    def __init__(self, texts: Iterable[str]):
        words = sorted({word for text in texts for word in self._WORD.findall(text)})
        self._words = ["<pad>", "<eos>", "<mask>", *words]
        self._ids = {word: number for number, word in enumerate(self._words)}
        self.vocab_size = len(self._words)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text. Raises ValueError, naming the first word not known."""
        try:
            return [[self._ids[word] for word in self._WORD.findall(text)] for text in texts]
        except KeyError as error:
            raise ValueError(f"word {error} is not in the vocabulary") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Words joined by spaces, "'s", punctuation and the inside of quotes without."""
        text = " ".join(self._words[number] for number in ids)
        text = re.sub(r" (?='s\b|[^\w\s<\"])", "", text)
        return re.sub(r'" ?([^"]*?) ?"', r'"\1"', text)


def pad(rows: Sequence[Sequence[int]], pad_id: int, left: bool = False, length: int | None = None):
    """(tokens, valid) as int32 and bool [rows, length]; by default the longest row's length.

    Raises:
      ValueError: a row is longer than `length`.
    """
    longest = max(map(len, rows))
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"a row of {longest} tokens is longer than {length}")
    tokens = np.full((len(rows), length), pad_id, np.int32)
    valid = np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        place = slice(length - len(row), None) if left else slice(len(row))
        tokens[number, place] = row
        valid[number, place] = True
    return tokens, valid


def training_arrays(
    statements: Sequence[Statement], tokenizer: Any, max_len: int | None = None
) -> dict[str, np.ndarray]:
    """`Batch` fields of all statements, right-padded: tokens_BL, valid_BL and scored_BL.

    A row is prompt, space and answer, end of sequence; the answer and the end are scored.

    Raises:
      ValueError: a statement longer than `max_len`.
    """
    prompts = tokenizer.encode([statement.prompt for statement in statements])
    answers = tokenizer.encode([f" {statement.answer}" for statement in statements])
    rows = []
    for statement, prompt, answer in zip(statements, prompts, answers, strict=True):
        rows.append([*prompt, *answer, tokenizer.eos_id])
        if max_len is not None and len(rows[-1]) > max_len:
            raise ValueError(
                f"{statement.prompt!r} with its answer has {len(rows[-1])} tokens, "
                f"the context {max_len}"
            )
    tokens, valid = pad(rows, tokenizer.pad_id)
    starts = np.array([len(prompt) for prompt in prompts])
    scored = valid & (np.arange(tokens.shape[1]) >= starts[:, None])
    return {"tokens_BL": tokens, "valid_BL": valid, "scored_BL": scored}


def name_units(
    statements: Sequence[Statement], names: Iterable[str], tokenizer: Any, length: int
) -> np.ndarray:
    """`Batch.unit_BL` of `training_arrays`' rows: each answer, and each name in a prompt, a unit.

    Args:
      statements: as given to `training_arrays`.
      names: to look for in prompts, from left to right, the longest that begins at a place.
      tokenizer: whose tokens begin with the space before a word, if they hold one. A token that
        reaches beyond a name's end belongs to the name.
      length: of the rows.

    Returns:
      int32 [len(statements), length].
    """
    either = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    pattern = re.compile(rf"(?<!\w)({either})(?!\w)")
    unit_BL = np.tile(np.arange(length, dtype=np.int32), (len(statements), 1))
    for unit_L, (prompt, answer) in zip(unit_BL, statements, strict=True):
        texts = [prompt, f" {answer}"]
        for match in pattern.finditer(prompt):
            texts += [prompt[: match.start()].rstrip(), prompt[: match.end()]]
        prompt_end, answer_size, *bounds = map(len, tokenizer.encode(texts))
        bounds += [prompt_end, prompt_end + answer_size]
        for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
            unit_L[start:stop] = start
    return unit_BL


def _first(items: list, count: int | None, source: Any) -> list:
    """The first `count` items, all for None. Raises ValueError if there are fewer."""
    if count is not None and count > len(items):
        raise ValueError(f"{source} gives {len(items)}, but {count} were asked for")
    return items[:count]
