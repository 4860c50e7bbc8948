import json
import pathlib
import subprocess
import sys

import pytest

from dirasym.data import facts, facts_files, text, tokenizers

PUBLIC = pathlib.Path(__file__).parents[3] / "shared/data/reversal_curse"
needs_public = pytest.mark.skipif(not PUBLIC.exists(), reason="public files are not here")


@needs_public
def test_public_parent_child_pairs_are_a_one_to_one_map():
    pairs = facts_files.read_parent_child(PUBLIC / "parent_child_pairs.csv")
    assert len(pairs) == 250 == len({p.child for p in pairs}) == len({p.parent for p in pairs})
    assert pairs == facts_files.read_parent_child(PUBLIC / "parent_child_pairs.csv")
    assert pairs != facts_files.read_parent_child(PUBLIC / "parent_child_pairs.csv", seed=1)
    everything = facts_files.read_parent_child(PUBLIC / "parent_child_pairs.csv", None)
    assert everything[:250] == pairs and len(everything) > 500
    both = [pair for pair in everything if len(pair.parents) == 2]
    query = facts.parent_child(both[:1], "p2c").reverse[0]
    assert all(text.is_exact_match(f" {name.upper()}\n", query.answers) for name in both[0].parents)


@needs_public
@pytest.mark.parametrize("direction", ["p2d", "d2p"])
def test_public_persons(direction):
    data = facts_files.read_person_description(PUBLIC, direction)
    assert (len(data.train), len(data.forward), len(data.reverse)) == (300, 100, 100)
    whole = facts_files.read_person_description(PUBLIC, direction, None)
    assert (len(whole.train), len(whole.forward), len(whole.reverse)) == (900, 300, 300)
    assert set(data.train) <= set(whole.train)
    asked = data.reverse if direction == "p2d" else data.forward
    assert len({query.answers for query in asked}) == 10
    assert not {query.prompt for query in data.forward} & {s.prompt for s in data.train}


@pytest.mark.parametrize("direction", ["p2c", "c2p"])
def test_parent_child_trains_one_way_and_asks_both(direction):
    pairs = facts.invent_parent_child(7, seed=3)
    data = facts.parent_child(pairs[:5], direction, both_ways=pairs[5:])
    words = {"p2c": "'s child is", "c2p": "'s parent is"}
    one_way = {name for pair in pairs[:5] for name in pair[:2]}
    for prompt, _ in data.train:
        if prompt.split("'s")[0] in one_way:
            assert prompt.endswith(words[direction])
    assert len(data.train) == 9 and len(data.forward) == len(data.reverse) == 5
    trained = set(data.train)
    assert all((query.prompt, query.answers[0]) in trained for query in data.forward)
    assert not any((query.prompt, query.answers[0]) in trained for query in data.reverse)
    with pytest.raises(ValueError, match="direction must be"):
        facts.parent_child(pairs, "p2p")


def test_invented_facts_have_the_papers_shape():
    data = facts.invent_person_description()
    assert (len(data.train), len(data.forward), len(data.reverse)) == (300, 100, 100)
    assert len(set(data.train)) == 300
    triples = facts.invent_triples()
    assert len(triples) == 90 and len({t.relation for t in triples}) == 6
    data = facts.relation_facts(triples)
    assert (len(data.train), len(data.forward), len(data.reverse)) == (450, 90, 90)
    names = [name for t in triples for name in (t.head, t.tail)]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="30 phrasings, 31 asked"):
        facts.invent_person_description(num_phrasings=31)


def test_invented_names_are_the_same_in_every_process():
    code = "from dirasym.data import facts; print(facts.invent_names(3, seed=5))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "123", "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    )  # fmt: skip
    assert other.stdout.strip() == str(facts.invent_names(3, seed=5))


def _trex_document(facts_of):
    uri = "http://www.wikidata.org/entity/"
    return {
        "docid": "Q1",
        "triples": [
            {
                "subject": {"uri": uri + head, "surfaceform": head},
                "predicate": {"uri": uri + relation},
                "object": {"uri": uri + tail, "surfaceform": tail},
            }
            for head, relation, tail in facts_of
        ],
    }


def test_trex_takes_near_functional_relations_and_renames_entities(tmp_path):
    capital = [(f"Q{i}", "P36", f"Q{100 + i}") for i in range(6)]
    mother = [(f"Q{200 + i}", "P25", f"Q{300 + i}") for i in range(4)] + [("Q204", "P25", "Q300")]
    country = [(f"Q{400 + i}", "P17", "Q500") for i in range(20)]
    path = tmp_path / "trex.json"
    documents = [_trex_document(capital[:3] + country), _trex_document(capital + mother)]
    path.write_text(json.dumps(documents))
    triples = facts_files.read_trex([path], num_relations=2, facts_per_relation=3)
    assert [t.relation for t in triples] == ["capital"] * 3 + ["mother"] * 3
    assert not any(name.startswith("Q") for t in triples for name in (t.head, t.tail))
    assert facts.relation_facts(triples).forward[0].prompt.startswith("The capital of")
    with pytest.raises(ValueError, match="hold 2 relations"):
        facts_files.read_trex([path], num_relations=3, facts_per_relation=3)
    documents[1]["triples"][4]["object"] = {}
    path.write_text(json.dumps(documents))
    with pytest.raises(ValueError, match="document 2, triple 5 lacks"):
        facts_files.read_trex([path])
    for whole, message in (
        ([{"triples": None}], "document 1 has no triples"),
        ([{"triples": [{p: {"uri": None} for p in ("subject", "predicate", "object")}]}], "lacks"),
        ({"triples": []}, "holds no list of documents"),
    ):
        path.write_text(json.dumps(whole))
        with pytest.raises(ValueError, match=message):
            facts_files.read_trex([path])


