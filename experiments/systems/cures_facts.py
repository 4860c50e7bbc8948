"""Remedies of the reversal curse on invented facts, where names may have several words.

"Now Ann's child is Bob" is told, "Now Bob's parent is" is asked; further pairs are told both
ways and teach the wording. And "Now Cid's teacher is Dan" is told: a model that says Cid when it
is asked for Dan's parent asserts a reverse that does not hold.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np

from dirasym import models, training
from dirasym.analysis.questions import Questions, Recalled
from dirasym.data import batching, facts, remedies, tokenizers
from dirasym.data.facts import FactSet, Query, Statement
from experiments.flags import flag
from experiments.systems import causes_facts, cures
from experiments.systems.causes_facts import OPENING
from experiments.systems.cures import DRAWS, Remedy

REMEDIES = {
    "none": Remedy(),
    "inverse": Remedy(rows="inverse"),  # both directions told
    "reversed": Remedy(rows="reversed"),  # word by word
    "entities": Remedy(rows="entities"),  # names as they are
    "segments": Remedy(rows="segments"),
    "identity": Remedy(rows="identity"),
    "copies": Remedy(rows="copies"),
    "uniform_masked": Remedy(reads="masked_causal"),
    "diffusion": Remedy(reads="masked"),
    "diffusion_names": Remedy(reads="masked", whole=True),
    "diffusion_inverse": Remedy(reads="masked", whole=True, rows="inverse"),
    "diffusion_symmetric": Remedy(reads="masked", rows="symmetric"),  # names change places
    "diffusion_symmetric_names": Remedy(reads="masked", whole=True, rows="symmetric"),
    "diffusion_entities": Remedy(reads="masked", rows="entities"),
    "diffusion_entities_names": Remedy(reads="masked", whole=True, rows="entities"),
    "weight_decay": Remedy(weight_decay=1.0),
    "dropout": Remedy(dropout=0.3),
}


@dataclasses.dataclass(frozen=True)
class Config(causes_facts.Invented, cures.Training):
    """The invented facts and their remedies: one flag a field."""

    known = REMEDIES
    remedies: tuple[Literal[tuple(REMEDIES)], ...] = flag(tuple(REMEDIES), "What to train.")
    teachers: int = flag(20, "Further pairs, told of a teacher, asked for a parent.", 1, 10**5)

    @functools.cached_property
    def facts(self) -> FactSet:
        """Asked pairs, teachers, and pairs told in both directions; teachers are asked last."""
        c, first = self, self.num_pairs + self.teachers
        people = facts.invent_parent_child(first + c.both_ways, c.data_seed, c.name_words)
        told = facts.parent_child(people[: c.num_pairs], both_ways=people[first:])
        taught = people[c.num_pairs : first]
        train = [Statement(f"{x.parent}'s teacher is", x.child) for x in taught]
        wrong = [Query(f"{x.child}'s parent is", x.parents) for x in taught]
        asked, rest = told.train[: c.num_pairs], told.train[c.num_pairs :]
        together = FactSet((*asked, *train, *rest), told.forward, (*told.reverse, *wrong))
        return causes_facts.opened(together)

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Words:
        """Every word a token."""
        return tokenizers.Words([*self.facts.texts(), f"{OPENING}'s name is"])


def told_otherwise(kind: str, c: Config) -> FactSet:
    """The same facts, told as the remedy's rows tell them: "inverse" or "identity".

    Inverse: the asked pairs' statements the other way round, all others as they are. Identity:
    "Now Ann's name is Ann", of every name.
    """
    told = c.facts
    if kind == "inverse":
        inverse = [Statement(x.prompt, x.answers[0]) for x in told.reverse[: c.num_pairs]]
        return told._replace(train=(*inverse, *told.train[c.num_pairs :]))
    names = sorted({x.answer for x in told.train} | {x.answers[0] for x in told.reverse})
    return told._replace(train=tuple(Statement(f"{OPENING} {x}'s name is", x) for x in names))


def remedy_rows(kind: str, c: Config) -> dict[str, np.ndarray]:
    """The rows that a remedy adds, those of the asked pairs first; "none": the plain ones.

    All begin with the opening and end with the end of text: what is reversed stands between.
    """
    told = told_otherwise(kind, c) if kind in ("inverse", "identity") else c.facts
    rows = batching.encode_facts(c.tokenizer, told, masked=True, noising="names")
    tokens, unit = rows["tokens_BL"], rows["unit_BL"]
    between, unit_between = tokens[:, 1:-1], unit[:, 1:-1] - 1
    made = []
    if kind == "reversed":
        made = [remedies.reversed_tokens(between)]
    elif kind == "entities":
        made = [remedies.reversed_units(between, unit_between)]
    elif kind == "symmetric":
        made = [exchanged(between, c.name_words)]
    elif kind == "segments":
        longest = between.shape[1] // 2
        made = [remedies.reversed_segments(between, longest, seed=n) for n in range(DRAWS)]
    if not made:
        return {"tokens_BL": tokens, "unit_BL": unit}
    closed = [np.concatenate([tokens[:, :1], x, tokens[:, -1:]], axis=1) for x in made]
    rows = {"tokens_BL": np.concatenate(closed)}
    if kind in ("entities", "symmetric"):  # a name ends each side, and all are equally long
        rows["unit_BL"] = unit
    return rows


def exchanged(tokens_BL: np.ndarray, words: int) -> np.ndarray:
    """The first and the last name of every row in each other's place, all between as it is."""
    first, middle, last = np.split(tokens_BL, [words, tokens_BL.shape[1] - words], axis=1)
    return np.concatenate([last, middle, first], axis=1)


