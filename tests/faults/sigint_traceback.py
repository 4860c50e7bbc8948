"""Ctrl-C during training: what does the user see?"""

import signal

from _common import TINY_MLP, TMP, end, start, wait_for_step


def heard():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


p = start("world_a_mlp", *TINY_MLP, "--epochs=4000", f"--workdir={TMP}/w", preexec_fn=heard)
wait_for_step(p, TMP / "w", 10)
p.send_signal(signal.SIGINT)
out = "".join(p.communicate())
lines = out.strip().splitlines()
print("exit", p.returncode, len(lines), "lines, last:", lines[-1:])
end("Traceback" in out or p.returncode != 75 or "resumes" not in out)
