"""When half of a map is learned, against its bits and its target's entropy, from result lines."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import intervals, report
from dirasym.analysis import excess
from dirasym.workdir import WorkDir
from experiments.reports.world_a import CURVE, MARKERS, NAMES

Line = Mapping[str, Any]
MODELS = {"gpt2": "GPT-2", "mlp": "MLP"}
KINDS = "model", "letters", "length", "pairs", "K", "direction"  # what maps of a kind share


def guess(line: Line) -> float:
    """Excess of a uniform guess over the strings of the alphabet: n ln(letters) − floor, nats."""
    return line["length"] * math.log(line["letters"]) - line["floor_nats_per_string"]


def half(line: Line) -> float:
    """Epochs until half of what a uniform guess misses is learned; NaN if it is not.

    The model's own start is no measure: it must first learn which letters there are.
    """
    return excess.half_learned(line["eval_epochs"], line[CURVE], guess(line))


def kinds(lines: Sequence[Line]) -> dict[tuple, list[Line]]:
    """Lines by `KINDS`, those of the most bits first."""
    found: dict[tuple, list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line["model"], -line["bits_to_store_per_pair"])):
        found.setdefault(tuple(line[key] for key in KINDS), []).append(line)
    return found


def over_maps(lines: Sequence[Line], measure=half) -> intervals.Interval:
    """Mean over maps, of each the mean over its seeds, with Student's interval over maps."""
    values: dict[int, list[float]] = {}
    for line in lines:
        values.setdefault(line["map"], []).append(measure(line))
    return intervals.student_interval([float(np.mean(x)) for x in values.values()])


def left(line: Line) -> float:
    """Excess at the end as a share of a uniform guess's, in percent."""
    return 100 * line[CURVE][-1] / guess(line)


def entropy(line: Line) -> float:
    """Of the target given its source, nats a string."""
    return 0.0 if line["direction"] == "A->B" else math.log(line["K"])


def targets(line: Line) -> int:
    """Distinct ones of a map: its images forward, a string a pair inverse."""
    return line["pairs"] // line["K"] if line["direction"] == "A->B" else line["pairs"]


