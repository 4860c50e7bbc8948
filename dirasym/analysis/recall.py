"""What a model answers: probability, rank and choice of answers, exact match, and their loss.

A question is a row of tokens with one position where a token is asked for (`Cloze`). A masked
model reads the whole row with [M] in the answer's place; a causal model reads what stands before
the answer and is asked what comes next. Measures are of one question each, [E], so that means,
medians and intervals over questions are taken by whoever reports them.

    questions = Cloze.of(prompts, answers, mask_id=mask_id, pad_id=pad_id)
    among = choice_among(questions.target_E, names, prompts)
    found = token_recall(apply_fn, params, questions, mask_id=mask_id, among=among)
    wilson_interval(int(found.choice_E[among.is_asked_E].sum()), among.is_asked_E.sum())
"""

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dirasym.data import batching, text
from dirasym.objectives import exclude, token_nll
from dirasym.precision import widened
from dirasym.rows import call, check_mask_id, hidden_share
from dirasym.types import ApplyFn, Array, Params

Ids = Sequence[int]


@flax.struct.dataclass
class Cloze:
    """Rows of tokens, each with one position where a token is asked for.

    Attributes:
      tokens_EL: int32, what the model reads.
      position_E: whose logits are asked.
      target_E: the true token.
      valid_EL: False at padding; None where all are valid.
    """

    tokens_EL: Array
    position_E: Array
    target_E: Array
    valid_EL: Array | None = None

    @classmethod
    def of(
        cls,
        before: Sequence[Ids],
        answers: Sequence[Ids],
        after: Sequence[Ids] | None = None,
        *,
        pad_id: int,
        mask_id: int | None = None,
        num_masks: Sequence[int] | None = None,
        left: bool = False,
    ) -> "Cloze":
        """Questions for the first token of each answer.

        Examples:
          >>> questions = Cloze.of([[5], [6, 7]], [[1, 2], [3]], pad_id=0, mask_id=9)
          >>> questions.tokens_EL.tolist(), questions.position_E.tolist()
          ([[5, 9, 9], [6, 7, 9]], [1, 2])
          >>> causal = Cloze.of([[5], [6, 7]], [[1, 2], [3]], pad_id=0)
          >>> causal.tokens_EL.tolist(), causal.position_E.tolist()
          ([[5, 0], [6, 7]], [0, 1])

        Args:
          before: tokens before each answer.
          answers: at least one token each.
          after: tokens after each answer, none when None; for masked models alone.
          pad_id: fills the rows up.
          mask_id: [M] of a masked model; None asks a causal one, at the token before the answer.
          num_masks: [M]s in each answer's place; as many as it has tokens when None.
          left: whether padding stands left of a row.

        Raises:
          ValueError: an empty answer, a causal question without a token before its answer or
            with one after it, or none at all; the question is numbered from 0.
        """
        if not len(before):
            raise ValueError("there are no questions")
        rows, position, target = [], [], []
        for number, (head, answer) in enumerate(zip(before, answers, strict=True)):
            tail = after[number] if after is not None else ()
            if not len(answer):
                raise ValueError(f"the answer of question {number} has no token")
            if mask_id is None and (not len(head) or len(tail)):
                raise ValueError(
                    f"a causal model reads what is before an answer: question {number} has "
                    f"{len(head)} tokens before it and {len(tail)} after it"
                )
            size = len(answer) if num_masks is None else num_masks[number]
            masks = [] if mask_id is None else [mask_id] * size
            rows.append([*head, *masks, *tail])
            position.append(len(head) - (mask_id is None))
            target.append(answer[0])
        tokens_EL, valid_EL = batching.pad(rows, pad_id, left=left)
        if left:
            position = np.add(position, valid_EL.argmax(axis=1))
        return cls(tokens_EL, np.asarray(position), np.asarray(target), valid_EL)


def logits_at(
    apply_fn: ApplyFn, params: Params, questions: Cloze, *, mask_id: int | None = None
) -> jax.Array:
    """Logits where each question asks: [E, V], float32 or what is wider of the model's.

    [M] is no answer: with `mask_id` its logit is −∞.

    Raises:
      ValueError: a mask id that the model lacks.
    """
    if mask_id is not None:
        check_mask_id(mask_id, apply_fn)
    tokens_EL = jnp.asarray(questions.tokens_EL)
    rows_E = jnp.arange(len(tokens_EL)) * tokens_EL.shape[1] + jnp.asarray(questions.position_E)
    optional = dict(
        valid_BL=questions.valid_EL, noise_B=hidden_share(tokens_EL, mask_id, questions.valid_EL)
    )
    logits = call(apply_fn, params, tokens_EL, rows_R=rows_E, **optional)
    if mask_id is not None:
        check_mask_id(mask_id, apply_fn, logits.shape[-1])
    return exclude(widened(logits), mask_id)


def query_loss(
    apply_fn: ApplyFn, *, mask_id: int | None = None
) -> Callable[[Params, Cloze], jax.Array]:
    """−log p(target) in nats, as a loss of (params, question).

    The question is one, without the leading axis, as `alignment` gives its examples.
    """

    def loss(params: Params, question: Cloze) -> jax.Array:
        one = jax.tree.map(lambda x: jnp.asarray(x)[None], question)
        return token_nll(logits_at(apply_fn, params, one, mask_id=mask_id), one.target_E)[0]

    return loss


