"""Tables and figures of World A, from results.jsonl."""

import dataclasses
import itertools

import numpy as np

from dirasym import metrics, report
from dirasym.analysis import excess
from experiments import harness

COLORS = {"A->B": "tab:blue", "B->A": "tab:orange"}
NAMES = {"A->B": "forward", "B->A": "inverse"}
UNITS = {
    "excess_loss": "paper's convention",
    "excess_nats_per_string": "nats a string, training",
    "eval_excess_nats_per_string": "nats a string, clean",
    "excess_bits_per_stored_bit": "missing bits a stored bit",
}
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


@dataclasses.dataclass(frozen=True)
class Family:
    """Runs that differ in K, direction and seed alone."""

    regime: str
    rank: int | None
    objective: str | None

    def __str__(self):
        parts = [self.regime, self.rank and f"r={self.rank}"]
        if self.objective != "next_token":
            parts.append(self.objective)
        return " ".join(str(part) for part in parts if part)

    def lines(self, results, **values) -> list[dict]:
        """Its result lines with these values, in the order of seeds."""
        mine = [line for line in report.select(results, **values) if family(line) == self]
        return sorted(mine, key=lambda line: line["seed"])


def family(line) -> Family:
    """Which runs a line belongs with."""
    return Family(line.get("run_type") or line["arch"], line.get("lora_r"), line.get("objective"))


def families(results) -> list[Family]:
    """All of a results file, in its order."""
    return list(dict.fromkeys(map(family, results)))


def gap(results, of: Family, K: int, unit: str) -> metrics.Interval | None:
    """Inverse − forward excess over the seeds that have both."""
    forward, inverse = (
        {line["seed"]: line[unit] for line in of.lines(results, K=K, direction=direction)}
        for direction in ("A->B", "B->A")
    )
    seeds = sorted(forward.keys() & inverse.keys())
    if not seeds:
        return None
    return excess.directional_gap([forward[s] for s in seeds], [inverse[s] for s in seeds])


def write(experiment: harness.Experiment, config, notes: str = "", others=()) -> None:
    """Writes report.md and figures, and prints the tables.

    Args:
      experiment: with its results.
      config: with Ks.
      notes: what the reader must know.
      others: result lines of another experiment, drawn beside ours in the figure of gaps.
    """
    results = experiment.results()
    figures = experiment.workdir / "figures"
    paths = [
        report.save_figure(_curves(results, config.Ks), figures, "excess"),
        report.save_figure(_gaps([*results, *others]), figures, "gap"),
        report.save_figure(_bits(results), figures, "bits"),
    ]
    tracked = _tracked_gradients(experiment)
    if tracked:
        paths.append(report.save_figure(_gradients(tracked), figures, "gradients"))
    runs, gaps = _run_table(results, config.Ks), _gap_table(results, config.Ks)
    text = (
        f"# World A\n\n{notes}\n\n"
        "Excess loss of each run (mean over seeds ± 95 % Student interval). *paper*: mean "
        "training loss per token − ln K, the published number after the slash. *training* and "
        "*clean*: nats per string above the exact floor of the factorisation, from the last "
        "epoch of training and from a clean pass after it. *bits*: to store the map, per "
        "pair; *missing*: clean excess in bits, per stored bit.\n\n"
        f"{runs}\n\nDirectional gap: inverse − forward excess, paired by seed. The K = 1 rows "
        "store as many bits forward as a K > 1 inverse does (*equal bits, different floors*: "
        f"compare K = 1 A->B with K > 1 B->A above).\n\n{gaps}"
    )
    experiment.write_report(text, paths, printed=f"{runs}\n\n{gaps}")


def _interval(lines, key: str, digits: int = 3) -> str:
    return report.with_interval(*metrics.student_interval([line[key] for line in lines]), digits)


def _published(of: Family, K: int, number: int) -> str:
    value = PAPER.get((of.regime, of.rank, K), (None,) * 3)[number]
    return "" if value is None else f" / {value:.2f}"


def _run_table(results, Ks) -> str:
    rows = []
    for of in families(results):
        for K in Ks:
            for number, direction in enumerate(NAMES):
                lines = of.lines(results, K=K, direction=direction)
                if not lines:
                    continue
                one = lines[0]
                rows.append(
                    [
                        of,
                        K,
                        direction,
                        len(lines),
                        _interval(lines, "excess_loss") + _published(of, K, number),
                        f"{one['floor_nats_per_string']:.3f} {one['floor_kind']}",
                        f"{one['tokens_per_target']:.2f}",
                        _interval(lines, "excess_nats_per_string"),
                        _interval(lines, "eval_excess_nats_per_string"),
                        f"{one['bits_to_store_per_pair']:.2f}",
                        _interval(lines, "excess_bits_per_stored_bit"),
                        f"{np.mean([line['run_wall_time_sec'] for line in lines]):.0f}",
                    ]
                )
    header = "regime,K,direction,seeds,paper,floor,tokens,training,clean,bits,missing,seconds"
    return report.table(header.split(","), rows)


def _gap_table(results, Ks) -> str:
    rows = []
    for of in families(results):
        for K in Ks:
            gaps = [gap(results, of, K, unit) for unit in UNITS]
            if gaps[0] is not None:
                texts = [report.with_interval(*each, 3) for each in gaps]
                rows.append([of, K, texts[0] + _published(of, K, 2), *texts[1:]])
    return report.table(["regime", "K", *UNITS.values()], rows)


