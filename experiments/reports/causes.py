"""Tables and figures of `causes`, from its result lines."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import effects, report, runs
from dirasym.intervals import Bounds
from dirasym.workdir import WorkDir
from experiments.reports import verdicts
from experiments.reports.verdicts import bounds, said, verdict
from experiments.systems import causes

Line = Mapping[str, Any]
INTERACTIONS = (("attention", "objective"), ("attention", "predicted"))
BASE = tuple(levels[0] for levels in causes.FACTORS.values())
CELL_COLUMNS = {
    "forward %": "percent_forward",
    "reverse %": "percent_reverse",
    "reverse: P(true) %": "p_reverse",
    "choice %": "choice_reverse",
    "source: choice %": "choice_source",
    "steps to fit": "steps_to_fit",
    "reverse % at forward 90 %": "reverse_at_equal_forward",
}
MEASURES = {
    f"cosine *{pair}*, {part}": f"early_cosine_{pair}_{part}"
    for pair in causes.PAIRS
    for part in causes.PARTS
} | {"attention correlation": "early_attention_correlation"}
Cells = dict[tuple[Any, ...], list[Line]]


def by_cell(lines: Sequence[Line]) -> Cells:
    """Result lines of each cell that has the seeds that all have."""
    cells: Cells = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        cells.setdefault(tuple(line[factor] for factor in causes.FACTORS), []).append(line)
    return cells


def interval(lines: Sequence[Line], key: str) -> Bounds:
    """Mean over seeds with Student's interval, of those that have the value."""
    return bounds([line[key] for line in lines if line[key] is not None])


def mean(lines: Sequence[Line], key: str) -> float:
    """Mean over the seeds that have the value; NaN where none has."""
    return interval(lines, key).estimate


def cell_table(lines: Sequence[Line]) -> str:
    """A row a cell: mean over seeds ± interval; of what some seeds never reach, how many did."""
    rows = []
    for cell, of_cell in by_cell(lines).items():
        row: list[Any] = [*cell, len(of_cell)]
        for key in CELL_COLUMNS.values():
            there = [line[key] for line in of_cell if line[key] is not None]
            text = report.mean_interval(there, 0 if key == "steps_to_fit" else 1) if there else "–"
            never = f" ({len(there)} of {len(of_cell)})" if 0 < len(there) < len(of_cell) else ""
            row.append(text + never)
        rows.append(row)
    return report.table([*causes.FACTORS, "seeds", *CELL_COLUMNS], rows)


def found_effects(
    lines: Sequence[Line], key: str = "percent_reverse"
) -> tuple[dict[str, Bounds], tuple[tuple[str, ...], ...]]:
    """(effects on a reverse accuracy in points, aliases) over the seeds that all cells have.

    Cells in which a seed has no such number are left out.
    """
    cells = {c: of for c, of in by_cell(lines).items() if None not in [x[key] for x in of]}
    seeds = set.intersection(*({line["seed"] for line in of} for of in cells.values()))
    named = [dict(zip(causes.FACTORS, cell, strict=True)) for cell in cells]
    design = effects.design(named, causes.FACTORS, INTERACTIONS)
    outcome_CS = [[line[key] for line in of if line["seed"] in seeds] for of in cells.values()]
    return effects.effects(design, outcome_CS), design.aliases


def effect_table(lines: Sequence[Line], key: str = "percent_reverse") -> str:
    """Effects by size, and what cannot be told apart."""
    found, aliases = found_effects(lines, key)
    order = sorted(found, key=lambda name: -abs(found[name].estimate))
    rows = [[name, said(found[name], 1)] for name in order]
    text = report.table(["effect on reverse accuracy, points", "estimate (95 % interval)"], rows)
    if aliases:
        groups = "; ".join(", ".join(group) for group in aliases)
        text += "\n\n" + textwrap.fill(
            f"Cannot be told apart in these cells, and left out: {groups}.", 100
        )
    return text


