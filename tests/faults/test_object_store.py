"""A table on S3 whose writer is killed, whose server loses answers, and whose server fails for good and comes back."""

import random
import time

import pytest
from curate.scoring.tables.lookup import open_scores
from faults.support import SHARDS, finish, start, the_one_line
from support.s3_server import s3_server
from support.tables import assert_same_rows

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
KILLS, SEED = 8, 2312


@pytest.fixture(scope="module")
def one_server():
    with s3_server() as made:
        yield made


@pytest.fixture
def server(one_server):
    one_server.mend()
    yield one_server
    one_server.mend()


@pytest.fixture
def out(request) -> str:
    return f"s3://bucket/{request.node.name}"


@pytest.fixture
def table(many, out) -> str:
    """The table's URL."""
    return f"{out}/{many.undisturbed.parent.name}/{many.undisturbed.name}"


def committed(url: str) -> dict[str, list]:
    """Every shard that is there, read whole."""
    table = open_scores(url)
    return {name: table.shard(name).loss.tolist() for name in table.shard_names()}


def test_kill_9_of_the_driver_between_puts(many, server, out, table, tmp_path):
    chance, errors, kept = random.Random(SEED), tmp_path / "errors", {}
    server.every = 20
    for kill in range(KILLS):
        process = start(many.command(out), errors)
        deadline, wanted = time.monotonic() + 600, len(kept) + chance.randint(1, 25)
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if len(open_scores(table).shard_names()) >= wanted:
                    break
            except Exception:  # no table yet, or a request refused once too often
                pass
            time.sleep(chance.uniform(0.05, 0.2))
        assert process.poll() is None, f"seed {SEED}, kill {kill}: {errors.read_text()}"
        process.kill()
        process.wait()
        now = committed(table)
        assert {name: now[name] for name in kept} == kept
        kept = now
    assert 0 < len(kept) < SHARDS, "every kill must hit a job that had work left"
    finish(many.command(out), errors)
    assert server.refused
    assert_same_rows(table, many.undisturbed)


def test_answers_that_are_lost_after_the_work_was_done(many, server, out, table, tmp_path):
    server.every, server.lost_answers = 15, True
    finish(many.command(out), tmp_path / "errors")
    assert server.refused > 10
    server.mend()
    assert_same_rows(table, many.undisturbed)


def test_a_store_that_takes_no_more_writes_is_one_line_and_later_the_rest_is_made(many, server, out, table, tmp_path):
    errors = tmp_path / "errors"
    server.writes_fail_after = 100
    process = start(many.command(out), errors)
    assert process.wait(timeout=600) == 1, errors.read_text()
    assert "cannot be written" in the_one_line(errors)
    server.mend()
    kept = committed(table)
    assert 0 < len(kept) < SHARDS
    finish(many.command(out), errors)
    now = committed(table)
    assert {name: now[name] for name in kept} == kept
    assert_same_rows(table, many.undisturbed)
