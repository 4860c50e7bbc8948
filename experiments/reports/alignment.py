"""Figures and table of `gradient_alignment`, from its results and curves."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from dirasym import report, runs
from dirasym.analysis.tracking import ASSUMPTIONS, STEP_LENGTHS
from dirasym.workdir import WorkDir

DEPTH = {"median_cosine_last": "median cosine", "score_correlation_mean": "Corr(S_fwd, S_rev)"}
COLORS = {"forward": report.FORWARD, "reverse": report.REVERSE}
ASSUMED = "(i) not saturated", "(ii) signals aligned", "(iii) margins agree", "(iv) RoPE positive"
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
    figures = {"first_order": functools.partial(first_order_figure, curves)}
    if "minimal" in config.parts:
        figures["minimal"] = functools.partial(minimal_figure, curves)
    if "full" in config.parts and "mdm" in config.models:
        figures["alignment"] = functools.partial(length_figure, curves, config)
        figures["attention"] = functools.partial(attention_figure, curves, config)
        if len(config.layers) > 1:
            full = report.select(workdir.results(), part="full")
            figures["depth"] = functools.partial(depth_figure, full, config.lengths, config.layers)
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
    ax.set(ylabel="P(true token)", ylim=(-0.02, 1.02))


def minimal_figure(curves):
    """Figure 4 and, along the same training, Theorem B.1's blocks."""
    figure, axes = report.new_figure(2, 2, (3.6, 2.9))
    rise, cosine, blocks, assumptions = axes.flat
    c = curves["minimal", "mdm", 2, 1]
    step = c["eval_step"]
    _plot_probabilities(rise, curves, "minimal", 2, 1)
    report.legend(rise, loc="lower right", bbox_to_anchor=(1.0, 0.05))
    apart = np.maximum(1 - c["cosine/total"], 1e-8)  # float32 leaves no more
    report.plot_seeds(cosine, step, np.median(apart, axis=-1), "median letter")
    report.plot_seeds(cosine, step, apart.max(axis=-1), "furthest letter")
    cosine.axhline(1e-3, color="black", ls=":", lw=1)
    report.note(cosine, step[-1], 1.3e-3, "paper: cosine 0.999", ha="right")
    cosine.set(title="all parameters", ylabel="1 − cos(g_fwd, g_rev)", yscale="log")
    report.legend(cosine)
    for number, block in enumerate(("W_Q", "W_K", "W_V", "W_O")):
        for part, ls, label in (("theorem", "-", block), ("full", ":", None)):
            values_TS = c[f"{part}/{block}"].mean(axis=-1)
            report.plot_seeds(blocks, step, values_TS, label, color=report.color(number), ls=ls)
    blocks.set_yscale("symlog", linthresh=1e-6)
    blocks.set(title="Theorem B.1 (—), full model (···)", ylabel="⟨g_fwd, g_rev⟩, mean of letters")
    report.legend(blocks, ncols=2)
    for row, name in enumerate(ASSUMPTIONS):  # a band each, so that equal curves all show
        share_T = c[f"assumption/{name}"].mean(axis=(1, 2))
        assumptions.fill_between(step, -row, 0.9 * share_T - row, color=report.color(row), lw=0)
        text = f"{ASSUMED[row]}: {share_T[-1]:.0%}"
        report.note(assumptions, step.mean(), 0.4 - row, text, ha="center", color="white")
    assumptions.set(title="Corollary B.2's assumptions", ylabel="share of letters", yticks=[])
    figure.supxlabel("step", fontsize="medium")
    return figure


def length_figure(curves, config):
    """Figures 5 and 12: cosine and P(true token) over training, per length and depth."""
    cases = [(layers, length) for layers in config.layers for length in config.lengths]
    figure, axes = report.new_figure(len(cases), 2, (3.6, 2.2))
    for (box, probability), (layers, length) in zip(axes, cases, strict=True):
        c = curves["full", "mdm", length, layers]
        report.plot_boxes(box, c["eval_step"], c["cosine/total"])
        box.axhline(0.6, color="black", ls=":", lw=1)
        report.note(box, c["eval_step"][0], 0.58, "paper: above 0.6", va="top")
        title = f"L = {length}, depth {layers}"
        box.set(title=title, ylabel="cos(g_fwd, g_rev)", ylim=(min(0, box.get_ylim()[0]), 1.02))
        _plot_probabilities(probability, curves, "full", length, layers)
        report.label_ends(probability)
    figure.supxlabel("step", fontsize="medium")
    return figure


def attention_figure(curves, config):
    """Figures 3 and 13: score correlation; weights over placements, and (···) over distances."""
    figure, axes = report.new_figure(len(config.lengths), 2, (3.6, 2.2))
    for (left, right), length in zip(axes, config.lengths, strict=True):
        c = curves["full", "mdm", length, config.layers[0]]
        band = (c[f"correlation_{name}"].mean(axis=(0, 1, 2)) for name in ("mean", "low", "high"))
        report.plot_band(left, c["correlation_total"], *band)
        left.axhline(0, color="black", lw=0.8)
        left.set(title=f"L = {length}", ylabel="Corr(S_fwd, S_rev)", ylim=(-1, 1))
        for direction, color in COLORS.items():
            for name, ls in (("_all", "-"), ("", ":")):
                weight_TS = c[f"weight_{direction}{name}"].mean(axis=(2, 3))
                style = dict(label=direction if name else None, color=color, ls=ls)
                report.plot_seeds(right, c["eval_step"], weight_TS, **style)
        right.set(ylabel="weight, [M] → uppercase", ylim=(0, 1))
        report.legend(right)
    axes[-1, 0].set_xlabel("Δ₁ + Δ₂ (tokens)")
    axes[-1, 1].set_xlabel("step")
    return figure


def depth_figure(lines, lengths: Sequence[int], layers: Sequence[int]):
    """Do alignment and correlation survive depth? From result lines: a dot a seed."""
    figure, axes = report.new_figure(1, 2, (3.6, 2.8))
    for ax, (key, label) in zip(axes[0], DEPTH.items(), strict=True):
        for length in lengths:
            of = [report.select(lines, length=length, layers=n, model="mdm") for n in layers]
            values_TS = np.array([[line[key] for line in seeds] for seeds in of])
            report.plot_seeds(ax, layers, values_TS, f"L = {length}")
        ax.axhline(0, color="black", lw=0.8)
        ax.set(xlabel="layers", ylabel=label, xticks=layers, ylim=(-0.1, 1.02))
        report.legend(ax)
    return figure


def first_order_figure(curves):
    """Error of −η⟨g_rev, g_fwd⟩ against η, at each measurement, first seed: slope 2."""
    measured = {key: c for key, c in curves.items() if "predicted" in c}
    figure, axes = report.new_panels(len(measured))
    for ax, ((part, _, length, layers), c) in zip(axes, measured.items(), strict=True):
        error_TR = np.abs(c["predicted"] - c["measured"])[:, 0]
        report.plot_powers(ax, STEP_LENGTHS, error_TR, c["eval_step"], 2)
        title = (
            f"L = {length}, {layers} layer{'s' * (layers > 1)}" if part == "full" else "two letters"
        )
        ax.set(title=title, xlabel="η‖g_fwd‖", ylabel="|predicted − measured| (nats)")
    return figure
