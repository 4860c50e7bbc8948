# Right: persons are found as whole names (as `paired_queries` and `name_units` find them): Ann Bo
# and Ann Bowie are two people. Seen: ValueError "'Ann Bowie, known as ..' names 2 of the persons
# asked".
import json
import pathlib
import sys
import tempfile

from dirasym.data import facts_files

T = pathlib.Path(tempfile.mkdtemp())
people = (("Ann Bo", "the maker of X"), ("Ann Bowie", "the writer of Y"))
for part, of in (
    ("prompts_train", lambda n, d: (f"{n}, known as", d)),
    ("prompts_test", lambda n, d: (f"{n} is", d)),
    ("reverse_prompts_test", lambda n, d: (f"{d} is", n)),
):
    rows = [dict(zip(("prompt", "completion"), of(*person))) for person in people]
    (T / f"p2d_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
try:
    data = facts_files.read_person_description(T, num_persons=None)
    bad = len(data.train) != 2
except ValueError as error:
    print(error)
    bad = True
print("FAIL" if bad else "PASS")
sys.exit(bad)
