"""The questions of a fact set, put to a model: in words, by first tokens, and in pairs.

asked = Questions.of(facts, tokenizer, masked=True)
generate = asked.generator(apply_fn)
found = asked.recall(apply_fn, params, asked.said(generate, params, key))
found["reverse"].text.exact_E.mean(), found["reverse"].token.p_E.mean()
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from dirasym import decoding
from dirasym.analysis.alignment import Alignment, alignment
from dirasym.analysis.blocks import TOTAL, BlockOf, Blocks
from dirasym.analysis.queries import first_token_questions
from dirasym.analysis.recall import (
    Among,
    Cloze,
    TextRecall,
    TokenRecall,
    in_chunks,
    paired_losses,
    text_recall,
    token_recall,
)
from dirasym.data import batching, tokenizers
from dirasym.data.facts import FactSet, Query
from dirasym.data.tokenizers import Tokenizer
from dirasym.rows import call
from dirasym.types import ApplyFn, Array, Params
from dirasym.usage import UsageError

Generate = Callable[[Params, jax.Array, Array, Array], Array]


class Recalled(NamedTuple):
    """What a model makes of the questions of one direction, [E] each.

    Attributes:
      text: of what it says.
      token: of the first token of each question's first answer.
    """

    text: TextRecall
    token: TokenRecall

    def summary(self) -> dict[str, float]:
        """Means over questions, as results say them.

        "percent" of exact matches, "begun_percent", "copied_percent"; "choice_percent" of the
        questions where a choice can be asked, NaN where there is none; "p", the mean
        probability, and "rank", the median one; "questions", how many there are, which
        `intervals.wilson_interval` asks for.
        """
        choice_E = self.token.choice_E[np.isfinite(self.token.choice_E)]
        return {
            "percent": 100 * np.mean(self.text.exact_E),
            "begun_percent": 100 * np.mean(self.text.begun_E),
            "copied_percent": 100 * np.mean(self.text.copied_E),
            "choice_percent": 100 * np.mean(choice_E) if len(choice_E) else np.nan,
            "p": np.mean(self.token.p_E),
            "rank": np.median(self.token.rank_E),
            "questions": len(self.text.exact_E),
        }


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions of a fact set in tokens: the forward ones, then the reverse ones.

    Attributes:
      queries: E questions.
      sides: which of them are "forward", which "reverse".
      tokens_EL, valid_EL: what is asked, filled up, for a model to go on.
      num_new: tokens that an answer may take.
      first: by direction, the first token of each first answer and among what it is chosen
        (see `queries.first_token_questions`). A masked model reads `num_new` [M] in its place.
      tokenizer: its ids.
      mask_id: [M]; None where a causal model is asked.
    """

    queries: tuple[Query, ...]
    sides: dict[str, slice]
    tokens_EL: np.ndarray
    valid_EL: np.ndarray
    num_new: int
    first: dict[str, tuple[Cloze, Among]]
    tokenizer: Tokenizer
    mask_id: int | None

    @classmethod
    def of(
        cls,
        facts: FactSet,
        tokenizer: Tokenizer,
        *,
        masked: bool,
        num_new: int = 0,
        max_len: int | None = None,
        any_right: bool = False,
        left: bool = False,
    ) -> "Questions":
        """The questions of a fact set.

        Args:
          facts: whose `forward` and `reverse` are asked.
          tokenizer: of the model; with a `mask_id` if the model is masked.
          masked: whether a masked model is asked, or a causal one.
          num_new: tokens that an answer may take; 0: the longest right one and its end.
          max_len: the model's context.
          any_right: whether the first token of any right answer is right, or that of the first.
          left: whether rows are filled up on the left.

        Raises:
          ValueError: the longest question and its answer exceed the context, a masked model
            without [M], one that ends texts or stands in one, or text that the tokenizer cannot
            hold (see `batching.split_answers`).
        """
        tokenizers.check(tokenizer, masked=masked)
        queries = facts.forward + facts.reverse
        pairs = [(query.prompt, f" {answer}") for query in queries for answer in query.answers]
        prompts, answers = batching.split_answers(tokenizer, *zip(*pairs, strict=True))
        if masked:
            _check_hidden(tokenizer, pairs, prompts, answers)
        num_new = num_new or max(map(len, answers)) + 1
        first = np.cumsum([0, *(len(query.answers) for query in queries)])[:-1]
        rows = [prompts[n] for n in first]
        tokens_EL, valid_EL = batching.pad(rows, tokenizer.pad_id, left=left)
        needed = tokens_EL.shape[1] + num_new
        if max_len is not None and needed > max_len:
            raise ValueError(
                f"the longest question and {num_new} tokens after it are {needed}, "
                f"the context has {max_len}"
            )
        split = len(facts.forward)
        how: dict[str, Any] = dict(masked=masked, num_new=num_new, any_right=any_right, left=left)
        return cls(
            queries,
            {"forward": slice(split), "reverse": slice(split, None)},
            tokens_EL,
            valid_EL,
            num_new,
            {
                name: first_token_questions(side, tokenizer, **how)
                for name, side in (("forward", facts.forward), ("reverse", facts.reverse))
            },
            tokenizer,
            tokenizer.mask_id if masked else None,
        )

    def generator(
        self,
        model_fn: Callable[..., Any],
        *,
        num_steps: int = 0,
        block_length: int = 0,
        remasking: Literal["low_confidence", "random"] = "low_confidence",
    ) -> Generate:
        """How a model answers, compiled: by `decoding.remask` if it is masked, else by `greedy`.

        Args:
          model_fn: a masked model's `apply_fn`, or a causal one's `extend_fn`.
          num_steps: of a masked model; 0: one a token.
          block_length: its tokens a block; 0: all are one.
          remasking: see `decoding.remask`.

        Raises:
          ValueError: steps that do not divide into blocks, or tokens that do not.
        """
        new, eos_id, mask_id = self.num_new, self.tokenizer.eos_id, self.mask_id
        if mask_id is None:
            return jax.jit(
                lambda params, key, tokens_BL, valid_BL: decoding.greedy(
                    model_fn, params, tokens_BL, valid_BL, num_new=new, eos_id=eos_id
                )
            )
        steps, length = num_steps or new, block_length or new
        decoding.check_blocks(new, steps, length)
        return jax.jit(
            lambda params, key, tokens_BL, valid_BL: decoding.remask(
                model_fn,
                params,
                tokens_BL,
                valid_BL,
                key,
                mask_id=mask_id,
                num_new=new,
                num_steps=steps,
                block_length=length,
                remasking=remasking,
            )
        )

    def said(self, generate: Generate, params: Params, key: jax.Array, **how: Any) -> list[str]:
        """What the model says to each question, up to the end of text: `texts` of `generated`."""
        return self.texts(self.generated(generate, params, key, **how))

    def generated(
        self,
        generate: Generate,
        params: Params,
        key: jax.Array,
        *,
        chunk_size: int = 64,
        padded: bool = True,
    ) -> np.ndarray:
        """The ids that the model goes on with after each question: [E, `num_new`].

        Args:
          generate: (params, key, tokens_BL, valid_BL) -> ids [B, `num_new`].
          params: the model's.
          key: chunk number n is given `fold_in(key, n)`.
          chunk_size: questions a call.
          padded: whether questions of unequal length are asked together; if not, `valid_BL` is
            None.
        """

        def ask(number, *chunk):
            return generate(params, jax.random.fold_in(key, number), *chunk)

        if padded:
            new_EN = in_chunks(ask, (self.tokens_EL, self.valid_EL), chunk_size)
        else:
            new_EN = np.zeros((len(self.queries), self.num_new), np.int32)
            size_E = self.valid_EL.sum(axis=1)
            for size in np.unique(size_E):
                chosen_E = size_E == size
                rows_EL = self.tokens_EL[chosen_E][self.valid_EL[chosen_E]].reshape(-1, size)
                new_EN[chosen_E] = in_chunks(ask, (rows_EL, None), chunk_size)
        return new_EN

    def texts(self, new_EN: Array) -> list[str]:
        """Generated ids as texts, up to the end of text.

        A model may have more tokens than its tokenizer: at one of these, and where its logits were
        NaN, the text ends with "�".
        """
        texts = []
        for row_N in np.asarray(new_EN):
            unknown_N = (row_N >= self.tokenizer.vocab_size) | (row_N < 0)
            stops = [*np.flatnonzero((row_N == self.tokenizer.eos_id) | unknown_N), None]
            text = self.tokenizer.decode(row_N[: stops[0]])
            is_cut = stops[0] is not None and unknown_N[stops[0]]
            texts.append(text + " \ufffd" if is_cut else text)
        return texts

    def recall(
        self, apply_fn: ApplyFn, params: Params, said: Sequence[str], *, chunk_size: int = 64
    ) -> dict[str, Recalled]:
        """By direction, what was `said` and what the model makes of the first tokens."""
        found = {}
        for name, side in self.sides.items():
            prompts, answers = zip(*self.queries[side], strict=True)
            questions, among = self.first[name]
            token = token_recall(
                apply_fn,
                params,
                questions,
                mask_id=self.mask_id,
                among=among,
                chunk_size=chunk_size,
            )
            found[name] = Recalled(text_recall(said[side], prompts, answers), token)
        return found


