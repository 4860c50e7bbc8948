"""Texts as arrays, and shuffled epochs as a pure function of (key, step): no iterator to save."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import keys, usage
from dirasym.data import tokenizers
from dirasym.data.facts import FactSet
from dirasym.data.text import name_pattern, normalise
from dirasym.data.tokenizers import Tokenizer


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """`tokenizer.encode` of anyone's tokenizer.

    Raises:
      ValueError: not as many rows as texts, or an id that is no whole number.
    """
    rows = [list(row) for row in tokenizer.encode(texts)]
    if len(rows) != len(texts):
        raise ValueError(f"tokenizer: encode gave {len(rows)} rows for {len(texts)} texts")
    for text, row in zip(texts, rows, strict=True):
        for number in row:
            if not usage.is_whole(number):
                raise ValueError(f"tokenizer: encode turns {text!r} into {number!r}, no token's id")
    return rows


def placed(
    tokenizer: Tokenizer, texts: Sequence[str], sizes: Sequence[int]
) -> list[list[tuple[int, int]]]:
    """`tokenizer.offsets` of anyone's tokenizer, of texts of so many tokens.

    Raises:
      ValueError: another number of rows, or of places in one of them.
    """
    rows = [list(row) for row in tokenizer.offsets(texts)]
    if list(map(len, rows)) != list(sizes):
        raise ValueError("tokenizer: offsets must give a place for each id of encode")
    return rows


def split_answers(
    tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of each prompt, and of the answer that follows it.

    Both are encoded together and parted where the prompt's own ids end: some tokenizers write
    an answer otherwise when it stands alone (LLaMA's put a space in front of every text).

    Args:
      tokenizer: of the ids.
      prompts: what is asked, of any length.
      answers: what follows at once: a space between the two is the answer's first character.

    Raises:
      ValueError: a text that the tokenizer cannot give back, a token that spans the end of a
        prompt, or a prompt or answer that has no token, named; or as `encoded`.
    """
    rows = encoded(tokenizer, [p + a for p, a in zip(prompts, answers, strict=True)])
    prompt_ids, answer_ids = encoded(tokenizer, prompts), []
    for prompt, answer, own, ids in zip(prompts, answers, prompt_ids, rows, strict=True):
        start = len(own)
        if ids[:start] != own:
            raise ValueError(
                f"the tokenizer joins the end of {prompt!r} with what follows it, {answer!r}"
            )
        if not 0 < start < len(ids):
            raise ValueError(f"no token is left of {(answer if start else prompt)!r}")
        back = tokenizer.decode(ids[start:])
        if back != answer and normalise(back) != normalise(answer):
            raise ValueError(f"the tokenizer turns the answer {answer!r} into {back!r}")
        answer_ids.append(ids[start:])
    return prompt_ids, answer_ids


def leading_blanks(tokenizer: Tokenizer, answer_ids: Sequence[int]) -> int:
    """How many of an answer's first tokens hold white space alone.

    Where a tokenizer writes the space before a word as a token of its own, every answer begins
    with that token, and its probability says nothing of the answer: look at the next one.
    """
    blanks = 0
    while blanks < len(answer_ids) - 1 and not tokenizer.decode([answer_ids[blanks]]).strip():
        blanks += 1
    return blanks


def encode_rows(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    ends: Literal["none", "one", "fill"] = "none",
    names: Iterable[str] | None = None,
    length: int | None = None,
    max_len: int | None = None,
    left: bool = False,
) -> dict[str, np.ndarray]:
    """Texts as training rows: prompt, answer, and an end of text; the last two are scored.

    Args:
      tokenizer: of the ids; its `pad_id` fills rows up and is neither valid nor scored.
      prompts: what is asked.
      answers: what follows at once, with the space between the two.
      ends: "none", "one" after each answer, or "fill": the rest of the row is ends, which are
        valid and scored like any token, as a masked model of variable length is trained.
      names: if given, "unit_BL" says what is hidden as a whole: each answer, and each of these
        names in a prompt, from left to right, the longest that begins at a place. A token that
        reaches beyond a name's end belongs to the name.
      length: of the rows; that of the longest text when None.
      max_len: the model's context.
      left: whether rows are filled up on the left.

    Returns:
      Fields of a `Batch` over B texts: int32 "tokens_BL", bool "scored_BL" and "valid_BL", and
      with `names` int32 "unit_BL" (the place where a token's unit begins).

    Examples:
      >>> from dirasym.data import tokenizers
      >>> encode_rows(tokenizers.Characters(), ["ab:"], [" c"])["scored_BL"].astype(int)
      array([[0, 0, 0, 1, 1]])

    Raises:
      ValueError: as `split_answers`; a text longer than `max_len` or `length`; "fill" with `left`.
    """
    if ends == "fill" and left:
        raise ValueError("rows that go on with ends are not filled up on the left")
    prompt_ids, answer_ids = split_answers(tokenizer, prompts, answers)
    end = [] if ends == "none" else [tokenizer.eos_id]
    rows = [[*p, *a, *end] for p, a in zip(prompt_ids, answer_ids, strict=True)]
    for prompt, row in zip(prompts, rows, strict=True):
        if max_len is not None and len(row) > max_len:
            raise ValueError(
                f"{prompt!r} with its answer has {len(row)} tokens, the context {max_len}"
            )
    tokens_BL, valid_BL = pad(rows, tokenizer.pad_id, left=left, length=length)
    first_B = valid_BL.argmax(axis=1)
    answer_B = first_B + [len(ids) for ids in prompt_ids]
    scored_BL = valid_BL & (np.arange(tokens_BL.shape[1]) >= answer_B[:, None])
    if ends == "fill":
        tokens_BL[~valid_BL] = tokenizer.eos_id
        scored_BL |= ~valid_BL
        valid_BL[:] = True
    fields = {"tokens_BL": tokens_BL, "scored_BL": scored_BL, "valid_BL": valid_BL}
    if names is not None:
        unit_BL = np.tile(np.arange(tokens_BL.shape[1], dtype=np.int32), (len(rows), 1))
        sizes = [len(p) + len(a) for p, a in zip(prompt_ids, answer_ids, strict=True)]
        spans = _name_spans(tokenizer, prompts, answers, sizes, names)
        for unit_L, first, answer, ids, found in zip(
            unit_BL, first_B, answer_B, answer_ids, spans, strict=True
        ):
            for start, stop in [*found, (answer - first, answer - first + len(ids))]:
                unit_L[first + start : first + stop] = first + start
        fields["unit_BL"] = unit_BL
    return fields


