# Right: a UTF-8 file with a byte order mark (Excel's "CSV UTF-8") reads like one without. Seen:
# "row 2 has no child".
import pathlib
import sys
import tempfile

from dirasym.data import facts_files

path = pathlib.Path(tempfile.mkdtemp()) / "parent_child_pairs.csv"
text = "child,parent\nAnn Bo,Cy Dee\nEff Gu,Hal Io\n"
path.write_text(text, encoding="utf-8")
want = facts_files.read_parent_child(path, None)
path.write_text(text, encoding="utf-8-sig")
try:
    bad = facts_files.read_parent_child(path, None) != want
except ValueError as error:
    print(error)
    bad = True
print("FAIL" if bad else "PASS")
sys.exit(bad)
