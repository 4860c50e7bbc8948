import json

import numpy as np
import pytest

from dirasym.data.facts import Query, Statement
from dirasym.data.pairs import Pairs

WORDING = dict(forward="The capital of {a} is {b}", reverse="{b} is the capital of {a}")
COLUMNS = dict(a="country", b="capital")
NAMES = (("France", "Paris"), ("Côte d'Ivoire", "Yamoussoukro"))
CSV = "country,capital\nFrance,Paris\nCôte d'Ivoire,Yamoussoukro\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", CSV),
        ("mark.csv", "\ufeff" + CSV),
        ("windows.csv", CSV.replace("\n", "\r\n")),
        ("old_mac.csv", CSV.replace("\n", "\r")),
        ("last_line_open.csv", CSV.rstrip()),
        ("blanks.csv", "\n".join(" , ".join(x.split(",")) for x in CSV.splitlines()) + "\n \n\n"),
        ("quoted.csv", CSV.replace("France", '"France"').replace("Paris", '" Paris"')),
        ("header.csv", CSV.replace("country,capital", " Country,CAPITAL")),
        ("order.csv", "capital,of,country\nParis,x,France\nYamoussoukro,,Côte d'Ivoire\n"),
        ("semicolons.csv", CSV.replace(",", ";")),
        ("bars.txt", CSV.replace(",", "|")),
        ("tabs.tsv", CSV.replace(",", "\t")),
        ("LINES.JSONL", "\n".join(json.dumps({"country": a, "capital": b}) for a, b in NAMES)),
        ("lines.jsonl", "\n".join(json.dumps({"country": a, "capital": b}) for a, b in NAMES)),
        ("lines.json", "\n".join(json.dumps({"country": a, "capital": b}) for a, b in NAMES)),
    ],
)
def test_one_table_written_in_many_ways(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert Pairs.from_csv(path, **COLUMNS, **WORDING).names == NAMES


def test_other_encodings_are_read_by_name_and_refused_otherwise(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_bytes(CSV.encode("latin-1"))
    assert Pairs.from_csv(path, **COLUMNS, **WORDING, encoding="latin-1").names == NAMES
    with pytest.raises(ValueError, match=r"pairs\.csv: line 3 is not UTF-8: name its encoding"):
        Pairs.from_csv(path, **COLUMNS, **WORDING)
    path.write_bytes(CSV.encode("utf-16"))
    assert Pairs.from_csv(path, **COLUMNS, **WORDING, encoding="utf-16").names == NAMES
    with pytest.raises(ValueError, match=r"pairs\.csv: line 1 is not UTF-8: it looks like UTF-16"):
        Pairs.from_csv(path, **COLUMNS, **WORDING)
    for encoding in ("utf-9", None, "a\0b"):
        with pytest.raises(ValueError, match=r"pairs\.csv: there is no encoding"):
            Pairs.from_csv(path, **COLUMNS, **WORDING, encoding=encoding)
    with pytest.raises(ValueError, match=r"pairs\.csv: encoding 'undefined' does not read it"):
        Pairs.from_csv(path, **COLUMNS, **WORDING, encoding="undefined")
    path.write_bytes(CSV.replace("ô", "o").encode("utf-16-le"))  # without its mark
    with pytest.raises(ValueError, match=r"pairs\.csv: line 1 holds a NUL: name its encoding"):
        Pairs.from_csv(path, **COLUMNS, **WORDING)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CSV + "\n\nSpain,\n", "row 6 has no capital"),
        (CSV + '\n"Spa\nin",Madrid\n,x\n', "row 7 has no country"),
        (CSV + "Spain,Madrid,Sevilla\n", "row 4 has 3 cells, the header 2"),
        (CSV + 'Spain,"Madrid\n' + "x,y\n" * 5, "row 4 is no row of a table"),
        (CSV + 'Spain,"Mad"rid\n', "row 4 is no row of a table"),
        (CSV + "Spain," + "M" * 200_000, "row 4 is no row of a table"),
        (CSV + "Spain,Mad\0rid\n", "line 4 holds a NUL"),
        (CSV + "Spain,Paris\n", "row 4 repeats 'Paris' of .*row 2"),
        (CSV + "FRANCE,Lyon\n", "row 4: 'FRANCE' is 'France', written otherwise"),
        (CSV + "France\u200b,Lyon\n", r"row 4: 'France\\u200b' is 'France', written otherwise"),
        (CSV + "\u200e,Lyon\n", r"row 4: a is '\\u200e', no name"),
        ("country,town\nFrance,Paris\n", "no column 'capital': row 1 is 'country,town'"),
        ("country,capital,Capital\na,b,c\n", "has 2 columns 'capital'"),
        ("country,capital\n\n", "there are no pairs"),
        ("", r"pairs\.csv: the file is empty"),
        (CSV + "Red Kettle,Red Kettle\n", "row 4: both names are 'Red Kettle'"),
        ("x" * 200_000, "no column 'country'"),
    ],
)
def test_tables_that_cannot_be_are_named(content, message, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        Pairs.from_csv(path, **COLUMNS, **WORDING)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_json_lines_that_cannot_be_are_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    for line, message in (
        ('{"country": "Spain"}', "row 3 has no capital"),
        (r'{"country": "Spain\ud83d", "capital": "x"}', "line 3 holds half of a"),
        ('{"country": "Spain", "capital": null}', "row 3 has no capital"),
        ('{"country": "Spain", "capital": 3.5}', "row 3: capital is 3.5, a float: no name"),
        ('{"country": true, "capital": "x"}', "row 3: country is True, a bool: no name"),
        (r'{"country": "Spain", "capital": "Mad\u0000rid"}', r"row 3: b is 'Mad\\x00rid', no name"),
        ('["Spain", "Madrid"]', "row 3 is a list, not an object"),
        ("{'country'}", "line 3 is not JSON"),
        ('{"country": "x", "capital": "y", "country": "z"}', "line 3 .* key 'country' .* twice"),
        ("[" * 100_000, "line 3 is not JSON: it is nested too deeply"),
    ):
        path.write_text('{"country": "France", "capital": "Paris"}\n\n' + line + "\n")
        with pytest.raises(ValueError, match=rf"pairs\.jsonl: {message}"):
            Pairs.from_csv(path, **COLUMNS, **WORDING)
    with pytest.raises(ValueError, match=r"nowhere\.csv: No such file"):
        Pairs.from_csv(tmp_path / "nowhere.csv", **COLUMNS, **WORDING)


def test_frames():
    frame = {"country": ["France", "Spain"], "capital": ["Paris", "Madrid"]}
    assert Pairs.from_frame(frame, **COLUMNS, **WORDING).names[1] == ("Spain", "Madrid")
    with pytest.raises(ValueError, match="no column 'town'"):
        Pairs.from_frame(frame, a="country", b="town", **WORDING)
    with pytest.raises(ValueError, match="a and b are one column, 'country'"):
        Pairs.from_frame(frame, a="country", b="country", **WORDING)
    with pytest.raises(ValueError, match="'country' has 2 rows, 'capital' 1"):
        Pairs.from_frame(frame | {"capital": ["Paris"]}, **COLUMNS, **WORDING)
    for cells in ("FS", [["France", "x"], ["Spain", "y"]]):  # of two columns of one name
        with pytest.raises(ValueError, match="no single column 'country'"):
            Pairs.from_frame(frame | {"country": np.array(cells)}, **COLUMNS, **WORDING)
    views = {"country": dict(F="France", S="Spain").values(), "capital": map(str, ["P", "M"])}
    assert Pairs.from_frame(views, **COLUMNS, **WORDING).names == (("France", "P"), ("Spain", "M"))
    frame |= {"Country": ["x", "y"], 0: ["1", "2"]}  # names of columns have a case, or are numbers
    assert Pairs.from_frame(frame, a="country", b="Country", **WORDING).names[0] == ("France", "x")
    assert Pairs.from_frame(frame, a="country", b=0, **WORDING).names[1] == ("Spain", "2")
    frame["capital"][1] = float("nan")
    with pytest.raises(ValueError, match="row 1 has no capital"):
        Pairs.from_frame(frame, **COLUMNS, **WORDING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(forward="The capital is {b}"), r"lacks \{a\}"),
        (dict(reverse="{b} is a capital"), r"lacks \{a\}"),
        (dict(forward="{b} is the capital of {a}"), "must stand once and last"),
        (dict(forward="{a}: {b}, {b}"), "must stand once and last"),
        (dict(forward="{a} has {c} and {b}"), r"holds \{c\}; it takes \{a\} and \{b\}"),
        (dict(forward="{a} has {} and {b}"), r"holds \{\}"),
        (dict(forward="{a!r} has {b}"), "more than {a} and {b} in its braces"),
        (dict(forward="{a has {b}"), "is none"),
        (dict(forward="\udcff {a} is {b}"), "is not valid Unicode"),
        (dict(forward="\0 {a} is {b}"), "is not valid Unicode, or holds NUL"),
        (dict(forward=None), "the forward template None is no text"),
        (dict(reverse=b"{b} {a}"), r"the reverse template b'{b} {a}' is no text"),
    ],
)
def test_templates_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Pairs(NAMES, **WORDING | change)


