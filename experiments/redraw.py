"""The figures of docs/ that join several runs, drawn from the result lines under docs/results.

Question  none: a run draws its own figures, and these show more runs than one.
Command   python -m experiments.redraw
Cost      seconds.
Expected  docs/figures/toy_accuracy.png and toy_study.png as they are on file.
"""

import pathlib

from dirasym import checkpoints, report
from experiments import toy_report, toy_reversal, toy_study, toy_task

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def main(folder: pathlib.Path = DOCS / "figures") -> None:
    """Draws both and prints their paths."""
    table_2 = toy_task.Config(lengths=tuple(toy_reversal.PAPER_TABLE_2), report_step=1000)
    lines = _lines("toy_reversal", "results", "results_L40", "results_arm")
    bars = toy_report.accuracy_bars(lines, table_2, toy_reversal.PAPER_TABLE_2)
    study = toy_study.Config()
    parts = ("results", "results_seed_2", "results_unit", "results_zero_heads")
    longest = {  # the unit embedding was first trained for 1000 steps
        (line["init"], line["seed"]): line
        for line in sorted(_lines("toy_study", *parts), key=lambda line: len(line["loss"]))
    }
    by_seed = sorted(longest.values(), key=lambda line: line["seed"])
    curves, _ = toy_study.draw(by_seed, study.inits, study.orders)
    for figure, name in ((bars, "toy_accuracy"), (curves, "toy_study")):
        print(report.save_figure(figure, folder, name))


def _lines(folder: str, *files: str) -> list[dict]:
    paths = (DOCS / "results" / folder / f"{file}.jsonl" for file in files)
    return [line for path in paths for line in checkpoints.read_results(path)]


if __name__ == "__main__":
    main()
