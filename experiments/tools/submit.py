r"""Sends an experiment to a cluster as an array of jobs, a shard of its runs each.

Command   python -m experiments.tools.submit toy_reversal --shards=8 --partition=gpu \
              --minutes=60 -- --preset=paper --workdir=runs/toy
Cost      seconds; the flags are tried first (`--dry_run`), and a bad one is refused here
Expected  The ids of the jobs. A job that is preempted, or out of time, saves its runs and is put
          into the queue again. The last shard to end writes the report; so does the experiment's
          own command when all are done.

`--executor=local` starts the shards on this machine. It needs submitit: in the
clone, pip install -e '.[cluster]'.
"""

import dataclasses
import importlib.util
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Literal

from dirasym import stopping
from dirasym.usage import UsageError, install
from experiments.flags import flag
from experiments.tools import command


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    shards: int = flag(1, "Jobs, each with a part of the runs and seeds.", 1)
    executor: Literal["slurm", "local"] = flag("slurm", "Where they run.")
    partition: str = flag("", "Slurm's partition.")
    minutes: int = flag(60, "Time of a job, after which it is put into the queue again.", 1)
    gpus: int = flag(0, "Of a job.", 0)
    cpus: int = flag(2, "Of a job.", 1)
    memory_gb: int = flag(16, "Of a job.", 1)
    logs: str = flag("logs/submit", "Folder for the jobs' output.", kind="path")
    wait: bool = flag(False, "Stay until all have ended.")


class Shard:
    """A command that is stopped so that it saves, and goes on in another job."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)

    def __call__(self) -> int:
        """Its exit status: 0 done, `stopping.STATUS` stopped before that."""
        self._process = subprocess.Popen(self.words)
        status = self._process.wait()
        if status not in (0, stopping.STATUS):
            raise RuntimeError(f"{' '.join(self.words)} ended with status {status}")
        return status

    def checkpoint(self):
        """What submitit calls when the job is preempted or out of time."""
        import submitit

        self._process.terminate()
        self._process.wait()
        return submitit.helpers.DelayedSubmission(Shard(self.words))


def submit(config: Config, experiment: str = "", *theirs: str) -> None:
    """Sends the shards of an experiment with its own flags, and prints the ids of the jobs."""
    if not experiment:
        raise UsageError("the experiment's name is missing: submit NAME [flags] -- ITS FLAGS")
    path = pathlib.Path(__file__).parents[1].joinpath(*experiment.split("."))
    if not path.with_suffix(".py").is_file():
        raise UsageError(f"{experiment}: there is no such experiment")
    if importlib.util.find_spec("submitit") is None:
        raise UsageError(f"submit needs submitit: {install('cluster')}")
    import submitit

    words = command.words(experiment, *theirs)
    command.check(words)
    folder = pathlib.Path(config.logs)
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(folder, cluster=config.executor)
    executor.update_parameters(timeout_min=config.minutes, cpus_per_task=config.cpus)
    executor.update_parameters(gpus_per_node=config.gpus, mem_gb=config.memory_gb)
    if config.partition:
        executor.update_parameters(slurm_partition=config.partition)
    parts = [
        Shard([*words, f"--shard={part}/{config.shards}", "--noprogress"])
        for part in range(config.shards)
    ]
    jobs = [executor.submit(part) for part in parts] if config.executor == "local" else []
    if not jobs:
        with executor.batch():
            jobs = [executor.submit(part) for part in parts]
    print("\n".join(job.job_id for job in jobs), flush=True)
    if config.wait:
        statuses = [job.result() for job in jobs]
        if any(statuses):
            raise UsageError(f"{sum(map(bool, statuses))} jobs stopped before they were done")


if __name__ == "__main__":
    command.main(Config, submit, takes_words=True)
