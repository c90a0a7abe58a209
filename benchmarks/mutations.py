"""Do the tests notice a change of the code? Mutants of skcds, one change each, and the tests of their files.

    python benchmarks/mutations.py                                 # 150 mutants, spread over all files
    python benchmarks/mutations.py --n 20 --files skcds/explore/smc.py skcds/train/particles.py --seed 1
    python benchmarks/mutations.py --list --n 10                   # says what would be changed
    python benchmarks/mutations.py --json mutants.json             # goes on from there when it is run again
    python benchmarks/mutations.py --record reached.json           # which test runs which lines, and for how long
    python benchmarks/mutations.py --reached reached.json          # only tests that run the line, the quickest first

Each mutant is made in a temporary copy and is caught when a test fails. Where tests do not end within the limit of time
nothing is said, since the mutant may hang or the machine be busy; a test that takes twenty times the processor time
that was recorded of it fails. What is changed: comparisons, operators, and/or, not,
signs, constants, names like min and max; arguments and lines are dropped, and values are not returned. The settings at
the top of modules are left out unless `--settings` is given, as tests that hold for many values of a tuned number are
meant to. Docstrings, messages and annotations are not changed. Tests that belong to a file are in `TESTS`, the most
specific first; they stop at the first failure, and slow tests are left out. Where an argument is dropped, the test that
reads the sources is run as well. Where it is recorded what tests run, those
of other files are run as well, for a minute or so. Mutants whose tests need a library that is not installed are not
counted.

Processes are forked from one that has imported PyTorch, which Windows cannot do.
"""

