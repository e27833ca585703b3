"""Runs whose data set grows: what lands enters at the next epoch, once it is scored, and the run's records say what entered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from curate.datasets.landed import landed_shards
from curate.datasets.preparers.writer import encode_png
from curate.datasets.spec import find_dataset, load_config, spec_from_table
from curate.errors import RunError, ShardError, SpecError
from curate.scoring.tables.lookup import open_scores
from curate.scoring.tables.read import shard_counts
from curate.training import RunOptions, run, train
from curate.training.landing import Landing, read_arrivals, refuse_follow
from curate.training.loop import train_loop
from support.commands import curate, silent
from support.runs import left_by
from support.tars import write_tar
from support.tiny import CutError, shard, write_toml

# Shards of 150 examples. Two are there at the start, in two lanes; a super-batch has 32. So epoch 1 is the steps 1 to 9 of two
# shards, and epoch 2 the steps 10 to 23 of three.
STEPS = 30
ROWS = 150


class Inbox:
    """The digits' shards and their scores, which arrive one at a time."""

    def __init__(self, digits, folder):
        self.digits, self.folder = digits, folder
        self.data = folder / "data/digits/train"
        self.data.mkdir(parents=True)
        self.table = folder / "scores" / digits.table.name
        self.table.mkdir(parents=True)
        shutil.copy(digits.table / "_manifest.json", self.table)
        shutil.copy(digits.toml, folder)  # it names all six shards
        self.config = load_config(folder / "curate.toml")
        for name in ("00000", "00001"):
            self.lands(name)
            self.is_scored(name)

    @property
    def dataset(self):
        return find_dataset("digits", self.config)

    def lands(self, name):
        self._put(self.digits.root / f"data/digits/train/{name}.tar", self.data)

    def is_scored(self, name):
        self._put(self.digits.table / f"{name}.parquet", self.table)

    def _put(self, file, folder):
        partial = shutil.copy(file, folder / f".{file.name}")
        Path(partial).rename(folder / file.name)

    def train(self, resume=False, events=None, cut=None, **changes):
        """Train, with `events` after steps, by their numbers, and a kill after step `cut`."""

        def after_step(step):
            for event, name in (events or {}).get(step, ()):
                getattr(self, event)(name)
            if step == cut:
                raise CutError

        known = dict(dataset="digits", learner="scorer", policy="easy-reference", reference_scores=str(self.table))
        records = dict(log_every=1, checkpoint_every=4, evaluate=False, out=str(self.folder / "runs"), name="run")
        more = dict(steps=STEPS, batch_size=16, precision="fp32", follow=True)
        options = RunOptions.of(**{**known, **records, **more, **changes})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "train_loop", lambda job: train_loop(job, after_step))
            return train(options, config=self.config, resume=resume, report=silent)


# Shard 2 lands early and is scored late.
EVENTS = {1: [("lands", "00002")], 2: [("lands", "00003"), ("is_scored", "00003")], 12: [("is_scored", "00002")]}


