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


def test_parents_and_children_are_told_and_asked_in_their_own_words():
    one = [facts.ParentChild("Cy", "Ann", ("Ann", "Bo"))]
    both = [facts.ParentChild("Ed", "Dee", ("Dee", "Gus"))]
    child, parent = ("Ann's child is", "Cy"), ("Cy's parent is", "Ann")
    both_ways = ("Dee's child is", "Ed"), ("Ed's parent is", "Dee")
    data = facts.parent_child(one, "p2c", both)
    assert data.train == (child, *both_ways)
    assert data.forward == ((child[0], ("Cy",)),)
    assert data.reverse == ((parent[0], ("Ann", "Bo")),)  # either parent is right
    back = facts.parent_child(one, "c2p", both)
    assert back.train == (parent, *both_ways[::-1])
    assert (back.forward, back.reverse) == (data.reverse, data.forward)


@pytest.mark.parametrize("direction", ["p2d", "d2p"])
def test_persons_are_told_before_their_descriptions_or_behind_them(direction):
    data = facts.invent_person_description(3, 2, direction, seed=4)
    assert (len(data.train), len(data.forward)) == (3 * 2, 3 * 10)
    names = set(facts.invent_names(6, seed=4)[::2])
    told = {s.answer for s in data.train}, {q.answers[0] for q in data.forward}
    asked_back = {q.answers[0] for q in data.reverse}
    persons = [asked_back] if direction == "p2d" else list(told)
    assert all(answers == names for answers in persons)
    for answers in told if direction == "p2d" else [asked_back]:
        assert len(answers) == 3 and all(text.startswith("the ") for text in answers)


def test_a_seed_draws_which_words_are_asked_in():
    asked = []
    for seed in (0, 1):
        person, title = facts.invent_names(2, seed)
        (prompt, (description,)), *_ = facts.invent_person_description(1, seed=seed).forward
        assert prompt.count(person) == 1 and description.endswith(title)
        asked.append(prompt.replace(person, ""))
    assert asked[0] != asked[1]


def test_a_triple_is_told_in_five_ways_and_asked_in_one_each_way():
    data = facts.relation_facts([facts.Triple("Fra", "capital", "Par")])
    assert len(set(data.train)) == 5
    for prompt, answer in data.train:
        assert "Fra" in prompt and "capital" in prompt and answer == "Par"
    assert data.forward == (("The capital of Fra is", ("Par",)),)
    assert data.forward[0].prompt == data.train[0].prompt
    assert data.reverse == (("Par is the capital of", ("Fra",)),)


def test_as_much_is_invented_as_asked_for():
    triples = facts.invent_triples(2, 3, seed=1)
    assert len(triples) == 6 and len({triple.relation for triple in triples}) == 2
    for words in (1, 3):
        data = facts_files.paper_set("p2c", num_pairs=2, both_ways=1, name_words=words)
        names = {name for query in data.forward + data.reverse for name in query.answers}
        names |= {statement.answer for statement in data.train}
        assert len(names) == 6 and all(len(name.split()) == words for name in names)


def test_invented_facts_have_the_papers_shape():
    data = facts.invent_person_description()
    assert (len(data.train), len(data.forward), len(data.reverse)) == (300, 100, 100)
    assert len(set(data.train)) == 300
    asked = {query.prompt for query in data.forward}
    assert len(asked) == 100 and not asked & {statement.prompt for statement in data.train}
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


def test_trex_uses_no_entity_twice_and_no_head_of_several_tails(tmp_path):
    path = tmp_path / "trex.json"
    for facts_of in (
        [("Q1", "P36", "Q2"), ("Q2", "P36", "Q3")],  # Q2 is a tail and a head
        [("Q1", "P36", "Q1"), ("Q2", "P36", "Q3")],
        [("Q1", "P36", "Q2"), ("Q1", "P36", "Q3"), ("Q4", "P36", "Q5")],
        [("Q2", "P36", "Q1"), ("Q3", "P36", "Q1"), ("Q4", "P36", "Q5")],
    ):
        path.write_text(json.dumps([_trex_document(facts_of)]))
        assert len(facts_files.read_trex([path], 1, 1)) == 1
        with pytest.raises(ValueError, match="with 2 one-to-one facts, 1 asked for"):
            facts_files.read_trex([path], 1, 2)


def test_parents_of_one_child_are_kept_and_both_parents_are_right(tmp_path):
    path = tmp_path / "pairs.csv"
    rows = ["Cy,Ann", "Cy,Bo", "Ed,Dee", "Fay,Dee", "Hal,Ivy", "Cy,Ann"]
    path.write_text("\n".join(["child,parent", *rows]))
    for seed in range(5):
        kept = {x.child: x for x in facts_files.read_parent_child(path, None, seed)}
        assert set(kept) == {"Cy", "Hal"}  # Dee has two children
        assert kept["Hal"] == ("Hal", "Ivy", ("Ivy",))
        _, told, right = kept["Cy"]
        assert right in (("Ann", "Bo"), ("Bo", "Ann")) and told == right[0]


