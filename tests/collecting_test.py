"""Work directories joined: what differs is a column, seeds become an interval, damage is named."""

import json
import pathlib
import shutil

import commands
import pytest
import scipy.stats

from dirasym import collecting
from dirasym.pieces import Piece, compute
from dirasym.workdir import WorkDir, WorkDirError


def _fill(path, config, values, *, seeds=(0, 1)):
    pieces = [
        Piece(
            {"model": model},
            lambda model=model, seed=seed: (
                {"loss": values[model] + seed, "learned_at": 100 * seed, "steps": 3},
                {},
            ),
            seed=seed,
            has_curves=False,
        )
        for model in values
        for seed in seeds
    ]
    compute(pieces, WorkDir(path, {"seeds": list(seeds), **config}))


@pytest.fixture
def three(tmp_path):
    _fill(tmp_path / "a", {"width": 8, "lr": 0.1}, {"mdm": 1.0, "arm": 5.0})
    _fill(tmp_path / "b", {"width": 8, "lr": 0.1}, {"mdm": 1.0, "arm": 5.0}, seeds=(4,))
    _fill(tmp_path / "c", {"width": 16, "lr": 0.1}, {"mdm": 2.0})
    return [tmp_path / name for name in "abc"]


def test_flags_that_differ_are_columns_and_seeds_of_equal_flags_go_together(three):
    lines = collecting.collect(three)
    assert len(lines) == 8
    assert {(line["width"], line["model"]) for line in lines} == {
        (8, "mdm"),
        (8, "arm"),
        (16, "mdm"),
    }
    assert all("lr" not in line and "seeds" not in line for line in lines)
    merged = {(line["width"], line["model"]): line for line in collecting.over_seeds(lines)}
    assert [merged[key]["seeds"] for key in ((8, "mdm"), (8, "arm"), (16, "mdm"))] == [3, 3, 2]
    mean, half = merged[8, "arm"]["loss"]
    values = [5.0, 6.0, 9.0]
    low, high = scipy.stats.t.interval(0.95, 2, sum(values) / 3, scipy.stats.sem(values))
    assert mean == pytest.approx(20 / 3) and half == pytest.approx((high - low) / 2)
    assert merged[8, "arm"]["learned_at"].mean == pytest.approx(500 / 3)  # a count, not a flag
    assert merged[8, "arm"]["steps"] == 3 and "seed" not in merged[8, "arm"]


def test_lines_of_another_configuration_in_the_same_file_are_not_taken(three):
    path = three[0] / "results.jsonl"
    path.write_text(path.read_text() + json.dumps({"exp_id": "another", "run": "x"}) + "\n")
    assert len(collecting.collect(three[:1])) == 4


def test_differences_name_what_differs_of_runs_that_both_have(three):
    found = collecting.differences(*(collecting.collect([path]) for path in (three[0], three[2])))
    assert found == [
        {"run": "model=mdm", "seed": 0, "loss": (1.0, 2.0)},
        {"run": "model=mdm", "seed": 1, "loss": (2.0, 3.0)},
    ]


def test_a_directory_counts_once_however_it_is_given(three, tmp_path):
    copy = shutil.copytree(three[0], tmp_path / "copy")
    (tmp_path / "link").symlink_to(three[0])
    once = collecting.collect([three[0]])
    for other in (three[0], tmp_path / "link", tmp_path / "b/../a"):
        assert collecting.collect([three[0], other]) == once
    alone = collecting.over_seeds(once)
    assert collecting.over_seeds(collecting.collect([three[0], copy])) == alone
    lines = collecting.collect([three[0], copy])
    changed = [{**line, "loss": line["loss"] + (line["workdir"] == str(copy))} for line in lines]
    with pytest.raises(
        WorkDirError, match=r"seed 0: .*/a and .*/copy differ in loss, and are no two"
    ):
        collecting.over_seeds(changed)
    assert len(collecting.differences(changed[:4], changed[4:])) == 4
    # What has no seed is one line too, however often it is copied; what differs is another.
    lines = [
        {"workdir": name, "run": "x", "square": 4, "seconds": n} for n, name in enumerate("ab")
    ]
    (merged,) = collecting.over_seeds(lines)
    assert (merged["square"], merged["seeds"]) == (4, 1)


