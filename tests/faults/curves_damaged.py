"""A finished run whose curves/*.npz is cut, empty, garbage or gone: one line (or made again from the checkpoint), or a traceback for ever?"""

from _common import TMP, cli, end, is_one_line

flags = ["--preset=smoke", "--seeds=0,1", f"--workdir={TMP}/w"]
assert cli("relations", *flags).returncode == 0
(f,) = (TMP / "w/curves").glob("*seed=0.npz")
data = f.read_bytes()
bad = []
for name, new in {
    "cut": data[: len(data) // 2],
    "empty": b"",
    "garbage": b"garbage" * 50,
    "gone, the other seed's there": None,
}.items():
    f.unlink() if new is None else f.write_bytes(new)
    done = cli("relations", *flags)
    again = done.returncode == 0 and f.exists() and f.read_bytes() == data
    if not (again or is_one_line(done)):
        bad.append(name)
    print(name, "exit", done.returncode, done.stderr.strip().splitlines()[-1:])
    f.write_bytes(data)
end(bad, ", ".join(bad))