def mechanism(lines: Sequence[Line]) -> list[tuple[str, Bounds, Bounds]]:
    """(measure at 20 %, Spearman with the final reverse accuracy, area under ROC), over cells."""
    cells = by_cell(lines)
    keys = (*MEASURES.values(), "percent_reverse", "percent_forward")
    means = {cell: {key: mean(of, key) for key in keys} for cell, of in cells.items()}
    told = [cell for cell in cells if cell[2] != "A"]  # A alone has no forward accuracy
    happens = [means[c]["percent_reverse"] > means[c]["percent_forward"] / 2 for c in told]
    rows = []
    for name, key in MEASURES.items():
        # Rounded: without positions the attention correlation is 1 but for the sum of five numbers.
        of = {cell: float(np.nan_to_num(means[cell][key]).round(9)) for cell in cells}
        score = np.array([*of.values()])
        outcome = [means[cell]["percent_reverse"] for cell in cells]
        area = effects.roc_area(np.array([of[c] for c in told]), happens)
        rows.append((name, effects.rank_correlation(score, outcome), area))
    return rows


def mechanism_table(lines: Sequence[Line]) -> str:
    """`mechanism` as a table."""
    rows = [[name, said(rank), said(area)] for name, rank, area in mechanism(lines)]
    return report.table(["at 20 % of training", "rank correlation", "area under ROC"], rows)


def claims(lines: Sequence[Line], transplants: Sequence[Line] = ()) -> list[list[str]]:
    """(claim, statistic, verdict) by the thresholds of docs/causes.md, of what was run."""
    base = {"attention": "bidirectional", "positions": "rope", "layers": 1}
    diffusion = base | {"objective": "masked_diffusion"}
    both, alone = (report.select(lines, **diffusion, predicted=p) for p in ("both", "A"))
    alone_of = {line["seed"]: line["percent_reverse"] for line in alone}
    paired = [line for line in both if line["seed"] in alone_of and line["percent_reverse"] > 0]
    rows: list[list[str]] = []
    if both and alone and paired:
        ratio = bounds([alone_of[line["seed"]] / line["percent_reverse"] for line in paired])
        cosine = interval(both, "early_cosine_order_storage")
        word = verdict(
            [ratio, cosine],
            ratio.low > 0.5 and cosine.low > 0.3,
            ratio.high < 0.5 or cosine.high < 0.3,
        )
        text = f"reverse, A only over both: {said(ratio)}; storage cosine *order*: {said(cosine)}"
        rows.append(["1. order is shared", text, word])
    if of_B := report.select(lines, **base, predicted="B"):
        found = {
            objective: (interval(of, "percent_reverse"), interval(of, "choice_reverse"))
            for objective in causes.FACTORS["objective"]
            if (of := report.select(of_B, objective=objective))
        }
        word = verdict(
            [choice for _, choice in found.values()],
            all(a.high < 5 and c.high < 10 for a, c in found.values()),
            any(c.low > 20 for _, c in found.values()),
        )
        text = "; ".join(
            f"{name}: reverse {said(a, 1)}, choice {said(c, 1)}" for name, (a, c) in found.items()
        )
        rows.append(["2. the source must be a target", text, word])
    if both:
        order, target = (interval(both, f"early_cosine_{x}_storage") for x in ("order", "target"))
        word = verdict([target, order], target.high < order.low / 3, target.low > order.high / 2)
        text = f"storage cosine *target*: {said(target)}; *order*: {said(order)}"
        rows.append(["3. distinct entries by target", text, word])
    if transplants:
        choice = interval(transplants, "choice_reverse")
        word = verdict([choice], choice.low > 50, choice.high < 10)
        text = f"reverse choice of B only with the storage of A only: {said(choice, 1)}"
        rows.append(["4. a transplant", text, word])
    return rows


def claim_table(lines: Sequence[Line], transplants: Sequence[Line] = ()) -> str:
    """`claims` as a table."""
    return verdicts.table(claims(lines, transplants))


def effect_figure(lines: Sequence[Line]):
    """The ranked chart of what moves the reverse."""
    found, _ = found_effects(lines)
    order = sorted((n for n in found if n != "constant"), key=lambda n: abs(found[n].estimate))
    figure, axes = report.new_figure(1, 1, (6.4, 0.8 + 0.24 * len(order)))
    report.plot_bounds(axes[0, 0], range(len(order)), [found[n] for n in order], None, across=True)
    axes[0, 0].axvline(0, color="gray", lw=0.8)
    named = [name.replace(":", " × ").replace("=", ": ").replace("_", " ") for name in order]
    axes[0, 0].set_yticks(range(len(order)), named, fontsize="small")
    axes[0, 0].margins(y=0.1)
    axes[0, 0].set(xlabel="effect on reverse accuracy (points)")
    return figure


