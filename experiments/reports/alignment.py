"""Figures and table of `gradient_alignment`, from its results and curves."""

import functools
from collections.abc import Sequence

import numpy as np

from dirasym import metrics, report, runs
from dirasym.workdir import WorkDir

COLORS = {"forward": "tab:blue", "reverse": "tab:orange"}
PAPER = {"minimal": "0.999", "full": "> 0.6"}  # cosine of the gradients, at one layer


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run], step_lengths) -> None:
    """Writes figures and report.md, and prints the table and the figures' paths."""
    curves = {
        tuple(run.identity.values()): workdir.stacked(
            run,
            config.seeds,
            shared=("eval_step", "correlation_total"),
            seeds_first=("correlation_",),
        )
        for run in all_runs
    }
    figures = {"first_order": functools.partial(_first_order, curves, step_lengths)}
    if "minimal" in config.parts:
        figures["minimal"] = functools.partial(_minimal, curves)
    if "full" in config.parts and "mdm" in config.models:
        figures["alignment"] = functools.partial(_alignment, curves, config)
        figures["attention"] = functools.partial(_attention, curves, config)
        if len(config.layers) > 1:
            figures["depth"] = functools.partial(_depth, curves, config)
    table = report.table(
        [
            "part",
            "model",
            "L",
            "layers",
            "paper: cosine",
            "median cosine, lowest over training",
            "at the end",
            "cosine of mean gradients, lowest",
            "Corr(S_fwd, S_rev)",
            "P(true) forward",
            "reverse",
            "first-order slope",
        ],
        _rows(workdir.results(), all_runs),
    )
    text = (
        "# Gradient alignment over training (§5 of arXiv 2602.02133)\n\n"
        f"{table}\n\nMean over seeds ± 95 % Student interval. Cosines are of all trainable "
        f"parameters, at {config.examples} matched placements (all 26 at L = 2); correlations over "
        "letters, averaged over total distance, layers and heads. The slope is that of the error "
        "of −η⟨g_rev, g_fwd⟩ against η in logarithms: 2 to first order."
    )
    report.write(workdir.path, text, figures, printed=table)


def _rows(results, all_runs: Sequence[runs.Run]):
    columns = (
        "median_cosine_min",
        "median_cosine_last",
        "cosine_of_means_min",
        "score_correlation_mean",
        "final_p_forward",
        "final_p_reverse",
        "first_order_slope",
    )
    for run in all_runs:
        part, model, length, layers = run.identity.values()
        lines = report.select(results, **run.identity)
        paper = PAPER[part] if model == "mdm" and layers == 1 else ""
        cells = [
            report.with_interval(*metrics.student_interval([line[key] for line in lines]), 3)
            if key in lines[0]
            else ""
            for key in columns
        ]
        yield [part, model.upper(), length, layers, paper, *cells]


def _plot_probabilities(ax, curves, key):
    """P(true token) at both queries, MDM in colour and ARM in grey."""
    for model in ("mdm", "arm"):
        c = curves.get((key[0], model, *key[2:]))
        for direction in ("forward", "reverse") if c else ():
            report.plot_seeds(
                ax,
                c["eval_step"],
                c[f"p_{direction}"],
                f"{model.upper()} {direction}",
                color=COLORS[direction] if model == "mdm" else "grey",
                ls="-" if direction == "forward" else "--",
            )
    ax.set(xlabel="step", ylabel="P(true token)", ylim=(-0.02, 1.02))
    ax.legend(fontsize="x-small")


def _box_plot(ax, curve):
    """Cosine over examples and seeds at each measurement."""
    values = curve["cosine/total"]
    steps = curve["eval_step"]
    width = 0.6 * np.min(np.diff(steps))
    finite = [row[np.isfinite(row)] for row in values.reshape(len(values), -1)]
    ax.boxplot(finite, positions=steps, widths=width, showfliers=False, manage_ticks=False)
    ax.set(xlabel="step", ylabel="cos(g_fwd, g_rev)", ylim=(min(0, ax.get_ylim()[0]), 1.02))


def _minimal(curves):
    """Figure 4 and, along the same training, Theorem B.1's blocks."""
    figure, axes = report.new_figure(1, 4, (3.6, 3.0))
    key = ("minimal", "mdm", 2, 1)
    c = curves[key]
    _plot_probabilities(axes[0, 0], curves, key)
    axes[0, 0].set_title("both queries rise together")
    apart = np.maximum(1 - c["cosine/total"], 1e-8)  # float32 leaves no more
    report.plot_seeds(axes[0, 1], c["eval_step"], np.median(apart, axis=-1), "median letter")
    report.plot_seeds(axes[0, 1], c["eval_step"], apart.max(axis=-1), "furthest letter")
    axes[0, 1].axhline(1e-3, color="tab:red", ls=":", lw=1, label="paper: cosine 0.999")
    axes[0, 1].set(
        title="all parameters", xlabel="step", ylabel="1 − cos(g_fwd, g_rev)", yscale="log"
    )
    axes[0, 1].legend(fontsize="x-small")
    for place, block in enumerate(("W_Q", "W_K", "W_V", "W_O")):
        for part, style in (("theorem", "-"), ("full", ":")):
            values_TS = c[f"{part}/{block}"].mean(axis=-1)
            label = block if part == "theorem" else None
            report.plot_seeds(
                axes[0, 2], c["eval_step"], values_TS, label, color=f"C{place}", ls=style
            )
    axes[0, 2].set(
        title="Theorem B.1 (—) and full model (···)",
        xlabel="step",
        ylabel="⟨g_fwd, g_rev⟩, mean over letters",
        yscale="symlog",
    )
    axes[0, 2].set_yscale("symlog", linthresh=1e-6)
    axes[0, 2].legend(fontsize="x-small")
    names = ("non_saturated", "signals_aligned", "margins_agree", "rope_positive")
    for place, name in enumerate(names):
        share_TS = c[f"assumption/{name}"].mean(axis=-1)
        dashes = (3 * place, (3, 9))  # so that equal curves all show
        label = f"({'i' * (place + 1) if place < 3 else 'iv'}) {name.replace('_', ' ')}"
        report.plot_seeds(axes[0, 3], c["eval_step"], share_TS, label, lw=2.5, ls=dashes)
    axes[0, 3].set(
        title="Corollary B.2's assumptions",
        xlabel="step",
        ylabel="share of letters",
        ylim=(0, 1.05),
    )
    axes[0, 3].legend(fontsize="x-small", loc="lower right", handlelength=5)
    return figure


