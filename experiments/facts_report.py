"""Table 1 and the figures of `facts`, from its results and curves."""

import numpy as np

from dirasym import metrics, report
from experiments import harness

LABELS = {"mdm": "masked diffusion (MDM)", "arm": "autoregressive (ARM)"}
COLORS = {"forward": "tab:blue", "reverse": "tab:orange"}
ANSWER_COLUMNS = {  # of the table, and the measures in result lines
    "exact %": "percent",
    "begun %": "begun_percent",
    "copied %": "copied_percent",
    "choice %": "choice_percent",
    "P(true first token)": "p",
    "its median rank": "rank",
}


def write(experiment: harness.Experiment, config, paper: dict, paper_seeds: dict) -> None:
    """Writes figures and report.md, and prints the table and the figures' paths."""
    results = experiment.results()
    curves = {
        (data, model): experiment.load_curves(*(f"{data}-{model}-seed{s}" for s in config.seeds))
        for data in config.data
        for model in config.models
    }
    figures = experiment.workdir / "figures"
    paths = [
        report.save_figure(_over_training(curves, "percent", "accuracy (%)"), figures, "accuracy"),
        report.save_figure(
            _over_training(curves, "p", "P(true first token)"), figures, "probability"
        ),
        report.save_figure(
            _over_training(curves, "rank", "its median rank", log=True), figures, "rank"
        ),
    ]
    if any("gradient_cosine_total" in curve for curve in curves.values()):
        paths.append(report.save_figure(_gradients(curves), figures, "gradients"))
    if "mdm" in config.models and config.attention_examples:
        paths.append(report.save_figure(_attention(experiment, config), figures, "attention"))
    header = [
        "trained", "model", "direction", "ours %, last", "ours %, best", "each seed, last",
        "paper %",
    ]  # fmt: skip
    table = report.table(header, _table_rows(results, config, paper))
    seeds_table = report.table(
        ["trained", "seed", "model", "ours F / R, last", "ours F / R, best", "paper F / R"],
        _seed_rows(results, config, paper_seeds),
    )
    answers_table = report.table(
        ["trained", "model", "direction", *ANSWER_COLUMNS], _answer_rows(results, config)
    )
    text = (
        "# Facts in language models: Table 1 of arXiv 2602.02133\n\n"
        f"{table}\n\n"
        "Exact match in percent: mean over seeds ± 95 % Student interval. Best: over "
        "evaluations, as the paper logged; each direction for itself. Paper: LLaDA 8B beside the "
        "MDM, LLaMA-3.1 8B / Qwen-2.5 7B beside the ARM: other weights than ours, unless "
        "--model_id names them.\n\n"
        f"Tables 4 to 6, by seed (F forward, R reverse):\n\n{seeds_table}\n\n"
        "What questions are answered with, at the end, mean over seeds. Begun: outputs that begin "
        "with an answer. Copied: outputs that repeat words of the question. Choice: the true first "
        "token is more probable than those of all other answers in that direction, words of the "
        "question aside, of the questions whose true one begins one answer and no word of the "
        f"question.\n\n{answers_table}"
    )
    experiment.write_report(text, paths, printed=table)


def _table_rows(results, config, paper):
    for data in config.data:
        for model in config.models:
            lines = report.select(results, data=data, model=model)
            for side, direction in enumerate(("forward", "reverse")):
                last = [line[f"{direction}_percent"] for line in lines]
                best = [line[f"best_{direction}_percent"] for line in lines]
                llada, llama, qwen = (model[side] for model in paper[data])
                yield [
                    data.upper(),
                    model.upper(),
                    direction,
                    report.with_interval(*metrics.student_interval(last), 1),
                    report.with_interval(*metrics.student_interval(best), 1),
                    ", ".join(f"{value:.1f}" for value in last),
                    llada if model == "mdm" else f"{llama} / {qwen}",
                ]


