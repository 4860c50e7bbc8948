"""Can a causal model's weights become a masked diffusion model's?

Question  The same pretrained weights, causal mask removed and trained on by masked diffusion, so
          that `facts` can compare a masked with a causal model of one origin. `--causal` is the
          control: the mask stays, and the same rows are learned by next-token prediction.
Command   python -m experiments.adapt_masked --model_id=DIR --workdir=OUT [--causal]
          then python -m experiments.facts --model_id=OUT/model --models=mdm|arm ...
Cost      the budget is steps × batch_size × length tokens. quick and paper were not timed. Of
          SmolLM2-135M 120 steps of 8 × 64 tokens took 11 minutes on 2 shared CPU cores, and 1200
          of 64 × 128 three minutes on an H100.
Expected  the loss in nats a token falls; no published number.

Text: the topics of Python's own documentation (`pydoc_data.topics`) and invented facts of all
three kinds, other ones than `facts` asks about by default; with `--both_ways` they are told in
both directions, so that either wording is known before one direction of new facts is taught.
"""

import dataclasses
import functools
import pathlib
import pydoc_data.topics
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp

from dirasym import objectives, pretraining, runs, training
from dirasym import report as tables
from dirasym.data import batching, facts
from dirasym.models import hf_config
from dirasym.usage import UsageError, blamed
from dirasym.workdir import WorkDir
from experiments import flags
from experiments.flags import flag
from experiments.systems.facts import open_pretrained

PRESETS = {"smoke": dict(steps=4, save_every=2, length=16), "quick": dict(steps=200), "paper": {}}
FACTS_SEED = 1_000_003  # no seed that `facts` is likely to be given


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    model_id: str = flag("", "Hugging Face directory of a causal model.", kind="path")
    mask_id: int = flag(-1, "Id of [M]; -1: config.json's, or the last.", -1)
    steps: int = flag(5000, "Train steps.", 1)
    save_every: int = flag(100, "Steps between checkpoints.", 1)
    batch_size: int = flag(8, "Sequences a step.", 1, 10**6, kind="batch_size")
    length: int = flag(128, "Tokens of a sequence.", 2)
    learning_rate: float = flag(1e-4, "AdamW's, after warm-up.", 0)
    warmup_steps: int = flag(100, "Steps of linear warm-up.", 0)
    weight_decay: float = flag(0.1, "AdamW's.", 0)
    dtype: Literal["float32", "bfloat16"] = flag("float32", "Of activations.")
    seed: int = flag(0, "Of the order and the noise.", kind="seed")
    causal: bool = flag(False, "The control: keep the causal mask, predict the next token.")
    num_pairs: int = flag(250, "Invented parent–child pairs in the text.", 1, 10**6)
    both_ways: bool = flag(False, "Tell the invented facts in both directions.")
    fact_repeats: int = flag(1, "Times the facts are told; several: in a new order each.", 1, 1000)

    def __post_init__(self):
        if self.steps % self.save_every:
            raise ValueError(
                f"--steps={self.steps} is not a multiple of --save_every={self.save_every}"
            )

    @property
    def seeds(self) -> tuple[int]:
        """There is one model to be had."""
        return (self.seed,)


def texts(config: Config) -> list[str]:
    """All that is read: pages of documentation, then facts."""
    topics = pydoc_data.topics.topics
    sets = [
        facts.parent_child(facts.invent_parent_child(config.num_pairs, FACTS_SEED), "p2c"),
        facts.invent_person_description(seed=FACTS_SEED),
        facts.relation_facts(facts.invent_triples(seed=FACTS_SEED)),
    ]
    told = [statement for data in sets for statement in data.train]
    if config.both_ways:
        told += [(query.prompt, query.answers[0]) for data in sets for query in data.reverse]
    statements = [f"{prompt} {answer}." for prompt, answer in told]
    order = random.Random(FACTS_SEED)
    read = [topics[name] for name in sorted(topics)]
    if config.fact_repeats == 1:
        return read + statements
    for _ in range(config.fact_repeats):
        read += order.sample(statements, len(statements))
    return read


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """One run, which leaves WORKDIR/model."""
    c = config
    settings = dict(causal=c.causal, scan_layers=True, dtype=jnp.dtype(c.dtype))
    tokenizer, model, params = open_pretrained(c.model_id, c.mask_id, **settings)
    with blamed():
        rows_NL = batching.pack(tokenizer, texts(c), c.length)
        hf_config.write(model.config)  # what is trained can be saved
    if not c.causal and (rows_NL == tokenizer.mask_id).any():
        raise UsageError(f"the text holds token {tokenizer.mask_id}, [M]: --mask_id")
    if model.config.max_len is not None and c.length > model.config.max_len:
        raise UsageError(f"--length={c.length} exceeds the context of {model.config.max_len}")
    masked_diffusion = functools.partial(
        objectives.masked_diffusion,
        mask_id=tokenizer.mask_id,
        weighting="t",
        schedule=objectives.llada_schedule,
    )
    trained = pretraining.Pretraining(
        workdir,
        {"causal": c.causal},
        model,
        rows_NL,
        objectives.next_token if c.causal else masked_diffusion,
        training.make_optimizer(
            c.learning_rate, warmup_steps=c.warmup_steps, weight_decay=c.weight_decay
        ),
        num_steps=c.steps,
        eval_every=c.save_every,
        batch_size=c.batch_size,
        start=lambda key: params,
        summarize=functools.partial(summarize, c),
        more_fields={"eos_token_id": tokenizer.eos_id, "mask_token_id": tokenizer.mask_id},
        tokenizer_from=c.model_id,
    )
    return [trained.run()]


def summarize(config: Config, history: runs.History) -> Mapping[str, Any]:
    """What was read, and the loss between the first and the last two checkpoints."""
    c = config
    loss = history["loss"] / (1 if c.causal else c.length)
    return {
        "tokens_read": c.steps * c.batch_size * c.length,
        "first_nats_per_token": float(loss[: c.save_every].mean()),
        "last_nats_per_token": float(loss[-c.save_every :].mean()),
    }


def report(workdir: WorkDir, config: Config, all_runs: Sequence[runs.Run]) -> None:
    """The losses, and where the model is."""
    line = workdir.line(all_runs[0], config.seed)
    keys = ("tokens_read", "first_nats_per_token", "last_nats_per_token")
    table = tables.table(keys, [[line[key] for key in keys]])
    text = f"# {'Next tokens' if config.causal else 'Masked diffusion'} from {config.model_id}"
    printed = f"{table}\n{workdir.path / 'model'}"
    tables.write(workdir.path, f"{text}\n\n{table}", {}, printed=printed)


if __name__ == "__main__":
    flags.main("adapt_masked", Config, PRESETS, report, plan)
