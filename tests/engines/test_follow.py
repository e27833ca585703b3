"""`score-reference --follow` on engines that run without an end: shards land while it runs, is killed, and runs again."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from curate.datasets.spec import add_dataset
from engines.support import COMMAND_SECONDS, ENGINES, Work
from faults.support import wait_until
from support.commands import start_curate
from support.tables import assert_same_table, score_files
from support.tars import reshard

pytestmark = [pytest.mark.engines, pytest.mark.timeout(4 * COMMAND_SECONDS)]
SHARDS, SECONDS = 30, 1


@pytest.fixture(autouse=True)
def interruptible():
    """A shell that runs this in the background has it, and so all that it starts, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["prism", "flink"])
def options(request, tmp_path):
    with ExitStack() as stack:
        yield ENGINES[request.param](stack, tmp_path)


@pytest.fixture
def landing(digits, tmp_path) -> Work:
    """An empty inbox that is a data set, and the shards that are to land in it."""
    reshard(sorted((digits.root / "data/digits/train").glob("*.tar")), tmp_path / "made", SHARDS)
    (tmp_path / "inbox").mkdir()
    add_dataset(tmp_path / "curate.toml", "landing", {"train": "inbox/*.tar", "image": "png", "classes": 10})
    return Work(tmp_path, ("--dataset", "landing", "--reference", digits.reference))


def land(work: Path, *shards: int) -> None:
    for shard in shards:
        shutil.copy(work / f"made/{shard:05d}.tar", work / f"inbox/.{shard:05d}")
        os.rename(work / f"inbox/.{shard:05d}", work / f"inbox/{shard:05d}.tar")


