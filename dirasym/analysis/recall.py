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
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dirasym.data import batching, text
from dirasym.data.facts import FactSet, Query, Statement
from dirasym.data.tokenizers import Tokenizer
from dirasym.objectives import exclude, token_nll
from dirasym.rows import call
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
    """
    tokens_EL = jnp.asarray(questions.tokens_EL)
    rows_E = jnp.arange(len(tokens_EL)) * tokens_EL.shape[1] + jnp.asarray(questions.position_E)
    logits = call(apply_fn, params, tokens_EL, valid_BL=questions.valid_EL, rows_R=rows_E)
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return exclude(wide, mask_id)


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
    """

    first_C: np.ndarray
    aside_EX: np.ndarray
    is_asked_E: np.ndarray


def choice_among(
    target_E: Array, answers: Sequence[Hashable], asides: Sequence[Ids] | None = None
) -> Among:
    """The answers of questions of one direction as each other's rivals.

    An answer is known by its first token: "the author .." and "the author of .." cannot be told
    apart, and are not asked. Memory and time are linear in the number of questions.

    Args:
      target_E: first token of each question's true answer.
      answers: which answer it is, one each.
      asides: tokens of each question. A name that is asked about is no rival, so that a model
        which copies the prompt is not thereby wrong.
    """
    target_E = np.asarray(target_E)
    begun: dict[int, set[Hashable]] = {}
    for token, answer in zip(target_E.tolist(), answers, strict=True):
        begun.setdefault(token, set()).add(answer)
    sets = (
        [set(map(int, aside)) for aside in asides]
        if asides is not None
        else [set()] * len(target_E)
    )
    aside_EX = np.tile(target_E[:, None], (1, max(1, *map(len, sets))))
    for row, aside in zip(aside_EX, sets, strict=True):
        row[: len(aside)] = sorted(aside)
    is_asked_E = np.array(
        [len(begun[t]) == 1 and t not in s for t, s in zip(target_E.tolist(), sets, strict=True)]
    )
    return Among(np.unique(target_E), aside_EX, is_asked_E)


def paired_queries(
    data: FactSet, tokenizer: Tokenizer, *, masked: bool, limit: int | None = None
) -> tuple[Cloze, Cloze] | None:
    """The theory's two questions about each fact that is trained in one direction.

    One pair for each reverse query whose answer A stands in a trained prompt. A masked model is
    asked for the first token of A both times: in the statement, "[M]'s child is B", and in
    reverse, "B's parent is [M]". A causal model cannot look ahead: it is asked what each prompt
    goes on with, B after "A's child is" and A after "B's parent is".

    Args:
      data: the facts.
      tokenizer: of the texts.
      masked: the kind of model.
      limit: at most so many pairs.

    Returns:
      The forward and the reverse questions, as many of each; None where there are none.

    Raises:
      ValueError: as `batching.split_answers`.
    """
    forward: list[tuple[Ids, Ids, Ids]] = []  # what is before, what is asked, what is after
    reverse: list[tuple[Ids, Ids, Ids]] = []
    for query, statement in itertools.islice(_told(data), limit):
        (prompt, asked), (answer, entity) = batching.split_answers(
            tokenizer,
            [statement.prompt, query.prompt],
            [f" {statement.answer}", f" {query.answers[0]}"],
        )
        if masked:
            whole = f"{statement.prompt} {statement.answer}"
            (offsets,) = tokenizer.offsets([whole])
            named = text.name_pattern(query.answers[:1]).finditer(whole)
            (place, *_) = (match.span() for match in named)
            start, stop = batching.token_span(offsets, *place)
            row = [*prompt, *answer]
            forward.append((*_after_blanks(tokenizer, row[:start], row[start:stop]), row[stop:]))
        else:
            forward.append((*_after_blanks(tokenizer, prompt, answer), []))
        reverse.append((*_after_blanks(tokenizer, asked, entity), []))
    if not forward:
        return None
    mask_id = tokenizer.mask_id if masked else None
    first, second = (
        Cloze.of(*zip(*side, strict=True), pad_id=tokenizer.pad_id, mask_id=mask_id)
        for side in (forward, reverse)
    )
    return first, second


