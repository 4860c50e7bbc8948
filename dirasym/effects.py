"""What moves an outcome: effects of factors over the cells of a study, and what predicts it."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from dirasym.intervals import Bounds, student_interval
from dirasym.types import Array

Cell = Mapping[str, Any]


class Design(NamedTuple):
    """Treatment contrasts of cells: "constant" is the cell of all first levels.

    Attributes:
      names: "constant", "factor=level", and of interactions "factor=level:factor=level".
      matrix_CX: 0 or 1, a row a cell, a column a name.
      aliases: groups of names that these cells cannot tell apart: of a group only some sums can
        be estimated.
    """

    names: tuple[str, ...]
    matrix_CX: np.ndarray
    aliases: tuple[tuple[str, ...], ...]


def design(
    cells: Sequence[Cell],
    factors: Mapping[str, Sequence[Any]],
    interactions: Sequence[tuple[str, str]] = (),
) -> Design:
    """Columns of the levels that occur, and which of them are aliases of one another.

    Args:
      cells: a level of each factor.
      factors: from a name to its levels; the first is the one that others are compared with.
      interactions: pairs of factors. A pair of levels that no cell has gets no column.

    Examples:
      >>> cells = [{"a": x, "b": y} for x, y in ((0, 0), (1, 1))]
      >>> design(cells, {"a": [0, 1], "b": [0, 1]}).aliases
      (('a=1', 'b=1'),)

    Raises:
      ValueError: no cells, or a level that its factor does not have.
    """
    if not cells:
        raise ValueError("no cells to compare")
    for cell in cells:
        for factor, levels in factors.items():
            if cell[factor] not in levels:
                raise ValueError(f"{factor}={cell[factor]!r} is not among {list(levels)}")
    columns = {"constant": np.ones(len(cells))}
    main = {
        factor: {
            f"{factor}={level}": np.array([cell[factor] == level for cell in cells], float)
            for level in levels[1:]
        }
        for factor, levels in factors.items()
    }
    for of_factor in main.values():
        columns |= of_factor
    for first, second in interactions:
        for (name, x), (other, y) in itertools.product(main[first].items(), main[second].items()):
            columns[f"{name}:{other}"] = x * y
    columns = {name: x for name, x in columns.items() if x.any()}
    matrix_CX = np.stack(list(columns.values()), axis=1)
    names = tuple(columns)
    return Design(names, matrix_CX, _aliases(names, matrix_CX))


def _aliases(names: Sequence[str], matrix_CX: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """Names that share a direction of coefficients which changes no cell."""
    _, sizes, rows_XX = np.linalg.svd(matrix_CX)
    rank = int(np.sum(sizes > 1e-9 * sizes[0]))
    null_NX = rows_XX[rank:]
    is_joined_XX = np.abs(null_NX.T @ null_NX) > 1e-9
    groups, left = [], set(np.flatnonzero(is_joined_XX.any(axis=1)).tolist())
    while left:
        group, new = set(), {min(left)}
        while new:
            group |= new
            new = set(np.flatnonzero(is_joined_XX[sorted(new)].any(axis=0)).tolist()) - group
        groups.append(tuple(names[x] for x in sorted(group)))
        left -= group
    return tuple(groups)


def effects(of: Design, outcome_CS: Array, level: float = 0.95) -> dict[str, Bounds]:
    """Least squares over cells, once a seed: coefficients with Student's intervals over seeds.

    Seeds are independent and the cells of one seed need not be, so that a seed is one observation
    of all coefficients. Aliased names are left out.

    Args:
      of: the cells' `design`.
      outcome_CS: a row a cell, a column a seed.
      level: of confidence.

    Raises:
      ValueError: another number of cells, fewer than two seeds, or values that are not finite.
    """
    outcome_CS = np.asarray(outcome_CS, float)
    if outcome_CS.ndim != 2 or len(outcome_CS) != len(of.matrix_CX):
        raise ValueError(f"{len(of.matrix_CX)} cells and seeds are needed, got {outcome_CS.shape}")
    if outcome_CS.shape[1] < 2:
        raise ValueError("intervals over seeds need at least two seeds")
    if not np.isfinite(outcome_CS).all():
        raise ValueError("an outcome is not finite: leave out cells that have none")
    found_XS = np.linalg.lstsq(of.matrix_CX, outcome_CS, rcond=None)[0]
    unknown = set(itertools.chain.from_iterable(of.aliases))
    known = {}
    for name, values_S in zip(of.names, found_XS, strict=True):
        if name not in unknown:
            known[name] = student_interval(values_S, level).bounds
    return known


def rank_correlation(
    x_C: Array, y_C: Array, level: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> Bounds:
    """Spearman's correlation over cells, with the percentile interval of a bootstrap over them.

    Examples:
      >>> round(rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]).estimate, 6)
      1.0

    Raises:
      ValueError: unequal numbers, fewer than three cells, or a value that is not finite.
    """
    return _over_cells(_spearman, x_C, y_C, level, resamples, seed)


def roc_area(
    score_C: Array, happens_C: Array, level: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> Bounds:
    """P(score of a cell where it happens > score of one where not), ties counting a half.

    The area under the ROC curve, with a percentile bootstrap over cells; NaN where all or none
    happen.

    Examples:
      >>> roc_area([0.1, 0.4, 0.3, 0.9], [False, False, True, True]).estimate
      0.75

    Raises:
      ValueError: as `rank_correlation`.
    """
    return _over_cells(_area, score_C, np.asarray(happens_C, float), level, resamples, seed)


def _over_cells(statistic, x_C, y_C, level: float, resamples: int, seed: int) -> Bounds:
    x_C, y_C = np.asarray(x_C, float), np.asarray(y_C, float)
    if x_C.ndim != 1 or x_C.shape != y_C.shape or len(x_C) < 3:
        raise ValueError(f"three cells or more are needed, got {x_C.shape} and {y_C.shape}")
    if not (np.isfinite(x_C).all() and np.isfinite(y_C).all()):
        raise ValueError("a value is not finite: leave out what was not measured")
    draws = np.random.default_rng(seed).integers(len(x_C), size=(resamples, len(x_C)))
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = float(statistic(x_C, y_C))
        drawn = statistic(x_C[draws], y_C[draws])
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return Bounds(estimate, float("nan"), float("nan"))
    low, high = np.percentile(drawn, [50 - 50 * level, 50 + 50 * level])
    return Bounds(estimate, float(low), float(high))


def _spearman(x_RC: np.ndarray, y_RC: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks along the last axis."""
    ranks = (scipy.stats.rankdata(x, axis=-1) for x in (x_RC, y_RC))
    x_RC, y_RC = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
    size = np.sqrt((x_RC**2).sum(axis=-1) * (y_RC**2).sum(axis=-1))
    return (x_RC * y_RC).sum(axis=-1) / size


def _area(score_RC: np.ndarray, happens_RC: np.ndarray) -> np.ndarray:
    """Mann and Whitney's U by ranks, over the number of pairs."""
    with_it = happens_RC.sum(axis=-1)
    ranks = scipy.stats.rankdata(score_RC, axis=-1)
    ahead = (ranks * happens_RC).sum(axis=-1) - with_it * (with_it + 1) / 2
    return ahead / (with_it * (happens_RC.shape[-1] - with_it))
