"""The command line of every experiment: flags from a dataclass, presets, exit status.

An experiment is a module with a frozen dataclass of flags (`flag`; its __post_init__ raises
ValueError for values that do not fit together), presets, and two functions:

    def plan(config, workdir) -> list[runs.Run]: ...      # opens files, builds data (see `blamed`)
    def report(workdir, config, all_runs) -> None: ...    # tables and figures

Exit status: 0 done; 2 a bad flag or file, said in one line, nothing written; 3 the loss or the
weights stopped being finite; 75 stopped before it was done, all saved: the same command goes on.
"""

import dataclasses
import math
import os
import pathlib
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from absl import app, flags, logging

from dirasym import checkpoints, devices, files, plans, runs, sharding, training, usage
from dirasym import report as tables
from dirasym.compile import check_divisible
from dirasym.stopping import STATUS, Stopped, check_limit, stopped_by_signals
from dirasym.usage import UsageError, blamed, disk
from dirasym.workdir import WorkDir

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "Where results go; default runs/NAME.")
flags.DEFINE_enum("preset", "quick", ["smoke", "quick", "paper"], "Defaults of the other flags.")
flags.DEFINE_bool("progress", True, "Show progress.")
flags.DEFINE_bool("dry_run", False, "Print what would be trained, and its cost; write nothing.")
flags.DEFINE_string("compile_for", None, "With --dry_run, GB to train: here, or on a file's GPU.")
flags.DEFINE_float("time_limit", None, "Minutes to stop before, all saved.", lower_bound=0)
flags.DEFINE_string("shard", None, "I/N: the I-th of N parts of the runs, I from 0.")
flags.DEFINE_enum("backend", "jit", ["jit", "pmap"], "How train steps are compiled.")
flags.DEFINE_integer("num_devices", 1, "Devices to share the work; 0 for all.", lower_bound=0)
flags.DEFINE_integer("model_devices", 1, "Of these, devices that share each weight.", lower_bound=1)
flags.DEFINE_enum("seeds_together", "auto", ["auto", "yes", "no"], "Seeds in one program.")
flags.DEFINE_integer("checkpoint_every", 1, "Evaluations between checkpoints.", lower_bound=1)
flags.DEFINE_bool("keep_checkpoints", False, "Keep all checkpoints, not the last two.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; auto: a cluster's own.")
flags.DEFINE_integer("num_processes", 1, "Processes that run this same command.", lower_bound=1)
flags.DEFINE_integer("process_id", 0, "Number of this process.", lower_bound=0)


def flag(
    default: Any,
    help_text: str,
    lower_bound: float = -math.inf,
    upper_bound: float | None = None,
    *,
    kind: Literal["", "seed", "batch_size", "path"] = "",
    report_only: bool = False,
) -> Any:
    """A configuration field that is also the flag of its name.

    Bounds are of each number. By `kind`: a "seed" is what JAX and NumPy take, devices share a
    "batch_size", `~` in a "path" is home. What is `report_only` may change in a finished sweep.
    """
    highest = upper_bound or (math.inf if isinstance(default, float) else 10**9)
    bounds = (0, 2**32 - 1) if kind == "seed" else (lower_bound, highest)
    metadata = dict(help=help_text, bounds=bounds, kind=kind, report_only=report_only)
    return dataclasses.field(default=default, metadata=metadata)


class _IntListParser(flags.ListParser):
    def parse(self, argument):
        items = super().parse(argument) if isinstance(argument, str) else argument
        try:
            return [int(item) for item in items]
        except ValueError:
            raise ValueError(f"{','.join(map(str, items))!r} is not a list of integers") from None


def define(config_type: type) -> None:
    """An absl flag a field: numbers, bool, str, Literal, or tuples (`--Ks=1,5` or `--Ks 1 5`)."""
    for field in dataclasses.fields(config_type):
        name, kind, default, text = field.name, field.type, field.default, field.metadata["help"]
        if typing.get_origin(kind) is tuple:
            parser = _IntListParser() if typing.get_args(kind)[0] is int else flags.ListParser()
            flags.DEFINE(parser, name, list(default), text, serializer=flags.ListSerializer(","))
        elif typing.get_origin(kind) is Literal:
            flags.DEFINE_enum(name, default, typing.get_args(kind), text)
        else:
            makers = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
            makers.get(kind, flags.DEFINE_string)(name, default, text)


def read(config_type: type) -> Any:
    """The configuration that the flags say. Raises ValueError, naming the flag, if it cannot be."""
    fields = dataclasses.fields(config_type)
    return config_type(**{f.name: checked(f, FLAGS[f.name].value) for f in fields})


def checked(field: dataclasses.Field, value: Any) -> Any:
    """A flag's value as its configuration holds it. Raises ValueError for one that cannot be."""
    name, (lowest, highest) = field.name, field.metadata["bounds"]
    if isinstance(value, list):
        value = tuple(value)
        choices = typing.get_args(typing.get_args(field.type)[0])  # of a tuple of Literals
        for item in value:
            if choices and item not in choices:
                raise ValueError(f"--{name}: {item!r} is not among {'|'.join(choices)}")
        if not value:
            raise ValueError(f"--{name} is empty")
        if len(set(value)) < len(value):  # runs are known by these values
            raise ValueError(f"--{name} repeats a value: {','.join(map(str, value))}")
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"--{name}={item} is not finite")
        if isinstance(item, int | float) and not lowest <= item <= highest:
            raise ValueError(f"--{name}={item} is not between {lowest} and {highest}")
    return os.path.expanduser(value) if field.metadata["kind"] == "path" else value


