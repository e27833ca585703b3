"""The house's rules: imports run one way and in no circle, and heavy ones stay behind the command that needs them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from curate.scoring.policies import POLICIES
from curate.scoring.tasks import TASKS

ROOT = Path(__file__).parent.parent
BASE = {"errors", "units", "ledger", "options", "lazy", "progress", "threads"}
ALLOWED = {
    "errors": set(),
    "lazy": set(),
    "units": {"errors"},
    "threads": set(),
    "ledger": {"errors", "units"},
    "progress": {"units"},
    "streams": set(),
    "options": {"errors", "units"},
    "datasets": BASE,
    "scoring": {*BASE, "datasets"},
    "pipelines": {*BASE, "datasets", "scoring"},
    "training": {*BASE, "datasets", "scoring"},
    "reports": {*BASE, "datasets", "scoring"},
    "studies": {*BASE, "datasets", "scoring", "training"},
    "command": BASE,
    "pages": {*BASE, "command", "datasets", "reports"},
    "entry": {*BASE, "streams", "datasets", "training"},
    "offered": {*BASE, "command", "training", "studies"},
    "cli": {
        *BASE,
        *("command", "entry", "offered", "pages", "datasets", "scoring", "pipelines", "training", "studies", "reports"),
    },
}


def modules():
    for room in ALLOWED:
        yield from sorted((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_name(path) for path in modules()}


def imports(path: Path):
    """(module within the package, or None; top-level library, or None) of every import, wherever it stands."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((None, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield None, (node.module or "").split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            module = ".".join((*base, *((node.module,) if node.module else ())))
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield (inner if inner in NAMES else module or alias.name), None


@pytest.mark.parametrize("path", list(modules()), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for inner, library in imports(path):
        if inner is not None:
            target = inner.split(".")[0]
            assert target in ALLOWED[room] | {room, "__version__"}, f"{room} must not import {inner}"
        if library == "apache_beam":
            assert room == "pipelines"
        if library == "fsspec":
            assert path.name in ("storage.py", "writing.py"), "elsewhere its file systems' own errors would be met"
        assert library != "curate", "imports inside the package are relative"


def test_no_circle():
    """Also where an import stands in a function or serves types alone."""
    graph = {module_name(path): {inner for inner, _ in imports(path) if inner in NAMES} for path in modules()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for inner in sorted(graph[module] - {module}):
                visit(inner, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_files_stay_readable():
    long = [str(p.relative_to(ROOT)) for p in modules() if len(p.read_text().splitlines()) > 400]
    assert not long, f"past 400 lines: {long}"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["sql", "SELECT 1"], ["train", "--help"]])
def test_light_commands_import_neither_torch_nor_beam(arguments, tmp_path):
    code = (
        "import sys; sys.argv = ['curate', *sys.argv[1:]]\n"
        "from curate.cli import app\n"
        "try: app()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'apache_beam', 'timm', 'open_clip'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


MISTAKES = """
train --dataset there --learner L --steps 1 --polcy uniform
train --dataset there --learner L --steps 1 --policy lucky
train --dataset unknown --learner L --steps 1
train --dataset there --learner L --steps 1 --lr -1
train --dataset none/{0..3}.tar --learner L --steps 1
train --dataset there --learner L --steps 1 --policy easy-reference --reference-scores none
train --dataset there --learner L --steps 1 --config none.toml
train --learner L --steps 1
score-reference --dataset unknown --reference L
score-reference --dataset none/{0..3}.tar --reference L
score-reference --dataset there --reference L --batch-size 0
compare --dataset unknown --learner L --budget-flops 1TF
plan --dataset unknown --learner L --online S --budget-flops 1TF
plan
evaluate L --dataset unknown
status none
status runs
inspect none
export x.npy --dataset unknown --keep 1 --by loss
export x.npy --dataset there --keep 1 --by loss
prepare unknown
card none
doctor --dataset unknown
"""


def test_a_simple_mistake_is_told_before_torch_and_beam_are_imported(tmp_path):
    """Their imports take seconds. `runs` holds a run, `there` is a data set whose one shard is there."""
    (tmp_path / "there.tar").write_bytes(bytes(10240))
    (tmp_path / "curate.toml").write_text(
        '[datasets.there]\ntrain = "there.tar"\nlabel = "cls"\nclasses = ["a", "b"]\n'
    )
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/config.json").write_text("{}")
    code = (
        "import sys\n"
        "from curate.cli import app\n"
        "for line in sys.stdin.read().split('\\n'):\n"
        "    if not line: continue\n"
        "    sys.argv = ['curate', *line.split()]\n"
        "    try: app()\n"
        "    except SystemExit as e: assert e.code, line\n"
        "    else: raise AssertionError(line)\n"
        "    heavy = {'torch', 'apache_beam', 'timm', 'open_clip'} & set(sys.modules)\n"
        "    assert not heavy, (line, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=MISTAKES, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("curate: ") == MISTAKES.count("\n") - 1, done.stderr


def test_who_scores_classes_does_not_wait_for_open_clip():
    code = "import sys, curate.scoring.tasks; assert not {'open_clip', 'timm', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def literals(path: Path):
    """(line, text) of every string that is a value: docstrings and parts of f-strings are prose."""
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    prose |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value


# A word of matplotlib's.
ELSEWHERE = {"inspect_plots.py": {"auto"}}
REGISTRIES = {"ledger.py", "scoring/policies.py", "scoring/__init__.py", "datasets/targets.py"}


@pytest.mark.parametrize("path", list(modules()), ids=lambda p: str(p.relative_to(ROOT)))
def test_policies_and_tasks_are_named_in_their_registries_alone(path):
    names = {*POLICIES, *TASKS}
    found = [
        f"line {line}: {text!r}" for line, text in literals(path) if text in names - ELSEWHERE.get(path.name, set())
    ]
    assert not found or str(path.relative_to(ROOT)) in REGISTRIES, found


@pytest.mark.parametrize("path", list(modules()), ids=lambda p: str(p.relative_to(ROOT)))
def test_one_module_alone_talks_to_other_ranks(path):
    """Shards are tensors of torch.distributed; group.py has no use for them."""
    text = path.read_text()
    assert "torch.distributed" not in text or str(path.relative_to(ROOT)) in (
        "training/group.py",
        "training/sharding.py",
    )