def _alignment(curves, config):
    """Figures 5 and 12: cosine and P(true token) over training, per length and depth."""
    figure, axes = report.new_figure(2 * len(config.layers), len(config.lengths), (4.0, 2.6))
    for row, layers in enumerate(config.layers):
        for column, length in enumerate(config.lengths):
            key = ("full", "mdm", length, layers)
            box, probability = axes[2 * row : 2 * row + 2, column]
            _box_plot(box, curves[key])
            box.axhline(0.6, color="tab:red", ls=":", lw=1)
            box.set_title(f"L = {length}, {layers} layer{'s' * (layers > 1)}")
            _plot_probabilities(probability, curves, key)
    return figure


def _attention(curves, config):
    """Figures 3 and 13: score correlation by total distance, and weights over training."""
    figure, axes = report.new_figure(2, len(config.lengths), (4.0, 2.6))
    for column, length in enumerate(config.lengths):
        c = curves["full", "mdm", length, config.layers[0]]
        ax, total = axes[0, column], c["correlation_total"]
        mean, low, high = (
            c[f"correlation_{name}"].mean(axis=(0, 1, 2)) for name in ("mean", "low", "high")
        )
        ax.plot(total, mean)
        ax.fill_between(total, low, high, alpha=0.25, lw=0)
        ax.axhline(0, color="black", lw=0.8)
        ax.set(title=f"L = {length}", xlabel="Δ₁ + Δ₂", ylabel="Corr(S_fwd, S_rev)", ylim=(-1, 1))
        for direction, color in COLORS.items():
            weight_TS = c[f"weight_{direction}"].mean(axis=(2, 3))
            report.plot_seeds(axes[1, column], c["eval_step"], weight_TS, direction, color=color)
        axes[1, column].set(xlabel="step", ylabel="weight [M] → uppercase", ylim=(0, 1))
        axes[1, column].legend(fontsize="x-small")
    return figure


def _depth(curves, config):
    """Do alignment and correlation survive depth?"""
    figure, axes = report.new_figure(1, 2, (4.0, 3.0))
    for length in config.lengths:
        cosine, correlation = [], []
        for layers in config.layers:
            c = curves["full", "mdm", length, layers]
            cosine.append(np.nanmedian(c["cosine/total"][-1]))
            correlation.append(c["correlation_mean"].mean(axis=(0, 2, 3)))
        axes[0, 0].plot(config.layers, cosine, "o-", label=f"L = {length}")
        for layers, per_layer in zip(config.layers, correlation, strict=True):
            axes[0, 1].plot(
                [layers] * len(per_layer),
                per_layer,
                "o",
                color=f"C{config.lengths.index(length)}",
                label=f"L = {length}, one point a layer" if layers == config.layers[0] else None,
            )
    axes[0, 0].set(xlabel="layers", ylabel="median cosine at the end", xticks=config.layers)
    axes[0, 1].set(xlabel="layers", ylabel="Corr(S_fwd, S_rev)", xticks=config.layers)
    for ax in axes[0]:
        ax.legend(fontsize="x-small")
    return figure


def _first_order(curves, step_lengths):
    """Error of −η⟨g_rev, g_fwd⟩ against η, at each measurement: slope 2."""
    measured = {key: c for key, c in curves.items() if "predicted" in c}
    figure, axes = report.new_figure(1, len(measured), (3.4, 3.0))
    for ax, (key, c) in zip(axes[0], measured.items(), strict=True):
        error_TR = np.abs(c["predicted"] - c["measured"])[:, 0]
        for row, step in enumerate(c["eval_step"]):
            shade = str(0.8 - 0.8 * row / len(error_TR))
            label = f"step {step}" if row in (0, len(error_TR) - 1) else None
            ax.loglog(step_lengths, error_TR[row], ".-", color=shade, label=label)
        guide = error_TR[0, -1] * (step_lengths / step_lengths[-1]) ** 2
        ax.loglog(step_lengths, guide, "r--", lw=1, label="slope 2")
        part, _, length, layers = key
        ax.set(
            title=f"{part}, L = {length}, layers {layers}", xlabel="η‖g_fwd‖", ylabel="error (nats)"
        )
        ax.legend(fontsize="x-small")
    return figure
