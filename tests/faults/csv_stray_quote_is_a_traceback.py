# Right: exit 2 with one line that names file and row. Seen: a stray quote swallows the rest of a
# large file: csv.Error ("field larger than field limit") is no ValueError, so a traceback and
# exit 1.
# slow
import os
import pathlib
import subprocess
import sys
import tempfile

import dirasym

ROOT = pathlib.Path(dirasym.__file__).resolve().parents[1]
T = pathlib.Path(tempfile.mkdtemp())


def cli(module, *flags, env=(), **kwargs):
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | dict(env)
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", "--noprogress", *map(str, flags)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        **kwargs,
    )


rows = "".join(f"Ann Bo{n},Cy Dee{n}\n" for n in range(12000))
(T / "parent_child_pairs.csv").write_text('child,parent\n"Zed Ae,Yo Ci\n' + rows)
done = cli("facts", "--preset=smoke", f"--data_path={T}", f"--workdir={T}/run")
print(done.returncode, done.stderr.strip().splitlines()[-1])
bad = done.returncode != 2 or "Traceback" in done.stderr
print("FAIL" if bad else "PASS")
sys.exit(bool(bad))
