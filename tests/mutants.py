"""Breaks what measures, one small fault at a time, and counts the faults that no test sees.

    make mutants      # or: python tests/mutants.py --workdir=DIR --count=300 --only=FILE

A mutant is one change of one expression: a sign, an index, a constant, a comparison, an axis,
two arguments or directions swapped, a normalisation dropped. Its tests are those that ran its
line in a run with coverage, the quickest first, then the others of their files, in a process of
its own that ends at the first failure. The tree is copied once into the work directory, which a
killed run goes on from: remove it to measure another tree.
"""

import argparse
import ast
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).parent.parent
TARGETS = [
    "dirasym/intervals.py",
    "dirasym/likelihood.py",
    "dirasym/measuring.py",
    "dirasym/metrics.py",
    "dirasym/reading.py",
    "dirasym/report.py",
    "dirasym/analysis/alignment.py",
    "dirasym/analysis/attention.py",
    "dirasym/analysis/blocks.py",
    "dirasym/analysis/case_recall.py",
    "dirasym/analysis/cross.py",
    "dirasym/analysis/excess.py",
    "dirasym/analysis/factored.py",
    "dirasym/analysis/products.py",
    "dirasym/analysis/queries.py",
    "dirasym/analysis/questions.py",
    "dirasym/analysis/recall.py",
    "dirasym/analysis/taps.py",
    "dirasym/analysis/tracking.py",
    "dirasym/analysis/views.py",
    "experiments/reports/*.py",
]
STYLE = {  # keywords of plots that no reader measures by
    "alpha", "bbox_to_anchor", "color", "columns", "dpi", "edgecolor", "figsize", "fontsize",
    "hspace", "layout", "linewidth", "loc", "ls", "lw", "marker", "markersize", "ms", "ncol",
    "ncols", "nrows", "rotation", "rows", "s", "sharex", "sharey", "size", "va", "ha", "width",
    "wspace", "zorder", "ensure_ascii", "indent", "encoding", "strict",
}  # fmt: skip
DIRECTIONS = [("forward", "reverse"), ("fwd", "rev"), ("forward", "inverse"), ("first", "second")]
BUDGET = 90.0  # seconds of tests for a mutant, as the run with coverage took them


def _replace(kind):
    """An expression of one AST class for another of the same fields."""

    def apply(node):
        node.op = kind()

    return apply


def _faults(node, words):
    """(kind, change in place) for each small fault of one expression; `words` are the file's."""
    match node:
        case ast.BinOp(op=ast.Add()):
            yield "sign", _replace(ast.Sub)
        case ast.BinOp(op=ast.Sub()):
            yield "sign", _replace(ast.Add)
        case ast.BinOp(op=ast.Mult()):
            yield "normalisation", _replace(ast.Div)
        case ast.BinOp(op=ast.Div()):
            yield "normalisation", lambda node: _become(node, node.left)
        case ast.BinOp(op=ast.BitAnd()):
            yield "condition", _replace(ast.BitOr)
        case ast.BinOp(op=ast.BitOr()):
            yield "condition", _replace(ast.BitAnd)
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield "sign", lambda node: _become(node, node.operand)
        case ast.BoolOp():
            yield "condition", _replace(ast.And if isinstance(node.op, ast.Or) else ast.Or)
        case ast.Compare(ops=[op]) if type(op) in _COMPARED:
            yield "comparison", lambda node: node.ops.__setitem__(0, _COMPARED[type(op)]())
        case ast.Constant(value=bool()):
            yield "constant", lambda node: setattr(node, "value", not node.value)
        case ast.Constant(value=int()):
            yield "constant", lambda node: setattr(node, "value", node.value + 1)
        case ast.Constant(value=float()):
            yield "constant", lambda node: setattr(node, "value", node.value * 1.5 or 1.0)
        case ast.Constant(value=str()) | ast.Attribute() | ast.Name(ctx=ast.Load()):
            field = {ast.Constant: "value", ast.Attribute: "attr", ast.Name: "id"}[type(node)]
            if other := _other_direction(getattr(node, field), words):
                yield "direction", lambda node: setattr(node, field, other)
            if field == "attr" and node.attr in ("mean", "nanmean"):
                swapped = node.attr.replace("mean", "sum")
                yield "normalisation", lambda node: setattr(node, "attr", swapped)
        case ast.Slice() if node.lower is not None or node.upper is not None:
            yield "index", _shift_slice
        case ast.Subscript(slice=ast.BinOp()):
            yield "index", _shift_index
        case ast.keyword(arg="axis", value=ast.Constant(value=int())):
            yield "axis", lambda node: setattr(node.value, "value", int(node.value.value == 0))
        case ast.Call(args=[ast.Name(id=one), ast.Name(id=other), *_]):
            if not {one, other} & {"apply_fn", "float", "int", "str", "path"}:
                yield "swap", _swap_arguments
        case ast.Call(func=ast.Attribute(attr="sqrt" | "abs"), args=[_]):
            yield "normalisation", lambda node: _become(node, node.args[0])


