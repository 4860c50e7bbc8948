"""Work of experiments that trains nothing, under the command line's limits."""

from collections.abc import Sequence

from dirasym import pieces, runs
from dirasym.workdir import WorkDir
from experiments.flags import FLAGS


def all_done(work: Sequence[pieces.Piece], workdir: WorkDir) -> bool:
    """Does this part of the pieces (`--shard`, `--time_limit`); whether those of all parts are."""
    shard = runs.parse_shard(FLAGS.shard) if FLAGS.shard else None
    limits = dict(time_limit=FLAGS.time_limit, progress=FLAGS.progress)
    pieces.compute(work, workdir, shard=shard, **limits)
    missing = workdir.missing((piece, piece.seed) for piece in work)
    if missing:
        print(f"part {FLAGS.shard} is done; {len(missing)} of others are not in {workdir.path}")
    return not missing
