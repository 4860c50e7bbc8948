"""Tables and numbers of the docs are those of docs/results."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml

import dirasym
from dirasym import models
from dirasym.analysis import queries
from dirasym.data import tokenizers
from dirasym.models import frameworks
from experiments import __main__ as main
from experiments import measure
from experiments.tables import claims, common, index

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for glob in common.PAGES for path in ROOT.glob(glob)
)
GENERATED = re.compile(r"<!-- \[\[\[cog.*?<!-- \[\[\[end\]\]\] -->", re.DOTALL)


def test_the_docs_say_what_is_on_file():
    """What `cog` would write is what stands there, on every page."""
    check = [sys.executable, "-m", "cogapp", "--check", *PAGES]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_no_interval_is_typed_by_hand(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    text = GENERATED.sub("", text)
    typed = [x for x in text.splitlines() if re.search(r"\d ± \d|\(\d+(\.\d)? to \d+", x)]
    assert not typed


def test_every_folder_of_results_says_where_it_is_from():
    with_lines = {path.parent.name for path in common.RESULTS.glob("*/*.jsonl")}
    found = index.folders()
    assert set(found) == with_lines
    for name, about in found.items():
        assert set(index.NEEDED) <= set(about), name
        files = {path.stem for path in (common.RESULTS / name).glob("*.jsonl")}
        assert set(about["recorded_in"]) == files, name
    assert f"| [world_a](world_a) | *results*: `{found['world_a']['commands']['results']}`" in (
        index.index_table()
    )


def test_seconds_on_file_are_the_sums_of_the_lines():
    """As far as they are known: of results that a command timed, to the second."""
    rows = {row.split("|")[1].strip(): row for row in index.index_table().splitlines()}
    for name in ("world_a", "world_a_mlp", "closure"):
        took = sum(common.column(common.lines(f"{name}/results"), "run_wall_time_sec"))
        (said,) = re.findall(r"\| \*results\*: (\d+)(?:<br>.*?)? \|", rows[f"[{name}]({name})"])
        assert abs(int(said) - took) < 2


def test_the_table_of_costs_is_in_each_files_own_words(monkeypatch, tmp_path):
    """A row an experiment, the paragraph of its docstring and no other."""
    pages = re.findall(r"^\| `(\w+)` \| .+ \|$", index.costs_table(), re.MULTILINE)
    assert pages == list(main.first_sentences("")) and len(pages) > 20
    (tmp_path / "experiments").mkdir()
    for name in pages:
        text = '"""Why?\n\nCost      quick: a\n          minute.\nExpected  No\n\nMore."""\n'
        (tmp_path / f"experiments/{name}.py").write_text(text)
    monkeypatch.setattr(index, "ROOT", tmp_path)
    assert index.costs_table().splitlines()[2] == f"| `{pages[0]}` | quick: a minute. |"


NO_MODEL = {  # folders, or files, whose lines are of no model
    "facts_smollm2_h100/first_tokens": "counts of a data set",
    "crash_test": "kills of small runs",
    "rope_bounds": "queries and keys, drawn",
    "theory": "draws and closed forms",
}
SIZES = {"layers", "width", "heads", "total_params"}


def _sizes(folder, line):
    """Which sizes a line's model has, and are known."""
    if folder == "training_dynamics":  # no layers in the bilinear model; one layer without width
        return {"layers" if line["part"] == "one_layer" else "width", "total_params"}
    kinds = {line.get(key) for key in ("arch", "model", "family", "value")}
    if kinds & {"mlp", "gru"}:
        return SIZES - {"heads"}
    return SIZES


def test_lines_of_a_model_say_its_sizes():
    paths = {
        f"{x.parent.name}/{x.stem}": x
        for x in common.RESULTS.glob("*/*.jsonl")
        if x.parent.name not in NO_MODEL
    }
    assert all((common.RESULTS / name).is_dir() or name in paths for name in NO_MODEL)
    paths = [x for name, x in paths.items() if name not in NO_MODEL]
    assert len(paths) > 80
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            assert SIZES & set(line) == _sizes(path.parent.name, line), (path, line)
            sizes = [line[name] for name in SIZES & set(line)]
            assert all(isinstance(size, int) and size > 0 for size in sizes), (path, line)
            if "width" in line and "heads" in line:
                assert line["width"] % line["heads"] == 0, (path, line)


