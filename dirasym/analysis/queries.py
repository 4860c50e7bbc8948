"""From the texts of a fact set to the questions in tokens that ask about them."""

import itertools
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

from dirasym.analysis.recall import Among, Cloze, Ids, choice_among
from dirasym.data import batching, text, tokenizers
from dirasym.data.facts import FactSet, Query, Statement
from dirasym.data.tokenizers import Tokenizer

Parts = tuple[Ids, Ids, Ids]  # of a question: what is before, what is asked, what is after


def paired_queries(
    data: FactSet, tokenizer: Tokenizer, *, masked: bool, limit: int | None = None
) -> tuple[Cloze, Cloze] | None:
    """The theory's two questions about each fact that is trained in one direction.

    One pair for each reverse query whose answer A stands in a trained prompt. A masked model is
    asked for the first token of A both times: in the statement, "[M]'s child is B", and in
    reverse, "B's parent is [M]". A causal model cannot look ahead: it is asked what each prompt
    goes on with, B after "A's child is" and A after "B's parent is".

    What follows a name in its template, such as a full stop, is no part of the name: a masked
    model reads it, as it reads all else.

    Args:
      data: the facts.
      tokenizer: of the texts.
      masked: the kind of model.
      limit: at most so many pairs.

    Returns:
      The forward and the reverse questions, as many of each; None where there are none.

    Raises:
      ValueError: a masked model without [M], or as `batching.split_answers`.
    """
    tokenizers.check(tokenizer, masked=masked)
    pairs: list[tuple[Parts, Parts]] = []  # the forward and the reverse question
    for query, name, statement in itertools.islice(_told(data), limit):
        (prompt, asked), (answer, entity) = batching.split_answers(
            tokenizer,
            [statement.prompt, query.prompt],
            [f" {statement.answer}", f" {query.answers[0]}"],
        )
        if masked:
            whole = f"{statement.prompt} {statement.answer}"
            (offsets,) = batching.placed(tokenizer, [whole], [len(prompt) + len(answer)])
            (place, *_) = (match.span() for match in text.name_pattern([name]).finditer(whole))
            start, stop = batching.token_span(offsets, *place)
            row = [*prompt, *answer]
            forward = (*_after_blanks(tokenizer, row[:start], row[start:stop]), row[stop:])
        else:
            forward = (*_after_blanks(tokenizer, prompt, answer), [])
        tail: Ids = []
        if masked and name != query.answers[0]:
            whole = f"{query.prompt} {query.answers[0]}"
            (offsets,) = batching.placed(tokenizer, [whole], [len(asked) + len(entity)])
            place = len(query.prompt) + 1, len(query.prompt) + 1 + len(name)
            size = batching.token_span(offsets, *place)[1] - len(asked)
            entity, tail = entity[:size], entity[size:]
        pairs.append((forward, (*_after_blanks(tokenizer, asked, entity), tail)))
    if not pairs:
        return None
    mask_id = tokenizer.mask_id if masked else None
    first, second = (
        Cloze.of(*zip(*side, strict=True), pad_id=tokenizer.pad_id, mask_id=mask_id)
        for side in zip(*pairs, strict=True)
    )
    return first, second


def _told(data: FactSet) -> Iterator[tuple[Query, str, Statement]]:
    """Each reverse query with the first statement whose prompt names its answer, and that name.

    Only statements with the rarest word of the name are searched: many facts take linear time.
    """
    by_word: dict[str, list[Statement]] = defaultdict(list)
    for statement in data.train:
        for word in set(re.findall(r"\w+", statement.prompt)):
            by_word[word].append(statement)

    def naming(name: str) -> Iterator[Statement]:
        whole_name = text.name_pattern([name])
        words = re.findall(r"\w+", name)
        few = min((by_word.get(word, []) for word in words), key=len, default=data.train)
        return (statement for statement in few if whole_name.search(statement.prompt))

    for query in data.reverse:
        told = ((query, name, one) for name in _written(query) for one in naming(name))
        yield from itertools.islice(told, 1)


def _written(query: Query) -> list[str]:
    """The first answer, and what may be left of it without the text that follows the name."""
    whole, *others = query.answers
    shorter = [other for other in others if other and whole.startswith(other)]
    return [whole, *sorted(shorter, key=len, reverse=True)]


def first_token_questions(
    queries: Sequence[Query],
    tokenizer: Tokenizer,
    *,
    masked: bool,
    num_new: int | None = None,
    any_right: bool = False,
    left: bool = False,
) -> tuple[Cloze, Among]:
    """What each query's first right answer begins with, and among what it is chosen.

    Args:
      queries: of one direction.
      tokenizer: of the texts.
      masked: the kind of model.
      num_new: tokens of the answer's place that a masked model reads as [M]; the answer's own
        number when None.
      any_right: whether what begins any right answer is right; the first answer alone is, if not.
      left: whether rows are filled up on the left.

    Raises:
      ValueError: a masked model without [M], or as `batching.split_answers`.
    """
    tokenizers.check(tokenizer, masked=masked)
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
        left=left,
    )
    asides = batching.encoded(tokenizer, [f" {prompt}" for prompt in prompts])
    others = _further_answers(queries, tokenizer, before) if any_right else None
    return questions, choice_among(questions.target_E, names, asides, others)


def _further_answers(
    queries: Sequence[Query], tokenizer: Tokenizer, before: Sequence[Ids]
) -> list[dict[int, Hashable]]:
    """By first token, each query's right answers behind the first that follow the same tokens."""
    found: list[dict[int, Hashable]] = [{} for _ in queries]
    asked = [(n, answer) for n, query in enumerate(queries) for answer in query.answers[1:]]
    if asked:
        prompts = [queries[number].prompt for number, _ in asked]
        ids = batching.split_answers(tokenizer, prompts, [f" {answer}" for _, answer in asked])
        for (number, answer), *parts in zip(asked, *ids, strict=True):
            head, tail = _after_blanks(tokenizer, *parts)
            if list(head) == list(before[number]):
                found[number].setdefault(tail[0], answer)
    return found


def _after_blanks(tokenizer: Tokenizer, prompt: list[int], answer: list[int]):
    """The two with the answer's first tokens of white space given to the prompt."""
    blanks = batching.leading_blanks(tokenizer, answer)
    return [*prompt, *answer[:blanks]], answer[blanks:]
