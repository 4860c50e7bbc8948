# Right: XLA_FLAGS may name a file of flags (XLA's own rule for values without a leading "--").
# Seen: a flag is appended to the name, and XLA aborts: "Could not open file
# '/..flags.txt --xla_gpu_deterministic_ops=true'".
from _common import TINY_TOY, TMP, cli, end

(TMP / "flags.txt").write_text("--xla_force_host_platform_device_count=2\n")
bad = 0
for where, named in (("here", "flags.txt"), ("away", "no_such_file.txt")):
    flags = [*TINY_TOY, "--num_devices=2", f"--workdir={TMP}/{where}"]
    done = cli("toy_reversal", *flags, env={"XLA_FLAGS": str(TMP / named)})
    print(done.returncode, done.stderr.strip()[-200:])
    bad += done.returncode != (0 if where == "here" else 2)
end(bad)
