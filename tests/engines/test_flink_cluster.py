"""A standalone Flink of two task managers, one of which is killed while a job runs."""

import os
import signal
from contextlib import ExitStack

import psutil
import pytest
from engines.support import COMMAND_SECONDS, Work, start_flink_cluster
from faults.support import SHARDS, Many, make_many, wait_until
from support.tables import assert_same_table, score_files

pytestmark = [pytest.mark.engines, pytest.mark.timeout(4 * COMMAND_SECONDS)]


@pytest.fixture(scope="module")
def many(digits, tmp_path_factory) -> Many:
    return make_many(digits, tmp_path_factory.mktemp("many"))


def python_workers(process: psutil.Process) -> set[int]:
    """Workers that Beam's pool has started for somebody."""
    return {p.pid for p in process.children(recursive=True) if "apache_beam" in " ".join(p.cmdline())}


def test_a_task_manager_killed_in_mid_job_costs_no_shard(many, tmp_path):
    work = Work(many.root, ("--config", str(many.toml), "--dataset", "many", "--reference", many.reference))
    folder, log = many.table(tmp_path / "scores"), tmp_path / "log"
    with ExitStack() as stack:
        cluster = start_flink_cluster(stack, tmp_path)
        process = work.start(cluster.options, out=str(tmp_path / "scores"), log=log)
        wait_until(lambda: len(list(folder.glob("*.parquet"))) >= SHARDS // 10, process, "a tenth of the shards")
        ours = psutil.Process(os.getpid())
        assert len(python_workers(ours)) >= 2, "a worker process for each task manager"
        committed = score_files(folder)
        assert len(committed) < SHARDS, "the kill must hit a job that has work left"
        os.killpg(cluster.task_managers[0].pid, signal.SIGKILL)
        assert process.wait(COMMAND_SECONDS) == 0, log.read_text()
        now = score_files(folder)
        assert {name: now[name] for name in committed} == committed
    assert_same_table(folder, many.undisturbed)
