"""Lowercase–uppercase pairs among zeros: the toy reversal task (arXiv 2602.02133, §5, App. D–E).

A sequence of length L holds one letter twice: lowercase at i, uppercase at j, zeros
elsewhere. Training sequences all have i < j ("A is B"); the other order never occurs.

Two notions of direction live here, and are named apart:

    generation     forward asks for the uppercase given the lowercase, reverse the opposite;
    theory         the target is always the lowercase and the context the uppercase: the
                   forward query is `[M] B` (an order seen in training), the reverse `B [M]`.
"""

from typing import Literal, NamedTuple

import numpy as np

NUM_LETTERS = 26
LOWER = np.arange(NUM_LETTERS)
UPPER = LOWER + NUM_LETTERS
PAD = 2 * NUM_LETTERS  # written `0` in the paper
MASK = PAD + 1  # the autoregressive model uses this slot as its beginning of sequence
VOCAB_SIZE = MASK + 1

Direction = Literal["forward", "reverse"]
_SYMBOLS = np.array([*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0", "[M]"])


class Queries(NamedTuple):
    """Rows put to a model, and what is asked of it there.

    Attributes:
      tokens_EL: int32 input sequences.
      context_E: position of the letter that is given.
      asked_EL: bool, the positions at which the target is asked for.
      target_E: the true token there.
      letter_E: 0..25, which pair the row is about.
    """

    tokens_EL: np.ndarray
    context_E: np.ndarray
    asked_EL: np.ndarray
    target_E: np.ndarray
    letter_E: np.ndarray

    @property
    def position_E(self) -> np.ndarray:
        """The asked position, where a row has one."""
        return np.argmax(self.asked_EL, axis=1)

    @property
    def distance_E(self) -> np.ndarray:
        """Tokens between that position and the context."""
        return np.abs(self.position_E - self.context_E)


def placements(length: int) -> np.ndarray:
    """All (i, j) with 0 <= i < j < length, in lexicographic order: int32 [L(L-1)/2, 2]."""
    if length < 2:
        raise ValueError(f"length must be at least 2 to hold a pair, got {length}")
    return np.stack(np.triu_indices(length, k=1), axis=1).astype(np.int32)


def training_set(length: int) -> np.ndarray:
    """Every forward placement of every letter: int32 [26·L(L-1)/2, L], letter-major."""
    letter_E, i_E, j_E = _letters_and_places(length)
    return _sequences(length, (i_E, LOWER[letter_E]), (j_E, UPPER[letter_E]))


def mask_queries(
    length: int, direction: Direction, target: Literal["lower", "upper"] = "lower"
) -> Queries:
    """The theory's queries, all letters and placements (App. D.4 and E.1).

    Forward rows hold `[M]` at i and the uppercase at j > i; reverse rows hold the
    uppercase at j < i. The target at `[M]` is the lowercase letter, in both. Row e of
    the two directions is the same letter with the same two positions. With `target="upper"`
    the uppercase is asked for and the lowercase stands in its context: forward rows, in the
    trained order, hold the lowercase at i and `[M]` at j > i.
    """
    letter_E, first_E, second_E = _letters_and_places(length)
    is_first = _is_forward(direction) == (target == "lower")
    mask_E, context_E = (first_E, second_E) if is_first else (second_E, first_E)
    given, asked = (UPPER, LOWER) if target == "lower" else (LOWER, UPPER)
    return Queries(
        tokens_EL=_sequences(length, (mask_E, MASK), (context_E, given[letter_E])),
        context_E=context_E,
        asked_EL=np.arange(length) == mask_E[:, None],
        target_E=asked[letter_E].astype(np.int32),
        letter_E=letter_E,
    )


def prefix_queries(length: int, direction: Direction) -> Queries:
    """The same placements for a model that reads only what stands before the target.

    Generation's directions: forward asks for the uppercase at every j behind the lowercase
    at i, reverse for the lowercase behind the uppercase. A row is one (letter, i), followed
    by zeros; position j of it is read from the tokens before j, which is the cropped prompt
    of App. D.4.
    """
    given, target = (LOWER, UPPER) if _is_forward(direction) else (UPPER, LOWER)
    placements(length)  # the same check of the length
    letter_E = np.repeat(LOWER, length - 1).astype(np.int32)
    context_E = np.tile(np.arange(length - 1), NUM_LETTERS).astype(np.int32)
    return Queries(
        tokens_EL=_sequences(length, (context_E, given[letter_E])),
        context_E=context_E,
        asked_EL=np.arange(length) > context_E[:, None],
        target_E=target[letter_E].astype(np.int32),
        letter_E=letter_E,
    )


def prompts(length: int, direction: Direction, fill: int = MASK) -> Queries:
    """One row per letter for generation: the given letter at position 0, `fill` elsewhere.

    Generation succeeds if `target_E` appears anywhere in the output.
    """
    placements(length)
    given, target = (LOWER, UPPER) if _is_forward(direction) else (UPPER, LOWER)
    tokens_EL = np.full((NUM_LETTERS, length), fill, np.int32)
    tokens_EL[:, 0] = given
    return Queries(
        tokens_EL=tokens_EL,
        context_E=np.zeros(NUM_LETTERS, np.int32),
        asked_EL=np.broadcast_to(np.arange(length) > 0, tokens_EL.shape),
        target_E=target.astype(np.int32),
        letter_E=LOWER.astype(np.int32),
    )


def to_text(tokens: np.ndarray) -> list[str]:
    """Rows of ids as strings, e.g. `0d[M]D`."""
    return ["".join(row) for row in _SYMBOLS[np.atleast_2d(tokens)]]


def _is_forward(direction: Direction) -> bool:
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction must be 'forward' or 'reverse', got {direction!r}")
    return direction == "forward"


def _letters_and_places(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(letter, i, j) of every letter at every placement, letter-major."""
    places_P2 = placements(length)
    letter_E = np.repeat(LOWER, len(places_P2)).astype(np.int32)
    i_E, j_E = np.tile(places_P2, (NUM_LETTERS, 1)).T
    return letter_E, i_E, j_E


def _sequences(length: int, *placed: tuple[np.ndarray, np.ndarray | int]) -> np.ndarray:
    """Rows of zeros with tokens put at positions: each of `placed` is (position_E, token_E)."""
    tokens_EL = np.full((len(placed[0][0]), length), PAD, np.int32)
    for position_E, token_E in placed:
        tokens_EL[np.arange(len(tokens_EL)), position_E] = token_E
    return tokens_EL
