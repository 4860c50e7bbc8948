"""Breaks what measures, one small fault at a time, and counts the faults that no test sees.

    make mutants      # or: python tests/mutants.py --workdir=DIR --count=320 --only=FILE

A mutant is one change of one expression: a sign, an index, a constant, a comparison, an axis,
two arguments or directions swapped, a normalisation dropped. Its tests are those that ran its
line in a run with coverage: first three quick ones, then the others, then the rest of their
files, until one fails. Each mutant has a process of its own, forked from one that has imported
the libraries and started no thread, so JAX is fresh in it and need not be imported again.

The work directory keeps a line a mutant and the coverage of each test file. A killed run goes
on. Another start looks again at what survived if a test has changed, and at the mutants of a
file that has.
"""

import argparse
import ast
import collections
import hashlib
import importlib.util
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import sys
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
    "dirasym/analysis/uses.py",
    "dirasym/analysis/views.py",
    "experiments/reports/*.py",
]
STYLE = {  # keywords of plots that no reader measures by; limits: report_test, "hide no point"
    "alpha", "bbox_to_anchor", "bottom", "capsize", "color", "columns", "dpi", "edgecolor",
    "figsize", "fontsize", "hspace", "layout", "left", "linewidth", "loc", "ls", "lw", "marker",
    "markersize", "ms", "ncol", "ncols", "nrows", "right", "rotation", "rows", "s", "sharex",
    "sharey", "size", "top", "va", "ha", "width", "wspace", "xlim", "ylim", "yticks", "zorder",
    "ensure_ascii", "indent", "encoding", "strict",
    "base",  # of a logarithmic axis, whose points and named ticks lie the same at any
}  # fmt: skip
PAPER = "SMALL", "STYLE", "room"  # assigned: a size of letters, matplotlib's settings, widths
LAYOUT = (  # calls about places on paper, and of progress
    "rcParams.update", "new_figure", "new_panels", "label_ends", "legend", "margins", "set_xlim",
    "set_ylim",
    "beside",  # how far marks of one value stand apart; the value is in their data
    "grid",  # lines behind the data
    "parts.part",  # how long a bar of progress is
)  # fmt: skip
# Faults that change no number that is reported, and why: (file, its line, before, after, proof).
EQUIVALENT = [
    ("dirasym/analysis/products.py",
     "return _product(fwd, rev), _product(fwd, fwd), _product(rev, rev)",
     "_product(fwd, rev)", "_product(rev, fwd)", "an inner product is symmetric"),
    ("dirasym/analysis/products.py",
     "products = [jax.vmap(_inner)(a, b) for a in _products(first) for b in _products(second)]",
     "jax.vmap(_inner)(a, b)", "jax.vmap(_inner)(b, a)", "an inner product is symmetric"),
    ("dirasym/analysis/products.py", "if isinstance(first, Formed):  # and so is the second",
     "first", "second",
     "both are formed or neither is: `three_products` sees to it, and the next line asserts it"),
    ("dirasym/analysis/products.py",
     "if num_rows * num_columns * _pair_cost(rows, columns) < forming:",
     "_pair_cost(rows, columns)", "_pair_cost(columns, rows)",
     "tokens of one times tokens of the other, of one shape: the cost is symmetric"),
    ("dirasym/analysis/products.py", "lefts = first.num_rows if is_dense else 1",
     "first", "second",
     "a cost: which of two ways to one number is taken (test: formed or not, they are the same)"),
    ("dirasym/analysis/factored.py",
     "if factors.num_rows > 1 or factors.dense is None or factors.lookup is not None:",
     "factors.num_rows > 1", "factors.num_rows >= 1",
     "which of two ways to one number is taken (test: formed or not the products are the same)"),
    ("dirasym/analysis/views.py", "length: int = 1", "1", "2",
     "left to the default by scalars alone, which no scan takes layers of"),
    ("dirasym/analysis/cross.py", "check_vma=False,", "False", "True",
     "whether JAX checks what varies over the mesh, of which no number is made"),
    ("dirasym/report.py",
     "reach = np.array([[v.estimate - v.low, v.high - v.estimate] for v in values])"
     ".reshape(-1, 2).T",
     "1", "2", "NumPy takes any number below zero in a shape for −1"),
    ("dirasym/analysis/products.py", "BLOCK = 4096", "4096", "4097",
     "entries summed at a time on CPUs: the sum is that of all (test: blocks cover a length once)"),
    ("dirasym/analysis/products.py", "ENTRY_COST = 32", "32", "33",
     "which of two ways to one number is taken (test: formed or not the products are the same)"),
    ("dirasym/analysis/products.py", "FEW_COLUMNS = 16", "16", "17",
     "which of two ways to one number is taken (test: formed or not the products are the same)"),
    ("dirasym/analysis/products.py", "if formed < by_factors:", "formed < by_factors",
     "formed <= by_factors", "of two ways to one number that cost the same, the other"),
    ("dirasym/analysis/cross.py", "self._rev = self._fwd", "self._fwd", "self._rev",
     "the loss is one: its gradients are compiled twice, and are the same"),
    ("dirasym/analysis/queries.py",
     "asked = [(n, answer) for n, query in enumerate(queries) for answer in query.answers[1:]]",
     "1:", "1 - 1:", "the first answer begins with the target, which `choice_among` sets anew"),
    ("dirasym/measuring.py", "PAIRS_AT_A_TIME = 8  # whose gradients are compared", "8", "9",
     "each pair is compared by itself, however many at a time"),
    ("dirasym/measuring.py",
     "groups = [(np.arange(len(pairs[0].target_E)), network.of_rows(*pairs))]",
     "0", "1", "`paired_queries` gives as many questions of one side as of the other"),
    ("dirasym/report.py",
     'curves[f"gradient_{name}_total"].reshape(len(step), -1) for name in ("cosine", "inner")',
     "1", "2", "NumPy takes any number below zero in a shape for −1"),
    ("dirasym/report.py",
     'ax.plot(total, heads_SNT.reshape(-1, len(total)).T, ".", color=shades[layer], ms=2)',
     "1", "2", "NumPy takes any number below zero in a shape for −1"),
    ("experiments/reports/causes.py",
     "rows.append((name, effects.rank_correlation(score, outcome), area))",
     "effects.rank_correlation(score, outcome)", "effects.rank_correlation(outcome, score)",
     "a correlation is symmetric"),
    ("experiments/reports/closure.py",
     'hits = [round(share(of, "probe_hits").estimate, 6) for of in learned.values()]', "6", "7",
     "means of n thousandths are equal, or 0.001 / n apart"),
    ("experiments/reports/closure.py",
     "rank = effects.rank_correlation(hits, [round(x.estimate, 6) for x in reverse.values()])",
     "6", "7", "means of n thousandths are equal, or 0.001 / n apart"),
    ("experiments/reports/cures.py", "lambda _, x: x.estimate > 10, lambda _, x: "
     "round(x.estimate, 6) < 3),", "6", "7",
     "a mean of n thousandths of a point is 3, or 0.001 / n away from it"),
    ("experiments/reports/cures_facts.py", "lambda _, x: x.estimate > 10, lambda _, x: "
     "round(x.estimate, 6) < 3),", "6", "7",
     "a mean of n thousandths of a point is 3, or 0.001 / n away from it"),
]  # fmt: skip
DIRECTIONS = [("forward", "reverse"), ("fwd", "rev"), ("forward", "inverse"), ("first", "second")]
TESTS = [  # of what measures: quick ones with oracles, not those that run a whole experiment
    "tests/analysis",
    "tests/experiments/causes_test.py",
    "tests/experiments/closure_test.py",
    "tests/experiments/cures_test.py",
    "tests/experiments/cures_facts_test.py",
    "tests/experiments/facts_oracle_test.py",
    "tests/experiments/gradient_alignment_test.py",
    "tests/experiments/in_context_test.py",
    "tests/experiments/patching_test.py",
    "tests/experiments/relations_test.py",
    "tests/experiments/rope_bounds_test.py",
    "tests/experiments/toy_test.py",
    "tests/experiments/toy_study_test.py",
    "tests/experiments/training_dynamics_test.py",
    "tests/experiments/world_a_bits_test.py",
    "tests/experiments/world_a_oracle_test.py",
    "tests/likelihood_test.py",
    "tests/metrics_test.py",
    "tests/reading_test.py",
    "tests/report_test.py",
]
LIBRARIES = (  # what tests import and a fork need not: none starts a thread
    "absl.flags", "chex", "flax.linen", "jax.experimental.sparse", "matplotlib.pyplot", "optax",
    "orbax.checkpoint", "pandas", "scipy.integrate", "scipy.optimize", "scipy.stats", "tqdm",
)  # fmt: skip
PATIENCE = 3600.0  # seconds of a process, however busy the machine is
BUDGETS = 3, 40.0, 90.0  # tests first; seconds of those that ran the line; of their files' others


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
        case ast.Call(func=func, args=[ast.Name(id=one), ast.Name(id=other), *_]):
            same = one == other or ast.unparse(func) in ("min", "max")  # no fault, either way
            if not same and not {one, other} & {"apply_fn", "float", "int", "str", "path"}:
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
            if isinstance(child, ast.Call) and ast.unparse(child.func).endswith(LAYOUT):
                continue
            if isinstance(child, ast.Assign | ast.AnnAssign) and _assigned(child) in PAPER:
                continue
            if isinstance(node, ast.arguments) and isinstance(child, ast.Tuple):
                continue  # the default of a figure's size
            yield child
            is_axis = isinstance(child, ast.keyword) and child.arg == "axis"
            if not (is_axis and isinstance(child.value, ast.Constant)):
                yield from _measured(child)


