"""A line that stands twice in results.jsonl: does the report count that seed twice?"""

import json

from _common import TMP, cli, end

flags = ["--preset=smoke", "--seeds=0,1", f"--workdir={TMP}/w"]
assert cli("relations", *flags).returncode == 0


def row():
    text = (TMP / "w/report.md").read_text()
    return [line for line in text.splitlines() if line.startswith("| reversal")]


before, bad = row(), not row()
f = TMP / "w/results.jsonl"
lines = f.read_text()
first = json.loads(lines.splitlines()[0])
for more in (first, dict(reversed(first.items())), first | {"run_wall_time_sec": 1e6}):
    f.write_text(lines + json.dumps(more) + "\n")  # as it is, with other order, made twice
    done = cli("relations", *flags)
    after = row() if done.returncode == 0 else [f"exit {done.returncode}"]
    print(before, after, done.stderr[-200:], sep="\n")
    bad |= done.returncode == 0 and before != after
end(bad)
