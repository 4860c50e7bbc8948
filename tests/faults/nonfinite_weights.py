"""A step that ruins the weights after a finite loss: (a) the run's last step -> recorded as a finished run, exit 0? (b) any other -> exit 3, but is "the last good checkpoint" that it names finite?"""

import json
import pathlib
import re

import numpy as np
from _common import TINY_MLP, TMP, cli, end

from dirasym.leaves import decode


def run(name, epochs):
    flags = [f"--epochs={epochs}", "--lr=1e38", f"--workdir={TMP}/{name}"]
    return cli("world_a_mlp", *TINY_MLP, *flags)


bad = []
r = run("a", 1)
f = TMP / "a/results.jsonl"
text = f.read_text() if f.exists() else ""
no_json = "NaN" in text or "Infinity" in text
print("(a) exit", r.returncode, "| NaN or Infinity in results.jsonl:", no_json, r.stderr[-200:])
if r.returncode != 3:
    bad.append(f"(a) exit {r.returncode}" + (", no JSON: NaN" if no_json else ""))
r = run("b", 3)
print("(b) exit", r.returncode, r.stderr.strip().splitlines()[-1:])
if r.returncode != 3 or len(r.stderr.strip().splitlines()) != 1:
    bad.append(f"(b) exit {r.returncode}")
m = re.search(r"last good checkpoint: (\S+)", r.stderr)
if m and m[1] != "none,":
    folder = pathlib.Path(m[1])
    record = json.loads((folder / "record.json").read_text())["record"]
    history = decode(record["history"], (folder / "values").read_bytes())
    finite = all(np.isfinite(x).all() for x in history.values() if x.dtype.kind == "f")
    print("    the evaluation stored in it is finite:", finite)
    if not finite:
        bad.append("the evaluation of the 'last good checkpoint' is NaN")
end(bad, "; ".join(bad))
