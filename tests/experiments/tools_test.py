import json
import os
import pathlib
import subprocess
import sys

import commands
import jax
import numpy as np
import pytest

from dirasym import collecting, models, sharding, workdir
from dirasym.usage import UsageError
from experiments.benchmarks import alignment, common, cross_matrix
from experiments.tables import index
from experiments.tools import crash_test, jobs, queue, same_losses, scaling

ROOT = pathlib.Path(__file__).parents[2]

SMALL = dict(
    vocab_size=126_400, width=64, num_heads=4, num_kv_heads=2, mlp_width=96, max_len=128, remat=True
)


@pytest.fixture
def small_jobs(monkeypatch):
    """A job that works, one that fails, and one that takes too long."""
    small = "toy_reversal --preset=smoke --steps=4 --eval_every=2 --models=mdm"
    found = (
        queue.Job("works", small, 0.5),
        queue.Job("fails", f"{small} --width=7", 0.5),
        queue.Job("long", small, 100.0),
    )
    monkeypatch.setattr(queue, "JOBS", found)
    return found


@pytest.mark.slow
def test_the_queue_runs_what_fits_once_and_keeps_it_as_results(small_jobs, tmp_path, capfd):
    how = dict(minutes=5.0, output=str(tmp_path / "out"), workdirs=str(tmp_path / "runs"))
    with pytest.raises(UsageError, match="1 jobs failed: fails"):
        queue.work(queue.Config(**how))
    said = capfd.readouterr().out
    assert "works: done" in said and "fails: failed with 2" in said
    assert "long: takes 100 minutes" in said
    folder = tmp_path / "out" / "works"
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["model"] for line in lines] == ["mdm"] and (folder / "report.md").is_file()
    assert len(list((folder / "curves").glob("*.npz"))) == 1
    about = json.loads((folder / "about.json").read_text())
    assert set(about) >= set(index.NEEDED) and about["versions"]["jax"] == jax.__version__
    assert about["commands"]["results"].endswith("--eval_every=2 --models=mdm")
    queue.work(queue.Config(**how, jobs=("works", "long")))  # what is done does not run again
    assert "works" not in capfd.readouterr().out


