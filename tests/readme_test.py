"""The README's code runs as it stands there."""

import pathlib
import re

import numpy as np

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_five_lines(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    namespace = {}
    exec(code, namespace)
    result = namespace["result"]
    assert set(result.cosine) == {"layers_0", "layers_1", "layers_3", "total"}
    assert result.cosine["total"].shape == (16,)
    assert all(np.isfinite(x).all() for x in result.norm_fwd.values())
    assert "'total': " in capsys.readouterr().out


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
    (targets,) = re.findall(
        r"^\.PHONY: (.*)$", (README.parent / "Makefile").read_text(), re.MULTILINE
    )
    assert "test-lowest" in targets.split()
    explained = set(re.findall(r"make ([a-z-]+)", README.read_text()))
    assert set(targets.split()) == explained
