"""Inputs that failed once: a script of tests/faults says what is right and exits with 0 if it is.

`# slow` in its first lines leaves a script out of `make test`.
"""

import os
import pathlib
import subprocess
import sys

import pytest

FAULTS = pathlib.Path(__file__).parent / "faults"
ROOT = FAULTS.parents[1]


def _scripts():
    for path in sorted(FAULTS.glob("[!_]*.py")):
        slow = "# slow" in path.read_text(encoding="utf-8").splitlines()[:10]
        yield pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("path", list(_scripts()))
def test_what_failed_once_is_right(path, tmp_path):
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, path],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "PASS" in done.stdout
