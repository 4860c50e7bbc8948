# Right: figures are drawn with Agg whatever MPLBACKEND says (a notebook's "!python -m .." inherits
# it), or exit 2 before training. Seen: trained to the end, then a traceback from
# `import matplotlib` and exit 1; no report.
from _common import TINY_TOY, TMP, cli, end

backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
done = cli("toy_reversal", *TINY_TOY, f"--workdir={TMP}/run", env=backend)
print(done.returncode, done.stderr.strip()[-160:])
untouched = done.returncode == 2 and not (TMP / "run/results.jsonl").exists()
end(not (done.returncode == 0 or untouched))
