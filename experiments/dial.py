"""Does the reverse live inside blocks? Masked diffusion from block 1 (autoregression) to block L.

Question  Large diffusion models are block-causal. With the toy pairs of `causes`, block diffusion
          is trained at every block size, on pairs anywhere, within one block alone, and across
          borders alone; the reverse is asked within blocks and across borders.
          Prediction and thresholds: docs/causes.md.
Command   python -m experiments.dial --preset=quick|paper
Cost      quick: blocks 1, 5, 10, 2 seeds, 500 steps of batch 64; under 3 minutes on one CPU core.
          paper: 8 cells, 5 seeds, 3000 steps: minutes on an accelerator are
          expected; not run.
Expected  Block 1 never reverses, block L as masked diffusion does.
"""

import dataclasses
import functools
import pathlib
from typing import Literal

from dirasym import runs
from experiments import flags
from experiments.causes import summarize
from experiments.flags import flag
from experiments.reports import dial as tables
from experiments.systems import causes
from experiments.systems.causes import Cell, Task

PRESETS = {
    "smoke": dict(length=4, seeds=[0, 1], steps=10, eval_every=2, width=16, generations=2,
                  sizes=[2],
                  placed=["anywhere"]),
    "quick": dict(seeds=[0, 1], steps=500, eval_every=100, batch_size=64, warmup_steps=200,
                  width=128, learning_rate=1e-3, sizes=[1, 5, 10],
                  placed=["anywhere"]),
    "paper": {},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(causes.Config):
    """How all cells are trained, and which there are."""

    sizes: tuple[int, ...] = flag((1, 2, 5, 10), "Tokens of a block, pairs anywhere.", 1)
    placed: tuple[Literal["anywhere", "within", "across"], ...] = flag(
        ("anywhere", "within", "across"), "Pairs, as to blocks; apart from anywhere, at --apart."
    )
    apart: tuple[int, ...] = flag((2, 5), "Block sizes with pairs within or across alone.", 1)

    def __post_init__(self):
        super().__post_init__()
        for cell in self.cells:
            Task(cell, self)  # raises the reason against it

    @property
    def cells(self) -> list[Cell]:
        """Pairs anywhere at all sizes, then the two kinds apart."""
        return [
            Cell("blocks", block=size, placed=kind)
            for kind in self.placed
            for size in (self.sizes if kind == "anywhere" else self.apart)
        ]


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a cell."""
    del workdir
    return [
        Task(cell, config).run(
            {"block": cell.block, "placed": cell.placed},
            summarize=functools.partial(summarize, "both"),
        )
        for cell in config.cells
    ]


if __name__ == "__main__":
    flags.main("dial", Config, PRESETS, tables.write, plan)
