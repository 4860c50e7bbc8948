# Right: a full disk ends a run with one line (what is full, that the command resumes). Seen: forty
# lines of Orbax's traceback, "RESOURCE_EXHAUSTED", exit 1. (That the run then resumes to the same
# bits holds.) Needs the right to mount a tmpfs.
import subprocess
import sys

from _common import TMP, cli, end

disk = TMP / "disk"
disk.mkdir()
mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk]
if subprocess.run(mount, capture_output=True).returncode:
    print("PASS (skipped: may not mount)")
    sys.exit(0)
flags = "--preset=smoke --models=mdm --lengths=3 --width=64 --steps=20 --eval_every=2".split()
try:
    done = cli("toy_reversal", *flags, "--generations=1", f"--workdir={disk}/run")
finally:
    subprocess.run(["umount", disk])
print(done.returncode, done.stderr.strip()[-160:])
end("Traceback" in done.stderr or done.returncode == 0)
