"""The steps of a follower. Whole ones, on engines that run without an end, are in tests/engines."""

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import StandardOptions
from apache_beam.testing.util import assert_that, equal_to
from curate.datasets.landed import LandedFile, landed_files
from curate.datasets.shards import Shard
from curate.datasets.spec import spec_from_table
from curate.errors import ShardError, SpecError, StorageError
from curate.pipelines import follow
from curate.pipelines.follow import Look, Settled, check_name
from curate.pipelines.runner import runner_of
from curate.pipelines.score_reference import _from_worker
from support.commands import curate

A, B = (Shard(name=name, url=f"/inbox/{name}.tar", size=7, bytes=7) for name in "ab")
FAILED = True
A1, A2, B1 = LandedFile(A, "1"), LandedFile(A, "2"), LandedFile(B, "1")


@pytest.mark.parametrize(
    ("looks", "passed"),
    [
        ([(A1, 0)], []),
        ([(A1, 0), (A1, 10)], [A1]),
        ([(A1, 0), (A1, 10), (A1, 20), (A1, 30)], [A1]),
        ([(A1, 0), (A2, 10), (A2, 20)], [A2]),
        ([(A1, 0), (A1, 10), (A2, 20), (A2, 30), (A2, 40)], [A1, A2]),
        ([(A1, 0), (B1, 0), (B1, 10), (A2, 10), (A2, 20)], [B1, A2]),
        ([(A1, 0), (A1, 0.1)], []),  # two looks at once are one
        ([(A1, 100), (A1, 5), (A1, 15)], [A1]),  # the clock was set back
        ([(A1, 100), (A1, 110), (A1, 5), (A1, 15)], [A1]),
        # Not readable: after 80 seconds again, then after 160 more; and at once where it was written to.
        ([(A1, 0), (A1, 10), (A1, 80, FAILED), (A1, 90, FAILED), (A1, 240, FAILED)], [A1, A1]),
        ([(A1, 0), (A1, 10), (A1, 90, FAILED), (A1, 250, FAILED)], [A1, A1, A1]),
        ([(A1, 0), (A1, 10), (A2, 20, FAILED), (A2, 30, FAILED)], [A1, A2]),
    ],
)
def test_a_file_is_passed_on_once_it_looks_the_same_twice(looks, passed):
    """As Beam runs it, state and all: elements of one bundle stay in order."""
    with beam.Pipeline("FnApiRunner") as pipeline:
        elements = [(file.shard.name, (file, float(now), bool(failed))) for file, now, *failed in looks]
        seen = pipeline | beam.Create(elements, reshuffle=False)
        assert_that(seen | beam.ParDo(Settled(10)), equal_to(passed))


def test_a_look_passes_over_what_is_scored_until_it_is_written_to(tmp_path):
    spec = spec_from_table("d", {"train": "*.tar"}, base=tmp_path)
    (tmp_path / "scores").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"{name}.tar").write_bytes(b"x")
    (tmp_path / "scores/a.parquet").touch()
    look = Look(spec, str(tmp_path / "scores"), seconds=0.0)
    look.setup()
    assert [name for name, _ in look.process(None)] == ["b"]
    (tmp_path / "scores/b.parquet").touch()
    assert list(look.process(None)) == []
    (tmp_path / "a.tar").write_bytes(b"xy")
    assert [file for _, (file, _, _) in look.process(None)] == landed_files(spec)[:1]


def test_a_store_that_does_not_answer_is_asked_again_and_ends_the_job_when_it_stays_so(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(b"x")
    look = Look(spec_from_table("d", {"train": "*.tar"}, base=tmp_path), str(tmp_path / "scores"), seconds=0.0)
    look.setup()
    assert len(list(look.process(None))) == 1

    def fails(spec):
        raise StorageError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(follow, "landed_files", fails)
        assert list(look.process(None)) == []
        patched.setattr(follow, "OUTAGE_SECONDS", 0.0)
        with pytest.raises(StorageError):
            list(look.process(None))
    assert len(list(look.process(None))) == 1


def test_looks_that_piled_up_are_one(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x")
    look = Look(spec_from_table("d", {"train": "*.tar"}, base=tmp_path), str(tmp_path / "scores"), seconds=1000)
    look.setup()
    assert len(list(look.process(1))) == 1
    assert list(look.process(2)) == []


def test_a_shard_that_would_get_another_name_is_an_error_before_it_is_scored_again():
    check_name(Shard(name="x--a", url="/x/a.tar", size=1, bytes=1), {"x--a", "b"})
    with pytest.raises(ShardError, match=r"/x/a\.tar: another folder has a file of this name too.*'x--a', and 'a' is"):
        check_name(Shard(name="x--a", url="/x/a.tar", size=1, bytes=1), {"a"})


def test_engines_that_follow():
    for named in ((), ("--runner=DirectRunner",), ("--runner=PrismRunner",)):
        runner, options = runner_of(named, 0, follow=True)
        assert runner is None
        assert options.view_as(StandardOptions).runner == "PrismRunner"
        assert options.view_as(StandardOptions).streaming
    assert runner_of(("--runner=FlinkRunner",), 0, follow=True)[1].view_as(StandardOptions).runner == "FlinkRunner"
    for named in ("FnApiRunner", "apache_beam.runners.dask.dask_runner.DaskRunner"):
        with pytest.raises(
            SpecError, match="cannot follow a data set; leave it out, or use PrismRunner or FlinkRunner"
        ):
            runner_of((f"--runner={named}",), 0, follow=True)


def test_without_prism_there_is_one_line_that_says_how_to_get_it():
    error = _from_worker(RuntimeError("Unable to fetch remote prism binary at https://x: no name"))
    assert isinstance(error, SpecError)
    assert "build it with tests/engines/setup_prism.sh" in str(error)


def test_what_cannot_be_followed_is_told_before_anything_starts(digits, tmp_path):
    common = (
        "score-reference",
        "--reference",
        digits.reference,
        "--config",
        digits.toml,
        "--out",
        tmp_path,
        "--follow",
    )
    assert "--every is 0, expected seconds above 0" in curate(*common, "--dataset", "digits", "--every", 0).error
    once = (*common[:-1], "--dataset", "digits")
    assert curate(*once, "--every", 5).error == "--every is about new shards; give --follow too"
    assert "--embeddings are of image-text pairs; data set 'digits' has labels" in curate(*once, "--embeddings").error
    for i in range(10):  # as many classes as the reference knows
        (tmp_path / "pictures" / str(i)).mkdir(parents=True)
    assert "folder of images" in curate(*common, "--dataset", tmp_path / "pictures").error
