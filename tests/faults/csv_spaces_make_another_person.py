# Right: blanks around a cell are no part of a name ("normalise" takes them off answers): the
# parent below has two children and is left out, and no prompt reads "Cy Dee 's child is". Seen:
# two parents, one of them with a space.
import pathlib
import sys
import tempfile

from dirasym.data import facts, facts_files

path = pathlib.Path(tempfile.mkdtemp()) / "pairs.csv"
path.write_text("child,parent\nAnn Bo ,Cy Dee \nEff Gu,Cy Dee\nHal Io,Jo Ku\n")
data = facts.parent_child(facts_files.read_parent_child(path, None))
prompts = [query.prompt for query in data.forward + data.reverse]
print(prompts)
bad = any(" 's" in prompt for prompt in prompts) or len(data.forward) != 1
print("FAIL" if bad else "PASS")
sys.exit(bad)
