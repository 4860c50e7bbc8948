"""World A (arXiv 2511.19997): the regimes in which GPT-2 learns maps between strings."""

import dataclasses
import functools
import math
import pathlib
from typing import Any, Literal

import jax.numpy as jnp

from dirasym import devices, finetuning, models, objectives, pretraining, runs, training
from dirasym.analysis import excess
from dirasym.data import batching, string_maps, tokenizers
from dirasym.data.string_maps import DIRECTIONS, Direction, StringMap
from dirasym.models import lora
from dirasym.models.presets import GPT2_SIZES
from dirasym.rows import PerRow
from dirasym.types import Params
from dirasym.usage import UsageError, blamed
from dirasym.world_a import Learner
from experiments.flags import FLAGS, flag

Mode = Literal["scratch", "finetune", "finetune_reg", "lora"]
ObjectiveName = Literal["next_token", "masked_diffusion", "parallel"]
BLOCKS = r"(blocks_\d+/(?:attention|mlp)(?=/)|position_embed|embed)"
LORA_DROPOUT = 0.05
PRETRAIN_LENGTH = 64
LARGEST = 10**8  # characters of all pairs


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field; those down to `output` are the original script's."""

    modes: tuple[Mode, ...] = flag(("scratch", "finetune", "finetune_reg", "lora"), "Regimes.")
    model_id: str = flag("gpt2", "A GPT-2 size, or a directory with weights.", kind="path")
    Ks: tuple[int, ...] = flag((1, 5, 8), "Branching factors K.", 1)
    n_pairs: int = flag(40_000, "Pairs of strings.", 1, 10**6)
    str_len: int = flag(8, "Characters of a string.", 1, 1000)
    epochs: int = flag(20, "Passes over the pairs.", 1)
    batch_size: int = flag(64, "Pairs a step.", 1, 10**6, kind="batch_size")
    lr: float = flag(1e-4, "AdamW's peak learning rate; LoRA's is min(lr · rank / 8, 1e-3).", 0)
    seeds: tuple[int, ...] = flag((0,), "One run each.", kind="seed")
    lora_ranks: tuple[int, ...] = flag((8, 64, 256), "LoRA's ranks.", 1, 10**6)
    lora_alpha: float = flag(32.0, "LoRA's alpha.", 0)
    reg_weight_decay: float = flag(0.1, "Weight decay of finetune_reg.", 0)
    reg_dropout: float = flag(0.1, "Dropout of finetune_reg.", 0)
    output: str = flag("", "Results file; WORKDIR/results.jsonl if empty.", kind="path")
    directions: tuple[Direction, ...] = flag(DIRECTIONS, "Which to train.")
    control: Literal["none", "exchangeable"] = flag("none", "Exchangeable: K-to-K maps.")
    attention: Literal["causal", "bidirectional"] = flag("causal", "The attention mask.")
    objectives: tuple[ObjectiveName, ...] = flag(
        ("next_token", "masked_diffusion", "parallel"),
        "Losses: the first for causal attention, the others for bidirectional.",
    )
    tokenizer: str = flag(
        "gpt2", "characters, gpt2, or a path: tokenizer.json, GPT-2's merges.", kind="path"
    )
    layers: int = flag(
        0, "Transformer layers of a GPT-2 made here; 0: as --model_id says.", 0, 1000
    )
    width: int = flag(0, "Width of a GPT-2 made here; 0: as --model_id says.", 0, 10**6)
    heads: int = flag(0, "Attention heads of a GPT-2 made here; 0: as --model_id says.", 0, 10**6)
    dropout: float = flag(0.1, "Dropout of the other regimes.", 0)
    weight_decay: float = flag(0.01, "Weight decay of the other regimes.", 0)
    lora_lr: float = flag(0.0, "LoRA's learning rate at every rank; 0: as --lr says.", 0)
    pretrain_steps: int = flag(2000, "Steps of pretraining, where no directory is given.", 1)
    pretrain_lr: float = flag(3e-4, "Learning rate of pretraining.", 0)
    eval_every: int = flag(5, "Epochs between clean evaluations (and checkpoints), at most.", 1)
    dtype: Literal["float32", "bfloat16"] = flag("float32", "Of activations.")
    track_gradients: bool = flag(False, "Compare both directions' gradients at evaluations.")
    mlp_results: str = flag("", "Of world_a_mlp, to draw too.", kind="path", report_only=True)

    def __post_init__(self):
        for K in self.Ks:
            string_map(self, K)
        if self.attention == "bidirectional" and self.modes != ("scratch",):
            raise ValueError("--attention=bidirectional starts from scratch: --modes=scratch")
        if not self.fitting_objectives:
            raise ValueError(f"no --objectives go with --attention={self.attention}")
        for name in ("dropout", "reg_dropout"):
            if getattr(self, name) >= 1:
                raise ValueError(f"--{name} must be below 1, got {getattr(self, name)}")

    @property
    def fitting_objectives(self) -> tuple[ObjectiveName, ...]:
        """The objectives that go with the attention mask."""
        causal = self.attention == "causal"
        return tuple(name for name in self.objectives if (name == "next_token") == causal)