import argparse
import ast
import builtins
import contextlib
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLOTS = ["plotting"]
TESTS = {
    "__init__": ["main", "persistence"],
    "__main__": ["main"],
    "_support/devices": ["devices", "energy", "process"],
    "_support/errors": ["energy"],
    "_support/forks": ["parallel", "processes"],
    "_support/initialise": ["networks", "estimators"],
    "_support/parallel": ["parallel"],
    "_support/progress": ["limits::TestProgress", "training"],
    "_support/settings": ["settings"],
    "_support/validation": ["estimators", "polish"],
    "_support/warnings": ["streams::TestWarnings", "streams::TestNotes", "energy"],
    "adapters/__init__": ["adapters"],
    "adapters/_blobs": ["blobs"],
    "adapters/_common": ["adapters"],
    "adapters/_distributions": ["prior"],
    "adapters/_family": ["adapters_numpyro", "adapters_pymc"],
    "adapters/_jax": ["adapters_jax", "adapters_numpyro"],
    "adapters/_numpy": ["adapters", "blobs"],
    "adapters/_numpyro": ["adapters_numpyro"],
    "adapters/_prior": ["prior", "blobs"],
    "adapters/_pymc": ["adapters_pymc"],
    "adapters/_stan": ["adapters_stan"],
    "adapters/_workers": ["adapters_workers"],
    "density/block_triangular": ["block_triangular"],
    "density/bounds": ["bounds"],
    "density/circle": ["periodic"],
    "density/contexts": ["families_parts", "families"],
    "density/elimination": ["sparse_triangular"],
    "density/energy": ["energy", "bounds", "adapters", "limits::TestBudget", "limits::TestFits"],
    "density/families": ["families_parts", "families", "families_diffusion"],
    "density/function": ["density", "energy"],
    "density/noncentred": ["noncentred"],
    "density/probe": ["energy", "adapters"],
    "density/regression": ["families_parts", "families"],
    "density/rotation": ["rotation"],
    "density/rounding": ["rounding"],
    "density/sparse_triangular": ["sparse_triangular"],
    "density/standardize": ["energy", "maps", "bounds", "mcmc", "diffusion_model"],
    "density/support": ["export", "bounds", "polish"],
    "density/tempered": ["families"],
    "density/triangular": ["triangular"],
    "estimators/base": ["estimators", "streams", "bounds", "importance"],
    "estimators/comparison": ["comparison"],
    "estimators/control": ["estimators", "copies", "devices"],
    "estimators/copies": ["copies"],
    "estimators/densities": ["densities"],
    "estimators/derived": ["derived", "blobs"],
    "estimators/diffusion": ["estimators", "checkpoint", "devices"],
    "estimators/diffusion_families": ["families_diffusion"],
    "estimators/distiller": ["estimators", "copies", "devices"],
    "estimators/documentation": ["estimators"],
    "estimators/explored": ["explored"],
    "estimators/families": ["families_parts", "families", "families_diffusion"],
    "estimators/family_methods": ["families_parts", "families"],
    "estimators/given": ["families_parts", "families"],
    "estimators/inputs": ["estimators", "bad_input"],
    "estimators/judgement": ["estimators", "diagnosis"],
    "estimators/legacy": ["persistence"],
    "estimators/networks": ["estimators", "specifications"],
    "estimators/onestep": ["injectivity", "estimators"],
    "estimators/paths": ["plateau", "explored"],
    "estimators/pickling": ["persistence", "copies"],
    "estimators/sampling": ["estimators", "streams"],
    "estimators/scratch": ["shortcut", "estimators", "devices"],
    "estimators/several": ["parallel"],
    "estimators/slow": ["slow"],
    "estimators/teacher": ["estimators", "copies"],
    "estimators/warm": ["streams::TestWarmStart", "copies", "estimators::TestFit"],
    "explore/adaptive": ["adaptive", "explored", "nested_laplace"],
    "explore/balance": ["balance"],
    "explore/centring": ["noncentred"],
    "explore/climb": ["climb", "modes", "laplace"],
    "explore/descent": ["descent"],
    "explore/evaluations": ["evaluations"],
    "explore/families": ["families_parts", "families", "periodic"],
    "explore/few_evaluations": ["adaptive", "evaluations", "limits::TestFits"],
    "explore/hessians": ["hessians", "sparse_triangular"],
    "explore/laplace": ["laplace"],
    "explore/missed": ["missed"],
    "explore/mixture": ["adaptive", "mode_mixture"],
    "explore/mode_mixture": ["mode_mixture"],
    "explore/mode_stages": ["modes", "pilot"],
    "explore/modes": ["modes", "adaptive", "pilot::TestLimit"],
    "explore/nested_laplace": ["nested_laplace"],
    "explore/one_mode": ["only_mode", "triangular", "skewness", "laplace"],
    "explore/pilot": ["balance", "noncentred", "start", "laplace", "pilot", "limits::TestFits", "devices"],
    "explore/precisions": ["sparse_triangular", "laplace"],
    "explore/propriety": ["propriety", "pilot::TestFlatDirections", "start"],
    "explore/race": ["race", "start", "rounding", "pilot", "limits::TestFits", "devices"],
    "explore/result": ["noncentred", "pilot"],
    "explore/skewness": ["skewness", "block_triangular", "sparse_triangular"],
    "explore/rounds": ["rounds"],
    "explore/separate": ["many_dimensions", "rotation"],
    "explore/smc": ["pilot"],
    "explore/specifications": ["start", "specifications"],
    "explore/stages": ["start", "pilot"],
    "explore/moments": ["sparse_triangular", "block_triangular"],
    "explore/start": ["start"],
    "explore/store": ["adaptive", "explored", "rounds"],
    "explore/weighed": ["weighed"],
    "explore/tempered_run": ["noncentred", "pilot", "start"],
    "explore/triangular": ["triangular"],
    "explore/wide": ["known_points", "explored"],
    "io/export": ["export"],
    "io/files": ["files", "persistence"],
    "io/packing": ["persistence", "checkpoint"],
    "io/plain": ["files", "checkpoint"],
    "io/reader": ["persistence"],
    "io/registry": ["persistence", "schema"],
    "io/schema": ["schema", "persistence"],
    "io/writer": ["persistence"],
    "metrics/base": ["metrics"],
    "metrics/cost": ["metrics"],
    "metrics/marginals": ["metrics"],
    "metrics/modes": ["metrics"],
    "metrics/transport": ["metrics"],
    "models/conditional": ["families_parts", "families"],
    "models/conditional_diffusion": ["families_diffusion"],
    "models/diffusion": ["diffusion_model", "networks", "references", "losses"],
    "models/maps": ["maps", "consistency"],
    "models/networks": ["networks", "maps", "persistence"],
    "models/process": ["process", "references", "networks"],
    "models/shortcut": ["shortcut"],
    "models/specifications": ["specifications"],
    "models/splines": ["splines", "maps"],
    "plotting/__init__": PLOTS,
    "plotting/_arguments": PLOTS,
    "plotting/_calibration": ["families"],
    "plotting/_evidence": PLOTS,
    "plotting/_grids": PLOTS,
    "plotting/_panels": PLOTS,
    "plotting/_pictures": PLOTS,
    "plotting/_sampler": PLOTS,
    "plotting/_style": PLOTS,
    "plotting/_training": PLOTS,
    "targets/base": ["targets"],
    "targets/lattices": ["targets"],
    "targets/mixtures": ["targets"],
    "targets/pictures": ["targets"],
    "targets/posteriors": ["targets"],
    "targets/wells": ["targets"],
    "train/averages": ["training", "settings::test_fits"],
    "train/budget": ["own_draws::TestPace", "limits::TestBudget", "training", "pilot::TestLimit", "limits::TestFits"],
    "train/checkpoint": ["files", "checkpoint", "parallel"],
    "train/groups": ["families_parts"],
    "train/known_points": ["known_points"],
    "train/loop": ["training", "checkpoint"],
    "train/marginals": ["many_dimensions"],
    "train/objectives/base": ["training", "consistency", "losses"],
    "train/objectives/consistency": ["consistency"],
    "train/objectives/denoising": ["losses", "references", "families_diffusion"],
    "train/objectives/family": ["families_parts", "families"],
    "train/objectives/known_points": ["known_points", "consistency"],
    "train/objectives/likelihood": ["consistency", "adaptive"],
    "train/objectives/path": ["losses", "references"],
    "train/objectives/reverse_kl": ["own_draws", "consistency", "losses"],
    "train/objectives/self_consistency": ["shortcut", "consistency"],
    "train/objectives/specifications": ["specifications"],
    "train/optimizer": ["optimizer", "training"],
    "train/particles": ["mcmc", "pilot::TestSabotage"],
    "train/phases": ["training", "plotting"],
    "train/plateau": ["plateau"],
    "train/run": ["training"],
    "train/specifications": ["specifications"],
    "weights/calibration": ["families"],
    "weights/diagnosis": ["diagnosis"],
    "weights/evidence_curve": ["evidence_curve"],
    "weights/exports": ["export"],
    "weights/importance": ["importance", "streams"],
    "weights/injectivity": ["injectivity"],
    "weights/polish": ["polish"],
    "weights/rejection": ["rejection"],
    "weights/sample": ["importance", "export"],
    "weights/tail": ["importance"],
}
SOURCES = "tests/test_settings.py::test_whoever_makes_a_tensor_says_dtype_and_device"  # runs no line, but reads all

