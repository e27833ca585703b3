"""Ranks that score while the others train: the choice of `--score-ahead`, by weights that follow from the step alone."""

from __future__ import annotations

import shutil
import signal

import pytest
from curate.errors import RankError, SpecError
from curate.training import RunOptions
from curate.training.group import Group
from curate.training.scorers import scored_after
from support.rank_runs import LEARNERS_LOSS, ends, fails_in_scoring_on_1, five_shards, kills_1, terminates_1, train_in
from support.ranks import run_ranks
from support.runs import left_by

# Nothing that is computed over a batch.
MODELS = """
[models.learner]
architecture = "vit_tiny_patch16_224"
arguments = { img_size = 16, patch_size = 8, embed_dim = 16, depth = 1, num_heads = 2 }
preprocessing = { size = 16 }
"""
CHANGES = {
    "policy": "hard-learner",
    "online": "learner",
    "score_size": 8,  # so what is chosen is decoded once more, for the learner
    "filter_ratio": 0.5,
    "checkpoint_every": 3,
    "augment": "crop-flip",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With `one`, the synchronous run of one process, and `two`, of a rank that trains and one that scores."""
    made = five_shards(tmp_path_factory.mktemp("scorers"), MODELS, CHANGES)
    (_, told), (_, silence) = run_of(made, 2, 1, "two", refresh=1)
    assert any("on 2 ranks of cpu, the last of which scores, in fp32" in line for line in told) and not silence
    return made


def run_of(folder, ranks, scorers, name, until=None, then=None, resume=False, task=train_in, **changes):
    changes = {**CHANGES, "scorers": scorers, "name": name, **changes}
    found = run_ranks(ranks, task, folder, resume, until, then, changes)
    for error in found:
        if isinstance(error, Exception) and not isinstance(error, RankError):
            raise error
    return found


def left(folder, name):
    return left_by(folder / f"runs/{name}")


def rows(found, chosen):
    return [(r["step"], r["shard"], r["key"]) for r in found["selections"] if r["selected"] or not chosen]


@pytest.mark.parametrize("refresh", [1, 2, 5])
def test_which_weights_score_follows_from_the_number_alone(refresh):
    """Against the schedule, played step by step."""
    sent = 0
    scored = {1: 0}
    for number in range(1, 20):  # the meeting before step `number`, when number - 1 steps are done
        if (number - 1) % refresh == 0:
            sent = number - 1
        scored[number + 1] = sent
    assert {number: scored_after(number, refresh) for number in scored} == scored


def test_two_ranks_make_the_run_of_one_that_scores_a_step_ahead(folder):
    """Bit for bit: one rank scores all, one trains on all. The ledger is that of the synchronous run."""
    train_in(Group(), folder, False, None, None, {**CHANGES, "score_ahead": 1, "name": "ahead"})
    two, ahead, one = (left(folder, name) for name in ("two", "ahead", "one"))
    assert two["weights"] == ahead["weights"] and two["selections"] == ahead["selections"]
    assert two["summary"] == ahead["summary"]
    assert two["summary"]["ledger"] == one["summary"]["ledger"]
    for ours, theirs in zip(two["metrics"], ahead["metrics"], strict=True):
        assert {name: ours[name] for name in theirs} == theirs
    assert [line["rows_moved"] for line in two["metrics"]] == [16] * 12


def test_a_run_resumes_bit_for_bit_and_at_other_ranks_makes_the_same_choice(folder):
    """The learner scores itself, and is measured on the way."""
    changes = {"policy": LEARNERS_LOSS, "online": None, "refresh": 4, "evaluate": True, "evaluate_every": 5}
    run_of(folder, 3, 1, "whole", **changes)
    whole = left(folder, "whole")
    ages = [line["score_age"] for line in whole["metrics"] if "loss" in line]
    assert ages == [0, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]
    # It resumes after step 3. The weights that score the next super-batch, those before step 1, are in no model any more.
    run_of(folder, 3, 1, "parts", until=5, **changes)
    shutil.copytree(folder / "runs/parts", folder / "runs/others")
    run_of(folder, 3, 1, "parts", resume=True, **changes)
    assert left(folder, "parts") == whole
    run_of(folder, 3, 2, "others", resume=True, **changes)
    others, one = left(folder, "others"), left(folder, "one")
    assert rows(others, chosen=True) == rows(whole, chosen=True) != rows(one, chosen=True)
    assert rows(others, chosen=False) == rows(one, chosen=False)
    for exact in ("ledger", "counts", "examples_scored", "outside_the_ledger"):
        assert others["summary"][exact] == whole["summary"][exact]
    assert others["summary"]["quality"] == pytest.approx(whole["summary"]["quality"], abs=0.05)


def test_pairs_and_their_tokens_go_to_those_who_train(pairs, tmp_path):
    names = {"dataset": "pairs", "learner": "untrained-clip", "online": "untrained-clip", "policy": "hard-learner"}
    changes = {**names, "filter_ratio": 0.5, "batch_size": 10, "steps": 4, "out": str(tmp_path)}
    train_in(Group(), pairs.root, False, None, None, {"name": "ahead", "score_ahead": 1, **changes})
    run_ranks(3, train_in, pairs.root, False, None, None, {"name": "three", "scorers": 1, "refresh": 1, **changes})
    three, ahead = left_by(tmp_path / "three"), left_by(tmp_path / "ahead")
    assert rows(three, chosen=True) == rows(ahead, chosen=True)
    for ours, theirs in zip(three["metrics"], ahead["metrics"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["masked_negatives"] == theirs["masked_negatives"] > 0
        assert ours["flops"] == theirs["flops"]


def test_a_killed_scorer_ends_all(folder):
    error, killed = run_of(folder, 2, 1, "killed", until=4, then=kills_1)
    assert killed is None and isinstance(error, RankError)
    assert str(error).startswith("rank 0 of 2 lost the others") and "\n" not in str(error)


def test_what_a_scorer_meets_ends_all_with_its_error(folder):
    found = run_of(folder, 3, 2, "broken", until=4, then=fails_in_scoring_on_1, task=ends)
    assert found == [("ShardError", "shard '1.tar' is cut", reporter) for reporter in (1, None, 1)]


def test_a_signal_on_a_scorer_stops_all_and_saves(folder):
    """At the end of the next step, when all ranks agree."""
    found = run_of(folder, 2, 1, "stopped", until=4, then=terminates_1, task=ends, refresh=1)
    text = f"stopped by {signal.Signals.SIGTERM.name} after step 5 of 12"
    assert found == [("StoppedError", text, None), ("StoppedError", text, 0)]
    run_of(folder, 2, 1, "stopped", resume=True, refresh=1)
    assert left(folder, "stopped") == left(folder, "two")


def test_what_ranks_cannot_do_is_refused(folder):
    for ranks, scorers, said in (
        (2, 2, "--scorers is 2 of 2 processes, and none is left to train; give fewer"),
        (1, 1, "start it with torchrun"),
    ):
        found = run_of(folder, ranks, scorers, "refused", task=ends)
        assert [kind for kind, _, _ in found] == ["SpecError"] * ranks and said in found[0][1]
    assert not (folder / "runs/refused").exists()
    found = run_of(folder, 2, 1, "one", resume=True, task=ends)
    assert "was started with --scorers 0, now it is 1; leave it out, or take another --name" in found[0][1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"policy": "uniform", "online": None},
            "policy 'uniform' asks no model of the run, so --scorers would have nothing to do",
        ),
        ({"policy": "easy-reference", "online": None}, "policy 'easy-reference' asks no model of the run"),
        ({"policy": "infobatch", "online": None}, "policy 'infobatch' asks no model of the run"),
        ({"filter_ratio": 0.0}, "--filter-ratio 0 trains on all"),
        ({"policy": "jest"}, "compares pairs of one super-batch"),
        ({"score_ahead": 1}, "--score-ahead: they score ahead anyway"),
        ({"actors": 2}, "--actors and --scorers are two ways"),
        ({"on_missing": "score"}, "--on-missing score"),
        ({"reference_online": "m", "reference_scores": None}, "--reference-online"),
        ({"distill": 0.5}, "--distill"),
        ({"selection": "local"}, "--selection local"),
        ({"fsdp": True}, "--fsdp"),
        ({"sync_bn": True}, "--sync-bn"),
        ({"mix": "e:25%", "mix_scores": "scores"}, "--mix was not tried with --scorers"),
        ({"scorers": -1}, "--scorers is -1"),
    ],
)
def test_what_does_not_go_together(changes, said):
    known = {"policy": "learnability", "online": "m", "reference_scores": "scores", "filter_ratio": 0.5}
    with pytest.raises(SpecError) as refused:
        RunOptions.of(dataset="d", learner="l", steps=3, **{"scorers": 1, **known, **changes})
    assert said in str(refused.value) and "\n" not in str(refused.value)
