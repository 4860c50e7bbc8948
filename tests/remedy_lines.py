"""Result lines of `cures` and `cures_facts` whose outcomes are known."""

from experiments.reports import cures


def known(values, remedies, mark="reversed"):
    """Three seeds that agree, an interval of no width, of every remedy and matching.

    Args:
      values: by remedy at equal compute, its reverse, or (reverse, copying, incorrect); of
        `mark` at equal exposure under "exposure". All else is 77, and not to be read.
      remedies: their names.
      mark: the remedy that is compared at equal exposure.
    """
    lines = [
        {"remedy": remedy, "matching": matching, "seed": seed}
        | dict.fromkeys(cures.COLUMNS.values(), 77.0)
        for remedy in (*remedies, "rows")
        for matching in ("compute", "tokens", "exposure")
        for seed in (0, 1, 2)
    ]
    for name, given in values.items():
        cell = (mark, name) if name == "exposure" else (name, "compute")
        numbers = given if isinstance(given, tuple) else (given,)
        for line in lines:
            if (line["remedy"], line["matching"]) == cell:
                line |= dict(zip(("reverse", "copying", "incorrect"), numbers, strict=False))
    return lines
