import os
import pathlib
import socket
import types

import jax
import pytest

from dirasym import devices

ROOT = pathlib.Path(__file__).parents[1]
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


@pytest.fixture
def started(monkeypatch):
    """Calls of `jax.distributed.initialize`, none of which is made; settings come back."""
    calls = []
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    monkeypatch.setattr(jax.config, "update", lambda *given: None)
    return calls


def test_xla_flags_are_kept_and_may_stand_in_a_file(started, monkeypatch, tmp_path):
    (tmp_path / "flags.txt").write_text("--xla_a=1\n--xla_b=2\n")
    for given, kept in (
        ("", ""),
        (" --xla_a=1", "--xla_a=1"),
        (str(tmp_path / "flags.txt"), "--xla_a=1 --xla_b=2"),
    ):
        monkeypatch.setenv("XLA_FLAGS", given)
        devices.start()
        assert os.environ["XLA_FLAGS"] == f"{kept} {DETERMINISTIC}"
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "other.txt"))
    with pytest.raises(ValueError, match=r"other\.txt, that cannot be read"):
        devices.start()


def test_a_coordinator_that_is_not_there_is_not_waited_for_without_end(started, free_port):
    for where, process_id, words in (
        (f"localhost:{free_port}", 1, "refused"),
        ("no.such.host.invalid:1234", 1, "no.such.host.invalid:1234: "),
        ("localhost:99999", 1, "is not HOST:PORT"),
    ):
        with pytest.raises(ValueError, match=words):
            devices.start(where, 2, process_id, patience=0.1)
    assert not started
    with socket.create_server(("localhost", free_port)):
        devices.start(f"localhost:{free_port}", 2, 1, patience=0.1)
        with pytest.raises(ValueError, match="in use"):
            devices.start(f"localhost:{free_port}", 2, 0)
    devices.start(f"localhost:{free_port}", 2, 0)
    assert started == [(f"localhost:{free_port}", 2, process_id) for process_id in (1, 0)]


def test_memory_is_that_of_a_machine():
    there = devices.memory()
    assert there is None or 2**28 < there < 2**50


def test_a_mesh_is_of_shares_of_a_batch_by_shares_of_weights(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: list("abcdef"))
    monkeypatch.setattr(devices.sharding, "make_mesh", lambda *given: given)
    assert devices.mesh() is None
    assert devices.mesh(1, backend="pmap") == (1, 1, ["a"])
    assert devices.mesh(0, 2) == (3, 2, list("abcdef"))
    assert devices.mesh(4, 4) == (1, 4, list("abcd"))
    with pytest.raises(ValueError, match="num_devices=7, but 6 are available"):
        devices.mesh(7)
    with pytest.raises(ValueError, match="model_devices=2 needs num_devices"):
        devices.mesh(4, 2, "pmap")


def test_memory_is_that_of_all_devices(monkeypatch):
    stats = [{"bytes_limit": 5}, {"bytes_limit": 7}, None]
    there = [types.SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: there)
    assert devices.memory() == 12


def test_a_gpu_that_a_file_describes(monkeypatch, tmp_path):
    """Whatever compilers are here."""
    asked = []
    found = types.SimpleNamespace(devices=["gpu"])

    def describe(name, platform, **how):
        asked.append((platform, how))
        return found

    monkeypatch.setattr(devices.topologies, "get_topology_desc", describe)
    file = ROOT / "experiments/tools/h100.txtpb"
    assert devices.described(str(file)) == "gpu" and devices.described("here") == jax.devices()[0]
    text = file.read_text(encoding="utf-8")
    assert asked == [("cuda", {"target_config": text, "topology": "1x1x1"})]

    def refuse(error):
        def refused(*_, **how):
            raise error

        monkeypatch.setattr(devices.topologies, "get_topology_desc", refused)
        return devices.described(str(file))

    with pytest.raises(ValueError, match="needs a compiler for GPUs: pip install"):
        refuse(NotImplementedError("topology not implemented for cuda"))
    with pytest.raises(ValueError, match="Failed to parse"):
        refuse(RuntimeError("Failed to parse"))
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="it describes no GPU"):
        devices.described(str(tmp_path / "empty"))
