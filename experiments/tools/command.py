"""A command line without a work directory: flags from a dataclass, exit status 2 for a bad one."""

from collections.abc import Callable
from typing import Any

from absl import app

from dirasym.usage import UsageError, blamed
from experiments import flags


def main(config_type: type, work: Callable[[Any], None]) -> None:
    """Parses the flags of `config_type` alone, and works; a UsageError ends it in one line."""
    common = {flag.name for flag in flags.FLAGS.get_flags_for_module(flags.__name__)}
    flags.define(config_type)

    def absl_main(argv):
        del argv
        try:
            for name in common:
                if flags.FLAGS[name].present:
                    raise UsageError(f"--{name} has no effect here")
            with blamed():
                config = flags.read(config_type)
            work(config)
        except UsageError as error:
            flags.leave(2, "error: " + " ".join(str(error).split()))

    app.run(absl_main, flags_parser=lambda argv: flags.parse(argv, {}))
