"""Tables and figure of `patching`: what each part of the weights holds, by docs/causes.md."""

import functools
from collections.abc import Sequence

import numpy as np

from dirasym import report, results
from dirasym.intervals import Bounds
from dirasym.workdir import WorkDir
from experiments.reports import verdicts
from experiments.reports.causes import Line, interval
from experiments.reports.verdicts import bounds, said

QUESTIONS = {  # of the two networks of a pair
    "order": ("source", "reverse"),
    "target": ("forward", "source"),
    "answer": ("forward", "reverse"),
    "next_token": ("forward", "reverse"),
}
PARTS = "values", "mlp", "storage", "routing", "ends", "all"
NAMES = {"mlp": "MLP", "next_token": "next token"}  # in a figure
GIVERS = "other", "twin", "untrained", "stranger"
CLAIMS = {  # by pair: the claim, and the verdict of both receivers that it needs
    "order": ("7. one storage for both orders", "shared"),
    "target": ("8. distinct entries by target", "distinct"),
    "answer": ("9. distinct entries by direction", "distinct"),
    "next_token": ("10. distinct entries, next token", "distinct"),
}
RIVAL = {"shared": "distinct", "distinct": "shared"}


def percents(lines: Sequence[Line], pair: str, into: int, giver: str, key: str) -> dict[int, float]:
    """One value of a receiver and giver, by seed."""
    of = report.select(lines, pair=pair, into=into, giver=giver)
    return {line["seed"]: line[key] for line in sorted(of, key=lambda line: line["seed"])}


def judged(
    lines: Sequence[Line], pair: str, into: int, part: str, measure: str = "choice"
) -> tuple[dict[str, Bounds], str]:
    """(choice of the own question by giver, gained, need and lean; the verdict).

    The `measure` "p" is P(true), "among" P(true) among the letters of its case. The design names
    neither: of them, none is said to drift.
    """
    own, others = QUESTIONS[pair][into], QUESTIONS[pair][1 - into]
    of = functools.partial(percents, lines, pair, into)
    by_giver = {giver: of(giver, f"{measure}_{own}_{part}") for giver in GIVERS}
    other, twin, untrained = (by_giver[giver] for giver in GIVERS[:3])
    found = {giver: bounds(list(values.values())) for giver, values in by_giver.items()}
    found["gained"] = bounds(list(of("other", f"{measure}_{others}_{part}").values()))
    found["need"] = need = bounds([twin[seed] - untrained[seed] for seed in twin])
    lean = [other[seed] - (twin[seed] + untrained[seed]) / 2 for seed in twin]
    found["lean"] = bounds(lean)
    least = 50 if measure == "choice" else 0
    return found, word_of(found["twin"], need, found["lean"], least)


def word_of(twin: Bounds, need: Bounds, lean: Bounds, least: float) -> str:
    """The verdict of docs/causes.md; undecided where a statistic has no interval."""
    if not np.isfinite([*twin, *need, *lean]).all():
        return "undecided"
    if twin.high < least:
        return "drifts"
    if need.high < 10:
        return "not needed"
    if need.low > 10 and lean.low > 0:
        return "shared"
    return "distinct" if need.low > 10 and lean.high < 0 else "undecided"


def pairs_of(lines: Sequence[Line]) -> list[str]:
    """Those that there are, in the order of the design."""
    there = {line["pair"] for line in lines}
    return [pair for pair in QUESTIONS if pair in there]


def part_table(lines: Sequence[Line]) -> str:
    """A row a pair, receiver and part."""
    rows = []
    for pair in pairs_of(lines):
        for into, question in enumerate(QUESTIONS[pair]):
            for part in PARTS:
                found, word = judged(lines, pair, into, part)
                chosen = [said(found[giver], 0) for giver in GIVERS]
                sums = [said(found[name], 0) for name in ("need", "lean")]
                rows.append([pair, question, part, *chosen, *sums, word, said(found["gained"], 0)])
    head = ["pair", "own question", "part", *(f"{giver} %" for giver in GIVERS)]
    return report.table([*head, "need", "lean", "verdict", "gained %"], rows)


def said_table(lines: Sequence[Line], measure: str = "p") -> str:
    """A row a pair and receiver, by P(true): of storage the numbers, of each part the verdict."""
    rows = []
    for pair in pairs_of(lines):
        for into, question in enumerate(QUESTIONS[pair]):
            by_part = {part: judged(lines, pair, into, part, measure) for part in PARTS[:-1]}
            found, words = by_part["storage"][0], [word for _, word in by_part.values()]
            names = (*GIVERS[:3], "need", "lean")
            rows.append([pair, question, *(said(found[name], 0) for name in names), *words])
    unit = {"p": "P(true) %", "among": "P(true) in its case %"}[measure]
    head = ["pair", "own question", *(f"storage: {giver}, {unit}" for giver in GIVERS[:3])]
    head += ["need", "lean", *(f"{part}: verdict" for part in PARTS[:-1])]
    return report.table(head, rows)


