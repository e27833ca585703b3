"""Runs that draw from a pool which scorers fill: here scorers are threads, and the learner is the real one."""

import json
import re
from itertools import chain

import pyarrow.parquet as pq
import pytest
from curate import progress
from curate.errors import ActorError, BudgetError, SpecError
from curate.training import train
from support.commands import silent
from support.crew import STEPS, ThreadCrew, options_of, thread_crews
from support.tiny import cut_after

B = 32


def go(digits, out, resume=False, **changes):
    return train(options_of(digits, out, **changes), config=digits.config, report=silent, resume=resume)


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def selections_of(run):
    return [row for f in sorted((run / "selections").glob("*.parquet")) for row in pq.read_table(f).to_pylist()]


def test_a_run(digits, tmp_path):
    with thread_crews() as trained:
        summary = go(digits, tmp_path)
    crew, lines = ThreadCrew.made[-1], metrics_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    assert len(set(chain(*trained))) == STEPS * 16 == summary["counts"]["trained"]  # no example twice in an epoch
    rows = selections_of(tmp_path / "run")
    assert len(rows) == STEPS * 16 and all(row["selected"] for row in rows)
    assert all(row["score"] == pytest.approx(row["online_loss"] - row["reference_loss"], abs=1e-5) for row in rows)
    # All that was scored is paid: as much as without actors, but for one lease.
    exchange = crew.exchange
    per_row = json.loads((tmp_path / "run/manifest.json").read_text())["flops_per_step"]["online_score"] / B
    assert summary["ledger"]["online_score"] == exchange.leased * per_row == summary["examples_scored"] * per_row
    assert 0 <= exchange.leased - STEPS * B < 2 * B
    assert lines[-1]["flops"] == summary["ledger"]
    ages = [line["score_age"] for line in lines]
    assert ages[0] == 0 and max(line["score_age_greatest"] for line in lines) <= 20 and any(ages)
    assert all(0 <= line["pool_size"] <= 4 * B for line in lines)
    assert {"learner_waited", "scorers_waited", "dropped_for_age"} <= lines[0].keys()
    overlaps = [line["overlap"] for line in lines if "overlap" in line]
    assert [line["step"] for line in lines if "overlap" in line] == [10, 20] and all(0 < x <= 1 for x in overlaps)
    assert summary["outside_the_ledger"]["overlap"] == 2 * B * per_row


@pytest.mark.parametrize("faults", [{3: "killed", 5: "killed"}, {2: "gone"}, {4: "old", 5: "old", 6: "old"}])
def test_scorers_that_are_lost_or_old(digits, tmp_path, faults):
    with thread_crews(faults) as trained:
        summary = go(digits, tmp_path)
    exchange = ThreadCrew.made[-1].exchange
    assert len(set(chain(*trained))) == STEPS * 16
    lost = sum(fault != "old" for fault in faults.values())
    assert exchange.counts["leases_lost"] == lost == summary["counts"].get("leases_lost", 0)
    assert exchange.leased >= exchange.limiter.inserted + lost * exchange.plan.size  # also what was lost is paid
    assert max(line["score_age_greatest"] for line in metrics_of(tmp_path / "run")) <= 20


def test_without_scorers_a_run_ends_with_one_line_and_resumes(digits, tmp_path):
    faults = {number: "gone" for number in range(8, 20)}
    with thread_crews(faults), pytest.raises(ActorError, match=r"no scorer is left .*--resume"):
        go(digits, tmp_path)
    assert (tmp_path / "run/checkpoints").is_dir()
    with thread_crews():
        assert go(digits, tmp_path, resume=True)["steps"] == STEPS


def test_a_killed_learner_resumes(digits, tmp_path):
    with thread_crews() as before, cut_after(13):
        go(digits, tmp_path)
    kept = before[:10]  # a checkpoint is written after steps 5 and 10
    with thread_crews() as after:
        summary = go(digits, tmp_path, resume=True, actors=1)
    assert len(after) == STEPS - 10
    assert len(set(chain(*kept, *after))) == STEPS * 16 == summary["counts"]["trained"]
    lines = metrics_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
    spent = [line["flops"]["online_score"] for line in lines]
    assert spent == sorted(spent) and spent[-1] == summary["ledger"]["online_score"]
    exchange = ThreadCrew.made[-1].exchange
    assert exchange.leased >= exchange.limiter.inserted >= STEPS * B


def test_a_budget_pays_for_all_that_is_scored(digits, tmp_path):
    with thread_crews({2: "killed"}):
        summary = go(digits, tmp_path, steps=None, budget_flops=3e9)
    assert (
        0.95 * 3e9 < sum(summary["ledger"][name] for name in ("learner_train", "online_score", "online_train")) <= 3e9
    )