_COMPARED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def _become(node, other):
    """Turns a node into another one, which may be its child."""
    fields = dict(vars(other))
    node.__class__ = type(other)
    vars(node).clear()
    vars(node).update(fields)


def _shift_slice(node):
    name = "upper" if node.upper is not None else "lower"
    setattr(node, name, ast.BinOp(getattr(node, name), ast.Sub(), ast.Constant(1)))


def _shift_index(node):
    node.slice = ast.BinOp(node.slice, ast.Sub(), ast.Constant(1))


def _swap_arguments(node):
    node.args[:2] = node.args[1], node.args[0]


def _other_direction(word, words):
    for one, other in DIRECTIONS:
        for here, there in ((one, other), (other, one)):
            swapped = re.sub(rf"(?<![a-z]){here}(?![a-z])", there, word)
            if swapped != word and swapped in words:
                return swapped
    return None


def _measured(node):
    """The nodes below one whose change could change a number: no types, words or styles."""
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "format_spec"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.Assert):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue  # a docstring
            if isinstance(child, ast.keyword) and child.arg in STYLE:
                continue
            if isinstance(child, ast.Call) and ast.unparse(child.func).endswith("rcParams.update"):
                continue
            yield child
            is_axis = isinstance(child, ast.keyword) and child.arg == "axis"
            if not (is_axis and isinstance(child.value, ast.Constant)):
                yield from _measured(child)


def _places(source):
    """The tree, its measured nodes in a fixed order, and the file's names and strings."""
    tree = ast.parse(source)
    words = set()
    for node in ast.walk(tree):
        words |= {x for x in vars(node).values() if isinstance(x, str)}
    return tree, list(_measured(tree)), words


def sites(source):
    """(number among the measured nodes, kind, number of the fault there)."""
    _, nodes, words = _places(source)
    return [
        (number, kind, which)
        for number, node in enumerate(nodes)
        for which, (kind, _) in enumerate(_faults(node, words))
    ]


def mutate(source, number, which):
    """The source with one fault, the line that it is in, and its words before and after."""
    tree, nodes, words = _places(source)
    node = nodes[number]
    line = min(n.lineno for n in ast.walk(node) if hasattr(n, "lineno"))
    before = ast.unparse(node)
    list(_faults(node, words))[which][1](node)
    return ast.unparse(tree), line, before, ast.unparse(node)


