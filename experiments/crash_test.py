"""Does a run that is killed again and again end with the same bits as one that is left alone?

Question  Exact resume: SIGKILL at random moments of a tiny toy_reversal, restarts, and compares
          parameters, results.jsonl and curves with an undisturbed run, timing fields apart.
Command   python -m experiments.crash_test --kills=100
Cost      about 6 s a kill on 2 CPU cores.
Expected  every finished run identical.
"""

import dataclasses
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from dirasym import results
from experiments import harness
from experiments.flags import flag

PRESETS = {"smoke": dict(kills=2), "quick": dict(kills=20), "paper": dict(kills=100)}
PROGRAM = (
    "-m experiments.toy_reversal --preset=smoke --models=mdm --lengths=3 --width=8 --seeds=0,1 "
    "--steps=8 --eval_every=4 --generations=1 --noprogress"
).split()
TIMING = {"run_wall_time_sec", "wall_time_sec"}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    kills: int = flag(20, "How often to kill.", 1)
    seed: int = flag(0, "Of the moments.")


def run(experiment: harness.Experiment, config: Config) -> None:
    """Kills, compares, and prints the count."""
    start = time.time()
    finished, resumable = kill_and_compare(experiment.workdir, config.kills, config.seed)
    minutes = (time.time() - start) / 60
    summary = (
        f"{config.kills} kills, {resumable} of them with a checkpoint to resume from; {finished} "
        f"finished runs, all identical to an undisturbed one ({minutes:.1f} minutes)."
    )
    experiment.write_report(f"# Crash test\n\n{summary}", [], printed=summary)


def kill_and_compare(workdir: pathlib.Path, kills: int, seed: int) -> tuple[int, int]:
    """Kills the program `kills` times and lets it finish; raises unless every end is the same.

    All runs share the compilation cache of an undisturbed one in the same directory (JAX's
    keys hold the path): the moments are drawn from the time that a warm run takes, and would
    not reach the end of a cold compilation.

    Returns:
      How many runs reached their end, and how many kills came after a checkpoint was there.
    """
    directory = workdir / "run"
    shutil.rmtree(directory, ignore_errors=True)
    _wait(_start(directory))
    _clear(directory)
    begin = time.time()
    _wait(_start(directory))
    duration = time.time() - begin
    want = _outcome(directory)
    _clear(directory)

    rng, killed, finished, resumable = np.random.default_rng(seed), 0, 0, 0
    while True:
        process = _start(directory)
        try:
            if killed == kills:
                _wait(process)
            else:
                _wait(process, timeout=rng.uniform(0, 1.1 * duration))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            resumable += any(directory.glob("checkpoints/*/[0-9]*/record.json"))
            continue
        finished += 1
        np.testing.assert_equal(_outcome(directory), want)
        if killed == kills:
            return finished, resumable
        _clear(directory)


def _clear(directory: pathlib.Path) -> None:
    """Leaves the compilation cache alone."""
    for path in directory.iterdir():
        if path.name != "compilation":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _start(workdir: pathlib.Path) -> subprocess.Popen:
    root = pathlib.Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, *PROGRAM, f"--workdir={workdir.absolute()}"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait(process: subprocess.Popen, timeout: float | None = None) -> None:
    output, _ = process.communicate(timeout=timeout)
    if process.returncode != 0:
        raise RuntimeError(f"the program failed:\n{output}")


def _outcome(workdir: pathlib.Path) -> dict:
    """Everything a run leaves, but for time."""
    outcome = {}
    for directory in sorted((workdir / "checkpoints").iterdir()):
        last = max(int(path.name) for path in directory.iterdir() if path.name.isdigit())
        restored = ocp.StandardCheckpointer().restore(directory.absolute() / f"{last}/state")
        outcome[directory.name] = {"step": last, "state": jax.tree.map(np.asarray, restored)}
    outcome["results"] = [
        {key: value for key, value in line.items() if key not in TIMING}
        for line in results.read_results(workdir / "results.jsonl")
    ]
    for path in sorted((workdir / "curves").glob("*.npz")):
        with np.load(path) as file:
            outcome[path.name] = {key: file[key] for key in file if key not in TIMING}
    return outcome


if __name__ == "__main__":
    harness.main("crash_test", Config, PRESETS, run)
