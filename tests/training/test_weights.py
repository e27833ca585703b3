"""Weights of single examples: in a step's gradients, from the score (reweight), and from the learner's past (InfoBatch)."""

import copy
import json

import pyarrow.parquet as pq
import pytest
import torch
from curate.errors import RunError, SpecError
from curate.scoring import POLICIES, Policy
from curate.scoring.loading import find_model, load_model
from curate.training import RunOptions, train
from curate.training.batch import SuperBatch
from curate.training.distill import Taught
from curate.training.group import Group
from curate.training.past import PastLosses
from curate.training.replay import RecordedRun
from curate.training.trainee import Trainee
from curate.training.weighing import Weighed
from support.commands import silent
from support.runs import left_by
from support.tiny import cut_after


@pytest.mark.parametrize("settings", [{}, {"gce": 0.7}, {"label_smoothing": 0.1, "distill": 0.4}])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_has_the_gradients_of_the_weighed_losses(digits, settings, accumulate):
    model = load_model(find_model("learner", task="classification", num_classes=10, config=digits.config), seed=1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (12, 8, 8, 3), dtype=torch.uint8, generator=generator)
    labels, weight = torch.arange(12) % 10, torch.rand(12, generator=generator) * 3
    teacher = torch.randn(12, 10, generator=generator)
    for norm in (part for part in model.module.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.momentum = 0.0
    expected = copy.deepcopy(model.module).train()
    trainee = Trainee(
        model, lr=1.0, optimizer="sgd", weight_decay=0, accumulate=accumulate, weighs=True, device=torch.device("cpu"),
        **settings,
    )  # fmt: skip
    targets = Taught(labels, teacher) if "distill" in settings else labels
    loss = trainee.step(pixels, Weighed(targets, weight))
    total, own = torch.zeros(()), []
    for part in [slice(12 * i // accumulate, 12 * (i + 1) // accumulate) for i in range(accumulate)]:
        logits = expected(model.normalize(pixels[part]))
        for i, row in enumerate(logits, part.start):
            log_p = row.log_softmax(-1)
            each = -log_p[labels[i]]
            if "gce" in settings:
                each = (1 - log_p[labels[i]].exp() ** 0.7) / 0.7
            if "distill" in settings:
                smooth = 0.9 * each - 0.1 * log_p.mean()
                each = 0.6 * smooth - 0.4 * (teacher[i].softmax(-1) * log_p).sum()
            own.append(each.item())
            total = total + weight[i] * each / 12
    assert float(loss) == pytest.approx(total.item(), rel=1e-4)
    assert trainee.weighed.of_batch().tolist() == pytest.approx(own, rel=1e-4)
    total.backward()
    step = dict(expected.named_parameters())["head.weight"]
    moved = step.detach() - model.module.head.weight.detach()
    torch.testing.assert_close(moved / moved.norm(), step.grad / step.grad.norm(), rtol=1e-3, atol=1e-4)


def batch(number, *keys):
    return SuperBatch(
        shards=["s"] * len(keys), keys=list(keys), views={}, targets=torch.zeros(len(keys)), number=number
    )


def test_the_past_is_compared_with_the_mean_of_all_that_are_known():
    past = PastLosses(Group(), last=3)
    assert past.score(batch(1, "a", "b")).past_B.tolist() == [0, 0]
    past.learned(batch(1, "a", "b"), torch.tensor([1.0, 5.0]))
    past.learned(batch(2, "b", "c"), torch.tensor([2.0, 6.0]))
    assert past.score(batch(3, "c", "a", "never", "b")).past_B.tolist() == [3, -2, 0, -1]
    again = PastLosses(Group(), last=3)
    again.restore(past.state())
    assert again.score(batch(3, "c", "a")).past_B.tolist() == [3, -2]
    assert past.score(batch(4, "c", "a")).past_B.tolist() == [0, 0]


def options(digits, out, **changes):
    known = dict(dataset="digits", learner="learner", batch_size=32, steps=60, precision="fp32", log_every=10)
    more = dict(checkpoint_every=20, evaluate=False, out=str(out), name="run")
    return RunOptions.of(**{**known, **more, **changes})


def test_infobatch_prunes_what_is_learned_costs_nothing_and_resumes_exactly(digits, tmp_path):
    asked = options(digits, tmp_path / "whole", policy="infobatch", filter_ratio=0.3)
    summary = train(asked, config=digits.config, report=silent)
    assert summary["ledger"]["online_score"] == summary["ledger"]["online_train"] == 0
    assert (summary["steps"], summary["examples_scored"]) == (60, 0)
    rows = [
        row
        for f in (tmp_path / "whole/run/selections").glob("*.parquet")
        for row in pq.ParquetFile(f).read().to_pylist()
    ]
    late = [row for row in rows if 30 < row["step"] <= 52]
    share = {low: [row["selected"] for row in late if (row["score"] < 0) == low] for low in (True, False)}
    assert sum(share[True]) / len(share[True]) < 0.6
    assert sum(share[False]) / len(share[False]) > 0.75
    assert all(row["score"] == 0 for row in rows if row["step"] == 1 or row["step"] > 53)

    again = options(digits, tmp_path / "cut", policy="infobatch", filter_ratio=0.3)
    with cut_after(47):
        train(again, config=digits.config, report=silent)
    train(again, config=digits.config, resume=True, report=silent)
    assert left_by(tmp_path / "cut/run") == left_by(tmp_path / "whole/run")
    with pytest.raises(RunError, match="its examples had weights"):
        replayed = options(digits, tmp_path, name="again", replay=str(tmp_path / "whole/run"), steps=3)
        train(replayed, config=digits.config, report=silent)


def test_a_replay_sees_by_the_record_that_a_policy_of_one_s_own_pruned(digits, tmp_path):
    mine = Policy("mine", POLICIES["infobatch"].score, online="past", prunes=True)
    train(options(digits, tmp_path, policy=mine, steps=2), config=digits.config, report=silent)
    with pytest.raises(RunError, match="its examples had weights"):
        RecordedRun(str(tmp_path / "run"))
    mine = Policy("mine", lambda known: known.online_B, online="learner")
    train(options(digits, tmp_path, policy=mine, steps=2, name="scored"), config=digits.config, report=silent)
    assert RecordedRun(str(tmp_path / "scored")).steps == 2


def test_reweighting_trains_on_all_and_its_weights_matter(digits, tmp_path):
    chosen = dict(
        policy="learnability", online="scorer", reference_scores=digits.scores, filter_ratio=0, steps=6, log_every=1
    )
    first = []
    for name, sampler in (("weighed", "reweight"), ("plain", "topk")):
        summary = train(
            options(digits, tmp_path, name=name, sampler=sampler, **chosen), config=digits.config, report=silent
        )
        assert summary["examples_scored"] == summary["examples_trained"] == 6 * 32
        first.append(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]))
    assert first[0]["score"] == first[1]["score"]
    assert first[0]["loss"] != first[1]["loss"]


def test_what_cannot_be_weighed_is_refused(digits, pairs, tmp_path):
    with pytest.raises(SpecError, match="give --filter-ratio 0 too"):
        options(digits, tmp_path, policy="hard-learner", online="scorer", sampler="reweight")
    with pytest.raises(SpecError, match="'infobatch' has weights of its own; leave --sampler reweight out"):
        options(digits, tmp_path, policy="infobatch", sampler="reweight", filter_ratio=0)
    with pytest.raises(SpecError, match="knows the weights of one process"):
        options(digits, tmp_path, policy="infobatch", selection="local")
    with pytest.raises(SpecError, match="--gce is 0, expected a q"):
        options(digits, tmp_path, gce=0.0)
    with pytest.raises(SpecError, match="two ways to trust labels less"):
        options(digits, tmp_path, gce=0.7, label_smoothing=0.1)
    with pytest.raises(SpecError, match="score-ahead cannot be combined with policy 'infobatch'"):
        options(digits, tmp_path, policy="infobatch", score_ahead=1)
    assert POLICIES["infobatch"].selects
    model = load_model(find_model("clip", task="image-text", config=pairs.config))
    for settings, told in (({"gce": 0.7}, "a loss of labels"), ({"weighs": True}, "no single one has a weight")):
        with pytest.raises(SpecError, match=told):
            Trainee(model, lr=1.0, device=torch.device("cpu"), **settings)
