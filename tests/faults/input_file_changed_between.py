"""A run is killed, the file of --data_path changed (other pairs, as many words), and the same command given again: refused, or continued on other data?"""

from _common import TMP, end, start, wait_for_step

(TMP / "d").mkdir()
names = "Anna Bert Cora Dora Emil Fred Gina Hugo".split()
flags = [
    *f"--preset=smoke --data_path={TMP}/d --num_pairs=4 --both_ways=0 --models=arm".split(),
    *"--width=16 --batch_size=4 --epochs=40 --eval_epochs=1".split(),
    *f"--gradient_examples=0 --attention_examples=0 --workdir={TMP}/w".split(),
]


def write(order):
    rows = "".join(f"{order[i]},{order[i + 1]}\n" for i in range(0, 8, 2))
    (TMP / "d/parent_child_pairs.csv").write_text("child,parent\n" + rows)


write(names)
p = start("facts", *flags)
wait_for_step(p, TMP / "w", 10)
p.kill()
p.communicate()
assert list((TMP / "w").glob("checkpoints/*/[0-9]*")), "nothing was saved before it was killed"
write(names[1:] + names[:1])
p = start("facts", *flags)
out = "".join(p.communicate())
print("exit", p.returncode, out.strip().splitlines()[-1:])
end(p.returncode != 2 or "Traceback" in out, "one result from two data sets")
