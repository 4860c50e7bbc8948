"""`measure`: all that the library can say of one model on one set of pairs, in one call.

In use:

    pairs = dirasym.Pairs.from_csv("capitals.csv", a="country", b="capital",
                                   forward="The capital of {a} is {b}",
                                   reverse="{b} is the capital of {a}")
    reading = dirasym.measure(model, params, pairs, tokenizer, blocks="module", attention=True)
    print(reading)                            # forward and reverse: value (low, high)
    reading.forward.accuracy.estimate, reading.alignment.cosine["blocks_3/attention"].estimate
    reading.storage, reading.routing          # cosines of values, output and MLP; of queries, keys
    reading.attention_correlation             # [layer, head, total distance]
    reading.to_frame(); reading.figure("reading.png"); reading.save("reading.json")
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from dirasym import decoding, intervals, usage
from dirasym.analysis import attention as attention_scores
from dirasym.analysis import blocks as block_names
from dirasym.analysis import queries, recall
from dirasym.analysis.blocks import TOTAL, BlockOf, Blocks
from dirasym.analysis.questions import (
    Questions,
    answer_tokens,
    by_block,
    finite_texts,
    not_finite,
    pair_alignment,
)
from dirasym.data.facts import FactSet
from dirasym.data.pairs import Pairs, fact_set
from dirasym.data.tokenizers import Tokenizer
from dirasym.networks import Network, check_ids
from dirasym.progress import Parts
from dirasym.reading import Asked, Direction, Gradients, Kind, Reading
from dirasym.types import Params

Answers = tuple[Sequence[str], dict[str, recall.TokenRecall]]  # what is said; first tokens
PAIRS_AT_A_TIME = 8  # whose gradients are compared


@dataclasses.dataclass(frozen=True)
class Settings:
    """What of `measure` is seldom changed.

    Attributes:
      answers: whether the first token of "any" right answer is right, or of the "first" alone
        (of a `FactSet`, the one that was trained).
      num_new: tokens that an answer may take; 0: the longest right one and its end.
      decode_steps, block_length, remasking: how a masked model answers (`decoding.remask`); 0 is
        one token a step, and one block.
      left: whether rows are filled up on the left.
      chunk_size: questions a call.
      gradient_pairs: pairs whose gradients are compared; all when None.
      roles: of a parameter's path, "storage", "routing" or whatever else.
      attention_names: answers whose attention is read; all when None.
      attention_distance: their largest distance from [M].
      seed: of random remasking.
    """

    answers: Literal["any", "first"] = "any"
    num_new: int = 0
    decode_steps: int = 0
    block_length: int = 0
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    left: bool = False
    chunk_size: int = 64
    gradient_pairs: int | None = None
    roles: Callable[[str], str | None] = block_names.role
    attention_names: int | None = 64
    attention_distance: int = 8
    seed: int = 0

    def __post_init__(self):
        if self.answers not in ("any", "first"):
            raise ValueError(f"answers must be 'any' or 'first', got {self.answers!r}")
        if self.remasking not in ("low_confidence", "random"):
            raise ValueError(
                f"remasking must be 'low_confidence' or 'random', got {self.remasking!r}"
            )
        for name in ("num_new", "decode_steps", "block_length", "seed"):
            usage.check_counts(0, **{name: getattr(self, name)})
        usage.check_counts(chunk_size=self.chunk_size, attention_distance=self.attention_distance)
        for name in ("gradient_pairs", "attention_names"):
            if (value := getattr(self, name)) is not None:
                usage.check_counts(**{name: value})

    @classmethod
    def of(cls, **settings: Any) -> "Settings":
        """Of the keywords of `measure` that are not its own. Raises TypeError for any other."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in set(settings) - set(known):
            what = f"measure() got an unexpected keyword argument {name!r}: its settings are "
            raise TypeError(what + ", ".join(known))
        return cls(**settings)