def main(
    name: str,
    config_type: type,
    presets: Mapping[str, Mapping[str, Any]],
    report: Callable[[WorkDir, Any, Sequence[runs.Run]], None],
    plan: Callable[[Any, pathlib.Path], Sequence[runs.Run]] = lambda config, workdir: (),
) -> None:
    """Parses flags, plans, trains what is missing, reports, and exits with the status above."""
    define(config_type)
    shown = [flag.name for flag in FLAGS.get_flags_for_module(__name__)]

    def absl_main(_):
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells every rename
        try:
            with stopped_by_signals(), disk():
                _run(name, config_type, report, plan)
        except (training.NonFiniteLossError, checkpoints.NonFiniteStateError) as error:
            leave(3, f"error: {error}")
        except (UsageError, files.LockedError, checkpoints.CheckpointError) as error:
            logging.info("where it was raised:", exc_info=True)  # --verbosity=1
            leave(2, "error: " + " ".join(str(error).split()))
        except (Stopped, KeyboardInterrupt) as stopped:
            leave(STATUS, str(stopped) or "stopped by Ctrl-C; the same command goes on")

    with usage.printing(STATUS):
        app.run(absl_main, flags_parser=lambda argv: parse(argv, presets, shown))


def _run(name: str, config_type: type, report, plan) -> None:
    path = pathlib.Path(FLAGS.workdir or f"runs/{name}").expanduser()
    with blamed():
        devices.start(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        mesh = devices.mesh(FLAGS.num_devices, FLAGS.model_devices, FLAGS.backend)
        together = {"yes": True, "no": False}.get(FLAGS.seeds_together, "auto")
        if FLAGS.compile_for is not None and (mesh or FLAGS.shard or not FLAGS.dry_run):
            raise ValueError("--compile_for goes with --dry_run, and is of one device and all runs")
        shard = runs.parse_shard(FLAGS.shard) if FLAGS.shard else None
        how = dict(mesh=mesh, backend=FLAGS.backend, together=together, shard=shard)
        check_limit(FLAGS.time_limit)
        config = read(config_type)
        for field in dataclasses.fields(config) if mesh else ():
            if field.metadata["kind"] == "batch_size":
                check_divisible(getattr(config, field.name), mesh.shape[sharding.DATA])
    all_runs, seeds = list(plan(config, path)), getattr(config, "seeds", ())
    with blamed():
        runs.check(all_runs, seeds, **how)
        if FLAGS.dry_run:
            lines = plans.lines(all_runs, seeds, together, FLAGS.compile_for)
            return print(tables.plan_table(lines, devices.product_rate()))
        plans.check_memory(all_runs, seeds)
    kept = [f.name for f in dataclasses.fields(config) if not f.metadata["report_only"]]
    wanted = {"experiment": name, "backend": FLAGS.backend, **{f: getattr(config, f) for f in kept}}
    workdir = WorkDir(path, wanted, results_path=getattr(config, "output", "") or None)
    more = {x: FLAGS[x].value for x in ("time_limit", "checkpoint_every", "keep_checkpoints")}
    if all_runs:  # what only reads or solves has none
        runs.sweep(all_runs, seeds, workdir, recipe=False, progress=FLAGS.progress, **how, **more)
    if missing := workdir.missing((run, seed) for run in all_runs for seed in seeds):
        print(f"part {FLAGS.shard} is done; {len(missing)} of others are not in {path}")
    elif jax.process_index() == 0:
        report(workdir, config, all_runs)


def parse(
    argv: Sequence[str], presets: Mapping[str, Mapping[str, Any]], shown=(), takes_words=False
) -> list[str]:
    """Absl's parsing with presets, space-separated lists, and one-line errors (exit 2).

    `--help` prints the flags `shown`. A program that `takes_words` gets those which belong to no
    flag, and what is behind `--`; its lists are separated by commas alone.
    """
    if usage.asks_help(argv):
        with usage.printing(0):
            print(usage.help_text([FLAGS[name] for name in sorted(shown)], presets))
            sys.exit()
    try:
        lists = {name for name in FLAGS if isinstance(FLAGS[name].parser, flags.ListParser)}
        rest = FLAGS(argv if takes_words else usage.joined_lists(argv, lists.__contains__))
        if len(rest) > 1 and not takes_words:
            raise flags.Error(f"unexpected argument {rest[1]!r}")
        for name, value in presets.get(FLAGS.preset, {}).items():
            if not FLAGS[name].present:
                FLAGS[name].value = value
    except flags.Error as error:
        leave(2, "error: " + " ".join(str(error).split()))
    return rest


def leave(status: int, message: str) -> None:
    """Ends the program with one line on stderr."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    # A segment that was broken off may still be computing: do not wait for it.
    (os._exit if status == STATUS else sys.exit)(status)
