"""Tables and figures of World A, from result lines and curves."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dirasym import intervals, readers, report, runs
from dirasym.analysis import excess
from dirasym.workdir import WorkDir

Lines = Sequence[Mapping[str, Any]]
COLORS = {"A->B": report.COLORS[0], "B->A": report.COLORS[1]}
NAMES = {"A->B": "forward", "B->A": "inverse"}
MARKERS = "osD^vP*X"
REGIMES = {"scratch": "from scratch", "finetune": "fine-tuned", "lora": "LoRA", "mlp": "MLP"}
UNITS = {
    "excess_loss": "paper's convention",
    "excess_nats_per_string": "nats a string, training",
    "eval_excess_nats_per_string": "nats a string, clean",
    "excess_bits_per_stored_bit": "missing bits a stored bit",
}
CURVE = "eval_excess_nats_per_string_curve"
# (regime, rank, K) -> (forward excess, inverse excess, gap) as published; None: not stated.
PAPER = {
    ("scratch", None, 1): (None, None, 0.0),
    ("scratch", None, 5): (None, 2.07, 1.16),
    ("scratch", None, 8): (None, None, 0.90),
    ("finetune", None, 5): (None, 1.47, None),
    ("lora", 256, 5): (None, 3.15, None),
    ("mlp", None, 1): (None, None, 0.0),
    ("mlp", None, 5): (None, None, 0.22),
    ("mlp", None, 8): (None, None, 0.1),
}


class Family(NamedTuple):
    """Runs that differ in K, direction and seed alone."""

    regime: str
    rank: int | None
    objective: str | None

    def __str__(self):
        rank = f"r={self.rank}" if self.rank else None
        objective = None if self.objective == "next_token" else self.objective
        return " ".join(filter(None, [self.regime, rank, objective]))

    @property
    def title(self) -> str:
        """How figures call it: `LoRA, rank 8`."""
        rank = f"rank {self.rank}" if self.rank else None
        objective = None if self.objective == "next_token" else self.objective
        parts = [REGIMES.get(self.regime, self.regime), rank, objective]
        return ", ".join(part.replace("_", " ") for part in parts if part)

    def lines(self, results: Lines, **values: Any) -> list[Mapping[str, Any]]:
        """Its result lines with these values, in the order of seeds."""
        mine = [line for line in report.select(results, **values) if family(line) == self]
        return sorted(mine, key=lambda line: line["seed"])

    def published(self, K: int, column: int) -> str:
        """The paper's number after a slash, if there is one."""
        value = PAPER.get((self.regime, self.rank, K), (None,) * 3)[column]
        return "" if value is None else f" / {value:.2f}"


def family(line: Mapping[str, Any]) -> Family:
    """Which runs a line belongs with."""
    return Family(line.get("run_type") or line["arch"], line.get("lora_r"), line.get("objective"))


def families(results: Lines) -> list[Family]:
    """All of a results file, in its order."""
    return list(dict.fromkeys(map(family, results)))


def gap(results: Lines, of: Family, K: int, unit: str) -> intervals.Interval | None:
    """Inverse − forward excess over the seeds that have both."""
    forward, inverse = (
        {line["seed"]: line[unit] for line in of.lines(results, K=K, direction=direction)}
        for direction in NAMES
    )
    seeds = sorted(forward.keys() & inverse.keys())
    if not seeds:
        return None
    return excess.directional_gap([forward[s] for s in seeds], [inverse[s] for s in seeds])


def read_mlp_results(path: str) -> Lines:
    """Lines of `world_a_mlp`; none for an empty path. Raises ValueError for a file of others."""
    lines = [line for _, line in readers.read_json_lines(path)] if path else []
    needed = {"arch", "K", "direction", "seed", *UNITS}
    if not all(isinstance(line, dict) and needed <= line.keys() for line in lines):
        raise ValueError(f"{path} holds other lines than those of world_a_mlp")
    return lines


