"""The table of killed runs in docs/runs.md."""

from experiments.tables.common import lines, table

COUNTS = ("kills", "at_changes", "with_checkpoint", "finished")


def total(key: str) -> int:
    """Of all experiments."""
    return sum(line[key] for line in lines("crash_test/results"))


def kills_table() -> str:
    """A row an experiment, and one for all."""
    rows = [[x["experiment"], *(x[key] for key in COUNTS)] for x in lines("crash_test/results")]
    header = ["experiment", "kills", "at a change of its files", "with a checkpoint", "ends"]
    return table(header, [*rows, ["all", *map(total, COUNTS)]])
