"""A command line without a work directory: flags from a dataclass, exit status 2 for a bad one."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable

from absl import app

from dirasym.stopping import STATUS
from dirasym.usage import UsageError, blamed, disk, printing
from experiments import flags


def words(experiment: str, *flags: str) -> list[str]:
    """The command line of an experiment, by its name."""
    return [sys.executable, "-m", f"experiments.{experiment}", *flags]


def check(command: list[str]) -> str:
    """Lets an experiment plan its runs, and returns what it prints of them.

    Raises UsageError with its line where it refuses.
    """
    tried = subprocess.run([*command, "--dry_run"], capture_output=True, text=True)
    if tried.returncode:
        *_, last = ["", *tried.stderr.strip().splitlines()]  # XLA may say more before
        raise UsageError(last.removeprefix("error: "))
    return tried.stdout


def main(config_type: type, work: Callable[..., None], *, takes_words: bool = False) -> None:
    """Parses the flags of `config_type` alone, and works; a UsageError ends it in one line.

    Args:
      config_type: a dataclass of flags.
      work: is given the configuration.
      takes_words: gives it the words of the command line that belong to no flag, too.
    """
    common = {flag.name for flag in flags.FLAGS.get_flags_for_module(flags.__name__)}
    flags.define(config_type)

    def absl_main(argv):
        try:
            for name in common:
                if flags.FLAGS[name].present:
                    raise UsageError(f"--{name} has no effect here")
            with blamed():
                config = flags.read(config_type)
            with disk():
                work(config, *argv[1:])
        except UsageError as error:
            flags.leave(2, "error: " + " ".join(str(error).split()))

    def parser(argv):
        own = [field.name for field in dataclasses.fields(config_type)]
        return flags.parse(argv, {}, own, takes_words=takes_words)

    with printing(STATUS):
        app.run(absl_main, flags_parser=parser)
