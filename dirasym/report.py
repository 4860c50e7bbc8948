"""From results and curves to tables and figures. Reads files and arrays; no JAX here."""

import math
import os
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dirasym import files, intervals

_INSTALL = "in the clone: pip install -e '.[plots]'"  # `usage.install`; this module imports little

_BAR = re.compile(r"(?<!\\)\|")
# Okabe and Ito's colors, which are told apart with any color vision; red before orange.
COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"
FORWARD, REVERSE = COLORS[:2]
WIDTH = 7.2  # inches at most: on a page of 600 pixels, letters are ten high
SMALL = 8.5  # points, of legends and labels inside a panel
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 10,
    "grid.alpha": 0.25,
}


def color(number: int) -> str:
    """The color of a series by its place; they begin anew after seven."""
    return COLORS[number % len(COLORS)]


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""A Markdown table; a bar inside a cell is escaped.

    Examples:
      >>> print(table(["x", "|x|"], [[-1, 1]]))
      | x | \|x\| |
      | --- | --- |
      | -1 | 1 |
    """
    lines = [header, ["---"] * len(header), *rows]
    cells = ([_BAR.sub(r"\\|", str(cell)) for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def plan_table(lines: Sequence[Mapping[str, Any]], rate: float) -> str:
    """What `runs.sweep(dry_run=True)` says, with the least time that it takes at `rate` FLOP/s.

    A line may have "GB" too, of `plans.gigabytes`.
    """
    if not lines:
        return "nothing to train"
    header = [*lines[0], "hours, at least"]
    rows = []
    for line in lines:
        hours = line["flops"] / rate / 3600
        shown = {key: f"{line[key]:.3g}" for key in ("flops", "GB") if key in line}
        cells = {**line, **shown, "hours": f"{hours:.3g}"}
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
        import matplotlib.cm
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.transforms
    except ImportError as error:
        raise ImportError(f"figures need matplotlib: {_INSTALL}") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (3.6, 2.8)):
    """A figure and its axes [rows, columns], in the house style.

    It belongs to no window and no notebook, so any backend will do.

    Args:
      rows, columns: panels.
      size: of a panel in inches; all together are at most `WIDTH` wide.

    Raises:
      ImportError: matplotlib is missing; says which extra has it.
    """
    matplotlib = _matplotlib()
    style = STYLE | {"axes.prop_cycle": matplotlib.cycler(color=COLORS)}
    with matplotlib.rc_context(style):
        size = (min(size[0] * columns, WIDTH), size[1] * rows)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def new_panels(count: int, size: tuple[float, float] = (3.6, 2.8), columns: int = 2):
    """A figure and a list of so many axes, in rows of at most `columns`."""
    columns = min(columns, count)
    figure, axes = new_figure(-(-count // columns), columns, size)
    for spare in axes.flat[count:]:
        spare.remove()
    return figure, list(axes.flat[:count])


def legend(axes, **style: Any) -> None:
    """A legend without a frame, in small letters."""
    axes.legend(**dict(fontsize=SMALL, frameon=False) | style)


def note(axes, x: float, y: float, text: str, **style: Any) -> None:
    """Small letters at a point of the data."""
    axes.text(x, y, text, **dict(fontsize=SMALL) | style)


def label_ends(axes, gap: float = 0.09) -> None:
    """Writes the label of each line at its right end, in its color: no legend is needed.

    Args:
      axes: with its lines and limits as they shall be.
      gap: the least distance of two labels, as a share of the height.
    """
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    axes.get_ylim()  # scales the axes to their data, if nothing has
    to_share = axes.transData + axes.transAxes.inverted()
    ends = [to_share.transform(line.get_xydata()[-1])[1] for line in lines]
    order = np.argsort(ends)
    heights, below, above = [], -math.inf, 1.0
    for place in order:
        heights.append(below := max(float(ends[place]), below + gap))
    for rank in reversed(range(len(heights))):  # none above the panel
        heights[rank] = min(heights[rank], above)
        above = heights[rank] - gap
    for place, height in zip(order, heights, strict=True):
        style = dict(color=lines[place].get_color(), fontsize=SMALL, va="center", clip_on=False)
        axes.text(1.02, height, lines[place].get_label(), transform=axes.transAxes, **style)


def beside(axes, shift: float):
    """A transform that draws data so much further right: marks at one place then stand apart."""
    return _matplotlib().transforms.Affine2D().translate(shift, 0) + axes.transData


def save_figure(figure, directory: pathlib.Path, name: str) -> pathlib.Path:
    """Writes NAME.png and NAME.pdf and returns the path of the PNG."""
    directory.mkdir(parents=True, exist_ok=True)
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
      text: Markdown; lines of prose are wrapped at 100 columns.
      figures: from a name to what draws it. Without matplotlib none is drawn, which is said.
      printed: on standard output.
    """
    paths = []
    if can_draw():
        paths = [save_figure(draw(), directory / "figures", n) for n, draw in figures.items()]
    elif figures:
        text += f"\n\nNo figures: they need matplotlib; {_INSTALL}"
    parts = [wrapped(text), "\n".join(f"![{path.stem}](figures/{path.name})" for path in paths)]
    files.write_atomically(directory / "report.md", "\n\n".join(filter(None, parts)) + "\n")
    print(printed)
    for path in [*paths, directory / "report.md"]:
        print(path)