def test_numbers_are_written_as_known():
    assert common.number(-0.004) == "0.00" and common.number(-1.256) == "−1.26"
    assert common.mean([1.0, 2.0, 3.0]) == "2.00 ± 2.48"  # t = 4.303, s/√3 = 0.577
    assert common.mean([-2.5], 1) == "−2.5"
    assert common.share(242, 250) == "96.8 (93.8 to 98.4)"
    assert common.span([3.0, -1.0, 2.0], 0) == "−1 to 3" and common.span([2.0], 1) == "2.0"
    assert common.each([1.0, -2.25], 2) == "1.00, −2.25"
    assert common.at({"x": [5, 6, 7], "t": [0, 10, 20]}, "x", 10, "t") == 6
    assert common.table("a, b", [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_lines_come_in_the_order_of_seeds_or_not_at_all():
    of = common.lines("toy_reversal/results", "toy_reversal/results_L40", model="mdm", length=40)
    assert common.column(of, "seed") == [0, 1, 2]
    with pytest.raises(LookupError, match="length"):
        common.lines("toy_reversal/results", length=41)
    with pytest.raises(FileNotFoundError):
        common.lines("toy_reversal/nothing")


def test_paragraphs_are_of_a_hundred_columns():
    assert common.say("word " * 19 + "K = 1. Half is").splitlines()[1] == "= 1. Half is"
    text = common.say("one\n  two\n- first\n  item " + "word " * 30 + "\n- second")
    lines = text.splitlines()
    assert lines[0] == "one two" and lines[1].startswith("- first item") and len(lines) == 4
    assert lines[2].startswith("  word") and lines[-1] == "- second"
    assert max(map(len, lines)) <= 100


CLAIM = {
    "place": "§1",
    "says": "2 > 1",
    "ours": "{1 + 1}",
    "holds": "2 > 1",
    "verdict": "reproduced",
    "test": "tests/docs_test.py::test_a_claim_that_does_not_stand_is_named",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holds": "1 > 2"}, r"§1: 2 > 1 is no longer reproduced: 1 > 2 is false"),
        ({"verdict": "true"}, "has the verdict 'true'"),
        ({"number": "2"}, "has {'number'}"),
        ({"test": ""}, "has no test"),
        ({"verdict": "contradicted"}, "does not say why"),
        ({"verdict": "reproduced in part"}, "does not say why"),
        ({"verdict": "not run", "holds": ""}, "does not say why"),
        ({"file": "toy_reversal/none.jsonl"}, "no toy_reversal/none.jsonl"),
        ({"test": "tests/docs_test.py::test_none"}, "no test tests/docs_test.py::test_none"),
    ],
)
def test_a_claim_that_does_not_stand_is_named(changes, message):
    claims.check(CLAIM)
    with pytest.raises(ValueError, match=message):
        claims.check(CLAIM | changes)


def test_a_claims_text_is_filled_from_the_files():
    assert claims.filled("a {1 + 1} b {c.number(-0.26, 1)}") == "a 2 b −0.3"
    (line,) = common.lines("rope_bounds/results", delta=10, m=64, threshold=0.05)
    text = "{c.lines('rope_bounds/results', delta=10, m=64, threshold=0.05)[0]['printed']}"
    assert claims.filled(text) == str(line["printed"]) == "0.981"


def test_every_paper_has_its_page_of_claims():
    assert claims.papers() == ["2405.04669", "2511.19997", "2602.02133"]
    for paper in claims.papers():
        page = (claims.CLAIMS / f"{paper}.md").read_text(encoding="utf-8")
        assert f'claims.page("{paper}")' in page
        assert all(claim["says"].replace("|", "\\|") in page for claim in claims.read(paper))


@pytest.mark.parametrize("page", [*PAGES, "BUILD_NOTES.md"])
def test_what_a_page_names_is_there(page):
    """Tests, test files and links; a name that ends in … begins one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    files = list((ROOT / "tests").rglob("*.py"))
    tests = {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    for name, more in re.findall(r"`(test_\w+)(…?)`", text):
        assert name in tests or (more and any(test.startswith(name) for test in tests)), name
    for path in re.findall(r"`(tests/[\w/]+\.py)", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"https?:|mailto:", link):
            assert ((ROOT / page).parent / link).exists(), link


MARKDOWN = sorted(
    str(path.relative_to(ROOT)) for glob in ("*.md", "docs/**/*.md") for path in ROOT.glob(glob)
)


@pytest.mark.parametrize("page", MARKDOWN)
def test_every_link_and_picture_is_there(page):
    """Reports too: a figure that was not kept is not shown."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    links += re.findall(r"<(?:img|a)\b[^>]*?(?:src|href)=\"([^\"#]+)", text)
    own = [link for link in links if not re.match(r"https?:|mailto:", link)]
    assert not [link for link in own if not ((ROOT / page).parent / link).exists()]


