"""The figures of docs/ that join several runs, drawn from the result lines under docs/results.

Question  none: a run draws its own figures, and these show more runs than one.
Command   python -m experiments.tools.redraw
Cost      seconds.
Expected  docs/figures/toy_accuracy.png, toy_study.png and facts_names.png as they are on file.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from dirasym import report, results
from dirasym.usage import UsageError
from experiments import toy_reversal, toy_study
from experiments.flags import flag
from experiments.reports import toy as toy_report
from experiments.reports import toy_study as toy_study_report
from experiments.systems import toy
from experiments.tools import command

DOCS = pathlib.Path(__file__).parents[2] / "docs"
REVERSE_QUESTIONS = {  # bars, and where their result lines are
    "1 word\n60 both ways": ("facts_names", "w1b60"),
    "2 words\n60": ("facts_names", "w2b60"),
    "2 words\n150": ("facts_names", "w2b150"),
    "2 words\n300": ("facts_names", "w2b300_mdm"),
    "2 words, 60\nnames whole": ("facts_names", "w2b60_names_at_once"),
    "2 words, 300\nnames whole": ("facts_names", "w2b300_names_at_once"),
    "2 words, 300\ncausal": ("facts_names", "w2b300_arm"),
    "SmolLM2\nmasked, LoRA": ("facts_smollm2_h100", "lora_mdm"),
    "SmolLM2\ncausal, LoRA": ("facts_smollm2_h100", "lora_arm"),
    "SmolLM2\nmasked, all": ("facts_smollm2_h100", "full_mdm"),
    "SmolLM2\ncausal, all": ("facts_smollm2_h100", "full_arm"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    folder: str = flag(str(DOCS / "figures"), "Where the figures go.", kind="path")


def draw(config: Config) -> None:
    """Draws them and prints their paths."""
    folder = pathlib.Path(config.folder)
    if not folder.is_dir():
        raise UsageError(f"--folder={folder} is no directory")
    table_2 = toy.Config(lengths=tuple(toy_reversal.PAPER_TABLE_2), report_step=1000)
    lines = _lines("toy_reversal", "results", "results_L40", "results_arm")
    bars = toy_report.accuracy_bars(lines, table_2, toy_reversal.PAPER_TABLE_2)
    study = toy_study.Config()
    parts = ("results", "results_seed_2", "results_unit", "results_zero_heads")
    longest = {  # the unit embedding was first trained for 1000 steps
        (line["init"], line["seed"]): line
        for line in sorted(_lines("toy_study", *parts), key=lambda line: len(line["loss"]))
    }
    by_seed = sorted(longest.values(), key=lambda line: line["seed"])
    curves = toy_study_report.figure(by_seed, study.inits, study.orders)
    names = reverse_bars({label: _lines(*place) for label, place in REVERSE_QUESTIONS.items()})
    figures = {"toy_accuracy": bars, "toy_study": curves, "facts_names": names}
    for name, figure in figures.items():
        print(report.save_figure(figure, folder, name))


def reverse_bars(lines_by_name: Mapping[str, list[dict]]):
    """What reverse questions are answered with, run by run: a bar a mean, a dot a seed."""
    figure, axes = report.new_figure(1, 1, size=(1.1 * len(lines_by_name) + 1, 3.4))
    ax, width = axes[0, 0], 0.27
    kinds = {
        "exact": "percent",
        "repeats the question": "copied_percent",
        "choice": "choice_percent",
    }
    for offset, (label, measure) in enumerate(kinds.items(), -1):
        for place, lines in enumerate(lines_by_name.values()):
            values = [line[f"reverse_{measure}"] for line in lines]
            color, at = f"C{offset + 1}", place + offset * width
            label_once = label if place == 0 else None
            ax.bar(at, np.mean(values), width, color=color, alpha=0.6, label=label_once)
            ax.plot([at] * len(values), values, "k.", ms=3)
    ax.margins(x=0.01)
    ax.set_xticks(range(len(lines_by_name)), list(lines_by_name), fontsize=7)
    ax.set(ylabel="reverse questions (%)")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _lines(folder: str, *files: str) -> list[dict]:
    lines = []
    for file in files:
        path = DOCS / "results" / folder / f"{file}.jsonl"
        if not path.exists():
            raise FileNotFoundError(path)
        lines += results.read_results(path)
    return lines


if __name__ == "__main__":
    command.main(Config, draw)