def wrapped(text: str) -> str:
    """Markdown with lines of at most 100 columns, headings and tables apart.

    Examples:
      >>> [len(line) for line in wrapped(30 * "words " + "end").splitlines()]
      [95, 87]
    """
    how: dict[str, Any] = dict(break_long_words=False, break_on_hyphens=False)
    return "\n".join(
        line if line.startswith(("|", "#")) else textwrap.fill(line, 100, **how)
        for line in text.split("\n")
    )


def plot_seeds(axes, x_T: np.ndarray, y_TS: np.ndarray, label: str | None, **style: Any) -> None:
    """The mean over seeds as a line, and every seed as a faint one."""
    (line,) = axes.plot(x_T, y_TS.mean(axis=1), label=label, **style)
    if y_TS.shape[1] > 1:
        axes.plot(x_T, y_TS, color=line.get_color(), ls=line.get_linestyle(), lw=0.6, alpha=0.5)


def plot_boxes(axes, x_T: np.ndarray, values_TX: np.ndarray, **style: Any) -> None:
    """A box a moment (quartiles, whiskers to 1.5 of their distance) over all that is finite."""
    width = 0.6 * np.min(np.diff(x_T)) if len(x_T) > 1 else 0.6
    finite = [row[np.isfinite(row)] for row in values_TX.reshape(len(values_TX), -1)]
    style = dict(showfliers=False, manage_ticks=False, medianprops={"color": COLORS[1]}) | style
    axes.boxplot(finite, positions=x_T, widths=width, **style)


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
    figure, axes = new_panels(len(panels))
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for key, (label, color) in lines.items():
            plot_seeds(ax, curves["eval_step"], curves[key], label, color=color)
        ax.set(title=title, xlabel="step", ylabel=ylabel, yscale="log" if log else "linear")
    legend(axes[0])
    return figure


def gradients(panels: Mapping[str, Mapping[str, np.ndarray]]):
    """Figures 7 (left) and 14 of arXiv 2602.02133: two directions' gradients over training.

    Args:
      panels: from a title to "gradient_cosine_total" and "gradient_inner_total" [time, seed,
        example], and "eval_step" [time]. Both are drawn as boxes over examples and seeds, inner
        products as their mean too, of all and of each seed. Cosines have one scale, inner products
        each panel's own.
    """
    figure, axes = new_figure(3, len(panels), (3.6, 2.2))
    first, *others = axes[0]
    for ax in others:
        ax.sharey(first)
    for (above, middle, below), (title, curves) in zip(axes.T, panels.items(), strict=True):
        step = curves["eval_step"]
        cosine, inner = (
            curves[f"gradient_{name}_total"].reshape(len(step), -1) for name in ("cosine", "inner")
        )
        plot_boxes(above, step, cosine)
        plot_boxes(middle, step, inner)
        plot_seeds(below, step, curves["gradient_inner_total"].mean(axis=2), None)
        for ax in (above, middle, below):
            ax.axhline(0, color="gray", lw=0.8)
        above.set(title=title, ylabel="cosine")
        middle.set(ylabel="inner product")
        below.set(xlabel="step", ylabel="mean inner product")
    return figure


def paired(panels: Mapping[str, Mapping[str, np.ndarray]], colors: Mapping[str, str]):
    """Figure 7 (right) of arXiv 2602.02133: P(true first token) of the paired queries.

    Args:
      panels: from a title to "paired_forward_p" and "paired_reverse_p" [time, seed, example], and
        "eval_step" [time]. A line is the mean over examples and seeds, a faint one a seed's.
      colors: of the directions.
    """
    lines = {f"paired_{direction}_p": (direction, color) for direction, color in colors.items()}
    means = {
        title: {key: curves[key].mean(axis=-1) for key in lines}
        | {"eval_step": curves["eval_step"]}
        for title, curves in panels.items()
    }
    return over_training(means, lines, "P(true first token)")


