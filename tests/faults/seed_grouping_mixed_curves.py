"""Some seeds trained one by one, the run killed, resumed with --seeds_together=yes (or on a GPU, where that is the default): do figures and curves count a seed twice?"""

import json
import time

from _common import TMP, cli, end, start

from dirasym.workdir import WorkDir

flags = ["--preset=smoke", "--seeds=0,1", f"--workdir={TMP}/a"]
p = start("relations", *flags, "--seeds_together=no")
while not (TMP / "a/results.jsonl").exists() and p.poll() is None:
    time.sleep(0.002)
p.kill()
p.communicate()
done = cli("relations", *flags, "--seeds_together=yes")
names = sorted(x.name for x in (TMP / "a/curves").glob("*.npz"))
print("exit", done.returncode, names, done.stderr[-300:])
workdir = WorkDir(TMP / "a", json.loads((TMP / "a/config.json").read_text())["config"])
seeds = sorted(line["seed"] for line in workdir.results())
print(f"seeds {seeds} in the results, {len(names)} files of curves of 2 seeds")
end(done.returncode or seeds != [0, 1] or len(names) != 2)
