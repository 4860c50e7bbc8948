"""Facts in language models (arXiv 2602.02133 §3, §6): the data, the models, how they are asked."""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import decoding, models, objectives, readers, training
from dirasym.analysis import alignment, attention, recall
from dirasym.data import batching, facts, facts_files, tokenizers
from dirasym.models import hf_config, lora
from dirasym.rows import PerRow
from experiments import flags
from experiments.flags import flag

EVAL_CHUNK = 64  # queries a call


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    data: tuple[Literal["p2c", "c2p", "p2d", "d2p", "trex"], ...] = flag(
        ("p2c",), "Training direction: parent–child, person–description, T-REx."
    )
    data_path: str = flag("", "Public files: parent_child_pairs.csv's folder, or T-REx's JSON.")
    data_seed: int = flag(0, "Draws the facts; the same for every run.")
    num_pairs: int = flag(250, "Parent–child pairs asked about.", 1)
    both_ways: int = flag(0, "Further pairs trained both ways, to teach the wording.", 0)
    both_ways_from: Literal["invented", "file"] = flag(
        "invented", "Whether these are invented, or further pairs of --data_path's file."
    )
    name_words: int = flag(2, "Words in an invented parent's or child's name.", 1)
    models: tuple[Literal["mdm", "arm"], ...] = flag(("mdm", "arm"), "Masked or causal.")
    seeds: tuple[int, ...] = flag((1, 42, 1234), "One run each.")
    model_id: str = flag("", "Hugging Face directory of the weights; empty: from scratch.")
    width: int = flag(128, "From scratch: width of the residual stream.", 2)
    layers: int = flag(2, "From scratch: layers.", 1)
    heads: int = flag(4, "From scratch: query heads.", 1)
    kv_heads: int = flag(2, "From scratch: key/value heads.", 1)
    positions: Literal["rope", "alibi", "sinusoidal", "learned", "none"] = flag(
        "rope", "From scratch: how positions enter."
    )
    lora_rank: int = flag(0, "Rank of the adapters; 0 trains every weight.", 0)
    lora_alpha: float = flag(64.0, "Adapters are scaled by alpha / rank.", 0)
    lora_dropout: float = flag(0.0, "Dropout on the adapters' input.", 0)
    lora_targets: str = flag(r"attention/(query|key|value|out)$", "Regex of adapted layers.")
    dtype: Literal["float32", "bfloat16"] = flag("float32", "Of frozen weights and activations.")
    epochs: int = flag(150, "Passes over the statements.", 1)
    eval_epochs: int = flag(10, "Epochs between evaluations (and checkpoints).", 1)
    batch_size: int = flag(8, "Statements a step.", 1)
    learning_rate: float = flag(5e-5, "AdamW's.", 0)
    warmup_steps: int = flag(0, "Steps of linear warm-up.", 0)
    weight_decay: float = flag(0.1, "AdamW's.", 0)
    noising: Literal["whole", "names", "answer"] = flag(
        "whole",
        "MDM: mask any token; answers, and names in prompts, as wholes (see --decode_steps); or "
        "the answer alone (loss over its length).",
    )
    mask_id: int = flag(-1, "With --model_id: id of [M]; -1: config.json's, or the last.", -1)
    max_new: int = flag(0, "Tokens generated; 0: the longest answer and its end.", 0)
    decode_steps: int = flag(0, "MDM: steps of remasking; 0: one a token.", 0)
    block_length: int = flag(0, "MDM: tokens a block; 0: all.", 0)
    remasking: Literal["low_confidence", "random"] = flag("low_confidence", "MDM: what is kept.")
    gradient_examples: int = flag(0, "Queries whose gradients are compared at evaluations.", 0)
    attention_examples: int = flag(0, "MDM: facts whose attention scores are correlated.", 0)
    attention_distance: int = flag(8, "MDM: largest distance from [M] to B of these.", 1)

    def __post_init__(self):
        if self.epochs % self.eval_epochs:
            raise ValueError(
                f"--epochs={self.epochs} is not a multiple of --eval_epochs={self.eval_epochs}"
            )
        if 0 < self.attention_examples < 3:
            raise ValueError(f"--attention_examples={self.attention_examples}: 3 or more, or 0")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"--lora_dropout={self.lora_dropout} must be below 1")
        if self.both_ways_from == "file" and not self.data_path:
            raise ValueError("--both_ways_from=file needs --data_path")
        if self.lora_rank and not self.model_id:
            raise ValueError("--lora_rank needs weights to adapt: --model_id=DIRECTORY")
        for name in self.data:
            fact_set(name, self)
        if self.model_id:
            open_tokenizer(self)


