"""Lowercase–uppercase pairs among zeros: the toy reversal task (arXiv 2602.02133, §5, App. D–E).

A sequence of length L holds one letter twice: lowercase at i, uppercase at j, zeros
elsewhere. Training sequences all have i < j ("A is B"); the other order never occurs.

Two notions of direction live here, and are named apart:
  generation     forward asks for the uppercase given the lowercase, reverse the opposite;
  theory         the target is always the lowercase and the context the uppercase: the
                 forward query is `[M] B` (an order seen in training), the reverse `B [M]`.
"""

import dataclasses
from typing import Literal

import numpy as np

NUM_LETTERS = 26
LOWER = np.arange(NUM_LETTERS)
UPPER = LOWER + NUM_LETTERS
PAD = 2 * NUM_LETTERS  # written `0` in the paper
MASK = PAD + 1  # the autoregressive model uses this slot as its beginning of sequence
VOCAB_SIZE = MASK + 1

Direction = Literal["forward", "reverse"]
_SYMBOLS = np.array([*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0", "[M]"])


@dataclasses.dataclass(frozen=True)
class Queries:
    """One prediction asked of a model per row.

    Attributes:
      tokens_EL: int32 input sequences.
      position_E: where the target is asked for.
      target_E: the true token there.
      letter_E: 0..25, which pair the row is about.
      distance_E: |i - j|, tokens between target and context.
    """

    tokens_EL: np.ndarray
    position_E: np.ndarray
    target_E: np.ndarray
    letter_E: np.ndarray
    distance_E: np.ndarray


def placements(length: int) -> np.ndarray:
    """All (i, j) with 0 <= i < j < length, in lexicographic order: int32 [L(L-1)/2, 2]."""
    if length < 2:
        raise ValueError(f"length must be at least 2 to hold a pair, got {length}")
    return np.stack(np.triu_indices(length, k=1), axis=1).astype(np.int32)


def training_set(length: int) -> np.ndarray:
    """Every forward placement of every letter: int32 [26·L(L-1)/2, L], letter-major."""
    return _place(length, first=LOWER, second=UPPER).tokens_EL


def mask_queries(length: int, direction: Direction) -> Queries:
    """The theory's queries, all letters and placements (App. D.4 and E.1).

    Forward rows hold `[M]` at i and the uppercase at j > i; reverse rows hold the
    uppercase at j < i. The target at `[M]` is the lowercase letter, in both. Row e of
    the two directions is the same letter with the same two positions.
    """
    mask = np.full(NUM_LETTERS, MASK)
    if _is_forward(direction):
        return _place(length, first=mask, second=UPPER, target=LOWER, target_is="first")
    return _place(length, first=UPPER, second=mask, target=LOWER, target_is="second")


def prefix_queries(length: int, direction: Direction) -> Queries:
    """The same probe for a left-to-right model, which reads only what stands before the target.

    Generation's directions: forward asks for the uppercase at j given the prefix that
    holds the lowercase at i < j; reverse asks for the lowercase given the uppercase
    before it. Tokens at and after `position_E` are zeros, and are not to be read.
    """
    context, target = (LOWER, UPPER) if _is_forward(direction) else (UPPER, LOWER)
    pad = np.full(NUM_LETTERS, PAD)
    return _place(length, first=context, second=pad, target=target, target_is="second")


def prompts(length: int, direction: Direction, fill: int = MASK) -> Queries:
    """One row per letter for generation: the given letter at position 0, `fill` elsewhere.

    Generation succeeds if `target_E` appears anywhere in the output.
    """
    placements(length)  # the same check of the length
    given, target = (LOWER, UPPER) if _is_forward(direction) else (UPPER, LOWER)
    tokens_EL = np.full((NUM_LETTERS, length), fill, np.int32)
    tokens_EL[:, 0] = given
    zeros_E = np.zeros(NUM_LETTERS, np.int32)
    return Queries(tokens_EL, zeros_E, target.astype(np.int32), LOWER.astype(np.int32), zeros_E)


def to_text(tokens: np.ndarray) -> list[str]:
    """Rows of ids as strings, e.g. `0d[M]D`."""
    return ["".join(row) for row in _SYMBOLS[np.atleast_2d(tokens)]]


def _is_forward(direction: Direction) -> bool:
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction must be 'forward' or 'reverse', got {direction!r}")
    return direction == "forward"


def _place(length, first, second, target=LOWER, target_is="first") -> Queries:
    """Rows with `first[letter]` at i and `second[letter]` at j, for all letters and i < j."""
    places_P2 = placements(length)
    letter_E = np.repeat(LOWER, len(places_P2)).astype(np.int32)
    i_E, j_E = np.tile(places_P2, (NUM_LETTERS, 1)).T
    row_E = np.arange(len(letter_E))
    tokens_EL = np.full((len(letter_E), length), PAD, np.int32)
    tokens_EL[row_E, i_E] = first[letter_E]
    tokens_EL[row_E, j_E] = second[letter_E]
    position_E = i_E if target_is == "first" else j_E
    return Queries(tokens_EL, position_E, target[letter_E].astype(np.int32), letter_E, j_E - i_E)
