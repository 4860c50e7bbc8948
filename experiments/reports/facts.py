"""Table 1 and the figures of `facts`, from its results and curves."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import intervals, report, runs
from dirasym.workdir import WorkDir

LABELS = {"mdm": "masked diffusion (MDM)", "arm": "autoregressive (ARM)"}
COLORS = {"forward": report.FORWARD, "reverse": report.REVERSE}
DIRECTIONS = tuple(COLORS)
CURVES = {  # figures, and what they draw
    "accuracy": ("percent", "accuracy (%)"),
    "probability": ("p", "P(true first token)"),
    "rank": ("rank", "its median rank"),
}
PAPER_SEEDS = (1, 42, 1234)
PAPER_COLUMNS = {"mdm": (0,), "arm": (2, 4)}  # where a model's forward column is; reverse is next
ANSWER_COLUMNS = {  # of the table, and the measures in result lines
    "exact %": "percent",
    "begun %": "begun_percent",
    "copied %": "copied_percent",
    "choice %": "choice_percent",
    "P(true first token)": "p",
    "its median rank": "rank",
}
Lines = Sequence[Mapping[str, Any]]
Paper = Mapping[str, Sequence[Sequence[float]]]


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run], paper: Paper) -> None:
    """Writes figures and report.md, and prints the table and the figures' paths."""
    results = workdir.results()
    lines = {run.name: report.select(results, **run.identity) for run in all_runs}
    panels = {
        f"{run.identity['data'].upper()}, {LABELS[run.identity['model']]}": workdir.stacked(
            run, config.seeds, seeds_first=("attention",)
        )
        for run in all_runs
    }
    figures = {
        name: functools.partial(over_training, panels, measure, label)
        for name, (measure, label) in CURVES.items()
    }
    for name, key, draw in (
        ("gradients", "gradient_cosine_total", report.gradients),
        ("paired", "paired_forward_p", functools.partial(report.paired, colors=COLORS)),
        ("by_question", "reverse_rank_E", report.by_question),
        ("attention", "attention_mean", report.attention),
    ):
        measured = {title: curve for title, curve in panels.items() if key in curve}
        if measured:
            figures[name] = functools.partial(draw, measured)
    table = report.table(
        ["trained", "model", "direction", "last %", "best %", "each seed, last", "paper %"],
        [row for run in all_runs for row in _table_rows(run, lines[run.name], paper)],
    )
    seeds = report.table(
        ["trained", "seed", "model", "last F", "last R", "best F / R", "paper F / R"],
        [row for run in all_runs for row in _seed_rows(run, lines[run.name], paper)],
    )
    answers = report.table(
        ["trained", "model", "direction", *ANSWER_COLUMNS],
        [row for run in all_runs for row in _answer_rows(run, lines[run.name])],
    )
    text = (
        f"# Facts in language models: Table 1 of arXiv 2602.02133\n\n{table}\n\n"
        "Exact match in percent: mean over seeds ± 95 % Student interval. Best: over "
        "evaluations, as the paper logged; each direction for itself. Paper: LLaDA 8B beside the "
        "MDM, LLaMA-3.1 8B / Qwen-2.5 7B beside the ARM: other weights than ours, unless "
        "--model_id names them.\n\n"
        "Tables 4 to 6, by seed (F forward, R reverse); at the end with a 95 % Wilson interval "
        f"over questions:\n\n{seeds}\n\n"
        "What questions are answered with, at the end, mean over seeds. Begun: outputs that begin "
        "with an answer. Copied: outputs that repeat words of the question. Choice: the true first "
        "token is more probable than those of all other answers in that direction, words of the "
        "question aside, of the questions whose true one begins one answer and no word of the "
        f"question.\n\n{answers}"
    )
    report.write(workdir.path, text, figures, printed=table)


def _table_rows(run: runs.Run, lines: Lines, paper: Paper) -> Iterator[list[Any]]:
    data, model = run.identity.values()
    for side, direction in enumerate(DIRECTIONS):
        last, best = (
            [line[f"{kind}{direction}_percent"] for line in lines] for kind in ("", "best_")
        )
        published = np.mean(paper[data], axis=0) if data in paper else ()
        yield [
            data.upper(),
            model.upper(),
            direction,
            report.mean_interval(last, 1),
            report.mean_interval(best, 1),
            ", ".join(f"{value:.1f}" for value in last),
            " / ".join(
                f"{published[n + side]:.1f}" for n in PAPER_COLUMNS[model] if len(published)
            ),
        ]


def _seed_rows(run: runs.Run, lines: Lines, paper: Paper) -> Iterator[list[Any]]:
    data, model = run.identity.values()
    published = dict(zip(PAPER_SEEDS, paper.get(data, ()), strict=False))
    for line in lines:
        theirs = published.get(line["seed"])
        yield [
            data.upper(),
            line["seed"],
            model.upper(),
            *(_over_questions(line, direction) for direction in DIRECTIONS),
            " / ".join(f"{line[f'best_{direction}_percent']:.1f}" for direction in DIRECTIONS),
            "; ".join(f"{theirs[n]} / {theirs[n + 1]}" for n in PAPER_COLUMNS[model] if theirs),
        ]


def _over_questions(line: Mapping[str, Any], direction: str) -> str:
    """Exact match in percent, and what its questions, as draws of others, leave open."""
    count = line[f"{direction}_questions"]
    right = round(line[f"{direction}_percent"] * count / 100)
    share, low, high = (100 * x for x in intervals.wilson_interval(right, count))
    return f"{share:.1f} ({low:.1f} to {high:.1f})"


def _answer_rows(run: runs.Run, lines: Lines) -> Iterator[list[Any]]:
    for direction in DIRECTIONS:
        numbers = []
        for measure in ANSWER_COLUMNS.values():
            values = [line[f"{direction}_{measure}"] for line in lines]
            digits = 3 if measure == "p" else 1
            numbers.append("" if None in values else f"{np.mean(values):.{digits}f}")
        yield [*map(str.upper, run.identity.values()), direction, *numbers]


def over_training(panels: Mapping[str, runs.History], measure: str, ylabel: str):
    """A measure of both directions against the step."""
    lines = {f"{direction}_{measure}": (direction, COLORS[direction]) for direction in DIRECTIONS}
    return report.over_training(panels, lines, ylabel, log=measure == "rank")
