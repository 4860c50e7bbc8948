"""Programs as a user starts them, without the seconds that each would take to import JAX.

A server imports the libraries once and is forked for each command. It has no device of JAX yet, so
that a child reads XLA_FLAGS as a fresh program does; what JAX reads from the environment at import
(JAX_*) is the server's: for another, start a program of its own.
"""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

import jax

ROOT = pathlib.Path(__file__).parent.parent
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["dirasym", "experiments.flags", "dirasym.report"])


def run(
    command: Sequence[object],
    cwd: pathlib.Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """`python -m command`, or `python script.py`, on CPU, as `subprocess.run` gives it back."""
    command = [str(word) for word in command]
    with tempfile.TemporaryDirectory() as folder:
        streams = [f"{folder}/stdout", f"{folder}/stderr"]
        child = _SERVER.Process(target=_main, args=(command, str(cwd), dict(env or {}), streams))
        child.start()
        child.join(timeout)
        if child.exitcode is None:
            child.kill()
            child.join()
            raise subprocess.TimeoutExpired(command, timeout)
        said = [pathlib.Path(stream).read_text(encoding="utf-8") for stream in streams]
    return subprocess.CompletedProcess(command, child.exitcode, *said)


def _main(command: list[str], cwd: str, env: dict[str, str], streams: list[str]) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(env)
    os.chdir(cwd)
    tempfile.tempdir = None  # it is the child's own TMPDIR that counts
    sys.argv = command
    jax.config.update("jax_platforms", "cpu")
    if command[0].endswith(".py"):
        sys.path.insert(0, str(pathlib.Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
    else:
        sys.path.insert(0, cwd)
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
