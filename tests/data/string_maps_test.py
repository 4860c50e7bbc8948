import doctest
import itertools
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from dirasym.data import string_maps, tokenizers


@pytest.mark.parametrize("K", [1, 2, 5, 8])
def test_forward_is_a_function_and_inverse_is_one_of_K(K):
    first, second = string_maps.generate_pairs(K, 40 * K, 8, seed=42 + K)
    assert len(first) == len(second) == len(set(first)) == 40 * K
    assert set(Counter(second).values()) == {K} and len(set(second)) == 40
    assert all(len(s) == 8 and set(s) <= set(string_maps.ALPHABET) for s in first + second)
    assert string_maps.joint_floor(first, second) == 0
    assert string_maps.joint_floor(second, first) == pytest.approx(math.log(K), abs=1e-12)


def test_every_string_may_be_used():
    first, second = string_maps.generate_pairs(1, 36, 1, seed=0)
    assert set(first) == set(second) == set(string_maps.ALPHABET)
    assert first != second


@pytest.mark.slow
def test_the_same_pairs_under_any_hash_seed():
    code = "from dirasym.data.string_maps import generate_pairs as g; print(g(5, 500, 8, 47))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1")
    }
    assert len(outputs) == 1
    first, second = string_maps.generate_pairs(5, 40_000, 8, 47)
    assert (first[0], first[1], second[5]) == ("hghiiqxq", "hh0bxibj", "2xog6et6")


def test_seeds_differ():
    assert string_maps.generate_pairs(1, 10, 8, 0) != string_maps.generate_pairs(1, 10, 8, 1)


@pytest.mark.parametrize("K", [1, 2, 3])
def test_exchangeable_maps_have_one_law_in_both_directions(K):
    first, second = string_maps.exchangeable_pairs(K, 4 * K * K, 8, seed=1)
    assert len(set(zip(first, second, strict=True))) == 4 * K * K
    for source, target in ((first, second), (second, first)):
        assert set(Counter(source).values()) == {K}
        assert string_maps.joint_floor(source, target) == pytest.approx(math.log(K), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((3, 10, 8, 0), "multiple of [39], got 10"),
        ((0, 10, 8, 0), "K must be a whole number from 1, got 0"),
        ((2.5, 10, 8, 0), "K must be a whole number from 1, got 2.5"),
        ((1, 10.0, 8, 0), "positive multiple of 1, got 10.0"),
        ((1, 10, 8.0, 0), "str_len must be a whole number from 1, got 8.0"),
        ((1, 0, 8, 0), "positive multiple"),
        ((1, 37, 1, 0), "only 36 of 1 characters"),
        ((1, 1, 0, 0), "str_len"),
    ],
)
def test_bad_sizes(arguments, words):
    for generate in (string_maps.generate_pairs, string_maps.exchangeable_pairs):
        with pytest.raises(ValueError, match=words):
            generate(*arguments)
    for bits in (string_maps.bits_to_store, string_maps.exchangeable_bits_to_store):
        with pytest.raises(ValueError, match=words):
            bits(*arguments[:3])


@pytest.mark.parametrize("direction", ["backward", "Forward", "reverse", None])
@pytest.mark.parametrize("exchangeable", [False, True])
def test_an_unknown_direction_is_none(direction, exchangeable):
    of = string_maps.StringMap(2, 8, exchangeable=exchangeable)
    for read in (of.oriented, of.published_floor, of.bits_to_store):
        with pytest.raises(ValueError, match="direction must be 'forward' or 'inverse', got"):
            read(direction)


def test_a_seed_of_a_map_is_a_whole_number():
    for seed in (-1, 0.5):
        with pytest.raises(ValueError, match="seed must be a whole number from 0"):
            string_maps.StringMap(2, 8, seed=seed)


def test_entropies_of_a_small_table_by_hand():
    sources = ["p", "p", "p", "q"]
    targets = ["aa", "ab", "ab", "ba"]
    third, two = math.log(3), math.log(3 / 2)
    joint = (third + 2 * two) / 4
    assert string_maps.joint_floor(sources, targets) == pytest.approx(joint)
    np.testing.assert_allclose(string_maps.position_entropies(sources, targets), [0, joint])
    # Two fair letters that agree: ln 2 together, twice ln 2 apart.
    assert string_maps.joint_floor("zz", ["aa", "bb"]) == pytest.approx(math.log(2))
    assert string_maps.parallel_floor("zz", ["aa", "bb"]) == pytest.approx(2 * math.log(2))
    # Positions that only some targets have count for those targets.
    got = string_maps.position_entropies("zzzz", ["a", "b", "aa", "ab"])
    np.testing.assert_allclose(got, [math.log(4) - 0.75 * math.log(3), 0.5 * math.log(2)])
    assert string_maps.per_token(1.5, ["abc", "a"]) == pytest.approx(2 * 1.5 / 4)