def test_the_queue_leaves_out_curves_that_are_too_large(small_jobs, tmp_path, monkeypatch):
    work = tmp_path / "work"
    (work / "curves").mkdir(parents=True)
    (work / "config.json").write_text(json.dumps({"made_with": workdir.made_with()}))
    (work / "results.jsonl").write_text('{"seed": 0, "run_wall_time_sec": 2.0}\n')
    (work / "curves" / "run.npz").write_bytes(bytes(100))
    monkeypatch.setattr(queue, "LARGEST", 99)
    queue.keep(small_jobs[0], work, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert "Without curves" in about["notes"] and not (tmp_path / "out" / "curves").exists()
    assert about["sum_of_run_wall_time_sec"] == {"results": 2}


@pytest.mark.slow
@pytest.mark.parametrize("wanted", dict.fromkeys(queue.whole(job) for job in jobs.JOBS))
def test_every_job_of_the_queue_has_flags_that_its_experiment_takes(
    wanted, tmp_path, tiny_directory
):
    if wanted.startswith("benchmarks.facts"):
        pytest.importorskip("peft")
    if "--model_id=smollm2" in wanted or "/model " in wanted:
        directory = tiny_directory(tmp_path)
        wanted = wanted.replace("{workdirs}/smollm2_masked/model", str(directory))
        wanted = wanted.replace("=smollm2", f"={directory}").replace("=128", "=16")
        wanted = wanted.replace(" --data_path=data/reversal_curse", "")
    if not wanted.startswith("toy_reversal"):  # whose plan is quickly counted
        wanted = wanted.replace("paper", "smoke")
    queue.check(wanted)


def test_the_queue_says_what_a_job_needs_and_tries_the_others(monkeypatch, tmp_path, capsys):
    there = tmp_path / "runs" / "first"
    found = (
        queue.Job("done", "a", 1, leaves="nobody needs it"),
        queue.Job(
            "waits", "b --model_id={workdirs}/first", 1, needs=("{workdirs}/first", str(tmp_path))
        ),
        queue.Job("part_0", "c --preset=paper --shard=0/2", 2),
        queue.Job("part_1", "c --preset=paper --shard=1/2", 2),
    )
    monkeypatch.setattr(queue, "JOBS", found)
    tried = []
    plan = (
        "| run | GB | hours, at least |\n| --- | --- | --- |\n| x | 9.5 | 1 |\n| y | 12 | 1 |\nend"
    )

    def check(command):
        tried.append(" ".join(command[2:]))
        return plan if "--compile_for=here" in command else "| run |\n| --- |\n| x |"

    monkeypatch.setattr(queue.command, "check", check)
    (tmp_path / "out" / "done").mkdir(parents=True)
    (tmp_path / "out" / "done" / "about.json").write_text("{}")
    how = dict(output=str(tmp_path / "out"), workdirs=str(tmp_path / "runs"))
    queue.work(queue.Config(**how, check=True))
    rows = capsys.readouterr().out.splitlines()
    assert tried == ["experiments.c --preset=paper"]
    assert rows[0] == "| job | minutes |  | command |" and rows[2] == "| done | 1 | done | `a` |"
    assert rows[3] == f"| waits | 1 | needs {there} | `b --model_id={there}` |"
    queue.work(queue.Config(**how, minutes=0.5, jobs=("waits",)))
    assert "waits: takes 1 minutes" in capsys.readouterr().out
    queue.work(queue.Config(**how, jobs=("waits",)))
    assert capsys.readouterr().out == f"waits: needs {there}\n"
    there.mkdir(parents=True)
    queue.work(queue.Config(**how, check=True, memory_on="here"))
    rows = capsys.readouterr().out.splitlines()
    assert tried[1:] == [
        f"experiments.b --model_id={there} --compile_for=here",
        "experiments.c --preset=paper --compile_for=here",
    ]
    assert rows[0].endswith("| command | GB |") and rows[2].endswith("| `a` |  |")
    assert all(row.endswith("| 12 |") for row in rows[3:])


def test_jobs_that_are_refused_are_told_after_all_others(monkeypatch, tmp_path, capsys):
    found = queue.Job("first", "a --width=7", 1), queue.Job("then", "b", 1)
    monkeypatch.setattr(queue, "JOBS", found)

    def check(command):
        if "--width=7" in command:
            raise UsageError("--width=7 is odd")
        return ""

    monkeypatch.setattr(queue.command, "check", check)
    with pytest.raises(UsageError, match=r"^first: a --width=7: --width=7 is odd$"):
        queue.work(queue.Config(output=str(tmp_path), check=True))
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows == ["| first | 1 | refused | `a --width=7` |", "| then | 1 | left | `b` |"]


def test_a_job_whose_weights_are_gone_and_wanted_is_not_done(monkeypatch, tmp_path, capsys):
    weights = "{workdirs}/first/model"
    found = queue.Job("first", "a", 1, leaves=weights), queue.Job("then", "b", 1, needs=(weights,))
    monkeypatch.setattr(queue, "JOBS", found)
    monkeypatch.setattr(queue.command, "check", lambda command: "")
    (tmp_path / "out" / "first").mkdir(parents=True)
    (tmp_path / "out" / "first" / "about.json").write_text("{}")
    how = dict(output=str(tmp_path / "out"), workdirs=str(tmp_path / "work dirs"), check=True)

    def states(**more):
        queue.work(queue.Config(**how, **more))
        return [row.split(" | ")[2] for row in capsys.readouterr().out.splitlines()[2:]]

    assert states() == ["left", f"needs {tmp_path}/work dirs/first/model"]
    assert states(jobs=("first",)) == ["done"]
    (tmp_path / "work dirs" / "first" / "model").mkdir(parents=True)
    assert states() == ["done", "left"]


def test_jobs_have_names_of_their_own_and_end_within_eight_minutes():
    assert len({job.name for job in jobs.JOBS}) == len(jobs.JOBS)
    assert all(0 < job.minutes < 8 for job in jobs.JOBS)


def test_losses_alike_within_the_spread_of_seeds_are_told_from_others(tmp_path, capfd):
    steps = np.arange(6.0)
    for name, shift in (("first", 0.0), ("near", 0.25), ("far", 2.0)):
        (tmp_path / name / "curves").mkdir(parents=True)
        for seed in (0, 1):
            path = tmp_path / name / "curves" / f"K=5,seed={seed}.npz"
            np.savez(path, loss=steps + seed + shift * (-1) ** (steps > 3))
    first, near, far = (str(tmp_path / name) for name in ("first", "near", "far"))
    (line,) = same_losses.compare(same_losses.read(first, 5), same_losses.read(near, 5))
    assert line["at_one_seed"] == 0.25 and line["of_two_seeds"] == 1.0 and line["alike"]
    assert line["difference"] == [0.25 * (4 - 1) / 5] * 2 and line["steps"] == 5
    same_losses.work(same_losses.Config(first, near, 5))
    assert "| K=5 | 5 | 2 | 2.50e-01 | 1.00e+00 | 0.1500 ± 0.0000 | yes |" in capfd.readouterr().out
    with pytest.raises(UsageError, match="not alike within the spread of seeds: K=5"):
        same_losses.work(same_losses.Config(first, far, 5))


def test_losses_that_cannot_be_compared_are_refused(tmp_path):
    one = {"0": np.zeros(3), "1": np.zeros(3)}
    with pytest.raises(ValueError, match="has no curves"):
        same_losses.read(str(tmp_path), 5)
    path = tmp_path / "curves/K=5,seed=0.npz"
    path.parent.mkdir()
    np.savez(path, accuracy=np.zeros(3))
    for content in (path.read_bytes(), path.read_bytes()[:-20], b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"seed=0\.npz holds no losses"):
            same_losses.read(str(tmp_path), 5)
    with pytest.raises(ValueError, match="the runs differ"):
        same_losses.compare({"K=5": one}, {"K=1": one})
    with pytest.raises(ValueError, match="1 seeds in common"):
        same_losses.compare({"K=5": one}, {"K=5": {"1": np.zeros(3)}})
    with pytest.raises(ValueError, match="3 steps, and 2"):
        same_losses.compare({"K=5": one}, {"K=5": {seed: x[:2] for seed, x in one.items()}})


@pytest.mark.slow
@pytest.mark.parametrize("preset", [models.llama, models.llada])
def test_flops_are_linear_in_layers_and_near_those_of_the_matrix_products(preset):
    mesh = sharding.make_mesh(1, 1)
    flops = [scaling.step_flops(preset(num_layers=n, **SMALL), mesh) for n in (1, 2, 4)]
    assert flops[2] == pytest.approx(flops[0] + 3 * (flops[1] - flops[0]), rel=1e-3)
    tokens = scaling.BATCH_PER_DATA * scaling.LENGTH
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    # Forward, backward and again forward; the head not again.
    assert flops[0] > 4 * tokens * SMALL["vocab_size"] * 64 * 0.99 - 6 * tokens * layer
    assert flops[1] - flops[0] > 5 * tokens * layer


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("tools.redraw", "--nosuch=1"), "nosuch"),
        (("tools.redraw", "--folder=/nonexistent"), "/nonexistent is no directory"),
        (("tools.scaling", "positional"), "unexpected argument 'positional'"),
        (("tools.scaling", "--devices=-1"), "devices"),
        (("tools.scaling", "--devices=3"), "--devices=3 is not among [1, 8, 64]"),
        (("tools.scaling", "--output=/nonexistent/x.md"), "cannot be written"),
        (("tools.scaling", "--workdir=x"), "--workdir has no effect here"),
        (("tools.submit", "--shards=2"), "the experiment's name is missing"),
        (("tools.collect", "--compare", "a"), "expected two work directories, got 1"),
        (("tools.collect",), "expected work directories, got 0"),
        (("tools.queue", "--jobs=nosuch"), "--jobs: 'nosuch' is not among"),
        (("tools.same_losses", "--first=/no", "--second=/no"), "/no has no curves"),
        (("tools.same_losses", "--first=/no"), "--first or --second is missing"),
        (("tools.queue", "--minutes=-1"), "--minutes=-1.0 is not between 0 and inf"),
        (("tools.queue", "--memory_on=here"), "--memory_on goes with --check"),
        (("toy_reversal", "--compile_for=here"), "--compile_for goes with --dry_run"),
        (("toy_reversal", "--dry_run", "--compile_for=/no"), "compile_for=/no: "),
        (("toy_reversal", "--dry_run", "--compile_for="), "compile_for=: "),
        (("toy_reversal", "--dry_run", "--compile_for=README.md"), "it describes no GPU"),
        (
            ("toy_reversal", "--dry_run", "--compile_for=here", "--shard=0/2"),
            "is of one device and all runs",
        ),
        (("tools.submit", "nosuch", "--", "--preset=quick"), "nosuch: there is no such"),
        (("benchmarks.alignment", "--width=7", "--model=transformer"), "--width=7: head_dim"),
        (("benchmarks.steps", "--lengths=1"), "--lengths=1 is not between 2 and 400"),
    ],
)
def test_a_bad_flag_ends_in_one_line(command, words):
    result = commands.run([f"experiments.{command[0]}", *command[1:]])
    assert result.returncode == 2, result.stderr
    assert words in result.stderr and result.stderr.count("\n") == 1 and result.stdout == ""


