"""The table and figures of `relations`, from its results and curves."""

import functools
from collections.abc import Sequence

import jax

from dirasym import intervals, report, runs
from dirasym.workdir import WorkDir

PANELS = {
    "a_to_b": "B after A →",
    "b_to_a": "A after B ←",
    "b_to_c": "C after B →",
    "a_to_c": "C after A ⇒",
    "given": "trained",
    "withheld": "withheld",
}
COLUMNS = {
    "training NLL": "train_nll",
    "validation NLL": "validation_nll",
    "its lowest": "lowest_validation_nll",
    "when training < 0.05": "validation_nll_when_learned",
    "uniform guess": "uniform_nll",
    "trained choice %": "choice_given",
    "withheld choice %": "choice_withheld",
}
SHOWN = 30  # rows and columns of a heat map


def write(workdir: WorkDir, config, all_runs: Sequence[runs.Run]) -> None:
    """Writes figures and report.md, and prints the table and the figures' paths."""
    results = workdir.results()
    curves, epochs, largest = {}, {}, config.sizes[-1]
    for size, run in zip(config.sizes, all_runs, strict=True):
        curves[size] = workdir.stacked(run, config.seeds, seeds_first=("cosines", "weights_"))
        epochs[size] = curves[size]["eval_step"] * config.num_epochs / run.num_steps
    figures = {
        "nll": functools.partial(nll_figure, config, curves, epochs, results),
        "cosines": functools.partial(cosine_figure, curves[largest]),
    }
    if any(key.startswith("weights_") for key in curves[largest]):
        figures["logits"] = functools.partial(logit_figure, curves[largest])
        figures["gaps"] = functools.partial(gap_figure, curves[largest], epochs[largest])
    if len(config.sizes) > 1:
        figures["sizes"] = functools.partial(size_figure, config, curves, epochs, results)
    lines_S = {size: report.select(results, num_train=size) for size in config.sizes}
    rows = [
        [config.task, size or "", len(of), *(interval(of, key) for key in COLUMNS.values())]
        for size, of in lines_S.items()
    ]
    table = report.table(["task", "training triples", "seeds", *COLUMNS], rows)
    text = (
        f"# Relations: {config.task} (arXiv 2405.04669)\n\n{table}\n\n"
        "Nats for the last word: mean over seeds ± 95 % Student interval, evaluated without "
        "dropout. The paper: training NLL goes to 0; validation NLL stays at or above a uniform "
        "guess among the candidates (reversal, chain), goes to 0 in context (icl), and falls as "
        "more triples train (chain_related). Choice: the right answer stands above those of all "
        "other prompts of its panel, such as B ←, withheld.\n\n"
        f"Network: {config.family}, {config.n_layers} layers × {config.embed_dim}; "
        f"AdamW {config.lr:g}, weight decay {config.weight_decay:g}, "
        f"dropout {config.dropout:g}, {config.num_epochs} epochs on {jax.default_backend()}."
    )
    report.write(workdir.path, text, figures, printed=table)


def interval(lines, key: str) -> str:
    """Mean and interval over the runs that have the value; `none` where no run has it."""
    values = [line[key] for line in lines if line.get(key) is not None]
    return report.mean_interval(values, 3) if values else "none"


def nll_figure(config, curves, epochs, results):
    """NLL in training and validation over epochs, a panel a size."""
    figure, axes = report.new_panels(len(config.sizes))
    for ax, size in zip(axes, config.sizes, strict=True):
        for part, label in {"train": "trained", "validation": "withheld"}.items():
            report.plot_seeds(ax, epochs[size], curves[size][f"{part}_nll"], label)
        uniform = report.select(results, num_train=size)[0]["uniform_nll"]
        ax.axhline(uniform, color="black", ls=":", label="uniform guess")
        title = config.task if size is None else f"{config.task}, {size} triples"
        ax.set(title=title, xlabel="epoch", ylabel="NLL of the last word (nats)")
        ax.set_ylim(bottom=-0.1)
        report.legend(ax)
    return figure


def logit_figure(curves):
    """Logits of every answer (column) after every prompt (row), first seed."""
    panels = [name for name in PANELS if f"weights_{name}" in curves]
    figure, axes = report.new_panels(len(panels), (3.6, 3.0))
    shown = [curves[f"weights_{name}"][0][:SHOWN, :SHOWN] for name in panels]
    shown = [logits_PP - logits_PP.mean(axis=1, keepdims=True) for logits_PP in shown]
    limit = max(abs(logits_PP).max() for logits_PP in shown)
    for ax, name, logits_PP in zip(axes, panels, shown, strict=True):
        report.heat_map(ax, logits_PP, "logit − its row's mean (nats)", limit)
        ax.set(title=PANELS[name], xlabel="answer", ylabel="prompt")
    return figure


def cosine_figure(curves):
    """Cosines of embeddings, mean over seeds."""
    figure, axes = report.new_figure(1, 1, (4.4, 3.8))
    report.heat_map(axes[0, 0], curves["cosines"].mean(axis=0), "cosine of embeddings", 1)
    axes[0, 0].set(title="first tokens, then last tokens", xlabel="token", ylabel="token")
    return figure


def gap_figure(curves, epochs):
    """Effective weights over training: the answer's lead, and how often it is the first."""
    figure, (axes,) = report.new_figure(1, 2, (4.2, 3.2))
    labels = {"choice": "choice (%)", "gap": "answer's logit above the others (nats)"}
    for ax, (key, ylabel) in zip(axes, labels.items(), strict=True):
        for name in filter(lambda name: f"{key}_{name}" in curves, PANELS):
            report.plot_seeds(ax, epochs, curves[f"{key}_{name}"], PANELS[name])
        ax.set(xlabel="epoch", ylabel=ylabel)
    report.label_ends(axes[1])
    return figure


def size_figure(config, curves, epochs, results):
    """Withheld NLL against the number of triples, after one, two, four, .. evaluations."""
    figure, axes = report.new_figure(1, 1, (6.0, 3.2))
    ax, epoch_T = axes[0, 0], epochs[config.sizes[0]]
    last = len(epoch_T) - 1
    for row in sorted({*(2**n for n in range(last.bit_length())), last}):
        found = [intervals.student_interval(curves[n]["validation_nll"][row]) for n in config.sizes]
        report.plot_intervals(ax, config.sizes, found, f"epoch {epoch_T[row]:g}")
    guesses = [report.select(results, num_train=n)[0]["uniform_nll"] for n in config.sizes]
    ax.plot(config.sizes, guesses, color="black", ls=":", label="uniform guess")
    ax.set(xlabel="triples of A ⇒ C", ylabel="withheld NLL (nats)", xscale="log", yscale="log")
    ax.set_xticks(config.sizes, config.sizes)
    ax.minorticks_off()
    report.legend(ax, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