def paired_losses(
    apply_fn: ApplyFn, *, mask_id: int | None = None
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """`query_loss` of the first and of the second question of (params, pair of questions)."""
    loss = query_loss(apply_fn, mask_id=mask_id)
    first, second = (lambda params, pair, side=side: loss(params, pair[side]) for side in (0, 1))
    return first, second


class Among(NamedTuple):
    """What each question's answer is chosen among.

    Attributes:
      first_C: first tokens of all answers.
      aside_EX: tokens of each question, which are no rivals in it; filled up by its target.
      is_asked_E: bool, whether the choice can be asked: the true first token begins no other
        answer and stands in no question.
      right_EX: first tokens of all that counts as right, each once, the target first; filled up
        by −1.
    """

    first_C: np.ndarray
    aside_EX: np.ndarray
    is_asked_E: np.ndarray
    right_EX: np.ndarray


def choice_among(
    target_E: Array,
    answers: Sequence[Hashable],
    asides: Sequence[Ids] | None = None,
    others: Sequence[Mapping[int, Hashable]] | None = None,
) -> Among:
    """The answers of questions of one direction as each other's rivals.

    An answer is known by its first token: "the author .." and "the author of .." cannot be told
    apart, and are not asked. Memory and time are linear in the number of questions.

    Args:
      target_E: first token of each question's true answer.
      answers: which answer it is, one each.
      asides: tokens of each question. A name that is asked about is no rival, so that a model
        which copies the prompt is not thereby wrong.
      others: by first token, further answers that are right; none when None.
    """
    target_E = np.asarray(target_E)
    right: list[dict[int, Hashable]] = [
        {**further, token: answer}
        for token, answer, further in zip(
            target_E.tolist(), answers, others or [{}] * len(target_E), strict=True
        )
    ]
    begun: dict[int, set[Hashable]] = {}
    for of_question in right:
        for token, answer in of_question.items():
            begun.setdefault(token, set()).add(answer)
    sets = (
        [set(map(int, aside)) for aside in asides]
        if asides is not None
        else [set()] * len(target_E)
    )
    aside_EX = np.tile(target_E[:, None], (1, max(1, *map(len, sets))))
    for row, aside in zip(aside_EX, sets, strict=True):
        row[: len(aside)] = sorted(aside)
    right_EX = np.full((len(target_E), max(map(len, right))), -1)
    for row, target, of_question in zip(right_EX, target_E, right, strict=True):
        row[: len(of_question)] = [target, *sorted(set(of_question) - {target})]
    is_asked_E = np.array(
        [
            all(begun[t] <= set(own.values()) and t not in s for t in own)
            for own, s in zip(right, sets, strict=True)
        ]
    )
    return Among(np.array(sorted(begun)), aside_EX, is_asked_E, right_EX)


class TokenRecall(NamedTuple):
    """What a model makes of the first token of each answer, [E].

    Attributes:
      p_E: its probability; of several right tokens (`Among.right_EX`), that of any of them.
      nll_E: −log of it, in nats.
      rank_E: 1 + the number of tokens that are more probable; the best of several.
      choice_E: 1.0 where it is more probable than the first tokens of all other answers, 0.0
        where it is not, NaN where that cannot be asked (or was not).
    """

    p_E: np.ndarray
    nll_E: np.ndarray
    rank_E: np.ndarray
    choice_E: np.ndarray


def token_recall(
    apply_fn: ApplyFn,
    params: Params,
    questions: Cloze,
    *,
    mask_id: int | None = None,
    among: Among | None = None,
    chunk_size: int = 64,
    padded: bool = True,
) -> TokenRecall:
    """Asks a model every question.

    Args:
      apply_fn: the model. It is compiled once for one `apply_fn`, chunk size and length.
      params: its parameters.
      questions: see `Cloze`.
      mask_id: [M] of a masked model, which is never an answer.
      among: see `choice_among`; no choice is measured when None.
      chunk_size: questions a call. Memory is that of so many rows' logits.
      padded: whether rows of unequal length are asked together; if not, see `of_one_length`.
    """
    if among is None:
        target_E1 = np.asarray(questions.target_E)[:, None]
        among = Among(np.zeros(1, int), target_E1, np.zeros(len(target_E1), bool), target_E1)
    if not padded:
        return _by_length(
            lambda part, chosen: token_recall(
                apply_fn, params, part, mask_id=mask_id, among=chosen, chunk_size=chunk_size
            ),
            questions,
            among,
        )
    judged = in_chunks(
        lambda _, chunk, *sides: _read(apply_fn, params, chunk, among.first_C, *sides, mask_id),
        (questions, among.aside_EX, among.right_EX),
        chunk_size,
    )
    return with_choice(judged, among)


def _by_length(function: Callable[..., Any], questions: Cloze, among: Among) -> Any:
    """`function(questions, among)` of the rows of each length, none of which has padding."""
    parts, places = [], []
    for place_E, (part,) in of_one_length(questions):
        rows = [x[place_E] for x in (among.aside_EX, among.is_asked_E, among.right_EX)]
        parts.append(function(part, Among(among.first_C, *rows)))
        places.append(place_E)
    order_E = np.argsort(np.concatenate(places))
    return jax.tree.map(lambda *x: np.concatenate(x)[order_E], *parts)


def of_one_length(*questions: Cloze) -> Iterator[tuple[np.ndarray, tuple[Cloze, ...]]]:
    """Rows whose lengths are the same in each of the `questions`, where they are, unpadded.

    What a model is asked that cannot be told of padding.

    Raises:
      ValueError: rows that are filled up on the left.
    """
    for q in questions:
        if q.valid_EL is not None and (np.diff(np.asarray(q.valid_EL, int)) > 0).any():
            raise ValueError("rows of unequal length must be filled up on the right")
    sizes_EQ = np.stack(
        [
            np.full(len(q.target_E), q.tokens_EL.shape[1])
            if q.valid_EL is None
            else np.sum(q.valid_EL, axis=1)
            for q in questions
        ],
        axis=1,
    )
    for sizes in np.unique(sizes_EQ, axis=0):
        place_E = np.flatnonzero((sizes_EQ == sizes).all(axis=1))
        yield (
            place_E,
            tuple(
                Cloze(
                    *(
                        np.asarray(x)[place_E]
                        for x in (q.tokens_EL[:, :size], q.position_E, q.target_E)
                    )
                )
                for q, size in zip(questions, sizes, strict=True)
            ),
        )


def with_choice(judged: tuple[np.ndarray, ...], among: Among) -> TokenRecall:
    """What `judge` found, with a choice only where it can be asked."""
    p_E, nll_E, rank_E, wins_E = judged
    return TokenRecall(p_E, nll_E, rank_E, np.where(among.is_asked_E, wins_E.astype(float), np.nan))


@functools.partial(jax.jit, static_argnames=("apply_fn", "mask_id"))
def _read(apply_fn, params, questions, first_C, aside_BX, right_BX, mask_id):
    """`judge` of a model's logits."""
    logits_BV = logits_at(apply_fn, params, questions, mask_id=mask_id)
    return judge(logits_BV, first_C, aside_BX, right_BX)


def judge(
    logits_BV: jax.Array, first_C: Array, aside_BX: Array, right_BX: Array
) -> tuple[jax.Array, ...]:
    """Probability, nll and rank of the right tokens, and whether they beat the rivals, [B] each.

    Arguments as the fields of `Among`.
    """
    logits_BV = widened(logits_BV)
    row_B1 = jnp.arange(len(logits_BV))[:, None]
    is_right_BX = jnp.asarray(right_BX) >= 0
    filled_BX = jnp.where(is_right_BX, right_BX, right_BX[:, :1])
    own_B = jnp.max(logits_BV[row_B1, filled_BX], axis=1)
    log_p_BX = jax.nn.log_softmax(logits_BV)[row_B1, filled_BX]
    p_BX = jax.nn.softmax(logits_BV)[row_B1, filled_BX]
    rivals_BV = logits_BV.at[row_B1, aside_BX].set(-jnp.inf).at[row_B1, filled_BX].set(-jnp.inf)
    return (
        jnp.sum(p_BX, axis=1, where=is_right_BX),
        -jax.nn.logsumexp(log_p_BX, axis=1, where=is_right_BX),
        1 + jnp.sum(logits_BV > own_B[:, None], axis=1),
        own_B > jnp.max(rivals_BV[:, first_C], axis=1),
    )


def in_chunks(function: Callable[..., Any], arrays: Any, chunk_size: int) -> Any:
    """`function(chunk's number, *arrays)` over leading axes in chunks of one size, joined.

    One size is one compiled program: the last chunk is filled up by the last row.
    """
    count = len(jax.tree.leaves(arrays)[0])
    size = min(chunk_size, count)
    outputs = []
    for number, start in enumerate(range(0, count, size)):
        index = np.minimum(np.arange(start, start + size), count - 1)
        chunk = jax.tree.map(lambda x, index=index: np.asarray(x)[index], arrays)
        outputs.append(jax.device_get(function(number, *chunk)))
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *outputs)


class TextRecall(NamedTuple):
    """What a model says to each question, [E], bool; see `data.text`.

    Attributes:
      exact_E: one of the right answers, and nothing else.
      begun_E: begins with one of them.
      copied_E: repeats words of the question.
    """

    exact_E: np.ndarray
    begun_E: np.ndarray
    copied_E: np.ndarray


def text_recall(
    outputs: Sequence[str], prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> TextRecall:
    """Compares what was said with the right answers of each question, and with the question."""
    said = list(zip(outputs, prompts, answers, strict=True))
    return TextRecall(
        np.array([text.is_exact_match(output, right) for output, _, right in said], bool),
        np.array([text.begins_with_answer(output, right) for output, _, right in said], bool),
        np.array([text.is_copied(output, prompt) for output, prompt, _ in said], bool),
    )