FLIPPED = {
    ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
SWAPPED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.MatMult: "+", ast.Mod: "*"}
NAMES = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "amin": "amax", "amax": "amin",
    "any": "all", "all": "any", "argmin": "argmax", "argmax": "argmin", "ceil": "floor", "floor": "ceil",
}  # fmt: skip
TOO_LONG = 97  # exit code
WORDS = {"warn", "warn_user", "note", "deprecated"}  # calls whose arguments are messages


@dataclass(frozen=True)
class Mutant:
    """A change of one place: offsets in the text of a file, and what stands there instead."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    old: str
    new: str

    def __str__(self):
        old, new = (" ".join(text.split())[:60] for text in (self.old, self.new))
        return f"{self.file}:{self.line} {self.kind}: {old!r} -> {new!r}"


class Finder(ast.NodeVisitor):
    """All mutants of a file."""

    def __init__(self, file: str, text: str):
        self.file, self.text, self.found = file, text, []
        self.starts = [0]
        for line in text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line.encode()))
        self.raw = text.encode()
        self.in_function = 0

    def offset(self, line, column):
        return self.starts[line - 1] + column

    def span(self, node):
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def add(self, kind, node_or_span, new, line=None):
        start, end = node_or_span if isinstance(node_or_span, tuple) else self.span(node_or_span)
        line = node_or_span.lineno if line is None else line
        self.found.append(Mutant(self.file, line, kind, start, end, self.raw[start:end].decode(), new))

    def code(self, node):
        start, end = self.span(node)
        return self.raw[start:end].decode()

    def between(self, left, right, kind, new):
        """Replace the operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        text = self.raw[start:end].decode()
        if "#" not in text:
            brackets = "".join(c for c in text if c in "()")
            middle = brackets.rfind(")") + 1
            self.add(kind, (start, end), f"{brackets[:middle]} {new} {brackets[middle:]}", left.lineno)

    # what is left alone
    def visit_JoinedStr(self, node):
        pass

    def visit_Raise(self, node):
        pass

    def visit_AnnAssign(self, node):
        if node.value is not None and "_parameter_constraints" not in ast.unparse(node.target):
            self.visit(node.value)

    def visit_arguments(self, node):
        for default in [*node.defaults, *node.kw_defaults]:
            if default is not None:
                self.visit(default)

    def visit_FunctionDef(self, node):
        self.in_function += 1
        self.visit(node.args)
        for statement in node.body:
            self.visit(statement)
        self.in_function -= 1

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    # mutations
    def visit_Compare(self, node):
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands[:-1], node.ops, operands[1:], strict=True):
            self.between(left, right, "comparison flipped", FLIPPED[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node):
        texts = [side for side in (node.left, node.right) if isinstance(side, ast.Constant | ast.JoinedStr)]
        if type(node.op) in SWAPPED and not any(isinstance(getattr(side, "value", ""), str) for side in texts):
            self.between(node.left, node.right, "operator swapped", SWAPPED[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        for left, right in zip(node.values[:-1], node.values[1:], strict=True):
            self.between(left, right, "and/or", "or" if isinstance(node.op, ast.And) else "and")
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.Not):
            self.add("not dropped", node, f"({self.code(node.operand)})")
        elif isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            self.add("minus dropped", node, f"({self.code(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, bool):
            self.add("constant changed", node, str(not node.value))
        elif isinstance(node.value, int | float):
            kind = "constant changed" if self.in_function else "setting changed"
            new = node.value + 1 if isinstance(node.value, int) else 10 * node.value or 1.0
            self.add(kind, node, repr(new))

    def visit_Return(self, node):
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.add("returns None", node, "return None")
        self.generic_visit(node)

    def visit_Call(self, node):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in WORDS:
            return
        if name in NAMES:
            end = self.span(node.func)[1]
            self.add("name swapped", (end - len(name), end), NAMES[name], node.lineno)
        parts = [*node.args, *node.keywords]
        for k, keyword in enumerate(parts):
            if isinstance(keyword, ast.keyword) and keyword.arg not in (None, "strict"):  # strict=True only asserts
                start, end = self.span(keyword)
                if k:
                    start = self.span(parts[k - 1])[1]
                    if self.raw[start:end].decode().lstrip().startswith(","):
                        self.add("argument dropped", (start, end), "", keyword.lineno)
                elif len(parts) == 1:
                    self.add("argument dropped", (start, end), "", keyword.lineno)
        self.generic_visit(node)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if self.in_function and isinstance(node.value, ast.Call) and "super().__init__" not in self.code(node):
            self.add("line deleted", node, "pass")
        self.generic_visit(node)

    def visit_Assign(self, node):
        target = node.targets[0]
        if self.in_function and isinstance(target, ast.Attribute | ast.Subscript):
            self.add("line deleted", node, "pass")
        if not (isinstance(target, ast.Name) and target.id == "__all__"):
            self.visit(node.value)

    def visit_AugAssign(self, node):
        if self.in_function:
            self.add("line deleted", node, "pass")
        self.visit(node.value)


def mutants_of(path: Path) -> list[Mutant]:
    """All mutants of a file that are Python still."""
    text = path.read_text(encoding="utf-8")
    finder = Finder(path.relative_to(ROOT).as_posix(), text)
    finder.visit(ast.parse(text))
    return finder.found


def apply(mutant: Mutant, raw: bytes) -> bytes:
    """The file with the change."""
    return raw[: mutant.start] + mutant.new.encode() + raw[mutant.end :]


def is_python(mutant: Mutant) -> bool:
    """Whether the file can be compiled with the change, and is another then."""
    raw = (ROOT / mutant.file).read_bytes()
    try:
        return ast.dump(ast.parse(apply(mutant, raw))) != ast.dump(ast.parse(raw))
    except SyntaxError:
        return False


def choose(files: list[Path], n: int, seed: int, settings: bool) -> list[Mutant]:
    """By the square root of what a file has, in rounds over all files; kinds of change are as likely as each other."""
    rng = random.Random(seed)
    found = {path: [m for m in mutants_of(path) if settings or m.kind != "setting changed"] for path in files}
    found = {path: some for path, some in found.items() if some}
    sizes = {path: len(some) ** 0.5 for path, some in found.items()}
    chosen, taken = [], Counter()
    while len(chosen) < n and any(found.values()):
        path = min((p for p in found if found[p]), key=lambda p: ((taken[p] + 1) / sizes[p], p))
        taken[path] += 1
        kind = rng.choice(sorted({mutant.kind for mutant in found[path]}))
        mutant = rng.choice([mutant for mutant in found[path] if mutant.kind == kind])
        found[path].remove(mutant)
        if is_python(mutant):
            chosen.append((taken[path], mutant))
    return [mutant for _, mutant in sorted(chosen, key=lambda pair: pair[0])]


def tests_of(mutant: Mutant) -> list[str]:
    """The files of tests that belong to a mutant, or the classes in them."""
    name = Path(mutant.file).relative_to("skcds").with_suffix("").as_posix()
    parts = [test.partition("::") for test in TESTS[name]]
    tests = [f"tests/test_{file}.py{separator}{node}" for file, separator, node in parts]
    return [*tests, SOURCES] if mutant.kind == "argument dropped" else tests


# ---------------------------------------------------------------- which tests run which lines


class Marker(ast.NodeTransformer):
    """Adds to every block of statements inside functions a call that tells that it is run."""

    def __init__(self, file: str):
        self.file, self.blocks, self.inside = file, [], False

    def generic_visit(self, node):
        outer, self.inside = self.inside, self.inside or isinstance(node, ast.FunctionDef)
        lists = [name for name in ("body", "orelse", "finalbody") if isinstance(getattr(node, name, None), list)]
        blocks = {name: getattr(node, name) for name in lists if getattr(node, name)} if self.inside else {}
        super().generic_visit(node)
        for name, block in blocks.items():
            if isinstance(node, ast.ClassDef):
                continue
            first = block[0].lineno
            self.blocks.append((first, block[-1].end_lineno))
            docstring = isinstance(block[0], ast.Expr) and isinstance(block[0].value, ast.Constant)
            mark = ast.parse(f"__reached__({f'{self.file}:{first}'!r})").body
            getattr(node, name)[docstring:docstring] = mark
        self.inside = outer
        return node


def marked(path: Path, file: str) -> str:
    """The text of a file with its blocks marked."""
    return ast.unparse(ast.fix_missing_locations(Marker(file).visit(ast.parse(path.read_text(encoding="utf-8")))))


def block_of(mutant: Mutant) -> str | None:
    """The innermost marked block that a mutant is in, or None where it is in no function."""
    marker = Marker(mutant.file)
    marker.visit(ast.parse((ROOT / mutant.file).read_text(encoding="utf-8")))
    around = [(last - first, first) for first, last in marker.blocks if first <= mutant.line <= last]
    return f"{mutant.file}:{min(around)[1]}" if around else None


class Recorder:
    """Plugin: the blocks that each test runs, and its processor time in seconds.

    What a cached function or a shared fixture ran is ascribed to all tests that use it.
    """

    def __init__(self, out: Path):
        self.out, self.reached, self.shared, self.tests = out, set(), {}, {}
        builtins.__reached__ = self.reached.add
        functools.cache = self.cache

    def cache(self, function):
        """In place of `functools.cache`."""
        known = {}

        @functools.wraps(function)
        def cached(*args, **options):
            key = args, tuple(options.items())
            if key not in known:
                with self.apart() as reached:
                    value = function(*args, **options)
                known[key] = value, reached
            self.reached.update(known[key][1])
            return known[key][0]

        cached.cache_clear = known.clear
        return cached

    @contextlib.contextmanager
    def apart(self):
        """What the block runs, as a set that is filled at its end."""
        outer, found = set(self.reached), set()
        self.reached.clear()
        try:
            yield found
        finally:
            found.update(self.reached)
            self.reached.update(outer)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        if fixturedef.scope == "function":
            return (yield)
        with self.apart() as found:
            result = yield
        self.shared.setdefault(fixturedef, set()).update(found)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item, nextitem):
        self.reached.clear()
        start = sum(os.times()[:4])
        result = yield
        seconds = sum(os.times()[:4]) - start
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            for definition in definitions:
                self.reached |= self.shared.get(definition, set())
        self.tests[item.nodeid] = {"seconds": round(seconds, 2), "reached": sorted(self.reached)}
        return result

    def pytest_sessionfinish(self):
        self.out.write_text(json.dumps(self.tests))


class Order:
    """Plugin: runs these tests alone, in this order; one fails that takes many times the time that is known of it."""

    def __init__(self, seconds: dict[str, float] | None):
        self.seconds = seconds

    def pytest_collection_modifyitems(self, items):
        if self.seconds is not None:
            place = {test: k for k, test in enumerate(self.seconds)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        if self.seconds is None:
            return (yield)

        def give_up(*_):
            os._exit(TOO_LONG)  # an exception would be taken for an example by Hypothesis, which looks for simpler ones

        signal.signal(signal.SIGVTALRM, give_up)
        signal.setitimer(signal.ITIMER_VIRTUAL, 20 + 20 * self.seconds[item.nodeid])
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


class Reached:
    """What is recorded of the tests: for each, its seconds and the blocks that it runs."""

    def __init__(self, path: Path | None):
        tests = json.loads(path.read_text()) if path else {}
        self.seconds = {name: test["seconds"] for name, test in tests.items()}
        self.files = {name.split("::")[0] for name in tests}
        self.by: dict[str, list[str]] = {}
        for name in sorted(tests, key=self.seconds.get):
            for block in tests[name]["reached"]:
                self.by.setdefault(block, []).append(name)

    def stages(self, mutant: Mutant, others: float) -> list[tuple[list[str], dict[str, float] | None]]:
        """Arguments of pytest and the seconds of the tests to run, None for all, one stage after the other."""
        own = tests_of(mutant)
        known = [test for test in own if test.split("::")[0] in self.files and test != SOURCES]
        block = block_of(mutant)
        if block is None or block not in self.by:
            return [([test], None) for test in own]
        belongs = {name: self.seconds[name] for name in self.by[block] if name.startswith(tuple(known))}
        beside, total = {}, 0.0
        for name in self.by[block]:
            if name not in belongs and (total := total + self.seconds[name]) < others:
                beside[name] = self.seconds[name]
        stages = [(sorted({name.split("::")[0] for name in some}), some) for some in (belongs, beside) if some]
        return [*stages[:1], *(([test], None) for test in own if test not in known), *stages[1:]]


# ---------------------------------------------------------------- runs


def _child(folder: str, arguments: list[str], log: str, plugins: list) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder
    sys.path[:] = [folder, *(entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "tests"))]
    sys.dont_write_bytecode = True
    os._exit(
        pytest.main(
            ["-q", "--tb=line", "--assert=plain", "-p", "no:cacheprovider", "-m", "not slow", *arguments],
            [plugin() for plugin in plugins],
        )
    )


def run(folder: Path, arguments: list[str], seconds: float, *plugins) -> tuple[str, str]:
    """Outcome of the tests, "passed", "failed", "timeout" or "not run", and the first failure."""
    log = folder.parent / "log.txt"
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(str(folder), arguments, str(log), plugins)
    )
    process.start()
    process.join(seconds)
    if process.is_alive():
        os.killpg(process.pid, 9)
        process.join()
        return "timeout", ""
    if process.exitcode == TOO_LONG:
        return "failed", "a test takes too long"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return {0: "passed", 5: "not run"}.get(process.exitcode, "failed"), "".join(lines[:1])[:300]


def judge(mutant: Mutant, folder: Path, seconds: float, sound: set[str], reached: Reached, others: float) -> dict:
    """Run the tests of a mutant in a copy, the files of tests one after the other where nothing is recorded of them.

    A test that fails is run without the change, too, once: it has to pass, or it says nothing.
    """
    path, start = folder / mutant.file, time.perf_counter()
    before = path.read_bytes()
    path.write_bytes(apply(mutant, before))
    by, outcomes = [], []
    try:
        for tests, those in reached.stages(mutant, others):
            outcome, said = run(folder, ["-x", *tests], seconds, functools.partial(Order, those))
            by = [tests[0], said]
            outcomes.append(outcome)
            if outcome in ("failed", "timeout"):
                break
    finally:
        path.write_bytes(before)
    outcome = outcomes[-1] if outcomes[-1] != "not run" else outcomes[0]
    test = by[1].removeprefix("FAILED ").split(" - ")[0]
    if outcome == "failed" and test.startswith("tests/") and test not in sound:
        if run(folder, ["-x", test], seconds)[0] == "failed":
            outcome = "unsound"
        else:
            sound.add(test)
    caught = outcome == "failed"
    return {**asdict(mutant), "caught": caught, "outcome": outcome, "by": [] if outcome == "passed" else by,
            "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip


def record(folder: Path, out: Path, files: list[str]) -> None:
    """Run files of tests in a copy whose blocks are marked, one after the other; what is there is not run again."""
    for path in (folder / "skcds").rglob("*.py"):
        path.write_text(marked(path, path.relative_to(folder).as_posix()), encoding="utf-8")
    first = folder / "skcds" / "__init__.py"  # other processes that tests start have no record
    text = "import builtins\nbuiltins.__reached__ = getattr(builtins, '__reached__', id)\n"
    first.write_text(text + first.read_text(encoding="utf-8"), encoding="utf-8")
    known = json.loads(out.read_text()) if out.exists() else {}
    for file in files or sorted(path.name for path in (folder / "tests").glob("test_*.py")):
        if any(name.startswith(f"tests/{file}::") for name in known):
            continue
        one = folder.parent / "one.json"
        one.unlink(missing_ok=True)
        outcome, said = run(folder, [f"tests/{file}"], 7200.0, functools.partial(Recorder, one))
        found = json.loads(one.read_text()) if one.exists() else {}
        known |= found
        print(f"{sum(test['seconds'] for test in found.values()):7.1f} s  {outcome:7s} {file}  {said}", flush=True)
        one.write_text(json.dumps(known))
        shutil.move(one, out)  # at once, for those that read it meanwhile


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=150, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="+", type=Path, help="files of skcds; by default all")
    parser.add_argument("--seconds", type=float, default=300.0, help="limit for a file of tests")
    parser.add_argument("--json", type=Path, help="where results go, and what is there is not run again")
    parser.add_argument("--again", action="store_true", help="run those that survived again, the first of all")
    parser.add_argument("--settings", action="store_true", help="change numbers at the top of modules, too")
    parser.add_argument("--record", type=Path, help="where to write what tests run; what is there is not run again")
    parser.add_argument("--tests", nargs="+", help="files of tests that are recorded; by default all")
    parser.add_argument("--reached", type=Path, help="what was recorded")
    parser.add_argument("--others", type=float, default=60.0, help="processor time of tests of other files")
    parser.add_argument("--list", action="store_true", help="show the mutants only")
    options = parser.parse_args()
    files = [path.resolve() for path in options.files or sorted((ROOT / "skcds").rglob("*.py"))]
    mutants = choose(files, options.n, options.seed, options.settings)
    if options.list:
        print("\n".join(map(str, mutants)))
        return
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    if options.again:
        mutants = [Mutant(**{k: r[k] for k in Mutant.__annotations__}) for r in results if not r["caught"]]
        results = [r for r in results if r["caught"]]
    known = {(r["file"], r["start"], r["new"]) for r in results}
    import hypothesis  # noqa: F401  what all tests need is imported once, before the forks
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.utils.estimator_checks  # noqa: F401
    import torch

    torch.set_num_threads(1)
    sound: set[str] = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "skcds"
        ignored = shutil.ignore_patterns(".git", "_build", "__pycache__", ".*_cache", ".hypothesis", "generated")
        shutil.copytree(ROOT, folder, ignore=ignored)
        if options.record:
            record(folder, options.record.resolve(), options.tests or [])
            return
        for k, mutant in enumerate(mutants):
            if (mutant.file, mutant.start, mutant.new) in known:
                continue
            reached = Reached(options.reached)  # which may be written meanwhile
            result = judge(mutant, folder, options.seconds, sound, reached, options.others)
            results.append(result)
            word = "caught" if result["caught"] else "SURVIVED" if result["outcome"] == "passed" else result["outcome"]
            print(f"{k + 1:4d} {word:8s} {result['seconds']:6.1f} s  {mutant}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    n_caught = sum(r["caught"] for r in results)
    n_run = sum(r["outcome"] in ("failed", "passed") for r in results)
    print(f"\n{n_run} mutants of {len({r['file'] for r in results})} files, {n_caught} caught")


if __name__ == "__main__":
    main()
