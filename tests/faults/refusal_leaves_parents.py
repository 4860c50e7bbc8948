"""A refusal while a run is planned: nothing written? Parents that were made stay; a directory that was there before is removed."""

from _common import TMP, cli, end, is_one_line

bad = []


def run(workdir):
    done = cli("facts", "--preset=smoke", "--width=30", "--heads=4", f"--workdir={workdir}")
    print("exit", done.returncode, done.stderr.strip()[-100:])
    return [] if is_one_line(done) else [f"exit {done.returncode}"]


bad += run(TMP / "a/b/c")
left = sorted(str(p.relative_to(TMP)) for p in TMP.rglob("*"))
print("made and left:", left)
bad += left
mine = TMP / "mine"
(mine / "compilation").mkdir(parents=True)
(mine / "compilation/precious").write_text("x")
bad += run(mine)
there = sorted(str(p.relative_to(mine)) for p in mine.rglob("*"))
print("the user's own directory:", there)
bad += [] if there == ["compilation", "compilation/precious"] else ["mine"]
end(bad, ", ".join(bad))
