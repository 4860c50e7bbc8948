"""Which withheld answer, where none is likely: docs/training_dynamics.md, "Learning rate"."""

import warnings

import numpy as np
import scipy.stats

from dirasym.intervals import Bounds
from experiments.reports.verdicts import bounds, said, verdict
from experiments.systems import relations
from experiments.tables.closure import paired
from experiments.tables.common import Line, column, each, groups, lines, mean, number, table

FILES = tuple(f"relations_study/{x}" for x in ("choice", "choice_24", "choice_heads"))
FACTORS = "learning_rate", "learning_rate_24", "head", "share_both_ways"
PUBLISHED = "relations_24x768/reversal"
CHAIN, IN_CONTEXT = "relations_24x768/chain", "relations_24x768/icl"
COLUMNS = {
    "training NLL": "train_nll",
    "withheld NLL": "validation_nll",
    "its lowest": "lowest_validation_nll",
    "trained choice %": "choice_given",
    "withheld choice %": "choice_withheld",
    "withheld gap": "gap_withheld",
    "asymmetry, withheld": "asymmetry_withheld",
}
SHARE = 0.7  # of `relations`, where it does not vary


def guess(share: float = SHARE, task: str = "reversal") -> float:
    """Choice by guessing, in percent: one of the withheld answers."""
    config = relations.Config(task=task, train_share=share)
    return 100 / len(relations.sentences(config, None).panels["withheld"])


def cells(factor: str) -> dict[str, list[Line]]:
    """A factor's lines by its values."""
    return {value: of for (value,), of in groups(lines(*FILES, factor=factor), "value").items()}


def factor_table(factor: str) -> str:
    """A row a value: what is learned, what each seed chooses, and how often a guess is right."""
    rows = []
    for value, of in cells(factor).items():
        by_guess = guess(float(value) if factor == "share_both_ways" else SHARE)
        values = [
            each(column(of, key), 1) if "choice" in key else mean(column(of, key))
            for key in COLUMNS.values()
        ]
        rows.append([value, *values, number(by_guess, 1)])
    return table([factor.replace("_", " "), *COLUMNS, "a guess chooses %"], rows)


def published_table() -> str:
    """The published size, a row a task and seed."""
    rows = []
    for line in lines(PUBLISHED) + lines(CHAIN) + lines(IN_CONTEXT):
        values = [number(line[key], 2) if key in line else "–" for key in COLUMNS.values()]
        rows.append([line["task"], line["seed"], *values, number(guess(task=line["task"]), 1)])
    return table(["task", "seed", *COLUMNS, "a guess chooses %"], rows)


def published(key: str, digits: int) -> str:
    """A value of the published size, seed by seed."""
    return each(column(lines(PUBLISHED), key), digits)


def choice(factor: str, value: str, key: str = "choice_withheld") -> dict[int, float]:
    """Seed to choice of the withheld answer in percent, or to another value."""
    return {line["seed"]: line[key] for line in cells(factor)[value]}


def of_cell(factor: str, value: str) -> Bounds:
    """Mean choice over seeds."""
    return bounds(list(choice(factor, value).values()))


def more(factor: str, value: str, less: str, key: str = "choice_withheld") -> Bounds:
    """Choice, or another key, at one value less that at another, paired over seeds."""
    return bounds(paired(choice(factor, less, key), choice(factor, value, key)))


def unpaired(factor: str, value: str, less: str) -> Bounds:
    """The same with Welch's interval: the two differ in more than the factor."""
    high, low = (list(choice(factor, x).values()) for x in (value, less))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all seeds of a cell may be alike
        found = scipy.stats.ttest_ind(high, low, equal_var=False)
    difference = sum(high) / len(high) - sum(low) / len(low)
    return Bounds(difference, *found.confidence_interval())


def above(of: list[Bounds], limit: float) -> list[str]:
    """Statistic and verdict of "each is above": the one whose lower end is the least."""
    least = min(of, key=lambda x: x.low)
    holds, fails = all(x.low > limit for x in of), any(x.high < limit for x in of)
    return [said(least, 1), verdict(of, holds, fails)]