def _assigned(statement):
    (target, *_) = getattr(statement, "targets", None) or [statement.target]
    return ast.unparse(target)


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


def sha(*paths):
    """Of the contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def make_tree(workdir, name):
    """A copy of the tree as it is now, to break."""
    tree = workdir / name
    shutil.rmtree(tree, ignore_errors=True)  # a killed run leaves a fault in it
    ignored = (".git", ".venv*", "runs", "build", "site", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*ignored))
    (workdir / "jax").mkdir(exist_ok=True)
    (tree / ".pytest_cache").mkdir()
    (tree / ".pytest_cache/jax").symlink_to(workdir / "jax")  # programs compiled once
    return tree


def import_libraries(tree):
    """What every test needs, JAX included, with the settings of tests/conftest.py; no thread."""
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    spec = importlib.util.spec_from_file_location("conftest_of_mutants", tree / "tests/conftest.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    for name in LIBRARIES:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        sys.exit(f"{threads} threads before the first fork: a library of LIBRARIES starts some")


class Recorder:
    """A pytest plugin: which lines a test runs, how long it takes, and whether it passes."""

    def __init__(self, files):
        import coverage

        self.seconds, self.failed, self.files = {}, set(), files  # of each, its hash
        self.coverage = coverage.Coverage(data_file=None, include=list(files))
        self.coverage.start()

    def pytest_runtest_logstart(self, nodeid, location):
        self.coverage.switch_context(nodeid)
        self.seconds[nodeid] = -time.monotonic()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid, location):
        self.seconds[nodeid] += time.monotonic()

    def write(self, path):
        self.coverage.stop()
        data, lines = self.coverage.get_data(), {}
        for file in self.files:
            by_line = data.contexts_by_lineno(str(pathlib.Path(file).resolve()))
            by_test = {line: [*filter(None, names)] for line, names in by_line.items()}
            lines[file] = {line: names for line, names in by_test.items() if names}
        seconds = {test: s for test, s in self.seconds.items() if test not in self.failed}
        found = {"lines": lines, "seconds": seconds, "failed": sorted(self.failed)}
        found["files"] = dict(self.files)
        path.with_suffix(".partial").write_text(json.dumps(found), encoding="utf-8")
        path.with_suffix(".partial").replace(path)


def fork(tree, tests, log, cpu_seconds, record=None):
    """Starts the tests, until one fails, in a process group of its own; returns its number.

    Args:
      tree: where.
      tests: their names, in order.
      log: a file for what they print.
      cpu_seconds: of work, after which they are stopped; a busy machine changes nothing.
      record: (path, files): measure the lines of `files`, write `path`, go on at failures.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 5))
        os.chdir(tree)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        os.environ["PYTHONPATH"] = str(tree)  # of the programs that tests start
        sys.path.insert(0, str(tree))
        import pytest

        plugins = [Recorder(record[1])] if record else []
        how = ["-p", "no:cacheprovider", *([] if record else ["-x"])]
        code = int(pytest.main([*how, *tests], plugins=plugins))
        if record:
            plugins[0].write(record[0])
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pids):
    """(pid, exit code) of the first to end, of {pid: deadline}; "timeout" for one that is late."""
    while True:
        for pid, deadline in pids.items():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and time.monotonic() < deadline:
                continue
            try:
                os.killpg(pid, signal.SIGKILL)  # with what it has started
            except ProcessLookupError:
                pass
            if not ended:
                os.waitpid(pid, 0)
                return pid, "timeout"
            return pid, os.waitstatus_to_exitcode(status)
        time.sleep(0.05)


