"""Super-batches that are scored before their turn: by which weights, with which state, and the same at every resume."""

from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from curate import OnlineModel, Selector, SubBatches, SuperBatches
from curate.datasets import Geometry
from curate.errors import SpecError
from curate.training import RunOptions, train
from support.commands import silent
from support.runs import left_by
from support.tiny import cut_after
from torch import nn
from torch.nn.functional import cross_entropy

AHEAD, STEPS = 2, 7


class Versioned:
    """Losses that say how many steps the scorer had taken; a copy keeps the number of its time."""

    def __init__(self, version=0):
        self.version, self.calls = version, []

    def score(self, batch):
        self.calls.append((batch.number, self.version))
        return torch.full((len(batch),), float(self.version)) + torch.arange(len(batch)) / 1000

    def step(self, batch):
        self.version += 1


class Copied(Versioned):
    def snapshot(self):
        made = Versioned(self.version)
        made.calls = self.calls
        return made


def subs_of(digits, scorer, ahead=AHEAD, **options):
    batches = SuperBatches(digits.dataset(), 60, views={"image": Geometry(size=8)})
    return SubBatches(batches, Selector("hard-learner", 12, seed=5), online=scorer, score_ahead=ahead, **options)


@pytest.mark.parametrize("kind", [Versioned, Copied])
def test_a_super_batch_is_scored_by_the_weights_of_then(digits, kind):
    scorer = kind()
    subs = subs_of(digits, scorer, last=STEPS)
    found = list(islice(subs, STEPS))
    subs.close()
    # Step t chooses by the weights after t - 1 - AHEAD steps, and nothing behind the last super-batch is scored.
    assert scorer.calls == [(t, max(0, t - 1 - AHEAD)) for t in range(1, STEPS + 1)]
    assert [int(sub.selection.online_loss.min()) for sub in found] == [
        max(0, t - 1 - AHEAD) for t in range(1, STEPS + 1)
    ]


def chosen(subs, count):
    found = [(sub.keys, sub.selection.online_loss.tolist()) for sub in islice(subs, count)]
    subs.close()
    return found


def model_of(seed=3):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    losses = lambda m, batch: cross_entropy(m(batch.views["image"].float() / 255), batch.targets, reduction="none")  # noqa: E731
    return OnlineModel(module, losses, torch.optim.SGD(module.parameters(), lr=0.1))


def test_the_state_of_a_stream_has_what_waits_for_its_turn(digits):
    whole = chosen(subs_of(digits, model_of()), STEPS)
    online = model_of()
    subs = subs_of(digits, online)
    begun = chosen(subs, 4)
    state, model = subs.state_dict(), online.state_dict()
    assert len(state["scored"]) == AHEAD
    other = model_of(seed=4)
    resumed = subs_of(digits, other)
    resumed.load_state_dict(state)
    other.load_state_dict(model)
    assert begun + chosen(resumed, STEPS - 4) == whole
    assert begun + chosen(subs, STEPS - 4) == whole  # the same object goes on from where it stands


def test_without_a_model_nothing_can_be_scored_ahead(digits):
    batches = SuperBatches(digits.dataset(), 60, views={"image": Geometry(size=8)}, scores=digits.scores)
    with pytest.raises(SpecError, match="no model scores"):
        SubBatches(batches, Selector("easy-reference", 12), score_ahead=1)
    with pytest.raises(SpecError, match="leave score_ahead out, or choose globally"):
        subs_of(digits, Versioned(), local=True)
    asked = {"dataset": "digits", "learner": "learner", "steps": 3, "score_ahead": 1}
    with pytest.raises(SpecError, match="scores nothing in the run"):
        RunOptions.of(**asked, policy="easy-reference", reference_scores="scores")
    with pytest.raises(SpecError, match="--on-missing score"):
        RunOptions.of(**asked, policy="learnability", online="scorer", reference_scores="scores", on_missing="score")
    with pytest.raises(SpecError, match="--score-ahead is -1"):
        RunOptions.of(**{**asked, "score_ahead": -1})


def options_of(digits, out, ahead=AHEAD, policy="learnability"):
    return digits.run_options(
        out, policy=policy, online="scorer" if policy == "learnability" else None, score_ahead=ahead
    )


@pytest.mark.parametrize("policy", ["learnability", "rho"])
def test_a_run_resumes_with_what_was_scored(digits, tmp_path, policy):
    train(options_of(digits, tmp_path / "whole", policy=policy), config=digits.config, report=silent)
    with cut_after(8):
        train(options_of(digits, tmp_path / "cut", policy=policy), config=digits.config, report=silent)
    train(options_of(digits, tmp_path / "cut", policy=policy), config=digits.config, report=silent, resume=True)
    assert left_by(tmp_path / "cut/run") == left_by(tmp_path / "whole/run")
    ages = [json.loads(line)["score_age"] for line in (tmp_path / "whole/run/metrics.jsonl").read_text().splitlines()]
    assert ages == [min(AHEAD, step) for step in range(12)]


def test_scoring_ahead_counts_the_same_flops_and_chooses_otherwise(digits, tmp_path):
    for ahead in (0, AHEAD):
        train(options_of(digits, tmp_path / str(ahead), ahead), config=digits.config, report=silent)
    now, later = (left_by(tmp_path / f"{ahead}/run") for ahead in (0, AHEAD))
    assert now["metrics"][-1]["flops"] == later["metrics"][-1]["flops"]
    same = [a == b for a, b in zip(now["selections"], later["selections"], strict=True)]
    assert all(same[:32]) and not all(same)  # the first step chooses by the same weights