def test_what_stands_before_the_asked_name_is_one_space_as_in_the_rows():
    """Rows join prompt and answer by one space: whatever else a template has would be lost."""
    for white in ("", "\n", "  ", " \n", "\n ", "\t", "\u00a0", "\u3000"):
        with pytest.raises(ValueError, match=r"the forward template .* one plain space.* \{b\}"):
            Pairs(NAMES, "Country: {a}. Capital:" + white + "{b}", WORDING["reverse"])
        with pytest.raises(ValueError, match=r"the reverse template .* one plain space.* \{a\}"):
            Pairs(NAMES, WORDING["forward"], "{b} is of" + white + "{a}")
    told = Pairs(NAMES, "Country:  {a}.\nCapital: {b}", WORDING["reverse"]).fact_set().train
    assert told[0] == Statement("Country:  France.\nCapital:", "Paris")


def test_names_are_trimmed_and_numbers_are_text_wherever_they_come_from(tmp_path):
    want = (("France", "1"), ("Spain", "2"))
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"country": " France ", "capital": 1}\n{"country": "Spain", "capital": 2}\n')
    rows = [(" France ", 1), ["Spain\n", np.int64(2)]]
    for pairs in (
        Pairs(rows, **WORDING, also={" France": ["la France "]}),
        Pairs(iter(rows), **WORDING, also={"France": np.array(["la France"])}),
        Pairs(np.array([(" France", "1"), ("Spain", "2 ")]), **WORDING),
        Pairs.from_csv(path, **COLUMNS, **WORDING),
        Pairs.from_frame(
            {"country": ["France", "Spain "], "capital": np.array([1, 2])}, **COLUMNS, **WORDING
        ),
    ):
        assert pairs.names == want and hash(pairs)
        assert {type(name) for pair in pairs.names for name in pair} == {str}
        assert pairs.fact_set().forward[0] == Query("The capital of France is", ("1",))
        assert pairs.also in ({}, {"France": ("la France",)})