def write_slowly(work: Path, shard: int, until: float = 1.0, pieces: int = 8) -> None:
    """In place, for longer than two looks; less than all of it leaves a shard whose writer has paused."""
    content = (work / f"made/{shard:05d}.tar").read_bytes()
    with open(work / f"inbox/{shard:05d}.tar", "wb") as file:
        for i in range(round(pieces * until)):
            file.write(content[i * len(content) // pieces : (i + 1) * len(content) // pieces])
            file.flush()
            time.sleep(SECONDS / 2)


def names(folder: Path) -> set[int]:
    return {int(path.stem) for path in folder.glob("*.parquet")}


def stop(process: subprocess.Popen, number: int) -> int:
    os.kill(process.pid, number)
    return process.wait(COMMAND_SECONDS)


def test_shards_are_scored_as_they_land_and_a_restarted_follower_misses_none_and_repeats_none(options, landing):
    work, log = landing.folder, landing.folder / "log"
    follow = ("--follow", "--every", str(SECONDS))

    def start() -> subprocess.Popen:
        return landing.start(options, *follow, out="followed", log=log)

    def wait_for(process: subprocess.Popen, *shards: int) -> None:
        wait_until(lambda: set(shards) <= names(found()), process, f"shards {shards}", COMMAND_SECONDS)

    def found() -> Path:
        return next(work.glob("followed/*/*"), work / "none")

    process = start()
    wait_until(lambda: (found() / "_manifest.json").exists(), process, "a table without shards", COMMAND_SECONDS)
    land(work, *range(6))
    wait_for(process, *range(6))
    write_slowly(work, 6)
    write_slowly(work, 7, until=0.6)
    land(work, *range(8, 12))
    wait_for(process, 6, *range(8, 12))
    wait_until(lambda: (found() / "_errors/00007.json").exists(), process, "word of the shard that is not whole")
    assert 7 not in names(found())
    assert "cut or damaged" in (found() / "_errors/00007.json").read_text()

    land(work, *range(12, 16))
    os.killpg(process.pid, signal.SIGKILL)  # with what it started
    process.wait()
    committed = score_files(found())
    land(work, *range(16, 20))  # nobody looks

    process = start()
    wait_for(process, *range(12, 20))
    land(work, 7)
    wait_for(process, 7)
    land(work, *range(20, 25))
    wait_for(process, *range(20, 25))
    assert stop(process, signal.SIGTERM) == 0, log.read_text()
    assert "900 examples" not in log.read_text() and "25 shards" in log.read_text()

    process = start()
    land(work, *range(25, SHARDS))
    wait_for(process, *range(SHARDS))
    time.sleep(3 * SECONDS)
    assert stop(process, signal.SIGINT) == 0, log.read_text()
    assert f"{SHARDS} shards" in log.read_text().splitlines()[-1]
    now = score_files(found())
    assert {name: now[name] for name in committed} == committed

    everything = landing.score(out="at-once")
    assert_same_table(found(), landing.table(everything))


def test_a_shard_that_is_written_to_after_it_was_scored_ends_the_job_with_what_to_do(options, landing):
    log = landing.folder / "log"
    land(landing.folder, 0, 1)
    process = landing.start(options, "--follow", "--every", str(SECONDS), out="followed", log=log)
    wait_until(lambda: len(list(landing.folder.glob("followed/*/*/*.parquet"))) == 2, process, "two shards")
    time.sleep(2 * SECONDS)
    shutil.copy(landing.folder / "made/00002.tar", landing.folder / "inbox/longer")
    with open(landing.folder / "inbox/longer", "ab") as file:
        file.write(bytes(10240))
    os.rename(landing.folder / "inbox/longer", landing.folder / "inbox/00001.tar")
    assert process.wait(COMMAND_SECONDS) == 1
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("curate: ")]
    assert "shard '00001' was scored at size" in line
    assert "delete 00001.parquet there to score it again" in line


def test_a_run_trains_on_what_a_follower_scores_meanwhile(landing, tmp_path):
    """The run is killed once. While it is away, more lands."""
    work, run = landing.folder, landing.folder / "runs/run"
    models = ("--policy", "learnability", "--learner", "small_resnet_w8", "--online", "small_resnet_w8_plain")
    about = ("--steps", 1000, "--batch-size", 16, "--precision", "fp32", "--checkpoint-every", 10, "--log-every", 1)
    given = (
        *models,
        *about,
        "--reference-scores",
        "followed",
        "--name",
        "run",
        "--no-evaluate",
        "--follow",
        "--resume",
    )

    def taken() -> int:
        records = run / "shards.json"
        return sum(len(epoch["new"]) for epoch in json.loads(records.read_text())["epochs"]) if records.exists() else 0

    def train() -> subprocess.Popen:
        with (work / "train.log").open("a") as file:
            return start_curate("train", "--dataset", "landing", *map(str, given), cwd=work, stderr=file)

    with ExitStack() as stack:
        options = ENGINES["prism"](stack, tmp_path)
        land(work, *range(4))
        follower = landing.start(options, "--follow", "--every", str(SECONDS), out="followed", log=work / "log")

        def wait_for_scores(count: int) -> None:
            pattern = "followed/*/*/[0-9]*.parquet"
            wait_until(lambda: len([*work.glob(pattern)]) == count, follower, f"{count} shards", COMMAND_SECONDS)

        wait_for_scores(4)
        learner = train()
        wait_until(lambda: (run / "metrics.jsonl").exists(), learner, "the first step", COMMAND_SECONDS)
        land(work, *range(4, 13))
        wait_until(lambda: taken() == 13, learner, "that 13 shards are taken", COMMAND_SECONDS)
        learner.kill()
        learner.wait()
        land(work, *range(13, SHARDS))
        wait_for_scores(SHARDS)
        learner = train()
        wait_until(lambda: taken() == SHARDS, learner, "that all shards are taken", COMMAND_SECONDS)
        assert learner.wait(COMMAND_SECONDS) == 0, (work / "train.log").read_text()
        assert stop(follower, signal.SIGINT) == 0, (work / "log").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["shards_by_epoch"][0] == 4 and summary["shards_by_epoch"][-1] == SHARDS
    assert summary["counts"]["examples"] == 900
    (manifest,) = work.glob("followed/*/*/_manifest.json")
    scored = json.loads(manifest.read_text())["flops"]["reference_score"]
    assert summary["ledger"]["reference_score"] == pytest.approx(scored)