def _curves(results, Ks):
    """Excess over training: forward and inverse, a row a family, a column a K."""
    rows = families(results)
    figure, axes = report.new_figure(len(rows), len(Ks), (3.6, 2.8))
    for row, of in enumerate(rows):
        for column, K in enumerate(Ks):
            ax = axes[row, column]
            for direction, name in NAMES.items():
                lines = of.lines(results, K=K, direction=direction)
                if lines:
                    y_TS = np.array([line["eval_excess_nats_per_string_curve"] for line in lines]).T
                    report.plot_seeds(
                        ax, lines[0]["eval_epochs"], y_TS, name, color=COLORS[direction]
                    )
            ax.axhline(0, color="black", lw=0.6)
            ax.set(title=f"{of}, K = {K}", xlabel="epoch", ylabel="excess (nats per string)")
            ax.legend(fontsize="small")
    return figure


def _gaps(results):
    """Gap against K in both units, all families on one axis."""
    figure, axes = report.new_figure(1, 2, (4.2, 3.2))
    for ax, unit in zip(axes[0], ("excess_loss", "eval_excess_nats_per_string"), strict=True):
        for of in families(results):
            Ks = sorted({line["K"] for line in results if family(line) == of})
            points = [(K, gap(results, of, K, unit)) for K in Ks]
            points = [(K, interval) for K, interval in points if interval is not None]
            if points:
                ax.errorbar(
                    [K for K, _ in points],
                    [interval.mean for _, interval in points],
                    np.nan_to_num([interval.half_width for _, interval in points]),
                    marker="o",
                    ms=4,
                    capsize=3,
                    label=str(of),
                )
        ax.axhline(0, color="black", lw=0.6)
        ax.set(title=UNITS[unit], xlabel="K", ylabel="inverse − forward (nats)")
        ax.legend(fontsize="small")
    return figure


def _bits(results):
    """Learning curves of all maps, labelled by the bits that they store; and when half is learned.

    Half: the first clean evaluation with at most half of the excess at the start, between
    evaluations by a straight line.
    """
    figure, axes = report.new_figure(1, 2, (4.6, 3.4))
    markers = itertools.cycle("osD^vP*X")
    for of in families(results):
        marker = next(markers)
        for K, direction in sorted({(x["K"], x["direction"]) for x in results if family(x) == of}):
            lines = of.lines(results, K=K, direction=direction)
            epochs, bits = lines[0]["eval_epochs"], lines[0]["bits_to_store_per_pair"]
            y_TS = np.array([line["eval_excess_nats_per_string_curve"] for line in lines]).T
            style = dict(color=COLORS[direction], alpha=1 if K == 1 else 0.5)
            label = f"{of}, K = {K} {NAMES[direction]}: {bits:.1f} bits"
            axes[0, 0].plot(
                epochs, (y_TS / y_TS[0]).mean(axis=1), marker, ls="-", ms=3, label=label, **style
            )
            for y_T in y_TS.T:
                if (y_T <= y_T[0] / 2).any():
                    last = int(np.argmax(y_T <= y_T[0] / 2))
                    half = np.interp(
                        -y_T[0] / 2, -y_T[last - 1 : last + 1], epochs[last - 1 : last + 1]
                    )
                    axes[0, 1].plot(bits, half, marker, **style)
    axes[0, 0].set(xlabel="epoch", ylabel="excess / excess at the start", ylim=(-0.05, None))
    axes[0, 0].legend(fontsize="xx-small")
    axes[0, 1].set(xlabel="bits to store, per pair", ylabel="epochs until half is learned")
    axes[0, 1].set(xlim=(0, None), ylim=(0, None))
    return figure


def _tracked_gradients(experiment: harness.Experiment) -> dict[str, dict[str, np.ndarray]]:
    """Curves of the runs that recorded gradients, by name."""
    tracked = {}
    for path in sorted((experiment.workdir / "curves").glob("*.npz")):
        with np.load(path) as file:
            if any(key.startswith("cosine/") for key in file):
                tracked[path.stem] = dict(file)
    return tracked


def _gradients(tracked):
    """Per block over training: both directions' cosine, gradient norms and relative updates."""
    figure, axes = report.new_figure(len(tracked), 3, (4.4, 3.0))
    panels = {
        "cosine": ("", ("cosine",)),
        "gradient norm": ("log", ("norm_forward", "norm_inverse")),
        "update / weight": ("log", ("update_forward", "update_inverse")),
    }
    for row, (name, curves) in enumerate(tracked.items()):
        names = {key.partition("/")[2] for key in curves if key.startswith("cosine/")}
        blocks = sorted(names - {"total"})
        for ax, (title, (scale, kinds)) in zip(axes[row], panels.items(), strict=True):
            for kind, style in zip(kinds, ("-", "--"), strict=False):
                for number, block in enumerate(blocks):
                    y_TS = curves[f"{kind}/{block}"]
                    label = block if style == "-" else None
                    report.plot_seeds(
                        ax, curves["eval_step"], y_TS, label, ls=style, color=f"C{number}"
                    )
            ax.set(title=title + (" (inverse dashed)" if scale else ""), xlabel="step")
            if scale:
                ax.set_yscale(scale)
            else:
                ax.set(ylabel=name.split("-seeds")[0], ylim=(-1.05, 1.05))
        axes[row, 1].legend(fontsize="xx-small")
    return figure