def write(
    workdir: WorkDir, config, all_runs: Sequence[runs.Run], notes: str = "", others: Lines = ()
) -> None:
    """Writes report.md and figures, and prints the tables.

    Args:
      workdir: with its results.
      config: with Ks and seeds.
      all_runs: of the work directory.
      notes: what the reader must know.
      others: result lines of another experiment, drawn beside ours in the figure of gaps.
    """
    results = workdir.results()
    figures = {
        "excess": functools.partial(excess_figure, results, config.Ks),
        "gap": functools.partial(gap_figure, [*results, *others]),
        "bits": functools.partial(bits_figure, results),
    }
    if getattr(config, "track_gradients", False):
        curves = {run.name: workdir.stacked(run, config.seeds) for run in all_runs}
        figures["gradients"] = functools.partial(gradients_figure, curves)
    table, gaps = run_table(results, config.Ks), gap_table(results, config.Ks)
    text = (
        f"# World A\n\n{notes}\n\n"
        "Excess loss of each run (mean over seeds ± 95 % Student interval). *paper*: mean "
        "training loss per token − ln K, the published number after the slash. *training* and "
        "*clean*: nats per string above the exact floor of the factorisation, from the last "
        "epoch of training and from a clean pass after it. *bits*: to store the map, per "
        "pair; *missing*: clean excess in bits, per stored bit.\n\n"
        f"{table}\n\nDirectional gap: inverse − forward excess, paired by seed. The K = 1 rows "
        "store as many bits forward as a K > 1 inverse does (*equal bits, different floors*: "
        f"compare K = 1 A->B with K > 1 B->A above).\n\n{gaps}"
    )
    report.write(workdir.path, text, figures, printed=f"{table}\n\n{gaps}")


def run_table(results: Lines, Ks: Sequence[int]) -> str:
    """A row a family, K and direction."""
    rows = []
    for of in families(results):
        for K, direction in [(K, direction) for K in Ks for direction in NAMES]:
            lines = of.lines(results, K=K, direction=direction)
            if lines:
                one, paper = lines[0], of.published(K, list(NAMES).index(direction))
                values = ([line[unit] for line in lines] for unit in UNITS)
                means = [report.mean_interval(x, 3) for x in values]
                floor = f"{one['floor_nats_per_string']:.3f} {one['floor_kind']}"
                tokens, bits = one["tokens_per_target"], one["bits_to_store_per_pair"]
                seconds = np.mean([line["run_wall_time_sec"] for line in lines])
                row = [of, K, direction, len(lines), means[0] + paper, floor, f"{tokens:.2f}"]
                rows.append([*row, *means[1:3], f"{bits:.2f}", means[3], f"{seconds:.0f}"])
    header = "regime,K,direction,seeds,paper,floor,tokens,training,clean,bits,missing,seconds"
    return report.table(header.split(","), rows)


def gap_table(results: Lines, Ks: Sequence[int]) -> str:
    """A row a family and K, a column a unit."""
    rows = []
    for of in families(results):
        for K in Ks:
            gaps = [gap(results, of, K, unit) for unit in UNITS]
            if gaps[0] is not None:
                texts = [report.with_interval(*each, 3) for each in gaps]
                rows.append([of, K, texts[0] + of.published(K, 2), *texts[1:]])
    return report.table(["regime", "K", *UNITS.values()], rows)


def excess_figure(results: Lines, Ks: Sequence[int]):
    """Excess over training: forward and inverse, a row a family, a column a K."""
    rows = families(results)
    figure, axes = report.new_figure(len(rows), len(Ks), (3.6, 2.6))
    for ax in axes.flat[1:]:
        ax.sharey(axes[0, 0])
    for of, row in zip(rows, axes, strict=True):
        for K, ax in zip(Ks, row, strict=True):
            for direction, name in NAMES.items():
                lines = of.lines(results, K=K, direction=direction)
                if lines:
                    y_TS = np.array([line[CURVE] for line in lines]).T
                    epochs, color = lines[0]["eval_epochs"], COLORS[direction]
                    report.plot_seeds(ax, epochs, y_TS, name, color=color)
                    report.legend(ax)
            ax.axhline(0, color="black", lw=0.6)
            ax.set(title=f"{of.title}, K = {K}", xlabel="epoch", ylabel="excess (nats per string)")
    return figure


def gap_figure(results: Lines):
    """Gap against K in two units, all families on one axis."""
    figure, axes = report.new_figure(1, 2, (3.6, 3.0))
    for ax, unit in zip(axes[0], ("excess_loss", "eval_excess_nats_per_string"), strict=True):
        for of in families(results):
            Ks = sorted({line["K"] for line in of.lines(results)})
            points = [(K, x) for K in Ks if (x := gap(results, of, K, unit)) is not None]
            if points:
                report.plot_intervals(ax, *zip(*points, strict=True), of.title)
        ax.axhline(0, color="black", lw=0.6)
        ax.set(title=UNITS[unit], xlabel="K", xticks=sorted({line["K"] for line in results}))
        ax.set_ylabel("inverse − forward (nats)")
    if len(families(results)) > 1:
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=4, fontsize=report.SMALL)
    return figure


