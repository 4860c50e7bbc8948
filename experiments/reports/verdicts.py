"""What the reports that decide claims share: intervals over seeds, verdicts, their table."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from dirasym import intervals, report
from dirasym.intervals import Bounds


def bounds(values: Sequence[float]) -> Bounds:
    """Mean with Student's interval; NaN of no values."""
    if not values:
        return Bounds(math.nan, math.nan, math.nan)
    return intervals.student_interval(values).bounds


def said(of: Bounds, digits: int = 2) -> str:
    """`1.0 (0.5 to 1.5)`."""
    estimate, low, high = (f"{x:.{digits}f}".replace("-", "−") for x in of)
    return f"{estimate} ({low} to {high})"


def verdict(of: Iterable[Bounds], holds: bool, fails: bool) -> str:
    """One word; where one of the statistics has no interval, or there is none, no verdict."""
    ends = np.array([*of], float)
    if not ends.size or not np.isfinite(ends).all():
        return "undecided"
    return "holds" if holds else "fails" if fails else "undecided"


def table(claims: Sequence[Sequence[str]]) -> str:
    """Rows of (claim, statistic, verdict)."""
    return report.table(["claim", "statistic (95 % interval over seeds)", "verdict"], claims)
