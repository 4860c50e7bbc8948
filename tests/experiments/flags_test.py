import ast
import dataclasses
import errno
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing
from typing import Literal

import commands
import numpy as np
import pytest
from absl import flags

from dirasym import usage
from dirasym.workdir import WorkDir
from experiments import __main__ as main
from experiments import flags as house
from experiments import toy_study

ROOT = pathlib.Path(__file__).parent.parent.parent
TINY = (
    "experiments.toy_reversal --preset=smoke --models=mdm --lengths=3 --width=8 --steps=40 "
    "--eval_every=2 --generations=1 --noprogress"
).split()


def _toy(*arguments, **kwargs):
    return commands.run([*TINY, *arguments], **kwargs)


@pytest.mark.parametrize("asked", ["--help", "--helpfull"])
def test_help_shows_the_flags_of_this_experiment_with_their_presets_and_no_others(asked):
    done = _toy("--width=7", asked)
    shown = done.stdout
    assert done.returncode == 0 and done.stderr == ""
    assert shown.startswith("Does a masked diffusion model answer")
    assert "\n  --batch_size: Sequences a step. [128; smoke: 256; paper: 256]\n" in shown
    assert "\n  --lengths: Sequence lengths L. [10; smoke: 4; paper: 10,20,30,40]\n" in shown
    assert "\n  --preset: <smoke|quick|paper>: Defaults of the other flags. [quick]\n" in shown
    assert "\n  --[no]progress: Show progress. [true]\n" in shown
    assert "\n  --time_limit: Minutes to stop before, all saved.\n" in shown
    foreign = "verbosity", "chex", "orbax", "run_with_pdb", "helpfull", str(ROOT)
    assert not any(name in shown for name in foreign)


TOOLS = {
    "collect": "--columns: Columns to show, in this order: a,b. [all]",
    "crash_test": "--kills: How often to kill each. [20; smoke: 2; paper: 100]",
    "queue": "--minutes: At hand. [8.0]",
    "redraw": "--folder: ",
    "same_losses": "--steps: First steps to compare. [200]",
    "scaling": "--output: The page to write. [docs/scaling.md]",
    "submit": "--executor: <slurm|local>: Where they run. [slurm]",
    "theory_numbers": "--draws: Of parameters, a width and vocabulary. [25]",
}


@pytest.mark.parametrize("name", TOOLS)
def test_help_shows_the_flags_of_a_tool(name):
    done = commands.run([f"experiments.tools.{name}", "--help"])
    assert done.returncode == 0 and done.stderr == ""
    assert f"\n  {TOOLS[name]}" in done.stdout
    common = "\n  --num_devices:", "\n  --shard:"  # of what trains or computes in parts
    assert all((flag in done.stdout) == (name == "crash_test") for flag in common)
    assert "\nCost " in done.stdout and "absl" not in done.stdout