def finite_texts(questions: Questions, new_EN: Array, queries: Sequence[Query]) -> list[str]:
    """`Questions.texts` of the answers to these queries. Raises UsageError if one holds NaN."""
    is_bad_E = (np.asarray(new_EN) < 0).any(axis=1)
    if is_bad_E.any():
        raise not_finite(queries[int(np.argmax(is_bad_E))])
    return questions.texts(new_EN)


def not_finite(query: Query) -> UsageError:
    """The error of a model that gives NaN when it is asked this."""
    return UsageError(
        f"the model's probabilities are NaN at {query.prompt!r}: its parameters are not finite, or "
        "it has no embedding for a token that it is given"
    )


def _check_hidden(tokenizer: Tokenizer, pairs, prompts, answers) -> None:
    """Raises ValueError where [M] has another meaning too."""
    mask_id = tokenizer.mask_id
    if mask_id == tokenizer.eos_id:
        raise ValueError(f"[M] cannot be the end of text, {mask_id}")
    for (prompt, answer), *ids in zip(pairs, prompts, answers, strict=True):
        if any(mask_id in part for part in ids):
            raise ValueError(f"{prompt + answer!r} holds token {mask_id}, [M]")


def pair_alignment(
    apply_fn: ApplyFn,
    params: Params,
    pairs: tuple[Cloze, Cloze],
    *,
    mask_id: int | None = None,
    variables: Callable[[Params], Params] = lambda params: params,
    blocks: BlockOf = r"(embed|attention|mlp|head)",
    chunk_size: int = 1,
) -> Alignment:
    """Gradients of the forward and the reverse question of each fact, compared.

    Args:
      apply_fn: the model.
      params: those of its parameters with respect to which gradients are taken.
      pairs: of `queries.paired_queries`.
      mask_id: [M] of a masked model.
      variables: from these parameters to all that `apply_fn` takes (`TrainState.variables`).
      blocks: as of `alignment`.
      chunk_size: facts at a time.
    """

    def of_params(params, tokens_BL, **optional):
        return call(apply_fn, variables(params), tokens_BL, **optional)

    losses = paired_losses(of_params, mask_id=mask_id)
    return alignment(*losses, params, examples=pairs, blocks=blocks, chunk_size=chunk_size)