def test_floors_of_the_benchmark():
    """Of arXiv 2511.19997's maps: a parallel model's is 12.3 nats a string at K=5, 15.6 at K=8."""
    for K, want in ((5, 12.3), (8, 15.6)):
        first, second = string_maps.generate_pairs(K, 40_000, 8, 42 + K)
        assert string_maps.parallel_floor(second, first) == pytest.approx(want, abs=0.05)
        assert string_maps.parallel_floor(first, second) == 0
        tokens = tokenizers.Characters().encode(string_maps.texts(second, first)[1])
        floor = string_maps.joint_floor(second, first)
        assert string_maps.per_token(floor, tokens) == pytest.approx(math.log(K) / 9)


@pytest.mark.parametrize(
    ("K", "forward", "inverse"), [(1, 41.36, 41.36), (5, 18.43, 39.98), (8, 15.75, 39.45)]
)
def test_bits_to_store_at_the_papers_size(K, forward, inverse):
    got = string_maps.bits_to_store(K, 40_000, 8)
    np.testing.assert_allclose(got, (forward, inverse), atol=0.005)


def test_bits_of_strings_beyond_a_float():
    forward, inverse = string_maps.bits_to_store(1, 10, 250)
    assert forward == pytest.approx(inverse) == pytest.approx(250 * math.log2(36))


def test_bits_count_the_maps_of_a_small_world():
    """36 strings of one character: enumerate the maps of 4 known strings onto 2 images."""
    forward, inverse = string_maps.bits_to_store(2, 4, 1)
    image_sets = math.comb(36, 2)
    assignments = sum(
        Counter(images) == {0: 2, 1: 2} for images in itertools.product(range(2), repeat=4)
    )
    assert 2 ** (4 * forward) == pytest.approx(image_sets * assignments)
    assert 2 ** (4 * inverse) == pytest.approx(math.comb(36, 2) * math.comb(34, 2))
    # K-to-K: the known 4 strings in 2 unordered pairs, each with 2 of the 36.
    control = string_maps.exchangeable_bits_to_store(2, 8, 1)
    assert 2 ** (8 * control) == pytest.approx(3 * math.comb(36, 2) * math.comb(34, 2))
    assert string_maps.exchangeable_bits_to_store(1, 4, 1) == pytest.approx(
        string_maps.bits_to_store(1, 4, 1)[0]
    )


@pytest.mark.parametrize("exchangeable", [False, True])
def test_fewer_letters_make_fewer_strings_and_bits(exchangeable):
    of = string_maps.StringMap(2, 8, 3, 1, exchangeable, num_letters=3)
    first, second = of.pairs
    assert set("".join(first + second)) == set("abc")
    # 27 strings: counted as in the test above.
    for direction in string_maps.DIRECTIONS:
        if exchangeable:
            count = 3 * math.comb(27, 2) * math.comb(25, 2)
        elif direction == "forward":
            count = math.comb(27, 4) * math.factorial(8) / 2**4
        else:
            count = math.prod(math.comb(27 - 2 * n, 2) for n in range(4))
        assert 2 ** (8 * of.bits_to_store(direction)) == pytest.approx(count)
    for letters, words in ((37, "num_letters must be 1 to 36, got 37"), (1, "only 1 of 3")):
        with pytest.raises(ValueError, match=words):
            string_maps.StringMap(2, 8, 3, 1, exchangeable, num_letters=letters)


def test_texts():
    assert string_maps.texts(["ab12"], ["cd34"]) == (["x: ab12 y:"], [" cd34"])


@pytest.mark.parametrize("exchangeable", [False, True])
def test_a_map_has_both_directions(exchangeable):
    of = string_maps.StringMap(5, 50, 4, seed=3, exchangeable=exchangeable)
    make = string_maps.exchangeable_pairs if exchangeable else string_maps.generate_pairs
    first, second = make(5, 50, 4, 3)
    assert of.oriented("forward") == (first, second)
    assert of.oriented("inverse") == (second, first)
    floors = [of.published_floor(direction) for direction in string_maps.DIRECTIONS]
    assert floors == ([math.log(5)] * 2 if exchangeable else [0.0, math.log(5)])
    bits = tuple(of.bits_to_store(direction) for direction in string_maps.DIRECTIONS)
    if exchangeable:
        assert bits == (string_maps.exchangeable_bits_to_store(5, 50, 4),) * 2
    else:
        assert bits == string_maps.bits_to_store(5, 50, 4) and bits[0] < bits[1]
    with pytest.raises(ValueError, match="multiple of"):
        string_maps.StringMap(5, 49, exchangeable=exchangeable)


def test_maps_become_rows_of_one_length():
    tokenizer = tokenizers.Characters()
    maps = [string_maps.StringMap(1, 4, 3), string_maps.StringMap(2, 6, 5)]
    rows = string_maps.encode(tokenizer, maps)
    assert list(rows) == [(of, d) for of in maps for d in string_maps.DIRECTIONS]
    for (of, direction), fields in rows.items():
        assert {x.shape for x in fields.values()} == {(of.n_pairs, 17)}
        for source, target, tokens, scored, valid in zip(
            *of.oriented(direction),
            *(fields[f"{n}_BL"] for n in ("tokens", "scored", "valid")),
            strict=True,
        ):
            assert tokenizer.decode(tokens[valid]) == f"x: {source} y: {target}"
            assert tokenizer.decode(tokens[scored]) == f" {target}"


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(string_maps).failed == 0