# ---------------------------------------------------------------------------------------
# Data and tokens


def fact_set(name: str, config: Config) -> facts.FactSet:
    """The facts of one training direction; from public files if there is a path."""
    path, seed = config.data_path, config.data_seed
    try:
        if name in ("p2c", "c2p"):
            count = config.num_pairs + config.both_ways
            pairs = facts.invent_parent_child(count, seed, config.name_words)
            asked, both_ways = pairs[: config.num_pairs], pairs[config.num_pairs :]
            if path:
                from_file = config.both_ways_from == "file"
                pairs = facts_files.read_parent_child(
                    pathlib.Path(path) / "parent_child_pairs.csv",
                    count if from_file else config.num_pairs,
                    seed,
                )
                asked = pairs[: config.num_pairs]
                both_ways = pairs[config.num_pairs :] if from_file else both_ways
            return facts.parent_child(asked, name, both_ways)
        if name in ("p2d", "d2p"):
            if path:
                return facts_files.read_person_description(path, name, seed=seed)
            return facts.invent_person_description(direction=name, seed=seed)
        if not path:
            return facts.relation_facts(facts.invent_triples(seed=seed))
        files = sorted(pathlib.Path(path).glob("*.json"))
        if not files:
            raise ValueError(f"{path} holds no .json file")
        return facts.relation_facts(facts_files.read_trex(files, seed=seed))
    except (ValueError, OSError) as error:
        raise flags.UsageError(f"--data={name}: {error}") from None


def open_tokenizer(config: Config) -> tokenizers.HuggingFace:
    """The tokenizer of the directory --model_id; its config.json is one that can be loaded."""
    directory = pathlib.Path(config.model_id)
    mask_id = config.mask_id if config.mask_id >= 0 else None
    try:
        hf_config.read(readers.read_json(directory / "config.json"))
        tokenizer = tokenizers.from_directory(directory, mask_id=mask_id)
    except (ValueError, ImportError) as error:
        raise flags.UsageError(f"--model_id={directory}: {error}") from None
    if tokenizer.mask_id is None:
        raise flags.UsageError(
            f"--model_id={directory}: [M] cannot be the end of text, {tokenizer.eos_id}: --mask_id"
        )
    return tokenizer


# ---------------------------------------------------------------------------------------
# One run