def _seed_rows(results, config, paper_seeds):
    for data in config.data:
        for seed in config.seeds:
            for model in config.models:
                (line,) = report.select(results, data=data, model=model, seed=seed)
                published = paper_seeds[data].get(seed)
                theirs = ""
                if published is not None:
                    shown = published[:1] if model == "mdm" else published[1:]
                    theirs = "; ".join(f"{forward} / {reverse}" for forward, reverse in shown)
                ours = [
                    f"{line[f'{kind}forward_percent']:.1f} / {line[f'{kind}reverse_percent']:.1f}"
                    for kind in ("", "best_")
                ]
                yield [data.upper(), seed, model.upper(), *ours, theirs]


def _answer_rows(results, config):
    for data in config.data:
        for model in config.models:
            lines = report.select(results, data=data, model=model)
            for direction in ("forward", "reverse"):
                numbers = []
                for measure in ANSWER_COLUMNS.values():
                    values = [line[f"{direction}_{measure}"] for line in lines]
                    digits = 3 if measure == "p" else 1
                    numbers.append("" if None in values else f"{np.mean(values):.{digits}f}")
                yield [data.upper(), model.upper(), direction, *numbers]


def reverse_bars(lines_by_name: dict[str, list[dict]]):
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
            ax.bar(
                at,
                np.mean(values),
                width,
                color=color,
                alpha=0.6,
                label=label if place == 0 else None,
            )
            ax.plot([at] * len(values), values, "k.", ms=3)
    ax.margins(x=0.01)
    ax.set_xticks(range(len(lines_by_name)), list(lines_by_name), fontsize=7)
    ax.set(ylabel="reverse questions (%)")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _over_training(curves, kind, label, log=False):
    figure, axes = report.new_figure(1, len(curves))
    for ax, ((data, model), curve) in zip(axes[0], curves.items(), strict=True):
        for direction, color in COLORS.items():
            report.plot_seeds(
                ax, curve["eval_step"], curve[f"{direction}_{kind}"], direction, color=color
            )
        ax.set(title=f"{data.upper()}, {LABELS[model]}", xlabel="step", ylabel=label)
        if log:
            ax.set_yscale("log")
    axes[0, 0].legend()
    return figure


def _gradients(curves):
    """Figures 7 (left) and 14: cosines as boxes over queries and seeds, mean inner products."""
    figure, axes = report.new_figure(2, len(curves))
    for column, ((data, model), curve) in enumerate(curves.items()):
        step = curve["eval_step"]
        cosine = curve["gradient_cosine_total"].reshape(len(step), -1)
        width = 0.6 * (step[1] - step[0]) if len(step) > 1 else 1
        boxes = [row[np.isfinite(row)] for row in cosine]
        axes[0, column].boxplot(
            boxes, positions=step, widths=width, manage_ticks=False, showfliers=False
        )
        axes[0, column].axhline(0, color="gray", lw=0.8)
        axes[0, column].set(
            title=f"{data.upper()}, {LABELS[model]}", ylabel="cosine, forward and reverse"
        )
        inner = curve["gradient_inner_total"].reshape(len(step), -1)
        axes[1, column].plot(step, inner.mean(axis=1))
        axes[1, column].axhline(0, color="gray", lw=0.8)
        axes[1, column].set(xlabel="step", ylabel="mean inner product")
    return figure


def _attention(experiment, config):
    """Figure 6: a line a layer, mean over heads and seeds, a dot a head."""
    figure, axes = report.new_figure(1, len(config.data))
    for ax, data in zip(axes[0], config.data, strict=True):
        runs = []
        for seed in config.seeds:
            path = experiment.workdir / "curves" / f"{data}-mdm-seed{seed}-attention.npz"
            with np.load(path) as file:
                runs.append(file["mean"])
                total = file["total"]
        heads_SLNT = np.stack(runs)
        for layer in range(heads_SLNT.shape[1]):
            color = f"C{layer % 10}"
            ax.plot(
                total, heads_SLNT[:, layer].mean((0, 1)), "-", color=color, label=f"layer {layer}"
            )
            flat = heads_SLNT[:, layer].reshape(-1, len(total)).T
            ax.plot(total, flat, ".", color=color, ms=2)
        ax.axhline(0, color="gray", lw=0.8)
        ax.set(title=data.upper(), xlabel="Δ1 + Δ2", ylabel="Corr(S_fwd, S_rev)")
        if heads_SLNT.shape[1] <= 8:
            ax.legend()
    return figure
