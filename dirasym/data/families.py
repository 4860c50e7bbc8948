"""Closed family graphs as three-token sentences (after arXiv 2509.21993): person, relation, person.

A family has ten persons: two pairs of grandparents, the son and the daughter of each, and, of the
couple among these, a son and a daughter. Every couple has one son and one daughter, so that all
eight relations are functions:

    husband  wife  father  mother  son  daughter  brother  sister

A fact (s, r, o) says that the r of s is o; a family has 36. Its inverse is the one fact (o, ·, s).
Two relations compose where the r2 of the r1 of s, if it is not s, is always the r3 of s: the son of
a wife is a son.

What is asked is withheld from some families; its inverse is told there, and *closure* says how many
further relations are: with 0 the pairs are isolated, with 6 the graph is whole.
"""

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np

RELATIONS = ("husband", "wife", "father", "mother", "son", "daughter", "brother", "sister")
# (father, mother, son, daughter) of each couple, as persons of a family.
COUPLES = ((0, 1, 4, 5), (2, 3, 7, 6), (4, 6, 8, 9))
NUM_PERSONS = 10
# In the order in which closure adds them: by twos, each with its inverse.
COMPOSING = ("son", "father", "daughter", "mother", "brother", "sister", "husband", "wife")
_SEX = {  # the sex of a relation's object; that of its subject where couples and siblings tell
    "object": dict(zip(RELATIONS, "mfmfmfmf", strict=True)),
    "subject": {"husband": "f", "wife": "m", "brother": "f", "sister": "m"},
}

Fact = tuple[int, str, int]


def family() -> frozenset[Fact]:
    """All 36 facts of a family, its persons numbered 0 to 9.

    Examples:
      >>> len(family()), (4, "wife", 6) in family(), (8, "father", 4) in family()
      (36, True, True)
    """
    facts: set[Fact] = set()
    for father, mother, son, daughter in COUPLES:
        facts |= {(father, "wife", mother), (mother, "husband", father)}
        facts |= {(son, "sister", daughter), (daughter, "brother", son)}
        for child in (son, daughter):
            facts |= {(child, "father", father), (child, "mother", mother)}
        for parent in (father, mother):
            facts |= {(parent, "son", son), (parent, "daughter", daughter)}
    return frozenset(facts)


def inverses() -> dict[str, tuple[str, ...]]:
    """Of each relation r, which relations o has to s where the r of s is o."""
    found: dict[str, set[str]] = {relation: set() for relation in RELATIONS}
    for (s, relation, o), (t, back, p) in itertools.product(family(), repeat=2):
        if (s, o) == (p, t):
            found[relation].add(back)
    return {relation: tuple(sorted(backs)) for relation, backs in found.items()}


def compositions() -> dict[tuple[str, str], str]:
    """(r1, r2) -> r3: the r2 of the r1 of s, if it is not s, is the r3 of s, wherever there is one.

    Pairs that lead out of the eight relations, or to s alone, are left out.
    """
    facts = family()
    reached: dict[tuple[str, str], set[frozenset[str]]] = {}
    for (s, first, m), (n, second, o) in itertools.product(facts, repeat=2):
        if m == n and s != o:
            to = frozenset(r for t, r, p in facts if (t, p) == (s, o))
            reached.setdefault((first, second), set()).add(to)
    return {
        pair: next(iter(next(iter(ends))))
        for pair, ends in sorted(reached.items())
        if len(ends) == 1 and len(next(iter(ends))) == 1
    }


def derived(known: Iterable[Fact]) -> frozenset[Fact]:
    """What follows from known facts by inverses and compositions, themselves included.

    A fact also tells the sex of its persons, which says whether the inverse of a parent is a son or
    a daughter, and of a child a father or a mother.
    """
    facts, rules, back = set(known), compositions(), inverses()
    while True:
        sex = {o: _SEX["object"][r] for _, r, o in facts}
        sex |= {s: _SEX["subject"][r] for s, r, _ in facts if r in _SEX["subject"]}
        new = {
            (o, r, s)
            for s, relation, o in facts
            for r in back[relation]
            if len(back[relation]) == 1 or sex.get(s) == _SEX["object"][r]
        }
        new |= {
            (s, rules[first, second], o)
            for (s, first, m), (n, second, o) in itertools.product(facts, repeat=2)
            if m == n and s != o and (first, second) in rules
        }
        if new <= facts:
            return frozenset(facts)
        facts |= new


