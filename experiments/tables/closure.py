"""Numbers of docs/closure.md that are in none of the report's tables."""

from collections.abc import Sequence

import numpy as np

from dirasym import report
from dirasym.intervals import Bounds
from experiments.reports import closure as closure_report
from experiments.reports import verdicts
from experiments.reports.verdicts import bounds, said, verdict
from experiments.tables.common import Line, column, groups, lines, mean, table

WIDTHS = {  # files of each
    32: ("closure/width_32",),
    64: ("closure/results",),
    128: ("closure/width_128", "closure/width_128_more", "closure/width_128_rest"),
    256: ("closure/width_256",),
}
OTHERS = 32, 128  # of which predictions 5 to 9 are; 10 to 12 are of 256


def of_width(width: int) -> list[Line]:
    """All runs of one width."""
    return lines(*WIDTHS[width])


def first_unlearned(of: Sequence[Line], *closures: int) -> str:
    """The least weight decay at which less than 95 % of what is told is known, at any of these."""
    decays = [
        float(decay)
        for (closure, decay), cell in groups(of, "closure", "weight_decay").items()
        if closure in closures and np.mean(column(cell, "train_accuracy")) < closure_report.LEARNED
    ]
    if decays:
        return f"{min(decays):g}"
    return f"none of {', '.join(closure_report.values_of(of, 'weight_decay'))}"


def unlearned(*closures: int) -> str:
    """`first_unlearned` at width 64."""
    return first_unlearned(of_width(64), *closures)


def reverse(width: int, closure: int, decay: str) -> dict[int, float]:
    """Seed to reverse accuracy in percent; rounded, so that a tie is one."""
    of = report.select(of_width(width), closure=closure, weight_decay=decay)
    return {line["seed"]: round(100 * line["reverse_accuracy"], 3) for line in of}


def rise(width: int, closure: int = 2, decay: str = "1", less: str = "0") -> list[float]:
    """Points that reverse gains from one decay to another, a seed each."""
    return paired(reverse(width, closure, less), reverse(width, closure, decay))


def paired(less: dict[int, float], more: dict[int, float]) -> list[float]:
    """The differences of two cells, a seed each."""
    return [more[seed] - less[seed] for seed in sorted(less)]


def widths_table() -> str:
    """A row a width and closure."""
    rows = []
    for width in WIDTHS:
        for closure in closure_report.values_of(of_width(width), "closure"):
            at = [mean(list(reverse(width, closure, x).values()), 1) for x in ("0", "1")]
            told = first_unlearned(of_width(width), closure)
            rows.append([width, closure, *at, mean(rise(width, closure), 1), told])
    header = "width, closure, reverse %: decay 0, decay 1, decay 1 less 0"
    return table(f"{header}, first decay that does not learn", rows)


def predictions() -> list[list[str]]:
    """(prediction, statistic, verdict) of 5 to 12, as docs/closure.md decides them."""
    rows = []
    for width in OTHERS:
        isolated, *others = closure_report.claims(of_width(width))
        rows.append([f"5. isolated pairs stay one-way, width {width}", *isolated[1:]])
        rows += [[f"{claim}, width {width}", *more] for claim, *more in others]
    rows += [free_of_decay(6, width) for width in OTHERS]
    for width in OTHERS:
        gain = bounds(rise(width))
        decided = verdict([gain], gain.low > 0, gain.high < 0)
        rows.append([f"7. decay helps at closure 2, width {width}", said(gain, 1), decided])
    for width in OTHERS:
        found = {closure: first_unlearned(of_width(width), closure) for closure in (0, 2, 4, 6)}
        others = sum(x != ("3" if closure else "5") for closure, x in found.items())
        told = ", ".join(f"{decay} at closure {closure}" for closure, decay in found.items())
        decided = "holds" if not others else "fails" if others > 1 else "undecided"
        rows.append([f"8. the same decays keep from learning, width {width}", told, decided])
    for number, narrow, wide, way in ((9, 32, 128, 1), (10, 128, 256, -1)):
        gain = wider(narrow, wide)
        decided = verdict([gain], *(x > 0 for x in (gain.low, -gain.high)[::way]))
        claim = f"{number}. {wide} answers {'more' if way > 0 else 'less'} than {narrow}"
        rows.append([f"{claim} at closure 2, decay 0 (paired)", said(gain, 1), decided])
    gain = bounds(rise(256, decay="2"))
    decided = verdict([gain], gain.low > 20, gain.high < 20)
    rows.append(["11. decay 2 helps at closure 2, width 256", said(gain, 1), decided])
    return [*rows, free_of_decay(12, 256)]


def free_of_decay(number: int, width: int) -> list[str]:
    """Whether a whole graph is answered without decay."""
    free = bounds(list(reverse(width, 6, "0").values()))
    decided = verdict([free], free.low > 90, free.high < 90)
    return [f"{number}. a whole graph needs no decay, width {width}", said(free, 1), decided]


def wider(narrow: int, wide: int) -> Bounds:
    """Reverse at closure 2 without decay, one width less another, paired over seeds."""
    return bounds(paired(reverse(narrow, 2, "0"), reverse(wide, 2, "0")))


def prediction_table() -> str:
    """`predictions` as a table."""
    return verdicts.table(predictions())