def string_map(config: Any, K: int) -> StringMap:
    """The same (A, B) for every regime: data seed 42 + K. ValueError for one that cannot be."""
    if config.n_pairs * config.str_len > LARGEST:
        raise ValueError(f"--n_pairs={config.n_pairs} of --str_len={config.str_len} are too many")
    exchangeable = config.control == "exchangeable"
    return StringMap(K, config.n_pairs, config.str_len, 42 + K, exchangeable)


class Setting:
    """What all regimes share: maps as token rows of one length, the model, pretrained weights.

    Raises:
      UsageError: a file that cannot be used, or flags that do not fit what it holds.
    """

    def __init__(self, config: Config, workdir: pathlib.Path):
        self.config = c = config
        self.stored = None
        if pathlib.Path(c.model_id).is_dir():
            with blamed(f"--model_id={c.model_id}"):
                self.stored = models.load_pretrained(c.model_id)
        elif c.model_id not in GPT2_SIZES:
            names = ", ".join(GPT2_SIZES)
            raise UsageError(f"--model_id={c.model_id} is neither a directory nor one of {names}")
        self.maps = {K: string_map(c, K) for K in c.Ks}
        with blamed(f"--tokenizer={c.tokenizer}"):
            self.tokenizer = tokenizers.load(c.tokenizer)
            self.rows = string_maps.encode(self.tokenizer, self.maps.values())
        scored = [rows["scored_BL"] for rows in self.rows.values()]
        self.length = scored[0].shape[1]
        self.most_scored = max(int(scored_BL.sum(axis=1).max()) for scored_BL in scored)
        with blamed():
            shape, sizes = self.model_config(), f"the model of --model_id={c.model_id}"
        if shape.vocab_size < self.tokenizer.vocab_size:
            raise UsageError(
                f"--tokenizer={c.tokenizer} has {self.tokenizer.vocab_size} ids, and {sizes} only "
                f"{shape.vocab_size}"
            )
        if self.length > shape.max_len:
            raise UsageError(
                f"--str_len={c.str_len} makes rows of {self.length} tokens, and {sizes} holds "
                f"{shape.max_len}"
            )
        if self.stored is None and c.modes != ("scratch",):
            self.pretraining = self._pretraining(workdir / "pretrained")

    def model_config(self, dropout: float = 0.0) -> models.TransformerConfig:
        """GPT-2's configuration as the flags say."""
        c = self.config
        how = dict(dropout=dropout, embed_dropout=dropout, attention_dropout=dropout)
        how |= dict(causal=c.attention == "causal", dtype=jnp.dtype(c.dtype))
        if self.stored is not None:
            return dataclasses.replace(self.stored[0].config, **how)
        given = dict(num_layers=c.layers, width=c.width, num_heads=c.heads)
        size = GPT2_SIZES[c.model_id] | {name: size for name, size in given.items() if size}
        return models.gpt2(self.tokenizer.vocab_size, **size, **how)

    def params(self) -> Params:
        """What all but training from scratch starts from."""
        return self.pretraining.params(_sweep_options) if self.stored is None else self.stored[1]

    def _pretraining(self, workdir: pathlib.Path) -> pretraining.Pretraining:
        """From nothing to weights that know English, trained and kept in `workdir`."""
        c = self.config
        with blamed(f"--tokenizer={c.tokenizer}, the texts of pretraining"):
            texts = [pretraining.documentation()]
            tokens_NL = batching.pack(self.tokenizer, texts, PRETRAIN_LENGTH)
        names = ("model_id", "tokenizer", "layers", "width", "heads", "dropout", "weight_decay")
        names += ("batch_size", "pretrain_steps", "pretrain_lr", "dtype")
        return pretraining.Pretraining(
            workdir,
            {name: getattr(c, name) for name in names},
            models.Transformer(self.model_config(c.dropout)),
            tokens_NL,
            objectives.next_token,
            training.make_optimizer(
                c.pretrain_lr,
                warmup_steps=c.pretrain_steps // 10,
                decay_steps=c.pretrain_steps,
                weight_decay=c.weight_decay,
            ),
            num_steps=c.pretrain_steps,
            eval_every=math.gcd(100, c.pretrain_steps),
            batch_size=c.batch_size,
        )


