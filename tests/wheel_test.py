"""What is built is what a user gets: the wheel runs README's code, the sdist has the tests."""

import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PARTS = "dirasym", "experiments", "tests", "docs"
FILES = "README.md", "LICENSE", "pyproject.toml", "setup.py", "MANIFEST.in", "CHANGELOG.md"


def _run(*words, cwd):
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and an sdist, of a copy of the tree: building leaves files behind."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.pyc", ".pytest_cache")
    for name in PARTS:
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in FILES:
        shutil.copyfile(ROOT / name, source / name)
    make = "import sys; from setuptools import build_meta as b; b.build_{}(sys.argv[1])"
    for kind in ("wheel", "sdist"):
        _run(sys.executable, "-c", make.format(kind), str(folder), cwd=source)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
def test_readmes_code_runs_from_the_wheel(built, tiny_directory, tmp_path):
    """In a virtual environment that has dirasym by its wheel, and what it needs from this one."""
    wheel, _ = built
    place = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", str(place), cwd=tmp_path)
    python = place / "bin" / "python"
    install = ("-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel))
    _run(sys.executable, *install, cwd=tmp_path)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = pathlib.Path(_run(str(python), "-c", where, cwd=tmp_path).strip())
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    tiny_directory(tmp_path).rename(tmp_path / "smollm2")
    (tmp_path / "capitals.csv").write_text("country,capital\nFrance,Paris\nSpain,Madrid\n")
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found = "import dirasym\nprint(dirasym.__file__, dirasym.__version__)\n"
    (tmp_path / "readme.py").write_text("\n".join([*code, found]))
    said = _run(str(python), "readme.py", cwd=tmp_path)
    assert said.splitlines()[-1].startswith(str(packages)) and said.rstrip().endswith("0.2.0")
    assert "| accuracy % | 0.0 (0.0, " in said and (tmp_path / "reading.json").exists()
    assert not (packages / "experiments").exists() and not (packages / "tests").exists()
    assert (packages / "dirasym" / "py.typed").exists()


@pytest.mark.slow
def test_the_sdist_has_tests_and_their_fixtures(built):
    _, sdist = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"tests/wheel_test.py", "tests/conftest.py", "experiments/facts.py", "CHANGELOG.md"}
    assert needed <= names and "docs/results/world_a/results.jsonl" in names
    fixtures = {f"tests/fixtures/{path.name}" for path in (ROOT / "tests" / "fixtures").iterdir()}
    assert {name for name in fixtures if "__pycache__" not in name} <= names
    assert not [name for name in names if name.endswith((".pyc", ".pdf"))]
