"""From results and curves to tables and figures. Reads files and arrays; no JAX here."""

import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import files, intervals

_BAR = re.compile(r"(?<!\\)\|")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; a bar inside a cell is escaped.

    Examples:
      >>> print(table(["x", "|x|"], [[-1, 1]]))
      | x | \\|x\\| |
      | --- | --- |
      | -1 | 1 |
    """
    lines = [header, ["---"] * len(header), *rows]
    cells = ([_BAR.sub(r"\\|", str(cell)) for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def plan_table(lines: Sequence[Mapping[str, Any]], rate: float) -> str:
    """What `runs.sweep(dry_run=True)` says, with the least time that it takes at `rate` FLOP/s."""
    if not lines:
        return "nothing to train"
    header = [*lines[0], "hours, at least"]
    rows = []
    for line in lines:
        hours = line["flops"] / rate / 3600
        cells = {**line, "flops": f"{line['flops']:.3g}", "hours": f"{hours:.3g}"}
        rows.append(list(cells.values()))
    return f"{table(header, rows)}\nAt {rate / 1e9:.0f} GFLOP/s, the rate of matrix products here."


def with_interval(mean: float, half_width: float, digits: int = 2) -> str:
    """`43.1 ± 2.0`, or the mean alone where there is no interval."""
    text = f"{mean:.{digits}f}"
    return text if math.isnan(half_width) else f"{text} ± {half_width:.{digits}f}"


def mean_interval(values: Sequence[float], digits: int = 2) -> str:
    """The mean over seeds with Student's 95 % interval: `43.1 ± 2.0`."""
    return with_interval(*intervals.student_interval(values), digits)


def select(results: Iterable[Mapping[str, Any]], **values: Any) -> list[Mapping[str, Any]]:
    """Result lines with these values."""
    return [r for r in results if all(r.get(key) == value for key, value in values.items())]


def can_draw() -> bool:
    """Whether matplotlib is there, and can be imported."""
    try:
        _matplotlib()
    except ImportError:
        return False
    return True


