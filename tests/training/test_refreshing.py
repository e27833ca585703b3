"""Runs whose losses are renewed by a newer reference, a shard at a time: the run's records say whose losses each epoch had."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.errors import RunError, SpecError, TableError
from curate.scoring.tables.lookup import open_scores
from curate.scoring.tables.read import shard_counts
from curate.training import RunOptions, run, train
from curate.training.loop import train_loop
from curate.training.refreshing import refreshed_table, refuse_refresh
from support.commands import silent
from support.runs import left_by
from support.tiny import CutError

# 900 examples, a super-batch of 100: an epoch has nine steps.
STEPS, EPOCH = 24, 9
SHARDS = [f"{n:05d}" for n in range(6)]
FINGERPRINT = "f" * 64
# After these steps shards are complete in the newer table. One is there when the run begins.
EVENTS = {2: ["00002"], 12: ["00003", "00004"]}
NEWER_IN = [{"00001"}, {"00001", "00002"}, {"00001", "00002", "00003", "00004"}]


class Newer:
    """A second table of the digits, by another reference, that is written a shard at a time."""

    def __init__(self, digits, folder):
        self.digits, self.folder, self.table = digits, folder, folder / "newer"
        self.table.mkdir(parents=True)
        manifest = json.loads((digits.table / "_manifest.json").read_text())
        manifest["reference"] |= {"name": "newer", "fingerprint": FINGERPRINT}
        (self.table / "_manifest.json").write_text(json.dumps(manifest))

    def is_scored(self, name, change=lambda table: table, **about):
        old = pq.read_table(self.digits.table / f"{name}.parquet")
        metadata = json.loads(old.schema.metadata[b"curate"]) | {"reference_fingerprint": FINGERPRINT} | about
        place = old.schema.get_field_index("loss")
        losses = pa.array(1 + 2 * old["loss"].to_numpy(), pa.float32())
        table = change(old.set_column(place, old.schema.field("loss"), losses))
        table = table.replace_schema_metadata({b"curate": json.dumps(metadata).encode()})
        pq.write_table(table, self.table / f".{name}")
        (self.table / f".{name}").rename(self.table / f"{name}.parquet")

    def train(self, resume=False, events=None, cut=None, report=silent, **changes):
        def after_step(step):
            for name in (events or {}).get(step, ()):
                self.is_scored(name)
            if step == cut:
                raise CutError

        known = dict(batch_size=50, steps=STEPS, checkpoint_every=4, refresh_scores=str(self.table), online="scorer")
        options = self.digits.run_options(self.folder / "runs", **{**known, **changes})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "train_loop", lambda job: train_loop(job, after_step))
            return train(options, config=self.digits.config, resume=resume, report=report)


def losses_of(folder):
    found = {}
    for name in SHARDS:
        if (Path(folder) / f"{name}.parquet").exists():
            table = pq.read_table(Path(folder) / f"{name}.parquet").to_pydict()
            found |= {(name, key): loss for key, loss in zip(table["key"], table["loss"], strict=True)}
    return found


def decided(folder):
    return [
        {one["name"] for one in epoch["new"]} for epoch in json.loads((folder / "scores.json").read_text())["epochs"]
    ]


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    newer = Newer(digits, tmp_path_factory.mktemp("newer"))
    newer.is_scored("00001")
    newer.said = []
    newer.summary = newer.train(events=EVENTS, report=newer.said.append)
    newer.run = newer.folder / "runs/run"
    return newer


def test_a_shard_has_the_newer_losses_from_the_epoch_on_that_began_after_it_was_complete(digits, whole):
    old, new = losses_of(digits.table), losses_of(whole.table)
    rows = [row for f in sorted((whole.run / "selections").glob("*.parquet")) for row in pq.read_table(f).to_pylist()]
    assert len(rows) == STEPS * 100
    for row in rows:
        epoch, key = (row["step"] - 1) // EPOCH, (row["shard"], row["key"])
        expected = new[key] if row["shard"] in NEWER_IN[epoch] else old[key]
        assert row["reference_loss"] == pytest.approx(expected, abs=1e-6)
    renewed = sum(row["shard"] in NEWER_IN[(row["step"] - 1) // EPOCH] for row in rows)
    assert whole.summary["counts"]["chosen_from_by_newer_scores"] == renewed
    assert whole.summary["newer_scores"] == {
        "reference": "'newer' ffffffff",
        "shards": 6,
        "renewed_by_epoch": [1, 2, 4],
    }
    told = [line for line in whole.said if "shards have losses of" in line]
    assert len(told) == 3 and told[1].startswith(
        "epoch 2: 2 of 6 shards have losses of 'newer' ffffffff, the other 4 of '"
    )


def test_the_order_is_that_of_a_run_without_newer_losses(whole):
    whole.train(name="plain", refresh_scores=None)
    names = [
        [
            (row["step"], row["shard"], row["key"])
            for file in sorted((whole.folder / "runs" / name / "selections").glob("*.parquet"))
            for row in pq.read_table(file, columns=["step", "shard", "key"]).to_pylist()
        ]
        for name in ("run", "plain")
    ]
    assert names[0] == names[1]


def test_the_ledger_has_both_tables(digits, whole):
    old = sum(shard_counts(str(digits.table), name).flops for name in SHARDS)
    new = sum(shard_counts(str(whole.table), name).flops for name in NEWER_IN[-1])
    assert whole.summary["ledger"]["reference_score"] == pytest.approx(old + new)
    trained = json.loads((digits.table / "_manifest.json").read_text())["flops"]["reference_train"]
    assert whole.summary["ledger"]["reference_train"] == pytest.approx(2 * trained)


def test_a_resumed_run_never_decides_an_epoch_again(digits, whole, tmp_path):
    """It is killed between the beginning of epoch 2 and the next checkpoint; then two shards are scored, too late for epoch 2."""
    newer = Newer(digits, tmp_path)
    newer.is_scored("00001")
    with pytest.raises(CutError):
        newer.train(events=EVENTS, cut=11)
    assert max(p.name for p in (tmp_path / "runs/run/checkpoints").iterdir()) == "resume-000000008"
    newer.is_scored("00003")
    newer.is_scored("00004")
    newer.train(resume=True)
    assert decided(tmp_path / "runs/run") == decided(whole.run)
    assert left_by(tmp_path / "runs/run") == left_by(whole.run)


def test_a_replay_has_the_losses_of_its_run(whole):
    replays = dict(policy="uniform", online=None, reference_scores=None, refresh_scores=None)
    summary = whole.train(name="again", replay=str(whole.run), **replays)
    again = whole.folder / "runs/again"
    weights = [folder / "checkpoints/learner.safetensors" for folder in (again, whole.run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert decided(again) == decided(whole.run)
    assert summary["ledger"]["reference_score"] == pytest.approx(whole.summary["ledger"]["reference_score"])


def test_what_was_decided_must_be_there_at_a_resume(digits, tmp_path):
    newer, folder = Newer(digits, tmp_path), tmp_path / "runs/run"
    newer.is_scored("00001")
    with pytest.raises(CutError):
        newer.train(cut=5)
    records = (folder / "scores.json").read_text()
    newer.is_scored("00001", lambda table: table.slice(0, 0))
    with pytest.raises(TableError, match=r"shard '00001', key '.*': no score, and .* has one"):
        newer.train(resume=True)
    newer.is_scored("00001")
    (folder / "scores.json").write_text(records.replace('"losses": "', '"losses": "0'))
    with pytest.raises(
        RunError, match="the losses of shard '00001' changed since this run chose by them; restore them"
    ):
        newer.train(resume=True)
    (folder / "scores.json").write_text(records.replace(FINGERPRINT, "e" * 64))
    with pytest.raises(RunError, match=r"newer losses were of reference eeeeeeee, .* is of ffffffff"):
        newer.train(resume=True)
    (folder / "scores.json").unlink()
    with pytest.raises(RunError, match=r"scores.json: is missing, and says whose losses each epoch has"):
        newer.train(resume=True)


def other_hash(table):
    hashes = table["target_hash"].to_numpy().copy()
    hashes[0] += 1
    place = table.schema.get_field_index("target_hash")
    return table.set_column(place, table.schema.field("target_hash"), pa.array(hashes, table.schema.field(place).type))


def test_scores_that_do_not_fit_are_left_out_and_said_once(digits, tmp_path):
    newer, said = Newer(digits, tmp_path), []
    newer.is_scored("00000", lambda table: table.slice(1))
    newer.is_scored("00001", other_hash)
    newer.is_scored("00002", shard_size=7)
    (newer.table / "00003.parquet").write_bytes(b"no table")
    newer.is_scored("00004")
    shards = run.list_shards(digits.dataset())
    about = dict(began=False, recorded=None)
    found = refreshed_table(tmp_path, open_scores(str(digits.table)), str(newer.table), shards, said.append, **about)
    found.decide(1)
    assert decided(tmp_path) == [{"00004"}, set()]
    assert len(said) == 5 and said[-1].startswith("epoch 1: 1 of 6 shards")
    for what in ("no score, and", "its target's hash is", "was scored at size 7", "damaged"):
        assert sum(what in line for line in said) == 1
    for name in SHARDS:
        newer.is_scored(name)
    found.decide(2)
    assert decided(tmp_path)[2] == {*SHARDS} - {"00004"}
    with pytest.raises(TableError, match="is of the same reference as"):
        refreshed_table(tmp_path, open_scores(str(digits.table)), str(digits.table), shards, silent, **about)
    manifest = newer.table / "_manifest.json"
    manifest.write_text(manifest.read_text().replace('"dataset": "digits"', '"dataset": "other"'))
    with pytest.raises(TableError, match=r"its dataset is other, that of .* is digits"):
        refreshed_table(tmp_path, open_scores(str(digits.table)), str(newer.table), shards, silent, **about)


def test_what_does_not_go_together_is_refused_in_one_line(digits, tmp_path):
    for changes, said in (
        (dict(policy="hard-learner"), "which policy 'hard-learner' does not; leave it out"),
        (dict(policy="filter", online=None), "which policy 'filter' does not"),
        (dict(on_missing="skip"), "cannot be combined with --on-missing skip"),
    ):
        with pytest.raises(SpecError, match=said):
            digits.run_options(tmp_path, refresh_scores="newer", **changes)
    for changes, ranks, said in (
        (dict(follow=True), 1, "--follow"),
        (dict(actors=1), 1, "--actors"),
        (dict(charge_reference=True, steps=None, budget_flops=1e15), 1, "--charge-reference, which pays before step 1"),
        (dict(), 2, "torchrun or srun"),
    ):
        options: RunOptions = digits.run_options(tmp_path, refresh_scores="newer", **changes)
        with pytest.raises(SpecError, match=f"--refresh-scores cannot be combined with {said}; leave one of them out"):
            refuse_refresh(options, ranks)