@pytest.mark.slow
def test_shards_sent_by_submit_do_the_whole(tmp_path):
    pytest.importorskip("submitit")
    flags = ["--preset=smoke", "--models=mdm", "--lengths=3", "--width=8", "--steps=4"]
    flags += ["--eval_every=2", "--seeds=0,1", f"--workdir={tmp_path / 'runs'}"]
    submit = ["experiments.tools.submit", "toy_reversal", "--shards=2", "--wait"]
    local = ["--executor=local", f"--logs={tmp_path / 'logs'}", "--"]
    bad = commands.run([*submit, *local, *flags, "--width=7"])
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1), bad.stderr
    assert not (tmp_path / "runs").exists()
    done = commands.run([*submit, *local, *flags])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2
    lines = collecting.collect([tmp_path / "runs"])
    assert sorted(line["seed"] for line in lines) == [0, 1]
    assert (tmp_path / "runs" / "report.md").exists()


def test_kills_are_counted_by_kind_and_every_end_is_compared(tmp_path, monkeypatch):
    """Three kills and a full disk: the second life outruns its kill, and counts as an end."""
    lives = [*((0, "changes: 7"),) * 2, (-9, ""), (0, ""), *((-9, ""),) * 2, (1, "No space left")]
    lives, told = iter([*lives, (0, "")]), []

    def live(program, path, at_change=0, how="killed", timeout=None):
        kind = "moment" if timeout is not None else how
        told.append((kind, at_change))
        name = "checkpoints/run/3" if len(told) > 5 else "elsewhere"  # at the third kill alone
        (path / name).mkdir(parents=True, exist_ok=True)
        (path / name / "record.json").write_text("{}")
        return next(lives)

    monkeypatch.setattr(crash_test, "_live", live)
    monkeypatch.setattr(crash_test, "outcome", lambda program, path: {"loss": ends[-1]})
    ends, program = [1.0], crash_test.Program(None, None, {})
    line, _ = crash_test.kill_and_compare(program, tmp_path, 3, full_disks=1, seed=0)
    assert line == dict(kills=3, at_changes=2, with_checkpoint=1, full_disks=1, finished=2)
    kinds = [kind for kind, _ in told]
    assert kinds[2:] == ["killed", "moment", "moment", "killed", "full", "killed"]
    changes = [change for kind, change in told[2:] if kind != "moment"]
    assert all(1 <= change <= 7 for change in changes[:-1]) and changes[-1] == 0
    lives = iter([(0, "changes: 7")] * 3)
    monkeypatch.setattr(crash_test, "outcome", lambda *_: {"loss": ends.pop()})
    ends.append(2.0)
    with pytest.raises(AssertionError):
        crash_test.kill_and_compare(program, tmp_path, 0, seed=0)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(tmp_path):
    program = crash_test.PROGRAMS["toy_reversal"]
    line, _ = crash_test.kill_and_compare(program, tmp_path, kills=8, seed=0)
    assert line["kills"] == 8 and line["at_changes"] == 4
    assert line["finished"] >= 1 and line["with_checkpoint"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(crash_test.PROGRAMS) - {"toy_reversal"}))
