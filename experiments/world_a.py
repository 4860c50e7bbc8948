"""Is the directional gap of World A the arrow of a causal model, or the bits that a map stores?

Question  arXiv 2511.19997: GPT-2 learns random K-to-1 maps between strings, A -> B and B -> A,
          from scratch, from pretrained weights and by LoRA. Its excess loss is reported as
          published (mean loss per token − ln K), and in nats per string above the exact
          floor, in training and after it, beside the bits that each direction must store.
          `--control=exchangeable` gives both directions one law; `--attention=bidirectional`
          takes the causal mask away.
Command   python -m experiments.world_a --preset=quick|paper
Cost      quick: a GPT-2 of 2 layers, characters, 1000 pairs, from scratch; under 5 minutes on
          2 CPU cores. paper: 40000 pairs, GPT-2 small, all regimes: for an accelerator.
Expected  paper's convention, scratch: gap 1.16 nats at K = 5, 0.90 at K = 8, 0 at K = 1. In nats
          per string the gap goes to 0 as training converges; see docs/world_a.md.
"""

import dataclasses
import functools
import importlib.util
import math
import pathlib
import pydoc_data.topics
from typing import Literal

import jax
import numpy as np

from dirasym import models, objectives, results, training
from dirasym.analysis import alignment, excess
from dirasym.compile import compile_scan
from dirasym.data import batching, string_maps, tokenizers
from dirasym.models import lora
from experiments import flags, harness, world_a_report, world_a_task
from experiments.flags import flag
from experiments.world_a_task import Direction

