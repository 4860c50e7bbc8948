"""The table, the figure and the claims of `cures_facts`."""

import functools
from collections.abc import Sequence

from dirasym import runs
from dirasym.workdir import WorkDir
from experiments.reports.cures import Lines, claim, named, outcome, points_more, write_study


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run]) -> None:
    """The table and the figure."""
    del all_runs
    c, words = config, "word" + "s" * (config.name_words > 1)
    of = (
        f"Invented facts: {c.num_pairs} pairs told one way and asked both, {c.both_ways} told both "
        f"ways, {c.teachers} told of a teacher; names of {c.name_words} {words}; one layer × "
        f"{c.width}. Incorrect: of those who have a teacher, how many are given the pupil for a "
        f"parent. Chance of choice is {100 / (c.num_pairs + c.teachers):.1f} %."
    )
    write_study(workdir, claims, of)


def claims(lines: Lines) -> list[list[str]]:
    """(claim, statistic, verdict) by the thresholds of docs/cures.md, of what was run."""
    of = functools.partial(named, lines)
    identity = {key: outcome(lines, key, "identity") for key in ("reverse", "copying")}
    at_equal = {
        "at equal exposure": outcome(lines, "reverse", "inverse", "exposure"),
        "points less": points_more(
            lines, "reverse", ("compute", "inverse"), ("exposure", "inverse")
        ),
    }
    whole = ("compute", "diffusion_names"), ("compute", "diffusion")
    more = of("reverse", "diffusion_names") | {"points more": points_more(lines, "reverse", *whole)}
    first = [
        claim("1. telling the inverse gives the reverse", of("reverse", "inverse"),
              lambda x: x.low > 80, lambda x: x.high < 50),
        claim("2. rows reversed by name give it, by word not",
              of("reverse", "entities", "reversed"),
              lambda name, word: name.low > 50 and word.high < 20,
              lambda name, word: name.high < 20 or word.low > 50),
        claim("3. a part of it without a reversed row", of("reverse", "copies", "diffusion"),
              lambda *xs: all(x.low > 20 for x in xs), lambda *xs: any(x.high < 10 for x in xs)),
        claim("4. `identity` gives copying, not the reverse", identity,
              lambda x, copied: x.high < 10 and copied.low > 30, lambda x, copied: x.low > 20),
        claim("5. masking under a causal mask gives none", of("reverse", "uniform_masked"),
              lambda x: x.high < 5, lambda x: x.low > 10),
        claim("6. decay and dropout give none", of("reverse", "weight_decay", "dropout"),
              lambda *xs: all(x.high < 5 for x in xs), lambda *xs: any(x.low > 10 for x in xs)),
        claim("7. names hidden as wholes give more", more,
              lambda _, x: x.low > 10, lambda _, x: x.high < 3),
        claim("8. whole names and inverse rows give it all", of("reverse", "diffusion_inverse"),
              lambda x: x.low > 80, lambda x: x.high < 50),
        claim("9. `inverse` is lower at equal exposure", at_equal,
              lambda _, x: x.estimate > 10, lambda _, x: round(x.estimate, 6) < 3),
        claim("10. what reverses asserts what does not hold", of("incorrect", "diffusion", "none"),
              lambda x, none: x.low > none.high, lambda x, none: x.high < 5),
    ]  # fmt: skip
    return first + symmetric_claims(lines)


def symmetric_claims(lines: Lines) -> list[list[str]]:
    """Those of the page's "Symmetric rows"."""
    both = "diffusion_symmetric", "diffusion_entities"

    def points(key: str, less: str):
        cells = ("compute", "diffusion_symmetric_names"), ("compute", less)
        more = points_more(lines, key, *cells)
        return named(lines, key, "diffusion_symmetric_names", less) | {"points more": more}

    def clearly(_, __, x):
        return x.low > 30

    return [
        claim("11. symmetric rows give the reverse", named(lines, "reverse", *both),
              lambda *xs: all(x.low > 80 for x in xs), lambda *xs: any(x.high < 50 for x in xs)),
        claim("12. they assert what does not hold", named(lines, "incorrect", *both),
              lambda *xs: all(x.low > 50 for x in xs), lambda *xs: any(x.high < 20 for x in xs)),
        claim("13. they add to whole names", points("reverse", "diffusion_names"),
              clearly, lambda _, __, x: x.high < 10),
        claim("14. they assert more than inverse rows", points("incorrect", "diffusion_inverse"),
              clearly, lambda _, __, x: x.high < 10),
        claim("15. with them whole names give more than tokens",
              points("reverse", "diffusion_symmetric"),
              lambda _, __, x: x.low > 10, lambda _, __, x: x.high < 3),
    ]  # fmt: skip