def test_results_name_commits_of_this_history():
    """Of one that is not in it the file says that, and not its name."""
    if not shutil.which("git") or _git("rev-parse", "--is-shallow-repository") != ["false"]:
        pytest.skip("not a clone with its history")
    known = {commit[:7] for commit in _git("log", "--format=%H")}
    for name, about in index.folders().items():
        said = re.findall(r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7}\b", json.dumps(about))
        assert set(said) <= known, name


def _git(*words):
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


def test_results_name_no_folder_of_one_machine():
    files = [path for path in common.RESULTS.rglob("*.json*") if path.is_file()]
    own = re.compile(r"[\"'= ]/(work|home|root|tmp|mnt)/")
    assert files and not [str(path) for path in files if own.search(path.read_text("utf-8"))]


REPORTS = sorted(str(x.relative_to(ROOT)) for x in ROOT.glob("docs/results/*/report.md"))


@pytest.mark.parametrize(
    "page", [*PAGES, *REPORTS, "BUILD_NOTES.md", "CHANGELOG.md", "CONTRIBUTING.md"]
)
def test_lines_fit(page):
    """A hundred characters; tables apart, and what one link fills."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert not [
        line
        for line in lines
        if len(line) > 100 and not line.startswith("|") and not re.fullmatch(r"\S*\]\(\S+", line)
    ]


def test_a_saved_model_of_models_md_has_its_tokenizer(tiny_directory, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    load, save = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    source = tiny_directory(tmp_path)
    source.rename(tmp_path / "my_tokenizer")
    (tmp_path / "path/to").mkdir(parents=True)
    shutil.copytree(tmp_path / "my_tokenizer", tmp_path / "path/to/directory")
    monkeypatch.chdir(tmp_path)
    said: dict = {"tokens_BL": np.zeros((1, 3), int)}
    exec(load, said)
    said["tokenizer"] = tokenizers.from_directory("elsewhere")
    exec(save, said)
    assert said["tokenizer"].eos_id == 256
    models.save_pretrained("bare", said["model"], said["params"])
    with pytest.raises(ValueError, match="bare has no tokenizer"):
        tokenizers.from_directory("bare")


@pytest.mark.parametrize("framework", ["nnx", "haiku", "equinox"])
def test_a_model_of_another_framework_is_read_as_reading_md_says(framework):
    pytest.importorskip("flax.nnx" if framework == "nnx" else framework)
    page = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    codes = [code for code in codes if f"import {framework}" in code or f"_{framework}(" in code]
    is_trained = framework == "equinox"
    assert len(codes) == 1 + is_trained
    pairs = dirasym.Pairs([("France", "Paris"), ("Peru", "Lima")], "{a} has {b}", "{b} is of {a}")
    (words,) = re.findall(r"`(tokenizers\.Words\(.*?\))`", page.split("## What a reading")[0])
    said = dict(dirasym=dirasym, frameworks=frameworks, jax=jax, pairs=pairs)
    said["tokenizer"] = tokenizer = eval(words, dict(tokenizers=tokenizers, pairs=pairs))
    statements = [" ".join(x) for x in (("France", "has", "Paris"), ("Lima", "is", "of", "Peru"))]
    assert all(tokenizer.encode(statements))  # of either direction
    with pytest.raises(ValueError, match="not in the vocabulary"):
        tokenizers.Words(statements[:1]).encode(statements[1:])
    said["tokens"] = tokens = np.array(tokenizer.encode(statements[:1]))
    said["is_answer"] = tokens == tokens[:, -1:]
    for code in codes:
        exec(code, said)
    assert np.isfinite(said["reading"].forward.nll.estimate)
    assert not is_trained or np.isfinite(said["metrics"]["loss"])


def test_reading_md_asks_a_masked_model_for_a_both_times():
    """And says what an untrained network's cosine is."""
    page = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    (causal, masked) = re.findall(r"^\| (?:causal|masked) \| (.*) \|$", page, re.M)
    wording = "The capital of {a} is {b}", "{b} is the capital of {a}"
    pairs = dirasym.Pairs([("A", "B")], *wording)
    words = tokenizers.Words(pairs.fact_set().texts())
    for row, is_masked in ((causal, False), (masked, True)):
        both = queries.paired_queries(pairs.fact_set(), words, masked=is_masked)
        for said, asked in zip(row.split(" | "), both, strict=True):
            text, answer = re.fullmatch(r'"(.*?)(?: …)?", asks for ([AB])', said).groups()
            known = words.encode([text.replace("[M]", "capital")])[0]
            if is_masked:
                known[text.split().index("[M]")] = words.mask_id
            assert asked.tokens_EL[0].tolist() == known
            assert [int(asked.target_E[0])] == words.encode([answer])[0]
    total = {}
    for kind in ("masked", "causal"):
        flags = measure.PRESETS["quick"] | {"attention": False, "kind": kind}
        reading = measure.prepared(measure.Config(**flags)).reading(None)
        total[kind] = reading.alignment.cosine["total"].estimate
    assert total["masked"] > 0.95 and "An untrained one reads\nnearly 1 in total" in page
    assert abs(total["causal"]) < 0.05 and "reads about 0 (`--kind=causal`)" in page