def encode_facts(
    tokenizer: Tokenizer,
    facts: FactSet,
    *,
    masked: bool,
    noising: Literal["whole", "names", "answer"] = "whole",
    max_len: int | None = None,
) -> dict[str, np.ndarray]:
    """The statements of a fact set as training rows, for a causal or a masked model.

    A causal model is scored on answers and their ends. A masked model's rows go on with ends,
    which are hidden and scored like any token.

    Args:
      tokenizer: of the model.
      facts: whose `train` is told.
      masked: which of the two.
      noising: of a masked model: any token is hidden by itself ("whole"), answers and names in
        prompts are hidden as wholes ("names"), or the answer alone is hidden ("answer").
      max_len: the model's context.

    Returns:
      Fields of a `Batch`, as `encode_rows`.

    Raises:
      ValueError: as `encode_rows`, a masked model without [M], or a statement that holds it.
    """
    tokenizers.check(tokenizer, masked=masked)
    names = None
    if masked and noising == "names":
        names = {query.answers[0] for query in facts.forward + facts.reverse}
        names |= {statement.answer for statement in facts.train}
    fields = encode_rows(
        tokenizer,
        [statement.prompt for statement in facts.train],
        [f" {statement.answer}" for statement in facts.train],
        ends="fill" if masked else "one",
        names=names,
        max_len=max_len,
    )
    if masked:
        del fields["valid_BL"]  # all are
        if noising != "answer":
            fields["scored_BL"] = np.ones_like(fields["scored_BL"])
        if (fields["tokens_BL"] == tokenizer.mask_id).any():
            raise ValueError(f"the statements hold token {tokenizer.mask_id}, [M]")
    return fields


def _name_spans(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    sizes: Sequence[int],
    names: Iterable[str],
) -> Iterator[list[tuple[int, int]]]:
    """(first token, the one behind its last) of each name in each prompt."""
    pattern = name_pattern(names)
    texts = [p + a for p, a in zip(prompts, answers, strict=True)]
    places = placed(tokenizer, texts, sizes)
    for prompt, place in zip(prompts, places, strict=True):
        yield [token_span(place, *match.span()) for match in pattern.finditer(prompt)]


