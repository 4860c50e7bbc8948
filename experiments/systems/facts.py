"""Facts in language models (arXiv 2602.02133 §3, §6): data, models, training, what is asked."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import models, objectives, runs, training
from dirasym.analysis import attention, queries
from dirasym.analysis.questions import Questions, answer_tokens, pair_alignment
from dirasym.analysis.recall import token_recall
from dirasym.data import batching, facts, facts_files, pairs, tokenizers
from dirasym.finetuning import Pretrained, Trainable
from dirasym.models import lora
from dirasym.rows import PerRow
from dirasym.usage import blamed
from experiments.flags import flag

# App. C.1 of arXiv 2602.02133: AdamW's rate, and that on T-REx.
PAPER_RATES = {"llada": (5e-5, 2e-4), "llama": (5e-5, 9e-5), "qwen2": (1e-4, 5e-5)}


def check_needed(config: Any, *needs: tuple[Any, str, tuple[str, ...]]) -> None:
    """Raises ValueError for a flag that nothing reads, as what it needs is not given.

    A flag is given where it is not its default. `needs`: (whether it is there, what, the flags).
    """
    for is_there, needed, names in needs:
        for name in names:
            if not is_there and getattr(config, name) != getattr(type(config), name):
                raise ValueError(f"--{name} needs {needed}")


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    data: tuple[Literal["p2c", "c2p", "p2d", "d2p", "trex", "pairs"], ...] = flag(
        ("p2c",), "Training direction: parent–child, person–description, T-REx, or --pairs."
    )
    data_path: str = flag("", "Folder of the public files; empty: invented facts.", kind="path")
    pairs: str = flag("", "Your own facts: CSV, TSV or JSON lines.", kind="path")
    columns: tuple[str, ...] = flag(("a", "b"), "Their two columns.")
    encoding: str = flag("utf-8", "The file's.")
    aliases: str = flag("", "What stands between names of one thing in a cell, such as |.")
    forward: str = flag("", "How they are trained: 'The capital of {a} is {b}'.")
    reverse: str = flag("", "How they are asked in reverse: '{b} is the capital of {a}'.")
    data_seed: int = flag(0, "Draws the facts; the same for every run.", kind="seed")
    num_pairs: int = flag(250, "Parent–child pairs asked about.", 1, 10**6)
    both_ways: int = flag(0, "Further pairs trained both ways, to teach the wording.", 0, 10**6)
    both_ways_from: Literal["invented", "file"] = flag(
        "invented", "Whether these are invented, or further pairs of --data_path's file."
    )
    name_words: int = flag(2, "Words in an invented parent's or child's name.", 1, 100)
    models: tuple[Literal["mdm", "arm"], ...] = flag(("mdm", "arm"), "Masked or causal.")
    seeds: tuple[int, ...] = flag((1, 42, 1234), "One run each.", kind="seed")
    model_id: str = flag("", "Hugging Face directory; empty: from scratch.", kind="path")
    width: int = flag(128, "From scratch: width of the residual stream.", 2, 10**6)
    layers: int = flag(2, "From scratch: layers.", 1, 1000)
    heads: int = flag(4, "From scratch: query heads.", 1, 10**6)
    kv_heads: int = flag(2, "From scratch: key/value heads.", 1, 10**6)
    positions: Literal["rope", "alibi", "sinusoidal", "learned", "none"] = flag(
        "rope", "From scratch: how positions enter."
    )
    lora_rank: int = flag(0, "Rank of the adapters; 0 trains every weight.", 0, 10**6)
    lora_alpha: float = flag(64.0, "Adapters are scaled by alpha / rank.", 0)
    lora_dropout: float = flag(0.0, "Dropout on the adapters' input.", 0)
    lora_targets: str = flag(r"attention/(query|key|value|out)$", "Regex of adapted layers.")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "Of frozen weights and activations.")
    epochs: int = flag(150, "Passes over the statements.", 1)
    eval_epochs: int = flag(10, "Epochs between evaluations (and checkpoints).", 1)
    batch_size: int = flag(8, "Statements a step.", 1, 10**6, kind="batch_size")
    learning_rate: float = flag(5e-5, "AdamW's; -1: the paper's, by model and data.", -1)
    warmup_steps: int = flag(0, "Steps of linear warm-up.", 0)
    weight_decay: float = flag(0.1, "AdamW's.", 0)
    noising: Literal["whole", "names", "answer"] = flag(
        "whole",
        "MDM: mask any token; answers, and names in prompts, as wholes (see --decode_steps); or "
        "the answer alone (loss over its length).",
    )
    mask_id: int = flag(-1, "With --model_id: id of [M]; -1: config.json's, or the last.", -1)
    max_new: int = flag(0, "Tokens generated; 0: the longest answer and its end.", 0, 10**5)
    decode_steps: int = flag(0, "MDM: steps of remasking; 0: one a token.", 0, 10**5)
    block_length: int = flag(0, "MDM: tokens a block; 0: all.", 0, 10**5)
    remasking: Literal["low_confidence", "random"] = flag("low_confidence", "MDM: what is kept.")
    gradient_examples: int = flag(0, "Queries whose gradients are compared.", 0, 10**6)
    attention_examples: int = flag(0, "MDM: facts whose attention scores are correlated.", 0, 10**6)
    attention_distance: int = flag(8, "MDM: largest distance from [M] to B of these.", 1, 1000)

    def __post_init__(self):
        c = self
        epochs = f"--epochs={c.epochs} is not a multiple of --eval_epochs={c.eval_epochs}"
        examples = f"--attention_examples={c.attention_examples}: 3 or more, or 0"
        needs_path = c.both_ways_from == "file" and not c.data_path
        is_no_pairs = "pairs" in c.data and not (c.pairs and c.forward and c.reverse)
        for is_bad, message in (
            (c.epochs % c.eval_epochs, epochs),
            (0 < c.attention_examples < 3, examples),
            (c.lora_dropout >= 1, f"--lora_dropout={c.lora_dropout} must be below 1"),
            (-1 < c.learning_rate < 0, f"--learning_rate={c.learning_rate} is negative"),
            (needs_path, "--both_ways_from=file needs --data_path"),
            (is_no_pairs, "--data=pairs needs --pairs=FILE, --forward and --reverse, templates"),
            (len(c.columns) != 2, f"--columns={','.join(c.columns)} must be two"),
        ):
            if is_bad:
                raise ValueError(message)
        own = ("pairs", "columns", "encoding", "aliases", "forward", "reverse")
        check_needed(
            c,
            ("pairs" in c.data, "--data=pairs", own),
            (set(c.data) != {"pairs"}, "public files: --data=p2c, ..", ("data_path",)),
            (c.model_id, "--model_id=DIR", ("lora_rank", "mask_id")),
            (c.lora_rank, "--lora_rank", ("lora_alpha", "lora_dropout", "lora_targets")),
        )


def rate(data: str, kind: str, model_type: str | None, config: Config) -> float:
    """--learning_rate, or the paper's: LLaDA's for masked models, LLaMA's for what it has not."""
    if config.learning_rate >= 0:
        return config.learning_rate
    name = "llada" if kind == "mdm" else model_type
    return PAPER_RATES.get(name, PAPER_RATES["llama"])[data == "trex"]


