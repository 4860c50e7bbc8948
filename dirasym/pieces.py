"""Work that trains nothing, recorded piece by piece: what is done is not done again.

pieces.compute([Piece({"width": 16}, solve), ..], workdir="runs/mine")
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tqdm

from dirasym import run_arguments, usage
from dirasym.checkpoints import History
from dirasym.stopping import Stopping, check_limit
from dirasym.workdir import WorkDir, name_of, opened


@dataclasses.dataclass(frozen=True)
class Piece:
    """An equation solved, a cell of a table, a sample drawn.

    Attributes:
      identity: what its result line is known by, the seed apart: JSON scalars.
      work: does it, and returns the result line (JSON values) and the curves.
      seed: of the work, if it draws anything.
      has_curves: whether there are any; without, `work` returns {}.
    """

    identity: Mapping[str, Any]
    work: Callable[[], tuple[Mapping[str, Any], History]]
    seed: int | None = None
    has_curves: bool = True

    def __post_init__(self):
        run_arguments.check_identity(self.identity)

    @functools.cached_property
    def name(self) -> str:
        """The identity as a file name: `width=16`."""
        return name_of(self.identity)


def compute(
    pieces: Iterable[Piece],
    workdir: WorkDir | str | os.PathLike,
    *,
    time_limit: float | None = None,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Does every piece that is not done, and returns the result lines; as `runs.sweep` does.

    Args:
      pieces: of different names and seeds.
      workdir: a path, or an open `WorkDir`.
      time_limit: minutes after which it stops; it stops earlier if no other piece would fit.
      shard: (i, n) does the i-th of n parts, i from 0.
      progress: a bar, on a terminal.

    Raises:
      TypeError, ValueError: an argument that cannot be; two pieces of one name and seed.
      WorkDirError, LockedError: see `WorkDir`.
      Stopped: SIGTERM, Ctrl-C or the time limit; the same call goes on.

    Examples:
      >>> import tempfile
      >>> square = Piece({"n": 3}, lambda: ({"square": 9}, {}), has_curves=False)
      >>> [line["square"] for line in compute([square], tempfile.mkdtemp())]
      [9]
    """
    pieces = usage.listed("pieces", pieces, "pieces")
    if other := [piece for piece in pieces if not isinstance(piece, Piece)]:
        raise TypeError(f"pieces must be a list of pieces, and holds {other[0]!r:.80}")
    names = [(piece.name, piece.seed) for piece in pieces]
    if len(set(names)) < len(names):
        raise ValueError(f"repeated pieces: {sorted(map(str, names))}")
    run_arguments.check_shard(shard)
    check_limit(time_limit)
    workdir = opened(workdir)
    mine = [(piece, piece.seed) for piece in pieces]
    if shard is not None:
        mine = mine[shard[0] :: shard[1]]
    with workdir.locked(shard), Stopping(time_limit) as stopping:
        missing = [piece for piece, _ in workdir.missing(mine)]
        silent = not (progress and sys.stderr.isatty())
        for number, piece in enumerate(tqdm.tqdm(missing, disable=silent, leave=False), start=1):
            with stopping.segment():
                line, curves = piece.work()
            line = run_arguments.check_line(line, piece.identity, "work")
            if piece.has_curves:
                workdir.save_curves(piece, piece.seed, curves)
            workdir.record(piece, piece.seed, line)
            if number < len(missing):
                stopping.check(f"{number} of {len(missing)} pieces are done")
    return [line for line in workdir.lines(mine) if line is not None]