def measure(tree, files, tests, workdir):
    """{"lines": {file: {line: [test]}}, "seconds": {test: s}}, test file by test file."""
    lines = {file: collections.defaultdict(list) for file in files}
    seconds, now = {}, {file: sha(tree / file) for file in files}
    (workdir / "coverage").mkdir(exist_ok=True)
    paths = [p for t in tests for p in ([tree / t] if t.endswith(".py") else (tree / t).rglob("*"))]
    for path in sorted(p for p in paths if p.name.endswith("_test.py")):
        name = path.relative_to(tree).as_posix()
        kept = workdir / "coverage" / f"{path.stem}-{sha(path)}.json"
        found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else None
        ran = {file for file, by_line in (found["lines"] if found else {}).items() if by_line}
        if not found or any(found["files"][file] != now[file] for file in ran):
            start, log = time.monotonic(), workdir / "coverage" / f"{path.stem}.log"
            kept.unlink(missing_ok=True)
            pid = fork(tree, [name], log, 1800, (kept, now))
            _, code = wait({pid: start + PATIENCE})
            print(f"coverage {name}: exit {code}, {time.monotonic() - start:.0f} s", flush=True)
            if not kept.exists():
                sys.exit(f"{name} ended with {code}: see {log}")
            found = json.loads(kept.read_text(encoding="utf-8"))
        for test in found["failed"]:
            print(f"fails unbroken, and judges nothing: {test}", flush=True)
        seconds |= found["seconds"]
        for file, by_line in found["lines"].items():
            for line, names in by_line.items():
                lines[file][line] += [name for name in names if name in found["seconds"]]
    return {"lines": lines, "seconds": seconds}


