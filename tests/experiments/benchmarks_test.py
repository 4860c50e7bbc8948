"""Tables of the benchmarks hold what was timed and the memory that was held, in their units."""

import types

from experiments.benchmarks import common, facts, world_a


def _printed(monkeypatch, page):
    told = []
    spy = lambda path, text, figures, *, printed: told.append(printed)  # noqa: E731
    monkeypatch.setattr(page.report, "write", spy)
    return told


def test_memory_and_milliseconds_of_facts_are_those_of_their_contender(monkeypatch, tmp_path):
    seconds = {"LoRA step": {"JAX": 0.6, "PyTorch": 0.9}}
    seconds["greedy decoding"] = {"JAX": 2.0, "PyTorch": 0.5}
    cases = {case: dict.fromkeys(of, lambda config: None) for case, of in seconds.items()}
    peaks = iter(range(10, 70, 10))
    monkeypatch.setattr(facts, "CASES", cases)
    monkeypatch.setattr(facts, "_peak_in_its_own_process", lambda *asked: float(next(peaks)))
    timed = iter(seconds.values())
    monkeypatch.setattr(common, "alternate", lambda contenders, rounds: next(timed))
    told = _printed(monkeypatch, facts)
    facts.measure(types.SimpleNamespace(path=tmp_path), facts.Config(steps=3), [])
    header, _, *rows = told[0].splitlines()
    assert header == "| case | contender | ms | times PyTorch | peak memory, MiB |"
    assert rows == [
        "| LoRA step | JAX | 200 | 1.50 | 20 |",
        "| LoRA step | PyTorch | 300 | 1.00 | 30 |",
        "| LoRA step | JAX, compiling |  |  | 10 |",
        "| greedy decoding | JAX | 2000 | 0.25 | 50 |",
        "| greedy decoding | PyTorch | 500 | 1.00 | 60 |",
        "| greedy decoding | JAX, compiling |  |  | 40 |",
    ]


def test_resident_memory_is_printed_in_mebibytes_after_two_calls(monkeypatch, capsys):
    calls = []
    make = lambda config: lambda: calls.append(config.steps)  # noqa: E731
    monkeypatch.setattr(facts, "CASES", {"case": {"PyTorch": make}})
    used = types.SimpleNamespace(ru_maxrss=3 * 1024)  # Linux counts in KiB
    monkeypatch.setattr(common.resource, "getrusage", lambda who: used)
    monkeypatch.setattr(common.jax, "default_backend", lambda: "cpu")
    facts.print_peak("case", "PyTorch", '{"steps": 7}')
    assert calls == [7, 7] and float(capsys.readouterr().out) == 3


def test_sequences_a_second_are_those_of_the_fastest_call(monkeypatch):
    monkeypatch.setattr(world_a, "gpt2_steps", lambda config: "gpt2")
    monkeypatch.setattr(world_a, "mlp_epochs", lambda config: "mlp")
    seconds = {"gpt2": {"JAX": 0.5, "PyTorch": 2.0}, "mlp": {"JAX": 4.0, "PyTorch": 1.0}}
    monkeypatch.setattr(common, "alternate", lambda contenders, rounds: seconds[contenders])
    told = _printed(monkeypatch, world_a)
    config = world_a.Config(steps=3, batch_size=10, mlp_pairs=203)
    world_a.run(types.SimpleNamespace(path=None), config, [])
    rows = [row.split(" | ")[1:] for row in told[0].splitlines()[2:]]
    assert rows == [
        ["JAX", "60", "0.500", "1.00 |"],
        ["PyTorch", "15", "2.000", "4.00 |"],
        ["JAX", "50", "4.000", "1.00 |"],  # of 200 pairs: five share a target
        ["PyTorch", "200", "1.000", "0.25 |"],
    ]
    assert told[0].startswith("| case | contender | sequences a second | seconds |")
