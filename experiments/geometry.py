"""Is a pair one entry or two, by distances and linear probes of hidden states?

Question  arXiv 2604.04943 takes distances of representations and linear probes to show that the
          two directions of a fact are distinct entries. Here both are taken of the toy networks
          of `causes`, for questions that share the target, the order or nothing but the pair.
Command   python -m experiments.geometry --preset=quick|paper
          --cells as of `causes`.
Cost      quick: 4 cells, 2 seeds: 2 minutes on one CPU core. paper: 4 cells, 5
          seeds, 3000 steps: not timed.
Expected  See docs/causes.md, where predictions stood before results.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import models, report, results, runs, training
from dirasym.analysis import states
from dirasym.data.case_pairs import NUM_LETTERS
from dirasym.workdir import WorkDir
from experiments import causes as page
from experiments import flags
from experiments.reports import verdicts
from experiments.reports.causes import by_cell, interval
from experiments.reports.verdicts import said, verdict
from experiments.systems import causes

PRESETS = {
    "smoke": page.PRESETS["smoke"],
    "quick": page.PRESETS["quick"],
    "paper": dict(cells=["leading"]),
}
KINDS = "nearest", "probe"
COLUMNS = {
    f"{kind}, *{pair}*": f"{kind}_{pair}" for kind in KINDS for pair in causes.PAIRS
} | {"probe, held out": "probe_held_out"}  # fmt: skip


def plan(config: page.Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a cell, whose states are looked at when it is trained."""
    del workdir
    return [
        task.run(
            page.identity(task.cell), summarize=summarize, finish=functools.partial(looked_at, task)
        )
        for task in (causes.Task(cell, config) for cell in config.parsed)
    ]


def hidden(task: causes.Task, params) -> dict[str, jax.Array]:
    """What the head reads at the asked place of each question: [E, D] by question."""
    model, found = models.Transformer(task.network), {}
    for name, asked in task.questions.items():
        read_ELD = states.captured(model, params, task.read(asked.tokens_EL), "final_norm")
        found[name] = read_ELD[np.arange(len(asked.position_E)), asked.position_E]
    return found


def shared(hidden_ED: Mapping[str, jax.Array], letter_E: np.ndarray) -> dict[str, jax.Array]:
    """`nearest_PAIR` and `probe_PAIR`, in percent, and `probe_held_out`.

    Nearest: a letter's mean over placements in the first question of a pair has its own nearest
    to it in the second. Probe: fitted on rows of the first question, it names the letter of rows
    of the second; held out: fitted on every other row of the forward question, of the rest.
    """
    mean_XE = np.arange(NUM_LETTERS)[:, None] == letter_E
    mean_XE = mean_XE / mean_XE.sum(axis=1, keepdims=True)

    def percent_named(fit, fit_letter, asked, asked_letter):
        named = states.probe(fit, fit_letter, asked, NUM_LETTERS)
        return 100 * jnp.mean(named == asked_letter)

    values = {}
    for pair, questions in causes.PAIRS.items():
        first_ED, second_ED = (hidden_ED[name] for name in questions)
        near_X = states.nearest(mean_XE @ first_ED, mean_XE @ second_ED)
        values[f"nearest_{pair}"] = 100 * jnp.mean(near_X)
        values[f"probe_{pair}"] = percent_named(first_ED, letter_E, second_ED, letter_E)
    even, odd, rows = slice(0, None, 2), slice(1, None, 2), hidden_ED["forward"]
    found = percent_named(rows[even], letter_E[even], rows[odd], letter_E[odd])
    return values | {"probe_held_out": found}


def looked_at(
    task: causes.Task, state: training.TrainState, folder: pathlib.Path
) -> dict[str, jax.Array]:
    """`shared` of the moving average, which answers."""
    del folder
    letter_E = task.questions["forward"].letter_E
    values = shared(hidden(task, state.ema_params), letter_E)
    return {name: x[None] for name, x in values.items()}


def summarize(history: runs.History) -> Mapping[str, Any]:
    """The result line: how it answers, and what its states share."""
    keys = ("percent_forward", "percent_reverse", "choice_reverse", *COLUMNS.values())
    return {key: float(history[key][-1]) for key in keys}


def untrained(config: page.Config) -> list[dict[str, Any]]:
    """The same of the networks before their first step, a line a cell and seed."""
    lines = []
    for cell in config.parsed:
        task = causes.Task(cell, config)
        for seed in config.seeds:
            state = task.init(seed)
            values = looked_at(task, state, pathlib.Path())
            found = {name: float(x[0]) for name, x in values.items()}
            known = page.identity(cell) | {"seed": seed}
            lines.append(known | models.sizes(task.network, state.params) | found)
    return lines


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row a cell: mean over seeds ± interval, in percent; how it answers, if it was trained."""
    columns = {f"{name} %": key for name, key in COLUMNS.items()}
    if "percent_forward" in lines[0]:
        columns = {"forward %": "percent_forward", "reverse %": "percent_reverse"} | columns
    rows = [
        [
            *cell[:3],
            len(of),
            *(report.mean_interval([x[k] for x in of], 1) for k in columns.values()),
        ]
        for cell, of in by_cell(lines).items()
    ]
    return report.table([*list(causes.FACTORS)[:3], "seeds", *columns], rows)


def claims(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """(claim, statistic, verdict) by the thresholds of docs/causes.md, of masked diffusion."""
    both = report.select(
        lines, attention="bidirectional", objective="masked_diffusion", predicted="both"
    )
    rows = []
    for number, kind in enumerate(KINDS, 5):
        answer, order = (interval(both, f"{kind}_{pair}") for pair in ("answer", "order"))
        word = verdict([answer, order], answer.high < 15 and order.low > 50, answer.low > 50)
        text = f"*answer*: {said(answer, 1)} %; *order*: {said(order, 1)} %"
        rows.append([f"{number}. distinct entries by {kind}", text, word])
    return rows


def write(workdir: WorkDir, config: page.Config, all_runs: Sequence[runs.Run]) -> None:
    """Writes report.md, and prints its tables."""
    del all_runs
    lines, before = workdir.results(), untrained(config)
    results.replace_results(workdir.path / "untrained.jsonl", before, (*causes.FACTORS, "seed"))
    parts = [table(lines), verdicts.table(claims(lines)), "Before training:", table(before)]
    text = "\n\n".join(parts)
    head = f"# One entry or two\n\n{config.data}, {config.steps} steps; words: docs/causes.md."
    report.write(workdir.path, f"{head}\n\n{text}", {}, printed=text)


if __name__ == "__main__":
    flags.main("geometry", page.Config, PRESETS, write, plan)