def measure(
    model: Any,
    params: Params | Sequence[Params],
    pairs: Pairs | FactSet,
    tokenizer: Tokenizer,
    *,
    kind: Kind | None = None,
    blocks: BlockOf = None,
    attention: bool = False,
    level: float = 0.95,
    extend_fn: Callable[..., Any] | None = None,
    internals: attention_scores.Internals | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Reading:
    """Reads a model: what it answers both ways, and on demand its gradients and its attention.

    Args:
      model: a `Transformer`, with adapters or not, or an `ApplyFn` of any kind (see
        `models.frameworks`). A masked one that takes no `valid_BL` is asked rows of one length at
        a time. A causal one need not be told of padding: it stands behind all that is read.
      params: its parameters; or a list or tuple of several sets, such as one a seed. Intervals
        are then over the sets.
      pairs: whose questions are asked.
      tokenizer: the model's.
      kind: "causal" or "masked"; needed of an `ApplyFn`.
      blocks: compares gradients, by "layer", "module" or "role", or as `alignment` takes them.
        No gradient is formed when None.
      attention: whether the attention of a masked model is read.
      level: of confidence of all intervals.
      extend_fn: how a causal `ApplyFn` goes on with a cache (see `decoding.greedy`); rows are read
        anew for each token when None.
      internals: what an `ApplyFn` sows, for `attention` (see `analysis.attention`).
      progress: whether a bar is shown; on a terminal and in a notebook when None.
      **settings: see `Settings`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from dirasym.data.tokenizers import Words
      >>> pairs = Pairs((("Ann", "Bo"), ("Cy", "Dee")), "{a} begot {b}", "{b} is of {a}")
      >>> words = Words(pairs.fact_set().texts())
      >>> def guess(params, tokens_BL):
      ...     return jnp.zeros((*tokens_BL.shape, words.vocab_size))
      >>> reading = measure(guess, {}, pairs, words, kind="causal")
      >>> words.vocab_size, round(reading.reverse.p_true.estimate, 3)
      (10, 0.1)

    Raises:
      ValueError: the kind is not given, or is not the model's (an `ApplyFn` that is called causal
        is asked whether its logits depend on a later token); an `ApplyFn` that gives probabilities
        in place of logits; the tokenizer has more tokens than the model, or no [M] for a masked
        one; questions that do not fit the context; probabilities that are NaN; or as
        `Questions.of`, `alignment` and `Settings`.
      TypeError: an `ApplyFn` that needs a keyword which is not known here, or a tokenizer without
        a member of `tokenizers.Tokenizer` (`mask_id` is one, None without [M]); it is named.
    """
    return prepare(
        model,
        params,
        pairs,
        tokenizer,
        kind=kind,
        blocks=blocks,
        attention=attention,
        level=level,
        extend_fn=extend_fn,
        internals=internals,
        **settings,
    ).reading(progress)


def prepare(
    model: Any,
    params: Params | Sequence[Params],
    pairs: Pairs | FactSet,
    tokenizer: Tokenizer,
    *,
    kind: Kind | None = None,
    blocks: BlockOf = None,
    attention: bool = False,
    level: float = 0.95,
    extend_fn: Callable[..., Any] | None = None,
    internals: attention_scores.Internals | None = None,
    **settings: Any,
) -> "Measurement":
    """What `measure` would do; raises all that it raises of its arguments, and computes nothing."""
    how = Settings.of(**settings)
    if not isinstance(level, int | float | np.floating) or not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level!r}")
    network = Network.of(model, kind, extend_fn, internals)
    sets = network.parameter_sets(params)
    for one in sets:
        network.check_vocabulary(one, tokenizer)
    facts = fact_set(pairs)
    questions = Questions.of(
        facts,
        tokenizer,
        masked=network.kind == "masked",
        num_new=how.num_new,
        max_len=network.max_len,
        any_right=how.answers == "any",
        left=how.left and network.takes_valid,
    )
    check_ids(tokenizer, facts._replace(train=()).texts())  # what is asked and answered
    if network.kind == "masked":
        new = questions.num_new
        decoding.check_blocks(new, how.decode_steps or new, how.block_length or new)
    if blocks is not None:
        Blocks.of(sets[0], blocks)
    return Measurement(network, tuple(sets), facts, questions, how, level, blocks, attention)


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """A model, its parameter sets, and what they are asked: see `prepare`."""

    network: Network
    sets: tuple[Params, ...]
    facts: FactSet
    questions: Questions
    how: Settings
    level: float
    blocks: BlockOf
    attention: bool

    def reading(self, progress: bool | None = None) -> Reading:
        """Asks every set; `progress` as of `measure`, and its errors of an `ApplyFn`'s logits."""
        notes = self.network.check_declared(self.sets[0], self.questions)
        is_seen = sys.stderr.isatty() or "ipykernel" in sys.modules
        shown, many = is_seen if progress is None else progress, len(self.sets)
        readings = [
            self.read(params, Parts(shown, f", set {n} of {many}" if many > 1 else ""))
            for n, params in enumerate(self.sets, 1)
        ]
        reading = readings[0] if many == 1 else Reading.over_sets(readings)
        return dataclasses.replace(reading, notes=notes)

    def read(self, params: Params, parts: Parts) -> Reading:
        """The reading of one parameter set."""
        absent: dict[str, str] = {}
        said, token = self._answers(params, parts)
        sides = {}
        for name, side in self.questions.sides.items():
            sides[name] = self._direction(self.questions.queries[side], said[side], token[name])
            if sides[name].choice is None:
                absent[f"{name} choice"] = (
                    "each right first token begins several answers or stands in its question"
                )
        gradients = attention = None
        if self.blocks is None:
            absent["alignment"] = "no blocks were asked for"
        else:
            gradients = _gradients(self, params, absent, parts)
        if not self.attention:
            absent["attention"] = "it was not asked for"
        else:
            with parts.part("attention", 1):
                attention = _attention(self, params, absent)
        return Reading(
            self.network.kind,
            self.level,
            "pairs",
            sides["forward"],
            sides["reverse"],
            alignment=gradients,
            attention=attention,
            absent=absent,
            seconds=parts.seconds,
        )

    def _answers(self, params, parts) -> Answers:
        """What is said to all questions, and by direction what is made of first tokens."""
        q, network, size = self.questions, self.network, self.how.chunk_size
        if network.kind == "causal" and self._is_asked_as_it_stands():
            with parts.part("answers", len(q.queries), size) as counted:
                return self._causal_answers(params, counted)
        with parts.part("answers", len(q.queries), size) as counted:
            generate = q.generator(
                network.apply_fn if network.kind == "masked" else network.extend_fn,
                num_steps=self.how.decode_steps,
                block_length=self.how.block_length,
                remasking=self.how.remasking,
            )
            key = jax.random.key(self.how.seed)
            how: dict[str, Any] = dict(chunk_size=size, padded=network.padded)
            new_EN = q.generated(counted(generate), params, key, **how)
            said = finite_texts(q, new_EN, q.queries)
        token = {}
        for name, (questions, among) in q.first.items():
            with parts.part("first tokens", 1):
                (asked,) = network.of_rows(questions)
                token[name] = recall.token_recall(
                    network.apply_fn,
                    params,
                    asked,
                    mask_id=q.mask_id,
                    among=among,
                    chunk_size=size,
                    padded=network.padded,
                )
        return said, token

    def _is_asked_as_it_stands(self) -> bool:
        """Whether first tokens are asked for right behind the prompts, as answers are."""
        q = self.questions

        def rows(tokens_EL, valid_EL):
            return [row[is_one].tolist() for row, is_one in zip(tokens_EL, valid_EL, strict=True)]

        asked = [q.first[name][0] for name in q.sides]
        first = [row for cloze in asked for row in rows(cloze.tokens_EL, cloze.valid_EL)]
        return first == rows(q.tokens_EL, q.valid_EL)

    def _causal_answers(self, params, counted) -> Answers:
        """Both from one reading of the prompts."""
        q, said, token = self.questions, [], {}
        for name, side in q.sides.items():
            _, among = q.first[name]
            new_EN, *judged = recall.in_chunks(
                counted(
                    lambda _, *rows, among=among: _say_and_judge(
                        params,
                        *rows,
                        among.first_C,
                        extend_fn=self.network.extend_fn,
                        num_new=q.num_new,
                        eos_id=q.tokenizer.eos_id,
                    )
                ),
                (q.tokens_EL[side], q.valid_EL[side], among.aside_EX, among.right_EX),
                self.how.chunk_size,
            )
            said += finite_texts(q, new_EN, q.queries[side])
            token[name] = recall.with_choice(judged, among)
        return said, token

    def _direction(self, queries, said, token: recall.TokenRecall) -> Direction:
        if not np.isfinite(token.p_E).all():
            raise not_finite(queries[int(np.flatnonzero(~np.isfinite(token.p_E))[0])])
        prompts, answers = zip(*queries, strict=True)
        text = recall.text_recall(said, prompts, answers)
        columns = [text.exact_E, text.begun_E, text.copied_E]
        columns += [token.choice_E, token.p_E, token.nll_E, token.rank_E]
        numbers = np.stack([np.asarray(column, float) for column in columns], axis=1)
        asked = [
            Asked(*fixed, *map(float, row))
            for *fixed, row in zip(prompts, answers, said, numbers, strict=True)
        ]
        return Direction.of(asked, self.level)


