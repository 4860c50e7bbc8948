"""The cells of `systems.causes` on invented facts: one network, one ingredient changed at a time.

Of the pairs that are asked a parent always stands before its child, "Now Ann's child is Bob".
Further pairs are told in both directions and scored whole in every cell: they teach the wording.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dirasym import models, runs, training
from dirasym.analysis import attention
from dirasym.analysis.questions import Questions
from dirasym.analysis.recall import Among, Cloze, choice_among, query_loss, token_recall
from dirasym.data import batching, facts, tokenizers
from experiments.flags import flag
from experiments.systems import causes
from experiments.systems.causes import Cell

OPENING = "Now"  # before every name stands a token, which a causal model predicts it from


@dataclasses.dataclass(frozen=True)
class Invented:
    """The invented facts, and how many heads read them: one flag a field."""

    num_pairs: int = flag(60, "Parent–child pairs asked about.", 2, 10**5)
    both_ways: int = flag(60, "Further pairs told in both directions.", 0, 10**5)
    name_words: int = flag(1, "Words in a name.", 1, 10)
    data_seed: int = flag(0, "Draws the facts; the same for every run.", kind="seed")
    heads: int = flag(4, "Attention heads.", 1, 100)

    @property
    def data(self) -> str:
        """What all cells learn, in words."""
        of = f"{self.name_words} word" + "s" * (self.name_words > 1)
        return f"{self.num_pairs} pairs told one way, {self.both_ways} both ways, names of {of}"

    @functools.cached_property
    def facts(self) -> facts.FactSet:
        """What is told and asked: the same for all cells."""
        return invented(self)

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Words:
        """Every word a token."""
        return tokenizers.Words(self.facts.texts())


@dataclasses.dataclass(frozen=True)
class Config(Invented, causes.Training):
    """What all cells learn, and how."""


def invented(config: Invented) -> facts.FactSet:
    """Statements that all begin with a word which is no name, and their questions."""
    c = config
    pairs = facts.invent_parent_child(c.num_pairs + c.both_ways, c.data_seed, c.name_words)
    return opened(facts.parent_child(pairs[: c.num_pairs], both_ways=pairs[c.num_pairs :]))


def opened(told: facts.FactSet) -> facts.FactSet:
    """The same, with a word before every statement and question."""
    return facts.FactSet(
        *(tuple(x._replace(prompt=f"{OPENING} {x.prompt}") for x in part) for part in told)
    )


@dataclasses.dataclass(frozen=True)
class Task:
    """One cell: its network, its training, and what it is asked."""

    cell: Cell
    config: Config

    def __post_init__(self):
        reason = self.cell.why_not(self.rows["tokens_BL"].shape[1])
        if reason is not None:
            raise ValueError(f"{self.cell}: {reason}")
        self.model  # noqa: B018  # raises what does not fit

    @functools.cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Training rows, all of one length: which tokens are scored; all are hidden alike."""
        rows = batching.encode_facts(self.config.tokenizer, self.config.facts, masked=True)
        scored_BL = rows["scored_BL"]
        for side, queries in (("A", self.config.facts.forward), ("B", self.config.facts.reverse)):
            if self.cell.predicted == side:  # the other side's names are the answers here
                left_out = np.concatenate(self.names(queries))
                scored_BL = scored_BL & ~np.isin(rows["tokens_BL"], left_out)
        return rows | {"scored_BL": scored_BL, "noised_BL": np.ones_like(scored_BL)}

    def names(self, queries) -> list[list[int]]:
        """Tokens of the answers of questions; no word stands in two names."""
        return self.config.tokenizer.encode([query.answers[0] for query in queries])

    @functools.cached_property
    def model(self) -> models.Transformer:
        """The toy task's encoder with heads, but for what the cell changes."""
        c, length = self.config, self.rows["tokens_BL"].shape[1]
        size = self.config.tokenizer.vocab_size
        return models.Transformer(causes.network(self.cell, size, length, c, num_heads=c.heads))

    @functools.cached_property
    def apply_fn(self):
        """The model as an ApplyFn."""
        return models.make_apply_fn(self.model)

    @property
    def mask_id(self) -> int | None:
        """[M] of a question; None where there is none in it."""
        return None if self.cell.reads_before else self.config.tokenizer.mask_id

    def run(self, identity: Mapping[str, Any], **rest: Any) -> runs.Run:
        """Its training, for any seed, with what is asked along it."""
        c, length = self.config, self.rows["tokens_BL"].shape[1]
        ids: dict[str, Any] = dict(mask_id=c.tokenizer.mask_id, bos_id=None)
        objective = causes.objective(self.cell, length, c.batch_size, **ids)
        init = causes.initializer(c, self.model, self.apply_fn)
        how = dict(init=init, evaluate=self.answers, network=self.model)
        return causes.run(c, identity, self.rows, objective, **how, **rest)

    # -----------------------------------------------------------------------------------
    # What is asked

    @functools.cached_property
    def questions(self) -> Questions:
        """Both ways: "Now A's child is", "Now B's parent is"."""
        return Questions.of(
            self.config.facts, self.config.tokenizer, masked=not self.cell.reads_before
        )

    @functools.cached_property
    def generate(self):
        """How the model goes on with a question."""
        extend_fn = models.make_extend_fn(self.model)
        return self.questions.generator(extend_fn if self.cell.reads_before else self.apply_fn)

    @functools.cached_property
    def asked(self) -> dict[str, tuple[Cloze, Among]]:
        """The three questions of each fact, for a name's first word: forward, reverse, source."""
        parents, (opening,) = (
            self.names(self.config.facts.reverse),
            self.config.tokenizer.encode([OPENING]),
        )
        behind = [list(row[1 + len(name) :]) for row, name in
                  zip(self.rows["tokens_BL"], parents, strict=False)]  # fmt: skip
        source = Cloze.of(
            [opening] * len(parents),
            parents,
            None if self.cell.reads_before else behind,
            pad_id=self.config.tokenizer.pad_id,
            mask_id=self.mask_id,
        )
        among = choice_among(source.target_E, list(map(tuple, parents)))
        return self.questions.first | {"source": (source, among)}

    def answers(self, state: training.TrainState) -> dict[str, Any]:
        """Accuracy, P(true) and choice of the moving average; cosines and scores of the weights."""
        params, key = state.ema_params, jax.random.fold_in(state.key, training.EVAL_STREAM)
        said = self.questions.said(self.generate, params, key)
        values: dict[str, Any] = {}
        for name, found in self.questions.recall(self.apply_fn, params, said).items():
            summary = found.summary()
            values[f"percent_{name}"] = summary["percent"]
            values[f"copied_{name}"] = summary["copied_percent"]
            values[f"p_{name}"] = 100 * summary["p"]
            values[f"choice_{name}"] = summary["choice_percent"]
        source, among = self.asked["source"]
        how: dict[str, Any] = dict(mask_id=self.mask_id, among=among)
        token = token_recall(self.apply_fn, params, source, **how)
        values["p_source"] = 100 * np.mean(token.p_E)
        values["choice_source"] = 100 * np.mean(token.choice_E)
        values |= self.compare(state.params)
        return values | {"attention_correlation": self.correlation(state.params)}

    @functools.cached_property
    def compare(self):
        """`cosine_PAIR` [3] of parameters, compiled: storage, routing and all, mean of facts."""
        loss = query_loss(self.apply_fn, mask_id=self.mask_id)

        def nll(params, tokens_L, position, target):
            return loss(params, Cloze(tokens_L, position, target))

        length = self.rows["tokens_BL"].shape[1]
        rows = [
            (np.pad(q.tokens_EL, ((0, 0), (0, length - q.tokens_EL.shape[1]))), q.position_E,
             q.target_E)
            for q, _ in (self.asked[name] for name in causes.QUESTIONS)
        ]  # fmt: skip
        stacked = [np.stack(x, axis=1) for x in zip(*rows, strict=True)]

        def cosines(params):
            return causes.mean_cosines(causes.gradient_cosines(nll, params, stacked))

        return jax.jit(cosines)

    def correlation(self, params) -> np.ndarray:
        """Corr over children of the raw scores of what asks on them, before and behind: [1]."""
        names = self.names(self.config.facts.forward)
        found = attention.name_correlation(
            models.make_internals_fn(self.model),
            params,
            names,
            self.rows["tokens_BL"].shape[1] - len(names[0]),
            mask_id=self.config.tokenizer.eos_id if self.mask_id is None else self.mask_id,
            fill_id=self.config.tokenizer.eos_id,
            resamples=1,
        )
        return np.array([np.nanmean(found.mean)])
