"""What a wheel, the sdist and the workers' container are made of."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Folders of the repository that are not in the package.
BESIDE = {"tests", "docs", "examples", "experiments", "benchmarks"}
# setuptools says which files it would put into a wheel. It changes Python's own modules, so it runs by itself.
LISTED = """
from setuptools import Distribution
made = Distribution({"script_name": "setup.py"})
made.parse_config_files()
build = made.get_command_obj("build_py")
build.ensure_finalized()
print(*build.get_outputs(include_bytecode=False), sep="\\n")
"""


def tracked():
    """The files of the repository; all that are there where it is no clone."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]
    return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if ".cache" not in path.parts]


def test_the_wheel_has_the_whole_package_and_nothing_beside():
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs the setuptools that pyproject.toml names")
    done = subprocess.run([sys.executable, "-c", LISTED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {line.removeprefix("build/lib/") for line in done.stdout.splitlines()}
    code = {name for name in tracked() if name.endswith(".py") and name.split("/")[0] not in BESIDE}
    assert found == {f"curate/{name}" for name in code | {"py.typed"}}


def test_every_file_in_the_packages_folders_is_code():
    """Anything else, such as a template, would have to be named as package data."""
    rooms = {package.split(".")[1] for package in PROJECT["tool"]["setuptools"]["packages"] if "." in package}
    assert [n for n in tracked() if n.split("/")[0] in rooms and not n.endswith(".py")] == []


def test_the_container_has_the_versions_of_the_constraints_and_all_that_it_builds_from():
    text = (ROOT / "Dockerfile").read_text()
    (beam,) = re.findall(r"^ARG BEAM=(\S+)$", text, re.MULTILINE)
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"apache-beam=={beam}" in constraints
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in PROJECT["project"]["classifiers"]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {package.split(".")[1] for package in PROJECT["tool"]["setuptools"]["packages"] if "." in package}
    needed = {"*.py", "py.typed", "pyproject.toml", "constraints.txt", PROJECT["project"]["readme"], *packages}
    assert kept == needed | set(PROJECT["project"]["license-files"])
