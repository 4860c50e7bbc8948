"""Runs a module as `python -m` does, and dies by SIGKILL at its N-th change of a directory.

    python -m experiments.tools.dying DIRECTORY N MODULE [ARGUMENTS]

A change is a file opened for writing, a rename, or a removal below DIRECTORY, by Python. The
N-th is not made. With N = 0 it lives, and the last line on stderr says how many there were.
"""

import os
import pathlib
import runpy
import signal
import sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


def main(directory: str, number: str, module: str, *arguments: str) -> None:
    """Never returns where the module has at least `number` changes."""
    below, last, count = pathlib.Path(directory).absolute(), int(number), 0

    def hook(event, args):
        nonlocal count
        if event not in CHANGES or (event == "open" and not (args[2] or 0) & WRITES):
            return
        if not isinstance(args[0], str | os.PathLike):  # a descriptor
            return
        if below in pathlib.Path(os.path.abspath(args[0])).parents:
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = [module, *arguments]
    sys.addaudithook(hook)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        print(f"changes: {count}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