def _told(data: FactSet) -> Iterator[tuple[Query, Statement]]:
    """Each reverse query with the first statement whose prompt names its answer.

    Only statements with the rarest word of the name are searched: many facts take linear time.
    """
    by_word: dict[str, list[Statement]] = defaultdict(list)
    for statement in data.train:
        for word in set(re.findall(r"\w+", statement.prompt)):
            by_word[word].append(statement)
    for query in data.reverse:
        whole_name = text.name_pattern(query.answers[:1])
        words = re.findall(r"\w+", query.answers[0])
        few = min((by_word.get(word, []) for word in words), key=len, default=data.train)
        for statement in few:
            if whole_name.search(statement.prompt):
                yield query, statement
                break


def first_token_questions(
    queries: Sequence[Query], tokenizer: Tokenizer, *, masked: bool, num_new: int | None = None
) -> tuple[Cloze, Among]:
    """What each query's first right answer begins with, and among what it is chosen.

    Args:
      queries: of one direction.
      tokenizer: of the texts.
      masked: the kind of model.
      num_new: tokens of the answer's place that a masked model reads as [M]; the answer's own
        number when None.

    Raises:
      ValueError: as `batching.split_answers`.
    """
    prompts = [query.prompt for query in queries]
    names = [query.answers[0] for query in queries]
    ids = batching.split_answers(tokenizer, prompts, [f" {name}" for name in names])
    before, answers = zip(
        *(_after_blanks(tokenizer, *parts) for parts in zip(*ids, strict=True)), strict=True
    )
    blanks = [len(b) - len(own) for b, own in zip(before, ids[0], strict=True)]
    questions = Cloze.of(
        before,
        answers,
        pad_id=tokenizer.pad_id,
        mask_id=tokenizer.mask_id if masked else None,
        num_masks=None if num_new is None else [max(num_new - b, 1) for b in blanks],
    )
    asides = tokenizer.encode([f" {prompt}" for prompt in prompts])
    return questions, choice_among(questions.target_E, names, asides)


def _after_blanks(tokenizer: Tokenizer, prompt: list[int], answer: list[int]):
    """The two with the answer's first tokens of white space given to the prompt."""
    blanks = batching.leading_blanks(tokenizer, answer)
    return [*prompt, *answer[:blanks]], answer[blanks:]


class TokenRecall(NamedTuple):
    """What a model makes of the first token of each answer, [E].

    Attributes:
      p_E: its probability.
      nll_E: −log of it, in nats.
      rank_E: 1 + the number of tokens that are more probable.
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
) -> TokenRecall:
    """Asks a model every question.

    Args:
      apply_fn: the model. It is compiled once for one `apply_fn`, chunk size and length.
      params: its parameters.
      questions: see `Cloze`.
      mask_id: [M] of a masked model, which is never an answer.
      among: see `choice_among`; no choice is measured when None.
      chunk_size: questions a call. Memory is that of so many rows' logits.
    """
    first_C = np.zeros(1, int) if among is None else among.first_C
    aside_EX = np.asarray(questions.target_E)[:, None] if among is None else among.aside_EX
    p_E, nll_E, rank_E, wins_E = in_chunks(
        lambda _, chunk, aside_BX: _read(apply_fn, params, chunk, first_C, aside_BX, mask_id),
        (questions, aside_EX),
        chunk_size,
    )
    is_asked_E = False if among is None else among.is_asked_E
    return TokenRecall(p_E, nll_E, rank_E, np.where(is_asked_E, wins_E.astype(float), np.nan))


@functools.partial(jax.jit, static_argnames=("apply_fn", "mask_id"))
def _read(apply_fn, params, questions, first_C, aside_BX, mask_id):
    """Probability, nll and rank of the targets, and whether they beat the rivals."""
    logits_BV = logits_at(apply_fn, params, questions, mask_id=mask_id)
    row_B = jnp.arange(len(logits_BV))
    target_B = questions.target_E
    own_B = logits_BV[row_B, target_B]
    rivals_BV = logits_BV.at[row_B[:, None], aside_BX].set(-jnp.inf)
    rivals_BC = rivals_BV.at[row_B, target_B].set(-jnp.inf)[:, first_C]
    return (
        jax.nn.softmax(logits_BV)[row_B, target_B],
        token_nll(logits_BV, target_B),
        1 + jnp.sum(logits_BV > own_B[:, None], axis=1),
        own_B > jnp.max(rivals_BC, axis=1),
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
