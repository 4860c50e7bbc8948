"""The figure of a `Reading`: shares, cosines by block, correlations by distance."""

from collections.abc import Sequence
from typing import Any

from dirasym import report


def draw(reading: Any, shares: Sequence[str]) -> Any:
    """The shares of these names, and what else there is, side by side."""
    draws = [lambda reading, ax: _draw_shares(reading, ax, shares)]
    draws += [_draw_cosines] * (reading.alignment is not None)
    draws += [_draw_attention] * (reading.attention is not None)
    blocks = len(reading.alignment.cosine) if reading.alignment else 0
    figure, axes = report.new_figure(1, len(draws), (4.0, max(3.0, 0.22 * blocks)))
    for draw_one, ax in zip(draws, axes[0], strict=True):
        draw_one(reading, ax)
    figure.suptitle(
        f"{reading.counts()}\n{reading.level:.0%} intervals over {reading.over}", fontsize=10
    )
    return figure


def _draw_shares(reading: Any, ax: Any, names: Sequence[str]) -> None:
    for number, side in enumerate(("forward", "reverse")):
        values = [getattr(getattr(reading, side), name) for name in names]
        there = [(place, value) for place, value in enumerate(values) if value is not None]
        report.plot_bounds(
            ax, [p + 0.15 * (2 * number - 1) for p, _ in there], [v for _, v in there], side
        )
    ax.set_xticks(range(len(names)), names)
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
    few = "\n".join(f"choice: {of} {name} questions" for name, of in reading.chosen().items())
    ax.set(ylim=(-0.02, 1.02), ylabel="% of the questions", xlabel=few)
    report.legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # hides no interval


def _draw_cosines(reading: Any, ax: Any) -> None:
    cosine = reading.alignment.roles | reading.alignment.cosine
    report.plot_bounds(ax, range(len(cosine)), list(cosine.values()), None, across=True)
    ax.axvline(0, color="gray", lw=0.8)
    ax.set_yticks(range(len(cosine)), cosine, fontsize="x-small")
    ax.invert_yaxis()
    ax.set(xlabel="cosine of both directions' gradients")  # its limits are those of the data and 0
    ax.locator_params(axis="x", nbins=5)  # so that no number touches the next


def _draw_attention(reading: Any, ax: Any) -> None:
    for layer, mean_T in enumerate(reading.attention.mean.mean(axis=1)):
        ax.plot(reading.attention.total, mean_T, ".-", label=f"layer {layer}")
    ax.axhline(0, color="gray", lw=0.8)
    ax.set(xlabel="total distance Δ₁ + Δ₂ (tokens)", ylabel="Corr(S_fwd, S_rev), mean of heads")
    if len(reading.attention.mean) <= 8:
        report.legend(ax, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
