"""A data set that is mixed in: its share of every super-batch, its own epochs, its scores, and what a run says and counts."""

import json
from collections import Counter
from itertools import islice

import curate
import pyarrow.parquet as pq
import pytest
from curate.datasets import Geometry
from curate.datasets.spec import find_dataset
from curate.errors import RunError, SpecError, TableError
from curate.pipelines.options import ScoreOptions
from curate.pipelines.score_reference import score_reference
from curate.scoring import open_scores
from curate.scoring.loading import find_model
from curate.training import RunOptions, train
from curate.training.mixture import Mix
from curate.training.superbatch import SuperBatches
from support.commands import silent
from support.tiny import cut_after

VIEWS = {"learner": Geometry(size=8)}
IN_PROCESS = ("--direct_running_mode=in_memory", "--direct_num_workers=1")


@pytest.fixture(scope="module")
def curated_scores(digits, tmp_path_factory):
    """The digits' reference scores what is mixed in."""
    spec = find_dataset("digits-curated", digits.config)
    model = find_model(digits.reference, task=spec.task, num_classes=spec.num_classes, config=digits.config)
    out = tmp_path_factory.mktemp("curated")
    options = ScoreOptions(dataset=spec, reference=model, out=str(out), runner_options=IN_PROCESS)
    return open_scores(score_reference(options, silent).folder)


def stream(digits, share=0.25, size=32, **options):
    mix = {k: options.pop(k) for k in ("first", "scores") if k in options}
    known = dict(views=VIEWS, config=digits.config, seed=3)
    return SuperBatches(
        digits.dataset(), size, mix=Mix(data="digits-curated", share=share, **mix), **{**known, **options}
    )


def names(batches, count):
    found = [list(zip(b.shards, b.keys, strict=True)) for b in islice(batches, count)]
    batches.close()
    return found


def mixed(batch):
    return [name for name in batch if name[0].startswith("digits-curated/")]


def test_every_super_batch_has_its_share_and_each_data_set_its_own_epochs(digits):
    plain = SuperBatches(digits.dataset(), 24, views=VIEWS, seed=3)
    alone = SuperBatches("digits-curated", 8, views=VIEWS, seed=3, config=digits.config)
    batches = names(stream(digits), 70)
    assert {len(batch) for batch in batches} == {32}
    own = [[name for name in batch if name not in mixed(batch)] for batch in batches]
    assert own == names(plain, 70)
    others = [[(shard.removeprefix("digits-curated/"), key) for shard, key in mixed(batch)] for batch in batches]
    assert others == names(alone, 70)
    assert max(Counter(name for batch in others for name in batch).values()) > 1


def test_it_begins_where_it_is_told_to_and_may_be_all(digits):
    shares = [len(mixed(batch)) for batch in names(stream(digits, 1.0, first=4), 6)]
    assert shares == [0, 0, 0, 32, 32, 32]


def test_a_stream_resumes_in_the_middle_of_both(digits):
    whole = names(stream(digits, first=3), 9)
    batches = stream(digits, first=3)
    assert names(batches, 5) == whole[:5]
    state = json.loads(json.dumps(batches.state_dict()))
    again = stream(digits, first=3)
    again.load_state_dict(state)
    assert names(again, 4) == whole[5:]
    assert again.counts["examples"] > again.own_state()["counts"]["examples"]
    for other in (
        stream(digits, 0.5, first=3),
        stream(digits),
        SuperBatches(digits.dataset(), 32, views=VIEWS, seed=3),
    ):
        with pytest.raises(RunError, match="the order of examples"):
            other.load_state_dict(state)


def test_losses_of_both_tables_are_joined(digits, curated_scores):
    table = open_scores(digits.scores)
    own = SuperBatches(
        digits.dataset(),
        32,
        views=VIEWS,
        scores=table,
        mix=Mix(data="digits-curated", share=0.25, scores=curated_scores),
        config=digits.config,
    )
    for batch in islice(own, 3):
        for shard, key, loss in zip(batch.shards, batch.keys, batch.reference_loss.tolist(), strict=True):
            prefix, _, name = shard.rpartition("/")
            scores = (curated_scores if prefix else table).shard(name)
            assert loss == pytest.approx(float(scores.loss[scores.places[key]]))
    own.close()


def run_options(digits, out, **changes):
    known = dict(dataset="digits", learner="learner", steps=8, batch_size=32, precision="fp32", log_every=1)
    more = dict(checkpoint_every=3, evaluate=False, out=str(out), name="run", mix="digits-curated:25%")
    return RunOptions.of(**{**known, **more, **changes})


