# Right: the second process on a work directory is told in one line that it is in use (exit 2), or
# both finish (exit 0). Seen: they remove each other's unfinished checkpoints; one of them ends in a
# traceback of Orbax, exit 1.
import subprocess

from _common import TMP, TOY, end, start

both = []
for number in range(2):  # standard error into files, so that neither waits for the other
    err = (TMP / f"err{number}").open("w")
    flags = [*TOY, "--steps=200", "--eval_every=10", f"--workdir={TMP}/run"]
    both.append(start("toy_reversal", *flags, stdout=subprocess.DEVNULL, stderr=err))
codes = [process.wait(timeout=600) for process in both]
messages = [(TMP / f"err{number}").read_text() for number in range(2)]
print(codes, [message.strip()[-100:] for message in messages])
end(any(code not in (0, 2) for code in codes) or any("Traceback" in said for said in messages))
