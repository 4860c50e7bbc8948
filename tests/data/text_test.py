import unicodedata

import pytest

from dirasym.data import text


def test_one_answer_written_in_several_ways():
    name = "Renée O’Neil (the Rock)"
    for output in (
        f" {name.upper()}\n",
        unicodedata.normalize("NFD", name),
        name.replace(" ", "\u00a0"),
        name.replace(" ", "  "),
        "Renée O ’ Neil ( the Rock )",
        "Renée O’Neil （the Rock）",  # of full width
        "\u200eRen\u00adée O’Neil\u200b (the \ufeffRock)\u2060",  # with marks that nobody sees
        "Rene\u200b\u0301e O’Neil (the Rock)",  # one of them before an accent
    ):
        once = text.normalise(output)
        assert text.normalise(once) == once
        assert text.is_exact_match(output, ("nobody", name)), output
    for output in (
        "Renee O’Neil (the Rock)",
        "Renée ONeil (the Rock)",
        "Renée O’Neil (theRock)",
        "",
    ):
        assert not text.is_exact_match(output, (name,)), output


def test_an_output_begins_with_an_answer_at_a_word_s_end():
    answers = ("Tyler Oakridge", "Nola (West)")
    for output in (" tyler oakridge remains grounded.", "Tyler Oakridge.", "nola (west), again"):
        assert text.begins_with_answer(output, answers)
    for output in ("Tyler Oakridges", "Mr Tyler Oakridge", ""):
        assert not text.begins_with_answer(output, answers)


def test_an_answer_with_its_full_stop_is_begun_by_a_sentence_after_it():
    assert text.begins_with_answer("Ann Bo. He sang.", ("Ann Bo.",))
    assert text.begins_with_answer("“Ann” Bo", ("“Ann”",))


def test_an_answer_that_repeats_the_question_is_told_from_others():
    assert text.is_copied(" ben stiller", "Ben Stiller's parent is")
    assert text.is_copied("Ben", "Ben Stiller's parent is")
    assert text.is_copied("Ben  Stiller.", "Ben Stiller's parent is")
    for output in ("", "Anne Meara", "Ben St", "Stiller Ben"):
        assert not text.is_copied(output, "Ben Stiller's parent is")


def test_names_are_found_whole_and_longest_first():
    pattern = text.name_pattern(["Ann Bo", "Mary Ann Bo", "P!nk"])
    assert pattern.findall("Ann Bowie, Mary Ann Bo, (P!nk) and Ann Bo's") == [
        "Mary Ann Bo", "P!nk", "Ann Bo",
    ]  # fmt: skip
    for names in ([], [""]):
        with pytest.raises(ValueError, match="no name"):
            text.name_pattern(names)