def _unread(*command):
    """Started with nobody at the other end of its standard output."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as end:
        words = [sys.executable, "-m", *map(str, command)]
        return subprocess.run(words, cwd=ROOT, stdout=end, stderr=subprocess.PIPE, text=True)


def test_a_closed_pipe_ends_in_silence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", *TINY, f"--workdir={tmp_path}", "--steps=2", "--dry_run"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "mdm" in done.stdout
    for command, status in (
        (["experiments"], 0),
        (["experiments.tools.collect", "--help"], 0),
        ([*TINY, f"--workdir={tmp_path}", "--steps=2", "--dry_run"], 75),
    ):
        done = _unread(*command)
        assert (done.returncode, done.stderr) == (status, ""), command


def test_another_pipe_that_breaks_is_a_fault():
    with pytest.raises(BrokenPipeError, match="another"), usage.printing(0):
        raise BrokenPipeError("another")


def test_every_page_is_listed_in_a_line():
    lines = main.listed().splitlines()
    assert max(map(len, lines)) <= 100
    pages = [line.split()[0] for line in lines if line.startswith("  ")]
    assert "toy_reversal" in pages and "tools.submit" in pages and "tools.dying" not in pages
    assert len(pages) == len(set(pages)) >= 30
    assert "  dial                Does the reverse live inside blocks?" in lines


def _modules():
    for package in ("dirasym", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield pytest.param(path, id=str(path.relative_to(ROOT)))


@pytest.mark.parametrize("path", list(_modules()))
def test_a_page_shows_its_first_lines_as_they_stand(path):
    """A backslash at a line's end joins it with the next, unless the docstring is raw."""
    source = path.read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source), clean=False) or ""
    assert text in source


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset=huge"], "smoke|quick|paper"),
        (["--modelz=mdm"], "modelz"),
        (["--models=mdm,rnn"], "'rnn' is not among mdm|arm"),
        (["--lengths=1"], "--lengths=1 is not between 2 and 400"),
        (["--lengths=10000000"], "--lengths=10000000 is not between"),
        (["--width=1000000"], "GB for its weights alone"),
        (["--lengths=3,four"], "not a list of integers"),
        (["--seeds=0,1,0"], "--seeds repeats a value: 0,1,0"),
        (["--steps=7"], "--steps=7 is not a multiple of --eval_every=2"),
        (["--batch_size=6", "--num_devices=4"], "batch of 6 is not divisible by 4 devices"),
        (["--width=7"], "head_dim must be even"),
        (["--num_devices=99"], "99"),
        (["--top_k=1000"], "--top_k=1000 is not between 1 and 54"),
        (["--seeds=0,-1"], "--seeds=-1 is not between 0 and"),
        (["--learning_rate=nan"], "--learning_rate=nan is not finite"),
        (["--backend=pmap", "--seeds_together=yes"], "seeds together need backend 'jit'"),
        (["--coordinator=foo", "--num_processes=2"], "coordinator=foo is not HOST:PORT"),
        (["--coordinator=foo:0", "--num_processes=2"], "coordinator=foo:0 is not HOST:PORT"),
        (["--coordinator=localhost:99999", "--num_processes=2"], "is not HOST:PORT"),
        (
            ["--coordinator=no.host.invalid:1", *"--num_processes=2 --process_id=1".split()],
            ".invalid",
        ),
        (["--num_processes=2"], "num_processes needs coordinator"),
        (["--coordinator=auto"], "no cluster that JAX knows"),
        (["--shard=2/2"], "shard=2/2 is not I/N"),
        (["--shard=half"], "shard=half is not I/N"),
        (["--time_limit=-1"], "time_limit"),
        (["--time_limit=nan"], "time_limit must be a number of minutes, got nan"),
        (["--model_devices=3", "--num_devices=4"], "model_devices=3 needs num_devices"),
        (["--process_id=3"], "process_id=3 must be below"),
        (["surplus"], "unexpected argument 'surplus'"),
        (["--workdir=/proc/nowhere"], "/proc/nowhere cannot be used"),
    ],
)
def test_a_bad_flag_ends_in_one_line_and_writes_nothing(arguments, words, tmp_path):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    result = _toy(f"--workdir={tmp_path}/run", *arguments, env=env)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_resumes(tmp_path):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", *TINY, f"--workdir={workdir}", "--steps=2000"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(workdir.glob("checkpoints/*/[0-9]*/record.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 75, message
    assert "stopped by SIGTERM" in message and "resumes" in message
    step = int(message.split("saved at step ")[1].split()[0])
    (saved,) = workdir.glob("checkpoints/*")
    assert (saved / str(step)).exists() and 0 < step < 2000

    other = _toy(f"--workdir={workdir}", "--steps=2002")
    assert other.returncode == 2
    assert "steps=2000 there, 2002 here" in other.stderr


