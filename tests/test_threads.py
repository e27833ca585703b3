"""Cores by affinity and container, and how OpenMP's threads wait."""

import os
import subprocess
import sys

import pytest
from curate import threads


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "800000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_limit_is_read(tmp_path, files, limit):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert threads.cgroup_limit(tmp_path) == limit


@pytest.mark.parametrize(("limit", "cores"), [(None, 12), (2.9, 2), (0.5, 1), (64.0, 12)])
def test_cores_are_bounded_by_affinity_and_container(monkeypatch, limit, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setattr(threads, "cgroup_limit", lambda: limit)
    assert threads.cores() == cores


def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(threads, "cgroup_limit", lambda: None)
    empty, own = {}, {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "3"}
    threads.settle(empty)
    assert empty == {"OMP_WAIT_POLICY": "PASSIVE"}
    threads.settle(own)
    assert own == {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "3"}


def test_a_containers_limit_bounds_the_threads_of_torch(monkeypatch):
    monkeypatch.setattr(threads, "cgroup_limit", lambda: 1.0)
    environment = {}
    threads.settle(environment)
    assert environment["OMP_NUM_THREADS"] == "1"


STARTS = """
import os, sys
from curate.cli import app
sys.argv = ["curate", "--version"]
try:
    app()
except SystemExit:
    pass
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""


def test_a_command_settles_its_threads_before_torch_is_imported():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    told = subprocess.check_output([sys.executable, "-c", STARTS], env=environment, text=True)
    assert told.splitlines()[-1] == "PASSIVE False"
