"""The tables and figures of `training_dynamics`, from its result lines and curves."""

import functools
from collections.abc import Sequence

import numpy as np

from dirasym import intervals, report
from dirasym.pieces import Piece
from dirasym.workdir import WorkDir
from experiments.systems.training_dynamics import CASES, ONE_LAYER_VOCAB

TIME = "t = steps × step size"
WITHIN = 0.01  # of ln M: a reverse loss that has not moved


def write(workdir: WorkDir, config, pieces: Sequence[Piece]) -> None:
    """Writes figures and report.md, and prints the tables and the figures' paths."""
    results = workdir.results()
    bilinear, cases = {}, {}
    for piece in pieces:
        if piece.identity["part"] == "bilinear":
            key = piece.identity["width"], piece.seed
            bilinear[key] = workdir.curves(piece, piece.seed)
        elif piece.identity["part"] == "one_layer":
            cases[piece.identity["case"]] = workdir.curves(piece, None)
    figures = {
        "bilinear_losses": functools.partial(loss_figure, config, bilinear),
        "bilinear_widths": functools.partial(width_figure, config, results),
        "one_layer": functools.partial(one_layer_figure, cases),
        "break_conditions": functools.partial(break_figure, cases),
        "weights": functools.partial(weight_figure, config, bilinear, cases),
    }
    (descent,) = report.select(results, part="descent")
    text = "\n\n".join(
        [
            "# Training dynamics (arXiv 2405.04669, §3 and §4)",
            f"Bilinear model: M = {config.vocab_size} tokens, {config.num_pairs} pairs of which "
            f"{config.num_both} train both ways; gradient flow until the loss is "
            f"{config.final_loss:g}. ε: the smallest with L_rev(t)/L_rev(0) ≥ (L(t)/L(0))^ε. Mean "
            f"over {len(config.seeds)} embeddings ± 95 % Student interval.",
            bilinear_table(config, results),
            within_sentence(config, results),
            f"One-layer model, M = {ONE_LAYER_VOCAB}: largest differences from the closed form, "
            "and of M·p(A | B) from 1, over times 0 and 0.1 to 10⁴. Break conditions follow "
            "other laws.",
            one_layer_table(results),
            f"Gradient descent at step size {descent['step_size']:g}, width "
            f"{min(config.widths)}: its loss is within {descent['largest_difference']:.2g} nats "
            f"of the flow's over {descent['num_steps']} steps.",
        ]
    )
    report.write(workdir.path, text, figures, printed=text)


def within_sentence(config, results) -> str:
    """From which width on every seed's reverse loss stays within 1 % of ln M."""
    moved = [
        width
        for width in config.widths
        if max(r["reverse_deviation"] for r in _at(results, width)) > WITHIN
    ]
    enough = [width for width in config.widths if width > max(moved, default=0)]
    if not enough:
        return f"At no width here does the reverse loss stay within {WITHIN:.0%} of ln M."
    return (
        f"From width {min(enough)} on the reverse loss stays within {WITHIN:.0%} of ln M "
        "throughout, at every seed."
    )


def _at(results, width: int):
    return report.select(results, part="bilinear", width=width)


def bilinear_table(config, results) -> str:
    columns = {
        "ε": ("epsilon", 4),
        "final L": ("loss", 5),
        "final L_rev": ("reverse_loss", 3),
        "max |L_rev/ln M − 1|": ("reverse_deviation", 4),
        "asymmetry": ("asymmetry", 3),
    }
    rows = []
    for width in config.widths:
        lines = _at(results, width)
        values = [
            report.mean_interval([r[key] for r in lines], digits)
            for key, digits in columns.values()
        ]
        slower = np.mean([r["time"] / r["predicted_time"] for r in lines])
        missed = sum(not r["reached"] for r in lines)
        rows.append([width, *values, "not reached" if missed else f"{slower:.2f}"])
    return report.table(["width", *columns, "time / predicted"], rows)


def one_layer_table(results) -> str:
    header = ["case", "p(B|A)", "error", "gap error", "p(A|B)", "max |M·p(A|B) − 1|", "max |Z|"]
    rows = []
    for case, label in CASES.items():
        (line,) = report.select(results, part="one_layer", case=case)
        follows = not label.startswith("break") or case == "both_ways"
        rows.append(
            [
                label,
                f"{line['forward']:.5f}",
                f"{line['probability_error']:.1e}" if follows else "",
                f"{line['gap_error']:.1e}" if follows else "",
                f"{line['reverse']:.5f}",
                f"{line['reverse_deviation']:.1e}",
                f"{line['largest_z']:.1e}",
            ]
        )
    chain, joint, last, symmetric = (
        report.select(results, part="one_layer", case=case)[0]
        for case in ("chain", "joint_chain", "joint_chain_last", "symmetric_loss")
    )
    return (
        report.table(header, rows)
        + f"\n\nIn the chain p(C|A) ends at {chain['composed']:.1e}, and is (1 − p(B|A))/(M − 1) "
        f"to {chain['composed_error']:.1e}. Where A → B → C is one sentence it reaches "
        f"{joint['highest_composed']:.3f} and ends at {joint['composed']:.1e}; with a loss on C "
        f"alone it ends at {last['composed']:.5f}. Under the symmetric loss the score of (A, B), "
        f"read as that of A given B, ends at p(A|B) = {symmetric['reverse_by_score']:.5f}."
    )