def _gradients(
    m: Measurement, params: Params, absent: dict[str, str], parts: Parts
) -> Gradients | None:
    q, network = m.questions, m.network
    pairs = queries.paired_queries(
        m.facts,
        q.tokenizer,
        masked=network.kind == "masked",
        limit=m.how.gradient_pairs,
    )
    if pairs is None:
        absent["alignment"] = "no statement names in its prompt what a reverse question asks for"
        return None
    compare = jax.jit(
        lambda params, *pair: pair_alignment(
            network.apply_fn, params, pair, mask_id=q.mask_id, blocks=None
        )
    )
    groups = [(np.arange(len(pairs[0].target_E)), network.of_rows(*pairs))]
    if not network.padded:
        groups = list(recall.of_one_length(*pairs))
    with parts.part("gradients", len(pairs[0].target_E), PAIRS_AT_A_TIME) as counted:
        one_chunk = counted(lambda _, *pair: compare(params, *pair))
        found = [recall.in_chunks(one_chunk, group, PAIRS_AT_A_TIME) for _, group in groups]
    joined = jax.tree.map(lambda *x: np.concatenate(x).astype(float), *found)
    of_blocks, of_roles = (by_block(joined, blocks) for blocks in (m.blocks, m.how.roles))

    def bounds(values: dict[str, np.ndarray], name: str) -> dict[str, Any]:
        shown = {}
        for block, values_E in values.items():
            if len(kept_E := values_E[np.isfinite(values_E)]):
                shown[block] = intervals.bootstrap_interval(kept_E, level=m.level)
            else:
                absent[f"{name} of {block}"] = "a gradient is zero in every pair"
        return shown

    fields = {name: bounds(values, name) for name, values in of_blocks.items()}
    roles = {r: x for r, x in of_roles["cosine"].items() if r in ("storage", "routing")}
    for role in [r for r in ("storage", "routing") if r not in roles]:
        absent[role] = "no parameter's name says that this is its role"
    paths = [path for path in joined.inner if block_names.is_attention(path)]
    if nameless := [path for path in paths if m.how.roles(path) in (None, "other")]:
        more = f" and {len(nameless) - 1} more" * (len(nameless) > 1)
        absent["role of some attention"] = f"no name says what {nameless[0]}{more} is for"
    return Gradients(**fields, roles=bounds(roles, "cosine"), count=len(joined.inner[TOTAL]))


