"""Runs the next jobs at the published sizes that fit the minutes at hand.

Question  None: an accelerator that is lent for minutes should leave finished results.
Command   python -m experiments.tools.queue --minutes=10 --output=OUT
          python -m experiments.tools.queue --check   # what is left; runs nothing
Cost      the minutes given; a job that does not fit them, or lacks a file, is passed over
Expected  OUT/JOB/ for each finished job: results, curves, report, figures and about.json, as a
          folder of docs/results, where it belongs. What lies there, or in OUT, does not run again.

The jobs are in `experiments/tools/jobs.py`. A job that is stopped goes on where it was at the next
call, if --workdirs is still there.

`--check --memory_on=here` says too how many GB a job's largest run needs to train: compiled
for the device here, or for a GPU that a file describes, such as `experiments/tools/h100.txtpb`.
Without a GPU that takes the wheel jax-cuda13-plugin[with-cuda], and half an hour for all jobs.
"""

import dataclasses
import datetime
import functools
import json
import pathlib
import shlex
import shutil
import subprocess
import time

from dirasym import files, report, results, stopping
from dirasym.usage import UsageError, blamed
from experiments.flags import flag
from experiments.tables.common import RESULTS
from experiments.tools import command
from experiments.tools.jobs import JOBS, Job

LARGEST = 16 * 2**20  # bytes of one job's results
KEPT = ("results.jsonl", "report.md", "figures/*.png", "curves/*.npz")


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    minutes: float = flag(8.0, "At hand.", 0)
    output: str = flag("runs/queue", "Folder for results.", kind="path")
    workdirs: str = flag("runs/queue_workdirs", "Folder for work directories.", kind="path")
    jobs: tuple[str, ...] = flag(("all",), "Names of jobs, in the order of the list.")
    check: bool = flag(False, "Print the jobs, and try the flags of those that are left.")
    memory_on: str = flag("", "With --check, GB to train: here, or a file.", kind="path")

    def __post_init__(self):
        known = {job.name for job in JOBS}
        for name in self.jobs if self.jobs != ("all",) else ():
            if name not in known:
                raise ValueError(f"--jobs: {name!r} is not among {', '.join(sorted(known))}")
        if self.memory_on and not self.check:
            raise ValueError("--memory_on goes with --check")

    @property
    def chosen(self) -> list[Job]:
        """The jobs asked for, with the folder of work directories in their commands."""
        chosen = [job for job in JOBS if self.jobs == ("all",) or job.name in self.jobs]
        return [job.within(self.workdirs) for job in chosen]


def is_done(job: Job, config: Config) -> bool:
    """Whether its results are on file, or lie in the output folder."""
    folders = RESULTS, pathlib.Path(config.output)
    return any((folder / job.name / "about.json").is_file() for folder in folders)


def words(experiment: str, *more: str) -> list[str]:
    """The command line of a job's command."""
    return command.words(*shlex.split(experiment), *more)


def lacking(job: Job) -> list[str]:
    """What it needs and is not there."""
    return [path for path in job.needs if not pathlib.Path(path).exists()]


def check(experiment: str, compile_for: str = "") -> str:
    """Lets the experiment plan its runs. Raises UsageError where it refuses the flags.

    Returns the GB of the largest one, if it is to be compiled; else nothing.
    """
    more = [f"--compile_for={compile_for}"] if compile_for else []
    with blamed(experiment):
        lines = command.check(words(experiment, *more)).splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    if not cells or "GB" not in cells[0]:
        return ""
    return max((row[cells[0].index("GB")] for row in cells[2:]), key=float)


def print_table(config: Config, left: list[Job]) -> None:
    """All jobs, a row at a time; the flags of one that is left are tried before it is printed.

    Raises UsageError, after the last row, for jobs that their experiments refuse.
    """
    refused = []
    tried = functools.cache(functools.partial(check, compile_for=config.memory_on))
    header = ["job", "minutes", "", "command", *["GB"] * bool(config.memory_on)]
    print(report.table(header, []), flush=True)
    for job in config.chosen:
        missing = ", ".join(lacking(job))
        state = "done" if job not in left else f"needs {missing}" if missing else "left"
        gigabytes = ""
        if state == "left":
            try:
                gigabytes = tried(whole(job))
            except UsageError as error:
                state = "refused"
                refused.append(f"{job.name}: {error}")
        row = [job.name, job.minutes, state, f"`{job.command}`", gigabytes][: len(header)]
        print(report.table(header, [row]).splitlines()[-1], flush=True)
    if refused:
        raise UsageError("; ".join(refused))


def whole(job: Job) -> str:
    """The command of all its shards."""
    return job.command.partition(" --shard")[0]


def work(config: Config) -> None:
    """Prints the jobs, or runs those that fit."""
    left = [job for job in config.chosen if not is_done(job, config)]
    wanted = {path for job in left for path in lacking(job)}
    left = [job for job in config.chosen if job in left or job.leaves in wanted]
    if config.check:
        return print_table(config, left)
    end, failed = time.monotonic() + 60 * config.minutes, []
    for job in left:
        minutes = (end - time.monotonic()) / 60
        if job.minutes > minutes:
            print(f"{job.name}: takes {job.minutes:g} minutes, {minutes:.1f} are left", flush=True)
            continue
        if missing := lacking(job):
            print(f"{job.name}: needs {', '.join(missing)}", flush=True)
            continue
        folder = pathlib.Path(config.workdirs) / job.name
        limits = f"--workdir={folder}", f"--time_limit={minutes:.2f}", "--noprogress"
        status = subprocess.run(words(job.command, *limits)).returncode
        if status == 0:
            keep(job, folder, pathlib.Path(config.output) / job.name)
        elif status != stopping.STATUS:
            failed.append(job.name)
        said = {0: "done", stopping.STATUS: "stopped, and saved"}.get(
            status, f"failed with {status}"
        )
        print(f"{job.name}: {said}", flush=True)
    if failed:
        raise UsageError(f"{len(failed)} jobs failed: {', '.join(failed)}")


def keep(job: Job, folder: pathlib.Path, into: pathlib.Path) -> None:
    """Copies what a finished job leaves, and says how it was made: the last file, about.json."""
    found = [path for pattern in KEPT for path in sorted(folder.glob(pattern))]
    note = "Run by experiments.tools.queue."
    if sum(path.stat().st_size for path in found) > LARGEST:
        found = [path for path in found if path.suffix != ".npz"]
        note = "Without curves, which are too large."
    for path in found:
        target = into / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    made = json.loads((folder / "config.json").read_text(encoding="utf-8"))["made_with"]
    lines = results.read_results(folder / "results.jsonl")
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    about = {
        "commands": {"results": f"python -m experiments.{job.command}"},
        "commit": commit(),
        "recorded_in": {"results": {"commit": "the one that added this file", "date": now}},
        "device": made["device"],
        "versions": {"python": made["python"], **made["versions"]},
        "sum_of_run_wall_time_sec": {
            "results": round(sum(line.get("run_wall_time_sec", 0) for line in lines))
        },
        "notes": note,
    }
    files.write_atomically(into / "about.json", json.dumps(about, indent=2) + "\n")


def commit() -> str:
    """Of the working tree; changes that are not committed are said."""
    root = pathlib.Path(__file__).parents[2]
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        changed = subprocess.run([*git, "status", "--short"], capture_output=True, text=True)
    except OSError:
        return "unknown: no git"
    if head.returncode:
        return "unknown: no repository"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")


if __name__ == "__main__":
    command.main(Config, work)
