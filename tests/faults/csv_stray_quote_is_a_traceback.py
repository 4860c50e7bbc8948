# Right: exit 2 with one line that names file and row. Seen: a stray quote swallows the rest of a
# large file: csv.Error ("field larger than field limit") is no ValueError, so a traceback and
# exit 1.
from _common import TMP, cli, end, is_one_line

rows = "".join(f"Ann Bo{n},Cy Dee{n}\n" for n in range(12000))
(TMP / "parent_child_pairs.csv").write_text('child,parent\n"Zed Ae,Yo Ci\n' + rows)
done = cli("facts", "--preset=smoke", f"--data_path={TMP}", f"--workdir={TMP}/run")
print(done.returncode, done.stderr.strip().splitlines()[-1])
end(not is_one_line(done))