def _tasks(results: Lines) -> list[tuple[Family, int, str]]:
    """Family, K and direction of all maps."""
    return [
        (of, K, direction)
        for of in families(results)
        for K, direction in sorted({(x["K"], x["direction"]) for x in of.lines(results)})
    ]


def bits_figure(results: Lines):
    """Learning curves of all maps, labelled by the bits that they store; and when half is learned.

    Half: see `excess.half_learned`, of the clean excess. The second panel is drawn where the bits
    differ: of tasks that store as many, it has nothing to say.
    """
    tasks = _tasks(results)
    bits = [of.lines(results, K=K, direction=d)[0]["bits_to_store_per_pair"] for of, K, d in tasks]
    two = max(bits) > min(bits)
    has_families = len({of for of, *_ in tasks}) > 1
    has_tasks = len({tuple(task) for _, *task in tasks}) > 1 or not has_families
    figure, axes = report.new_figure(1 + two, 1, (7.2, 2.9))
    curve = axes[0, 0]
    for number, ((of, K, direction), stored) in enumerate(zip(tasks, bits, strict=True)):
        lines = of.lines(results, K=K, direction=direction)
        epochs = lines[0]["eval_epochs"]
        y_TS = np.array([line[CURVE] for line in lines]).T
        style = dict(color=report.color(number), marker=MARKERS[number % len(MARKERS)], ms=4)
        words = [of.title] * has_families + [f"K = {K} {NAMES[direction]}"] * has_tasks
        label = ", ".join(words + [f"{stored:.1f} bits"] * two)
        curve.plot(epochs, (y_TS / y_TS[0]).mean(axis=1), label=label, **style)
        if two:
            halves = [excess.half_learned(epochs, y_T) for y_T in y_TS.T]
            axes[1, 0].plot([stored] * len(halves), halves, ls="none", **style)
    curve.set(xlabel="epoch", ylabel="excess / excess at the start", ylim=(-0.05, None))
    report.label_ends(curve)
    if two:
        label = "epochs until half is learned"
        axes[1, 0].set(xlabel="bits to store, per pair", ylabel=label, xlim=(0, None))
        axes[1, 0].set_ylim(0, None)
    return figure


def pace_figure(results: Lines):
    """Clean excess of all maps on one axis from the first epoch on, labelled by their bits."""
    figure, ((ax,),) = report.new_figure(1, 1, (7.2, 2.9))
    for number, (of, K, direction) in enumerate(_tasks(results)):
        lines = of.lines(results, K=K, direction=direction)
        y_TS = np.array([line[CURVE] for line in lines]).T
        label = f"K = {K} {NAMES[direction]}, {lines[0]['bits_to_store_per_pair']:.1f} bits"
        style = dict(color=report.color(number), marker=MARKERS[number % len(MARKERS)], ms=4)
        ax.plot(lines[0]["eval_epochs"][1:], y_TS[1:].mean(axis=1), label=label, **style)
    ax.set(xlabel="epoch", ylabel="excess (nats per string)", ylim=(0, None))
    ax.xaxis.get_major_locator().set_params(integer=True)
    report.label_ends(ax)
    return figure


def gradients_figure(curves: Mapping[str, runs.History]):
    """Per block over training: both directions' cosine, gradient norms and relative updates."""
    figure, axes = report.new_figure(len(curves), 3, (2.4, 3.0))
    panels = {
        "cosine": ("cosine",),
        "gradient norm": ("norm_forward", "norm_inverse"),
        "update / weight": ("update_forward", "update_inverse"),
    }
    for row, (name, history) in zip(axes, curves.items(), strict=True):
        names = {key.partition("/")[2] for key in history if key.startswith("cosine/")}
        for ax, (title, kinds) in zip(row, panels.items(), strict=True):
            for kind, style in zip(kinds, ("-", "--"), strict=False):
                for number, block in enumerate(sorted(names - {"total"})):
                    label = block.replace("blocks_", "block ") if style == "-" else None
                    y_TS = history[f"{kind}/{block}"]
                    steps, color = history["eval_step"], report.color(number)
                    report.plot_seeds(ax, steps, y_TS, label, ls=style, color=color)
            ax.set(title=title, xlabel="step")
            if len(kinds) == 2:
                ax.set_yscale("log")
        row[0].set(ylabel=name.replace(",", "\n"), ylim=(-1.05, 1.05))
    handles = axes[0, 1].get_legend_handles_labels()
    title = "norms and updates: forward solid, inverse dashed"
    figure.legend(*handles, loc="outside upper center", ncols=3, fontsize="small", title=title)
    return figure
