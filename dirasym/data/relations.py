"""Facts about invented entities as short token sentences (arXiv 2405.04669, §5 and App. C).

    reversal         A → B,  B ← A                     of some pairs one direction is withheld
    chain            A → B,  B → C,  A ⇒ C             of some triples the third is withheld
    chain_related    A i → B i,  B i → C i,  A i ⇒ C i     names A, B, C are fixed, i varies
    in_context       A → B ↔ B ← A                     some pairs (A, B) are withheld
    fresh_in_context the same, of facts drawn anew for every sentence

The first token ids are reserved for the relations, and the vocabulary follows them. An entity
is a word of `word_size` tokens, and each kind of entity has an alphabet of its own. Everything
is a function of the seed.
"""

import dataclasses

import numpy as np

RIGHT, LEFT, BOTH = 0, 1, 2  # →, ← and ↔
IMPLIES = 1  # ⇒: chains have no ←
MAX_TRIES = 10_000  # to find a fact that fits those before it
# Words of three tokens: the original trains on no more, "to make sure training loss = 0".
MAX_TRAIN_OF_THREE, MAX_VALIDATION_OF_THREE = 100, 50


@dataclasses.dataclass(frozen=True)
class Relations:
    """Sentences to train on, sentences to validate on, and sentences to read weights by.

    The word to predict is the last `word_size` tokens of a sentence.

    Attributes:
      train_EL, validation_EL: int32 token ids.
      word_size: tokens of the last word.
      vocab_size: token ids, the reserved ones included.
      num_candidates: entities of the kind that a validation sentence asks for: a uniform guess
        among them costs ln(num_candidates) nats a word.
      panels: [P, L] sentences of one kind each that end in P different tokens, P ≥ 2: "withheld"
        are validation sentences, and "given" training sentences about the same entities. Empty
        where words share their last tokens.
    """

    train_EL: np.ndarray
    validation_EL: np.ndarray
    word_size: int
    vocab_size: int
    num_candidates: int
    panels: dict[str, np.ndarray]

    def last_word(self, sentences_EL: np.ndarray) -> np.ndarray:
        """The tokens to predict: bool [E, L]."""
        length = sentences_EL.shape[1]
        return np.broadcast_to(np.arange(length) >= length - self.word_size, sentences_EL.shape)


def reversal(
    vocab_size: int = 800, word_size: int = 1, *, train_share: float = 0.7, seed: int = 0
) -> Relations:
    """A share of the pairs trains in both directions; of each other pair a coin withholds one.

    Alphabets of vocab_size // 4 tokens for A and for B. There are as many pairs as one alphabet
    has words, but at most 2·(vocab_size // 4).

    Raises:
      ValueError: a vocabulary or a word size with too few words, or a share that leaves nothing
        to train or to validate.
    """
    rng = np.random.default_rng(seed)
    a_PW, b_PW = _entities(rng, 2, vocab_size, word_size)
    train, held = _split(len(a_PW), train_share, word_size)
    forward_PL, reverse_PL = _join(a_PW, RIGHT, b_PW), _join(b_PW, LEFT, a_PW)
    coin_P1 = rng.integers(2, size=(len(a_PW), 1)) == 1
    given_PL = np.where(coin_P1, forward_PL, reverse_PL)[held]
    withheld_PL = np.where(coin_P1, reverse_PL, forward_PL)[held]
    is_reverse_withheld_P = coin_P1[held, 0]
    panels = {
        "a_to_b": forward_PL[train],
        "b_to_a": reverse_PL[train],
        "given": given_PL[is_reverse_withheld_P],
        "withheld": withheld_PL[is_reverse_withheld_P],
    }
    return Relations(
        train_EL=np.concatenate([forward_PL[train], reverse_PL[train], given_PL]),
        validation_EL=withheld_PL,
        word_size=word_size,
        vocab_size=vocab_size + 2,
        num_candidates=len(a_PW),
        panels=_readable(panels) if word_size == 1 else {},
    )


def chain(
    vocab_size: int = 800, word_size: int = 1, *, train_share: float = 0.7, seed: int = 0
) -> Relations:
    """A share of the triples trains on all three sentences, the others without A ⇒ C.

    Alphabets of vocab_size // 4 tokens for A, B and C. There are as many triples as one alphabet
    has words, but at most 2·(vocab_size // 4).

    Raises:
      ValueError: as `reversal`.
    """
    rng = np.random.default_rng(seed)
    words = _entities(rng, 3, vocab_size, word_size)
    train, held = _split(len(words[0]), train_share, word_size)
    return _chains(words, train, held, vocab_size, panels=word_size == 1)