Mode = Literal["scratch", "finetune", "finetune_reg", "lora"]
ObjectiveName = Literal["next_token", "masked_diffusion", "parallel"]
SIZES = {
    "gpt2": dict(num_layers=12, width=768, num_heads=12),
    "gpt2-medium": dict(num_layers=24, width=1024, num_heads=16),
    "gpt2-large": dict(num_layers=36, width=1280, num_heads=20),
    "gpt2-xl": dict(num_layers=48, width=1600, num_heads=25),
}
PRESETS = {
    "smoke": dict(
        modes=["scratch"],
        Ks=[1, 5],
        n_pairs=200,
        epochs=2,
        eval_every=1,
        lr=3e-3,
        lora_ranks=[4],
        tokenizer="characters",
        layers=1,
        width=32,
        heads=2,
        pretrain_steps=20,
        pretrain_lr=3e-3,
    ),
    "quick": dict(
        modes=["scratch"],
        Ks=[1, 5],
        n_pairs=1000,
        epochs=60,
        eval_every=10,
        lr=1.5e-3,  # at 3e-3 some seeds never leave the plateau of a uniform guess
        dropout=0.0,  # at this width a rate of 0.1 keeps 4 nats a string from being learned
        seeds=[0, 1, 2],
        lora_ranks=[4, 32],
        tokenizer="characters",
        layers=2,
        width=96,
        heads=4,
        pretrain_steps=300,
        pretrain_lr=3e-3,
    ),
    "paper": {},
}
LORA_DROPOUT = 0.05
PRETRAIN_LENGTH = 64
# What identifies a finished run in the results file.
KEYS = ("run_type", "lora_r", "objective", "K", "direction", "seed")
BLOCKS = r"(blocks_\d+/(?:attention|mlp)(?=/)|position_embed|embed)"


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field; those down to `output` are the original script's."""

    modes: tuple[Mode, ...] = flag(("scratch", "finetune", "finetune_reg", "lora"), "Regimes.")
    model_id: str = flag("gpt2", "A GPT-2 size, or a directory with weights.")
    Ks: tuple[int, ...] = flag((1, 5, 8), "Branching factors K.")
    n_pairs: int = flag(40_000, "Pairs of strings.", 1)
    str_len: int = flag(8, "Characters of a string.", 1)
    epochs: int = flag(20, "Passes over the pairs.", 1)
    batch_size: int = flag(64, "Pairs a step.", 1)
    lr: float = flag(1e-4, "AdamW's peak learning rate; LoRA's is min(lr · rank / 8, 1e-3).", 0)
    seeds: tuple[int, ...] = flag((0,), "One run each.")
    lora_ranks: tuple[int, ...] = flag((8, 64, 256), "LoRA's ranks.")
    lora_alpha: float = flag(32.0, "LoRA's alpha.", 0)
    reg_weight_decay: float = flag(0.1, "Weight decay of finetune_reg.", 0)
    reg_dropout: float = flag(0.1, "Dropout of finetune_reg.", 0)
    output: str = flag("", "Results file; WORKDIR/results.jsonl if empty.")
    directions: tuple[Direction, ...] = flag(world_a_task.DIRECTIONS, "Which to train.")
    control: Literal["none", "exchangeable"] = flag("none", "Exchangeable: K-to-K maps.")
    attention: Literal["causal", "bidirectional"] = flag("causal", "The attention mask.")
    objectives: tuple[ObjectiveName, ...] = flag(
        ("next_token", "masked_diffusion", "parallel"),
        "Losses: the first for causal attention, the others for bidirectional.",
    )
    tokenizer: str = flag("gpt2", "characters, gpt2, or a path: tokenizer.json, GPT-2's merges.")
    layers: int = flag(0, "Transformer layers of a GPT-2 made here; 0: as --model_id says.", 0)
    width: int = flag(0, "Width of a GPT-2 made here; 0: as --model_id says.", 0)
    heads: int = flag(0, "Attention heads of a GPT-2 made here; 0: as --model_id says.", 0)
    dropout: float = flag(0.1, "Dropout of the other regimes.", 0)
    weight_decay: float = flag(0.01, "Weight decay of the other regimes.", 0)
    lora_lr: float = flag(0.0, "LoRA's learning rate at every rank; 0: as --lr says.", 0)
    pretrain_steps: int = flag(2000, "Steps of pretraining, where no directory is given.", 1)
    pretrain_lr: float = flag(3e-4, "Learning rate of pretraining.", 0)
    eval_every: int = flag(5, "Epochs between clean evaluations (and checkpoints), at most.", 1)
    track_gradients: bool = flag(False, "Compare both directions' gradients at evaluations.")
    mlp_results: str = flag(
        "", "results.jsonl of world_a_mlp, for the figure of gaps.", report_only=True
    )

    def __post_init__(self):
        world_a_task.check_sizes(self)
        if self.attention == "bidirectional" and self.modes != ("scratch",):
            raise ValueError("--attention=bidirectional starts from scratch: --modes=scratch")
        if not self.fitting_objectives:
            raise ValueError(f"no --objectives go with --attention={self.attention}")
        tokenizer = load_tokenizer(self.tokenizer)
        letters = string_maps.ALPHABET
        turned = [letters[place:] + letters[:place] for place in range(len(letters))]
        try:  # each character first and last in its string
            batching.encode_rows(tokenizer, *string_maps.texts(turned, turned))
        except ValueError as error:
            raise ValueError(f"--tokenizer={self.tokenizer}: {error}") from None
        for name in ("dropout", "reg_dropout"):
            if getattr(self, name) >= 1:
                raise ValueError(f"--{name} must be below 1, got {getattr(self, name)}")
        shape = model_config(self)
        if shape.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"--tokenizer={self.tokenizer} has {tokenizer.vocab_size} ids, and the model of "
                f"--model_id={self.model_id} only {shape.vocab_size}"
            )
        # A text has at most a token a character, and one that some tokenizers put in front.
        if 2 * self.str_len + len("x:  y: ") + 1 > shape.max_len:
            length = Texts(self).length
            if length > shape.max_len:
                raise ValueError(
                    f"--str_len={self.str_len} makes rows of {length} tokens, and the model of "
                    f"--model_id={self.model_id} holds {shape.max_len}"
                )
        widths = (shape.width, shape.mlp_width, shape.num_kv_heads * shape.head_dim)
        for rank in self.lora_ranks if "lora" in self.modes else ():
            if not 1 <= rank <= min(widths):
                raise ValueError(f"--lora_ranks: {rank} does not fit layers of width {min(widths)}")
        if self.modes != ("scratch",) and self.model_id in SIZES:
            if importlib.util.find_spec("safetensors") is None:
                raise ValueError("pretraining needs safetensors: pip install 'dirasym[hf]'")
            pretraining_ids(self.tokenizer)
        if self.mlp_results:
            read_mlp_results(self.mlp_results)

    @property
    def fitting_objectives(self) -> tuple[ObjectiveName, ...]:
        """The objectives that go with the attention mask."""
        causal = self.attention == "causal"
        return tuple(name for name in self.objectives if (name == "next_token") == causal)


