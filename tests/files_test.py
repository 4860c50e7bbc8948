import errno
import fcntl
import os
import pathlib
import stat
import subprocess
import sys

import pytest
from absl import logging

from dirasym import files, readers, results
from dirasym.workdir import WorkDir, WorkDirError


def test_a_file_is_replaced_whole_and_links_stay_links(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    link.symlink_to("target.txt")
    files.write_atomically(link, "käse\n")  # the link's target is not there yet
    target.chmod(0o640)
    files.write_atomically(link, "brot\n")
    assert link.is_symlink() and target.read_text(encoding="utf-8") == "brot\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.txt", "target.txt"]


def test_what_a_killed_process_left_of_a_folder_goes_with_the_next_one(tmp_path):
    (tmp_path / ".partial/deep").mkdir(parents=True)
    with pytest.raises(KeyError), files.partial_folder(tmp_path) as partial:
        assert partial.parent == tmp_path and not list(partial.iterdir())
        (partial / "half").write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            files.write_atomically(path, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(OSError, match="no regular file"):
            results.read_results(path)
        with pytest.raises(ValueError, match="Is no regular file"):
            readers.read_text(path)
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run/config.json")
    for given in (dict(path=tmp_path / "run"), dict(path=tmp_path, results_path="/dev/zero")):
        with pytest.raises(WorkDirError, match="cannot be used"):
            WorkDir(**given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe", "run"]


def test_text_is_utf8_under_an_ascii_locale(tmp_path):
    code = "from dirasym import files; files.write_atomically('text', '\\xe9')"
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    env["PYTHONPATH"] = str(pathlib.Path(files.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa9"


_HOLD = """
import sys
from dirasym import files
with files.locked(sys.argv[1], shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


def _hold(path, kind):
    root = pathlib.Path(files.__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), kind],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_one_process_at_a_time_and_a_killed_one_holds_nothing(tmp_path):
    path = tmp_path / ".lock"
    other = _hold(path, "alone")
    for shared in (False, True):
        with pytest.raises(files.LockedError) as caught, files.locked(path, shared=shared):
            pass
        message = str(caught.value)
        assert str(tmp_path) in message and str(other.pid) in message and "\n" not in message
    other.kill()
    other.wait()
    with files.locked(path):
        assert str(os.getpid()) in path.read_text()
    assert path.read_text() == ""


def test_readers_share_and_keep_a_writer_out(tmp_path):
    path = tmp_path / ".lock"
    other = _hold(path, "shared")
    with files.locked(path, shared=True):
        pass
    with pytest.raises(files.LockedError), files.locked(path):
        pass
    other.kill()
    other.wait()


def test_without_locks_it_runs_all_the_same_and_says_so(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    said = []
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(logging, "log_first_n", lambda *args: said.append(args))
    with files.locked(tmp_path / ".lock"):
        ran = True
    assert ran and len(said) == 1


def test_what_cannot_be_written_can_be_shared(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with files.locked(tmp_path / ".lock", shared=True):
        ran = True
    assert ran
    with pytest.raises(OSError, match="Read-only"), files.locked(tmp_path / ".lock"):
        pass


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, replace = [], os.replace
    sync = lambda number: done.append(os.readlink(f"/proc/self/fd/{number}"))  # noqa: E731
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("named") or replace(*paths))
    files.write_atomically(tmp_path / "a.txt", "text")
    assert done == [str(tmp_path / ".a.txt.partial"), "named", str(tmp_path)]
