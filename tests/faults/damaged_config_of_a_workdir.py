# Right: a work directory whose config.json is damaged or of something else is one line and exit 2,
# as for an empty one. Seen: bytes that are no UTF-8, or a list: traceback, exit 1.
from _common import TINY_TOY, TMP, cli, end, is_one_line

bad = 0
damages = {
    "bytes": b"\xff\xfe\x00garbage",
    "list": b"[1]",
    "null": b"null",
    "deep": b"[" * 10**6,
    "empty": b"",
}
for name, content in damages.items():
    (TMP / name).mkdir()
    (TMP / name / "config.json").write_bytes(content)
    done = cli("toy_reversal", *TINY_TOY, f"--workdir={TMP}/{name}")
    print(name, done.returncode, done.stderr.strip()[-100:])
    bad += not is_one_line(done)
end(bad)
