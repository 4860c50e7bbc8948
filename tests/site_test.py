"""The site: what its pages show is there. Building it whole needs the extra `docs`."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pathspec
import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site_faults():
    spec = importlib.util.spec_from_file_location("site_faults", DOCS / "site_faults.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_picture_and_a_bare_formula_are_seen(site_faults, tmp_path):
    page = tmp_path / "page" / "index.html"
    page.parent.mkdir()
    (tmp_path / "a b.png").touch()
    page.write_text(
        '<img alt="" src="../a%20b.png"><img src="https://x.org/c.png"><img src="../d.png">'
        "<script>$x</script><code>$HOME</code><math><mi>\\foo</mi><annotation>$y$</annotation></math>"
        "<p><em>a \x02klzzwxh</em>0111\x03</p><p>costs $z$</p>"
    )
    assert site_faults.faults(tmp_path) == [
        "page/index.html: no picture ../d.png",
        "page/index.html: a formula is not set: $z",
        "page/index.html: a formula is not set: $",
        "page/index.html: a formula has \\foo",
        "page/index.html: emphasis is not read",
    ]


def test_the_site_leaves_out_no_picture_of_its_pages():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (rules,) = re.findall(r"^exclude_docs: \|\n((?:  .*\n)+)", settings, re.MULTILINE)
    excluded = pathspec.GitIgnoreSpec.from_lines([line.strip() for line in rules.splitlines()])
    pages = [page.relative_to(DOCS) for page in DOCS.rglob("*.md")]
    shown = {
        (page.parent / picture).as_posix()
        for page in pages
        if not excluded.match_file(page.as_posix())
        for picture in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", (DOCS / page).read_text("utf-8"))
    }
    assert any(picture.startswith("results/") for picture in shown)
    assert not [picture for picture in shown if excluded.match_file(picture)]
    assert not [picture for picture in shown if not (DOCS / picture).exists()]


@pytest.mark.parametrize("page", ["index.md", "glossary.md", "theory.md"])
def test_formulas_read_alike_on_github_and_on_the_site(page):
    """Markdown takes a backslash before punctuation away there, and a bar would end a cell."""
    text = re.sub(r"```.*?```|`[^`]*`", "", (DOCS / page).read_text("utf-8"), flags=re.DOTALL)
    found = re.compile(r"\$\$\n[^$]+\n\$\$|\$[^$\n]+\$")
    assert found.findall(text) and "$" not in found.sub("", text)
    assert not [x for x in found.findall(text) if re.search(r"\\[^A-Za-z]|\|", x)]


def test_a_warning_ends_the_build():
    """Of a quiet build mkdocs counts no warnings."""
    assert re.search(r"^strict: true$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    (build,) = re.findall(r"mkdocs build.*", (ROOT / "Makefile").read_text("utf-8"))
    assert not re.search(r"-q\b|--quiet", build.partition("#")[0])


def test_the_built_site_is_whole(site_faults, tmp_path):
    for needed in ("mkdocs", "mkdocstrings", "nbconvert", "latex2mathml"):
        pytest.importorskip(needed)
    build = [sys.executable, "-m", "mkdocs", "build", f"--site-dir={tmp_path}"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.rglob("*.png"))) > 40 and not site_faults.faults(tmp_path)
    for page in tmp_path.rglob("*.html"):
        text = re.sub(r"<script.*?</script>", "", page.read_text("utf-8"), flags=re.DOTALL)
        assert text.count("<code") == text.count("</code>"), page
    for page, least in {"index.html": 1, "glossary/index.html": 9, "theory/index.html": 30}.items():
        assert (tmp_path / page).read_text("utf-8").count("<math") >= least