def test_the_matrix_of_gradients_md_is_that_of_two_gradients(tmp_path, monkeypatch, capsys):
    """And is gone on with by the same call, and refused to another."""
    page = (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("devices.mesh(0)", "None").replace("2**30", "2**19")
    monkeypatch.chdir(tmp_path)
    said: dict = {}
    exec(code, said)
    assert f"# {capsys.readouterr().out.strip()}\n" in page
    inner, loss, params = said["found"].inner, said["loss"], said["params"]
    grads = [jax.grad(loss)(params, said[name][at]) for name, at in (("rows", 7), ("columns", 150))]
    want = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), *grads)))
    np.testing.assert_allclose(inner["total"][7, 150], want, rtol=1e-4)
    on_file = sorted(path.name for path in pathlib.Path("runs/cross").glob("block-*.npy"))
    assert "block-total.npy" in on_file and len(on_file) == len(inner)
    assert isinstance(inner["total"], np.memmap) and not inner["total"].flags.writeable
    done, total = (np.load(f"runs/cross/{x}.npy", mmap_mode="r+") for x in ("done", "block-total"))
    assert done.size > 1 and done.all()  # tiles
    done[0, 0], total[:] = False, 7
    exec(code, said)  # makes the first tile alone
    assert said["found"].inner["total"][0, 0] != 7 == said["found"].inner["total"][-1, -1]
    with pytest.raises(ValueError, match="holds another matrix"):
        exec(code.replace("2**19", "2**22"), said)


class _Record:
    """In place of a module of a writer, or of what it makes: every call is told."""

    def __init__(self, told, name):
        self._told, self._name = told, name

    def __getattr__(self, attribute):
        def call(*args, **kwargs):
            self._told.append((self._name, attribute, args, kwargs))
            return _Record(self._told, kwargs.get("name", args[0] if args else None))

        return call


