"""What figures show, for tests that hold their marks to the numbers behind them."""

import numpy as np


def words(ax):
    """Title and names of the axes."""
    return ax.get_title(), ax.get_xlabel(), ax.get_ylabel()


def entries(legend):
    """Its labels, in order."""
    return [text.get_text() for text in legend.get_texts()]


def hides_nothing(figure):
    """Asserts that every finite point lies inside the limits of its panel; ends of bars may not."""
    for ax in figure.axes:
        for line in ax.get_lines():
            of_data = line.get_transform().contains_branch(ax.transData)
            if line.get_label() == "_nolegend_" or not of_data:
                continue  # the cap of a bar, or a guide across the panel
            shift = line.get_transform() - ax.transData  # of marks beside one another
            x, y = shift.transform(np.asarray(line.get_xydata(), float)).T
            for scale, place, limits in (
                (ax.get_xscale(), x, ax.get_xlim()),
                (ax.get_yscale(), y, ax.get_ylim()),
            ):
                shown = np.isfinite(x) & np.isfinite(y) & ((scale != "log") | (place > 0))
                low, high = sorted(limits)
                room = 1e-9 * (high - low)
                inside = (place >= low - room) & (place <= high + room)
                assert inside[shown].all(), (ax.get_title(), line.get_label(), place, limits)


def of_report(monkeypatch, report):
    """{figure: what it is drawn from} of the latest report, which is printed and not written."""
    drawn = {}

    def write(path, text, figures, *, printed):
        drawn.clear()
        drawn.update({name: figure.args for name, figure in figures.items()})
        print(printed)

    monkeypatch.setattr(report, "write", write)
    return drawn
