"""Variances of `dirasym.likelihood` at equal passes: the table of docs/models.md.

Question  How far does an estimate of a masked model's likelihood scatter from draw to draw, and
          does the standard error that it states say so? A small masked model, trained here on
          sentences of 16 or 17 characters; four of them, 400 times each.
Command   python -m experiments.benchmarks.likelihood --output=docs/results/likelihood/results.jsonl
Cost      half a minute on 2 CPU cores.
Expected  stratified levels scatter a quarter as much as independent ones, random orders 0.9.
"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from dirasym import models, objectives, results, training
from dirasym.data import batching, tokenizers
from dirasym.likelihood import likelihood
from dirasym.types import Batch
from experiments.flags import flag
from experiments.tools import command

KINDS = "monte_carlo", "random_order", "stratified"
TEXTS = 4
SYLLABLES = "ka", "lo", "mi", "ne", "ru", "sto"


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    output: str = flag("docs/results/likelihood/results.jsonl", "The file of lines.", kind="path")
    repeats: int = flag(400, "Draws of each text.", 2, 10**4)
    passes: int = flag(128, "Forward passes a text.", 2, 10**4)
    steps: int = flag(500, "Train steps.", 1, 10**6)


def trained(steps: int):
    """A small masked model of sentences, its parameters, some of these, their tokenizer, [M]."""
    rng = np.random.default_rng(0)
    names = ["".join(rng.choice(SYLLABLES, 2)).title() for _ in range(64)]
    texts = [f"{a} rules {b}." for a, b in zip(names[::2], names[1::2], strict=True)]
    letters = tokenizers.Characters()
    tokens, valid = batching.pad(letters.encode(texts), letters.pad_id)
    mask_id = letters.vocab_size
    config = models.radd(mask_id + 1, num_layers=2, width=32, num_heads=2, dropout=0.0)
    model = models.Transformer(config)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    apply_fn, optimizer = models.make_apply_fn(model), training.make_optimizer(1e-2)
    state = training.create_state(apply_fn, params, optimizer, jax.random.key(1))
    objective = functools.partial(objectives.masked_diffusion, mask_id=mask_id)
    batch = Batch(tokens, np.arange(len(texts)), len(texts), valid_BL=valid)
    step = jax.jit(functools.partial(training.train_step, batch=batch, objective=objective))
    for _ in range(steps):
        state, _ = step(state)
    return model, state.params, texts[:TEXTS], letters, mask_id


def variances(config: Config) -> list[dict]:
    """A line a kind: variance of a text over draws, and the mean of its stated error squared."""
    model, params, texts, letters, mask_id = trained(config.steps)
    lines = []
    for kind in KINDS:
        found = likelihood(
            model,
            params,
            texts * config.repeats,
            kind,
            tokenizer=letters,
            mask_id=mask_id,
            passes=config.passes,
            batch_size=160,
        )
        shape = config.repeats, len(texts)
        variance = found.log_likelihood_E.reshape(shape).var(axis=0, ddof=1).mean()
        stated = np.square(found.standard_error_E).mean()
        lines.append(
            dict(
                kind=kind,
                **models.sizes(model, params),
                repeats=config.repeats,
                passes=float(found.passes_E.mean()),
                variance=float(variance),
                reported=float(stated),
            )
        )
    return lines


def write(config: Config) -> None:
    """Writes the lines and prints them."""
    path = pathlib.Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = variances(config)
    results.replace_results(path, lines, ("kind",))
    for line in lines:
        print(line)


if __name__ == "__main__":
    command.main(Config, write)
