# Right: on a file system without flock (Lustre without -o flock, some NFS: ENOLCK, ENOSYS) results
# are written all the same, or the command refuses before it trains. Seen: traceback after training,
# exit 1, no result line, at every further try too.
import os

from _common import ENVIRONMENT, TINY_TOY, TMP, cli, end

(TMP / "hook").mkdir()
(TMP / "hook/sitecustomize.py").write_text(
    "import errno, fcntl, os\n"
    "def flock(*args):\n"
    "    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))\n"
    "fcntl.flock = flock\n"
)
path = os.pathsep.join([str(TMP / "hook"), ENVIRONMENT["PYTHONPATH"]])
done = cli("toy_reversal", *TINY_TOY, f"--workdir={TMP}/run", env={"PYTHONPATH": path})
print(done.returncode, done.stderr.strip()[-120:])
refused = done.returncode == 2 and not (TMP / "run/checkpoints").exists()
end(not (done.returncode == 0 or refused))