def network_table(lines: Sequence[Line]) -> str:
    """A row a network: what it chooses with all parts its own, in percent."""
    keys = "attention", "objective", "predicted", "told", "training"
    of: dict[tuple, list[Line]] = {}
    for line in lines:
        of.setdefault(tuple(line[key] for key in keys), []).append(line)
    asked = "forward", "reverse", "source"
    rows = [
        [*network, len(own)]
        + [report.mean_interval([line[f"choice_{name}"] for line in own], 1) for name in asked]
        for network, own in of.items()
    ]
    return report.table([*keys, "seeds", *(f"{name}: choice %" for name in asked)], rows)


def claims(lines: Sequence[Line], measure: str = "choice") -> list[list[str]]:
    """(claim, statistic, verdict), of the storage as a whole, in the pairs that there are."""
    rows = []
    for pair in pairs_of(lines):
        claim, wanted = CLAIMS[pair]
        both = [judged(lines, pair, into, "storage", measure) for into in (0, 1)]
        words = [word for _, word in both]
        text = "; ".join(
            f"{question}: need {said(found['need'], 0)}, lean {said(found['lean'], 0)}, {word}"
            for question, (found, word) in zip(QUESTIONS[pair], both, strict=True)
        )
        fails = "fails" if RIVAL[wanted] in words else "undecided"
        rows.append([claim, text, "holds" if set(words) == {wanted} else fails])
    return rows


def claim_table(lines: Sequence[Line], measure: str = "choice") -> str:
    """`claims` as a table."""
    return verdicts.table(claims(lines, measure))


def transplants(lines: Sequence[Line]) -> list[Line]:
    """Claim 4's: the answers of *B only* with the storage of *A only*, a line a seed."""
    of = report.select(lines, pair="target", into=0, giver="other")
    whole = "_storage"
    return [
        {"seed": line["seed"]}
        | {key.removesuffix(whole): x for key, x in line.items() if key.endswith(whole)}
        for line in of
    ]


def figure(lines: Sequence[Line]):
    """Choice of the own question with each part from each giver: a panel a pair and receiver."""
    pairs = pairs_of(lines)
    drawn, axes = report.new_figure(len(pairs), 2, (7.2, 1.7))
    for row, pair in zip(axes, pairs, strict=True):
        for into, ax in enumerate(row):
            for number, giver in enumerate(GIVERS):
                key = f"choice_{QUESTIONS[pair][into]}_"
                of = report.select(lines, pair=pair, into=into, giver=giver)
                aside = report.beside(ax, 0.15 * number - 0.225)
                style = dict(fmt="os^D"[number], color=report.color(number), transform=aside)
                found = [interval(of, key + part) for part in PARTS]
                report.plot_bounds(ax, range(len(PARTS)), found, giver, ms=4, **style)
            ax.axhline(100 / 26, color="gray", lw=0.8, ls=":")
            parts = [NAMES.get(part, part) for part in PARTS]
            ax.set_xticks(range(len(PARTS)), parts, fontsize=report.SMALL)
            title = f"{NAMES.get(pair, pair)}: {QUESTIONS[pair][into]}"
            ax.set_title(title, fontsize=report.SMALL)
            ax.set(ylim=(-4, 104), ylabel="choice (%)" if into == 0 else None)
    handles = ax.get_legend_handles_labels()  # those of every panel
    drawn.legend(*handles, loc="outside upper center", ncols=4, fontsize=report.SMALL)
    return drawn


def write(workdir: WorkDir, config, lines: Sequence[Line]) -> None:
    """Keeps the exchanges in patches.jsonl; writes report.md, prints its tables."""
    keys = ("pair", "into", "giver", "seed")
    results.replace_results(workdir.path / "patches.jsonl", lines, keys)
    parts = [network_table(workdir.results()), part_table(lines), claim_table(lines)]
    printed = "\n\n".join(parts)
    head = f"# Which part holds a direction\n\n{config.data}, {config.steps} steps of "
    text = f"{head}{config.batch_size}; words and thresholds: docs/causes.md.\n\n{printed}"
    figures = {"patching": functools.partial(figure, lines)}
    report.write(workdir.path, text, figures, printed=printed)