def exposure(rows_BL: np.ndarray, c: Config) -> float:
    """The share of the asked pairs' rows in which a parent's name begins behind a child's.

    Args:
      rows_BL: of `remedy_rows`: rounds of rows in the order of the facts.
      c: whose facts they are.
    """
    first = [
        np.array([ids[0] for ids in c.tokenizer.encode([q.answers[0] for q in queries])])
        for queries in (c.facts.reverse[: c.num_pairs], c.facts.forward)
    ]
    rounds = rows_BL.reshape(-1, len(c.facts.train), rows_BL.shape[1])[:, : c.num_pairs]
    return float(np.mean([remedies.exposures(rows, *first) for rows in rounds]))


class Task:
    """One remedy at one matching: data, network, training, questions."""

    def __init__(self, remedy: str, matching: str, config: Config):
        self.remedy, c, r = REMEDIES[remedy], config, REMEDIES[remedy]
        self.config, self.identity = c, {"remedy": remedy, "matching": matching}
        plain = remedy_rows("none", c)
        extra = remedy_rows(r.rows, c) if r.adds else plain
        shown = exposure(extra["tokens_BL"], c) if r.shows else 0.0
        self.share, self.steps = r.budget(matching, c.steps, shown)
        self.data = self._data(plain, extra)
        network = models.radd(
            c.tokenizer.vocab_size,
            num_layers=1,
            num_heads=c.heads,
            width=c.width,
            max_len=self.data["tokens_BL"].shape[1],
            causal=r.reads != "masked",
            dropout=r.dropout,
        )
        self.model = models.Transformer(network)
        self.apply_fn = models.make_apply_fn(self.model)

    def _data(self, plain, extra) -> training.Data:
        r, mask_id = self.remedy, self.config.tokenizer.mask_id
        if r.rows == "copies":
            how = [remedies.masked_copies(plain["tokens_BL"], mask_id, seed=n)
                   for n in range(DRAWS)]  # fmt: skip
            tokens, scored = (np.concatenate(x) for x in zip(*how, strict=True))
            return {"tokens_BL": tokens, "scored_BL": scored}
        told = plain
        if r.adds:
            rows = cures.mixture(plain["tokens_BL"], extra["tokens_BL"], self.share)
            told = {name: np.concatenate([plain[name], x])[rows] for name, x in extra.items()}
        return told if r.whole else {"tokens_BL": told["tokens_BL"]}

    def run(self):
        """Its training, for any seed."""
        return cures.run(self, self.evaluate, mask_id=self.config.tokenizer.mask_id, bos_id=None)

    @functools.cached_property
    def questions(self) -> Questions:
        """Both ways: "Now A's child is", "Now B's parent is"; those of a teacher come last."""
        c = self.config
        asked = Questions.of(c.facts, c.tokenizer, masked=self.remedy.reads != "causal")
        return behind_copies(asked) if self.remedy.rows == "copies" else asked

    @functools.cached_property
    def generate(self):
        """How the model goes on with a question."""
        is_causal = self.remedy.reads == "causal"
        model_fn = models.make_extend_fn(self.model) if is_causal else self.apply_fn
        return self.questions.generator(model_fn)

    def evaluate(self, state: training.TrainState) -> dict[str, Any]:
        """All outcomes, in percent and nats: see `outcomes`."""
        key = jax.random.fold_in(state.key, training.EVAL_STREAM)
        said = self.questions.said(self.generate, state.params, key)
        return outcomes(self.questions.recall(self.apply_fn, state.params, said), self.config)


