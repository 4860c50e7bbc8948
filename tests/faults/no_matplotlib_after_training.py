# Right: without the optional matplotlib the command says so in one line before it trains (exit 2),
# or reports without figures. Seen: trained to the end, then a traceback (ImportError) and exit 1;
# no report.
import os

from _common import ENVIRONMENT, TINY_TOY, TMP, cli, end

(TMP / "hide").mkdir()
(TMP / "hide/matplotlib.py").write_text("raise ImportError('No module named matplotlib')\n")
path = os.pathsep.join([str(TMP / "hide"), ENVIRONMENT["PYTHONPATH"]])
done = cli("toy_reversal", *TINY_TOY, f"--workdir={TMP}/run", env={"PYTHONPATH": path})
print(done.returncode, done.stderr.strip()[-120:])
untouched = done.returncode == 2 and not (TMP / "run/results.jsonl").exists()
end(not (done.returncode == 0 or untouched))
