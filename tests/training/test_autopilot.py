"""`--policy auto`: the probe, its verdict, and what a run does after it."""

import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from curate.errors import SpecError
from curate.ledger import StepCost
from curate.studies.options import PlanOptions
from curate.studies.plan import make_plan
from curate.training import RunOptions, startup, train
from curate.training.autopilot import Autopilot, Verdict
from support.commands import silent
from support.runs import left_by
from support.tiny import cut_after


def options(digits, out, **changes):
    known = dict(dataset="digits", learner="learner", online="scorer", policy="auto", reference_scores=digits.scores)
    more = dict(
        batch_size=16, budget_flops=4e9, precision="fp32", log_every=1, checkpoint_every=4, out=str(out), name="run"
    )
    return RunOptions.of(**{**known, **more, "filter_ratio": 0.75, "evaluate": False, **changes})


def planned(digits):
    """The same run, as `curate plan` takes it."""
    known = dict(dataset="digits", learner="learner", online="scorer", reference_scores=digits.scores)
    return PlanOptions.of(**known, batch_size=16, budget_flops=4e9, filter_ratio=0.75)


def pilot(differences, budget=1000.0):
    cost = StepCost(learner_train=10, online_score=4, online_train=1)
    made = Autopilot(
        None, None, cost, forward=0.1, training=1, planned=66, budget=budget, how="none", precision="fp32", seed=0
    )
    made._differences = differences
    return made


def test_choosing_pays_where_the_late_differences_lie_above_their_error():
    for differences, pays in (
        ([-9, -9, 0.2, 0.3], True),
        ([9, 9, 0.2, -0.3], False),
        ([0, 0, 0.1, -0.05], False),
        ([0, 0, 0.5, 0.5], True),
    ):
        verdict = pilot(differences).settle(6, 100.0)
        assert verdict.pays == pays, differences
        assert verdict.share == pytest.approx(1 / 3)
        assert verdict.last == 6 + (900 // 15 if pays else 900 // 10)
    told = str(Verdict(6, 0.0025, 0.0005, 0.3, 60, "similarity"))
    assert (
        "brings +0.25 points of similarity (standard error 0.05) at equal FLOPs, of which it takes 30%: choosing goes"
        in told
    )


def test_it_watches_to_the_half_or_until_choosing_does_not_pay():
    made, due = pilot([1, 1, 1, 1]), []
    for step in range(1, 67):
        if made.due(step):
            due.append(step)
            made.settle(step, 100.0)
        made._differences = [1, 1, 1, 1]
    assert due == [7, 14, 21, 28, 35]
    other = pilot([-1, -1, -1, -1])
    other.settle(7, 100.0)
    assert not other.watching
    assert other.scored_steps(60) == 7


class Few:
    """A batch of so many examples."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def take(self, rows):
        few = Few(len(rows))
        few.views = {"online": torch.zeros(len(rows), 2, 2, 3)}
        few.model_targets = lambda name: torch.zeros(len(rows))
        return few


def test_the_twin_takes_as_many_more_steps_as_choosing_costs(monkeypatch):
    """A step that chooses costs 1.5 times one that does not."""
    made, taken = pilot([]), []
    sub = Few(4)
    sub.drawn = Few(16)
    made.twin = SimpleNamespace(model=None, targets_of=lambda *_: None, step=lambda *_: taken.append(1))
    made.online = SimpleNamespace(model=None)
    scored = SimpleNamespace(predicted=torch.zeros(4), loss=torch.zeros(4))
    monkeypatch.setattr("curate.training.autopilot.score_batch", lambda *_, **__: scored)
    counts = []
    for _ in range(6):
        before = len(taken)
        cost = made.watch(sub, 1.0)
        counts.append(len(taken) - before)
        assert (cost.online_score, cost.online_train) == (pytest.approx(0.8), counts[-1])
    assert counts == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("pays", [True, False])
def test_a_run_follows_the_verdict_within_its_budget_and_resumes_exactly(digits, tmp_path, monkeypatch, pays):
    monkeypatch.setattr(Verdict, "pays", property(lambda self: pays))
    told, on_disk = [], []
    monkeypatch.setattr(startup, "check_disk", lambda run, models, *rest: on_disk.append(len(models)))
    summary = train(options(digits, tmp_path / "whole"), config=digits.config, report=told.append)
    assert on_disk == [3]  # the twin is in checkpoints too
    found, steps = summary["autopilot"], summary["steps"]
    assert (found["pays"], found["last"]) == (pays, steps)
    assert any("choosing goes on" in line if pays else "the rest is drawn uniformly" in line for line in told)
    run = tmp_path / "whole/run"
    cost = json.loads((run / "manifest.json").read_text())["flops_per_step"]
    spent = summary["regimes"]["foundation"]
    assert 4e9 - sum(cost.values()) < spent <= 4e9
    assert summary["ledger"]["learner_train"] == pytest.approx(steps * cost["learner_train"])
    scored = steps if pays else found["steps"]
    assert (summary["policy"], summary["examples_scored"]) == ("auto", scored * 64)
    recorded = {s for file in (run / "selections").glob("*.parquet") for s in pq.read_table(file)["step"].to_pylist()}
    assert recorded == set(range(1, scored + 1))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["online_train_loss"] is not None for line in lines] == [step <= scored for step in range(1, steps + 1)]
    assert lines[-1]["lr"] < 0.01 * max(line["lr"] for line in lines)
    twin = summary["ledger"]["online_train"] / cost["online_train"] - scored
    assert found["steps"] <= twin <= 1 + found["steps"] * sum(cost.values()) / cost["learner_train"]
    if pays:
        plan = make_plan(planned(digits), digits.config, watches=True)
        assert steps - 1 <= plan.steps <= steps
        for line, within in (("online_score", 0.0), ("online_train", cost["online_train"])):
            of_watching = summary["ledger"][line] - steps * cost[line]
            assert getattr(plan.watching, line) == pytest.approx(of_watching, rel=1e-9, abs=within), line

    again = options(digits, tmp_path / "cut")
    for step in (found["steps"] - 1, found["steps"] + 6):
        with cut_after(step):
            train(again, config=digits.config, resume=True, report=silent)
    train(again, config=digits.config, resume=True, report=silent)
    assert left_by(tmp_path / "cut/run") == left_by(run)


def test_what_it_cannot_share_out_is_refused(digits, tmp_path):
    with pytest.raises(SpecError, match="give --budget-flops"):
        options(digits, tmp_path, budget_flops=None, steps=5)
    with pytest.raises(SpecError, match="not tried with --score-ahead"):
        options(digits, tmp_path, score_ahead=1)
    with pytest.raises(SpecError, match="give --online NAME"):
        options(digits, tmp_path, online=None)