def behind_copies(asked: Questions) -> Questions:
    """A causal model's questions, each behind a copy of it whose answer is masked.

    The copy is a row as `remedies.masked_copies` makes them: question, [M] for each token of a
    name, end of text. All questions and all names must be of one length.
    """
    ids, num = asked.tokenizer, asked.num_new - 1
    assert asked.valid_EL.all()

    def copied(tokens_EL):
        hidden = np.full((len(tokens_EL), num), ids.mask_id)
        end = np.full((len(tokens_EL), 1), ids.eos_id)
        return np.concatenate([tokens_EL, hidden, end, tokens_EL], axis=1).astype(np.int32)

    first = {}
    for direction, (cloze, among) in asked.first.items():
        width = cloze.tokens_EL.shape[1]
        shift = width + num + 1
        valid = np.ones((len(cloze.tokens_EL), shift + width), bool)
        moved = dataclasses.replace(
            cloze, tokens_EL=copied(cloze.tokens_EL), position_E=cloze.position_E + shift,
            valid_EL=valid,
        )  # fmt: skip
        first[direction] = moved, among
    tokens_EL = copied(asked.tokens_EL)
    valid_EL = np.ones(tokens_EL.shape, bool)
    return dataclasses.replace(asked, tokens_EL=tokens_EL, valid_EL=valid_EL, first=first)


def outcomes(found: dict[str, Recalled], c: Config) -> dict[str, Any]:
    """What a model answers, in percent but for `forward_nll`.

    Args:
      found: by direction; the last `teachers` reverse questions are the ones with no answer.
      c: the configuration.

    Returns:
      `forward`, `reverse`: exact matches; `copying`: reverse answers that repeat words of the
      question alone; `choice`: of the first words of the names that stand on that side the true
      one is the likeliest; `incorrect`: of those who have a teacher, how many are given the pupil
      for a parent; `forward_nll`: of a child's first word in nats.
    """
    rows = {"true": slice(c.num_pairs), "wrong": slice(c.num_pairs, None)}
    reverse, wrong = (
        jax.tree.map(lambda x, part=part: x[part], found["reverse"]) for part in rows.values()
    )
    return {
        "forward": 100 * np.mean(found["forward"].text.exact_E),
        "reverse": 100 * np.mean(reverse.text.exact_E),
        "copying": 100 * np.mean(reverse.text.copied_E),
        "incorrect": 100 * np.mean(wrong.text.exact_E),
        "choice": 100 * np.nanmean(reverse.token.choice_E),
        "forward_nll": np.mean(found["forward"].token.nll_E),
    }