def _sweep_options() -> dict[str, Any]:
    mesh = devices.mesh(FLAGS.num_devices, FLAGS.model_devices, FLAGS.backend)
    return dict(mesh=mesh, backend=FLAGS.backend, progress=FLAGS.progress)


@dataclasses.dataclass(frozen=True)
class Regime:
    """How one family of runs is trained; named as in result lines."""

    run_type: Mode
    objective: ObjectiveName
    lr: float
    weight_decay: float
    dropout: float
    lora_r: int | None = None


def regimes(config: Config) -> list[Regime]:
    """All that the flags ask for."""
    c, found = config, []
    for objective in c.fitting_objectives:
        for mode in c.modes:
            rates = c.weight_decay, c.dropout
            if mode == "finetune_reg":
                rates = c.reg_weight_decay, c.reg_dropout
            for rank in c.lora_ranks if mode == "lora" else (None,):
                lr = c.lr if rank is None else c.lora_lr or min(c.lr * rank / 8, 1e-3)
                found.append(Regime(mode, objective, lr, *rates, rank))
    return found


class Task:
    """A regime's model, optimizer and objective, and all maps to learn.

    Raises:
      UsageError: a rank that does not fit the model.
    """

    def __init__(self, setting: Setting, regime: Regime):
        self.setting, self.regime, c = setting, regime, setting.config
        self.model = models.Transformer(setting.model_config(regime.dropout))
        adapters = None
        if regime.lora_r:
            settings = dict(targets=lora.GPT2_TARGETS, fused=lora.QKV, dropout=LORA_DROPOUT)
            adapters = models.LoRAConfig(regime.lora_r, c.lora_alpha, **settings)
        num_steps = c.epochs * -(-c.n_pairs // c.batch_size)
        optimizer = training.make_optimizer(
            regime.lr,
            warmup_steps=num_steps // 10,
            decay_steps=num_steps,
            weight_decay=regime.weight_decay,
        )
        base = None if regime.run_type == "scratch" else setting.params
        self.trainable = finetuning.Trainable(self.model, optimizer, base, adapters)
        # What follows the last attention is computed at targets alone.
        room = dict(capacity=PerRow(setting.most_scored))
        mask = dict(mask_id=setting.tokenizer.eos_id)
        trained, clean = {
            "next_token": (functools.partial(objectives.next_token, **room), None),
            "parallel": (functools.partial(objectives.parallel_target, **mask, **room), None),
            "masked_diffusion": (
                functools.partial(objectives.masked_diffusion, **mask, **room),
                functools.partial(objectives.any_order, **mask),
            ),
        }[regime.objective]
        how = dict(clean_objective=clean, blocks=BLOCKS if c.track_gradients else None)
        how |= dict(network=self.trainable.module)
        self.learner = Learner(
            self.trainable.state, trained, c.epochs, c.batch_size, c.eval_every, **how
        )
        with blamed("--lora_ranks"):
            self.num_params = self.learner.num_params

    def run(self, K: int, direction: Direction, number: int) -> runs.Run:
        """One map in one direction, the `number`-th run of a plan."""
        setting, regime = self.setting, dataclasses.asdict(self.regime)
        c, of = setting.config, setting.maps[K]
        identity = {name: regime.pop(name) for name in ("run_type", "lora_r", "objective")}
        adapters = dict(lora_trainable_params=self.num_params[0], lora_alpha=c.lora_alpha)
        adapters["lora_dropout"] = LORA_DROPOUT
        more = {
            "run_id": number,
            **{name: getattr(c, name) for name in ("model_id", "attention", "tokenizer", "dtype")},
            "max_len": setting.length,
            **regime,
            **(adapters if self.regime.lora_r else dict.fromkeys(adapters)),
            "reg_dropout": c.reg_dropout if identity["run_type"] == "finetune_reg" else None,
            "log_base": "e",
        }
        probe = [  # the first pairs, forward and inverse
            {name: x[: c.batch_size] for name, x in setting.rows[of, side].items()}
            for side in DIRECTIONS
        ]
        return self.learner.run(self.case(K, direction), identity, more, probe=probe)

    def case(self, K: int, direction: Direction) -> excess.Case:
        """A map in one direction, with the floor of the objective's factorisation."""
        of, objective = self.setting.maps[K], self.regime.objective
        data = self.setting.rows[of, direction]
        kind = "parallel" if objective == "parallel" else "joint"
        return excess.make_case(of, direction, data, kind, length_known=objective != "next_token")