@dataclasses.dataclass(frozen=True)
class Families:
    """Facts of many families as tokens [E, 3]: person, relation, person.

    Attributes:
      train_EL: what is told.
      given_EL: of it, the inverse of every withheld fact, in the order of `withheld_EL`; empty
        where it is withheld too.
      withheld_EL: what is not told, and asked.
      shown_EL: what is told of the withheld relations, in the other families.
      vocab_size: the eight relations, and then the persons.
      family_V: of each token, its family; -1 for a relation.
      trained: names of the relations that are told anywhere.
    """

    train_EL: np.ndarray
    given_EL: np.ndarray
    withheld_EL: np.ndarray
    shown_EL: np.ndarray
    vocab_size: int
    family_V: np.ndarray
    trained: tuple[str, ...]


def told_relations(withheld: Iterable[str], closure: int) -> tuple[str, ...]:
    """The withheld relations, their inverses, and the first `closure` of the others.

    Examples:
      >>> told_relations(["husband"], 2)
      ('husband', 'wife', 'son', 'father')

    Raises:
      ValueError: no or an unknown relation, or more than there are.
    """
    withheld = list(dict.fromkeys(withheld))
    if not withheld or not set(withheld) <= set(RELATIONS):
        raise ValueError(f"withheld={','.join(withheld)} is not among {', '.join(RELATIONS)}")
    back = [r for relation in withheld for r in inverses()[relation]]
    pair = list(dict.fromkeys([*withheld, *back]))
    others = [relation for relation in COMPOSING if relation not in pair]
    if not 0 <= closure <= len(others):
        raise ValueError(
            f"closure={closure}: beside {', '.join(pair)} there are {len(others)} relations"
        )
    return (*pair, *others[:closure])


def families(
    num_families: int = 60,
    closure: int = 6,
    *,
    withheld: Iterable[str] = ("husband",),
    withheld_share: float = 0.25,
    seed: int = 0,
) -> Families:
    """Facts of families, of which the first share is not told the withheld relations.

    Args:
      num_families: of ten persons each, whose tokens are drawn without overlap.
      closure: how many relations are told beside the withheld ones and their inverses.
      withheld: relations of which no fact is told in the families that are asked.
      withheld_share: of families that are asked.
      seed: of the tokens.

    Raises:
      ValueError: as `told_relations`; a share that leaves no family to ask, or none that shows
        what is asked; or withheld facts that do not follow from what is told.
    """
    withheld = tuple(withheld)
    trained = told_relations(withheld, closure)
    num_asked = round(num_families * withheld_share)
    if not 0 < num_asked < num_families:
        raise ValueError(
            f"withheld_share={withheld_share} asks {num_asked} of {num_families} families"
        )
    told = sorted(fact for fact in family() if fact[1] in trained)
    asked = [fact for fact in told if fact[1] in withheld]
    rest = [fact for fact in told if fact[1] not in withheld]
    if not set(asked) <= derived(rest):
        raise ValueError(
            f"closure={closure} leaves nothing to ask: {', '.join(withheld)} cannot follow from "
            f"{', '.join(dict.fromkeys(r for _, r, _ in rest)) or 'nothing'}"
        )
    inverse = [fact for s, _, o in asked for fact in rest if (fact[0], fact[2]) == (o, s)]
    rng = np.random.default_rng(seed)
    token_FP = len(RELATIONS) + rng.permutation(num_families * NUM_PERSONS).reshape(-1, NUM_PERSONS)
    vocab_size = len(RELATIONS) + num_families * NUM_PERSONS
    family_V = np.full(vocab_size, -1)
    family_V[token_FP] = np.arange(num_families)[:, None]
    asked_FP, other_FP = token_FP[:num_asked], token_FP[num_asked:]
    return Families(
        train_EL=np.concatenate([_sentences(asked_FP, rest), _sentences(other_FP, told)]),
        given_EL=_sentences(asked_FP, inverse),
        withheld_EL=_sentences(asked_FP, asked),
        shown_EL=_sentences(other_FP, asked),
        vocab_size=vocab_size,
        family_V=family_V,
        trained=trained,
    )


def _sentences(token_FP: np.ndarray, facts: list[Fact]) -> np.ndarray:
    """Every fact of every family: int32 [families · facts, 3]."""
    if not facts:
        return np.zeros((0, 3), np.int32)
    s, r, o = zip(*[(s, RELATIONS.index(r), o) for s, r, o in facts], strict=True)
    relation_FP = np.broadcast_to(r, (len(token_FP), len(r)))
    columns = [token_FP[:, list(s)], relation_FP, token_FP[:, list(o)]]
    return np.stack(columns, axis=-1).reshape(-1, 3).astype(np.int32)