class Task:
    """One model on one direction of facts: how it is trained and how it is asked."""

    def __init__(self, data_name: str, model_name: str, config: Config, shardings=None):
        self.config, self.model_name, self.shardings = config, model_name, shardings
        self.data = fact_set(data_name, config)
        self._load_model()
        self._encode()
        self._makers = lora if config.lora_rank else models
        module = self._with_adapters(self.model)
        self.apply_fn = self._makers.make_apply_fn(module)  # of `TrainState.variables`
        self.extend_fn = self._makers.make_extend_fn(module)
        self.internals_fn = self._makers.make_internals_fn(module)

    def _load_model(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.base = None
        if c.model_id:
            overrides = {"scan_layers": True, "causal": self.model_name == "arm"}
            param_dtype = dtype if c.lora_rank else jnp.float32
            try:
                self.model, self.base = models.load_pretrained(
                    c.model_id,
                    shardings=self.shardings,
                    param_dtype=param_dtype,
                    dtype=dtype,
                    **overrides,
                )
            except (ValueError, ImportError) as error:
                raise flags.UsageError(f"--model_id: {error}") from None
            self.tokenizer = open_tokenizer(c)
            return
        texts = [" ".join(text) for text in self.data.train]
        queries = self.data.forward + self.data.reverse
        texts += [f"{query.prompt} {answer}" for query in queries for answer in query.answers]
        self.tokenizer = tokenizers.Words(texts)
        preset = models.llama if self.model_name == "arm" else models.llada
        try:
            network = preset(
                vocab_size=self.tokenizer.vocab_size,
                num_layers=c.layers,
                width=c.width,
                num_heads=c.heads,
                num_kv_heads=c.kv_heads,
                mlp_width=4 * c.width,
                max_len=128,
                rope_base=10_000.0,
                rope_scaling=None,
                positions=c.positions,
                init="uniform_fan_in",
                dtype=dtype,
            )
        except ValueError as error:
            raise flags.UsageError(str(error)) from None
        self.model = models.Transformer(network)

    def _encode(self) -> None:
        c, tokenizer, max_len = self.config, self.tokenizer, self.model.config.max_len
        queries = self.data.forward + self.data.reverse
        names = None
        if c.noising == "names":
            names = {query.answers[0] for query in queries}
            names |= {statement.answer for statement in self.data.train}
        asked = [(query.prompt, f" {answer}") for query in queries for answer in query.answers]
        try:
            arrays = batching.encode_rows(
                tokenizer,
                [statement.prompt for statement in self.data.train],
                [f" {statement.answer}" for statement in self.data.train],
                # A masked model's rows go on with ends, which are noised and read like any token.
                ends="fill" if self.model_name == "mdm" else "one",
                names=names if self.model_name == "mdm" else None,
                max_len=max_len,
            )
            prompts, right = batching.split_answers(tokenizer, *zip(*asked, strict=True))
        except ValueError as error:
            raise flags.UsageError(str(error)) from None
        first = np.cumsum([0, *(len(query.answers) for query in queries[:-1])])
        self.max_new = c.max_new or max(map(len, right)) + 1
        if self.model_name == "mdm":
            tokens = arrays["tokens_BL"]
            del arrays["valid_BL"]  # all are
            if c.noising != "answer":
                arrays["scored_BL"] = np.ones_like(arrays["scored_BL"])
            if (tokens == tokenizer.mask_id).any():
                raise flags.UsageError(f"the statements hold token {tokenizer.mask_id}, [M]")
            steps, block = c.decode_steps or self.max_new, c.block_length or self.max_new
            try:
                decoding.check_blocks(self.max_new, steps, block)
            except ValueError as error:
                raise flags.UsageError(f"--decode_steps, --block_length: {error}") from None
        self.arrays = arrays
        self.asked = {
            name: recall.first_token_questions(
                side, tokenizer, masked=self.model_name == "mdm", num_new=self.max_new
            )
            for name, side in (("forward", self.data.forward), ("reverse", self.data.reverse))
        }
        self.prompts = batching.pad([prompts[number] for number in first], tokenizer.pad_id)
        needed = self.prompts[0].shape[1] + self.max_new
        if max_len is not None and needed > max_len:
            raise flags.UsageError(
                f"--max_new={self.max_new}: the longest query needs {needed} tokens, "
                f"the context has {max_len}"
            )
        self.pairing = None
        if c.gradient_examples:
            self.pairing = recall.paired_queries(
                self.data, tokenizer, masked=self.model_name == "mdm"
            )

    @property
    def steps_per_epoch(self) -> int:
        return max(len(self.arrays["tokens_BL"]) // self.config.batch_size, 1)

    @property
    def lora_config(self) -> models.LoRAConfig:
        c = self.config
        # GPT-2's queries, keys and values are one layer where its weights come from.
        fused = lora.QKV if self.model.config.positions == "learned" else ()
        return models.LoRAConfig(
            c.lora_rank, c.lora_alpha, c.lora_targets, dropout=c.lora_dropout, fused=fused
        )

    def state(self, seed: int) -> training.TrainState:
        """Step 0 of one seed."""
        c = self.config
        init_key, run_key = jax.random.split(jax.random.key(seed))
        optimizer = training.make_optimizer(
            c.learning_rate, warmup_steps=c.warmup_steps, weight_decay=c.weight_decay
        )
        module = self._with_adapters(self.model)
        apply_fn, frozen = self._makers.make_apply_fn(module), None
        if c.lora_rank:
            try:
                params = {"lora": lora.init_adapters(module, self.base, init_key)}
                models.check_adapters(self.model, self.lora_config)
            except ValueError as error:
                raise flags.UsageError(str(error)) from None
            frozen = {"params": self.base}
        elif self.base is None:
            tokens_BL = jnp.zeros((1, 1), jnp.int32)
            params = jax.jit(self.model.init)(init_key, tokens_BL)["params"]
        else:
            params = jax.tree.map(jnp.copy, self.base)  # donated by the first step
        return training.create_state(apply_fn, params, optimizer, run_key, frozen=frozen)

    def _with_adapters(self, model: models.Transformer):
        """The model as it is trained and asked.

        Adapters are never merged: that would round them to the base's dtype.
        """
        if not self.config.lora_rank:
            return model
        try:
            return models.LoRA(model, self.lora_config)
        except ValueError as error:
            raise flags.UsageError(str(error)) from None

    def train_step(self):
        """state, batch -> state, metrics."""
        if self.model_name == "arm":
            # Trained on answers alone.
            longest = int(self.arrays["scored_BL"].sum(axis=1).max())
            objective = functools.partial(objectives.next_token, capacity=PerRow(longest))
        else:
            objective = functools.partial(
                objectives.masked_diffusion,
                mask_id=self.tokenizer.mask_id,
                weighting="t",
                schedule=objectives.llada_schedule,
                per_token=self.config.noising == "answer",
            )
        return functools.partial(training.train_step, objective=objective)

    def save_adapters(self, state: training.TrainState, directory: pathlib.Path) -> None:
        """Writes the adapters, if there are any, in PEFT's format, to fit --model_id's weights."""
        if self.config.lora_rank:
            models.save_adapters(directory, self.model, state.params["lora"], self.lora_config)

    # -----------------------------------------------------------------------------------
    # Questions

    @functools.cached_property
    def _generate(self):
        c = self.config
        if self.model_name == "arm":
            return jax.jit(
                lambda variables, key, tokens, valid: decoding.greedy(
                    self.extend_fn,
                    variables,
                    tokens,
                    valid,
                    num_new=self.max_new,
                    eos_id=self.tokenizer.eos_id,
                )
            )
        return jax.jit(
            lambda variables, key, tokens, valid: decoding.remask(
                self.apply_fn,
                variables,
                tokens,
                valid,
                key,
                mask_id=self.tokenizer.mask_id,
                num_new=self.max_new,
                num_steps=c.decode_steps or self.max_new,
                block_length=c.block_length or self.max_new,
                remasking=c.remasking,
            )
        )

    def answers(self, variables, key: jax.Array) -> list[str]:
        """What the model says to each forward, then each reverse query."""
        new = recall.in_chunks(
            lambda number, *chunk: self._generate(
                variables, jax.random.fold_in(key, number), *chunk
            ),
            self.prompts,
            EVAL_CHUNK,
        )
        texts = []
        for row in np.asarray(new):
            ended = np.flatnonzero(row == self.tokenizer.eos_id)
            texts.append(self.tokenizer.decode(row[: ended[0]] if len(ended) else row))
        return texts

    def evaluate(self, state: training.TrainState) -> dict[str, np.ndarray]:
        """Answers, P(true first token) and its rank, both ways.

        `percent`: exact match. `begun_percent`: outputs that begin with an answer.
        `copied_percent`: outputs that repeat words of the question. `choice_percent`: questions
        whose true first token is more probable than the first tokens of all other answers in
        that direction, words of the question aside; NaN if none can be asked so. The masked
        model is asked at the first of `max_new` [M]s. Values have an axis of one seed.
        """
        variables = state.variables(state.params)
        texts = self.answers(variables, jax.random.fold_in(state.key, training.EVAL_STREAM))
        queries = self.data.forward + self.data.reverse
        said = recall.text_recall(
            texts, [query.prompt for query in queries], [query.answers for query in queries]
        )
        mask_id = self.tokenizer.mask_id if self.model_name == "mdm" else None
        values = {}
        split = len(self.data.forward)
        for name, side in (("forward", slice(split)), ("reverse", slice(split, None))):
            questions, among = self.asked[name]
            found = recall.token_recall(
                self.apply_fn,
                variables,
                questions,
                mask_id=mask_id,
                among=among,
                chunk_size=EVAL_CHUNK,
            )
            values[f"{name}_percent"] = 100 * np.mean(said.exact_E[side])
            values[f"{name}_begun_percent"] = 100 * np.mean(said.begun_E[side])
            values[f"{name}_copied_percent"] = 100 * np.mean(said.copied_E[side])
            first = found.choice_E[among.is_asked_E]
            values[f"{name}_choice_percent"] = 100 * np.mean(first) if len(first) else np.nan
            values[f"{name}_p"] = np.mean(found.p_E)
            values[f"{name}_rank"] = np.median(found.rank_E)
        if self.pairing is not None:
            values |= self.compare_gradients(state)
        return {name: np.asarray(value)[None] for name, value in values.items()}

    @functools.cached_property
    def _alignment(self):
        mask_id = self.tokenizer.mask_id if self.model_name == "mdm" else None

        @jax.jit
        def compare(state, examples):
            loss = recall.query_loss(state.apply_fn, mask_id=mask_id)
            sides = [
                lambda trained, pair, side=side: loss(state.variables(trained), pair[side])
                for side in (0, 1)
            ]
            return alignment.alignment(
                *sides, state.params, examples=examples, blocks=r"(embed|attention|mlp|head)",
                chunk_size=1,
            )  # fmt: skip

        return compare

    def compare_gradients(self, state: training.TrainState) -> dict[str, Any]:
        """Inner product and cosine of paired queries' gradients, in all and per block."""
        count = self.config.gradient_examples
        examples = jax.tree.map(lambda x: x[:count], self.pairing)
        found = self._alignment(state, examples)
        values = {f"gradient_cosine_{name}": x for name, x in found.cosine.items()}
        return values | {f"gradient_inner_{name}": x for name, x in found.inner.items()}

    def attention_correlation(self, state: training.TrainState) -> dict[str, np.ndarray]:
        """Figure 6: Corr(S_fwd, S_rev) over facts against Δ1+Δ2, [layers, heads, totals].

        Rows hold [M] and B alone, end-of-sequence tokens elsewhere, so that every distance can
        be had. A name of several tokens: the score is averaged over B's span.
        """
        c, tokenizer = self.config, self.tokenizer
        prompt_of = {statement.answer: statement.prompt for statement in self.data.train}
        names = sorted(prompt_of)[: c.attention_examples]
        prompts = [prompt_of[name] for name in names]
        _, spans = batching.split_answers(tokenizer, prompts, [f" {name}" for name in names])
        found = attention.name_correlation(
            self.internals_fn,
            state.variables(state.params),
            spans,
            c.attention_distance,
            mask_id=tokenizer.mask_id,
            fill_id=tokenizer.eos_id,
            resamples=200,
        )
        return {"total": found.total, "mean": found.mean, "low": found.low, "high": found.high}