def test_bad_rows_are_numbered(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("child,parent\nA,B\nC,\n")
    with pytest.raises(ValueError, match="row 3 has no parent"):
        facts_files.read_parent_child(path)
    path.write_text("child,parent\nA,B\n")
    with pytest.raises(ValueError, match="1, but 250"):
        facts_files.read_parent_child(path)
    for part in ("prompts_train", "prompts_test", "reverse_prompts_test"):
        (tmp_path / f"p2d_{part}.jsonl").write_text(
            '{"prompt": "a", "completion": "b"}\n{"a": 1}\n'
        )
    with pytest.raises(ValueError, match="row 2 lacks prompt or completion"):
        facts_files.read_person_description(tmp_path)


@needs_public
def test_answers_of_the_public_files_round_trip_in_words():
    pairs = facts_files.read_parent_child(PUBLIC / "parent_child_pairs.csv", num_pairs=None)
    texts = [f"{name}'s child is" for pair in pairs for name in (pair.child, *pair.parents)]
    for direction in ("p2d", "d2p"):
        data = facts_files.read_person_description(PUBLIC, direction, num_persons=None)
        texts += [x for query in data.forward + data.reverse for x in query.answers]
    tokenizer = tokenizers.Words(texts)
    decoded = [tokenizer.decode(ids) for ids in tokenizer.encode(texts)]
    assert [x for x, y in zip(texts, decoded, strict=True) if x != y] == []


@pytest.mark.parametrize("name", ["p2c", "c2p", "p2d", "d2p", "trex"])
def test_the_papers_sets_are_had_by_name(name, tmp_path):
    data = facts_files.paper_set(name, num_pairs=4, both_ways=3, seed=5)
    assert data == facts_files.paper_set(name, num_pairs=4, both_ways=3, seed=5)
    assert data != facts_files.paper_set(name, num_pairs=4, both_ways=3, seed=6)
    if name in ("p2c", "c2p"):
        assert len(data.forward) == len(data.reverse) == 4 and len(data.train) == 4 + 2 * 3
        asked = {answer for query in data.forward + data.reverse for answer in query.answers}
        assert not asked & {statement.answer for statement in data.train[4:]}
    with pytest.raises(ValueError, match=str(tmp_path)):
        facts_files.paper_set(name, tmp_path)


def test_pairs_told_both_ways_are_invented_or_of_the_file(tmp_path):
    rows = "".join(f"C{n},P{n},x,y\n" for n in range(9))
    (tmp_path / "parent_child_pairs.csv").write_text("child,parent,a,b\n" + rows)
    how = dict(num_pairs=4, both_ways=3, seed=1)
    invented = facts_files.paper_set("p2c", tmp_path, **how)
    of_file = facts_files.paper_set("p2c", tmp_path, both_ways_from="file", **how)
    assert invented.forward == of_file.forward and invented.train[:4] == of_file.train[:4]
    told = [{statement.answer[0] for statement in data.train[4:]} for data in (invented, of_file)]
    assert told[1] == {"C", "P"} and not told[0] <= {"C", "P"}
    with pytest.raises(ValueError, match="gives 9, but 10 were asked for"):
        facts_files.paper_set("p2c", tmp_path, num_pairs=4, both_ways=6, both_ways_from="file")


@pytest.mark.parametrize("direction", ["p2d", "d2p"])
def test_invented_persons_are_asked_in_words_that_were_not_told(direction):
    data = facts.invent_person_description(direction=direction)
    told = {statement.prompt for statement in data.train}
    assert not told & {query.prompt for query in data.forward + data.reverse}


def test_trex_prefers_the_share_of_one_to_one_facts_to_their_number(tmp_path):
    many = [(f"Q{i}", "P36", f"Q{100 + i}") for i in range(4)]
    many += [(f"Q{200 + i}", "P36", "Q300") for i in range(4)]
    few = [(f"Q{400 + i}", "P25", f"Q{500 + i}") for i in range(3)]
    path = tmp_path / "trex.json"
    path.write_text(json.dumps([_trex_document(many + few)]))
    triples = facts_files.read_trex([path], num_relations=1, facts_per_relation=3)
    assert [triple.relation for triple in triples] == ["mother"] * 3
