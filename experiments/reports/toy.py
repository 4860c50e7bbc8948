"""Table 2 and the figures of `toy_reversal`, from its results and curves."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from dirasym import intervals, report, runs
from dirasym.workdir import WorkDir

LABELS = {"mdm": "masked diffusion (MDM)", "arm": "autoregressive (ARM)"}
COLORS = {"forward": report.FORWARD, "reverse": report.REVERSE}
DIRECTIONS = tuple(COLORS)


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run], paper: dict) -> None:
    """Writes figures and report.md, and prints the table and the figures' paths."""
    results = workdir.results()
    curves = {tuple(r.identity.values()): workdir.stacked(r, config.seeds) for r in all_runs}
    figures = {
        "accuracy": functools.partial(accuracy_bars, results, config, paper),
        "probability": functools.partial(training_figure, curves, config, "p"),
        "accuracy_over_training": functools.partial(training_figure, curves, config, "percent"),
        "reverse_panel": functools.partial(panel_figure, curves, config),
    }
    header = ["L", "model", "direction", "paper %", f"ours %, step {config.shown_step}"]
    header += ["each seed", "raw weights", f"ours %, step {config.steps}"]
    rows = list(_table_rows(results, config, paper))
    if config.shown_step == config.steps:  # one moment, one column
        header, rows = header[:-1], [row[:-1] for row in rows]
    table = report.table(header, rows)
    error = 100 * intervals.proportion_error(0.5, 26 * config.generations)
    text = (
        "# Toy reversal: Table 2 of arXiv 2602.02133\n\n"
        f"{table}\n\n"
        "Accuracy in percent: mean over seeds ± 95 % Student interval. MDM: moving average of the "
        f"weights; ARM: raw weights. Batch {config.batch_size}. {config.generations} generations a "
        f"letter and direction: each seed has a standard error of at most {error:.1f} by sampling."
    )
    report.write(workdir.path, text, figures, printed=table)


def _published(paper: dict, model: str, length: int, direction: str) -> float | None:
    """Table 2's cell; None for a length that it does not have."""
    column = DIRECTIONS.index(direction) + 2 * (model == "arm")
    return paper[length][column] if length in paper else None


def _table_rows(results, config, paper: dict) -> Iterator[list]:
    for length in config.lengths:
        for model in config.models:
            lines = report.select(results, model=model, length=length)
            for direction in DIRECTIONS:
                keys = ("{}_percent", "percent_{}_raw", "final_{}_percent")
                shown, raw, final = ([x[key.format(direction)] for x in lines] for key in keys)
                published = _published(paper, model, length, direction)
                yield [
                    length,
                    model.upper(),
                    direction,
                    "" if published is None else f"{published:.2f}",
                    report.mean_interval(shown),
                    ", ".join(f"{value:.1f}" for value in shown),
                    report.mean_interval(raw) if model == "mdm" else "",
                    report.mean_interval(final),
                ]


def accuracy_bars(results, config, paper: dict):
    """Table 2 as bars, one panel a model."""
    figure, axes = report.new_figure(len(config.models), 1, (7.2, 2.6))
    center = np.arange(len(config.lengths))
    for ax, model in zip(axes[:, 0], config.models, strict=True):
        for side, direction in enumerate(DIRECTIONS):
            x = center + 0.4 * (side - 0.5)
            of_length = [report.select(results, model=model, length=n) for n in config.lengths]
            values = [[line[f"{direction}_percent"] for line in lines] for lines in of_length]
            ax.bar(x, [np.mean(v) for v in values], 0.36, color=COLORS[direction], label=direction)
            seeds_x = np.repeat(x, [len(v) for v in values])
            ax.plot(seeds_x, np.concatenate(values), "k.", ms=4, label="seed" if side else None)
            published = [_published(paper, model, n, direction) for n in config.lengths]
            known = [k for k, value in enumerate(published) if value is not None]
            label = "paper" if side and known else None
            ax.plot(x[known] + 0.12, [published[k] for k in known], "kD", mfc="w", label=label)
        ax.set(title=LABELS[model], ylim=(-4, 105), yticks=range(0, 101, 20), ylabel="accuracy (%)")
        ax.set_xticks(center, [f"L = {length}" for length in config.lengths])
        report.legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def training_figure(curves, config, measure: str):
    """P(true token) of raw weights (Figure 12, right), or accuracy of all weights."""
    figure, axes = report.new_panels(len(config.lengths))
    label, top = ("P(true token)", 1) if measure == "p" else ("accuracy (%)", 100)
    for ax, length in zip(axes, config.lengths, strict=True):
        for model in config.models:
            c = curves[model, length]
            for direction in DIRECTIONS:
                for weights in ("raw",) if measure == "p" or model == "arm" else ("raw", "ema"):
                    solid = model == "mdm" and (measure == "p" or weights == "ema")
                    report.plot_seeds(
                        ax,
                        c["eval_step"],
                        c[f"{measure}_{direction}_{weights}"],
                        f"{model.upper()} {direction} ({weights})",
                        color=COLORS[direction],
                        ls="-" if solid else "--" if model == "arm" else ":",
                    )
        ax.set(title=f"L = {length}", xlabel="step", ylabel=label, ylim=(-0.02 * top, 1.02 * top))
    report.legend(axes[0])
    return figure


def panel_figure(curves, config):
    """Figure 11: at each position, the right lowercase against the best wrong token."""
    figure, axes = report.new_figure(len(config.lengths), len(config.models), (3.6, 2.2))
    lines = ("right", "right lowercase", report.REVERSE), ("wrong", "best wrong but 0", "black")
    for row, model in enumerate(config.models):
        for ax, length in zip(axes[:, row], config.lengths, strict=True):
            weights = "ema" if model == "mdm" else "raw"
            moment = config.shown_step // config.eval_every
            for name, label, color in lines:
                values_LS = curves[model, length][f"panel_{name}_{weights}"][moment].T[1:]
                style = dict(color=color, marker=".")
                report.plot_seeds(ax, np.arange(1, length), values_LS, label, **style)
            title = f"{model.upper()}, L = {length}"
            ax.set(title=title, xlabel="position", ylabel="probability", ylim=(0, None))
            report.legend(ax)
    return figure
