"""kill -9 at random moments, of the driver and of workers: what is committed stays, and the rest is made."""

import random
import time

import psutil
import pytest
from curate.scoring.tables.lookup import open_scores
from faults.support import SHARDS, finish, gone, start, the_one_line, wait_until, workers
from support.tables import assert_same_table, score_files

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
KILLS = 20
SEED = 2312


def wait_for_a_moment(chance, process, folder, from_the_start):
    """A third of the moments lie in starting up, the others some shards later than that."""
    if chance.random() < 1 / 3:
        time.sleep(chance.uniform(0, from_the_start))
        return "starting up"
    before, wanted = len(score_files(folder)) if folder.exists() else 0, chance.randint(1, 12)
    wait_until(
        lambda: len(list(folder.glob("*.parquet"))) >= before + wanted, process, f"{wanted} shards more than {before}"
    )
    time.sleep(chance.uniform(0, 0.02))
    return f"{wanted} shards after {before}"


def check_committed(folder, committed, told):
    """Nothing committed has changed, and every score file is whole. Returns what is committed now."""
    now = score_files(folder) if folder.exists() else {}
    assert {name: now.get(name) for name in committed} == committed, told
    if now:
        assert {name.removesuffix(".parquet") for name in now} == open_scores(str(folder)).shard_names(), told
        open_scores(str(folder)).check()
    return now


def test_kill_9_of_the_driver(many, tmp_path):
    chance, folder, errors = random.Random(SEED), many.table(tmp_path / "scores"), tmp_path / "errors"
    command, committed, moments = many.command(tmp_path / "scores"), {}, []
    for kill in range(KILLS):
        process = start(command, errors)
        moment = wait_for_a_moment(chance, process, folder, from_the_start=4)
        told = f"seed {SEED}, kill {kill}, {moment}: {errors.read_text()}"
        running = workers(process)
        assert process.poll() is None, told
        process.kill()
        process.wait()
        assert gone(running, seconds=10), f"workers outlive the driver: {told}"
        committed = check_committed(folder, committed, told)
        moments.append(moment)
    assert len(committed) < SHARDS, "every kill must hit a job that had work left"
    finish(command, errors)
    check_committed(folder, committed, "finished")
    assert_same_table(folder, many.undisturbed)
    print(f"{len(moments)} kills of the driver: {moments.count('starting up')} while starting up")


def test_kill_9_of_a_worker(many, tmp_path):
    chance, folder, errors = random.Random(SEED + 1), many.table(tmp_path / "scores"), tmp_path / "errors"
    command, committed, seconds = many.command(tmp_path / "scores", "--", "--direct_num_workers=2"), {}, []
    for kill in range(KILLS):
        process = start(command, errors)
        wait_until(lambda p=process: len(workers(p)) == 2, process, "two workers")
        moment = wait_for_a_moment(chance, process, folder, from_the_start=1.5)
        told = f"seed {SEED + 1}, kill {kill}, {moment}: {errors.read_text()}"
        running = workers(process)
        assert len(running) == 2, told
        killed = chance.choice(running)
        psutil.Process(killed.pid).kill()
        started = time.monotonic()
        assert process.wait(timeout=120) == 1, told
        seconds.append(time.monotonic() - started)
        assert f"worker process {killed.pid} was killed by signal 9" in the_one_line(errors), told
        assert gone(running, seconds=5), told
        committed = check_committed(folder, committed, told)
    assert len(committed) < SHARDS, "every kill must hit a job that had work left"
    finish(command, errors)
    check_committed(folder, committed, "finished")
    assert_same_table(folder, many.undisturbed)
    print(f"{len(seconds)} kills of a worker: the job ended after {min(seconds):.1f}..{max(seconds):.1f} s")
