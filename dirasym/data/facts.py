"""Facts in words, and facts invented in the papers' shapes.

A fact joins two entities. A `FactSet` trains on statements of one direction and asks both
ways (arXiv 2602.02133 §3, App. C). `pairs` makes one of a user's own facts, `facts_files` of
public files. Everything drawn is a function of a seed.
"""

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

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

    def texts(self) -> list[str]:
        """All that a tokenizer must know: what is told, every question with every right answer.

        The questions stand there after a space too, where some tokenizers write a word otherwise.
        """
        asked = [
            (query.prompt, answer)
            for query in self.forward + self.reverse
            for answer in query.answers
        ]
        after_spaces = [f" {query.prompt}" for query in self.forward + self.reverse]
        return [f"{prompt} {answer}" for prompt, answer in [*self.train, *asked]] + after_spaces


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
# Parent–child


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
RELATION_LABELS = {
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


def invent_triples(
    num_relations: int = 6, facts_per_relation: int = 15, seed: int = 0
) -> list[Triple]:
    """Invented facts of T-REx's shape: by default 90 facts of 6 relations.

    Raises:
      ValueError: more relations than there are names for.
    """
    labels = sorted(set(RELATION_LABELS.values()))
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
# Names

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