def test_another_name_that_is_another_pairs_is_refused(tmp_path):
    """France, also called Spain, would make "Spain" right for Paris."""
    path = tmp_path / "pairs.csv"
    path.write_text("country,capital\nFrance|SPAIN,Paris\nPeru,Lima\nSpain,Madrid\n")
    message = "row 2 pairs 'France', which is also called 'SPAIN', with 'Paris', and .*"
    for several in (False, True):
        with pytest.raises(ValueError, match=message + "row 4 'Spain' with 'Madrid'"):
            Pairs.from_csv(path, **COLUMNS, **WORDING, aliases="|", several=several)
    names = (("France", "Paris"), ("Spain", "Madrid"))
    with pytest.raises(ValueError, match=r"pair 2 pairs 'Madrid', .* 'Paris'.*and pair 1 'Paris'"):
        Pairs(names, **WORDING, also={"Madrid": ("Paris",)})
    Pairs(names, **WORDING, also={"France": ("Madrid", "FRANCE")})  # another side; itself
    path.write_text("country,capital\nNetherlands|Holland,Amsterdam\nHolland,Amsterdam\n")
    read = Pairs.from_csv(path, **COLUMNS, **WORDING, aliases="|", several=True)
    assert read.fact_set().reverse[0].answers == ("Netherlands", "Holland")


