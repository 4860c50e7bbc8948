"""Joins many work directories into one table, or compares two.

Command   python -m experiments.tools.collect --workdirs runs/a runs/b [--format=csv] [--each_seed]
          python -m experiments.tools.collect --workdirs runs/a runs/b --compare
Cost      seconds
Expected  A line a run, its seeds as mean ± 95 % Student interval; flags that differ as columns.
"""

import csv
import dataclasses
import sys
from typing import Any, Literal

from dirasym import collecting, intervals, report
from dirasym.usage import UsageError, blamed
from experiments.flags import flag
from experiments.tools import command


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    workdirs: tuple[str, ...] = flag((".",), "Work directories.")
    format: Literal["markdown", "csv"] = flag("markdown", "Of the table.")
    each_seed: bool = flag(False, "A line a seed, not one for all seeds of a run.")
    compare: bool = flag(False, "What differs between two work directories.")
    columns: tuple[str, ...] = flag(("all",), "Columns to show.")

    def __post_init__(self):
        if self.compare and len(self.workdirs) != 2:
            raise ValueError(f"--compare takes two --workdirs, got {len(self.workdirs)}")


def collect(config: Config) -> None:
    """Prints the table."""
    with blamed():
        if config.compare:
            one, other = (collecting.collect([path]) for path in config.workdirs)
            lines = collecting.differences(one, other)
        else:
            lines = collecting.collect(config.workdirs)
    if not (config.compare or config.each_seed):
        lines = collecting.over_seeds(lines)
    columns = list(dict.fromkeys(key for line in lines for key in line))
    if config.columns != ("all",):
        unknown = [name for name in config.columns if name not in columns]
        if unknown:
            raise UsageError(f"--columns: no column {unknown[0]!r} among {', '.join(columns)}")
        columns = list(config.columns)
    rows = [[_text(line.get(column, "")) for column in columns] for line in lines]
    if config.format == "csv":
        csv.writer(sys.stdout).writerows([columns, *rows])
    else:
        print(report.table(columns, rows))


def _text(value: Any) -> str:
    if isinstance(value, intervals.Interval):
        return report.with_interval(*value, digits=4)
    if isinstance(value, float):
        return f"{value:.6g}"
    return " → ".join(map(_text, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    command.main(Config, collect)
