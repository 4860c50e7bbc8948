"""The table and figure of `cures`: a row a remedy and matching, means over seeds."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import report, runs
from dirasym.workdir import WorkDir
from experiments.reports import verdicts
from experiments.reports.verdicts import bounds, said, verdict

COLUMNS = {  # header -> key
    "forward %": "forward",
    "forward NLL": "forward_nll",
    "reverse %": "reverse",
    "choice %": "choice",
    "copying %": "copying",
    "incorrect %": "incorrect",
}
NAMES = {"forward": "forward", "reverse": "reverse", "incorrect": "asserts what does not hold"}
Lines = Sequence[Mapping[str, Any]]


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run]) -> None:
    """The table and the figure."""
    del all_runs
    num = 26 - config.lone
    of = (
        f"Toy pairs, L = {config.length}, {num} pairs and {config.lone} letters without a partner; "
        f"one layer × {config.width}. Chance of choice is {100 / num:.1f} %."
    )
    write_study(workdir, claims, of)


def write_study(workdir: WorkDir, claims_of, of: str) -> None:
    """The table and the figure of a study, whose claims are `claims_of` its lines."""
    lines = workdir.results()
    printed = f"{table(lines)}\n\n{verdicts.table(claims_of(lines))}"
    text = (
        f"# Remedies on one footing\n\n{printed}\n\nMean over seeds ± 95 % Student interval. {of}"
    )
    figures = {"remedies": functools.partial(figure, lines)}
    report.write(workdir.path, text, figures, printed=printed)


def cells(lines: Lines) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Lines by (matching, remedy), in the order in which they come first."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault((line["matching"], line["remedy"]), []).append(line)
    return found


def table(lines: Lines) -> str:
    """Outcomes of every cell, with the remedy's share of rows and its steps."""
    rows = []
    for (matching, remedy), of in cells(lines).items():
        values = [
            report.mean_interval([line[key] for line in of], 2 if key.endswith("nll") else 1)
            for key in COLUMNS.values()
        ]
        told = f"{of[0]['share']:.2f}", of[0]["steps"]
        rows.append([matching, remedy, *told, len(of), *values])
    header = ["equal", "remedy", "share", "steps", "seeds", *COLUMNS]
    return report.table(header, rows)


def outcome(lines: Lines, key: str, remedy: str, matching: str = "compute"):
    """An outcome's interval over seeds; undefined where the cell was not run."""
    return bounds([line[key] for line in cells(lines).get((matching, remedy), ())])


def named(lines: Lines, key: str, *names: str) -> dict[str, Any]:
    """`outcome` of some remedies at equal compute, by name."""
    return {f"`{name}`": outcome(lines, key, name) for name in names}


def points_more(lines: Lines, key: str, more: tuple[str, str], fewer: tuple[str, str]):
    """How much more of an outcome one cell has than the other, (matching, remedy), seed by seed."""
    of = [
        {line["seed"]: line[key] for line in cells(lines).get(cell, ())} for cell in (more, fewer)
    ]
    # Shares of answers, whose float32 is off by 1e-6: a tie with a threshold is a tie.
    return bounds([round(of[0][seed] - of[1][seed], 3) for seed in of[0].keys() & of[1]])


def claim(text: str, stated: Mapping[str, Any], is_true, is_false) -> list[str]:
    """(claim, statistics, verdict): functions of the statistics say when it holds and fails."""
    values = list(stated.values())
    told = "; ".join(f"{name} {said(x, 1)}" for name, x in stated.items())
    return [text, told, verdict(values, is_true(*values), is_false(*values))]


def claims(lines: Lines) -> list[list[str]]:
    """(claim, statistic, verdict) by the thresholds of docs/cures.md, of what was run."""
    of = functools.partial(named, lines)
    at_equal = outcome(lines, "reverse", "reversed", "exposure")
    less = points_more(lines, "reverse", ("compute", "reversed"), ("exposure", "reversed"))
    identity = {key: outcome(lines, key, "identity") for key in ("reverse", "copying")}
    return [
        claim("1. showing the reverse gives it", of("reverse", "reversed"),
            lambda x: x.low > 80, lambda x: x.high < 50),
        claim("2. a part of it without a reversed row", of("reverse", "copies", "diffusion"),
            lambda *xs: all(x.low > 20 for x in xs), lambda *xs: any(x.high < 10 for x in xs)),
        claim("3. `identity` gives copying, not the reverse",
            identity,
            lambda x, copied: x.high < 10 and copied.low > 30, lambda x, copied: x.low > 20),
        claim("4. masking under a causal mask gives none", of("reverse", "uniform_masked"),
            lambda x: x.high < 5, lambda x: x.low > 10),
        claim("5. decay and dropout give none", of("reverse", "weight_decay", "dropout"),
            lambda *xs: all(x.high < 5 for x in xs), lambda *xs: any(x.low > 10 for x in xs)),
        claim("6. `reversed` is lower at equal exposure",
            {"at equal exposure": at_equal, "points less": less},
            lambda _, x: x.estimate > 10, lambda _, x: round(x.estimate, 6) < 3),
        claim("7. what reverses asserts what does not hold", of("incorrect", "diffusion", "none"),
            lambda x, none: x.low > none.high, lambda x, none: x.high < 5),
    ]  # fmt: skip


def figure(lines: Lines):
    """Forward, reverse and incorrect inference by remedy: a panel a matching."""
    found = cells(lines)
    matchings = list(dict.fromkeys(matching for matching, _ in found))
    drawn, axes = report.new_figure(1, len(matchings), (4.6, 4.2))
    shown = [[remedy for which, remedy in found if which == of] for of in matchings]
    room = [max(len(remedies), 8) for remedies in shown]  # as much for each remedy
    axes[0, 0].get_gridspec().set_width_ratios(room)
    for ax, matching, remedies, places in zip(axes[0], matchings, shown, room, strict=True):
        place = np.arange(len(remedies))
        for shift, key in ((-0.2, "forward"), (0.0, "reverse"), (0.2, "incorrect")):
            of = [bounds([line[key] for line in found[matching, remedy]]) for remedy in remedies]
            report.plot_bounds(ax, place + shift, of, NAMES[key])
        names = [x.replace("_", " ") for x in remedies]
        ax.set_xticks(place, names, rotation=60, ha="right", fontsize=report.SMALL)
        ax.set_xlim(-0.6, places - 0.4)
        ax.set(title=f"equal {matching}", ylim=(-5, 105))
    axes[0, 0].set(ylabel="share of answers (%)")
    handles = ax.get_legend_handles_labels()  # those of every panel
    drawn.legend(*handles, loc="outside upper center", ncols=3, fontsize=report.SMALL)
    return drawn
