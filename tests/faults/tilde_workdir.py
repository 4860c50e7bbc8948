# Right: --workdir=~/x (which bash hands on as it stands) is below the home directory, or refused.
# Seen: a folder named "~" in the current directory.
from _common import TINY_TOY, TMP, cli, end

(TMP / "home").mkdir()
flags = [*TINY_TOY, "--workdir=~/dirasym_case"]
done = cli("toy_reversal", *flags, cwd=TMP, env={"HOME": str(TMP / "home")})
print(done.returncode, "in home:", [path.name for path in (TMP / "home").iterdir()])
end((TMP / "~").exists() or done.returncode not in (0, 2))
