import concurrent.futures
import errno
import fcntl
import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import results


def test_lines_are_replaced_by_key_and_truncation_is_dropped(tmp_path):
    path = tmp_path / "results.jsonl"
    lines = [{"seed": s, "value": s * 1.5} for s in range(3)]
    results.replace_results(path, lines[:2], ("seed",))
    results.replace_results(path, [{"seed": 1, "value": 7}], ("seed",))
    assert results.read_results(path) == [lines[0], {"seed": 1, "value": 7}]
    results.replace_results(path, lines[1:], ("seed",))
    assert results.read_results(path) == lines
    text = path.read_text()
    for cut in range(1, len(text.splitlines()[-1]) + 1):
        path.write_text(text[:-cut])
        got = results.read_results(path)
        assert got == (lines if cut == 1 else lines[:2])
    results.replace_results(path, [lines[2]], ("seed",))
    assert results.read_results(path) == lines
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines
    path.write_text("{broken\n" + text)
    with pytest.raises(json.JSONDecodeError):  # not what a crash leaves: do not hide it
        results.read_results(path)


def test_writers_of_one_file_lose_no_line_of_each_other(tmp_path):
    path = tmp_path / "results.jsonl"

    def write(writer):
        for number in range(20):
            line = {"writer": writer, "number": number}
            results.replace_results(path, [line], ("writer", "number"))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(write, range(4)))
    found = {(line["writer"], line["number"]) for line in results.read_results(path)}
    assert found == {(writer, number) for writer in range(4) for number in range(20)}
    assert len(path.read_text().splitlines()) == len(found)


def test_a_cut_within_a_character_is_a_truncated_line(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xc3')
    assert results.read_results(path) == [{"a": 1}]
    path.write_bytes(b'{"a": "\xff"}\n{"a": 1}\n')
    with pytest.raises(ValueError, match="utf-8"):
        results.read_results(path)


def test_a_doubled_line_counts_once(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"a": 1, "b": 2}\n{"a": 2, "b": 2}\n{"b": 2, "a": 1}\n')
    assert results.read_results(path) == [{"a": 1, "b": 2}, {"a": 2, "b": 2}]


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan"), [1.0, -math.inf]])
def test_no_line_holds_what_is_not_finite(value, tmp_path):
    path = tmp_path / "results.jsonl"
    results.replace_results(path, [{"seed": 0, "loss": None}], ("seed",))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"scores\.loss"):
        results.replace_results(path, [{"seed": 1, "scores": {"loss": value}}], ("seed",))
    assert path.read_bytes() == before


@pytest.mark.parametrize("word", ["NaN", "-Infinity", "1e999"])
def test_what_is_not_finite_is_not_read(word, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(f'{{"loss": {word}}}\n{{"loss": 1.0}}\n')
    with pytest.raises(ValueError, match="finite"):
        results.read_results(path)


def test_deep_json_is_an_error_of_one_kind(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("[" * 200_000 + "\n{}\n")
    with pytest.raises(ValueError):
        results.read_results(path)


def test_scalars_of_numpy_and_jax_become_numbers(tmp_path):
    path = tmp_path / "results.jsonl"
    line = {"a": np.float32(0.5), "b": np.int64(3), "c": jnp.arange(2), "d": np.bool_(True)}
    results.replace_results(path, [line], ("b",))
    assert results.read_results(path) == [{"a": 0.5, "b": 3, "c": [0, 1], "d": True}]
    with pytest.raises(TypeError, match="cannot hold"):
        results.replace_results(path, [{"b": 3, "a": object()}], ("b",))
    assert results.read_results(path)[0]["a"] == 0.5


def test_a_link_stays_a_link_and_its_writers_share_one_lock(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "results.jsonl"
    link.symlink_to("there/all.jsonl")
    results.replace_results(link, [{"a": 1}], ("a",))
    assert link.is_symlink() and results.read_results(tmp_path / "there/all.jsonl") == [{"a": 1}]
    assert (tmp_path / "there/.all.jsonl.lock").exists()


def test_no_line_is_lost_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "results.jsonl"
    for number in range(3):
        results.replace_results(path, [{"a": number}], ("a",))
    assert [line["a"] for line in results.read_results(path)] == [0, 1, 2]
