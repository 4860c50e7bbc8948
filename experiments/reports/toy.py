"""Table 2 and the figures of `toy_reversal`, from its results and curves."""

import functools
from collections.abc import Sequence

import numpy as np

from dirasym import metrics, report, runs
from dirasym.workdir import WorkDir

LABELS = {"mdm": "masked diffusion (MDM)", "arm": "autoregressive (ARM)"}
COLORS = {"forward": "tab:blue", "reverse": "tab:orange"}


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run], paper: dict) -> None:
    """Writes figures and report.md, and prints the table and the figures' paths."""
    results = workdir.results()
    curves = {
        (run.identity["model"], run.identity["length"]): workdir.stacked(run, config.seeds)
        for run in all_runs
    }
    figures = {
        "accuracy": functools.partial(accuracy_bars, results, config, paper),
        "probability": functools.partial(_probability_curves, curves, config),
        "accuracy_over_training": functools.partial(_accuracy_curves, curves, config),
        "reverse_panel": functools.partial(_reverse_panel, curves, config),
    }
    header = ["L", "model", "direction", "paper %", f"ours %, step {config.shown_step}"]
    header += ["each seed", "raw weights", f"ours %, step {config.steps}"]
    rows = list(_table_rows(results, config, paper))
    if config.shown_step == config.steps:  # one moment, one column
        header, rows = header[:-1], [row[:-1] for row in rows]
    table = report.table(header, rows)
    error = 100 * metrics.proportion_error(0.5, 26 * config.generations)
    text = (
        "# Toy reversal: Table 2 of arXiv 2602.02133\n\n"
        f"{table}\n\n"
        "Accuracy in percent: mean over seeds ± 95 % Student interval. MDM: moving average of "
        f"the weights; ARM: raw weights. {config.generations} generations a letter and "
        f"direction, so sampling adds a standard error of at most {error:.1f} to each seed. "
        f"Batch {config.batch_size}."
    )
    report.write(workdir.path, text, figures, printed=table)


def _table_rows(results, config, paper):
    for length in config.lengths:
        for model in config.models:
            lines = report.select(results, model=model, length=length)
            for number, direction in enumerate(("forward", "reverse")):
                values = [line[f"{direction}_percent"] for line in lines]
                raw, final = (
                    metrics.student_interval([line[key] for line in lines])
                    for key in (f"percent_{direction}_raw", f"final_{direction}_percent")
                )
                published = paper.get(length)
                yield [
                    length,
                    model.upper(),
                    direction,
                    f"{published[number + 2 * (model == 'arm')]:.2f}" if published else "",
                    report.with_interval(*metrics.student_interval(values)),
                    ", ".join(f"{value:.1f}" for value in values),
                    report.with_interval(*raw) if model == "mdm" else "",
                    report.with_interval(*final),
                ]


def accuracy_bars(results, config, paper):
    """Table 2 as bars, one panel a model."""
    figure, axes = report.new_figure(1, len(config.models), (4.2, 3.2))
    place = np.arange(len(config.lengths))
    for ax, model in zip(axes[0], config.models, strict=True):
        for side, direction in enumerate(("forward", "reverse")):
            x = place + 0.4 * (side - 0.5)
            values = [
                [
                    line[f"{direction}_percent"]
                    for line in report.select(results, model=model, length=length)
                ]
                for length in config.lengths
            ]
            ax.bar(x, [np.mean(v) for v in values], 0.36, color=COLORS[direction], label=direction)
            seeds_x = np.repeat(x, [len(v) for v in values])
            ax.plot(seeds_x, np.concatenate(values), "k.", ms=4, label="seed" if side else None)
            for k, length in enumerate(config.lengths):
                if length in paper:
                    published = paper[length][side + 2 * (model == "arm")]
                    label = "paper" if side and not k else None
                    ax.plot(x[k] + 0.12, published, "kD", ms=5, mfc="white", label=label)
        ax.set(
            title=LABELS[model],
            xticks=place,
            xticklabels=[f"L = {length}" for length in config.lengths],
            ylim=(0, 122),
            yticks=range(0, 101, 20),
            ylabel="accuracy (%)",
        )
        ax.legend(loc="upper center", ncols=4, fontsize="small", columnspacing=1.0)
    return figure


def _probability_curves(curves, config):
    """Figure 12, right: P(true token) over training, both directions, both models."""
    figure, axes = report.new_figure(1, len(config.lengths), (4.2, 3.2))
    for column, length in enumerate(config.lengths):
        ax = axes[0, column]
        for model in config.models:
            c = curves[model, length]
            for direction in ("forward", "reverse"):
                report.plot_seeds(
                    ax,
                    c["eval_step"],
                    c[f"p_{direction}_raw"],
                    f"{model.upper()} {direction}",
                    color=COLORS[direction],
                    ls="-" if model == "mdm" else "--",
                )
        ax.set(title=f"L = {length}", xlabel="step", ylabel="P(true token)", ylim=(-0.02, 1.02))
        ax.legend(fontsize="small")
    return figure


def _accuracy_curves(curves, config):
    figure, axes = report.new_figure(1, len(config.lengths), (4.2, 3.2))
    for column, length in enumerate(config.lengths):
        ax = axes[0, column]
        for model in config.models:
            c = curves[model, length]
            for direction in ("forward", "reverse"):
                for weights, style in (("raw", ":" if model == "mdm" else "--"), ("ema", "-")):
                    if f"percent_{direction}_{weights}" in c:
                        report.plot_seeds(
                            ax,
                            c["eval_step"],
                            c[f"percent_{direction}_{weights}"],
                            f"{model.upper()} {direction} ({weights})",
                            color=COLORS[direction],
                            ls=style,
                        )
        ax.set(title=f"L = {length}", xlabel="step", ylabel="accuracy (%)", ylim=(-2, 102))
        ax.legend(fontsize="x-small")
    return figure


def _reverse_panel(curves, config):
    """Figure 11: at each position, the right lowercase against the best wrong token."""
    figure, axes = report.new_figure(len(config.models), len(config.lengths), (4.2, 2.8))
    for row, model in enumerate(config.models):
        for column, length in enumerate(config.lengths):
            ax, position = axes[row, column], np.arange(1, length)
            c = curves[model, length]
            weights = "ema" if model == "mdm" else "raw"
            moment = config.shown_step // config.eval_every
            for key, label, color in (
                ("panel_right", "right lowercase", "tab:red"),
                ("panel_wrong", "largest wrong, `0` apart", "black"),
            ):
                values_LS = c[f"{key}_{weights}"][moment].T[1:]
                report.plot_seeds(ax, position, values_LS, label, color=color, marker=".")
            ax.set(title=f"{model.upper()}, L = {length}", xlabel="position", ylabel="probability")
            ax.set_ylim(bottom=0)
            ax.legend(fontsize="small")
    return figure
