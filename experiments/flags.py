"""What every experiment's command line shares: flags from a dataclass, presets, exit status.

An experiment is a module with a configuration, whose fields become absl flags, presets, a
function that says what is trained and one that reports:

    @dataclasses.dataclass(frozen=True)
    class Config:
        seeds: tuple[int, ...] = flag((0, 1, 2), "One run each.", kind="seed")
        steps: int = flag(3000, "Train steps.", 1)
        ...            # __post_init__ raises ValueError for values that do not fit together

    PRESETS = {"smoke": {"steps": 40}, ...}

    def plan(config, workdir) -> list[runs.Run]: ...          # opens files, builds data
    def report(workdir, config, all_runs) -> None: ...        # tables and figures

    if __name__ == "__main__":
        flags.main("name", Config, PRESETS, report, plan)

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
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh

from dirasym import checkpoints, files, report, runs, sharding, training
from dirasym.compile import check_divisible
from dirasym.stopping import Stopped
from dirasym.workdir import WorkDir, WorkDirError

FLAGS = flags.FLAGS
Kind = Literal["", "seed", "batch_size", "path"]

flags.DEFINE_string("workdir", None, "Where results go; default runs/NAME.")
flags.DEFINE_enum("preset", "quick", ["smoke", "quick", "paper"], "Defaults of the other flags.")
flags.DEFINE_bool("progress", True, "Show progress.")
flags.DEFINE_bool("dry_run", False, "Print what would be trained, and its cost; write nothing.")
flags.DEFINE_float("time_limit", None, "Minutes to stop before, all saved.", lower_bound=0)
flags.DEFINE_string("shard", None, "I/N: the I-th of N parts of the runs, I from 0.")
flags.DEFINE_enum("backend", "jit", ["jit", "pmap"], "How train steps are compiled.")
flags.DEFINE_integer("num_devices", 1, "Devices to share the work; 0 for all.", lower_bound=0)
flags.DEFINE_integer(
    "model_devices", 1, "Of these, devices that share each weight; the rest share a batch.", 1
)
flags.DEFINE_enum(
    "seeds_together",
    "auto",
    ["auto", "yes", "no"],
    "Train seeds in one program (faster on accelerators) or one after another (faster on CPU).",
)
flags.DEFINE_bool("keep_checkpoints", False, "Keep the checkpoint of every evaluation.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for jax.distributed.")
flags.DEFINE_integer("num_processes", 1, "Processes that run this same command.", lower_bound=1)
flags.DEFINE_integer("process_id", 0, "Number of this process.", lower_bound=0)


class UsageError(Exception):
    """A bad flag or file: one line, exit status 2."""


def flag(
    default: Any,
    help_text: str,
    lower_bound: float | None = None,
    *,
    kind: Kind = "",
    report_only: bool = False,
) -> Any:
    """A configuration field that is also the flag of its name.

    Args:
      default: its value without a preset.
      help_text: one line.
      lower_bound: least value of a number.
      kind: what it is: a "seed" is one or more of what JAX and NumPy take; the devices share a
        "batch_size"; in a "path" `~` is the home directory.
      report_only: it changes no result: a finished work directory may be reported anew with
        another value.
    """
    metadata = dict(help=help_text, lower_bound=lower_bound, kind=kind, report_only=report_only)
    return dataclasses.field(default=default, metadata=metadata)


class _IntListParser(flags.ListParser):
    def parse(self, argument):
        items = super().parse(argument) if isinstance(argument, str) else argument
        try:
            return [int(item) for item in items]
        except ValueError:
            raise ValueError(f"{','.join(map(str, items))!r} is not a list of integers") from None


def define(config_type: type) -> None:
    """One absl flag for each field made by `flag`, of the field's type.

    int, float, bool and str; Literal choices as an enum; tuples as lists, `--Ks=1,5,8` or
    `--Ks 1 5 8`.
    """
    for field in dataclasses.fields(config_type):
        kind, default = field.type, field.default
        help_text, bound = field.metadata["help"], field.metadata["lower_bound"]
        if typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is int:
            parser, serializer = _IntListParser(), flags.ListSerializer(",")
            flags.DEFINE(parser, field.name, list(default), help_text, serializer=serializer)
        elif typing.get_origin(kind) is tuple:
            flags.DEFINE_list(field.name, list(default), help_text)
        elif typing.get_origin(kind) is Literal:
            flags.DEFINE_enum(field.name, default, typing.get_args(kind), help_text)
        elif kind is bool:
            flags.DEFINE_bool(field.name, default, help_text)
        elif kind in (int, float):
            define_number = flags.DEFINE_integer if kind is int else flags.DEFINE_float
            define_number(field.name, default, help_text, lower_bound=bound)
        else:
            flags.DEFINE_string(field.name, default, help_text)


def read(config_type: type) -> Any:
    """The configuration that the flags say. Raises ValueError, naming the flag, if it cannot be."""
    values = {field.name: _value(field) for field in dataclasses.fields(config_type)}
    return config_type(**values)


def _value(field: dataclasses.Field) -> Any:
    value, name, kind = FLAGS[field.name].value, field.name, field.metadata["kind"]
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
        bound = field.metadata["lower_bound"]
        for item in value:
            if bound is not None and item < bound:
                raise ValueError(f"--{name}: {item} is below {bound}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"--{name}={value} is not finite")
    if kind == "seed":
        for seed in value if isinstance(value, tuple) else (value,):
            if not 0 <= seed < 2**32:
                raise ValueError(f"--{name}={seed} is not between 0 and 2^32 - 1")
    if kind == "path" and value:
        value = os.path.expanduser(value)
    return value


Report = Callable[[WorkDir, Any, Sequence[runs.Run]], None]
Plan = Callable[[Any, pathlib.Path], Sequence[runs.Run]]


def main(
    name: str,
    config_type: type,
    presets: Mapping[str, Mapping[str, Any]],
    report_fn: Report,
    plan: Plan = lambda config, workdir: (),
) -> None:
    """Parses flags, plans, trains what is missing, reports, and exits with the status above."""
    define(config_type)

    def absl_main(argv):
        del argv
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells every rename
        try:
            _run(name, config_type, report_fn, plan)
        except (UsageError, WorkDirError, files.LockedError, checkpoints.CheckpointError) as error:
            if isinstance(error, checkpoints.NonFiniteStateError):
                leave(3, f"error: {error}")
            leave(2, "error: " + " ".join(str(error).split()))
        except Stopped as stopped:
            leave(75, str(stopped))
        except KeyboardInterrupt:
            leave(75, "stopped by Ctrl-C; the same command goes on")
        except training.NonFiniteLossError as error:
            leave(3, f"error: {error}")

    app.run(absl_main, flags_parser=lambda argv: parse(argv, presets))


def _run(name: str, config_type: type, report_fn: Report, plan: Plan) -> None:
    start_jax()
    mesh = device_mesh()
    path = pathlib.Path(FLAGS.workdir or f"runs/{name}").expanduser()
    try:
        shard = _read_shard(FLAGS.shard)
        config = read(config_type)
        _check_devices(config, mesh)
        all_runs = list(plan(config, path))
    except ValueError as error:
        raise UsageError(str(error)) from None
    seeds = getattr(config, "seeds", ())
    how = dict(mesh=mesh, backend=FLAGS.backend, shard=shard, time_limit=FLAGS.time_limit)
    how["together"] = {"yes": True, "no": False, "auto": "auto"}[FLAGS.seeds_together]
    if FLAGS.dry_run:
        _print_plan(all_runs, runs.sweep(all_runs, seeds, path, dry_run=True, **how))
        return
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if not field.metadata["report_only"]
    }
    wanted = {"experiment": name, "backend": FLAGS.backend, **fields}
    workdir = WorkDir(path, wanted, results_path=getattr(config, "output", "") or None)
    how |= dict(keep_checkpoints=FLAGS.keep_checkpoints, progress=FLAGS.progress)
    runs.sweep(all_runs, seeds, workdir, **how)
    missing = sum(not workdir.is_done(run, seed) for run in all_runs for seed in seeds)
    if missing:
        print(f"part {FLAGS.shard} is done; {missing} runs of other parts are not in {path}")
    elif jax.process_index() == 0:
        report_fn(workdir, config, all_runs)


def _print_plan(all_runs, lines) -> None:
    rate = product_rate()
    for line in lines:
        line["hours, at least"] = f"{line['flops'] / rate / 3600:.3g}"
        line["flops"] = f"{line['flops']:.3g}"
    if lines:
        print(report.table(list(lines[0]), [line.values() for line in lines]))
    print(
        f"{len(lines)} runs; hours at {rate / 1e9:.0f} GFLOP/s, the rate of this machine's products"
    )


def product_rate(size: int = 1024) -> float:
    """FLOP/s of this machine's matrix products in float32, the best of three."""
    import time

    product = jax.jit(lambda x: x @ x)
    x = np.ones((size, size), np.float32)
    product(x).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def parse(argv: Sequence[str], presets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Absl's parsing with presets, space-separated lists, and one-line errors (exit 2)."""
    try:
        rest = FLAGS(_join_lists(argv))
        if len(rest) > 1:
            raise flags.Error(f"unexpected argument {rest[1]!r}")
        for name, value in presets.get(FLAGS.preset, {}).items():
            if not FLAGS[name].present:
                FLAGS[name].value = value
    except flags.Error as error:
        leave(2, "error: " + " ".join(str(error).split()))
    return rest


def _join_lists(argv: Sequence[str]) -> list[str]:
    """`--modes a b` as `--modes=a,b`, for flags that hold lists."""
    joined, open_list = [], False
    for word in argv:
        if open_list and not word.startswith("-"):
            joined[-1] += ("," if "=" in joined[-1] else "=") + word
            continue
        name = word.lstrip("-").partition("=")[0]
        open_list = (
            word.startswith("--")
            and name in FLAGS
            and isinstance(FLAGS[name].parser, flags.ListParser)
        )
        joined.append(word)
    return joined


def leave(status: int, message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if status == 75:  # a segment that was broken off may still be computing: do not wait for it
        os._exit(status)
    sys.exit(status)


def start_jax() -> None:
    # The same bits on every run need deterministic reductions on GPU too.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    if FLAGS.process_id >= FLAGS.num_processes:
        raise UsageError(f"--process_id={FLAGS.process_id} must be below --num_processes")
    if FLAGS.coordinator:
        if not FLAGS.coordinator.rpartition(":")[2].isdigit():
            raise UsageError(f"--coordinator={FLAGS.coordinator} is not HOST:PORT")
        jax.distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    elif FLAGS.num_processes > 1:
        raise UsageError("--num_processes needs --coordinator=HOST:PORT")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # The user's own, never the work directory's: it holds native code that is run unchecked.
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "dirasym" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def device_mesh() -> Mesh | None:
    """The devices as data × model; None for the default device alone."""
    available = jax.devices()
    count = FLAGS.num_devices or len(available)
    if FLAGS.num_processes > 1:
        count = len(available)
    if count > len(available):
        raise UsageError(f"--num_devices={count}, but {len(available)} are available")
    if count == 1 and FLAGS.backend == "jit" and FLAGS.model_devices == 1:
        return None
    if count % FLAGS.model_devices or (FLAGS.model_devices > 1 and FLAGS.backend == "pmap"):
        raise UsageError(
            f"--model_devices={FLAGS.model_devices} needs --num_devices, a multiple of it, and "
            "--backend=jit"
        )
    return sharding.make_mesh(count // FLAGS.model_devices, FLAGS.model_devices, available[:count])


def _check_devices(config: Any, mesh: Mesh | None) -> None:
    """Raises ValueError for a batch that the devices cannot share, or seeds that must be apart."""
    if FLAGS.seeds_together == "yes":
        if FLAGS.backend == "pmap":
            raise ValueError("--seeds_together=yes needs --backend=jit")
        if FLAGS.model_devices > 1:
            raise ValueError("--seeds_together=yes needs --model_devices=1")
    if mesh is None:
        return
    for field in dataclasses.fields(config):
        if field.metadata["kind"] == "batch_size":
            check_divisible(getattr(config, field.name), mesh.shape[sharding.DATA])


def _read_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    part, slash, parts = text.partition("/")
    if slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts):
        return int(part), int(parts)
    raise ValueError(f"--shard={text} is not I/N with 0 <= I < N")
