"""--coordinator with a port that cannot be (99999) or a host that is not: one line and exit 2, or minutes of silence and an abort?"""

import subprocess

from _common import TMP, cli, end, is_one_line

bad = 0
for where in ("localhost:99999", "no.such.host.invalid:1234"):
    flags = f"--preset=smoke --coordinator={where} --num_processes=2 --process_id=1".split()
    try:
        done = cli("rope_bounds", *flags, f"--workdir={TMP}/w", timeout=60)
        ok = is_one_line(done) and not (TMP / "w").exists()
        print(where, "exit", done.returncode, done.stderr.strip().splitlines()[-1:])
    except subprocess.TimeoutExpired:
        ok = False
        print(where, "still waiting after 60 s")
    bad += not ok
end(bad)