def choose(mutant, line, baseline):
    """Lists of tests to run one after the other, each with its seconds: see `BUDGETS`."""
    lines, seconds = baseline["lines"][mutant["file"]], baseline["seconds"]
    own = pathlib.Path(mutant["file"]).stem

    def cost(test):  # a module's own tests are the likelier to see it
        return seconds[test] + (0.0 if own in test.split("::")[0] else 1.0)

    ran = set(lines.get(str(line), ()))
    if not ran:  # runs while its module is imported, or in a process that a test starts
        ran = {test for tests in lines.values() for test in tests}
    files = {test.split("::")[0] for test in ran}
    others = {test for test in seconds if test.split("::")[0] in files} - ran
    ran, others = sorted(ran, key=cost), sorted(others, key=cost)
    count, *budgets = BUDGETS
    chosen = [ran[:count]]
    for tests, budget in zip((ran[count:], others), budgets, strict=True):
        spent, part = 0.0, []
        for test in tests:
            spent += seconds[test]
            if spent > budget:
                break
            part.append(test)
        chosen.append(part)
    return [(part, sum(seconds[test] for test in part)) for part in chosen if part]


class Trial:
    """A mutant in a tree: its tests, part by part, until one fails; then the tree as it was."""

    def __init__(self, mutant, baseline, tree, log):
        self.tree, self.log, self.path = tree, log, tree / mutant["file"]
        self.source, self.times = self.path.read_text(encoding="utf-8"), self.path.stat()
        broken, line, before, after = mutate(self.source, mutant["number"], mutant["which"])
        text = self.source.splitlines()[line - 1].strip()
        self.mutant = mutant | dict(line=line, text=text, before=before, after=after, num_tests=0)
        self.parts = choose(mutant, line, baseline)
        self.start = time.monotonic()
        self.path.write_text(broken, encoding="utf-8")
        # No other file of this name has this time, which is what tells compiled files apart.
        age = 10_000 + 10 * mutant["number"] + mutant["which"]
        os.utime(self.path, (self.times.st_atime, int(self.times.st_mtime) - age))
        log.unlink(missing_ok=True)

    def go_on(self):
        """(pid, deadline) of the next part; None if there is no other."""
        if not self.parts:
            return None
        tests, expected = self.parts.pop(0)
        self.mutant["num_tests"] += len(tests)
        cpu_seconds = 60 + 5 * expected  # what waits for ever, and does not work, has PATIENCE
        return fork(self.tree, tests, self.log, cpu_seconds), time.monotonic() + PATIENCE

    def end(self, code):
        """The result, and the tree as it was."""
        self.path.write_text(self.source, encoding="utf-8")
        os.utime(self.path, ns=(self.times.st_atime_ns, self.times.st_mtime_ns))
        # 0: all passed; 1: one failed; 2: stopped; 3: an internal error; 4: no such test
        outcome = {0: "survived", None: "no test", 5: "no test"}.get(code, "killed")
        said = self.log.read_text(errors="replace") if self.log.exists() else ""
        by = re.search(r"^FAILED (\S+)", said, re.MULTILINE)
        return self.mutant | dict(
            outcome=outcome, code=code, seconds=round(time.monotonic() - self.start, 1),
            by=by.group(1) if by and outcome == "killed" else None,
        )  # fmt: skip