def drawn(folder):
    """(shard, key) of what each step drew."""
    rows = [
        row for file in sorted((folder / "selections").glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    return [[(r["shard"], r["key"]) for r in rows if r["step"] == step] for step in range(1, STEPS + 1)]


def shards_of(folder):
    return [[one.name for one in epoch.new] for epoch in read_arrivals(folder)]


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    inbox = Inbox(digits, tmp_path_factory.mktemp("whole"))
    inbox.summary = inbox.train(events=EVENTS)
    inbox.run = inbox.folder / "runs/run"
    return inbox


def test_what_lands_enters_at_the_next_epoch_once_it_is_scored(whole):
    assert shards_of(whole.run) == [["00000", "00001"], ["00003"], ["00002"]]
    steps = drawn(whole.run)
    for first, last, names in ((1, 9, "01"), (10, 23, "013"), (24, 30, "0123")):
        seen = [one for step in steps[first - 1 : last] for one in step]
        assert len(seen) == len(set(seen)) == 32 * (last - first + 1)  # each once an epoch
        assert {shard for shard, _ in seen} == {f"0000{n}" for n in names}
    assert whole.summary["counts"]["examples"] == 4 * ROWS
    assert whole.summary["shards_by_epoch"] == [2, 3, 4]


def test_the_ledger_has_what_was_scored_during_the_run(whole):
    flops = {name: shard_counts(str(whole.table), name).flops for name in ("00000", "00001", "00002", "00003")}
    assert whole.summary["ledger"]["reference_score"] == pytest.approx(sum(flops.values()))
    assert whole.summary["regimes"]["pretrained_reference"] > sum(flops.values()) > 0


def test_a_resumed_run_never_decides_an_epoch_again(digits, whole, tmp_path):
    """It is killed between the beginning of epoch 2 and the next checkpoint; then shard 2 is scored, too late for epoch 2."""
    inbox = Inbox(digits, tmp_path)
    with pytest.raises(CutError):
        inbox.train(events=EVENTS, cut=11)
    assert max(p.name for p in (tmp_path / "runs/run/checkpoints").iterdir()) == "resume-000000008"
    inbox.is_scored("00002")
    inbox.train(resume=True)
    assert shards_of(tmp_path / "runs/run") == shards_of(whole.run)
    ours, theirs = left_by(tmp_path / "runs/run"), left_by(whole.run)
    for summary in (ours["summary"], theirs["summary"]):
        summary.pop("reference_table", None)
    assert ours == theirs


def test_a_replay_reads_what_the_run_read(whole):
    found = whole.train(policy="uniform", follow=False, replay=str(whole.run), name="again", reference_scores=None)
    again = whole.folder / "runs/again"
    assert drawn(again) == drawn(whole.run) and shards_of(again) == shards_of(whole.run)
    weights = [folder / "checkpoints/learner.safetensors" for folder in (again, whole.run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert found["shards_by_epoch"] == [2, 3, 4]


def test_what_an_epoch_had_must_be_there_at_a_resume(digits, tmp_path):
    inbox = Inbox(digits, tmp_path)
    with pytest.raises(CutError):
        inbox.train(cut=5)
    (inbox.data / "00001.tar").rename(tmp_path / "gone")
    with pytest.raises(RunError, match="shard '00001' is there no more, and the run's epochs have it; restore it"):
        inbox.train(resume=True)
    (inbox.data / "00001.tar").write_bytes((tmp_path / "gone").read_bytes()[:-512])
    with pytest.raises(RunError, match=r"shard '00001' had size \d+ and has \d+ now"):
        inbox.train(resume=True)
    (tmp_path / "gone").rename(inbox.data / "00001.tar")
    records = tmp_path / "runs/run/shards.json"
    content = json.loads(records.read_text())
    records.unlink()
    with pytest.raises(RunError, match=r"shards.json: is missing, and says which shards each epoch has"):
        inbox.train(resume=True)
    content["epochs"][0]["new"].reverse()
    records.write_text(json.dumps(content))
    with pytest.raises(RunError, match="began with train shards"):
        inbox.train(resume=True)


def test_a_look_finds_what_is_scored_and_can_be_used(digits, tmp_path):
    inbox, said = Inbox(digits, tmp_path), []
    landing = Landing(inbox.dataset, open_scores(str(inbox.table)), said.append)
    assert [(s.name, rows) for s, rows in landing.first(landed_shards(landing.dataset))] == [
        ("00000", ROWS),
        ("00001", ROWS),
    ]
    known = {"00000", "00001"}
    assert not landing.table.holds("00002")
    for name in ("00002", "00003", "00004"):
        inbox.lands(name)
    assert landing.look(known) == []
    inbox.is_scored("00002")
    inbox.is_scored("00003")
    (inbox.table / "00004.parquet").write_bytes(b"no table")
    (inbox.data / "00003.tar").write_bytes((inbox.data / "00002.tar").read_bytes()[:-512])
    assert [(s.name, rows) for s, rows in landing.look(known)] == [("00002", ROWS)]
    assert landing.table.holds("00002") and not landing.table.holds("00004")
    assert len(said) == 2 and all("landed and cannot be used" in line for line in said)
    assert "was scored at size" in said[0] and "damaged" in said[1]
    landing.look(known)
    assert len(said) == 2  # once each
    inbox.lands("00003")
    assert [s.name for s, _ in landing.look(known | {"00002"})] == ["00003"]


def test_without_a_table_a_file_enters_when_it_no_longer_changes(tmp_path):
    shard(tmp_path / "a.tar", range(4))
    spec = spec_from_table("d", {"train": "*.tar", "classes": 10}, base=tmp_path)
    landing = Landing(spec, None, silent)
    assert [s.name for s, _ in landing.first(landed_shards(landing.dataset))] == ["a"]
    shard(tmp_path / "b.tar", range(4, 8))
    assert landing.look({"a"}) == []
    shard(tmp_path / "b.tar", range(4, 10))
    assert landing.look({"a"}) == []
    assert [s.name for s, _ in landing.look({"a"})] == ["b"]
    (tmp_path / "more").mkdir()
    again = spec_from_table("d", {"train": ["*.tar", "more/*.tar"], "classes": 10}, base=tmp_path)
    shard(tmp_path / "more/a.tar", range(4))
    with pytest.raises(ShardError, match="another folder has a file of this name too, so 'a' is now another shard"):
        Landing(again, None, silent).look({"a", "b"})


def test_a_file_that_is_no_shard_never_enters(tmp_path):
    """An epoch keeps what it has, so a shard that nobody can read would end the run, and each that resumes it."""
    shard(tmp_path / "a.tar", range(4))
    spec, said = spec_from_table("d", {"train": "*.tar", "classes": 10}, base=tmp_path), []
    landing = Landing(spec, None, said.append)
    landing.first(landed_shards(spec))
    (tmp_path / "b.tar").write_bytes(b"<html>404</html>" * 99)
    (tmp_path / "c.tar").write_bytes(shard(tmp_path / "whole", range(4, 8)).read_bytes()[:900])
    write_tar(tmp_path / "d.tar", [(f"{key}.cls", b"3") for key in range(4)])
    shard(tmp_path / "e.tar", range(12, 16))
    assert landing.look({"a"}) == []
    assert [[s.name for s, _ in landing.look({"a"})] for _ in range(2)] == [["e"], ["e"]]
    assert len(said) == 3 and all("landed and cannot be used" in line for line in said)  # once each
    assert any("none of its 4 examples can be used" in line for line in said)
    shard(tmp_path / "b.tar", range(16, 20))
    looks = [[s.name for s, _ in landing.look({"a", "e"})] for _ in range(2)]
    assert looks == [[], ["b"]]


def test_a_run_without_a_table_grows_too(tmp_path):
    for name in "ab":
        shard(tmp_path / f"{name}.tar", range(64))
    write_toml(tmp_path, train="*.tar")
    options = dict(
        dataset="d", learner="learner", steps=24, batch_size=16, precision="fp32", evaluate=False, follow=True
    )

    def after_step(step):
        if step == 1:
            shard(tmp_path / "c.tar", range(64, 128))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train_loop", lambda job: train_loop(job, after_step))
        found = train(
            RunOptions.of(**options, out=str(tmp_path / "runs"), name="run", host_bytes=1),
            config=load_config(tmp_path / "curate.toml"),
            report=silent,
        )
    # An epoch of two shards is 8 steps. At the second look c.tar is as it was at the first.
    assert found["shards_by_epoch"] == [2, 2, 3] and found["counts"]["examples"] == 192


def test_what_cannot_grow_is_refused_in_one_line(digits, tmp_path):
    spec = digits.dataset()
    with pytest.raises(SpecError, match="--follow is for one process"):
        refuse_follow(spec, 2)
    asked = dict(dataset="d", learner="learner", steps=3, follow=True, reference_scores="scores")
    with pytest.raises(SpecError, match="filters the data set before the run; leave --follow out"):
        RunOptions.of(**asked, policy="filter")
    with pytest.raises(SpecError, match="leave --on-missing skip out"):
        RunOptions.of(**asked, policy="easy-reference", on_missing="skip")
    with pytest.raises(SpecError, match="more is scored; leave it out"):
        budget = {"steps": None, "budget_flops": 1e9, "charge_reference": True}
        RunOptions.of(**{**asked, **budget}, policy="easy-reference")
    for i in range(3):
        (tmp_path / "pictures" / str(i)).mkdir(parents=True)
        (tmp_path / "pictures" / str(i) / "a.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    common = ("train", "--learner", "test_resnet", "--steps", 3, "--follow", "--out", tmp_path / "runs")
    assert "folder of images" in curate(*common, "--dataset", tmp_path / "pictures").error
    (tmp_path / "curate.toml").write_text('[datasets.d]\ntrain = "*.tar"\nclasses = 10\n')
    told = curate(*common, "--dataset", "d", "--config", tmp_path / "curate.toml").error
    assert "none of its shards exists yet" in told
