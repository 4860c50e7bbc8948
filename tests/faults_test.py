"""Inputs that failed once: a script of tests/faults says what is right, and exits with 0 if so."""

import pathlib

import commands
import pytest

FAULTS = pathlib.Path(__file__).parent / "faults"
ROOT = FAULTS.parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FAULTS.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_what_failed_once_is_right(path, tmp_path):
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = commands.run([path], env=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "PASS" in done.stdout
