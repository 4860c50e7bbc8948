"""docs/trust.md: what reading files of others can do. Each of its lines names a test."""

import ast
import importlib
import os
import pathlib
import pickle
import re
import shutil
import struct
import zipfile

import jax
import numpy as np
import pytest

from dirasym import devices, models
from dirasym.workdir import WorkDir, WorkDirError

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "docs/trust.md").read_text(encoding="utf-8")
NOT_OURS = 2  # lines about other packages and about what the user types


class _Known:
    identity, name = {"name": "a"}, "name=a"


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.mkdir, (self.path,)


def test_every_line_names_a_test_that_is_there():
    lines = re.findall(r"^- .*?(?=^- |^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    named = [re.findall(r"<!-- (\S+)::(\w+)(?:\[(\w+)\])? -->", line) for line in lines]
    assert len(lines) > 15 and sum(not names for names in named) == NOT_OURS
    for file, function, script in (name for names in named for name in names):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}, function
        assert not script or (ROOT / f"tests/faults/{script}.py").exists()


def test_curves_that_hold_objects_are_not_read(tmp_path):
    workdir = WorkDir(tmp_path / "run")
    path = workdir.curves_path(_Known, 0)
    path.parent.mkdir()
    bomb = np.array([_Bomb(tmp_path / "exploded")], object)
    np.savez(path, loss=bomb)
    with pytest.raises(WorkDirError, match="missing or damaged"):
        workdir.curves(_Known, 0)
    path.write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    with pytest.raises(WorkDirError, match="missing or damaged"):
        workdir.curves(_Known, 0)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("loss.npy", pickle.dumps(_Bomb(tmp_path / "exploded")))
    with pytest.raises(WorkDirError, match="missing or damaged"):
        workdir.curves(_Known, 0)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(_Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()  # it does explode where it is read as code


def test_compiled_programs_stay_out_of_work_directories(monkeypatch, tmp_path):
    settings = {}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", "")
    for name, value in (("JAX_COMPILATION_CACHE_DIR", ""), ("XDG_CACHE_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    devices.start()
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "dirasym/jax")
    settings.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    devices.start()
    assert "jax_compilation_cache_dir" not in settings  # JAX reads the variable itself


def test_a_model_directory_with_pickles_and_code_is_refused(tmp_path):
    directory = shutil.copytree(ROOT / "tests/fixtures/llama", tmp_path / "llama")
    (directory / "model.safetensors").unlink()
    bomb = pickle.dumps(_Bomb(tmp_path / "exploded"))
    (directory / "pytorch_model.bin").write_bytes(bomb)
    (directory / "modeling_llama.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        models.load_pretrained(directory)
    (directory / "model.safetensors").write_bytes(bomb)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        models.load_pretrained(directory)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]


def test_pipes_among_a_models_files_are_not_waited_for(tmp_path):
    directory = tmp_path / "llama"
    shutil.copytree(pathlib.Path(__file__).parent / "fixtures/llama", directory)
    for path in directory.glob("*.safetensors"):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(ValueError, match=r"safetensors cannot be read: .*Is no regular file"):
        models.load_pretrained(directory)
    pytest.importorskip("gguf")
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"gguf cannot be read: .*Is no regular file"):
        importlib.import_module("dirasym.models.gguf").load_gguf(tmp_path / "model.gguf")


def test_pipes_in_a_work_directory_are_not_waited_for(tmp_path):
    run, workdir = _Known(), WorkDir(tmp_path)
    workdir.curves_path(run, 0).parent.mkdir()
    os.mkfifo(workdir.curves_path(run, 0))
    with pytest.raises(WorkDirError, match="is missing or damaged"):
        workdir.curves(run, 0)


def test_a_gguf_file_that_promises_more_than_it_has_is_refused(tmp_path):
    gguf = pytest.importorskip("dirasym.models.gguf")
    pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    for tensors, fields in ((2**60, 0), (0, 2**60), (2**62, 2**62)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + bytes(64))
        with pytest.raises(ValueError, match=r"model\.gguf"):
            gguf.load_gguf(path)


def test_no_port_is_opened_without_a_coordinator(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: called.append(given))
    devices.start()
    assert not called
