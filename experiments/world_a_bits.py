"""Do the bits that a map stores set the pace at which World A is learned, or the target's entropy?

Question  In World A (arXiv 2511.19997) the inverse of a K-to-1 map differs from the forward map in
          two things at once: bits to store, and the entropy ln K of its target. Here each varies
          alone: bits by the alphabet and the length of the strings at one K, and by K forward
          (entropy 0); entropy by K inverse, where the bits hardly change. For a small GPT-2 and
          for the MLP, over several maps.
Command   python -m experiments.world_a_bits --preset=quick
          python -m experiments.world_a_bits --preset=quick --models=gpt2 --Ks=1,5
Cost      quick, the MLP: 135 runs, 7 minutes on 2 shared CPU cores; its GPT-2 takes 12 to 20
          seconds a run.
          paper: the original's sizes, for an accelerator; not timed.
Expected  see docs/world_a.md, whose predictions are older than the results.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from dirasym import runs
from dirasym.analysis import excess
from dirasym.data import string_maps
from dirasym.data.string_maps import Direction, StringMap
from dirasym.workdir import WorkDir
from experiments import flags, world_a_mlp
from experiments.flags import flag
from experiments.reports import world_a_bits as bits_report
from experiments.systems import world_a

# Letters, characters.
SHAPES = {"36x8": (36, 8), "6x8": (6, 8), "36x4": (36, 4), "36x3": (36, 3)}
ModelName = Literal["mlp", "gpt2"]
PRESETS: dict[str, dict[str, Any]] = {
    "smoke": dict(
        models=["mlp", "gpt2"], Ks=[1, 5], n_pairs=[50], maps=2, epochs=4, eval_every=2,
        mlp_width=16, layers=1, width=12, heads=2, shapes=["36x4"],
    ),
    "quick": {},
    "paper": dict(
        models=["mlp", "gpt2"], n_pairs=[40_000], epochs=50, eval_every=5, mlp_width=512,
        layers=12, width=768, heads=12, lr=1e-4, mlp_batch=256,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    models: tuple[ModelName, ...] = flag(("mlp",), "Which learn.")
    shapes: tuple[Literal[tuple(SHAPES)], ...] = flag(
        ("36x8", "6x8", "36x4"), "Letters x characters."
    )
    Ks: tuple[int, ...] = flag((1, 5, 25), "Branching factors K.", 1)
    n_pairs: tuple[int, ...] = flag((1000,), "Pairs of strings.", 1, 10**6)
    directions: tuple[Direction, ...] = flag(string_maps.DIRECTIONS, "Which to train at K > 1.")
    maps: int = flag(3, "Maps of each kind.", 1, 1000)
    seeds: tuple[int, ...] = flag((0, 1, 2), "One run each, on every map.", kind="seed")
    epochs: int = flag(40, "Passes over the pairs.", 1)
    eval_every: int = flag(2, "Epochs between clean evaluations.", 1)
    mlp_batch: int = flag(256, "Pairs a step of the MLP.", 1, 10**6)
    mlp_width: int = flag(256, "Width of the MLP's 4 hidden layers; its rate is 1e-3.", 1, 10**6)
    layers: int = flag(2, "Layers of GPT-2; it reads characters.", 1, 1000)
    width: int = flag(96, "Width of GPT-2.", 1, 10**6)
    heads: int = flag(4, "Heads of GPT-2.", 1, 10**6)
    lr: float = flag(1.5e-3, "AdamW's peak rate for GPT-2, on 64 pairs a step; no dropout.", 0)

    def __post_init__(self):
        for shape in self.shapes:
            for n_pairs in self.n_pairs:
                for K in self.Ks:
                    string_map(shape, n_pairs, K, 0)  # raises what cannot be


def string_map(shape: str, n_pairs: int, K: int, number: int) -> StringMap:
    """The map of a number; those of all numbers, and of all K, are drawn apart."""
    letters, length = SHAPES[shape]
    return StringMap(K, n_pairs, length, 1000 * (number + 1) + K, num_letters=letters)


def plan(config: Config, workdir: pathlib.Path) -> list[runs.Run]:
    """A run a model, kind of strings, number of pairs, K, direction and map."""
    return [
        run
        for model in config.models
        for shape in config.shapes
        for n_pairs in config.n_pairs
        for run in _runs(config, workdir, model, shape, n_pairs)
    ]


def _runs(
    config: Config, workdir: pathlib.Path, model: ModelName, shape: str, n_pairs: int
) -> Iterator[runs.Run]:
    """All maps of one kind of strings, learned by one program."""
    c, (letters, length) = config, SHAPES[shape]
    sizes = dict(str_len=length, n_pairs=n_pairs, epochs=c.epochs, eval_every=c.eval_every)
    if model == "mlp":
        small = dict(d_hidden=c.mlp_width, batch_size=c.mlp_batch)
        mlp = world_a_mlp.Config(Ks=(1,), **small, **sizes)
        learner, make = world_a_mlp.make_learner(mlp), world_a_mlp.make_case
    else:
        shaped = dict(layers=c.layers, width=c.width, heads=c.heads, lr=c.lr, dropout=0.0)
        scratch = dict(modes=("scratch",), tokenizer="characters", Ks=(1,))
        setting = world_a.Setting(world_a.Config(**scratch, **shaped, **sizes), workdir)
        learner = world_a.Task(setting, world_a.regimes(setting.config)[0]).learner

        def make(of: StringMap, direction: Direction) -> excess.Case:
            rows = string_maps.encode(setting.tokenizer, [of])[of, direction]
            return excess.make_case(of, direction, rows, "joint")

    known = {"model": model, "letters": letters, "length": length, "pairs": n_pairs}
    for K in c.Ks:
        # A bijection is one task both ways.
        for direction in string_maps.DIRECTIONS[:1] if K == 1 else c.directions:
            for number in range(c.maps):
                case = make(string_map(shape, n_pairs, K, number), direction)
                yield learner.run(case, known | {"map": number}, {"map_seed": case.of.seed})


def report(workdir: WorkDir, config: Config, all_runs: Sequence[runs.Run]) -> None:
    """A table and a figure."""
    del all_runs
    bits_report.write(workdir, config)


if __name__ == "__main__":
    flags.main("world_a_bits", Config, PRESETS, report, plan)