def answer_tokens(
    facts: FactSet, tokenizer: Tokenizer, limit: int | None = None
) -> list[list[int]]:
    """The first trained answers by their letters, each once, in tokens as they follow a prompt."""
    prompts = {statement.answer: statement.prompt for statement in facts.train}
    names = sorted(prompts)[:limit]
    asked = [prompts[name] for name in names]
    return batching.split_answers(tokenizer, asked, [f" {name}" for name in names])[1]


def by_block(found: Alignment, blocks: BlockOf) -> dict[str, dict[str, np.ndarray]]:
    """What `Alignment` has by path, by block: inner products and squared norms add up."""
    parts = Blocks.of({path: np.zeros(()) for path in found.inner if path != TOTAL}, blocks)

    def summed(of_path):
        sums: dict[str, Any] = parts.sum([of_path(path)[:, None] for path in parts.paths])
        total = sums.pop(TOTAL)
        return {name: sums[name] for name in sorted(sums, key=_natural)} | {TOTAL: total}

    inner = summed(lambda path: found.inner[path])
    norms = [
        {name: np.sqrt(x) for name, x in summed(lambda path, side=side: side[path] ** 2).items()}
        for side in (found.norm_fwd, found.norm_rev)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = {name: x / (norms[0][name] * norms[1][name]) for name, x in inner.items()}
    return {"cosine": cosine, "inner": inner, "norm_fwd": norms[0], "norm_rev": norms[1]}


def _natural(name: str) -> list[Any]:
    """Sorts blocks_2 before blocks_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
