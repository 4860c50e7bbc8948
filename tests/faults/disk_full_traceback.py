"""No space for a checkpoint (here: ulimit -f 16): one line, or hundreds? (What is on disk stays good: the run resumes to the same bits.)"""

import resource

from _common import TINY_MLP, TMP, cli, end


def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))


flags = [*TINY_MLP, "--d_hidden=64", "--epochs=4", f"--workdir={TMP}/w"]
no_bytecode = {"PYTHONDONTWRITEBYTECODE": "1"}  # which the limit would cut
done = cli("world_a_mlp", *flags, preexec_fn=limit, env=no_bytecode)
lines = (done.stdout + done.stderr).strip().splitlines()
print("exit", done.returncode, len(lines), "lines, last:", lines[-1][:150])
end(done.returncode == 0 or len(lines) > 3)
