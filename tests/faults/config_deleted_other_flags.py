"""A run killed half way, its config.json lost, started with another learning rate: refused, or continued from the other's checkpoint?"""

import json

from _common import TINY_MLP, TMP, cli, end, start, wait_for_step

flags = [*TINY_MLP, "--epochs=60"]
p = start("world_a_mlp", *flags, f"--workdir={TMP}/a")
wait_for_step(p, TMP / "a", 10)
p.kill()
p.communicate()
(TMP / "a/config.json").unlink()
done = cli("world_a_mlp", *flags, "--lr=0.5", f"--workdir={TMP}/a")
assert cli("world_a_mlp", *flags, "--lr=0.5", f"--workdir={TMP}/b").returncode == 0


def curve(name):
    return json.loads((TMP / name / "results.jsonl").read_text().splitlines()[0])["train_curve"]


if done.returncode == 0:
    a, b = curve("a"), curve("b")
    same = a == b
    print("exit 0; first losses", a[:3], "where --lr=0.5 alone gives", b[:3])
else:
    print("exit", done.returncode, done.stderr.strip()[-200:])
    same = done.returncode == 2 and "Traceback" not in done.stderr
end(not same, "two configurations in one result")