def open_pretrained(model_id: str, mask_id: int, **settings: Any) -> Pretrained:
    """`Pretrained.open` of --model_id and --mask_id."""
    with blamed(f"--model_id={model_id}"):
        return Pretrained.open(model_id, mask_id if mask_id >= 0 else None, **settings)


def fact_set(name: str, config: Config) -> facts.FactSet:
    """The facts of one training direction. Raises UsageError, naming the direction."""
    c = config
    with blamed(f"--data={name}"):
        if name == "pairs":
            sides = dict(zip("ab", c.columns, strict=True), forward=c.forward, reverse=c.reverse)
            how = dict(encoding=c.encoding, aliases=c.aliases or None)
            return pairs.Pairs.from_csv(c.pairs, several=True, **how, **sides).fact_set()
        names = ("num_pairs", "both_ways", "both_ways_from", "name_words")
        drawn = {name: getattr(c, name) for name in names}
        return facts_files.paper_set(name, c.data_path, seed=c.data_seed, **drawn)


def from_scratch(kind: str, vocab_size: int, config: Config) -> models.TransformerConfig:
    """A small LLaMA, causal or (LLaDA) not."""
    c = config
    return (models.llama if kind == "arm" else models.llada)(
        vocab_size, num_layers=c.layers, width=c.width, num_heads=c.heads, num_kv_heads=c.kv_heads,
        mlp_width=4 * c.width, max_len=128, rope_base=10_000.0, rope_scaling=None,
        positions=c.positions, init="uniform_fan_in", dtype=jnp.dtype(c.dtype),
    )  # fmt: skip