def judge(mutants, baseline, trees, workdir):
    """Yields the result of each mutant, as many at once as there are trees."""
    left, free, running = list(mutants), list(trees), {}
    while left or running:
        while left and free:
            tree = free.pop()
            trial = Trial(left.pop(0), baseline, tree, workdir / f"{tree.name}.log")
            started = trial.go_on()
            if started is None:
                free.append(tree)
                yield trial.end(None)
            else:
                running[started[0]] = trial, started[1]
        if not running:
            continue
        pid, code = wait({pid: deadline for pid, (_, deadline) in running.items()})
        trial, _ = running.pop(pid)
        started = trial.go_on() if code == 0 else None
        if started is not None:
            running[started[0]] = trial, started[1]
            continue
        free.append(trial.tree)
        yield trial.end(code)


def key_of(result):
    """What an entry of `EQUIVALENT` begins with."""
    return tuple(result.get(name) for name in ("file", "text", "before", "after"))


def matches(entry):
    """How many mutants of the tree as it is are those of an entry of `EQUIVALENT`."""
    file, text, *_ = entry
    source = (ROOT / file).read_text(encoding="utf-8")
    lines, (_, nodes, words), found = source.splitlines(), _places(source), 0
    for number, node in enumerate(nodes):
        line = min((n.lineno for n in ast.walk(node) if hasattr(n, "lineno")), default=0)
        if lines[line - 1].strip() == text:
            for which, _ in enumerate(_faults(node, words)):
                _, _, before, after = mutate(source, number, which)
                found += entry[:4] == (file, text, before, after)
    return found


