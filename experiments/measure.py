r"""What does a model know of your facts, forward and in reverse?

Question  Everything that `dirasym.measure` says of a Hugging Face directory on a file of pairs:
          accuracy, probability, rank and choice both ways, with intervals over pairs; on demand
          the gradients of the two directions by block, and a masked model's attention.
Command   python -m experiments.measure --model_id=DIR --pairs=capitals.csv \
              --columns=country,capital --forward="The capital of {a} is {b}" \
              --reverse="{b} is the capital of {a}" [--blocks=module] [--attention]
Cost      250 pairs and 135M weights: minutes on 2 CPU cores; without --blocks, about what it
          takes to generate the answers. Without --model_id seconds.
Expected  A causal model that learned one direction answers that one alone. Without --model_id an
          untrained network is read on invented pairs: no answer is right, and p is near 1 / V.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dirasym import models, report
from dirasym.data import facts, tokenizers
from dirasym.data.pairs import Pairs
from dirasym.measuring import Measurement, prepare
from dirasym.pieces import Piece
from dirasym.reading import MEASURES, Reading
from dirasym.usage import blamed
from dirasym.workdir import WorkDir
from experiments import flags, work
from experiments.flags import flag
from experiments.systems.facts import check_needed

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": dict(num_pairs=6, blocks="module", attention=True, attention_distance=3),
    "quick": dict(num_pairs=60, blocks="module", attention=True),
    "paper": dict(blocks="module", attention=True),
}

CAPTION = (  # of report.md
    "*Below: shares of the questions, with intervals; cosines of both directions' gradients by "
    "block and correlations of attention by distance, where they were asked for. Every column is "
    "explained in docs/glossary.md of the repository.*"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    model_id: str = flag("", "Hugging Face directory; empty: an untrained network.", kind="path")
    adapters: str = flag("", "PEFT directory of adapters on it.", kind="path")
    kind: Literal["auto", "causal", "masked"] = flag("auto", "How it is asked; auto: as stored.")
    mask_id: int = flag(-1, "With --model_id: id of [M]; -1: config.json's, or the last.", -1)
    dtype: Literal["float32", "bfloat16"] = flag(
        "float32", "With --model_id: of weights and activations."
    )
    pairs: str = flag("", "Your facts: CSV, TSV or JSON lines; empty: invented.", kind="path")
    columns: tuple[str, ...] = flag(("a", "b"), "Their two columns.")
    forward: str = flag("", "Asks for b: 'The capital of {a} is {b}'; empty: b is a's child.")
    reverse: str = flag("", "Asks for a: '{b} is the capital of {a}'; empty: a is b's parent.")
    encoding: str = flag("utf-8", "The file's.")
    aliases: str = flag("", "What stands between names of one thing in a cell, such as |.")
    num_pairs: int = flag(250, "Pairs to invent.", 1, 10**6)
    level: float = flag(0.95, "Of confidence of the intervals.")
    blocks: str = flag("", "Compares gradients by layer, module, role or a regex; empty: none.")
    gradient_pairs: int = flag(0, "Pairs whose gradients are compared; 0: all.", 0)
    attention: bool = flag(False, "Reads the attention of a masked model.")
    attention_distance: int = flag(8, "Largest distance from [M] to a name.", 1, 1000)
    max_new: int = flag(0, "Tokens generated; 0: the longest answer and its end.", 0, 10**5)
    chunk_size: int = flag(64, "Questions a call.", 1, 10**6)
    seed: int = flag(0, "Draws the untrained network and the invented pairs.", kind="seed")

    def __post_init__(self):
        for is_bad, message in (
            (len(self.columns) != 2, f"--columns={','.join(self.columns)} must be two"),
            (not 0 < self.level < 1, f"--level={self.level} must be between 0 and 1"),
            (
                bool(self.forward) != bool(self.reverse) or (self.pairs and not self.forward),
                "--pairs=FILE needs --forward and --reverse, and neither goes without the other",
            ),
        ):
            if is_bad:
                raise ValueError(message)
        check_needed(
            self,
            (self.model_id, "--model_id=DIR", ("adapters", "mask_id", "dtype")),
            (self.pairs, "--pairs=FILE", ("columns", "encoding", "aliases")),
            (self.blocks, "--blocks", ("gradient_pairs",)),
        )


@functools.cache
def prepared(config: Config) -> Measurement:
    """What the flags ask for, with all files read."""
    c = config
    return prepare(
        *_opened(c),
        level=c.level,
        blocks=c.blocks or None,
        attention=c.attention,
        num_new=c.max_new,
        chunk_size=c.chunk_size,
        gradient_pairs=c.gradient_pairs or None,
        attention_distance=c.attention_distance,
    )


@functools.cache
def _opened(c: Config) -> tuple[Any, Any, Pairs, tokenizers.Tokenizer]:
    """(model, parameters, pairs, tokenizer)."""
    if c.pairs:
        names = dict(a=c.columns[0], b=c.columns[1], forward=c.forward, reverse=c.reverse)
        how = dict(encoding=c.encoding, aliases=c.aliases or None)
        pairs = Pairs.from_csv(c.pairs, several=True, **how, **names)
    else:
        invented = facts.invent_parent_child(c.num_pairs, c.seed)
        names = tuple((pair.parent, pair.child) for pair in invented)
        pairs = Pairs(names, c.forward or "{a}'s child is {b}", c.reverse or "{b}'s parent is {a}")
    if not c.model_id:
        return *_untrained(c, pairs), pairs, _words(pairs)
    causal = {} if c.kind == "auto" else {"causal": c.kind == "causal"}
    mask_id = c.mask_id if c.mask_id >= 0 else None
    try:
        tokenizer = tokenizers.from_directory(c.model_id, mask_id=mask_id)
        model, params = models.load_pretrained(
            c.model_id, param_dtype=jnp.dtype(c.dtype), dtype=jnp.dtype(c.dtype), **causal
        )
        if c.adapters:
            settings, adapters = models.load_adapters(c.adapters, model)
            model, params = models.LoRA(model, settings), {"params": params, "lora": adapters}
    except ImportError as error:
        raise ValueError(f"--model_id={c.model_id}: {error}") from None
    return model, params, pairs, tokenizer


def _words(pairs: Pairs) -> tokenizers.Words:
    return tokenizers.Words(pairs.fact_set().texts())


def _untrained(config: Config, pairs: Pairs) -> tuple[models.Transformer, Any]:
    """Two layers that nobody trained, masked unless they are to be causal."""
    size = dict(num_layers=2, width=32, num_heads=4, num_kv_heads=2, mlp_width=64, max_len=128)
    make = models.llama if config.kind == "causal" else models.llada
    vocab_size = _words(pairs).vocab_size
    model = models.Transformer(make(vocab_size, **size, rope_base=10_000.0, rope_scaling=None))
    return model, model.init(jax.random.key(config.seed), jnp.zeros((1, 1), int))["params"]


def plan(config: Config, workdir: pathlib.Path) -> Sequence:
    """Nothing is trained; files are opened, so that what they lack is said first."""
    del workdir
    with blamed():
        prepared(config)
    return ()


def pieces(config: Config, folder: pathlib.Path = pathlib.Path()) -> list[Piece]:
    """The reading, which is saved in the folder too."""
    identity = {"model": pathlib.Path(config.model_id).name or "untrained"}
    reading = functools.partial(read, config, folder / "reading.json")
    return [Piece(identity, reading, has_curves=False)]


def read(config: Config, path: pathlib.Path) -> tuple[dict[str, Any], dict]:
    """Reads the model, saves the reading, and returns its numbers as a result line."""
    reading = prepared(config).reading(flags.FLAGS.progress and None)
    model, params, pairs, _ = _opened(config)
    if repeated := pairs.several_partners():
        names = "1 name stands" if repeated == 1 else f"{repeated} names stand"
        said = f"{names} in several pairs: any partner is a right answer"
        reading = dataclasses.replace(reading, notes=(*reading.notes, said))
    reading.save(path)
    line: dict[str, Any] = {"kind": reading.kind, **models.sizes(model, params)}
    line["seconds"] = dict(reading.seconds)
    for name in ("forward", "reverse"):
        for measured in MEASURES:
            bounds = getattr(getattr(reading, name), measured)
            line[f"{name}_{measured}"] = bounds and [x if np.isfinite(x) else None for x in bounds]
    return line, {}


def compute(workdir: WorkDir, config: Config, planned: Sequence) -> None:
    """Reads the model unless that is done, and reports."""
    del planned
    (piece,) = pieces(config, workdir.path)
    if not work.all_done([piece], workdir):
        return
    with blamed():
        reading = Reading.load(workdir.path / "reading.json")
    text = f"# {piece.identity['model']}, read on {config.pairs or 'invented pairs'}\n\n{reading}"
    text += f"\n\n{CAPTION}"
    report.write(workdir.path, text, {"reading": reading.figure}, printed=str(reading))


if __name__ == "__main__":
    flags.main("measure", Config, PRESETS, compute, plan)
