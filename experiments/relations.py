"""Does a network that learned "A → B" answer "B ←", and one that learned A → B → C answer "A ⇒"?

Question  Figures of §5 and App. C of arXiv 2405.04669: negative log likelihood (NLL) of the last
          word in training and validation, weights as heat maps, cosines of embeddings.
Command   python -m experiments.relations --task=reversal|chain|chain_related|icl
          --preset=quick|paper
Cost      quick: GPT-2 of 2 layers × 128, 3 seeds, 400 epochs at 1e-3: 2 to 5 minutes on 2 CPU
          cores. paper: 24 layers × 768, 10 seeds, 3000 epochs: for an accelerator.
Expected  Training NLL → 0. Validation NLL: reversal and chain at or above a uniform guess among
          the candidates (ln 200 = 5.30); icl near 0; chain_related falls as more triples train.
"""

import math

import jax
import numpy as np

from dirasym import metrics, report
from experiments import harness, relations_task
from experiments.relations_task import Task

PRESETS = {
    "smoke": dict(
        seeds=[0], vocab_size=60, alphabet_size=40, num_train=[10, 20], num_val=10,
        num_x_tokens=10, num_y_tokens=4, n_layers=1, n_heads=2, embed_dim=16, dropout=0.0,
        num_epochs=10, eval_every=5, lr=0.001,
    ),
    "quick": dict(
        seeds=[0, 1, 2], num_train=[2, 5, 20, 50], n_layers=2, n_heads=4, embed_dim=128,
        dropout=0.0, num_epochs=400, lr=0.001,
    ),
    "paper": dict(num_train=[10, 20, 50, 100, 200, 500]),
}  # fmt: skip
LEARNED = 0.05  # nats a word: a training NLL below it counts as learned
PANELS = {
    "a_to_b": "B after A →",
    "b_to_a": "A after B ←",
    "b_to_c": "C after B →",
    "a_to_c": "C after A ⇒",
    "given": "trained",
    "withheld": "withheld",
}


def run(experiment: harness.Experiment, config: relations_task.Config) -> None:
    """Trains what is missing, then reports."""
    devices = experiment.mesh.size if experiment.mesh is not None else 1
    for size in config.sizes:
        for seeds in harness.seed_groups(config.seeds):
            if not experiment.is_done(num_train=size, seed=seeds[-1]):
                train_and_record(experiment, Task(config, size, len(seeds) > 1, devices), seeds)
    write_report(experiment, config)


def run_name(size: int | None, seeds: list[int]) -> str:
    return f"{'' if size is None else f'train{size}-'}seeds{'-'.join(map(str, seeds))}"


def train_and_record(experiment: harness.Experiment, task: Task, seeds: list[int]) -> None:
    """One group of seeds, from its checkpoint to its result lines."""
    name = run_name(task.num_train, seeds)
    state, history = task.train(experiment, name, seeds)
    final = harness.over_seeds(
        lambda state: {"weights": task.weights(state), "cosines": task.cosines(state)},
        task.together,
    )(state)
    heat_maps = {f"weights_{panel}": x for panel, x in final["weights"].items()}
    experiment.save_curves(name, {**history, **heat_maps, "cosines": final["cosines"]})
    lines = [result_line(task, history, place, seed) for place, seed in enumerate(seeds)]
    experiment.record(lines, keys=("num_train", "seed"))


def result_line(task: Task, history, place: int, seed: int) -> dict:
    """What one seed came to. NLL in nats a word, without dropout."""
    train_T, validation_T = (history[f"{part}_nll"][:, place] for part in ("train", "validation"))
    learned_T = train_T < LEARNED
    epoch_T = history["eval_step"] // task.steps_per_epoch
    measured = [key for key in history if key.startswith(("gap_", "asymmetry", "intransitivity"))]
    return {
        "task": task.config.task,
        "family": task.config.family,
        "num_train": task.num_train,
        "seed": seed,
        "train_nll": float(train_T[-1]),
        "validation_nll": float(validation_T[-1]),
        "lowest_validation_nll": float(validation_T.min()),
        "uniform_nll": math.log(task.data.num_candidates),
        "epochs_to_learn": int(epoch_T[learned_T.argmax()]) if learned_T.any() else None,
        "validation_nll_when_learned": (
            float(validation_T[learned_T.argmax()]) if learned_T.any() else None
        ),
        **{key: float(history[key][-1, place]) for key in measured},
        "num_sentences": len(task.data.train_EL),
        "num_validation_sentences": len(task.data.validation_EL),
        "run_wall_time_sec": float(history["wall_time_sec"]),
    }