def summary(results):
    """A line for each file, the total, what changes nothing, and the other survivors."""
    reasons = {entry[:4]: entry[4] for entry in EQUIVALENT}
    counts = collections.defaultdict(collections.Counter)
    for result in results:
        for name in (result["file"], "all"):
            counts[name][result["outcome"]] += 1
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        count = counts[name]
        share = 100 * count["killed"] / count.total()
        yield f"{name}: {count['killed']} of {count.total()} killed ({share:.0f} %)"
    left = [result for result in results if result["outcome"] != "killed"]
    same = [result for result in left if key_of(result) in reasons]
    killed = counts["all"]["killed"]
    yield (
        f"of the others {len(same)} change nothing, each with its reason: without them "
        f"{killed} of {len(results) - len(same)} killed "
        f"({100 * killed / max(1, len(results) - len(same)):.0f} %)"
    )
    for result in sorted(left, key=lambda r: (r in same, r["file"], r["line"])):
        place = f"{result['file']}:{result['line']}"
        yield f"  {place} {result['kind']}, {result['outcome']}: {result['before']}"
        yield f"    became {result['after']}"
        if result in same:
            yield f"    changes nothing: {reasons[key_of(result)]}"
    for result in results:
        if result["outcome"] == "killed" and key_of(result) in reasons:
            yield f"killed, so it does change something: {key_of(result)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs/mutants")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=TARGETS, help="files to break, or patterns")
    parser.add_argument("--tests", nargs="*", default=TESTS, help="test files, or folders")
    args = parser.parse_args()
    workdir = args.workdir.absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    trees = [make_tree(workdir, f"tree{number}") for number in range(args.workers)]
    files = sorted({p.relative_to(ROOT).as_posix() for t in TARGETS for p in ROOT.glob(t)})
    broken = [file for file in files if any(pathlib.Path(file).match(t) for t in args.only)]
    hashes = {file: sha(trees[0] / file) for file in files}
    import_libraries(trees[0])
    baseline = measure(trees[0], files, args.tests, workdir)
    tests = hashlib.sha256(json.dumps(sorted(baseline["seconds"])).encode())
    for path in sorted((trees[0] / "tests").rglob("*_test.py")):
        tests.update(path.read_bytes())
    suite, path = tests.hexdigest()[:16], workdir / "results.jsonl"
    results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        result = json.loads(line)
        results[result["file"], result["number"], result["which"], result["sha"]] = result
    drawn = {
        (m["file"], m["number"], m["which"], hashes[m["file"]]): m
        for m in draw(trees[0], files, args.count, args.seed)
        if m["file"] in broken
    }

    def is_known(key):
        known = results.get(key)
        return known and (known["outcome"] == "killed" or known["suite"] == suite)

    left = [mutant for key, mutant in drawn.items() if not is_known(key)]
    print(f"{len(left)} of {len(drawn)} mutants to judge", flush=True)
    with path.open("a", encoding="utf-8") as file:
        for result in judge(left, baseline, trees, workdir):
            result |= {"sha": hashes[result["file"]], "suite": suite}
            results[result["file"], result["number"], result["which"], result["sha"]] = result
            print(json.dumps(result), file=file, flush=True)
            print(result["outcome"], result["file"], result["line"], result["after"], flush=True)
    print("\n".join(summary([results[key] for key in drawn])))


if __name__ == "__main__":
    main()