def draw(tree, files, count, seed):
    """At least `count` mutants where there are as many: each file by its share of the sites."""
    generator = random.Random(seed)
    found = {file: sites((tree / file).read_text(encoding="utf-8")) for file in files}
    total = sum(map(len, found.values()))
    drawn = []
    for file, places in found.items():
        share = min(len(places), max(5, -(-count * len(places) // total)))
        for number, kind, which in sorted(generator.sample(places, share)):
            drawn.append({"file": file, "number": number, "kind": kind, "which": which})
    generator.shuffle(drawn)  # so that a run cut short has seen all files
    return drawn


def make_trees(workdir, workers):
    """The tree as it was at the first start, and a copy to break for each worker."""
    source = workdir / "source"
    if not source.exists():
        partial = workdir / "source.partial"
        shutil.rmtree(partial, ignore_errors=True)
        ignored = (".git", ".venv*", "runs", "build", "*.egg-info", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, partial, ignore=shutil.ignore_patterns(*ignored))
        partial.rename(source)
    (workdir / "jax").mkdir(exist_ok=True)
    trees = [workdir / f"tree{number}" for number in range(workers)]
    for tree in trees:
        shutil.rmtree(tree, ignore_errors=True)  # a killed run leaves a fault in it
        shutil.copytree(source, tree)
        (tree / ".pytest_cache").mkdir()
        (tree / ".pytest_cache/jax").symlink_to(workdir / "jax")  # programs compiled once
    return source, trees


def _pytest(tree, arguments, **settings):
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, **settings)


def measure(tree, files, workdir, workers, tests):
    """Runs the suite once: {"lines": {file: {line: [test]}}, "seconds": {test: s}}."""
    path = workdir / "baseline.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    arguments = ["--cov", "--cov-context=test", "--cov-report=", "--durations=0", "-vv"]
    if workers > 1:
        arguments += ["-n", str(workers)]
    (tree / ".coveragerc").write_text("[run]\ninclude =\n  " + "\n  ".join(files) + "\n")
    done = _pytest(tree, [*arguments, "--durations-min=0", *tests], text=True)
    if done.returncode != 0:
        sys.exit(f"the tests must pass before anything is broken:\n{done.stdout[-3000:]}")
    seconds = collections.Counter()
    for duration, test in re.findall(
        r"^([\d.]+)s (?:setup|call|teardown) +(tests/.*?) *$", done.stdout, re.MULTILINE
    ):
        seconds[test] += float(duration)
    import coverage

    data = coverage.CoverageData(str(tree / ".coverage"))
    data.read()
    lines = {}
    for file in files:
        by_line = data.contexts_by_lineno(str((tree / file).resolve()))
        lines[file] = {
            str(line): sorted({context.split("|")[0] for context in contexts if context})
            for line, contexts in by_line.items()
        }
    baseline = {"lines": lines, "seconds": dict(seconds)}
    path.write_text(json.dumps(baseline), encoding="utf-8")
    return baseline


def choose(mutant, line, baseline, tree):
    """The tests that ran the line, the quickest first, then the others of their files."""
    lines, seconds = baseline["lines"][mutant["file"]], baseline["seconds"]
    first = set(lines.get(str(line), ()))
    if not first:  # runs while its module is imported, or in a process that a test starts
        first = {test for tests in lines.values() for test in tests}
    stem = pathlib.Path(mutant["file"]).stem
    files = {test.split("::")[0] for test in first} or {
        test.split("::")[0]
        for test in seconds
        if re.search(rf"\b{stem}\b", (tree / test.split("::")[0]).read_text(encoding="utf-8"))
    }
    rest = {test for test in seconds if test.split("::")[0] in files} - first
    chosen, spent = [], 0.0
    for test in [*sorted(first, key=lambda t: seconds.get(t, 0)), *sorted(rest, key=seconds.get)]:
        spent += seconds.get(test, 0.0)
        if chosen and spent > BUDGET:
            break
        chosen.append(test)
    return chosen, spent


def judge(mutant, baseline, tree):
    """Runs a mutant's tests in a tree that is afterwards as it was."""
    path = tree / mutant["file"]
    source = path.read_text(encoding="utf-8")
    broken, line, before, after = mutate(source, mutant["number"], mutant["which"])
    tests, expected = choose(mutant, line, baseline, tree)
    start = time.monotonic()
    path.write_text(broken, encoding="utf-8")
    try:
        code = _pytest(tree, ["-x", *tests], timeout=60 + 4 * expected).returncode if tests else 0
    except subprocess.TimeoutExpired:
        code = "timeout"
    finally:
        path.write_text(source, encoding="utf-8")
    # 0: all passed; 1: one failed; 2: stopped; 3: an internal error; 4: conftest fails to import
    outcome = {0: "survived" if tests else "no test", 5: "no test"}.get(code, "killed")
    spent = round(time.monotonic() - start, 1)
    return mutant | dict(
        line=line, before=before, after=after, outcome=outcome, code=code, seconds=spent,
        num_tests=len(tests),
    )  # fmt: skip


def summary(results):
    """A line for each file, the total and the survivors."""
    counts = collections.defaultdict(collections.Counter)
    for result in results:
        for name in (result["file"], "all"):
            counts[name][result["outcome"]] += 1
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        count = counts[name]
        share = 100 * count["killed"] / count.total()
        yield f"{name}: {count['killed']} of {count.total()} killed ({share:.0f} %)"
    for result in sorted(results, key=lambda r: (r["file"], r["line"])):
        if result["outcome"] != "killed":
            place = f"{result['file']}:{result['line']}"
            yield f"  {place} {result['kind']}, {result['outcome']}: {result['before']}"
            yield f"    became {result['after']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs/mutants")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=TARGETS, help="files to break, or patterns")
    parser.add_argument("--tests", nargs="*", default=[], help="tests to run; all when none")
    args = parser.parse_args()
    workdir = args.workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    source, trees = make_trees(workdir, args.workers)
    files = sorted({p.relative_to(source).as_posix() for t in args.only for p in source.glob(t)})
    baseline = measure(trees[0], files, workdir, args.workers, args.tests)
    path, lock = workdir / "results.json", threading.Lock()
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = {(r["file"], r["number"], r["which"]) for r in results}
    free = list(trees)

    def one(mutant):
        with lock:
            tree = free.pop()
        try:
            result = judge(mutant, baseline, tree)
        finally:
            with lock:
                free.append(tree)
        with lock:
            results.append(result)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(results, indent=1), encoding="utf-8")
            partial.replace(path)
            print(result["outcome"], result["file"], result["line"], result["after"], flush=True)

    left = [
        m
        for m in draw(source, files, args.count, args.seed)
        if (m["file"], m["number"], m["which"]) not in done
    ]
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(one, left))
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