def chain_related(
    vocab_size: int = 800,
    *,
    num_indices: int = 600,
    num_train: int = 200,
    num_validation: int = 50,
    seed: int = 0,
) -> Relations:
    """`chain` over the words "A i", "B i" and "C i": a token for each name, and a shared index.

    Triples have different indices; the first `num_train` train on all three sentences.

    Raises:
      ValueError: a vocabulary without room for indices and names, too few indices for the
        triples, or nothing to train or to validate.
    """
    if vocab_size < num_indices + 3:
        raise ValueError(
            f"a vocabulary of {vocab_size} has no room for {num_indices} indices and 3 names"
        )
    count = num_train + num_validation
    if min(num_train, num_validation) < 1 or count > num_indices:
        raise ValueError(
            f"{num_indices} indices cannot give {num_train} triples to train on and "
            f"{num_validation} to validate on"
        )
    rng = np.random.default_rng(seed)
    token = 2 + rng.choice(vocab_size, num_indices + 3, replace=False)
    index_P = token[3 : 3 + count]
    words = [np.stack([np.full(count, name), index_P], axis=1) for name in token[:3]]
    return _chains(words, slice(num_train), slice(num_train, None), vocab_size, panels=True)


def in_context(
    vocab_size: int = 400,
    *,
    num_first: int = 100,
    num_second: int = 10,
    num_facts: int = 1,
    train_share: float = 0.7,
    seed: int = 0,
) -> Relations:
    """Sentences about every A with every B, of which each A's share of the B's trains.

    A sentence tells m = `num_facts` facts with different A's and B's, and asks for one of them:

        A₁ → B₁ .. A_m → B_m ⇔ B_i ← A_i

    The others are drawn from the part of the one that is asked, trained or withheld, and its
    place is drawn too. What a sentence asks for stands in it; with one fact, always at its start.

    Raises:
      ValueError: a vocabulary without room for the entities, a share that leaves nothing to
        train or to validate, or fewer facts to tell than `num_facts`.
    """
    for name, value in (("num_first", num_first), ("num_facts", num_facts)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if vocab_size < num_first + num_second:
        raise ValueError(
            f"a vocabulary of {vocab_size} has no room for {num_first} + {num_second} entities"
        )
    rng = np.random.default_rng(seed)
    token = 3 + rng.choice(vocab_size, num_first + num_second, replace=False)
    train, held = _split(num_second, train_share)
    b_AB = rng.permuted(np.tile(token[num_first:], (num_first, 1)), axis=1)

    def sentences(b_AB):
        a_E1 = np.repeat(token[:num_first], b_AB.shape[1])[:, None]
        b_E1 = b_AB.reshape(-1, 1)
        told = np.concatenate([a_E1, b_E1], axis=1)[_told(a_E1, b_E1, num_facts, rng)]
        facts = [_join(told[:, n, :1], RIGHT, told[:, n, 1:]) for n in range(num_facts)]
        return _join(*facts, BOTH, b_E1, LEFT, a_E1)

    train_EL, held_EL = (sentences(b_AB[:, part]) for part in (train, held))
    first_of_each = {name: rows[:: len(rows) // num_first]
                     for name, rows in (("given", train_EL), ("withheld", held_EL))}  # fmt: skip
    return Relations(
        train_EL=train_EL,
        validation_EL=held_EL,
        word_size=1,
        vocab_size=vocab_size + 3,
        num_candidates=num_first,
        panels=_readable(first_of_each),
    )


def fresh_in_context(
    num_names: int = 50,
    *,
    num_facts: int = 2,
    num_asked: int | None = None,
    num_train: int = 100_000,
    num_validation: int = 2000,
    train_share: float = 0.7,
    seed: int = 0,
) -> Relations:
    """Sentences of `in_context` whose facts are all drawn anew: too many to learn by heart.

    Of `num_names` A's with as many B's, each A's share of the B's trains. The facts of a sentence
    are of one part, trained or withheld. Training sentences ask for one of the last `num_asked`
    facts (None: of all), validation sentences for each of the m facts by turns: sentence e for
    that at place e % m.

    Raises:
      ValueError: as `in_context`, or `num_asked` outside 1 to `num_facts`.
    """
    num_asked = num_facts if num_asked is None else num_asked
    if not 1 <= num_asked <= num_facts <= num_names:
        raise ValueError(
            f"1 <= num_asked={num_asked} <= num_facts={num_facts} <= num_names={num_names} is false"
        )
    rng = np.random.default_rng(seed)
    parts = _split(num_names, train_share)
    b_AB = rng.permuted(np.tile(np.arange(num_names), (num_names, 1)), axis=1)
    place_E = num_facts - 1 - rng.integers(num_asked, size=num_train)
    places = place_E, np.arange(num_validation) % num_facts

    def sentences(part: slice, place_E: np.ndarray) -> np.ndarray:
        told_EF2 = 3 + _drawn(b_AB[:, part], len(place_E), num_facts, rng) + [0, num_names]
        own_E2 = told_EF2[np.arange(len(place_E)), place_E]
        facts = [
            _join(fact_E2[:, :1], RIGHT, fact_E2[:, 1:]) for fact_E2 in told_EF2.swapaxes(0, 1)
        ]
        return _join(*facts, BOTH, own_E2[:, 1:], LEFT, own_E2[:, :1])

    train_EL, held_EL = (sentences(*each) for each in zip(parts, places, strict=True))
    return Relations(train_EL, held_EL, 1, 3 + 2 * num_names, num_names, panels={})


def _drawn(b_AP: np.ndarray, count: int, num_facts: int, rng: np.random.Generator) -> np.ndarray:
    """Facts (A, one of its P partners) of different A's and B's, as numbers: [count, facts, 2]."""
    told_EF2 = np.full((count, num_facts, 2), -1)
    for place in range(num_facts):
        left, tries = np.arange(count), 0
        while len(left):
            a_E = rng.integers(len(b_AP), size=len(left))
            b_E = b_AP[a_E, rng.integers(b_AP.shape[1], size=len(left))]
            told_EF2[left, place] = fact_E2 = np.stack([a_E, b_E], axis=1)
            clash_E = (told_EF2[left, :place] == fact_E2[:, None]).any((1, 2))
            left, tries = left[clash_E], tries + 1
            if tries > MAX_TRIES:
                raise ValueError(f"no {num_facts} facts of different entities were found")
    order_EF = rng.permuted(np.tile(np.arange(num_facts), (count, 1)), axis=1)
    return told_EF2[np.arange(count)[:, None], order_EF]


def _told(a_E1, b_E1, num_facts: int, rng: np.random.Generator) -> np.ndarray:
    """Which facts each sentence tells, its own among them: [E, num_facts], A's and B's apart."""
    told = np.arange(len(a_E1))[:, None]
    if num_facts == 1:
        return told
    chosen = []
    for own in range(len(a_E1)):
        one = [own]
        for other in rng.permutation(len(a_E1)):
            if len(one) == num_facts:
                break
            if a_E1[other] not in a_E1[one] and b_E1[other] not in b_E1[one]:
                one.append(other)
        if len(one) < num_facts:
            raise ValueError(f"no {num_facts} facts of different entities: of some, {len(one)}")
        chosen.append(one)
    return rng.permuted(np.array(chosen), axis=1)


def _entities(
    rng: np.random.Generator, kinds: int, vocab_size: int, word_size: int
) -> list[np.ndarray]:
    """Distinct words of each kind, each over its own alphabet: token ids [P, word_size]."""
    size = vocab_size // 4
    if word_size < 1:
        raise ValueError(f"word_size must be positive, got {word_size}")
    if size < 1:
        raise ValueError(f"a vocabulary of {vocab_size} is too small for alphabets of a quarter")
    alphabets = 2 + rng.choice(vocab_size, (kinds, size), replace=False)
    count = min(size**word_size, 2 * size)
    entities = []
    for alphabet in alphabets:
        words: dict[tuple, None] = {}  # keeps the order of drawing
        while len(words) < count:
            words[tuple(rng.choice(alphabet, word_size))] = None
        entities.append(np.array(list(words)))
    return entities


def _split(count: int, train_share: float, word_size: int = 1) -> tuple[slice, slice]:
    """Which of `count` train and which validate: the first round(share·count), and the others."""
    if not 0 < train_share < 1:
        raise ValueError(f"the share to train on must be in (0, 1), got {train_share}")
    cut, end = round(count * train_share), count
    if not 0 < cut < count:
        raise ValueError(
            f"a share of {train_share} splits {count} into {cut} to train on and "
            f"{count - cut} to validate on"
        )
    train, held = slice(cut), slice(cut, end)
    if word_size == 3:
        train = slice(min(cut, MAX_TRAIN_OF_THREE))
        held = slice(cut, min(end, cut + MAX_VALIDATION_OF_THREE))
    return train, held


def _join(*parts: np.ndarray | int) -> np.ndarray:
    """Sentences [E, L] of words [E, W] and single tokens."""
    rows = max(len(part) for part in parts if not isinstance(part, int))
    columns = [np.full((rows, 1), part) if isinstance(part, int) else part for part in parts]
    return np.concatenate(columns, axis=1).astype(np.int32)


def _chains(words, train: slice, held: slice, vocab_size: int, *, panels: bool) -> Relations:
    a_PW, b_PW, c_PW = words
    ab_PL, bc_PL = _join(a_PW, RIGHT, b_PW), _join(b_PW, RIGHT, c_PW)
    ac_PL = _join(a_PW, IMPLIES, c_PW)
    panels_if_any = {
        "a_to_b": ab_PL[held],
        "b_to_c": bc_PL[held],
        "a_to_c": ac_PL[train],
        "withheld": ac_PL[held],
    }
    parts = [ab_PL[train], bc_PL[train], ac_PL[train], ab_PL[held], bc_PL[held]]
    return Relations(
        train_EL=np.concatenate(parts),
        validation_EL=ac_PL[held],
        word_size=c_PW.shape[1],
        vocab_size=vocab_size + 2,
        num_candidates=len(c_PW),
        panels=_readable(panels_if_any) if panels else {},
    )


def _readable(panels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those in which an answer can be compared with another."""
    return {name: panel for name, panel in panels.items() if len(panel) > 1}
