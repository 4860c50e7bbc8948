"""Figures and table of `gradient_alignment`, from its results and curves."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from dirasym import report, runs
from dirasym.analysis.tracking import ASSUMPTIONS, STEP_LENGTHS
from dirasym.workdir import WorkDir

COLORS = {"forward": "tab:blue", "reverse": "tab:orange"}
PAPER = {"minimal": "0.999", "full": "> 0.6"}  # cosine of the gradients, at one layer
COLUMNS = {
    "median cosine, lowest": "median_cosine_min",
    "at the end": "median_cosine_last",
    "cosine of mean gradients, lowest": "cosine_of_means_min",
    "Corr(S_fwd, S_rev)": "score_correlation_mean",
    "P(true) forward": "final_p_forward",
    "reverse": "final_p_reverse",
    "first-order slope": "first_order_slope",
}


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run]) -> None:
    """Writes figures and report.md, and prints the table and the figures' paths."""
    apart = dict(shared=("eval_step", "correlation_total"), seeds_first=("correlation_",))
    curves = {
        tuple(run.identity.values()): workdir.stacked(run, config.seeds, **apart)
        for run in all_runs
    }
    figures = {"first_order": functools.partial(_first_order, curves)}
    if "minimal" in config.parts:
        figures["minimal"] = functools.partial(_minimal, curves)
    if "full" in config.parts and "mdm" in config.models:
        figures["alignment"] = functools.partial(_alignment, curves, config)
        figures["attention"] = functools.partial(_attention, curves, config)
        if len(config.layers) > 1:
            figures["depth"] = functools.partial(_depth, curves, config)
    header = ["part", "model", "L", "layers", "paper: cosine", *COLUMNS]
    table = report.table(header, _rows(workdir.results(), all_runs))
    text = (
        "# Gradient alignment over training (§5 of arXiv 2602.02133)\n\n"
        f"{table}\n\nMean over seeds ± 95 % Student interval. Cosines are of all trainable "
        f"parameters, at {config.examples} matched placements (all 26 at L = 2); correlations over "
        "letters, averaged over total distance, layers and heads. The slope is that of the error "
        "of −η⟨g_rev, g_fwd⟩ against η in logarithms: 2 to first order."
    )
    report.write(workdir.path, text, figures, printed=table)


def _rows(results, all_runs: Sequence[runs.Run]) -> Iterator[list]:
    for run in all_runs:
        part, model, length, layers = run.identity.values()
        lines = report.select(results, **run.identity)
        paper = PAPER[part] if model == "mdm" and layers == 1 else ""
        values = ([line[key] for line in lines if key in line] for key in COLUMNS.values())
        cells = [report.mean_interval(v, 3) if v else "" for v in values]
        yield [part, model.upper(), length, layers, paper, *cells]


def _plot_probabilities(ax, curves, part: str, length: int, layers: int) -> None:
    """P(true token) at both queries, MDM in colour and ARM in grey."""
    for model in ("mdm", "arm"):
        c = curves.get((part, model, length, layers))
        for direction in COLORS if c else ():
            color = COLORS[direction] if model == "mdm" else "grey"
            style = dict(color=color, ls="-" if direction == "forward" else "--")
            label = f"{model.upper()} {direction}"
            report.plot_seeds(ax, c["eval_step"], c[f"p_{direction}"], label, **style)
    ax.set(xlabel="step", ylabel="P(true token)", ylim=(-0.02, 1.02))


def _minimal(curves):
    """Figure 4 and, along the same training, Theorem B.1's blocks."""
    figure, axes = report.new_figure(1, 4, (3.6, 3.0))
    rise, cosine, blocks, assumptions = axes[0]
    c = curves["minimal", "mdm", 2, 1]
    step = c["eval_step"]
    _plot_probabilities(rise, curves, "minimal", 2, 1)
    rise.set_title("both queries rise together")
    apart = np.maximum(1 - c["cosine/total"], 1e-8)  # float32 leaves no more
    report.plot_seeds(cosine, step, np.median(apart, axis=-1), "median letter")
    report.plot_seeds(cosine, step, apart.max(axis=-1), "furthest letter")
    cosine.axhline(1e-3, color="tab:red", ls=":", lw=1, label="paper: cosine 0.999")
    cosine.set(title="all parameters", ylabel="1 − cos(g_fwd, g_rev)", yscale="log")
    for number, block in enumerate(("W_Q", "W_K", "W_V", "W_O")):
        for part, style in (("theorem", "-"), ("full", ":")):
            label = block if part == "theorem" else None
            values_TS = c[f"{part}/{block}"].mean(axis=-1)
            report.plot_seeds(blocks, step, values_TS, label, color=f"C{number}", ls=style)
    blocks.set_yscale("symlog", linthresh=1e-6)
    blocks.set(
        title="Theorem B.1 (—) and full model (···)", ylabel="⟨g_fwd, g_rev⟩, mean of letters"
    )
    for number, name in enumerate(ASSUMPTIONS):
        style = dict(lw=2.5, ls=(3 * number, (3, 9)))  # so that equal curves all show
        label = f"({('i', 'ii', 'iii', 'iv')[number]}) {name.replace('_', ' ')}"
        report.plot_seeds(assumptions, step, c[f"assumption/{name}"].mean(axis=-1), label, **style)
    assumptions.set(title="Corollary B.2's assumptions", ylabel="share of letters", ylim=(0, 1.05))
    for ax in axes[0]:
        ax.set_xlabel("step")
        ax.legend(fontsize="x-small", handlelength=5)
    return figure