PERSONS = {"Ann Bo": "the maker of Arc", "Cy Dee": "the critic of Ode", "Ed": "the patron of Sea"}


def _write_persons(folder):
    """Files in which each person is told twice, and asked once each way."""
    facts_of = {"p2d": list(PERSONS.items()), "d2p": [(b, a) for a, b in PERSONS.items()]}
    for way, pairs in facts_of.items():
        parts = {
            "prompts_train": [(f"{x}{word} is", f"{y}.") for x, y in pairs for word in ("", ",")],
            "prompts_test": [(f"Now {x} is", y) for x, y in pairs],
            "reverse_prompts_test": [(f"Now {y} is", x) for x, y in pairs],
        }
        for part, lines in parts.items():
            rows = [json.dumps({"prompt": f"{a} ", "completion": f" {b}"}) for a, b in lines]
            (folder / f"{way}_{part}.jsonl").write_text("\n".join(rows))


@pytest.mark.parametrize("direction", ["p2d", "d2p"])
def test_drawn_persons_alone_are_told_and_asked_each_way(direction, tmp_path):
    _write_persons(tmp_path)
    chosen = set()
    for seed in range(8):
        data = facts_files.read_person_description(tmp_path, direction, 1, seed)
        ((prompt, answers),) = data.forward
        first, second = answers[0], data.reverse[0].answers[0]
        assert prompt == f"Now {second} is" and answers == (first, f"{first}.")
        assert data.reverse == ((f"Now {first} is", (second, f"{second}.")),)
        assert data.train == ((f"{second} is", f"{first}."), (f"{second}, is", f"{first}."))
        person, description = (second, first) if direction == "p2d" else (first, second)
        assert PERSONS[person] == description
        chosen.add(person)
    assert len(chosen) > 1
    whole = facts_files.read_person_description(tmp_path, direction, None)
    assert (len(whole.train), len(whole.forward), len(whole.reverse)) == (6, 3, 3)


def test_a_seed_draws_what_is_taken_of_the_papers_files(tmp_path):
    _write_persons(tmp_path)
    more = {f"Person {letter}": f"the owner of {letter}" for letter in "ABCDEFGHIJ"}
    for part in ("prompts_train", "prompts_test", "reverse_prompts_test"):
        rows = [(b, a) if "reverse" in part else (a, b) for a, b in more.items()]
        lines = [json.dumps({"prompt": a, "completion": b}) for a, b in rows]
        with (tmp_path / f"p2d_{part}.jsonl").open("a") as file:
            file.write("\n" + "\n".join(lines))
    rows = [f"C{n},P{n}" for n in range(30)]
    (tmp_path / "parent_child_pairs.csv").write_text("\n".join(["child,parent", *rows]))
    triples = [(f"Q{n}{r}", f"P{r}", f"Q{n}{r}0") for r in (22, 25, 26, 35, 36, 38)
               for n in range(20)]  # fmt: skip
    (tmp_path / "trex.json").write_text(json.dumps([_trex_document(triples)]))
    for name, how in (("p2c", dict(num_pairs=9)), ("p2d", {}), ("trex", {})):
        first, again, other = (
            facts_files.paper_set(name, tmp_path, seed=seed, **how) for seed in (0, 0, 1)
        )
        assert first == again and first.forward != other.forward


def test_sets_and_counts_that_cannot_be_are_named(tmp_path):
    _write_persons(tmp_path)
    (tmp_path / "parent_child_pairs.csv").write_text("child,parent\nAnn,Bo\nCy,Dee\n")
    with pytest.raises(ValueError, match=r"name must be one of p2c, c2p, .*, got 'p2b'"):
        facts_files.paper_set("p2b", tmp_path)
    with pytest.raises(ValueError, match="both_ways_from must be invented or file, got 'files'"):
        facts_files.paper_set("p2c", tmp_path, num_pairs=1, both_ways_from="files")
    for count in (0, -1):
        with pytest.raises(ValueError, match=rf"parent_child_pairs\.csv: {count} were asked for"):
            facts_files.read_parent_child(tmp_path / "parent_child_pairs.csv", count)
        with pytest.raises(ValueError, match=rf"{count} were asked for, and 1 is the least"):
            facts_files.read_person_description(tmp_path, "p2d", count)
        with pytest.raises(ValueError, match=rf"num_relations must be .* from 1, got {count}"):
            facts_files.read_trex([], num_relations=count)
        with pytest.raises(ValueError, match=rf"facts_per_relation must be .* got {count}"):
            facts_files.read_trex([], facts_per_relation=count)


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
    train = tmp_path / "p2d_prompts_train.jsonl"
    for row in (
        '{"a": 1}',
        '{"prompt": "a", "completion": 3}',
        r'{"prompt": "a\u0000", "completion": "b"}',
    ):
        train.write_text('{"prompt": "a", "completion": "b"}\n' + row)
        with pytest.raises(ValueError, match="row 2 lacks prompt or completion of plain text"):
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