def mechanism_figure(lines: Sequence[Line]):
    """Final reverse accuracy against three early measures: a dot a cell, by what is predicted."""
    shown = ("cosine *order*, storage", "cosine *answer*, storage", "attention correlation")
    figure, axes = report.new_figure(1, len(shown))
    for ax, name in zip(axes[0], shown, strict=True):
        for number, predicted in enumerate(causes.FACTORS["predicted"]):
            of = {c: x for c, x in by_cell(lines).items() if c[2] == predicted}
            x = [mean(cell, MEASURES[name]) for cell in of.values()]
            y = [np.mean([line["percent_reverse"] for line in cell]) for cell in of.values()]
            style = dict(
                color=report.color(number), marker="os^"[number], ms=4, mfc="none", ls="none"
            )
            ax.plot(x, y, label=f"predicted: {predicted}", **style)
        ax.set_xlabel(f"{name.replace('*', '')}\nat 20 % of training")
    axes[0, 0].set(ylabel="reverse accuracy (%)")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, fontsize=report.SMALL)
    return figure


def further_figure(lines_by_data: Mapping[str, Sequence[Line]]):
    """Reverse accuracy of masked diffusion of both by positions, a panel a depth, a mark a data."""
    figure, axes = report.new_figure(1, len(causes.DEPTHS))
    cells = {name: by_cell(lines) for name, lines in lines_by_data.items()}
    for ax, depth in zip(axes[0], causes.DEPTHS, strict=True):
        for number, (name, of_data) in enumerate(cells.items()):
            found = {
                place: interval(of, "percent_reverse")
                for place, positions in enumerate(causes.POSITIONS)
                if (of := of_data.get((*BASE[:3], positions, depth)))
            }
            place = [x + 0.2 * (number - (len(cells) - 1) / 2) for x in found]
            style = dict(color=report.color(number), fmt="os^"[number], mfc="none")
            report.plot_bounds(ax, place, [*found.values()], name, **style)
        ax.set_xticks(range(len(causes.POSITIONS)), causes.POSITIONS, rotation=45, ha="right")
        ax.set(title=f"{depth} layer{'s' * (depth > 1)}", ylim=(-4, 104))
        ax.set_xlim(-0.5, len(causes.POSITIONS) - 0.5)
    axes[0, 0].set(ylabel="reverse accuracy (%)")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, fontsize=report.SMALL)
    return figure


def training_figure(curves: Mapping[str, Mapping[str, np.ndarray]]):
    """Accuracy and the order cosine of storage along training, cell by cell."""
    figure, axes = report.new_figure(1, 3)
    keys = {"percent_forward": "forward (%)", "percent_reverse": "reverse (%)"}
    for name, c in curves.items():
        for ax, (key, label) in zip(axes[0], keys.items(), strict=False):
            report.plot_seeds(ax, c["eval_step"], c[key], name)
            ax.set(xlabel="step", ylabel=label, ylim=(-2, 102))
        report.plot_seeds(axes[0, 2], c["eval_step"], c["cosine_order"][..., 0], name)
        axes[0, 2].set(xlabel="step", ylabel="storage cosine, order")
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=2, fontsize=report.SMALL)
    return figure


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run]) -> None:
    """Writes figures and report.md, and prints the tables and the figures' paths."""
    lines = workdir.results()
    few = all_runs[:6]
    curves = {
        "/".join(map(str, run.identity.values())): workdir.stacked(run, config.seeds) for run in few
    }
    parts = [cell_table(lines), effect_table(lines)]
    if len(all_runs) >= 3:
        parts.append(mechanism_table(lines))
    parts.append(claim_table(lines))
    table = "\n\n".join(parts)
    figures = {
        "training": functools.partial(training_figure, curves),
        "effects": functools.partial(effect_figure, lines),
        "mechanism": functools.partial(mechanism_figure, lines),
    }
    text = (
        f"# Which ingredient makes a model reverse\n\n{config.data}, {config.steps} steps of "
        f"{config.batch_size}; design, words and thresholds: docs/causes.md.\n\n{table}"
    )
    report.write(workdir.path, text, figures, printed=table)