def write_report(experiment: harness.Experiment, config: relations_task.Config) -> None:
    """Writes figures and report.md, and prints the table and the figures' paths."""
    results = experiment.results()
    curves = {
        size: experiment.load_curves(f"{run_name(size, [])}*", seeds_first=("cosines", "weights_"))
        for size in config.sizes
    }
    epochs = {size: _epochs(Task(config, size), curves[size]) for size in config.sizes}
    largest = config.sizes[-1]
    drawn = {
        "nll": _nll_figure(config, curves, epochs, results),
        "cosines": _cosine_figure(curves[largest]),
    }
    if any(key.startswith("weights_") for key in curves[largest]):
        drawn["logits"] = _logit_figure(curves[largest])
        drawn["gaps"] = _gap_figure(curves[largest], epochs[largest])
    if len(config.sizes) > 1:
        drawn["sizes"] = _size_figure(config, curves, epochs, results)
    figures = experiment.workdir / "figures"
    paths = [report.save_figure(figure, figures, name) for name, figure in drawn.items()]

    columns = {
        "training NLL": "train_nll",
        "validation NLL": "validation_nll",
        "its lowest": "lowest_validation_nll",
        "when training < 0.05": "validation_nll_when_learned",
        "uniform guess": "uniform_nll",
    }
    rows = []
    for size in config.sizes:
        lines = report.select(results, num_train=size)
        rows.append(
            [config.task, size or "", len(lines), *(interval(lines, k) for k in columns.values())]
        )
    table = report.table(["task", "training triples", "seeds", *columns], rows)
    text = (
        f"# Relations: {config.task} (arXiv 2405.04669)\n\n{table}\n\n"
        "Nats for the last word: mean over seeds ± 95 % Student interval, evaluated without "
        "dropout. The paper: training NLL goes to 0; validation NLL stays at or above a uniform "
        "guess among the candidates (reversal, chain), goes to 0 in context (icl), and falls as "
        f"more triples train (chain_related).\n\nNetwork: {config.family}, {config.n_layers} "
        f"layers × {config.embed_dim}; AdamW {config.lr:g}, weight decay {config.weight_decay:g}, "
        f"dropout {config.dropout:g}, {config.num_epochs} epochs on {jax.default_backend()}."
    )
    experiment.write_report(text, paths, printed=table)


def interval(lines, key: str) -> str:
    """Mean and interval over the runs that have the value; `none` where no run has it."""
    values = [line[key] for line in lines if line.get(key) is not None]
    return report.with_interval(*metrics.student_interval(values), 3) if values else "none"


def _epochs(task: Task, curves) -> np.ndarray:
    return curves["eval_step"] / task.steps_per_epoch


def _nll_figure(config, curves, epochs, results):
    figure, axes = report.new_figure(1, len(config.sizes), (4.2, 3.2))
    for ax, size in zip(axes[0], config.sizes, strict=True):
        for part, color in (("train", "tab:blue"), ("validation", "tab:red")):
            report.plot_seeds(ax, epochs[size], curves[size][f"{part}_nll"], part, color=color)
        uniform = report.select(results, num_train=size)[0]["uniform_nll"]
        ax.axhline(uniform, color="black", ls=":", label="uniform guess")
        title = config.task if size is None else f"{config.task}, {size} triples"
        ax.set(title=title, xlabel="epoch", ylabel="NLL of the last word (nats)")
        ax.set_ylim(bottom=-0.1)
        ax.legend(fontsize="small")
    return figure


def _logit_figure(curves):
    """Logits of every answer (column) after every prompt (row), first seed."""
    panels = [name for name in PANELS if f"weights_{name}" in curves]
    figure, axes = report.new_figure(1, len(panels), (3.4, 3.0))
    for ax, name in zip(axes[0], panels, strict=True):
        logits_PP = curves[f"weights_{name}"][0][:30, :30]
        _heat_map(figure, ax, logits_PP - logits_PP.mean(axis=1, keepdims=True))
        ax.set(title=PANELS[name], xlabel="answer", ylabel="prompt")
    return figure


def _cosine_figure(curves):
    figure, axes = report.new_figure(1, 1, (4.4, 3.8))
    _heat_map(figure, axes[0, 0], curves["cosines"].mean(axis=0))
    axes[0, 0].set(title="cosines of embeddings\n(first tokens, then last tokens)", xlabel="token")
    return figure


def _heat_map(figure, ax, x_PP):
    limit = np.abs(x_PP).max()
    image = ax.imshow(x_PP, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.grid(False)
    figure.colorbar(image, ax=ax)


def _gap_figure(curves, epochs):
    """Effective weights over training."""
    figure, axes = report.new_figure(1, 1, (4.6, 3.2))
    for name, label in PANELS.items():
        if f"gap_{name}" in curves:
            report.plot_seeds(axes[0, 0], epochs, curves[f"gap_{name}"], label)
    axes[0, 0].set(xlabel="epoch", ylabel="answer above the others (nats)")
    axes[0, 0].legend(fontsize="small")
    return figure


def _size_figure(config, curves, epochs, results):
    """Withheld NLL against the number of triples, after one, two, four, .. evaluations."""
    figure, axes = report.new_figure(1, 1, (4.2, 3.2))
    ax = axes[0, 0]
    last = len(epochs[config.sizes[0]]) - 1
    for row in sorted({*(2**n for n in range(last.bit_length())), last}):
        mean, half_width = np.array(
            [metrics.student_interval(curves[size]["validation_nll"][row]) for size in config.sizes]
        ).T
        label = f"epoch {epochs[config.sizes[0]][row]:g}"
        ax.errorbar(config.sizes, mean, np.nan_to_num(half_width), marker="o", label=label)
    ax.axhline(results[0]["uniform_nll"], color="black", ls=":", label="uniform guess")
    ax.set(xlabel="triples that train on A ⇒ C", ylabel="withheld NLL (nats)", yscale="log")
    ax.set_xscale("log")
    ax.set_xticks(config.sizes, config.sizes)
    ax.minorticks_off()
    ax.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


if __name__ == "__main__":
    harness.main("relations", relations_task.Config, PRESETS, run)