def test_killed_runs_of_other_experiments_do_too(name, tmp_path):
    # Once killed at a change and once without room; `crash_test` itself does it a hundred times.
    program = crash_test.PROGRAMS[name]
    line, _ = crash_test.kill_and_compare(program, tmp_path, kills=1, full_disks=1, seed=0)
    assert line["at_changes"] == line["full_disks"] == 1 and line["finished"] >= 1


def test_every_experiment_can_be_killed():
    pages = {
        path.stem
        for path in (ROOT / "experiments").glob("*.py")
        if "flags.main(" in path.read_text(encoding="utf-8")
    }
    assert pages == set(crash_test.PROGRAMS) and "world_a_bits" in pages


@pytest.mark.parametrize("name", crash_test.PROGRAMS)
def test_programs_are_what_their_command_lines_say(name, tmp_path):
    program = crash_test.PROGRAMS[name]
    config = program.config()  # its values are checked
    given = dict(word[2:].split("=") for word in program.arguments(tmp_path) if "=" in word)
    for key in program.changes:
        value = getattr(config, key)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert given[key] == text


def test_dying_counts_changes_of_its_directory_and_dies_before_the_one_asked_for(tmp_path):
    (tmp_path / "in").mkdir()
    script = tmp_path / "writes.py"
    script.write_text(
        "import pathlib\n"
        "for name in ('in/a', 'b', 'in/c'):\n"
        f"    pathlib.Path({str(tmp_path)!r}, name).write_text(name)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def run(number, how="killed"):
        command = [sys.executable, "-m", "experiments.tools.dying", str(tmp_path / "in"), number]
        return subprocess.run(
            [*command, how, "writes"], env=environment, cwd=ROOT, capture_output=True, text=True
        )

    full = run("1", "full")
    assert "OSError: [Errno 28] No space left on device" in full.stderr
    assert not (tmp_path / "b").exists() and not (tmp_path / "in/a").exists()
    killed = run("2")
    assert killed.returncode == -9
    assert (tmp_path / "b").exists() and not (tmp_path / "in/c").exists()
    lived = run("0")
    assert lived.returncode == 0 and lived.stderr.splitlines()[-1] == "changes: 2"


# ---------------------------------------------------------------------------------------
# Benchmarks report what was timed.


def test_the_fastest_call_of_each_contender_counts(monkeypatch):
    # Start and end, a and b: first calls, which do not count where there are rounds, then two.
    clock = iter([0, 1, 3, 3.5, 10, 15, 20, 21, 30, 32, 40, 47])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert common.alternate(contenders, rounds=2) == {"a": 2, "b": 1}
    assert calls == ["a", "b"] * 3
    clock = iter([0, 1, 3, 3.5])
    assert common.alternate(contenders, rounds=0) == {"a": 1, "b": 0.5}


def test_ratios_are_to_the_faster_pytorch():
    seconds = {"JAX": 0.2, "PyTorch eager": 0.6, "PyTorch compiled": 0.5}
    rows = common.against_torch({"step": seconds}, steps=10).splitlines()[2:]
    assert rows[0] == "| step | JAX | 20.0 | 2.50 |"
    assert rows[1] == "| step | PyTorch eager | 60.0 | 0.83 |"
    assert rows[2] == "| step | PyTorch compiled | 50.0 | 1.00 |"


def test_ways_are_compared_with_the_faster_that_forms_gradients():
    seconds = {"vmap(grad)": 0.4, "lax.map over examples": 0.3, "factored, chunks of 8": 0.1}
    megabytes = dict(zip(seconds, (8.0, 1.0, 2.0), strict=True))
    rows = alignment.table(seconds, megabytes).splitlines()[2:]
    assert rows[0] == "| vmap(grad) | 400 | 0.75 | 8 |"
    assert rows[2] == "| factored, chunks of 8 | 100 | 3.00 | 2 |"


def test_ways_to_the_cross_matrix_are_compared_with_kronfluence_where_it_is():
    seconds = {"plain: chunks of 8, a product a leaf": 0.6, "ours": 0.2}
    assert cross_matrix.table(seconds).splitlines()[-1] == "| ours | 0.20 | 3.00 |"
    with_torch = cross_matrix.table(seconds | {"kronfluence": 0.5}).splitlines()
    assert with_torch[0] == "| way | seconds | times kronfluence |"
    assert with_torch[3] == "| ours | 0.20 | 2.50 |"


@pytest.mark.slow
def test_all_ways_to_the_cross_matrix_agree(tmp_path, capsys, monkeypatch):
    from dirasym.workdir import WorkDir

    monkeypatch.setattr(cross_matrix.importlib.util, "find_spec", lambda name: None)
    cross_matrix.time_all(WorkDir(tmp_path), cross_matrix.Config(**cross_matrix.SMALL), [])
    printed = capsys.readouterr().out
    difference = float(printed.split("inner product ")[1].split()[0])
    assert 0 < difference < 1e-5


@pytest.mark.slow
def test_all_ways_of_the_alignment_benchmark_agree(tmp_path, capsys):
    from dirasym.workdir import WorkDir

    config = alignment.Config(width=16, layers=1, examples=4, rounds=1)
    alignment.time_all(WorkDir(tmp_path), config, [])
    printed = capsys.readouterr().out
    difference = float(printed.split("largest difference of a cosine ")[1].split()[0][:-1])
    assert 0 < difference < 1e-5
