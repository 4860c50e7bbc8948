"""Rows of tokens rewritten so that a model may learn their reverse: remedies that change the data.

Reverse training (arXiv 2403.13799) adds rows read backwards, by token, by unit (a word, a name), or
by random segments; masked fine-tuning (arXiv 2510.09885) puts a masked copy before each row. All
take and return NumPy arrays, and are functions of a seed.
"""

import numpy as np


def reversed_tokens(tokens_BL: np.ndarray) -> np.ndarray:
    """Every row from its last token to its first.

    Examples:
      >>> reversed_tokens(np.array([[1, 2, 3]])).tolist()
      [[3, 2, 1]]
    """
    return np.ascontiguousarray(np.asarray(tokens_BL)[:, ::-1])


def reversed_units(tokens_BL: np.ndarray, unit_BL: np.ndarray) -> np.ndarray:
    """The units of every row in reverse, the tokens of each in their own order.

    Args:
      tokens_BL: rows.
      unit_BL: the place of the first token of each token's unit (as `Batch.unit_BL`).

    Examples:
      >>> reversed_units(np.array([[1, 2, 3, 4]]), np.array([[0, 0, 2, 3]])).tolist()
      [[4, 3, 1, 2]]

    Raises:
      ValueError: units that are not stretches of a row, each named by its first place.
    """
    tokens_BL, unit_BL = np.asarray(tokens_BL), np.asarray(unit_BL)
    place_L = np.arange(tokens_BL.shape[1])
    starts_BL = unit_BL == place_L
    if (
        tokens_BL.shape != unit_BL.shape
        or (unit_BL != np.maximum.accumulate(np.where(starts_BL, place_L, 0), axis=1)).any()
    ):
        raise ValueError("unit_BL must be the first place of a stretch of each row")
    order_BL = np.argsort(-unit_BL, axis=1, kind="stable")
    return np.take_along_axis(tokens_BL, order_BL, axis=1)


def reversed_segments(tokens_BL: np.ndarray, longest: int, *, seed: int = 0) -> np.ndarray:
    """Every row cut into segments of 1 to `longest` tokens, drawn uniformly, which are reversed.

    The tokens of a segment keep their order, as in arXiv 2403.13799.

    Raises:
      ValueError: a `longest` below 1.
    """
    if longest < 1:
        raise ValueError(f"longest must be at least 1, got {longest}")
    tokens_BL = np.asarray(tokens_BL)
    num, length = tokens_BL.shape
    sizes_BL = np.random.default_rng(seed).integers(1, longest + 1, size=(num, length))
    starts_BL = np.zeros((num, length + 1), bool)
    first_BL = np.concatenate([np.zeros((num, 1), int), np.cumsum(sizes_BL, axis=1)], axis=1)
    np.put_along_axis(starts_BL, np.minimum(first_BL, length), True, axis=1)
    starts_BL = starts_BL[:, :length]
    unit_BL = np.maximum.accumulate(np.where(starts_BL, np.arange(length), 0), axis=1)
    return reversed_units(tokens_BL, unit_BL)


def masked_copies(
    tokens_BL: np.ndarray, mask_id: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows behind a masked copy of themselves: (tokens [B, 2L], scored [B, 2L]).

    Of each row a rate is drawn uniformly from (0, 1), and each token of the copy is [M] with this
    probability. The row itself is scored and its copy is not: masked fine-tuning of a causal model,
    which then tells a token from what stood before and behind it (arXiv 2510.09885).
    """
    tokens_BL = np.asarray(tokens_BL)
    rng = np.random.default_rng(seed)
    is_masked_BL = rng.uniform(size=tokens_BL.shape) < rng.uniform(size=(len(tokens_BL), 1))
    copy_BL = np.where(is_masked_BL, mask_id, tokens_BL)
    scored_BL = np.ones(tokens_BL.shape, bool)
    return (
        np.concatenate([copy_BL, tokens_BL], axis=1).astype(np.int32),
        np.concatenate([~scored_BL, scored_BL], axis=1),
    )


def mixed(
    plain: np.ndarray, remedy: np.ndarray, share: float, num_rows: int, *, seed: int = 0
) -> np.ndarray:
    """`num_rows` row numbers of [plain, remedy]: round(share · num_rows) are of the remedy.

    Each part is gone through as often as it takes, in an order of its own, so that no row comes
    twice more often than another.

    Raises:
      ValueError: a share outside [0, 1], or a part that is wanted and empty.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    num = round(share * num_rows)
    rng, parts = np.random.default_rng(seed), []
    for first, size, count in ((0, len(plain), num_rows - num), (len(plain), len(remedy), num)):
        if count and not size:
            raise ValueError("a part of the mixture is empty")
        rounds = -(-count // size) if count else 0
        drawn = [rng.permutation(size) for _ in range(rounds)]
        parts.append(first + np.concatenate([np.zeros(0, int), *drawn])[:count].astype(int))
    return np.concatenate(parts)


def exposures(tokens_BL: np.ndarray, source_B: np.ndarray, target_B: np.ndarray) -> np.ndarray:
    """Whether a causal model meets the reverse in a row, the source behind the target: bool [B]."""
    tokens_BL = np.asarray(tokens_BL)
    is_source_BL = tokens_BL == np.asarray(source_B)[:, None]
    is_target_BL = tokens_BL == np.asarray(target_B)[:, None]
    seen_BL = np.cumsum(is_target_BL, axis=1) - is_target_BL > 0
    return (is_source_BL & seen_BL).any(axis=1)
