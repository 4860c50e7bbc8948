"""The README's code runs as it stands there."""

import pathlib
import re
import tomllib

import numpy as np

from dirasym.reading import Reading

README = pathlib.Path(__file__).parent.parent / "README.md"


def _code():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_five_lines(capsys):
    code, _ = _code()
    namespace = {}
    exec(code, namespace)
    result = namespace["result"]
    assert set(result.cosine) == {"layers_0", "layers_1", "layers_3", "total"}
    assert result.cosine["total"].shape == (16,)
    assert all(np.isfinite(x).all() for x in result.norm_fwd.values())
    assert "'total': " in capsys.readouterr().out


def test_the_eight_lines(tiny_directory, tmp_path, capsys, monkeypatch):
    """They read a small model that knows nothing, and a file of two facts."""
    tiny_directory(tmp_path).rename(tmp_path / "smollm2")
    (tmp_path / "capitals.csv").write_text("country,capital\nFrance,Paris\nSpain,Madrid\n")
    monkeypatch.chdir(tmp_path)
    _, code = _code()
    namespace = {}
    exec(code, namespace)
    reading = namespace["reading"]
    assert [one.prompt for one in reading.reverse.asked] == [
        "Paris is the capital of",
        "Madrid is the capital of",
    ]
    assert "blocks_1/attention" in reading.alignment.cosine
    assert reading.kind == "causal" and reading.storage is not None
    assert "| accuracy % | 0.0 (0.0, " in capsys.readouterr().out
    assert Reading.load("reading.json") == reading
    with_imports = [line for line in code.splitlines() if line]
    assert len(with_imports) - 2 <= 8


def test_a_stranger_gets_a_python_that_has_dirasym():
    """Before the first code: a clone, an environment, and the package with extras that exist."""
    for page in (README, README.parent / "docs" / "index.md"):
        before = page.read_text().partition("```python")[0]
        steps = "git clone .* && cd dirasym\n", ".venv/bin/activate\n", r"pip install -e '\.\["
        places = [re.search(step, before) for step in steps]
        assert all(places) and sorted(places, key=lambda x: x.start()) == places


def test_no_page_installs_from_an_index_what_is_not_there():
    settings = (README.parent / "pyproject.toml").read_text()
    extras = set(tomllib.loads(settings)["project"]["optional-dependencies"])
    for page in [*README.parent.glob("*.md"), *README.parent.glob("docs/**/*.md")]:
        text = page.read_text()
        assert not re.search(r"pip install [^`\n]*\bdirasym(\[|'|\s|`)", text), page
        asked = re.findall(r"pip install -e '\.\[([a-z,0-9]+)\]", text)
        assert {x for names in asked for x in names.split(",")} <= extras, page


def test_messages_install_from_the_clone_what_is_there():
    settings = tomllib.loads((README.parent / "pyproject.toml").read_text())
    extras = settings["project"]["optional-dependencies"]
    files = [x for top in ("dirasym", "experiments") for x in (README.parent / top).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    assert not [path for path, text in zip(files, texts, strict=True) if "'dirasym[" in text]
    asked = [
        x for text in texts for x in re.findall(r"install\(['\"](\w+)['\"]\)|'\.\[(\w+)\]'", text)
    ]
    assert len(asked) > 5 and {name for pair in asked for name in pair if name} <= set(extras)


def test_every_experiment_is_listed():
    root = README.parent / "experiments"
    runnable = {
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in root.rglob("*.py")
        if re.search(r"^    (flags|command)\.main\(", path.read_text(), re.MULTILINE)
    }
    listed = set(re.findall(r"^\| `([a-z_.]+)` \|", README.read_text(), re.MULTILINE))
    assert runnable == listed


def test_every_target_of_make_is_explained():
    targets, parts = re.findall(  # and what they are made of
        r"^\.PHONY: (.*)$", (README.parent / "Makefile").read_text(), re.MULTILINE
    )
    assert parts.split() == ["site", "parity-suite"]
    assert "test-lowest" in targets.split()
    explained = set(re.findall(r"make ([a-z-]+)", README.read_text()))
    assert set(targets.split()) == explained
