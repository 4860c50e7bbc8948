"""Joins many work directories into one table, or compares two.

Command   python -m experiments.tools.collect runs/* [--each_seed] [--format=csv]
          python -m experiments.tools.collect runs/* --columns=model,seeds,reverse_percent
          python -m experiments.tools.collect --compare runs/a runs/b
Cost      seconds
Expected  A line a run, its seeds as mean ± 95 % Student interval; flags that differ as columns.
          Times are columns where --columns names them. An interval of a reading is
          estimate (low to high).
          With --compare the flags that differ, and a line a run and seed that both have,
          empty where they are equal; below, how many differ.
"""

import csv
import dataclasses
import math
import sys
from typing import Any, Literal

from dirasym import collecting, intervals, report
from dirasym.reading import MEASURES
from dirasym.usage import UsageError, blamed
from experiments.flags import flag
from experiments.tools import command

_BOUNDS = {f"{side}_{name}" for side in ("forward", "reverse") for name in MEASURES}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    format: Literal["markdown", "csv"] = flag("markdown", "Of the table.")
    each_seed: bool = flag(False, "A line a seed, not one for all seeds of a run.")
    compare: bool = flag(False, "What differs between two work directories.")
    columns: tuple[str, ...] = flag(("all",), "Columns to show, in this order: a,b.")


def collect(config: Config, *workdirs: str) -> None:
    """Prints the table."""
    if not workdirs or (config.compare and len(workdirs) != 2):
        wanted = "two work directories" if config.compare else "work directories"
        raise UsageError(f"expected {wanted}, got {len(workdirs)}")
    with blamed():
        if config.compare:
            one, other = (collecting.collect([path]) for path in workdirs)
            flags = collecting.flags_that_differ(workdirs)
            named = collecting.flag_columns(flags, [*one, *other])
            told = {"run": "(flags)", **{named[name]: of for name, of in flags.items()}}
            lines = [told, *collecting.differences(one, other)]
        else:
            lines = collecting.collect(workdirs)
    if not (config.compare or config.each_seed):
        lines = collecting.over_seeds(lines)
    columns = list(dict.fromkeys(key for line in lines for key in line))
    shown = [name for name in columns if name not in collecting.TIMES]
    if config.columns != ("all",):
        unknown = [name for name in config.columns if name not in columns]
        if unknown:
            raise UsageError(f"--columns: no column {unknown[0]!r} among {', '.join(columns)}")
        shown = list(config.columns)
    rows = [[_text(line.get(column), column) for column in shown] for line in lines]
    if config.format == "csv":
        csv.writer(sys.stdout).writerows([shown, *rows])
    else:
        print(report.table(shown, rows))
        if config.compare:
            print(f"\n{_verdict(lines, len(one) + len(other))}")


def _verdict(lines: list[dict[str, Any]], of_both: int) -> str:
    """What a comparison comes to, of the line of flags and those that both directories have."""
    count = len(lines) - 1
    differ = sum(bool(line.keys() - {"run", "seed"}) for line in lines[1:])
    alone = of_both - 2 * count
    flags = "flags differ" if lines[0].keys() - {"run"} else "the flags are equal"
    return (
        f"{flags}; of the lines in both, {differ} of {count} differ, times aside; "
        f"{alone} are in one alone"
    )


def _with_interval(mean: float, half_width: float) -> str:
    """To two digits of the half-width."""
    if math.isnan(half_width) or half_width == 0:
        return f"{mean:.6g}"
    digits = 1 - math.floor(math.log10(float(f"{half_width:.1e}")))
    return report.with_interval(mean, half_width, max(digits, 0))


def _text(value: Any, column: str) -> str:
    """A cell; what is not there is blank."""
    if isinstance(value, tuple) and not isinstance(value, intervals.Interval):
        return " → ".join(_text(one, column) or "–" for one in value)
    if isinstance(value, intervals.Interval):
        return _with_interval(*value)
    if column in _BOUNDS and isinstance(value, list) and len(value) == 3:
        estimate, low, high = map(_rounded, value)
        return f"{estimate} ({low} to {high})" if low and high else estimate
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _rounded(number: float | None) -> str:
    """To three places, or two digits of a smaller one."""
    if number is None:
        return ""
    return f"{number:.3f}" if number == 0 or abs(number) >= 0.001 else f"{number:.2g}"


if __name__ == "__main__":
    command.main(Config, collect, takes_words=True)
