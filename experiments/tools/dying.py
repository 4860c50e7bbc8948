"""Runs a module as `python -m` does, and at its N-th change of a directory dies or finds it full.

    python -m experiments.tools.dying DIRECTORY N killed|full MODULE [ARGUMENTS]

A change is a file opened for writing, a rename, or a removal below DIRECTORY, by Python. The
N-th is not made: the process dies by SIGKILL, or from here on nothing can be written ("No space
left on device"), though removed. With N = 0 it lives, and the last line on stderr says how many
changes there were.
"""

import errno
import os
import pathlib
import runpy
import signal
import sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
REMOVALS = {"os.remove", "os.rmdir"}
CHANGES = {"open", "os.rename", "os.mkdir", "os.truncate"} | REMOVALS


def main(directory: str, number: str, how: str, module: str, *arguments: str) -> None:
    """Returns with the module, where it does not die."""
    below, last, count = pathlib.Path(directory).absolute(), int(number), 0

    def hook(event, args):
        nonlocal count
        if event not in CHANGES or (event == "open" and not (args[2] or 0) & WRITES):
            return
        if not isinstance(args[0], str | os.PathLike):  # a descriptor
            return
        if below in pathlib.Path(os.path.abspath(args[0])).parents:
            count += 1
            if count == last and how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if 0 < last <= count and event not in REMOVALS:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])

    sys.argv = [module, *arguments]
    sys.addaudithook(hook)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        if not last:
            print(f"changes: {count}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