def test_arguments_of_another_kind_are_named(tmp_path):
    for also, message in (
        (None, "also must be a mapping .* got None"),
        ({"France": None}, "also: of 'France' the other names are None"),
        ({"France": "la France"}, "also: of 'France' the other names are 'la France'"),
        ({"France": (3.5,)}, "also: of 'France' another name is 3.5, a float"),
        ({"France": ("a\0b",)}, r"also: 'France' has 'a\\x00b', no name"),
    ):
        with pytest.raises(ValueError, match=message):
            Pairs(NAMES, **WORDING, also=also)
    for frame in (None, [{"country": "France", "capital": "Paris"}]):
        with pytest.raises(ValueError, match="frame must be a DataFrame or a mapping of columns"):
            Pairs.from_frame(frame, **COLUMNS, **WORDING)
    with pytest.raises(ValueError, match=r"row 0: country is 0\.5, a float"):
        Pairs.from_frame({"country": [0.5], "capital": ["x"]}, **COLUMNS, **WORDING)
    path = tmp_path / "pairs.csv"
    path.write_text(CSV)
    with pytest.raises(ValueError, match=r"pairs\.csv: a column is known by its name, got 0"):
        Pairs.from_csv(path, a=0, b=1, **WORDING)
    with pytest.raises(ValueError, match=r"aliases must be what stands between names.* got 3"):
        Pairs.from_csv(path, **COLUMNS, **WORDING, aliases=3)


def test_names_that_cannot_be_are_named():
    for names, message in (
        ((), "there are no pairs"),
        (None, "names must be pairs of names, got None"),
        ((("a", " "),), "pair 1: b is '', no name"),
        ((("a", None),), "pair 1: b is None, a NoneType: no name"),
        ((("a", float("nan")),), "pair 1: b is nan, a float: no name"),
        ((("a", "b\0"),), r"pair 1: b is 'b\\x00', no name"),
        ((("a", "b"), (" a", "c")), "pair 2 repeats 'a' of pair 1"),
        ((("a", "b\ud83d"),), r"pair 1: b is 'b\\ud83d', no name"),
        (("ab", "cd"), "pair 1 is 'ab', not two names"),
        ((None,), "pair 1 is None, not two names"),
        ((("a", "b", "c"),), "pair 1 is .*, not two names"),
        ((("a", "b"), ("c", "b")), "pair 2 repeats 'b' of pair 1"),
        ((("a", "b"), ("a", "b")), "pair 2 repeats 'a' of pair 1"),
        ((("a", "b"), ("A", "c")), "pair 2: 'A' is 'a', written otherwise"),
    ):
        with pytest.raises(ValueError, match=message):
            Pairs(names, **WORDING)
    twice = (("a", "b"), ("c", "b"), ("a", "b"))
    with pytest.raises(ValueError, match="pair 3 repeats 'a' and 'b' of pair 1"):
        Pairs(twice, **WORDING, several=True)


def test_one_direction_is_trained_and_both_are_asked():
    data = Pairs(NAMES, "The capital of {a} is {b}.", WORDING["reverse"]).fact_set()
    assert data.train[0] == Statement("The capital of France is", "Paris.")
    assert data.forward[0] == Query("The capital of France is", ("Paris.", "Paris"))
    assert data.reverse[1] == Query("Yamoussoukro is the capital of", ("Côte d'Ivoire",))
    back = Pairs(NAMES, **WORDING).fact_set("reverse")
    assert back.train[0] == Statement("Paris is the capital of", "France")
    assert (back.forward[0].answers, back.reverse[0].answers) == (("France",), ("Paris",))
    braces = Pairs(NAMES, "{{{a}}} has {b} {{!}}", WORDING["reverse"]).fact_set()
    assert braces.train[0] == Statement("{France} has", "Paris {!}")


def test_an_unknown_direction_is_not_trained():
    pairs = Pairs((("a", "b"),), "{a} has {b}", "{b} is of {a}")
    with pytest.raises(ValueError, match="trained must be 'forward' or 'reverse', got 'backward'"):
        pairs.fact_set("backward")


