"""The real command on real engines, each table compared row by row with the default local runner's.

`make test-engines` sets up what they need and runs this. An engine that is not there fails its tests.
"""

import sys
from contextlib import ExitStack

import pytest
from curate.datasets.spec import add_dataset
from engines.support import (
    BAD_PICTURES,
    COMMAND_SECONDS,
    LOSING_METRICS,
    SHARDS,
    TRYING_AGAIN,
    WITHOUT_METRICS,
    Work,
    dask_cluster,
)
from support.tables import assert_same_table, failures
from support.tars import read_tar, write_tar

pytestmark = [pytest.mark.engines, pytest.mark.timeout(4 * COMMAND_SECONDS)]


def test_the_table_is_the_local_runners_and_again_there_is_nothing_to_do(engine, digit_shards, local_digits):
    result = digit_shards.score(engine.options, out=engine.name)
    folder = digit_shards.table(result)
    assert f"{900 - len(BAD_PICTURES)} examples scored, {len(BAD_PICTURES)} failed, {SHARDS} shards" in result.err
    assert [f["shard"] for f in failures(local_digits)] == [f"{i:05d}" for i in BAD_PICTURES]
    assert_same_table(folder, local_digits)
    # Seconds by stage come from the engine's metrics; one that keeps none says so.
    without = "this Beam runner gives no metrics" in result.err
    assert without == ("; over all workers: " not in result.err)
    assert without == (engine.name in WITHOUT_METRICS) or engine.name in LOSING_METRICS

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    again = digit_shards.score(engine.options, out=engine.name)
    assert again.code == 0, again.err
    assert f"{SHARDS} shards done, 0 to do" in again.err
    assert f"{SHARDS} shards (0 in this call)" in again.err
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")} == before


def test_image_text_with_embeddings(engine, pair_shards, local_pairs):
    folder = pair_shards.table(pair_shards.score(engine.options, out=engine.name))
    assert_same_table(folder, local_pairs)


def test_a_shard_that_cannot_be_read_is_one_line_and_the_others_are_scored(engine, digit_shards, local_digits):
    path = digit_shards.folder / "shards/00012.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-11_000])
    try:
        result = digit_shards.score(engine.options, out=f"{engine.name}-cut")
    finally:
        path.write_bytes(whole)
    assert result.code == 1
    assert "00012.tar: the tar is cut or damaged" in result.error
    assert f"the other {SHARDS - 1} shards are scored, run again to resume" in result.error
    folder = digit_shards.table(digit_shards.score(engine.options, out=f"{engine.name}-cut"))
    assert_same_table(folder, local_digits)


def test_a_workers_error_reaches_the_user_as_its_one_line(engine, digit_shards, tmp_path):
    """More failures than allowed end the job on the worker, as soon as it has read enough examples to judge.

    Where a job that fails is tried again, its shards are committed by then, and their count ends it.
    """
    members = [m for i in range(SHARDS) for m in read_tar(digit_shards.folder / f"shards/{i:05d}.tar")]
    bad = [(name, b"no picture" if name.endswith(".png") else content) for name, content in members]
    for i in range(2):
        twice = [(f"again-{name}", content) for name, content in bad]
        write_tar(tmp_path / f"shards/{i:05d}.tar", [*bad, *twice])
    add_dataset(tmp_path / "curate.toml", "bad", {"train": "shards/{00000..00001}.tar", "image": "png", "classes": 10})
    result = Work(tmp_path, ("--dataset", "bad", *digit_shards.options[2:])).score(engine.options)
    assert result.code == 1
    # Beam prints the worker's traceback too, before or after.
    (line,) = [line for line in result.err.splitlines() if line.startswith("curate: ")]
    read = "3,600" if engine.name in TRYING_AGAIN else "1,800"
    assert line.startswith(f"curate: {read} of {read} examples failed (100.0%, allowed 1.0%); the reasons are in "), (
        line
    )
    assert ("not a readable image" in line) == (engine.name not in TRYING_AGAIN)


def test_both_workers_of_a_dask_cluster_score_shards(digit_shards, tmp_path):
    from distributed import Client

    with ExitStack() as stack:
        options = dask_cluster(stack, tmp_path)
        with Client(options[1].split("=")[1]) as client:
            client.wait_for_workers(2, timeout=COMMAND_SECONDS)
            digit_shards.table(digit_shards.score(options, out="both"))
            loaded = client.run(lambda: "curate.scoring.shard" in sys.modules)
    assert list(loaded.values()) == [True, True]