@pytest.mark.parametrize("text", ["[]", "{", '{"config": 3, "jax": {}}', "null"])
def test_a_damaged_configuration_is_named(three, text):
    (three[1] / "config.json").write_text(text)
    with pytest.raises(WorkDirError, match="b is damaged"):
        collecting.collect(three)


def _tool(*flags):
    return commands.run(["experiments.tools.collect", *flags])


def test_the_tool_prints_the_table_and_refuses_in_one_line(three, tmp_path):
    done = _tool("--format=csv", "--columns=model,width,seeds,loss", *three)
    assert done.stdout.split("\n")[0].strip() == "model,width,seeds,loss", done.stderr
    assert "mdm,16,2,2.5 ± 6.4" in done.stdout
    bad = _tool(tmp_path)
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1) and "no work directory" in bad.stderr


def test_a_comparison_names_the_flags_that_differ_too(three):
    done = _tool("--compare", three[0], three[2], "--format=csv")
    header, flags, *runs = [line.split(",") for line in done.stdout.splitlines()]
    assert header == ["run", "width", "seed", "loss"], done.stderr
    assert flags == ["(flags)", "8 → 16", "", ""] and len(runs) == 2
    assert runs[0] == ["model=mdm", "", "0", "1 → 2"]
    assert collecting.flags_that_differ(three) == {
        "seeds": ([0, 1], [4], [0, 1]),
        "width": (8, 8, 16),
    }


def test_a_comparison_says_what_it_comes_to(three, tmp_path):
    """Empty cells alone do not say that nothing differs, nor how much was not compared."""
    done = _tool("--compare", three[0], three[2])
    assert done.stdout.endswith(
        "flags differ; of the lines in both, 2 of 2 differ, times aside; 2 are in one alone\n"
    ), done.stderr
    _fill(tmp_path / "again", {"width": 8, "lr": 0.1}, {"mdm": 1.0, "arm": 5.0})
    done = _tool("--compare", three[0], tmp_path / "again")
    assert done.stdout.endswith(
        "flags are equal; of the lines in both, 0 of 4 differ, times aside; 0 are in one alone\n"
    ), done.stderr


def test_an_interval_has_the_level_that_is_asked_for():
    lines = [{"run": "a", "seed": seed, "loss": float(seed)} for seed in (0, 2)]
    (half,) = collecting.over_seeds(lines, level=0.5)
    assert half["loss"] == (1.0, pytest.approx(1.0))  # Student's t of 1 degree: 1 at 50 %


def test_what_a_line_says_itself_is_not_told_by_the_flags(tmp_path):
    for name, steps in (("a", 7), ("b", 9)):
        _fill(tmp_path / name, {"steps": steps}, {"mdm": 1.0}, seeds=(0,))
    assert [line["steps"] for line in collecting.collect([tmp_path / n for n in "ab"])] == [3, 3]


def test_what_one_line_alone_says_differs():
    one, other = [{"run": "a", "seed": 0, "x": 1}], [{"run": "a", "seed": 0, "y": 2}]
    (found,) = collecting.differences(one, other)
    assert found == {"run": "a", "seed": 0, "x": (1, None), "y": (None, 2)}