def _attention(m: Measurement, params: Params, absent: dict[str, str]) -> Any:
    q, network, how = m.questions, m.network, m.how
    names = answer_tokens(m.facts, q.tokenizer, how.attention_names)
    reason = None
    if network.kind == "causal":
        reason = "a causal model attends to nothing ahead"
    elif network.internals is None:
        reason = "an apply_fn does not show its attention: give internals"
    elif len(names) < 3:
        reason = f"a correlation needs 3 names, there are {len(names)}"
    elif network.max_len and how.attention_distance + max(map(len, names)) > network.max_len:
        reason = f"names at attention_distance={how.attention_distance} exceed the context"
    if reason is not None:
        absent["attention"] = reason
        return None
    internals: Any = network.internals
    mask_id: Any = q.mask_id
    return attention_scores.name_correlation(
        internals,
        params,
        names,
        how.attention_distance,
        mask_id=mask_id,
        fill_id=q.tokenizer.eos_id,
        resamples=200,
        level=m.level,
    )


@functools.partial(jax.jit, static_argnames=("extend_fn", "num_new", "eos_id"))
def _say_and_judge(
    params, tokens_BL, valid_BL, aside_BX, right_BX, first_C, *, extend_fn, num_new, eos_id
):
    """(new tokens, *`recall.judge` of the first): see `decoding.greedy`."""
    logits_BV, cache = decoding.start_greedy(
        extend_fn, params, tokens_BL, valid_BL, num_new=num_new
    )
    new_BT = decoding.go_on_greedy(
        extend_fn,
        params,
        valid_BL,
        logits_BV=logits_BV,
        cache=cache,
        num_new=num_new,
        eos_id=eos_id,
    )
    return new_BT, *recall.judge(logits_BV, first_C, aside_BX, right_BX)