class Task:
    """One model on one direction of facts: how it is trained and how it is asked.

    Raises:
      ValueError: what cannot be trained, decoded or saved, before any of it is begun.
    """

    def __init__(self, data: str, kind: str, config: Config, pretrained: Pretrained | None = None):
        c = self.config = config
        self.identity, self.masked = {"data": data, "model": kind}, kind == "mdm"
        self.facts, self.pretrained = fact_set(data, c), pretrained
        if pretrained is None:
            self.tokenizer = tokenizers.Words(self.facts.texts())
            network = from_scratch(kind, self.tokenizer.vocab_size, c)
        else:
            self.tokenizer = pretrained.tokenizer
            network = dataclasses.replace(pretrained.model.config, causal=not self.masked)
        reading = dict(tokenizer=self.tokenizer, masked=self.masked)
        rows = dict(max_len=network.max_len, **reading)
        self.rows = batching.encode_facts(facts=self.facts, noising=c.noising, **rows)
        self.questions = Questions.of(self.facts, num_new=c.max_new, **rows)
        self.pairs = None
        if c.gradient_examples:
            self.pairs = queries.paired_queries(self.facts, limit=c.gradient_examples, **reading)
        self.names = []  # of which attention is read
        if self.masked and c.attention_examples:
            self.names = answer_tokens(self.facts, self.tokenizer, c.attention_examples)
            if len(self.names) < 3:
                raise ValueError(f"--attention_examples: of {len(self.names)} names, 3 are needed")
            length = c.attention_distance + max(map(len, self.names))
            if network.max_len is not None and length > network.max_len:
                given = f"--attention_distance={c.attention_distance} makes rows of {length} tokens"
                raise ValueError(f"{given}, and the context has {network.max_len}")
        steps = dict(warmup_steps=c.warmup_steps, weight_decay=c.weight_decay)
        self.trained = Trainable(
            models.Transformer(network),
            training.make_optimizer(rate(data, kind, network.model_type, c), **steps),
            base=pretrained and pretrained.params,
            adapters=self._lora() if c.lora_rank else None,
        )
        if c.lora_rank:
            models.check_adapters(pretrained.model, self.trained.adapters)
        model_fn = self.trained.apply_fn if self.masked else self.trained.extend_fn
        how = dict(num_steps=c.decode_steps, block_length=c.block_length, remasking=c.remasking)
        self.generate = self.questions.generator(model_fn, **how)
        self._compare = jax.jit(self._alignment)

    def _lora(self) -> models.LoRAConfig:
        c = self.config
        # GPT-2's queries, keys and values are one layer where its weights come from.
        fused = lora.QKV if self.pretrained.model.config.positions == "learned" else ()
        return models.LoRAConfig(
            c.lora_rank, c.lora_alpha, c.lora_targets, dropout=c.lora_dropout, fused=fused
        )

    def run(self, summarize: Callable[[runs.History], Mapping[str, Any]]) -> runs.Run:
        """Its training, for any seed."""
        c = self.config
        if self.masked:
            how = dict(mask_id=self.tokenizer.mask_id, per_token=c.noising == "answer")
            how |= dict(weighting="t", schedule=objectives.llada_schedule)
            objective = functools.partial(objectives.masked_diffusion, **how)
        else:
            longest = int(self.rows["scored_BL"].sum(axis=1).max())
            objective = functools.partial(objectives.next_token, capacity=PerRow(longest))
        epoch = max(len(self.rows["tokens_BL"]) // c.batch_size, 1)
        return runs.Run(
            self.identity,
            data=lambda seed: self.rows,
            step=functools.partial(training.train_step, objective=objective),
            num_steps=c.epochs * epoch,
            eval_every=c.eval_epochs * epoch,
            batch_size=c.batch_size,
            init=self.trained.state,
            evaluate=self.evaluate,
            summarize=summarize,
            finish=self.finish,
            network=self.trained.module,
        )

    def evaluate(self, state: training.TrainState) -> dict[str, Any]:
        """Answers and first tokens both ways (`Recalled.summary`), of single questions too.

        Of the paired queries the probability of the true token, and their gradients, compared.
        """
        params = state.variables(state.params)
        key = jax.random.fold_in(state.key, training.EVAL_STREAM)
        said = self.questions.said(self.generate, params, key)
        recalled = self.questions.recall(self.trained.apply_fn, params, said)
        values: dict[str, Any] = {}
        for direction, found in recalled.items():
            values |= {f"{direction}_{name}": x for name, x in found.summary().items()}
            for name in ("p_E", "rank_E"):
                values[f"{direction}_{name}"] = getattr(found.token, name)
        if self.pairs is not None:
            mask_id = self.questions.mask_id
            for direction, asked in zip(recalled, self.pairs, strict=True):
                paired = token_recall(self.trained.apply_fn, params, asked, mask_id=mask_id)
                values[f"paired_{direction}_p"] = paired.p_E
            compared = self._compare(state, self.pairs)
            values |= {f"gradient_cosine_{block}": x for block, x in compared.cosine.items()}
            values |= {f"gradient_inner_{block}": x for block, x in compared.inner.items()}
        return values

    def _alignment(self, state, pairs):
        return pair_alignment(
            self.trained.apply_fn,
            state.params,
            pairs,
            mask_id=self.questions.mask_id,
            variables=state.variables,
        )

    def finish(self, state: training.TrainState, folder: pathlib.Path) -> dict[str, np.ndarray]:
        """Saves adapters, to fit the stored weights; `attention_*`, Figure 6's correlation."""
        if self.trained.adapters is not None:
            stored = self.pretrained.model
            models.save_adapters(folder, stored, state.params["lora"], self.trained.adapters)
        if not self.names:
            return {}
        found = attention.name_correlation(
            self.trained.internals_fn,
            state.variables(state.params),
            self.names,
            self.config.attention_distance,
            mask_id=self.tokenizer.mask_id,
            fill_id=self.tokenizer.eos_id,
            resamples=200,
        )
        return {f"attention_{name}": x for name, x in found._asdict().items()}