def _alignment(curves, config):
    """Figures 5 and 12: cosine and P(true token) over training, per length and depth."""
    figure, axes = report.new_figure(2 * len(config.layers), len(config.lengths), (4.0, 2.6))
    for row, layers in enumerate(config.layers):
        for column, length in enumerate(config.lengths):
            c = curves["full", "mdm", length, layers]
            box, probability = axes[2 * row : 2 * row + 2, column]
            report.plot_boxes(box, c["eval_step"], c["cosine/total"])
            box.axhline(0.6, color="tab:red", ls=":", lw=1)
            box.set(
                xlabel="step", ylabel="cos(g_fwd, g_rev)", ylim=(min(0, box.get_ylim()[0]), 1.02)
            )
            box.set_title(f"L = {length}, {layers} layer{'s' * (layers > 1)}")
            _plot_probabilities(probability, curves, "full", length, layers)
            probability.legend(fontsize="x-small")
    return figure


def _attention(curves, config):
    """Figures 3 and 13: score correlation; weights over placements, and (···) over distances."""
    figure, axes = report.new_figure(2, len(config.lengths), (4.0, 2.6))
    for (top, bottom), length in zip(axes.T, config.lengths, strict=True):
        c = curves["full", "mdm", length, config.layers[0]]
        band = (c[f"correlation_{name}"].mean(axis=(0, 1, 2)) for name in ("mean", "low", "high"))
        report.plot_band(top, c["correlation_total"], *band)
        top.axhline(0, color="black", lw=0.8)
        top.set(title=f"L = {length}", xlabel="Δ₁ + Δ₂", ylabel="Corr(S_fwd, S_rev)", ylim=(-1, 1))
        for direction, color in COLORS.items():
            for name, ls, label in (("_all", "-", direction), ("", ":", "all distances alike")):
                weight_TS = c[f"weight_{direction}{name}"].mean(axis=(2, 3))
                report.plot_seeds(bottom, c["eval_step"], weight_TS, label, color=color, ls=ls)
        bottom.set(xlabel="step", ylabel="weight [M] → uppercase", ylim=(0, 1))
        bottom.legend(fontsize="x-small")
    return figure


def _depth(curves, config):
    """Do alignment and correlation survive depth?"""
    figure, axes = report.new_figure(1, 2, (4.0, 3.0))
    for number, length in enumerate(config.lengths):
        of_depth = [curves["full", "mdm", length, layers] for layers in config.layers]
        cosine = [np.nanmedian(c["cosine/total"][-1]) for c in of_depth]
        axes[0, 0].plot(config.layers, cosine, "o-", label=f"L = {length}")
        for layers, c in zip(config.layers, of_depth, strict=True):
            per_layer = c["correlation_mean"].mean(axis=(0, 2, 3))
            label = f"L = {length}, one point a layer" if layers == config.layers[0] else None
            x = [layers] * len(per_layer)
            axes[0, 1].plot(x, per_layer, "o", color=f"C{number}", label=label)
    for ax, label in zip(axes[0], ("median cosine at the end", "Corr(S_fwd, S_rev)"), strict=True):
        ax.set(xlabel="layers", ylabel=label, xticks=config.layers)
        ax.legend(fontsize="x-small")
    return figure


def _first_order(curves):
    """Error of −η⟨g_rev, g_fwd⟩ against η, at each measurement: slope 2."""
    measured = {key: c for key, c in curves.items() if "predicted" in c}
    figure, axes = report.new_figure(1, len(measured), (3.4, 3.0))
    for ax, ((part, _, length, layers), c) in zip(axes[0], measured.items(), strict=True):
        error_TR = np.abs(c["predicted"] - c["measured"])[:, 0]
        report.plot_powers(ax, STEP_LENGTHS, error_TR, c["eval_step"], 2)
        title = f"{part}, L = {length}, layers {layers}"
        ax.set(title=title, xlabel="η‖g_fwd‖", ylabel="error (nats)")
    return figure
