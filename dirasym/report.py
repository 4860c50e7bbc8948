"""From results and curves to tables and figures. Reads files and arrays; no JAX here."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def with_interval(mean: float, half_width: float, digits: int = 2) -> str:
    """`43.1 ± 2.0`, or the mean alone where there is no interval."""
    text = f"{mean:.{digits}f}"
    return text if math.isnan(half_width) else f"{text} ± {half_width:.{digits}f}"


def select(results: Iterable[Mapping[str, Any]], **values: Any) -> list[Mapping[str, Any]]:
    """Result lines with these values."""
    return [r for r in results if all(r.get(key) == value for key, value in values.items())]


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (4.0, 3.0)):
    """A figure and its axes [rows, columns], in the house style.

    Raises:
      ImportError: matplotlib is missing; says which extra has it.
    """
    try:
        import matplotlib
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'dirasym[plots]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "savefig.dpi": 160,
        }
    )
    return plt.subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        squeeze=False,
        layout="constrained",
    )


def save_figure(figure, directory: pathlib.Path, name: str) -> pathlib.Path:
    """Writes NAME.png and NAME.pdf and returns the path of the PNG."""
    import matplotlib.pyplot as plt

    directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(directory / f"{name}.pdf")
    figure.savefig(directory / f"{name}.png")
    plt.close(figure)
    return directory / f"{name}.png"


def plot_seeds(axes, x_T: np.ndarray, y_TS: np.ndarray, label: str, **style: Any) -> None:
    """The mean over seeds as a line, and every seed as a faint one."""
    (line,) = axes.plot(x_T, y_TS.mean(axis=1), label=label, **style)
    if y_TS.shape[1] > 1:
        axes.plot(x_T, y_TS, color=line.get_color(), ls=line.get_linestyle(), lw=0.6, alpha=0.5)
