"""What is measured and kept while a run goes on, and that a resumed run keeps the same."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import safetensors.torch
import torch
from curate.errors import FailuresError, SpecError, StorageError
from curate.training import RunOptions, train
from curate.training.evaluate import evaluate_by_name
from curate.training.keeping import Keeping
from curate.training.records import RunRecords
from curate.training.trainee import TraineeState
from support.commands import silent
from support.runs import left_by
from support.tiny import go, go_until, shard, write_toml

ON_THE_WAY = dict(evaluate=True, evaluate_every=3, keep_every=5, checkpoint_every=3, learner="learner")


@pytest.fixture
def work(tmp_path):
    shard(tmp_path / "a.tar", range(64))
    shard(tmp_path / "t.tar", range(100, 140))
    write_toml(tmp_path, test="t.tar")
    return tmp_path


def test_measuring_and_keeping_change_no_weight_and_come_back(work):
    go(work, name="plain")
    go(work, name="watched", **ON_THE_WAY)
    watched = left_by(work / "runs/watched")
    metrics, summary, files = watched["metrics"], watched["summary"], watched["weights"]
    assert files["learner.safetensors"] == (work / "runs/plain/checkpoints/learner.safetensors").read_bytes()
    measured = {line["step"]: line["quality"] for line in metrics if "quality" in line}
    assert list(measured) == [3, 6, 9] and all(q["test_examples"] == 40 for q in measured.values())
    assert [line["step"] for line in metrics if "loss" in line] == list(range(1, 13))
    assert set(files) == {
        "learner.safetensors",
        "learner-best.safetensors",
        "learner-000000005.safetensors",
        "learner-000000010.safetensors",
    }
    measured[12] = summary["quality"]
    best = max(measured, key=lambda step: (measured[step]["top1"], -step))
    assert summary["best"] == {"step": best, "top1": measured[best]["top1"]}
    # Every evaluation is counted, and in no budget.
    plain = json.loads((work / "runs/plain/summary.json").read_text())
    assert plain["outside_the_ledger"] == {} and summary["outside_the_ledger"]["evaluation"] > 0
    assert summary["regimes"]["foundation"] == metrics[-1]["flops"]["learner_train"]

    # After step 6 comes a checkpoint, and the evaluation after step 6 is lost; after 8 a kept weight is still to come.
    for stop in (2, 6, 8):
        go_until(stop, work, resume=stop > 2, name="cut", **ON_THE_WAY)
    go(work, name="cut", resume=True, **ON_THE_WAY)
    cut = left_by(work / "runs/cut")
    assert cut["metrics"] == metrics and cut["summary"] == summary
    assert cut["weights"] == files


class Half(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


class Learner:
    """As much of a trainee as is kept."""

    def __init__(self):
        self.module = Half()

    def whole(self, result):
        return nullcontext()

    def state(self, optimizer):
        return TraineeState(self.module.state_dict(), {}, None, frozenset())


@pytest.fixture
def keeping(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    learner, measured = Learner(), {}
    made = Keeping(
        tmp_path,
        learner,
        RunRecords(tmp_path, silent),
        lambda: measured,
        quality="top1",
        steps=100,
        evaluate_every=10,
        keep_every=None,
    )

    def at(step, top1):
        learner.module.weight.data.fill_(step)
        measured["top1"] = top1
        return made.measure(step)

    return made, at, tmp_path / "checkpoints"


def step_of(file):
    return float(safetensors.torch.load_file(file)["weight"])


def bests(folder):
    return sorted(p.name for p in folder.glob("learner-best*"))


def test_the_best_of_both_checkpoints_stays_until_a_checkpoint_is_behind_it(keeping):
    made, at, folder = keeping
    at(10, 0.5)
    made.saved()
    at(20, 0.7)
    assert bests(folder) == ["learner-best-000000010.safetensors", "learner-best-000000020.safetensors"]
    made.saved()  # the checkpoint before still has 10 as its best
    assert len(bests(folder)) == 2
    made.saved()
    assert bests(folder) == ["learner-best-000000020.safetensors"]
    at(30, 0.6)
    assert made.finish(100, {"top1": 0.65}) == {"step": 20, "top1": 0.7}
    assert bests(folder) == ["learner-best.safetensors"] and step_of(folder / "learner-best.safetensors") == 20


def test_the_last_weights_may_be_the_best(keeping):
    made, at, folder = keeping
    at(10, 0.5)
    at(100, 0.0)
    assert made.finish(100, {"top1": 0.9}) == {"step": 100, "top1": 0.9}
    assert step_of(folder / "learner-best.safetensors") == 100 and len(bests(folder)) == 1


def test_weights_that_a_resumed_run_has_not_reached_are_forgotten(keeping):
    made, at, folder = keeping
    at(10, 0.5)
    (folder.parent / "metrics.jsonl").write_text('{"step": 10, "quality": {"top1": 0.5}}\n{"step": 11, "loss": 1.0}\n')
    at(20, 0.7)
    made.resume()
    assert made.best == (10, 0.5) and bests(folder) == ["learner-best-000000010.safetensors"]


def test_a_test_split_that_cannot_be_read_just_now_does_not_end_the_run(keeping):
    made, at, folder = keeping

    def fails():
        raise StorageError("s3://bucket: no answer")

    made._measure = fails
    assert at(10, 0.5) == {} and bests(folder) == []
    assert "not evaluated after step 10: s3://bucket: no answer" in (folder.parent / "log.txt").read_text()


def test_options():
    with pytest.raises(SpecError, match="--evaluate-every and --no-evaluate contradict"):
        RunOptions.of(dataset="d", learner="l", steps=1, evaluate_every=3, evaluate=False)


def test_that_the_learner_has_passed_its_reference_is_said_once(tmp_path):
    learner, measured, said, calls = Learner(), {}, [], []
    records = RunRecords(tmp_path, said.append)
    made = Keeping(
        *(tmp_path, learner, records, lambda: measured),
        measure_reference=lambda: calls.append(1) or {"top1": 0.5},
        quality="top1",
        steps=100,
    )
    for top1 in (0.4, 0.5, 0.51, 0.6):
        measured["top1"] = top1
        made.quality()
        assert len(said) == (top1 > 0.5)
    assert "the learner has passed its reference: top1 0.51, the reference 0.5;" in said[0]
    assert calls == [1] and made.reference == 0.5


def test_a_reference_that_cannot_be_measured_is_left_out(tmp_path):
    def fails():
        raise FailuresError("the test split cannot be read")

    said = []
    made = Keeping(
        *(tmp_path, Learner(), RunRecords(tmp_path, said.append), lambda: {"top1": 0.9}),
        measure_reference=fails,
        quality="top1",
        steps=100,
    )
    assert made.quality() == {"top1": 0.9} and made.reference is None and not said


def test_a_run_that_chooses_by_a_table_measures_its_reference(digits, tmp_path):
    options = digits.run_options(tmp_path, steps=4, precision="fp32", evaluate=True, evaluate_every=2)
    summary = train(options, config=digits.config, report=silent)
    table = json.loads((digits.table / "_manifest.json").read_text())
    expected = evaluate_by_name(digits.reference, "digits", digits.config, "fp32")["top1"]
    assert summary["reference_quality"] == pytest.approx(expected)
    outside = summary["outside_the_ledger"]
    once = table["flops"]["forward_per_example"] * summary["quality"]["test_examples"]
    assert outside["reference_evaluation"] == pytest.approx(once)  # though the learner was measured twice
    uniform = options.but(policy="uniform", online=None, reference_scores=None, name="uniform")
    alone = train(uniform, config=digits.config, report=silent)
    assert "reference_quality" not in alone and "reference_evaluation" not in alone["outside_the_ledger"]