def _matplotlib():
    """The library, whatever MPLBACKEND says: a notebook's may not exist here, and none is needed.

    Raises:
      ImportError: it is missing or broken; says which extra has it.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'dirasym[plots]'") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (4.0, 3.0)):
    """A figure and its axes [rows, columns], in the house style.

    It belongs to no window and no notebook, so any backend will do.

    Raises:
      ImportError: matplotlib is missing; says which extra has it.
    """
    matplotlib = _matplotlib()
    with matplotlib.rc_context(STYLE):
        size = (size[0] * columns, size[1] * rows)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure, directory: pathlib.Path, name: str) -> pathlib.Path:
    """Writes NAME.png and NAME.pdf and returns the path of the PNG."""
    directory.mkdir(parents=True, exist_ok=True)
    for legend in filter(None, (axes.get_legend() for axes in figure.axes)):
        legend.set_frame_on(False)
    with _matplotlib().rc_context(STYLE):
        figure.savefig(directory / f"{name}.pdf")
        figure.savefig(directory / f"{name}.png", dpi=160)
    return directory / f"{name}.png"


def write(
    directory: pathlib.Path, text: str, figures: Mapping[str, Callable[[], Any]], *, printed: str
) -> None:
    """Writes DIRECTORY/report.md, `text` and then the figures; prints `printed` and all paths.

    Args:
      directory: a work directory.
      text: Markdown.
      figures: from a name to what draws it. Without matplotlib none is drawn, which is said.
      printed: on standard output.
    """
    paths = []
    if can_draw():
        paths = [save_figure(draw(), directory / "figures", n) for n, draw in figures.items()]
    elif figures:
        text += "\n\nNo figures: they need matplotlib, `pip install 'dirasym[plots]'`."
    parts = [text, "\n".join(f"![{path.stem}](figures/{path.name})" for path in paths)]
    files.write_atomically(directory / "report.md", "\n\n".join(filter(None, parts)) + "\n")
    print(printed)
    for path in [*paths, directory / "report.md"]:
        print(path)


def plot_seeds(axes, x_T: np.ndarray, y_TS: np.ndarray, label: str, **style: Any) -> None:
    """The mean over seeds as a line, and every seed as a faint one."""
    (line,) = axes.plot(x_T, y_TS.mean(axis=1), label=label, **style)
    if y_TS.shape[1] > 1:
        axes.plot(x_T, y_TS, color=line.get_color(), ls=line.get_linestyle(), lw=0.6, alpha=0.5)


def plot_boxes(axes, x_T: np.ndarray, values_TX: np.ndarray, **style: Any) -> None:
    """A box a moment (quartiles, whiskers to 1.5 of their distance) over all that is finite."""
    width = 0.6 * np.min(np.diff(x_T)) if len(x_T) > 1 else 0.6
    finite = [row[np.isfinite(row)] for row in values_TX.reshape(len(values_TX), -1)]
    axes.boxplot(finite, positions=x_T, widths=width, showfliers=False, manage_ticks=False, **style)


def plot_band(axes, x_X: np.ndarray, mean_X: np.ndarray, low_X, high_X, **style: Any) -> None:
    """A line in its interval."""
    (line,) = axes.plot(x_X, mean_X, **style)
    axes.fill_between(x_X, low_X, high_X, color=line.get_color(), alpha=0.25, lw=0)


def over_training(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    lines: Mapping[str, tuple[str, str]],
    ylabel: str,
    *,
    log: bool = False,
):
    """A figure of curves against the step, a panel a run.

    Args:
      panels: from a title to curves [time, seed] and their "eval_step" [time].
      lines: from a curve's key to its label and color.
      ylabel: of all.
      log: whether the vertical axis is logarithmic.
    """
    figure, axes = new_figure(1, len(panels))
    for ax, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for key, (label, color) in lines.items():
            plot_seeds(ax, curves["eval_step"], curves[key], label, color=color)
        ax.set(title=title, xlabel="step", ylabel=ylabel, yscale="log" if log else "linear")
    axes[0, 0].legend()
    return figure


def gradients(panels: Mapping[str, Mapping[str, np.ndarray]]):
    """Figures 7 (left) and 14 of arXiv 2602.02133: two directions' gradients over training.

    Args:
      panels: from a title to "gradient_cosine_total" and "gradient_inner_total" [time, seed,
        example], and "eval_step" [time]. Both are drawn as boxes over examples and seeds, inner
        products as their mean too.
    """
    figure, axes = new_figure(3, len(panels))
    for (above, middle, below), (title, curves) in zip(axes.T, panels.items(), strict=True):
        step = curves["eval_step"]
        cosine, inner = (
            curves[f"gradient_{name}_total"].reshape(len(step), -1) for name in ("cosine", "inner")
        )
        plot_boxes(above, step, cosine)
        plot_boxes(middle, step, inner)
        below.plot(step, inner.mean(axis=1))
        for ax in (above, middle, below):
            ax.axhline(0, color="gray", lw=0.8)
        above.set(title=title, ylabel="cosine, forward and reverse")
        middle.set(ylabel="inner product")
        below.set(xlabel="step", ylabel="mean inner product")
    return figure


def attention(panels: Mapping[str, Mapping[str, np.ndarray]]):
    """Figure 6 of arXiv 2602.02133: a line a layer, mean over heads and seeds, a dot a head.

    Args:
      panels: from a title to "attention_mean" [seed, layer, head, total] and
        "attention_total" [seed, total]: the correlation of `attention.name_correlation`.
    """
    figure, axes = new_figure(1, len(panels))
    for ax, (title, curves) in zip(axes[0], panels.items(), strict=True):
        heads_SLNT, total = curves["attention_mean"], curves["attention_total"][0]
        for layer, heads_SNT in enumerate(heads_SLNT.swapaxes(0, 1)):
            color, mean_T = f"C{layer % 10}", heads_SNT.mean(axis=(0, 1))
            ax.plot(total, mean_T, "-", color=color, label=f"layer {layer}")
            ax.plot(total, heads_SNT.reshape(-1, len(total)).T, ".", color=color, ms=2)
        ax.axhline(0, color="gray", lw=0.8)
        ax.set(title=title, xlabel="Δ1 + Δ2", ylabel="Corr(S_fwd, S_rev)")
        if heads_SLNT.shape[1] <= 8:
            ax.legend()
    return figure


def plot_intervals(axes, x: Sequence[float], intervals: Sequence[Any], label: str) -> None:
    """Means as points joined by a line, with bars as wide as their intervals where there are any.

    `intervals` are `intervals.Interval`s.
    """
    means = [interval.mean for interval in intervals]
    half_widths = np.nan_to_num([interval.half_width for interval in intervals])
    axes.errorbar(x, means, half_widths, marker="o", ms=4, capsize=3, label=label)


def plot_bounds(
    axes,
    place: Sequence[float],
    values: Sequence[intervals.Bounds],
    label: str | None,
    *,
    across: bool = False,
) -> None:
    """Estimates as points with their intervals: upwards at x = place, or across at y = place."""
    middle = [value.estimate for value in values]
    reach = np.array([[v.estimate - v.low, v.high - v.estimate] for v in values]).reshape(-1, 2).T
    error, style = np.maximum(np.nan_to_num(reach), 0), dict(fmt="o", ms=4, capsize=3, label=label)
    if across:
        axes.errorbar(middle, place, xerr=error, **style)
    else:
        axes.errorbar(place, middle, yerr=error, **style)


def heat_map(axes, x_PP: np.ndarray) -> None:
    """A matrix in colors, white at 0, with its color bar."""
    limit = np.abs(x_PP).max()
    image = axes.imshow(x_PP, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes)


def plot_powers(axes, x_X: np.ndarray, y_TX: np.ndarray, step_T: np.ndarray, power: int) -> None:
    """Curves in logarithms, darker with every step, and a guide of that power through the first."""
    for row, (step, y_X) in enumerate(zip(step_T, y_TX, strict=True)):
        label = f"step {step}" if row in (0, len(y_TX) - 1) else None
        axes.loglog(x_X, y_X, ".-", color=str(0.8 - 0.8 * row / len(y_TX)), label=label)
    guide_X = y_TX[0, -1] * (x_X / x_X[-1]) ** power
    axes.loglog(x_X, guide_X, "r--", lw=1, label=f"slope {power}")
    axes.legend(fontsize="x-small")