@pytest.mark.parametrize("ask", [collecting.collect, collecting.flags_that_differ])
@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("runs/a", "paths must be a list of work directories, got 'runs/a'"),
        (pathlib.Path("runs/a"), "paths must be a list of work directories, got "),
        (3, "paths must be a list of work directories, got 3"),
        ([], "paths is empty: give at least one of work directories"),
        ([3], "paths must be a path, got 3"),
    ],
)
def test_what_is_no_list_of_paths_is_refused(ask, paths, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ask(paths)


def test_an_interval_shows_two_digits_of_its_half_width(tmp_path):
    values = {"small": 1.77e-5, "large": 1234.0, "even": 4.01}
    pieces = [
        Piece(
            {"model": "mdm"},
            lambda sign=sign: (
                {
                    **{name: x * (1 + 0.01 * sign) for name, x in values.items()},
                    "seconds": 3.0,
                },
                {},
            ),
            seed=seed,
            has_curves=False,
        )
        for seed, sign in enumerate((-1, 0, 1))
    ]
    compute(pieces, tmp_path)
    done = _tool("--format=csv", tmp_path)
    header, line = (row.split(",") for row in done.stdout.splitlines())
    # Student's t of 2 degrees, 4.303, times 0.01 / √3.
    assert dict(zip(header, line, strict=True)) == {
        "model": "mdm", "small": "0.00001770 ± 0.00000044", "large": "1234 ± 31",
        "even": "4.01 ± 0.10", "seeds": "3",
        "run": "model=mdm",
    }  # fmt: skip
    done = _tool("--format=csv", "--columns=seconds", tmp_path)
    assert done.stdout.split() == ["seconds", "3"]


def _read_forward(path, width=8, **values):
    """A study whose results have names that are flags of another one."""
    piece = Piece({"model": "mlp"}, lambda: (values, {}), seed=0, has_curves=False)
    compute([piece], WorkDir(path, {"experiment": "study", "width": width}))


def test_a_flag_that_is_named_as_a_result_has_a_column_of_its_own(tmp_path):
    _read_forward(tmp_path / "study", forward=0.75, reverse=0.5)
    for name, wording in (("m1", "{a} has {b}"), ("m2", "{a} is {b}")):
        piece = Piece({"model": "gpt2"}, lambda: ({"kind": "causal"}, {}), has_curves=False)
        config = {"experiment": "measure", "forward": wording, "kind": "auto", "model": name}
        compute([piece], WorkDir(tmp_path / name, config))
    m1, m2, study = collecting.collect([tmp_path / name for name in ("m1", "m2", "study")])
    assert (m1["--forward"], m2["--forward"]) == ("{a} has {b}", "{a} is {b}")
    assert "forward" not in m1 and study["forward"] == 0.75 and study["--forward"] is None
    assert m1["kind"] == "causal" and m1["model"] == "gpt2" and "--model" not in m1
    compared = _tool("--compare", tmp_path / "m1", tmp_path / "study", "--format=csv").stdout
    assert "--forward" in compared.splitlines()[0].split(",")


def test_a_flag_that_only_some_have_is_a_column_where_it_differs_among_them(tmp_path):
    _fill(tmp_path / "a", {"width": 8, "blocks": ""}, {"mdm": 1.0}, seeds=(0,))
    _fill(tmp_path / "b", {"width": 16, "blocks": ""}, {"mdm": 1.0}, seeds=(0,))
    _fill(tmp_path / "c", {"lr": 0.1}, {"mdm": 1.0}, seeds=(0,))
    lines = collecting.collect([tmp_path / name for name in "abc"])
    assert [line["width"] for line in lines] == [8, 16, None]
    assert all("blocks" not in line and "lr" not in line for line in lines)


def test_readings_print_their_intervals_and_what_is_missing_is_blank(tmp_path):
    found = dict(
        m1={"forward_accuracy": [1 / 7, 0.0256, 0.51301], "forward_choice": None},
        m2={"forward_accuracy": [0.0, 0.0, 0.4], "forward_choice": [0.5, None, None]},
    )
    for name, line in found.items():
        piece = Piece({"model": name}, lambda line=line: (line, {}), has_curves=False)
        compute([piece], WorkDir(tmp_path / name, {"experiment": "measure", "level": 0.9}))
    _read_forward(tmp_path / "study", forward=0.75)
    _read_forward(tmp_path / "other", width=16, forward=0.5)
    both = [tmp_path / name for name in ("m1", "m2", "study", "other")]
    done = _tool("--format=csv", "--columns=forward_accuracy,forward_choice,width", *both)
    assert done.stdout.splitlines()[1:] == [
        "0.143 (0.026 to 0.513),,",
        "0.000 (0.000 to 0.400),0.500,",
        ",,8",
        ",,16",
    ], done.stderr
    for name, line in found.items():
        piece = Piece({"model": "x"}, lambda line=line: (line, {}), has_curves=False)
        compute([piece], WorkDir(tmp_path / f"{name}x", {"experiment": "measure", "level": name}))
    done = _tool("--compare", tmp_path / "m1x", tmp_path / "m2x", "--format=csv")
    assert "0.143 (0.026 to 0.513) → 0.000 (0.000 to 0.400),– → 0.500" in done.stdout