@functools.lru_cache
def load_tokenizer(name: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.load(name)
    except (ValueError, ImportError) as error:
        raise ValueError(f"--tokenizer={name}: {error}") from None


@functools.lru_cache
def load_directory(path: str) -> tuple[models.Transformer, dict]:
    """A GPT-2 from disk, read once, with all of its keys checked."""
    if not pathlib.Path(path).is_dir():
        raise ValueError(f"--model_id={path} is neither a directory nor one of {', '.join(SIZES)}")
    try:
        return models.load_pretrained(path)
    except ImportError as error:
        raise ValueError(f"--model_id={path}: {error}") from None


def read_mlp_results(path: str) -> list[dict]:
    """Lines of `world_a_mlp`. Raises ValueError, naming the file, for any others."""
    if not pathlib.Path(path).is_file():
        raise ValueError(f"--mlp_results={path} is not a file")
    needed = {"arch", "K", "direction", "seed", *world_a_report.UNITS}
    try:
        lines = results.read_results(path)
    except ValueError:
        lines = [None]
    if not all(isinstance(line, dict) and needed <= line.keys() for line in lines):
        raise ValueError(f"--mlp_results={path} holds other lines than those of world_a_mlp")
    return lines


def model_config(config: Config, dropout: float = 0.0) -> models.TransformerConfig:
    """GPT-2's configuration as the flags say."""
    rates = dict(dropout=dropout, embed_dropout=dropout, attention_dropout=dropout)
    causal = config.attention == "causal"
    if config.model_id in SIZES:
        given = dict(num_layers=config.layers, width=config.width, num_heads=config.heads)
        size = SIZES[config.model_id] | {name: size for name, size in given.items() if size}
        vocab_size = load_tokenizer(config.tokenizer).vocab_size
        return models.gpt2(vocab_size, **size, **rates, causal=causal)
    return dataclasses.replace(load_directory(config.model_id)[0].config, **rates, causal=causal)


@dataclasses.dataclass(frozen=True)
class Regime:
    """How one family of runs is trained."""

    mode: Mode
    objective: ObjectiveName
    lr: float
    weight_decay: float
    dropout: float
    rank: int | None = None


def regimes(config: Config) -> list[Regime]:
    """All that the flags ask for."""
    found = []
    for objective in config.fitting_objectives:
        for mode in config.modes:
            if mode == "lora":
                for rank in config.lora_ranks:
                    lr = config.lora_lr or min(config.lr * rank / 8, 1e-3)
                    found.append(
                        Regime(mode, objective, lr, config.weight_decay, config.dropout, rank)
                    )
            elif mode == "finetune_reg":
                rates = config.reg_weight_decay, config.reg_dropout
                found.append(Regime(mode, objective, config.lr, *rates))
            else:
                rates = config.weight_decay, config.dropout
                found.append(Regime(mode, objective, config.lr, *rates))
    return found


def run(experiment: harness.Experiment, config: Config) -> None:
    """Trains what is missing, then reports."""
    texts = Texts(config)
    pretrained = functools.cache(lambda: pretrained_params(experiment, config))
    run_id = 0
    for regime in regimes(config):
        identity = {
            "run_type": regime.mode,
            "lora_r": regime.rank,
            "objective": regime.objective,
        }
        for seeds in harness.seed_groups(config.seeds):
            group = Group(experiment, config, texts, regime, seeds)
            for K in config.Ks:
                for direction in config.directions:
                    arrow = world_a_task.ARROWS[direction]
                    if not experiment.is_done(K=K, direction=arrow, seed=seeds[-1], **identity):
                        case = texts.case(K, direction, regime.objective)
                        group.train_and_record(case, pretrained, identity | {"run_id": run_id + 1})
                    run_id += len(seeds)
    others = read_mlp_results(config.mlp_results) if config.mlp_results else []
    world_a_report.write(experiment, config, notes(config, texts), others)


def notes(config: Config, texts: "Texts") -> str:
    """What a reader of the report must know of these runs."""
    shape = model_config(config)
    words = [
        f"GPT-2 with {shape.num_layers} layers of width {shape.width} ({config.attention} "
        f"attention), tokenizer {config.tokenizer}, {config.n_pairs} pairs, {config.epochs} "
        f"epochs, rows of {texts.length} tokens, control: {config.control}."
    ]
    if config.modes != ("scratch",) and config.model_id in SIZES:
        words.append(
            "Pretrained regimes start from a model pretrained here, on the texts of Python's "
            f"pydoc_data.topics ({config.pretrain_steps} steps), not from OpenAI's weights."
        )
    return " ".join(words)


class Texts:
    """All maps of a sweep as token rows of one length, so that its runs share programs."""

    def __init__(self, config: Config):
        self._config = config
        self._tokenizer = load_tokenizer(config.tokenizer)
        self._rows = {}
        for K in config.Ks:
            for direction in world_a_task.DIRECTIONS:
                prompts, answers = string_maps.texts(*world_a_task.oriented(config, K, direction))
                self._rows[K, direction] = batching.encode_rows(self._tokenizer, prompts, answers)
        self.mask_id = self._tokenizer.eos_id
        self.length = max(rows["tokens_BL"].shape[1] for rows in self._rows.values())
        for rows in self._rows.values():
            for name, x in rows.items():
                fill = self.mask_id if name == "tokens_BL" else False
                missing = ((0, 0), (0, self.length - x.shape[1]))
                rows[name] = np.pad(x, missing, constant_values=fill)

    def case(self, K: int, direction: Direction, objective: ObjectiveName) -> world_a_task.Case:
        """A map in one direction, with the floor of the objective's factorisation."""
        rows = self._rows[K, direction]
        sources, _ = world_a_task.oriented(self._config, K, direction)
        scored = zip(rows["tokens_BL"], rows["scored_BL"], strict=True)
        floor = excess.exact_floor(
            sources,
            [tokens_L[scored_L].tolist() for tokens_L, scored_L in scored],
            "parallel" if objective == "parallel" else "joint",
            length_known=objective != "next_token",
        )
        return world_a_task.make_case(self._config, K, direction, rows, floor)

    def probe(self, K: int, size: int) -> list[training.Data]:
        """The first pairs, forward and inverse."""
        return [
            {name: x[:size] for name, x in self._rows[K, direction].items()}
            for direction in world_a_task.DIRECTIONS
        ]

    def scored_share(self, batch_size: int) -> float:
        """The share of positions that a batch scores, but for one batch in ten thousand."""
        counts = np.stack([rows["scored_BL"].sum(axis=1) for rows in self._rows.values()])
        most = counts.mean(axis=1) + 4 * counts.std(axis=1) / np.sqrt(batch_size)
        return min(1.0, float(most.max()) / (self.length - 1))


class Group:
    """Seeds of a regime that train as one program, on one map after another."""

    def __init__(self, experiment, config: Config, texts: Texts, regime: Regime, seeds: list[int]):
        self.experiment, self.config, self.texts = experiment, config, texts
        self.regime, self.seeds = regime, seeds
        self.together = len(seeds) > 1
        c = config
        self.model = models.Transformer(model_config(c, regime.dropout))
        self.apply_fn = models.make_apply_fn(self.model)
        self.adapted = None
        if regime.rank:
            settings = dict(targets=lora.GPT2_TARGETS, fused=lora.QKV, dropout=LORA_DROPOUT)
            adapters = models.LoRAConfig(regime.rank, c.lora_alpha, **settings)
            self.adapted = models.LoRA(self.model, adapters)
            self.apply_fn = lora.make_apply_fn(self.adapted)
        num_steps = c.epochs * world_a_task.epoch_steps(c)
        self.optimizer = training.make_optimizer(
            regime.lr,
            warmup_steps=num_steps // 10,
            decay_steps=num_steps,
            weight_decay=regime.weight_decay,
        )
        self.objective, self.clean_objective = self._objectives()
        step = functools.partial(training.train_step, objective=self.objective)
        self.steps = world_a_task.compile_epochs(experiment, c, step, self.together)
        self.evaluate = harness.over_seeds(self._evaluate, self.together)

    def _objectives(self):
        """What is trained, and what a clean pass measures."""
        mask = dict(mask_id=self.texts.mask_id)
        # What follows the last attention is computed at targets alone.
        room = dict(capacity=self.texts.scored_share(self.config.batch_size))
        match self.regime.objective:
            case "next_token":
                next_token = functools.partial(objectives.next_token, **room)
                return next_token, next_token
            case "parallel":
                parallel = functools.partial(objectives.parallel_target, **mask, **room)
                return parallel, parallel
            case "masked_diffusion":
                return (
                    functools.partial(objectives.masked_diffusion, **mask, **room),
                    functools.partial(objectives.any_order, **mask),
                )

    def _evaluate(self, state, data, probe):
        loss = excess.clean_loss(
            self.clean_objective,
            state.apply_fn,
            state.variables(state.params),
            data,
            state.key,
            batch_size=self.config.batch_size,
        )
        values = {"nats_per_string": loss}
        if self.config.track_gradients:
            values |= self._gradients(state, probe)
        return values

    def _gradients(self, state, probe):
        """Per block: gradient norms of both directions, their cosine, and update to weight."""

        def loss(rows, params):
            return excess.clean_loss(
                self.objective,
                state.apply_fn,
                state.variables(params),
                rows,
                state.key,
                batch_size=self.config.batch_size,
            )

        forward, inverse = (functools.partial(loss, rows) for rows in probe)
        compared = alignment.alignment(forward, inverse, state.params, blocks=BLOCKS)
        values = {}
        for block, cosine in compared.cosine.items():
            values[f"cosine/{block}"] = cosine
            values[f"norm_forward/{block}"] = compared.norm_fwd[block]
            values[f"norm_inverse/{block}"] = compared.norm_rev[block]
        for name, each in (("forward", forward), ("inverse", inverse)):
            updates, _ = state.tx.update(
                jax.grad(each)(state.params), state.opt_state, state.params
            )
            ratios = alignment.update_ratios(updates, state.params, blocks=BLOCKS)
            values |= {f"update_{name}/{block}": ratio for block, ratio in ratios.items()}
        return values

    def states(self, pretrained) -> list[training.TrainState]:
        """Step 0 of every seed."""
        states = []
        for seed in self.seeds:
            init_key, run_key = jax.random.split(jax.random.key(seed))
            if self.regime.mode == "scratch":
                params, frozen = init_params(self.model, init_key), None
            else:
                params, frozen = jax.tree.map(np.asarray, pretrained()), None
            if self.adapted is not None:
                frozen = {"params": params}
                params = {"lora": lora.init_adapters(self.adapted, params, init_key)}
            params = jax.tree.map(jax.numpy.array, params)  # a copy: training overwrites it
            states.append(
                training.create_state(self.apply_fn, params, self.optimizer, run_key, frozen=frozen)
            )
        return states

    def train_and_record(self, case: world_a_task.Case, pretrained, identity: dict) -> None:
        """One map in one direction, from its checkpoint to its result lines."""
        c, regime = self.config, self.regime
        states = self.states(pretrained)
        trainable = sum(x.size for x in jax.tree.leaves(states[0].params))
        frozen = sum(x.size for x in jax.tree.leaves(states[0].frozen))
        mode = f"lora{regime.rank}" if regime.rank else regime.mode
        seeds = "-".join(map(str, self.seeds))
        name = f"{mode}-{regime.objective}-{case.name}-seeds{seeds}"
        probe = self.texts.probe(case.K, c.batch_size)
        _, history = world_a_task.train(
            self.experiment,
            c,
            name,
            states,
            self.steps,
            case,
            lambda state, data: self.evaluate(state, data, probe),
            self.together,
        )
        lines = []
        for place, seed in enumerate(self.seeds):
            curve_T = history["train_batch_mean"][:, place]
            if regime.objective == "masked_diffusion":  # its loss is per string
                curve_T = curve_T / case.floor.tokens_per_target
            lines.append(
                {
                    "world": "A",
                    **identity,
                    "run_id": identity["run_id"] + place,
                    "seed": seed,
                    "model_id": c.model_id,
                    "n_pairs": c.n_pairs,
                    "batch_size": c.batch_size,
                    "str_len": c.str_len,
                    "max_len": self.texts.length,
                    "epochs": c.epochs,
                    "lr": regime.lr,
                    "weight_decay": regime.weight_decay,
                    "dropout": regime.dropout,
                    "total_params": trainable + frozen,
                    "trainable_params": trainable,
                    "lora_trainable_params": trainable if regime.rank else None,
                    "lora_alpha": c.lora_alpha if regime.rank else None,
                    "lora_dropout": LORA_DROPOUT if regime.rank else None,
                    "reg_dropout": c.reg_dropout if regime.mode == "finetune_reg" else None,
                    "log_base": "e",
                    "attention": c.attention,
                    "tokenizer": c.tokenizer,
                    "control": c.control,
                    **world_a_task.measures(case, history, place, curve_T, "final_train_loss"),
                }
            )
        self.experiment.record(lines, keys=KEYS)


def init_params(model: models.Transformer, key: jax.Array):
    return jax.jit(model.init)(key, np.zeros((1, 1), np.int32))["params"]


@functools.lru_cache
def pretraining_ids(tokenizer: str) -> list[int]:
    """English that every Python carries, encoded. Raises ValueError if it cannot be."""
    text = "\n\n".join(pydoc_data.topics.topics.values()).encode("ascii", "ignore").decode()
    try:
        (ids,) = load_tokenizer(tokenizer).encode([text])
    except ValueError as error:
        raise ValueError(f"--tokenizer={tokenizer}, the texts of pretraining: {error}") from None
    return ids


def pretrained_params(experiment: harness.Experiment, config: Config):
    """Weights of the directory, or of a model pretrained here and kept in the work directory."""
    if config.model_id not in SIZES:
        return load_directory(config.model_id)[1]
    directory = experiment.workdir / "pretrained"
    if (directory / "config.json").exists():
        return models.load_pretrained(directory)[1]
    model = models.Transformer(model_config(config, config.dropout))
    ids = pretraining_ids(config.tokenizer)
    windows = len(ids) // PRETRAIN_LENGTH
    data = {"tokens_BL": np.array(ids[: windows * PRETRAIN_LENGTH], np.int32).reshape(windows, -1)}
    optimizer = training.make_optimizer(
        config.pretrain_lr,
        warmup_steps=config.pretrain_steps // 10,
        decay_steps=config.pretrain_steps,
        weight_decay=config.weight_decay,
    )
    init_key, run_key = jax.random.split(jax.random.key(0))
    params = init_params(model, init_key)
    state = training.create_state(models.make_apply_fn(model), params, optimizer, run_key)
    step = functools.partial(training.train_step, objective=objectives.next_token)
    steps_per_call = math.gcd(100, config.pretrain_steps)
    steps = compile_scan(
        step,
        num_steps=steps_per_call,
        batch_size=config.batch_size,
        backend=flags.FLAGS.backend,
        mesh=experiment.mesh,
    )
    state, history = experiment.train(
        "pretrained",
        state,
        steps,
        data,
        num_steps=config.pretrain_steps,
        steps_per_call=steps_per_call,
    )
    experiment.save_curves("pretrained", history)
    models.save_pretrained(directory, model, state.params)
    return state.params


if __name__ == "__main__":
    harness.main("world_a", Config, PRESETS, run)
