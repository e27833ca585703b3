"""The house's rules: imports run one way, and heavy ones stay behind the command that needs them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "errors": set(),
    "datasets": {"errors"},
    "scoring": {"errors", "datasets"},
    "pipelines": {"errors", "datasets", "scoring"},
    "training": {"errors", "datasets", "scoring"},
    "reports": {"errors", "datasets", "scoring"},
    "cli": {"errors", "datasets", "scoring", "pipelines", "training", "reports"},
}


def modules():
    yield from (ROOT / name for name in ("errors.py", "cli.py"))
    for room in ("datasets", "scoring", "pipelines", "training", "reports"):
        yield from sorted((ROOT / room).rglob("*.py"))


def imports(path: Path):
    """(absolute module path within the package, or top-level library) of every import, wherever it stands."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((None, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield None, (node.module or "").split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            names = [(node.module or alias.name) for alias in node.names]
            for name in names:
                yield ".".join((*base, name)), None


@pytest.mark.parametrize("path", list(modules()), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for inner, library in imports(path):
        if inner is not None:
            target = inner.split(".")[0]
            assert target in ALLOWED[room] | {room, "__version__"}, f"{room} must not import {inner}"
        if library == "apache_beam":
            assert room == "pipelines"
        assert library != "curate", "imports inside the package are relative"


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
