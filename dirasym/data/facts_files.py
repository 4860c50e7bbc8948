"""Readers of the public files: parent–child, person–description and T-REx.

Nothing of them is kept here. `facts` invents facts of the same shapes.
"""

import os
import pathlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, Literal, get_args

from dirasym import readers
from dirasym.data.facts import (
    RELATION_LABELS,
    FactSet,
    ParentChild,
    Query,
    Statement,
    Triple,
    invent_names,
    invent_parent_child,
    invent_person_description,
    invent_triples,
    parent_child,
    relation_facts,
)
from dirasym.data.text import name_pattern
from dirasym.usage import check_counts

PaperSet = Literal["p2c", "c2p", "p2d", "d2p", "trex"]


def paper_set(
    name: PaperSet,
    path: str | os.PathLike = "",
    *,
    num_pairs: int = 250,
    both_ways: int = 0,
    both_ways_from: Literal["invented", "file"] = "invented",
    name_words: int = 2,
    seed: int = 0,
) -> FactSet:
    """One of the five sets of arXiv 2602.02133 (App. C), named by the direction trained.

    Args:
      name: parent to child or back, person to description or back, or T-REx.
      path: the folder of the public files; everything is invented when empty.
      num_pairs: parent–child pairs asked about.
      both_ways: further pairs, trained in both directions and never asked.
      both_ways_from: whether these are invented, or further pairs of the file.
      name_words: words in an invented parent's or child's name.
      seed: of everything drawn.

    Raises:
      ValueError: an unknown set or source, a file is missing or cannot be used, or there are too
        few facts.
    """
    if name not in get_args(PaperSet):
        raise ValueError(f"name must be one of {', '.join(get_args(PaperSet))}, got {name!r}")
    if both_ways_from not in ("invented", "file"):
        raise ValueError(f"both_ways_from must be invented or file, got {both_ways_from!r}")
    folder = pathlib.Path(path)
    if name in ("p2c", "c2p"):
        pairs = invent_parent_child(num_pairs + both_ways, seed, name_words)
        if path:
            from_file = both_ways_from == "file"
            count = num_pairs + both_ways * from_file
            read = read_parent_child(folder / "parent_child_pairs.csv", count, seed)
            pairs = read + ([] if from_file else pairs[num_pairs:])
        return parent_child(pairs[:num_pairs], name, pairs[num_pairs:])
    if name in ("p2d", "d2p"):
        if path:
            return read_person_description(folder, name, seed=seed)
        return invent_person_description(direction=name, seed=seed)
    if not path:
        return relation_facts(invent_triples(seed=seed))
    files_found = sorted(folder.glob("*.json"))
    if not files_found:
        raise ValueError(f"{folder} holds no .json file")
    return relation_facts(read_trex(files_found, seed=seed))


def read_parent_child(
    path: str | os.PathLike, num_pairs: int | None = 250, seed: int = 0
) -> list[ParentChild]:
    """Pairs of Berglund et al.'s parent_child_pairs.csv (1513 rows).

    The paper uses 250 pairs and does not say which. Here: rows are shuffled by `seed`, and a
    row is kept if its parent has one child in the whole file and its child is not kept yet,
    so that either direction maps an entity to one other; the first `num_pairs` of them, all
    of them for None. `parents` still lists both parents, since either counts as an answer.

    Raises:
      ValueError: as `readers.read_table`, such as a row without child or parent, or fewer pairs
        than asked for.
    """
    rows = [row for _, row in readers.read_table(path, ("child", "parent"))]
    parents: dict[str, list[str]] = defaultdict(list)
    children: dict[str, set[str]] = defaultdict(set)
    for row in rows:
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
    drawn = random.Random(seed).sample(persons, len(persons))
    chosen = set(_first(drawn, num_persons, directory))
    pattern = name_pattern(persons)

    def about_chosen(statements):
        for statement in statements:
            text = f"{statement.prompt} {statement.answer}"
            people = set(pattern.findall(text))
            if len(people) != 1:
                raise ValueError(f"{directory}: {text!r} names {len(people)} of the persons asked")
            if people <= chosen:
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
    for number, row in readers.read_json_lines(path):
        try:
            statement = Statement(row["prompt"].strip(), row["completion"].strip())
        except (TypeError, KeyError, AttributeError):
            statement = Statement("", "")
        if not all(statement) or "\0" in "".join(statement):
            raise ValueError(f"{path}: row {number} lacks prompt or completion of plain text")
        statements.append(statement)
    return statements


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
      ValueError: a document or triple without the needed fields (its number is named), too few
        facts, or a number below 1.
    """
    check_counts(num_relations=num_relations, facts_per_relation=facts_per_relation)
    facts: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in paths:
        documents = readers.parse_json(readers.read_text(path), path)
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
    return RELATION_LABELS.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", name).lower())


def _first(items: list, count: int | None, source: Any) -> list:
    """The first `count` items, all for None. Raises ValueError if there are fewer."""
    if count is not None and count < 1:
        raise ValueError(f"{source}: {count} were asked for, and 1 is the least")
    if count is not None and count > len(items):
        raise ValueError(f"{source} gives {len(items)}, but {count} were asked for")
    return items[:count]
