"""World A: random maps between strings, with exact entropies (arXiv 2511.19997).

A data set is two equal lists of strings; pair i trains `x: {A_i} y: {B_i}` in the forward
direction and `x: {B_i} y: {A_i}` in the inverse. `generate_pairs` makes K strings A share
one B, so that forward is a function and inverse is one of K; `exchangeable_pairs` is its
control, in which both directions have the same law.

Three numbers belong to a direction, and they are not the same number:

    joint floor     H(target | source) of a whole string: the least loss of a model that can
                    represent any distribution, such as a causal one;
    parallel floor  Σ_p H(target_p | source): the least loss of a model that predicts all
                    positions at once, independently given the source;
    bits to store   log₂ of how many maps the direction could have been.

Entropies are those of the data set itself, in nats per string.
"""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import chain
from typing import Literal

import numpy as np

from dirasym import usage
from dirasym.data.batching import encode_rows
from dirasym.data.tokenizers import Tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

Pairs = tuple[list[str], list[str]]
Direction = Literal["forward", "inverse"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "inverse")


def generate_pairs(
    K: int, n_pairs: int, str_len: int, seed: int, num_letters: int = len(ALPHABET)
) -> Pairs:
    """A K-to-1 map: n distinct strings A, and n/K distinct B, each the image of K of them.

    The same pairs on any machine, under any Python hash seed. K = 1 is a bijection.

    Args:
      K: how many A share a B.
      n_pairs: n.
      str_len: characters of a string.
      seed: of all choices.
      num_letters: the characters are the first of `ALPHABET`, a–z0–9.

    Returns:
      (A, B), lists of length n; pair i is (A[i], B[i]).

    Raises:
      ValueError: K < 1, n not divisible by K, n beyond the number of strings, or letters that
        the alphabet does not have.
    """
    _check(K, n_pairs, str_len, n_pairs, divisor=K, num_letters=num_letters)
    rng = np.random.RandomState(seed)  # NumPy keeps its stream the same for ever
    first = _distinct_strings(rng, n_pairs, str_len, num_letters)
    images = _distinct_strings(rng, n_pairs // K, str_len, num_letters)
    second = [text for text in images for _ in range(K)]
    assert len(set(first)) == n_pairs and set(Counter(second).values()) == {K}
    return first, second


def exchangeable_pairs(
    K: int, n_pairs: int, str_len: int, seed: int, num_letters: int = len(ALPHABET)
) -> Pairs:
    """A K-to-K map: n/K² groups of K strings A and K strings B, every A paired with every B.

    Both directions have floor ln K and store the same number of bits, so no learner that
    treats its two strings alike can tell them apart.

    Raises:
      ValueError: as `generate_pairs`, with n divisible by K².
    """
    count = n_pairs // max(K, 1)
    _check(K, n_pairs, str_len, count, divisor=K * K, num_letters=num_letters)
    rng = np.random.RandomState(seed)
    groups = [
        np.array(_distinct_strings(rng, count, str_len, num_letters)).reshape(-1, K)
        for _ in range(2)
    ]
    first = np.repeat(groups[0], K, axis=1).ravel().tolist()
    second = np.tile(groups[1], K).ravel().tolist()
    assert set(Counter(first).values()) == set(Counter(second).values()) == {K}
    assert len(set(zip(first, second, strict=True))) == n_pairs
    return first, second


def _check(
    K: int, n_pairs: int, str_len: int, num_distinct: int, divisor: int, num_letters: int
) -> None:
    usage.check_counts(K=K, str_len=str_len)
    if not usage.is_whole(num_letters) or not 1 <= num_letters <= len(ALPHABET):
        raise ValueError(f"num_letters must be 1 to {len(ALPHABET)}, got {num_letters}")
    if not usage.is_whole(n_pairs) or n_pairs < 1 or n_pairs % divisor:
        raise ValueError(f"n_pairs must be a positive multiple of {divisor}, got {n_pairs}")
    if num_distinct > num_letters**str_len:
        raise ValueError(
            f"{num_distinct} distinct strings are needed and there are only "
            f"{num_letters**str_len} of {str_len} characters"
        )


def _distinct_strings(
    rng: np.random.RandomState, count: int, str_len: int, num_letters: int
) -> list[str]:
    """Uniform draws without replacement, in random order."""
    strings: dict[str, None] = {}  # keeps the order of first occurrence
    while len(strings) < count:
        letters = np.array(list(ALPHABET))[
            rng.randint(num_letters, size=(count, str_len), dtype=np.int64)
        ]
        strings |= dict.fromkeys(map("".join, letters))
    return list(strings)[:count]


@dataclasses.dataclass(frozen=True)
class StringMap:
    """A map with both of its directions, known by its numbers; its pairs are drawn when asked for.

    Attributes:
      K: how many A share a B; in an exchangeable map, also how many B share an A.
      n_pairs, str_len, seed: as of `generate_pairs`.
      exchangeable: the control, `exchangeable_pairs`.
      num_letters: as of `generate_pairs`.

    Raises:
      ValueError: as these two.

    Examples:
      >>> (a, *_), (b, *_) = StringMap(5, 50, seed=47).oriented("inverse")
      >>> texts([a], [b])
      (['x: osr2i580 y:'], [' hghiiqxq'])
    """

    K: int
    n_pairs: int
    str_len: int = 8
    seed: int = 0
    exchangeable: bool = False
    num_letters: int = len(ALPHABET)

    def __post_init__(self):
        usage.check_counts(0, seed=self.seed)
        self.bits_to_store("forward")  # names what else cannot be

    @functools.cached_property
    def pairs(self) -> Pairs:
        """(A, B)."""
        generate = exchangeable_pairs if self.exchangeable else generate_pairs
        return generate(self.K, self.n_pairs, self.str_len, self.seed, self.num_letters)

    def oriented(self, direction: Direction) -> Pairs:
        """The pairs as one direction reads them: (sources, targets), (A, B) forward.

        Raises:
          ValueError: neither "forward" nor "inverse".
        """
        _check_direction(direction)
        first, second = self.pairs
        return (first, second) if direction == "forward" else (second, first)

    def published_floor(self, direction: Direction) -> float:
        """What the paper subtracts from the mean loss per token: ln K, or 0 for a function."""
        _check_direction(direction)
        is_function = direction == "forward" and not self.exchangeable
        return 0.0 if is_function else math.log(self.K)

    def bits_to_store(self, direction: Direction) -> float:
        """log₂ of how many maps the direction could have been, per pair."""
        _check_direction(direction)
        shape = self.K, self.n_pairs, self.str_len, self.num_letters
        if self.exchangeable:
            return exchangeable_bits_to_store(*shape)
        both = bits_to_store(*shape)
        return both[DIRECTIONS.index(direction)]


def _check_direction(direction: Direction) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be 'forward' or 'inverse', got {direction!r}")


def to_ids(strings: Sequence[str]) -> np.ndarray:
    """Places of their characters in the alphabet: int32 [n, length], for equal lengths."""
    place = {character: n for n, character in enumerate(ALPHABET)}
    return np.array([[place[character] for character in text] for text in strings], np.int32)


def texts(sources: Sequence[str], targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """The benchmark's text as (prompts, answers): `x: {source} y:` and ` {target}`.

    Loss falls on the answer alone; its leading space is part of it.
    """
    return [f"x: {source} y:" for source in sources], [f" {target}" for target in targets]


def encode(
    tokenizer: Tokenizer, maps: Iterable[StringMap]
) -> dict[tuple[StringMap, Direction], dict[str, np.ndarray]]:
    """Both directions of the maps as rows of one length: see `texts` and `encode_rows`.

    Raises:
      ValueError: as `encode_rows`.
    """
    keys = [(of, direction) for of in maps for direction in DIRECTIONS]
    sources, targets = zip(*(of.oriented(direction) for of, direction in keys), strict=True)
    rows = encode_rows(tokenizer, *texts([*chain(*sources)], [*chain(*targets)]))
    ends = np.cumsum([of.n_pairs for of, _ in keys])[:-1]
    parts = {name: np.split(x, ends) for name, x in rows.items()}
    return {key: {name: x[n] for name, x in parts.items()} for n, key in enumerate(keys)}


def joint_floor(sources: Sequence[Hashable], targets: Sequence[Hashable]) -> float:
    """H(target | source) = (1/n) Σ_i ln(#source_i / #(source_i, target_i)), nats per string."""
    of_source, of_pair = Counter(sources), Counter(zip(sources, targets, strict=True))
    return sum(
        count * math.log(of_source[source] / count) for (source, _), count in of_pair.items()
    ) / len(sources)


def position_entropies(
    sources: Sequence[Hashable], targets: Sequence[Sequence[Hashable]]
) -> list[float]:
    """H(target_p | source, a position p exists) in nats per string, p = 0, 1, ..

    Their sum is the parallel floor. Targets are strings, or lists of tokens; where lengths
    differ a position's entropy counts for the share of targets that have it, and a model
    that is told the length takes (source, length) as its source.
    """
    entropies = []
    for position in range(max(map(len, targets))):
        has = [i for i, target in enumerate(targets) if len(target) > position]
        floor = joint_floor([sources[i] for i in has], [targets[i][position] for i in has])
        entropies.append(floor * len(has) / len(targets))
    return entropies


def parallel_floor(sources: Sequence[Hashable], targets: Sequence[Sequence[Hashable]]) -> float:
    """Σ_p H(target_p | source), nats per string: see `position_entropies`."""
    return sum(position_entropies(sources, targets))


def per_token(floor: float, targets: Sequence[Sequence[Hashable]]) -> float:
    """A floor in nats per string as the least mean loss per token: Σ floor / Σ tokens."""
    return floor * len(targets) / sum(map(len, targets))


def bits_to_store(
    K: int, n_pairs: int, str_len: int, num_letters: int = len(ALPHABET)
) -> tuple[float, float]:
    """log₂ of the number of K-to-1 maps, per pair: (forward, inverse).

    With N = num_letters^str_len strings and b = n/K images: forward, the A being known, has
    C(N, b)·n!/K!^b maps; inverse, the B being known, has N!/((N-n)!·K!^b).

    Raises:
      ValueError: as `generate_pairs`.
    """
    _check(K, n_pairs, str_len, n_pairs, divisor=K, num_letters=num_letters)
    images, strings = n_pairs // K, num_letters**str_len
    orders = images * _log2_falling(K, K)
    forward = (
        _log2_falling(strings, images)
        - _log2_falling(images, images)
        + _log2_falling(n_pairs, n_pairs)
        - orders
    )
    return forward / n_pairs, (_log2_falling(strings, n_pairs) - orders) / n_pairs


def exchangeable_bits_to_store(
    K: int, n_pairs: int, str_len: int, num_letters: int = len(ALPHABET)
) -> float:
    """The same for a K-to-K map, either direction: log₂[N!/(N-m)! · m!/(K!^2g · g!)] / n.

    m = n/K strings on each side in g = n/K² groups: the known side is cut into unordered
    groups, m!/(K!^g·g!), and each gets K others, N!/((N-m)!·K!^g).

    Raises:
      ValueError: as `exchangeable_pairs`.
    """
    count = n_pairs // max(K, 1)
    _check(K, n_pairs, str_len, count, divisor=K * K, num_letters=num_letters)
    size, groups, strings = count, n_pairs // K**2, num_letters**str_len
    bits = (
        _log2_falling(strings, size)
        + _log2_falling(size, size)
        - 2 * groups * _log2_falling(K, K)
        - _log2_falling(groups, groups)
    )
    return bits / n_pairs


def _log2_falling(top: int, count: int) -> float:
    """log₂ of top·(top-1)···(top-count+1); log₂ top! for count = top."""
    # Each term is log top + log(1 - i/top): `top` itself may be beyond a float.
    below = np.log1p(-np.arange(count) * (1 / top)).sum()
    return count * math.log2(top) + float(below) / math.log(2)
