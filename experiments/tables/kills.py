"""The table of killed runs in docs/runs.md."""

from experiments.tables.common import lines, table

COUNTS = ("kills", "at_changes", "with_checkpoint", "full_disks", "finished")
FILES = ("crash_test/results", "crash_test/full_disks")


def total(key: str) -> int:
    """Of all experiments."""
    return sum(line.get(key, 0) for line in lines(*FILES))


def kills_table() -> str:
    """A row an experiment, and one for all."""
    rows: dict[str, list[int]] = {}
    for line in lines(*FILES):
        row = rows.setdefault(line["experiment"], [0] * len(COUNTS))
        row[:] = [had + line.get(key, 0) for had, key in zip(row, COUNTS, strict=True)]
    header = ["experiment", "kills", "at a change of its files", "with a checkpoint", "full disks",
              "ends"]  # fmt: skip
    return table(
        header, [*([name, *row] for name, row in rows.items()), ["all", *map(total, COUNTS)]]
    )
