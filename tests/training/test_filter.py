"""A filtered data set: what is dropped is never drawn, what is kept equally often, and no model scores in the run."""

from collections import Counter
from itertools import islice

import curate
import pytest
from curate.datasets import Geometry
from curate.errors import RunError, SpecError, TableError
from curate.pipelines.score_reference import score_reference
from curate.scoring import open_scores
from curate.scoring.loading import find_model
from curate.scoring.tables.keep import keep_best
from curate.training import RunOptions, train
from curate.training.superbatch import SuperBatches
from support.commands import silent

VIEWS = {"learner": Geometry(size=8)}


def stream(digits, kept, size=30, **options):
    return SuperBatches(digits.dataset(), size, views=VIEWS, scores=digits.scores, kept=kept, **options)


def names(batches, count):
    found = [list(zip(b.shards, b.keys, strict=True)) for b in islice(batches, count)]
    batches.close()
    return found


@pytest.mark.parametrize("options", [{}, {"lanes": 1}, {"lanes": 4, "host_bytes": 1, "cache_bytes": 0}])
def test_what_is_kept_is_drawn_equally_often_and_nothing_else(digits, options):
    """The shards differ in how much of them is kept: their lanes are cut by that, not by their rows."""
    table = open_scores(digits.scores)
    kept = keep_best(table, 0.2)
    assert kept.examples == 180
    assert len(set(kept.counts.values())) > 1
    wanted = {
        (name, key)
        for name in table.shard_names()
        for key, keeps in zip(table.shard(name).keys, kept.mask(table.shard(name)), strict=True)
        if keeps
    }
    batches = stream(digits, kept, **options)
    drawn = Counter(name for batch in names(batches, 6 * 2) for name in batch)
    assert set(drawn) == wanted
    assert set(drawn.values()) == {2}
    assert batches.counts["examples"] == 180


def test_a_shard_of_which_nothing_is_kept_is_never_drawn(digits):
    table = open_scores(digits.scores)
    kept = keep_best(table, 1.0, shards=["00002"])
    drawn = [name for batch in names(stream(digits, kept), 10) for name in batch]
    assert {shard for shard, _ in drawn} == {"00002"}
    assert set(Counter(drawn).values()) == {2}


def test_the_stream_resumes_and_refuses_another_choice(digits):
    table = open_scores(digits.scores)
    whole = names(stream(digits, keep_best(table, 0.5)), 20)
    batches = stream(digits, keep_best(table, 0.5))
    assert names(batches, 7) == whole[:7]
    state = batches.state_dict()
    again = stream(digits, keep_best(table, 0.5))
    again.load_state_dict(state)
    assert names(again, 13) == whole[7:]
    with pytest.raises(RunError, match="the order of examples"):
        stream(digits, keep_best(table, 0.4)).load_state_dict(state)


def test_a_run_trains_on_the_kept_alone_and_its_ledger_counts_the_reference(digits, tmp_path):
    said = []
    options = RunOptions.of(
        dataset="digits",
        learner="learner",
        policy="filter",
        keep=0.3,
        keep_by="class",
        reference_scores=digits.scores,
        steps=9,
        batch_size=30,
        precision="fp32",
        out=str(tmp_path),
        name="run",
    )
    summary = train(options, config=digits.config, report=said.append)
    assert any("by policy filter, the best 30 % of each class" in line for line in said)
    assert (summary["counts"]["examples"], summary["examples_scored"]) == (pytest.approx(270, abs=5), 0)
    lines = summary["ledger"]
    assert lines["online_score"] == lines["online_train"] == 0
    assert lines["reference_score"] > 0
    assert lines["reference_train"] > 0
    assert summary["regimes"]["foundation"] == lines["learner_train"]


def test_what_a_filter_cannot_do_is_refused(digits):
    known = dict(dataset="digits", learner="learner", policy="filter", steps=9)
    with pytest.raises(SpecError, match="needs a score table"):
        RunOptions.of(**known)
    with pytest.raises(SpecError, match="--keep is 0, expected a share"):
        RunOptions.of(**known, reference_scores="T", keep=0.0)
    with pytest.raises(SpecError, match="--on-missing score has none"):
        RunOptions.of(**known, reference_scores="T", on_missing="score")
    with pytest.raises(SpecError, match="filters the data set; give SuperBatches"):
        curate.SubBatches(SuperBatches(digits.dataset(), 30, views=VIEWS), curate.Selector("filter", 30))
    with pytest.raises(SpecError, match="give scores= too"):
        SuperBatches(digits.dataset(), 30, views=VIEWS, kept=curate.keep_best(digits.scores, 0.5))


def test_two_tables_are_subtracted_and_both_references_are_paid_for(digits, tmp_path):
    """CoLoR-Filter: what a model of the curated data has a lower loss of than a model of the bulk."""
    bulk = dict(dataset="digits", learner="scorer", steps=20, batch_size=32, precision="fp32", evaluate=False)
    train(RunOptions.of(**bulk, out=str(tmp_path), name="bulk"), config=digits.config, report=silent)
    reference = find_model(str(tmp_path / "bulk"), task="classification", num_classes=10, config=digits.config)
    here = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
    asked = digits.options(tmp_path / "scores", reference=reference, runner_options=here)
    prior = open_scores(score_reference(asked, silent).folder)
    table = open_scores(digits.scores)
    kept = keep_best(table, 0.2, policy="color-filter", prior=prior)
    scores = [
        (float(theirs) - float(ours), name, key)
        for name in table.shard_names()
        for key, ours, theirs in zip(
            table.shard(name).keys, table.shard(name).loss, prior.shard(name).loss, strict=True
        )
    ]
    wanted = {(name, key) for _, name, key in sorted(scores, reverse=True)[:180]}
    found = {
        (name, key)
        for name in table.shard_names()
        for key, keeps in zip(table.shard(name).keys, kept.mask(table.shard(name)), strict=True)
        if keeps
    }
    assert found == wanted
    options = RunOptions.of(
        dataset="digits", learner="learner", policy="color-filter", keep=0.2, reference_scores=digits.scores,
        prior_scores=prior.folder, steps=2, batch_size=16, precision="fp32", evaluate=False, out=str(tmp_path), name="run",
    )  # fmt: skip
    ledger = train(options, config=digits.config, report=silent)["ledger"]
    for line in ("reference_score", "reference_train"):
        assert ledger[line] == sum(one.manifest["flops"][line] for one in (table, prior))
    with pytest.raises(SpecError, match="--prior-scores TABLE"):
        options.but(prior_scores=None)
    with pytest.raises(SpecError, match="give prior="):
        keep_best(table, 0.2, policy="color-filter")
    with pytest.raises(TableError, match="by the same reference"):
        keep_best(table, 0.2, policy="color-filter", prior=table)