def steps_an_epoch(line: Line) -> int:
    """Updates; the last may see fewer pairs."""
    return -(-line["pairs"] // line["batch_size"])


def half_steps(line: Line) -> float:
    """Updates until half is learned, as `half` has it in epochs."""
    return half(line) * steps_an_epoch(line)


def at_least(line: Line) -> float:
    """`half`, or all epochs of a run that had too few of them."""
    found = half(line)
    return line["eval_epochs"][-1] if math.isnan(found) else found


def exponent(lines: Sequence[Line], measure=half) -> float:
    """The e of half ∝ pairs^e, from the fewest pairs to the most, of means over maps."""
    few, many = (pick(line["pairs"] for line in lines) for pick in (min, max))
    ends = (over_maps(report.select(lines, pairs=pairs), measure).mean for pairs in (many, few))
    return math.log(np.divide(*ends)) / math.log(many / few)


def _task(K: int, direction: str) -> str:
    return f"K = {K} {NAMES[direction]}" if K > 1 else "K = 1"


def table(lines: Sequence[Line]) -> str:
    """A row a kind of map."""
    rows = []
    for (model, letters, length, pairs, K, direction), of in kinds(lines).items():
        what = _task(K, direction)
        one, maps = of[0], len({line["map"] for line in of})
        known = [f"{one['bits_to_store_per_pair']:.1f}", f"{entropy(one):.2f}"]
        found = over_maps(of)
        half_at = report.with_interval(*found, 1) if np.isfinite(found.mean) else "–"
        rest = report.with_interval(*over_maps(of, left), 1)
        runs = f"{maps} × {len(of) // maps}"
        rows.append([model, f"{letters} × {length}", pairs, what, *known, half_at, rest, runs])
    header = "model,letters × length,pairs,task,bits per pair,entropy,half learned,left %,runs"
    return report.table(header.split(","), rows)


def _cell(of: Sequence[Line], digits: int, times: float = 1) -> str:
    """When half is learned, or, where some runs had too few epochs, what the mean is over."""
    mean, half_width = over_maps(of)
    if np.isfinite(mean):
        return report.with_interval(times * mean, times * half_width, digits)
    return f"over {times * over_maps(of, at_least).mean:.{digits}f}"


def pairs_table(lines: Sequence[Line]) -> str:
    """A row a task, number of pairs and number of epochs, of one model and kind of strings."""
    groups: dict[tuple, list[Line]] = {}
    keys = "K", "direction", "pairs", "epochs"
    for line in sorted(lines, key=lambda line: tuple(line[key] for key in keys)):
        groups.setdefault(tuple(line[key] for key in keys), []).append(line)
    rows = []
    for (K, direction, pairs, epochs), of in groups.items():
        maps = len({line["map"] for line in of})
        halves = [_cell(of, 1), _cell(of, 0, steps_an_epoch(of[0]))]
        known = [targets(of[0]), f"{of[0]['bits_to_store_per_pair']:.1f}"]
        rest = report.with_interval(*over_maps(of, left), 1)
        times = [steps_an_epoch(of[0]), epochs, *halves, rest]
        rows.append([_task(K, direction), pairs, *known, *times, f"{maps} × {len(of) // maps}"])
    header = (
        "task,pairs,targets,bits per pair,steps an epoch,epochs in all,half learned,in steps,"
        "left %,runs"
    )
    return report.table(header.split(","), rows)


def figure(lines: Sequence[Line]):
    """A panel a model: epochs until half is learned against bits, a marker a kind of strings."""
    models = sorted({line["model"] for line in lines})
    drawn, axes = report.new_figure(1, len(models), (4.6, 3.4))
    named: dict[str, Any] = {}
    strings = sorted({key[1:4] for key in kinds(lines)}, reverse=True)
    first, *others = axes.flat
    for ax in others:
        ax.sharey(first)
    for ax, model in zip(axes[0], models, strict=True):
        mine = kinds(report.select(lines, model=model))
        for marker, (letters, length, pairs) in zip(MARKERS, strings, strict=False):
            for filled in (True, False):
                points = [
                    (of[0]["bits_to_store_per_pair"], over_maps(of))
                    for key, of in mine.items()
                    if key[1:4] == (letters, length, pairs) and (entropy(of[0]) == 0) == filled
                ]
                if points:
                    x, y = zip(*points, strict=True)
                    name = "one answer" if filled else "one of K"
                    label = f"{letters} × {length}, {pairs} pairs, {name}"
                    named[label] = ax.errorbar(
                        x, [i.mean for i in y], np.nan_to_num([i.half_width for i in y]),
                        fmt=marker, ms=5, capsize=3, color=report.color(not filled), label=label,
                    )  # fmt: skip
        ax.set(title=MODELS.get(model, model), xlabel="bits to store, per pair", xlim=(0, None))
        ax.set_ylabel("epochs until half is learned")
    axes[0, 0].set_ylim(0, None)
    style = dict(ncols=3, fontsize=report.SMALL, columnspacing=1, handletextpad=0.4)
    labels = sorted(named)
    drawn.legend([named[label] for label in labels], labels, loc="outside upper center", **style)
    return drawn


def pairs_figure(lines: Sequence[Line]):
    """When half is learned against the number of pairs, in epochs and in steps: a line a task.

    Hollow where some runs had too few epochs: all of these count for them, without a bar.
    """
    drawn, axes = report.new_figure(1, 2, (3.6, 3.0))
    tasks = sorted({(line["K"], line["direction"]) for line in lines})
    numbers = sorted({line["pairs"] for line in lines})
    for ax, unit in zip(axes[0], ("epochs", "steps"), strict=True):
        for place, (K, direction) in enumerate(tasks):
            mine = report.select(lines, K=K, direction=direction)
            pairs = [n for n in numbers if report.select(mine, pairs=n)]
            kinds_of = [report.select(mine, pairs=n) for n in pairs]
            times = np.array([steps_an_epoch(of[0]) if unit == "steps" else 1 for of in kinds_of])
            mean, error = times * np.transpose([over_maps(of) for of in kinds_of])
            bound = times * [over_maps(of, at_least).mean for of in kinds_of]
            style = dict(marker=MARKERS[place], ms=5, color=report.color(place))
            ax.errorbar(
                pairs, bound, np.nan_to_num(error), capsize=3, label=_task(K, direction), **style
            )
            ax.plot(
                pairs, np.where(np.isnan(mean), bound, np.nan), mfc="w", ls="", zorder=5, **style
            )
        ax.set(xscale="log", xlabel="pairs", ylabel=f"{unit} until half is learned", ylim=(0, None))
        ax.set_xticks(numbers, numbers)
        ax.set_xticks([], minor=True)
    report.legend(axes[0, 1])
    return drawn


def write(workdir: WorkDir, config) -> None:
    """Writes report.md and the figure, and prints the table."""
    lines = workdir.results()
    printed = table(lines)
    text = (
        "# World A: bits and entropy, each varied alone\n\n"
        f"{printed}\n\n{config.epochs} epochs. *half learned*: the epoch at which the clean excess "
        "falls to half of that of a uniform guess over the strings. *left*: what of it is there "
        "at the end. *entropy*: of the target given its source, nats a string. *runs*: maps × "
        "seeds; intervals (95 %, Student) are over maps, of means over seeds."
    )
    report.write(workdir.path, text, {"bits": functools.partial(figure, lines)}, printed=printed)