@pytest.mark.slow
def test_two_processes_run_one_experiment(tmp_path, free_port):
    command = [
        sys.executable,
        "-m",
        *TINY,
        f"--workdir={tmp_path}/run",
        "--steps=2",
        "--batch_size=8",
    ]
    command += [f"--coordinator=localhost:{free_port}", "--num_processes=2"]
    processes = [
        subprocess.Popen([*command, f"--process_id={n}"], cwd=ROOT, stderr=subprocess.PIPE)
        for n in (1, 0)  # the one that does not write comes first
    ]
    for process in processes:
        _, message = process.communicate(timeout=300)
        assert process.returncode == 0, message
    assert len((tmp_path / "run/results.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "run/report.md").exists()


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both(tmp_path, free_port):
    command = [sys.executable, "-m", *TINY, f"--workdir={tmp_path}/run", "--steps=4000"]
    command += [f"--coordinator=localhost:{free_port}", "--num_processes=2", "--batch_size=8"]
    processes = [
        subprocess.Popen(
            [*command, f"--process_id={n}"], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for n in (0, 1)
    ]
    while not list(tmp_path.glob("run/checkpoints/*/[0-9]*/record.json")):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        _, message = process.communicate(timeout=120)
        assert process.returncode == 75, message
        assert "stopped by" in message


def test_a_non_finite_loss_stops_with_the_step_and_the_last_checkpoint(tmp_path):
    result = _toy(f"--workdir={tmp_path}", "--learning_rate=1e18", "--warmup_steps=0")
    assert result.returncode == 3, result.stderr
    assert "loss is not finite at step" in result.stderr and "checkpoint" in result.stderr
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.slow
def test_what_cannot_be_written_at_the_end_is_one_line_and_loses_nothing(tmp_path):
    (tmp_path / "figures/accuracy.png").mkdir(parents=True)
    result = _toy(f"--workdir={tmp_path}", "--steps=4")
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "figures/accuracy.png" in result.stderr
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_finished_directory_is_not_trained_again(tmp_path):
    first = _toy(f"--workdir={tmp_path}", "--steps=4")
    assert first.returncode == 0, first.stderr
    for name in ("config.json", "results.jsonl", "report.md", "figures/accuracy.png"):
        assert (tmp_path / name).exists(), name
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert {"exp_id", "model", "length", "seed", "forward_percent"} <= json.loads(line).keys()
    again = _toy(f"--workdir={tmp_path}", "--steps=4")
    assert again.stdout == first.stdout
    # Its wall time is in the line, so a second training would show.
    assert (tmp_path / "results.jsonl").read_text().splitlines() == [line]


@dataclasses.dataclass(frozen=True)
class _Config:
    test_Ks: tuple[int, ...] = house.flag((1, 5), "Integers.", 0)
    test_modes: tuple[Literal["a", "b"], ...] = house.flag(("a",), "Choices.")
    test_rate: float = house.flag(0.5, "A rate.", 0)
    test_kind: Literal["x", "y"] = house.flag("x", "A kind.")
    test_name: str = house.flag("none", "A name.")
    test_file: str = house.flag("", "A file.", kind="path")
    test_draws: tuple[int, ...] = house.flag((0,), "Of draws.", kind="seed")


house.define(_Config)


def _parse(*words, presets=None):
    flags.FLAGS.unparse_flags()
    for field in dataclasses.fields(_Config):
        flags.FLAGS[field.name].unparse()
    house.parse(["program", *words], presets or {})
    return house.read(_Config)


def test_the_study_refuses_what_its_runs_would():
    with pytest.raises(ValueError, match="--steps=7 is not a multiple of --eval_every=2"):
        toy_study.Config(steps=7, eval_every=2)


def _configurations():
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(name) if path.stem != "__init__" else None
        if dataclasses.is_dataclass(config := getattr(module, "Config", None)):
            yield pytest.param(config, id=name)


@pytest.mark.parametrize("config", list(_configurations()))
def test_no_experiment_takes_a_size_that_no_memory_holds(config):
    for field in dataclasses.fields(config):
        is_list = typing.get_origin(field.type) is tuple
        if int in (field.type, *typing.get_args(field.type)):
            with pytest.raises(ValueError, match=f"--{field.name}"):
                house.checked(field, (10**12,) if is_list else 10**12)


def test_a_disk_that_refuses_is_no_fault_of_the_program_and_a_lost_path_is():
    for code in (errno.ENOSPC, errno.EACCES, errno.EISDIR):
        with pytest.raises(usage.UsageError, match="run/x"), usage.disk():
            raise OSError(code, os.strerror(code), "run/x")
    for error in (FileNotFoundError(errno.ENOENT, "lost", "run/x"), BrokenPipeError(errno.EPIPE)):
        with pytest.raises(type(error)), usage.disk():
            raise error


def test_a_plan_s_own_fault_is_no_bad_flag(monkeypatch, tmp_path):
    """A ValueError of ours comes with its place; one of what a user gave is one line."""

    def ours(config, workdir):
        np.zeros(3).reshape(2)

    def theirs(config, workdir):
        with usage.blamed("--test_name"):
            raise ValueError("is bad")

    _parse(f"--workdir={tmp_path}/run")
    with pytest.raises(ValueError, match="reshape") as error:
        house._run("test", _Config, None, ours)
    assert not isinstance(error.value, usage.UsageError)
    with pytest.raises(usage.UsageError, match=r"^--test_name: is bad$"):
        house._run("test", _Config, None, theirs)
    assert not list(tmp_path.iterdir())


def test_another_process_may_come_before_the_directory_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("dirasym.workdir.jax.process_index", lambda: 1)
    assert WorkDir(tmp_path / "run", {"rate": 1}).path == tmp_path / "run"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "bad", "words"),
    [
        ("draws", "0,4294967296", "--test_draws=4294967296 is not between 0"),
        ("Ks", "3,-1", "--test_Ks=-1 is not between 0 and"),
        ("rate", "inf", "--test_rate=inf is not finite"),
        ("rate", "-1", "--test_rate=-1.0 is not between 0 and"),
    ],
)
def test_what_a_flag_is_decides_what_it_takes(kind, bad, words):
    with pytest.raises(ValueError, match=words):
        _parse(f"--test_{kind}={bad}")


def test_a_path_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert _parse("--test_file=~/x").test_file == "/somewhere/x"
    assert _parse("--test_name=~/x").test_name == "~/x"


def test_lists_by_comma_or_by_space():
    for words in (
        ["--test_Ks=1,5,8", "--test_modes=a,b"],
        ["--test_Ks", "1", "5", "8", "--test_modes", "a", "b"],
        ["--test_Ks", "1,5,8", "--test_modes=a", "b"],
    ):
        config = _parse(*words, "--test_rate", "0.25")
        assert config == _Config((1, 5, 8), ("a", "b"), 0.25)


def test_presets_set_defaults_and_flags_override_them():
    presets = {"smoke": {"test_rate": 0.1, "test_Ks": [7]}}
    assert _parse("--preset=smoke", presets=presets) == _Config((7,), ("a",), 0.1)
    got = _parse("--preset=smoke", "--test_rate=0.5", presets=presets)
    assert got == _Config((7,), ("a",), 0.5)


def test_flag_errors(capsys):
    for words in (["--test_rate=x"], ["--test_kind=z"], ["--test_Ks=1,x"], ["word"]):
        with pytest.raises(SystemExit) as exit_:
            _parse(*words)
        assert exit_.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match="test_modes"):
        _parse("--test_modes=a,c")


@pytest.mark.parametrize("config", list(_configurations()))
def test_every_field_of_a_configuration_has_bounds_and_says_what_it_is(config):
    for field in dataclasses.fields(config):
        assert field.metadata["help"].strip(), field.name
        assert len(field.metadata["bounds"]) == 2, field.name
