"""Do two trainings begin alike, as far as seeds do?

Question  bfloat16 products, another device or another release change a training's rounding. Are
          its first losses still those of the other, within the spread of seeds?
Command   python -m experiments.tools.same_losses --first=DIR --second=DIR [--steps=200]
Cost      seconds. The two directories are of one experiment, with --seeds of at least two, and
          differ in what is asked about: --dtype=float32 and --dtype=bfloat16.
Expected  a row a run: the mean distance of both losses at one seed, that of two seeds of one
          training, and the mean difference over steps, with its interval over seeds. Seeds differ
          in their batches too, and both trainings meet the same ones.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping

import numpy as np

from dirasym import files, report
from dirasym.usage import UsageError, blamed
from experiments.flags import flag
from experiments.tools import command

Losses = Mapping[str, Mapping[str, np.ndarray]]  # by run, by seed


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    first: str = flag("", "A work directory, or its results on file.", kind="path")
    second: str = flag("", "The other.", kind="path")
    steps: int = flag(200, "First steps to compare.", 1)

    def __post_init__(self):
        if not (self.first and self.second):
            raise ValueError("--first or --second is missing")


def read(path: str, steps: int) -> Losses:
    """The first losses of every run and seed. Raises ValueError where there are none."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for file in sorted(pathlib.Path(path).glob("curves/*,seed=*.npz")):
        run, _, seed = file.stem.rpartition(",seed=")
        try:
            files.check_regular(file)
            with np.load(file, allow_pickle=False) as curves:
                found.setdefault(run, {})[seed] = curves["loss"][:steps]
        except Exception:  # zip, zlib and NumPy raise a dozen kinds
            raise ValueError(f"{file} holds no losses that can be read") from None
    if not found:
        raise ValueError(f"{path} has no curves")
    return found


def compare(first: Losses, second: Losses) -> list[dict]:
    """Distances by run, over the seeds that both have: at one seed, and of two seeds.

    Raises:
      ValueError: other runs, fewer than two seeds in common, or of other lengths.
    """
    if set(first) != set(second):
        raise ValueError(f"the runs differ: {sorted(set(first) ^ set(second))}")
    lines = []
    for run in first:
        seeds = sorted(set(first[run]) & set(second[run]))
        if len(seeds) < 2:
            raise ValueError(f"{run} has {len(seeds)} seeds in common, and needs two")
        one_ST, two_ST = (np.array([x[run][seed] for seed in seeds]) for x in (first, second))
        if one_ST.shape != two_ST.shape:
            raise ValueError(f"{run} has {one_ST.shape[1]} steps, and {two_ST.shape[1]}")
        pairs = itertools.combinations(one_ST, 2)
        at_one_seed = float(np.abs(two_ST - one_ST).mean())
        of_seeds = float(np.mean([np.abs(a - b).mean() for a, b in pairs]))
        lines.append(
            {
                "run": run,
                "steps": one_ST.shape[1],
                "seeds": len(seeds),
                "at_one_seed": at_one_seed,
                "of_two_seeds": of_seeds,
                "difference": (two_ST - one_ST).mean(1).tolist(),
                "alike": at_one_seed < of_seeds,
            }
        )
    return lines


def table(lines: list[dict]) -> str:
    """A row a run."""
    names = ["run", "steps", "seeds", "at one seed", "of two seeds", "second − first", "alike"]
    rows = [
        [line["run"], line["steps"], line["seeds"]]
        + [f"{line[name]:.2e}" for name in ("at_one_seed", "of_two_seeds")]
        + [report.mean_interval(line["difference"], 4), "yes" if line["alike"] else "no"]
        for line in lines
    ]
    return report.table(names, rows)


def work(config: Config) -> None:
    """Prints the table; a pair that is not alike ends it with status 2."""
    with blamed():
        lines = compare(*(read(path, config.steps) for path in (config.first, config.second)))
    print(table(lines))
    other = [line["run"] for line in lines if not line["alike"]]
    if other:
        raise UsageError(f"not alike within the spread of seeds: {', '.join(other)}")


if __name__ == "__main__":
    command.main(Config, work)