def loss_figure(config, bilinear):
    shown = [config.widths[0], config.widths[len(config.widths) // 2], config.widths[-1]]
    figure, axes = report.new_figure(1, len(shown), (2.4, 2.8))
    first, *others = axes.flat
    for ax in others:
        ax.sharex(first)
        ax.sharey(first)
    for ax, width in zip(axes[0], shown, strict=True):
        for seed in config.seeds:
            c, is_first = bilinear[width, seed], seed == config.seeds[0]
            for key, color in (("loss", report.FORWARD), ("reverse_loss", report.REVERSE)):
                label = {"loss": "forward", "reverse_loss": "reverse"}[key] if is_first else None
                ax.plot(c["time"], c[key], color=color, label=label, lw=1)
        ax.axhline(np.log(config.vocab_size), color="black", ls=":", label="ln M, a guess")
        ax.set(title=f"width {width}", xscale="log", yscale="log", xlabel=TIME)
        ax.set_xlim(left=1)
    axes[0, 0].set(ylabel="loss (nats)")
    report.legend(axes[0, -1], loc="lower left")
    return figure


def width_figure(config, results):
    figure, axes = report.new_figure(1, 3, (2.4, 2.8))
    for ax, key, label in zip(
        axes[0],
        ("epsilon", "reverse_deviation", "asymmetry"),
        ("smallest ε", "max |L_rev/ln M − 1|", "asymmetry, one-way pairs"),
        strict=True,
    ):
        seeds_WS = np.array([[r[key] for r in _at(results, w)] for w in config.widths])
        mean, half_width = np.array([intervals.student_interval(x) for x in seeds_WS]).T
        error = None if np.isnan(half_width).any() else half_width
        ax.errorbar(config.widths, mean, error, marker="o", capsize=3)
        ax.plot(config.widths, seeds_WS, "k.", ms=3, alpha=0.5)
        ax.set(xscale="log", xlabel="width", ylabel=label)
        if key != "asymmetry":
            ax.set(yscale="log")
    axes[0, 1].axhline(WITHIN, color="black", ls=":", label="1 %")
    report.legend(axes[0, 1])
    return figure


def one_layer_figure(cases):
    figure, axes = report.new_figure(1, 2, (3.6, 3.0))
    chain, left, right = cases["chain"], axes[0, 0], axes[0, 1]
    time = chain["time"][1:]
    curves = {
        "p(B|A)": (chain["forward"], chain["closed_form"]),
        "p(C|A)": (chain["composed"], (1 - chain["closed_form"]) / (ONE_LAYER_VOCAB - 1)),
        "p(A|B), untrained": (cases["one_way"]["reverse"], np.full(len(time) + 1, 0.05)),
    }
    for label, (flow_T, exact_T) in curves.items():
        (line,) = left.plot(time, flow_T[1:], "o", ms=3, label=label)
        left.plot(time, exact_T[1:], color=line.get_color())
        right.plot(time, np.abs(flow_T - exact_T)[1:], color=line.get_color(), label=label)
    left.set(xscale="log", yscale="log", xlabel=TIME, ylabel="probability")
    left.set_title("flow (points), closed form (lines)")
    report.legend(left)
    right.axhline(1e-4, color="black", ls=":")
    right.set(xscale="log", yscale="log", xlabel=TIME, ylabel="|flow − closed form|")
    return figure


def break_figure(cases):
    figure, axes = report.new_figure(1, 1, (7.2, 3.4))
    for case, c in cases.items():
        if "chain" not in case:
            style = "-" if CASES[case].startswith("break") else "--"
            axes[0, 0].plot(c["time"][1:], c["reverse"][1:], style, label=CASES[case])
    axes[0, 0].axhline(1 / ONE_LAYER_VOCAB, color="black", ls=":", label="1/M")
    axes[0, 0].set(xscale="log", yscale="log", xlabel=TIME, ylabel="p(A | B) of the asked pair")
    report.legend(axes[0, 0], loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def weight_figure(config, bilinear, cases):
    """Weight from each context (row) to each next token (column)."""
    shown = {
        f"bilinear, width {config.widths[0]}": bilinear[config.widths[0], config.seeds[0]],
        f"bilinear, width {config.widths[-1]}": bilinear[config.widths[-1], config.seeds[0]],
        "one layer, one way": cases["one_way"],
        "one layer, symmetric": cases["symmetric"],
    }
    figure, axes = report.new_panels(len(shown), (3.6, 2.8))
    limit = max(float(np.abs(c["weights"]).max()) for c in shown.values())
    for ax, (title, c) in zip(axes, shown.items(), strict=True):
        report.heat_map(ax, c["weights"], "logit (nats)", limit)
        ax.set(title=title, xlabel="next token", ylabel="context token")
    return figure