def below(of: list[Bounds], limit: float) -> list[str]:
    """Statistic and verdict of "each is below": the one whose upper end is the greatest."""
    greatest = max(of, key=lambda x: x.high)
    holds, fails = all(x.high < limit for x in of), any(x.low > limit for x in of)
    return [said(greatest, 1), verdict(of, holds, fails)]


def every(values: list[float], limit: float, digits: int = 1) -> list[str]:
    """All values, and whether each is above."""
    return [each(values, digits), "holds" if min(values) > limit else "fails"]


def learned(of: list[Line]) -> list[str]:
    """When each seed's training NLL fell below 0.05, and whether all did."""
    epochs = column(of, "epochs_to_learn")
    when = ", ".join("never" if x is None else f"epoch {x}" for x in epochs)
    return [when, "fails" if None in epochs else "holds"]


def both(of: list[Line]) -> list[str]:
    """Whether all learned, and all withheld NLL end above a guess."""
    nll, uniform = column(of, "validation_nll"), of[0]["uniform_nll"]
    found = learned(of), every(nll, uniform, 2)
    holds = all(decided == "holds" for _, decided in found)
    return ["; ".join(said for said, _ in found), "holds" if holds else "fails"]


def predictions() -> list[list[str]]:
    """(prediction, statistic, verdict) of 1 to 16, as the page decides them."""
    rates = [of_cell("learning_rate", x) for x in ("0.001", "0.003", "0.01")]
    share = unpaired("share_both_ways", "0.7", "0.1")
    deep = more("learning_rate_24", "0.01", "0.001")
    untied = of_cell("head", "untied"), of_cell("learning_rate_24", "0.01, untied")
    others = [of_cell("family", x) for x in ("mlp", "gru")]
    masked, frozen = of_cell("family", "masked"), of_cell("head", "tied, frozen embeddings")
    dropped = more("learning_rate_24", "0.01, dropout 0.1", "0.01")
    ends = [np.mean(column(x, "validation_nll")) for f in FACTORS for x in cells(f).values()]
    seeds, chain, told = lines(PUBLISHED), lines(CHAIN), lines(IN_CONTEXT)
    uniform = seeds[0]["uniform_nll"]
    lowest = column(told, "lowest_validation_nll")
    return [
        ["1. choice above 90 % from 1e-3 to 1e-2 (the least)", *above(rates, 90)],
        ["2. below 50 % with an untied head", *below([untied[0]], 50)],
        ["3. share 0.7 less 0.1: above 20 points (unpaired)", *above([share], 20)],
        ["4. 24 layers, 1e-2 less 1e-3: above 30 points (paired)", *above([deep], 30)],
        ["5. 24 layers at 1e-2, untied head: below 50 %", *below([untied[1]], 50)],
        ["6. no mean withheld NLL below a guess (the least)", *every([min(ends)], uniform, 2)],
        ["7. published size: training learned", *learned(seeds)],
        ["8. its withheld NLL above a guess", *every(column(seeds, "validation_nll"), uniform, 2)],
        ["9. its choice above 50 %", *every(column(seeds, "choice_withheld"), 50)],
        ["10. MLP and GRU, untied: below 20 % (the greater)", *below(others, 20)],
        ["11. bidirectional, tied: above 50 %", *above([masked], 50)],
        ["12. tied, embeddings frozen: below 50 %", *below([frozen], 50)],
        ["13. 24 layers at 1e-2, dropout 0.1 less none: above 20 points", *above([dropped], 20)],
        ["14. its chain: learned, and withheld NLL above a guess", *both(chain)],
        ["15. choice of A ⇒ C above 20 %", *every(column(chain, "choice_withheld"), 20)],
        [
            "16. in context: below 0.5 nats",
            each(lowest, 3),
            "holds" if max(lowest) < 0.5 else "fails",
        ],
    ]


def prediction_table() -> str:
    """`predictions` as a table."""
    header = ["prediction", "mean (95 % interval), or seed by seed", "verdict"]
    return table(header, predictions())