def token_span(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """(first token, the one behind its last) that hold text[start:stop].

    Args:
      offsets: of the text's tokens, from `Tokenizer.offsets`.
      start: its first character.
      stop: the character behind its last.

    Examples:
      >>> token_span([(0, 1), (1, 2), (2, 5), (5, 6)], 2, 4)  # "(", "'", "Ann", ")": "An"
      (2, 3)

    Raises:
      ValueError: no token holds any of it.
    """
    held = [n for n, (first, end) in enumerate(offsets) if end > start and first < stop]
    if not held:
        raise ValueError(f"no token stands at characters {start} to {stop}")
    return held[0], held[-1] + 1


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens_BL, valid_BL) as int32 and bool; by default as long as the longest row.

    Raises:
      ValueError: there is no row, or one is longer than `length`.
    """
    if not rows:
        raise ValueError("there is no text")
    longest = max(map(len, rows))
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"a row of {longest} tokens is longer than {length}")
    tokens_BL = np.full((len(rows), length), pad_id, np.int32)
    valid_BL = np.zeros((len(rows), length), bool)
    for number, row in enumerate(rows):
        place = slice(length - len(row), None) if left else slice(len(row))
        tokens_BL[number, place] = row
        valid_BL[number, place] = True
    return tokens_BL, valid_BL


def pack(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> np.ndarray:
    """Texts one after another, each with an end of text, cut into rows: int32 [n, length].

    What is left over at the end is dropped.

    Raises:
      ValueError: less text than one row, or text that the tokenizer cannot give back.
    """
    rows = encoded(tokenizer, texts)
    stream = [token for ids in rows for token in (*ids, tokenizer.eos_id)]
    count = len(stream) // length
    if count == 0:
        raise ValueError(f"the whole text has {len(stream)} tokens, a row {length}")
    return np.array(stream[: count * length], np.int32).reshape(count, length)


def batch_indices(
    key: jax.Array, first_step: jax.Array | int, num_steps: int, num_examples: int, batch_size: int
) -> jax.Array:
    """Which examples steps first_step..first_step+num_steps-1 read: int32 [num_steps, batch_size].

    Epochs follow one another without a seam: with n examples, the slots e·n..(e+1)·n-1 of
    the stream hold permutation `fold_in(key, e)`, and step t reads slots t·b..(t+1)·b-1.
    Every example is thus seen exactly once per epoch, and a batch may span two epochs.

    Raises:
      ValueError: no examples, an empty batch, or a known step below 0.
    """
    _check_order(first_step, num_examples, batch_size)
    # step = round·n + rest, and a round of n steps is b whole epochs: no step·b to overflow int32.
    rounds, rest = jnp.divmod(jnp.asarray(first_step), num_examples)
    epochs, first_slot = _product_divmod(rest, batch_size, num_examples)
    first_epoch = rounds * batch_size + epochs
    slots = first_slot + jnp.arange(num_steps * batch_size)
    num_epochs = (num_steps * batch_size - 1) // num_examples + 2  # that many can be touched

    key = keys.threefry(key)

    def shuffled(epoch):
        return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)

    orders = jax.vmap(shuffled)(first_epoch + jnp.arange(num_epochs))
    indices = orders[slots // num_examples, slots % num_examples]
    return indices.reshape(num_steps, batch_size)


def _check_order(first_step: jax.Array | int, num_examples: int, batch_size: int) -> None:
    if num_examples < 1 or batch_size < 1:
        raise ValueError(f"need examples and a batch, got {num_examples=} and {batch_size=}")
    if not isinstance(first_step, jax.core.Tracer) and first_step < 0:
        raise ValueError(f"steps count from 0, got {first_step}")


def _product_divmod(x: jax.Array, factor: int, divisor: int) -> tuple[jax.Array, jax.Array]:
    """(x·factor // divisor, x·factor % divisor) for x < divisor, bit by bit of `factor`.

    The product itself may be too large for int32.
    """
    quotient = remainder = jnp.zeros_like(x)
    for bit in f"{factor:b}":
        remainder = 2 * remainder + int(bit) * x
        quotient, remainder = 2 * quotient + remainder // divisor, remainder % divisor
    return quotient, remainder


def epoch_indices(
    key: jax.Array, first_step: jax.Array | int, num_steps: int, num_examples: int, batch_size: int
) -> jax.Array:
    """`batch_indices` for epochs that end by themselves: int32 [num_steps, batch_size].

    Each epoch is permutation `fold_in(key, e)` in ⌈n/b⌉ steps; the last one is filled up with
    -1, which stands for no example.

    Raises:
      ValueError: as `batch_indices`.
    """
    _check_order(first_step, num_examples, batch_size)
    epoch_steps = -(-num_examples // batch_size)
    step_T = jnp.asarray(first_step) + jnp.arange(num_steps)
    num_epochs = (num_steps - 1) // epoch_steps + 2  # that many can be touched

    key = keys.threefry(key)

    def shuffled(epoch):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
        missing = epoch_steps * batch_size - num_examples
        filled = jnp.pad(order, (0, missing), constant_values=-1)
        return filled.reshape(epoch_steps, batch_size)

    first_epoch = step_T[0] // epoch_steps
    orders = jax.vmap(shuffled)(first_epoch + jnp.arange(num_epochs))
    return orders[step_T // epoch_steps - first_epoch, step_T % epoch_steps]


def batch_at(arrays: Any, key: jax.Array, step: jax.Array | int, batch_size: int) -> Any:
    """Rows of step `step`: every array of the pytree `arrays` [n, ...] as [batch_size, ...].

    Runs on the device, under jit, with a traced `step`. The same (key, step) gives the
    same rows on any machine; see `batch_indices` for the order.

    Raises:
      ValueError: arrays of unequal length, none at all, an empty batch, or a step below 0.
    """
    rows = batch_indices(key, step, 1, count_examples(arrays), batch_size)[0]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], arrays)


def count_examples(arrays: Any) -> int:
    """The leading size that all arrays of a pytree share.

    Raises:
      ValueError: they do not, or there is none.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(arrays)]
    if len({shape[0] for shape in shapes if shape}) != 1 or not all(shapes):
        raise ValueError(f"arrays must share one leading size, got shapes {shapes}")
    return shapes[0][0]
