"""SIGTERM during an experiment that trains nothing (training_dynamics): does it ever stop?"""

import subprocess
import time

from _common import TMP, end, start

flags = ["--preset=paper", f"--workdir={TMP}/w"]
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
p = start("training_dynamics", *flags, **quiet)
while not (TMP / "w/results.jsonl").exists() and p.poll() is None:
    time.sleep(0.1)
n = len((TMP / "w/results.jsonl").read_text().splitlines())
p.terminate()
t = time.time()
try:
    p.wait(60)
except subprocess.TimeoutExpired:
    pass
m = len((TMP / "w/results.jsonl").read_text().splitlines())
hung = p.poll() is None
p.kill()
p.wait()
print(
    f"60 s after SIGTERM: {'still running' if hung else f'ended with {p.returncode} after {time.time() - t:.0f} s'}; result lines {n} -> {m}"
)
end(hung or p.returncode not in (0, 75))
