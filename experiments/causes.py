"""Which ingredient makes a model reverse: mask, objective, what is predicted, positions, depth?

Question  Papers compare a whole causal model with a whole masked-diffusion model. Here the toy
          pairs of arXiv 2602.02133 (§5) are learned by one network with one ingredient changed
          at a time; does the gradients' alignment predict who reverses? See docs/causes.md.
Command   python -m experiments.causes --preset=quick|paper
          --cells: names of sets (leading, core, positions, depth, fraction) or cells as
          causal/next_token/both/rope/1; what is left out at the end is the base's.
Cost      quick: 4 cells, 2 seeds, 500 steps of batch 64; under 3 minutes on one CPU core.
          paper: the fraction of 60 cells, 5 seeds, 3000 steps: an hour on an accelerator by
          reckoning, not run.
Expected  Masked diffusion of both letters reverses; next token, and B alone, do not.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

from dirasym import runs
from experiments import flags
from experiments.flags import flag
from experiments.reports import causes as tables
from experiments.systems import causes
from experiments.systems.causes import Cell, Task

BASE = Cell()
LEADING = (
    BASE,
    Cell(predicted="A"),
    Cell(predicted="B"),
    Cell("causal", "next_token"),
)
PRESETS = {
    "smoke": dict(length=4, seeds=[0, 1], steps=20, eval_every=4, width=16, generations=2,
                  cells=["bidirectional", "causal/next_token"]),
    "quick": dict(seeds=[0, 1], steps=500, eval_every=100, batch_size=64, warmup_steps=200,
                  width=128, learning_rate=1e-3, cells=["leading"]),
    "paper": {},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cells:
    """Which cells there are."""

    cells: tuple[str, ...] = flag(("fraction",), "Sets, or cells ATTENTION/OBJECTIVE/..")

    @functools.cached_property
    def parsed(self) -> list[Cell]:
        """Each cell once, in the order given."""
        named = {"leading": LEADING, "core": core(), "positions": positions(), "depth": depth(),
                 "fraction": fraction()}  # fmt: skip
        found = [named.get(text) or (parse(text),) for text in self.cells]
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))


@dataclasses.dataclass(frozen=True)
class Config(Cells, causes.Config):
    """How all cells are trained, and which there are."""

    def __post_init__(self):
        super().__post_init__()
        for cell in self.parsed:
            Task(cell, self)  # raises the reason against it


def parse(text: str) -> Cell:
    """The cell of `causal/next_token/both/rope/1`. Raises ValueError for any other text."""
    values: dict[str, Any] = {}
    parts = text.split("/")
    if len(parts) > len(causes.FACTORS):
        raise ValueError(f"--cells: {text!r} has more than {'/'.join(causes.FACTORS)}")
    for (factor, levels), part in zip(causes.FACTORS.items(), parts, strict=False):
        known = {str(level): level for level in levels}
        if part not in known:
            raise ValueError(f"--cells: {part!r} of {text!r} is not among {'|'.join(known)}")
        values[factor] = known[part]
    return Cell(**values)


def core() -> tuple[Cell, ...]:
    """Attention × objective × predicted, RoPE, depth 1: all that can be."""
    cells = [Cell(*values) for values in itertools.product(*list(causes.FACTORS.values())[:3])]
    return tuple(cell for cell in cells if cell.why_not(2) is None)


FIVE = (  # what positions and depth are changed of
    BASE,
    Cell("causal", "next_token"),
    Cell(objective="uniform_rate"),
    Cell(objective="fixed_rate"),
    Cell(predicted="A"),
)


def positions() -> tuple[Cell, ...]:
    """Other positions than RoPE at depth 1."""
    change = dataclasses.replace
    return tuple(change(cell, positions=p) for cell in FIVE for p in causes.POSITIONS[1:])


def depth() -> tuple[Cell, ...]:
    """More layers, with RoPE."""
    return tuple(dataclasses.replace(cell, layers=n) for n in causes.DEPTHS[1:] for cell in FIVE)


def fraction() -> tuple[Cell, ...]:
    """The 60 cells of docs/causes.md, fixed before any result."""
    both = [Cell(positions=p, layers=n) for n in causes.DEPTHS[1:] for p in causes.POSITIONS[1:]]
    return *core(), *positions(), *depth(), *both


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a cell."""
    del workdir
    return [
        Task(cell, config).run(
            identity(cell), summarize=functools.partial(summarize, cell.predicted)
        )
        for cell in config.parsed
    ]


def identity(cell: Cell) -> dict[str, Any]:
    """What its result line is known by."""
    return {factor: getattr(cell, factor) for factor in causes.FACTORS}


def summarize(predicted: str, history: runs.History) -> Mapping[str, Any]:
    """The result line: at the end, at 20 % of training, and at equal forward accuracy."""
    step, early = history["eval_step"], (len(history["eval_step"]) - 1) // 5
    trained = "source" if predicted == "A" else "forward"
    fitted = history[f"choice_{trained}"] >= 90
    equal = history["percent_forward"] >= 90
    line: dict[str, Any] = {
        name: float(x[-1]) for name, x in history.items()
        if name.startswith(("percent_", "p_", "choice_"))
    }  # fmt: skip
    line["steps_to_fit"] = int(step[fitted.argmax()]) if fitted.any() else None
    at_equal = history["percent_reverse"][equal.argmax()]
    line["reverse_at_equal_forward"] = float(at_equal) if equal.any() else None
    for name, x in history.items():
        if name.startswith("cosine_"):
            for part, early_value, last in zip(causes.PARTS, x[early], x[-1], strict=True):
                line[f"early_{name}_{part}"] = float(early_value)
                line[f"{name}_{part}"] = float(last)
    line["early_attention_correlation"] = float(history["attention_correlation"][early, 0])
    line["attention_correlation"] = float(history["attention_correlation"][-1, 0])
    # A cosine with a gradient of zero is undefined, and a result line holds no NaN.
    return {name: None if x != x else x for name, x in line.items()}


if __name__ == "__main__":
    flags.main("causes", Config, PRESETS, tables.write, plan)