def test_the_writers_of_runs_md_are_told_of_every_run(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    example, *_, board, wandb, both = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    told = {"tensorboardX": [], "wandb": []}
    for package, calls in told.items():
        monkeypatch.setitem(sys.modules, package, _Record(calls, package))
        assert f"pip install {package}" in " ".join(page.split())
    example = example.partition("print(")[0].replace("=2000, eval_every=200", "=4, eval_every=2")
    said: dict = {}
    exec(example + board + wandb + both, said)
    names = [f"model=mlp,seed={seed}" for seed in range(3)]
    folders = [f"runs/mine/tensorboard/{name}" for name in names]
    opened = [call[2][0] for call in told["tensorboardX"] if call[1] == "SummaryWriter"]
    begun = [call[3] for call in told["wandb"] if call[1] == "init"]
    assert sorted(opened) == folders and sorted(one["name"] for one in begun) == names
    assert begun[0]["config"] == {"model": "mlp"}
    scalars = [call[2] for call in told["tensorboardX"] if call[:2] == (folders[0], "add_scalar")]
    logged = [call for call in told["wandb"] if call[:2] == (names[0], "log")]
    assert [x[2] for x in scalars if x[0] == "loss"] == [2, 4]
    assert [call[3]["step"] for call in logged if "loss" in call[2][0]] == [2, 4]
    ends = [call[:2] for call in told["tensorboardX"] + told["wandb"]]
    assert all((folder, "close") in ends for folder in folders)
    assert all((name, "finish") in ends for name in names)


@pytest.mark.slow
def test_the_adapters_of_models_md_train_and_come_back(tmp_path, monkeypatch):
    """The page's example as it stands there."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"## LoRA\n\n```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    said: dict = {}
    exec(code, said)
    assert np.isfinite(said["metrics"]["loss"]) and said["config"].rank == 8
    kernel = "blocks_0", "attention", "query", "kernel"
    before, after = (_at(said[name], kernel) for name in ("params", "merged"))
    assert before.shape == after.shape and not np.allclose(before, after, atol=1e-9)


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree)


@pytest.mark.parametrize("page", PAGES)
def test_a_figure_has_its_caption(page):
    """In italics, below it: what is drawn, of how many seeds."""
    text = (ROOT / page).read_text(encoding="utf-8")
    bare = [
        name
        for name, after in re.findall(r"^!\[.*?\]\((.*?)\)\n(.*?)(?=\Z|^!\[)", text, re.M | re.S)
        if not re.match(r"\n\*[^*].*?\*\n", after, re.S)
    ]
    assert not bare


def test_the_citation_names_the_papers_with_their_authors():
    """Titles as on the pages of claims; `authors`, `title` and `type` are required of each."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == dirasym.__version__
    papers = {}
    for paper in cited["references"]:
        assert paper["type"] and all(x["family-names"] for x in paper["authors"])
        (number,) = (x["value"] for x in paper["identifiers"] if x["type"] == "other")
        papers[number] = paper["title"]
    assert set(papers) == {f"arXiv:{paper}" for paper in claims.papers()}
    for paper in claims.papers():
        page = (claims.CLAIMS / f"{paper}.md").read_text(encoding="utf-8")
        title = re.search(r"^\*(.*?)\.\*", page, re.MULTILINE | re.DOTALL)[1]
        assert papers[f"arXiv:{paper}"] == " ".join(title.split())


def test_every_module_is_in_the_reference_or_said_not_to_be():
    pages = {page.name: page.read_text("utf-8") for page in ROOT.glob("docs/reference/*.md")}
    shown = re.findall(r"^::: dirasym\.([\w.]+)$", "\n".join(pages.values()), re.MULTILINE)
    inner = re.findall(r"^- `([\w.]+)`: ", pages["index.md"], re.MULTILINE)
    files = (path.relative_to(ROOT / "dirasym") for path in ROOT.glob("dirasym/**/*.py"))
    modules = {".".join(x.with_suffix("").parts) for x in files if x.stem != "__init__"}
    assert sorted([*shown, *inner]) == sorted(modules)


def test_twenty_questions_point_to_headings_that_are_there():
    page = (ROOT / "docs" / "development.md").read_text("utf-8")
    rows = re.findall(r"^\| .*\? \| \[.*\]\(([\w/.]+)#?([\w-]*)\) \|$", page, re.MULTILINE)
    assert len(rows) == len(set(rows)) == 20
    for name, anchor in rows:
        text = (ROOT / "docs" / name).read_text("utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, (name, anchor)
