"""Command lines that end in a traceback, an abort, the wrong status or not within 60 s, where one line and exit 2 are promised."""

import resource
import shutil
import subprocess

from _common import ROOT, TMP, cli, end, is_one_line

CASES = """toy_reversal --preset=smoke --lengths=10000000
toy_reversal --preset=smoke --width=100000000000
toy_reversal --preset=smoke --generations=1000000000000
toy_study --preset=smoke --length=10000000
world_a --preset=smoke --str_len=1000000000
world_a --preset=smoke --n_pairs=1000000000000
world_a --preset=smoke --output=/dev/zero
relations --preset=smoke --vocab_size=1000000000000
relations --preset=smoke --word_size=1000000000
training_dynamics --preset=smoke --widths=99999999999999
rope_bounds --preset=smoke --max_distance=100000000000
benchmarks.steps --preset=smoke --lengths=1
benchmarks.alignment --preset=smoke --width=7 --model=transformer
tools.scaling --nosuch=1
tools.scaling positional
tools.scaling --devices=-1
tools.scaling --output=/nonexistent/x.md
tools.redraw --nosuch=1""".splitlines()
for part in ("experiments", "dirasym", "docs"):  # some write into docs/: they get a copy
    shutil.copytree(ROOT / part, TMP / part, ignore=shutil.ignore_patterns("__pycache__"))


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2)


bad = 0
for line in CASES:
    name, *flags = line.split()
    plain = name in ("tools.scaling", "tools.redraw")
    where = [] if plain else [f"--workdir={TMP}/w"]
    try:
        done = cli(
            name,
            *flags,
            *where,
            cwd=TMP,
            env={"PYTHONPATH": str(TMP)},
            timeout=60,
            preexec_fn=limit,
        )
        left = (TMP / "w").exists()
        ok = is_one_line(done) and not left
        got = f"exit {done.returncode}: {done.stderr.strip()[-100:]}" + left * ", files left"
    except subprocess.TimeoutExpired:
        ok, got = False, "not done after 60 s"
    bad += not ok
    print("ok  " if ok else "FAIL", line, "->", got, flush=True)
    shutil.rmtree(TMP / "w", ignore_errors=True)
end(bad, f"{bad} of {len(CASES)}")