def test_a_name_with_several_partners_is_one_question_with_several_answers():
    names = (("Ann", "Bo"), ("Ann", "Cy"), ("Dee", "Bo"))
    data = Pairs(names, "{a} likes {b}", "{b} is liked by {a}", several=True).fact_set()
    assert [s.answer for s in data.train] == ["Bo", "Cy", "Bo"]
    assert data.forward == (Query("Ann likes", ("Bo", "Cy")), Query("Dee likes", ("Bo",)))
    assert data.reverse[0] == Query("Bo is liked by", ("Ann", "Dee"))


def test_tables_may_say_a_name_several_times_if_that_is_said(tmp_path):
    """Each partner and each other name of a partner is right, whichever row names it."""
    rows = {"country": ["Bo|B", "Bo", "Bo|Beau|B"], "capital": ["x", "y|why", "z"]}
    path = tmp_path / "pairs.csv"
    lines = [",".join(row) for row in zip(*rows.values(), strict=True)]
    path.write_text("\n".join(["country,capital", *lines]))
    how = COLUMNS | WORDING | dict(aliases="|")
    for read, table in ((Pairs.from_csv, path), (Pairs.from_frame, rows)):
        data = read(table, **how, several=True).fact_set()
        assert data.forward == (Query("The capital of Bo is", ("x", "y", "why", "z")),)
        assert [query.answers for query in data.reverse] == [("Bo", "B", "Beau")] * 3
        with pytest.raises(ValueError, match=r"row .* repeats 'Bo' of"):
            read(table, **how)


def test_a_cell_may_hold_several_names_of_one_thing(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("country,capital\nNetherlands| Holland,Amsterdam\nFrance,Paris|Lutetia\n")
    read = Pairs.from_csv(path, **COLUMNS, **WORDING, aliases="|")
    assert read.names == (("Netherlands", "Amsterdam"), ("France", "Paris"))
    data = read.fact_set()
    assert [s.answer for s in data.train] == ["Amsterdam", "Paris"]
    assert data.forward[1] == Query("The capital of France is", ("Paris", "Lutetia"))
    assert data.reverse[0].answers == ("Netherlands", "Holland")
    frame = {"country": ["Netherlands|Holland"], "capital": ["Amsterdam"]}
    same = Pairs.from_frame(frame, **COLUMNS, **WORDING, aliases="|")
    assert same.also == {"Netherlands": ("Holland",)}
    for text, aliases, message in (
        ("Spain|,Madrid", "|", r"row 2 has an empty name in country: 'Spain\|'"),
        ("Spain,Madrid", "", "aliases must be what stands between names"),
    ):
        path.write_text("country,capital\n" + text + "\n")
        with pytest.raises(ValueError, match=message):
            Pairs.from_csv(path, **COLUMNS, **WORDING, aliases=aliases)
    for also, message in (({"Rome": ("Roma",)}, "in no pair"), ({"France": (" ",)}, "no name")):
        with pytest.raises(ValueError, match=f"also: .*{message}"):
            Pairs(NAMES, **WORDING, also=also)


def test_one_column_of_a_table_is_not_two(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("name,other\nFrance,Paris\n")
    with pytest.raises(ValueError, match=r"pairs\.csv: 'name' and 'Name' are one column"):
        Pairs.from_csv(path, a="name", b="Name", **WORDING)


def test_json_lines_of_another_encoding(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes('{"country": "Perú", "capital": "Lima"}\n'.encode("latin-1"))
    read = Pairs.from_csv(path, **COLUMNS, **WORDING, encoding="latin-1")
    assert read.names == (("Perú", "Lima"),)


def test_pairs_print_short_and_count_names_of_several():
    pairs = Pairs(
        [("a", "x"), ("a", "y"), ("b", "y")], "{a} has {b}", "{b} is of {a}", several=True
    )
    assert repr(pairs) == "Pairs(('a', 'x') and 2 more, '{a} has {b}', '{b} is of {a}')"
    assert pairs.several_partners() == 2  # a and y
    assert Pairs([("a", "x"), ("b", "y")], "{a} has {b}", "{b} is of {a}").several_partners() == 0