def test_a_run_trains_on_both_resumes_exactly_and_its_ledger_counts_both_tables(digits, curated_scores, tmp_path):
    chosen = dict(
        policy="learnability",
        online="scorer",
        reference_scores=digits.scores,
        mix_scores=curated_scores.folder,
        mix_last=0.5,
        host_bytes=1,  # so that only the tables know the rows
    )
    said = []
    options = run_options(digits, tmp_path / "whole", **chosen)
    summary = train(options, config=digits.config, report=said.append)
    assert any(
        "16 of the 64 examples of every super-batch are of data set 'digits-curated' from step 5 on" in s for s in said
    )
    tables = [open_scores(digits.scores), curated_scores]
    assert summary["ledger"]["reference_score"] == sum(t.manifest["flops"]["reference_score"] for t in tables)
    assert summary["ledger"]["reference_train"] == tables[0].manifest["flops"]["reference_train"]
    rows = recorded(tmp_path / "whole" / "run")
    assert {step for step, shard in rows if shard.startswith("digits-curated/")} == {5, 6, 7, 8}

    again = run_options(digits, tmp_path / "cut", **chosen)
    with cut_after(7):
        train(again, config=digits.config, report=silent)
    resumed = train(again, config=digits.config, resume=True, report=silent)
    assert resumed["ledger"] == summary["ledger"]
    weights = [tmp_path / name / "run" / "checkpoints" / "learner.safetensors" for name in ("whole", "cut")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(RunError, match="mix = digits-curated:25%, now digits-curated:50%"):
        train(again.but(mix="digits-curated:50%"), config=digits.config, resume=True, report=silent)

    replay = run_options(digits, tmp_path, name="fewer", steps=6, mix=None, replay=str(tmp_path / "whole" / "run"))
    train(replay, config=digits.config, report=silent)
    assert recorded(tmp_path / "fewer") == {(step, shard) for step, shard in rows if step <= 6}


def recorded(run):
    tables = [pq.ParquetFile(file).read() for file in (run / "selections").glob("*.parquet")]
    return {(row["step"], row["shard"]) for table in tables for row in table.to_pylist()}


def test_uniform_and_a_filter_need_no_scores_of_what_is_mixed_in(digits, tmp_path):
    for policy in ({}, {"policy": "filter", "reference_scores": digits.scores}):
        options = run_options(digits, tmp_path, name=f"run{len(policy)}", steps=2, **policy)
        assert train(options, config=digits.config, report=silent)["steps"] == 2


def test_what_cannot_be_mixed_is_refused(digits, curated_scores, pairs, tmp_path):
    for text in ("digits-curated", "digits-curated:0", "digits-curated:2", ":25%"):
        with pytest.raises(SpecError, match="--mix is"):
            run_options(digits, tmp_path, mix=text)
    with pytest.raises(SpecError, match="give --mix DATASET:SHARE too"):
        run_options(digits, tmp_path, mix=None, mix_last=0.5)
    with pytest.raises(SpecError, match="leave --mix-scores out"):
        moving = dict(policy="learnability", online="scorer", reference_online="scorer")
        run_options(digits, tmp_path, mix_scores=curated_scores.folder, **moving)
    with pytest.raises(SpecError, match=r"losses of 'digits-curated' too; .* then --mix-scores TABLE"):
        run_options(digits, tmp_path, policy="easy-reference", reference_scores=digits.scores)
    with pytest.raises(SpecError, match="less than one example"):
        train(run_options(digits, tmp_path, mix="digits-curated:1%"), config=digits.config, report=silent)
    with pytest.raises(TableError, match="scores data set 'digits'"):
        table = dict(policy="easy-reference", reference_scores=digits.scores, mix_scores=digits.scores)
        train(run_options(digits, tmp_path, **table), config=digits.config, report=silent)
    with pytest.raises(SpecError, match="cannot be mixed into 'digits': classification and image-text"):
        SuperBatches(digits.dataset(), 32, views=VIEWS, mix=Mix(data=find_dataset("pairs", pairs.config), share=0.5))
    with pytest.raises(SpecError, match="data set 'digits' cannot be mixed into 'digits': both are the shards "):
        train(run_options(digits, tmp_path, mix="digits:25%"), config=digits.config, report=silent)
    with pytest.raises(SpecError, match=r"give curate\.Mix"):
        batches = stream(digits, scores=None)
        batches.table = open_scores(digits.scores)
        curate.SubBatches(batches, curate.Selector("easy-reference", 16))