def by_question(panels: Mapping[str, Mapping[str, np.ndarray]]):
    """Figure 9 of arXiv 2602.02133: each reverse question at the end, from the best to the worst.

    Args:
      panels: from a label to "reverse_p_E" and "reverse_rank_E" [time, seed, question], drawn left
        and right. A line is a seed: each sorts by itself.
    """
    figure, axes = new_figure(1, 2, (3.6, 2.8))
    for number, (label, curves) in enumerate(panels.items()):
        for ax, measure, sign in zip(axes[0], ("p", "rank"), (-1, 1), strict=True):
            values_SE = sign * np.sort(sign * curves[f"reverse_{measure}_E"][-1], axis=1)
            place_E = 1 + np.arange(values_SE.shape[1])
            for seed, values_E in enumerate(values_SE):
                style = dict(color=COLORS[number], lw=1, label=label if seed == 0 else None)
                ax.plot(place_E, values_E, **style)
    for ax, ylabel in zip(axes[0], ("P(true first token)", "its rank"), strict=True):
        ax.set(xlabel="reverse question, sorted", ylabel=ylabel)
    axes[0, 1].set(yscale="log")
    legend(axes[0, 0])
    return figure


def attention(panels: Mapping[str, Mapping[str, np.ndarray]]):
    """Figure 6 of arXiv 2602.02133: a line a layer, mean over heads and seeds.

    Layers run from dark to light. Of at most eight, each head is a dot.

    Args:
      panels: from a title to "attention_mean" [seed, layer, head, total] and
        "attention_total" [seed, total]: the correlation of `attention.name_correlation`.
    """
    figure, axes = new_panels(len(panels))
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        heads_SLNT, total = curves["attention_mean"], curves["attention_total"][0]
        layers = heads_SLNT.shape[1]
        shades = _matplotlib().colormaps["viridis"](np.linspace(0, 0.9, layers))
        for layer, heads_SNT in enumerate(heads_SLNT.swapaxes(0, 1)):
            mean_T = heads_SNT.mean(axis=(0, 1))
            ax.plot(total, mean_T, "-", color=shades[layer], label=f"layer {layer}")
            if layers <= 8:
                ax.plot(total, heads_SNT.reshape(-1, len(total)).T, ".", color=shades[layer], ms=2)
        ax.axhline(0, color="gray", lw=0.8)
        ax.set(title=title, xlabel="Δ₁ + Δ₂ (tokens)", ylabel="Corr(S_fwd, S_rev)")
        if layers <= 8:
            label_ends(ax)
        else:
            scale = _matplotlib().colors.ListedColormap(shades)
            norm = _matplotlib().colors.Normalize(0, layers - 1)
            mappable = _matplotlib().cm.ScalarMappable(norm, scale)
            figure.colorbar(mappable, ax=ax, label="layer, 0 the first")
    return figure


def plot_intervals(
    axes, x: Sequence[float], intervals: Sequence[Any], label: str, **style: Any
) -> None:
    """Means as points joined by a line, with bars as wide as their intervals where there are any.

    `intervals` are `intervals.Interval`s.
    """
    means = [interval.mean for interval in intervals]
    half_widths = np.nan_to_num([interval.half_width for interval in intervals])
    style = dict(marker="o", ms=4, capsize=3, label=label) | style
    axes.errorbar(x, means, half_widths, **style)


def plot_bounds(
    axes,
    place: Sequence[float],
    values: Sequence[intervals.Bounds],
    label: str | None,
    *,
    across: bool = False,
    **style: Any,
) -> None:
    """Estimates as points with their intervals: upwards at x = place, or across at y = place."""
    middle = [value.estimate for value in values]
    reach = np.array([[v.estimate - v.low, v.high - v.estimate] for v in values]).reshape(-1, 2).T
    error = np.maximum(np.nan_to_num(reach), 0)
    style = dict(fmt="o", ms=4, capsize=3, label=label) | style
    if across:
        axes.errorbar(middle, place, xerr=error, **style)
    else:
        axes.errorbar(place, middle, yerr=error, **style)


def heat_map(axes, x_PP: np.ndarray, label: str, limit: float | None = None) -> None:
    """A matrix in colors, white at 0, with its color bar.

    Args:
      axes: one panel.
      x_PP: the matrix.
      label: of the color bar, with the unit.
      limit: the absolute value at the bar's ends, the same for panels that are compared; by
        default the largest.
    """
    limit = float(np.abs(x_PP).max()) if limit is None else limit
    image = axes.imshow(x_PP, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes, label=label)


def plot_powers(axes, x_X: np.ndarray, y_TX: np.ndarray, step_T: np.ndarray, power: int) -> None:
    """Curves in logarithms, darker with every step, and a guide of that power through the first."""
    for row, (step, y_X) in enumerate(zip(step_T, y_TX, strict=True)):
        label = f"step {step}" if row in (0, len(y_TX) - 1) else None
        axes.loglog(x_X, y_X, ".-", color=str(0.8 - 0.8 * row / len(y_TX)), label=label)
    guide_X = y_TX[0, -1] * (x_X / x_X[-1]) ** power
    axes.loglog(x_X, guide_X, "--", color=COLORS[1], label=f"slope {power}")
    legend(axes)