def test_a_budget_of_one_step(digits, tmp_path):
    """A lease has 150 examples, a shard of the digits; a step is chosen of 250."""
    large = dict(batch_size=200, filter_ratio=0.2)
    with thread_crews():
        go(digits, tmp_path, steps=1, **large)
    step = json.loads((tmp_path / "run/manifest.json").read_text())["flops_per_step"]

    def spend(name, share, faults=None):
        with thread_crews(faults):
            return go(digits, tmp_path, name=name, steps=None, budget_flops=share * sum(step.values()), **large)

    summary = spend("enough", 1.01)
    assert summary["steps"] == 1
    assert 250 <= summary["examples_scored"] <= 250 + 0.01 * sum(step.values()) / step["online_score"] * 250
    with pytest.raises(
        BudgetError, match=r"smaller than one step and what was scored .* 1 leases whose answers were lost"
    ):
        spend("lost", 1.01, {1: "killed"})
    with pytest.raises(BudgetError, match=r"the budget of .* is smaller than one step \(.*\); raise it"):
        spend("less", 0.95)


def test_lines_of_progress_say_how_old_losses_are_and_who_waits(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "NOT_WORTH_SAYING", 0.0)
    said = []
    with thread_crews():
        train(options_of(digits, tmp_path), config=digits.config, report=said.append)
    told = [line for line in said if "examples/s trained" in line]
    assert told and re.search(
        r"% of the budget; 2 actors, losses \d+ steps old, waited for them [\d.]+ % of the time", told[0]
    )


def test_its_replay_has_the_same_weights_also_after_a_kill(digits, tmp_path):
    with thread_crews({5: "killed"}):
        theirs = go(digits, tmp_path)["ledger"]
    replays = dict(
        name="again",
        replay=str(tmp_path / "run"),
        policy="uniform",
        online=None,
        reference_scores=None,
        actors=0,
        refresh=10,
        max_age=64,
    )
    with cut_after(13):
        go(digits, tmp_path, **replays)
    summary = go(digits, tmp_path, resume=True, **replays)
    # What was scored, also where the answer was lost, and not what was planned.
    assert summary["choices"] == pytest.approx(theirs["online_score"] + theirs["online_train"])
    one, two = ((tmp_path / name / "checkpoints/learner.safetensors").read_bytes() for name in ("run", "again"))
    assert one == two
    names = [[(row["step"], row["shard"], row["key"]) for row in selections_of(tmp_path / n)] for n in ("run", "again")]
    assert names[0] == names[1]


def test_another_ratio_and_no_reference(digits, tmp_path):
    with thread_crews():
        summary = go(
            digits, tmp_path, policy="hard-learner", reference_scores=None, samples_per_insert=0.25, host_bytes=1 << 30
        )
    assert STEPS * 64 <= summary["examples_scored"] < STEPS * 64 + 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(policy="uniform", online=None), "policy 'uniform', for which no model scores"),
        (dict(score_ahead=2), "--score-ahead: they score ahead anyway"),
        (dict(on_missing="score"), "--actors cannot be combined with --on-missing score"),
        (dict(max_bad_shards=3), "leave --max-bad-shards out"),
        (dict(filter_ratio=0.0), "--filter-ratio 0 trains on all"),
        (dict(pool_size=8), "--pool-size is 8, expected at least a super-batch of 32"),
        (dict(max_age=3, refresh=5), "--max-age is 3 and --refresh 5"),
        (dict(samples_per_insert=0.0), "--samples-per-insert is 0"),
    ],
)
def test_what_does_not_go_together(digits, tmp_path, changes, said):
    with pytest.raises(SpecError, match=said):
        options_of(digits, tmp_path, **changes)


@pytest.mark.parametrize("knob", [{"max_age": 32}, {"pool_size": 999}, {"samples_per_insert": 0.2}])
@pytest.mark.parametrize("scorers", [0, 1])
def test_a_knob_of_actors_without_actors_is_refused(digits, tmp_path, knob, scorers):
    with pytest.raises(SpecError, match="is for actors; give --actors N too"):
        options_of(digits, tmp_path, actors=0, scorers=scorers, **{"refresh": 10, **knob})


def test_the_knob_of_all_who_score_is_refused_without_them(digits, tmp_path):
    with pytest.raises(SpecError, match="--refresh is for actors and scorers; give --actors N or --scorers N too"):
        options_of(digits, tmp_path, actors=0, refresh=5)
