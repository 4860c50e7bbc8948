import os
import signal

import numpy as np
import pytest

from dirasym.pieces import Piece, compute
from dirasym.stopping import Stopped
from dirasym.workdir import WorkDir


def _piece(done, number, seed=None, before=lambda: None, has_curves=True):
    def work():
        before()
        done.append((number, seed))
        return {"square": number**2}, {"powers": number ** np.arange(3)} if has_curves else {}

    return Piece({"number": number}, work, seed, has_curves)


def test_what_is_done_is_not_done_again_and_a_lost_curve_is(tmp_path):
    done = []
    pieces = [_piece(done, 2), _piece(done, 3, seed=0), _piece(done, 3, seed=1)]
    lines = compute(pieces, tmp_path)
    assert done == [(2, None), (3, 0), (3, 1)]
    assert [line["square"] for line in lines] == [4, 9, 9]
    assert "seed" not in lines[0] and [line["seed"] for line in lines[1:]] == [0, 1]
    assert compute(pieces, tmp_path) == lines and len(done) == 3
    workdir = WorkDir(tmp_path)
    np.testing.assert_array_equal(workdir.curves(pieces[1], 0)["powers"], [1, 3, 9])
    np.testing.assert_array_equal(workdir.curves(pieces[0], None)["powers"], [1, 2, 4])
    workdir.curves_path(pieces[2], 1).write_bytes(b"cut")
    assert compute(pieces, tmp_path) == lines and done[3:] == [(3, 1)]


def test_without_curves_the_line_says_that_it_is_done(tmp_path):
    done = []
    piece = _piece(done, 5, has_curves=False)
    assert compute([piece], tmp_path) == compute([piece], tmp_path)
    assert done == [(5, None)] and not (tmp_path / "curves").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_piece_at_hand_end_and_the_rest_comes_later(number, tmp_path):
    done = []
    pieces = [
        _piece(done, 1, before=lambda: os.kill(os.getpid(), number)),
        _piece(done, 2),
    ]
    with pytest.raises(Stopped, match="1 of 2 pieces are done"):
        compute(pieces, tmp_path)
    assert done == [(1, None)]
    assert len(compute(pieces, tmp_path)) == 2 and done == [(1, None), (2, None)]


def test_no_piece_begins_after_the_time_limit(tmp_path):
    done = []
    with pytest.raises(Stopped, match="time limit"):
        compute([_piece(done, 1), _piece(done, 2)], tmp_path, time_limit=0)
    assert done == [(1, None)]


def test_two_shards_share_the_work_and_the_directory(tmp_path):
    done = []
    pieces = [_piece(done, number) for number in range(5)]
    compute(pieces, tmp_path, shard=(0, 2))
    assert [number for number, _ in done] == [0, 2, 4]
    compute(pieces, tmp_path, shard=(1, 2))
    assert sorted(number for number, _ in done) == [0, 1, 2, 3, 4]
    assert len(WorkDir(tmp_path).results()) == 5


def test_pieces_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match="repeated pieces"):
        compute([_piece([], 1), _piece([], 1)], tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(pieces=[]), "pieces is empty: give at least one of pieces"),
        (dict(pieces="ab"), "pieces must be a list of pieces, got 'ab'"),
        (dict(pieces=_piece([], 1)), "pieces must be a list of pieces, got Piece"),
        (dict(pieces=["a"]), "pieces must be a list of pieces, and holds 'a'"),
        (dict(shard=(2, 2)), r"shard must be \(i, n\) with 0 <= i < n, got \(2, 2\)"),
        (dict(shard="0/2"), r"shard must be \(i, n\)"),
        (dict(time_limit=-1), "time_limit must be a number of minutes, got -1"),
        (dict(time_limit="1"), "time_limit must be a number, got '1'"),
        (dict(workdir=3), "workdir must be a path, got 3"),
    ],
)
def test_work_that_cannot_be_is_refused_before_it_is_done(given, message, tmp_path):
    done = []
    how = dict(pieces=[_piece(done, 1)], workdir=tmp_path / "x") | given
    with pytest.raises((TypeError, ValueError), match=message):
        compute(**how)
    assert not done and not (tmp_path / "x").exists()


def test_a_piece_is_known_by_its_own_names_alone(tmp_path):
    for identity, message in (({"seed": 1}, "'seed' is a name"), ({"n": [1]}, "a JSON scalar")):
        with pytest.raises((TypeError, ValueError), match=message):
            Piece(identity, dict)
    for line, message in (({"seed": 9}, "work: 'seed' is what"), (None, "work must return a dict")):
        piece = Piece({"n": 1}, lambda line=line: (line, {}), has_curves=False)
        with pytest.raises((TypeError, ValueError), match=message):
            compute([piece], tmp_path)
