"""A reference that trains during the run: what it learns from and when, what it costs, and the same at every resume."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import StringIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from curate.datasets.batches import decode_all, decode_threads
from curate.datasets.readers import read_shard
from curate.datasets.shards import list_shards
from curate.errors import SpecError
from curate.reports.plan import write_plan
from curate.reports.run_status import run_status
from curate.scoring.loading import find_model, load_model
from curate.scoring.settings import usual_reference_every
from curate.studies.options import PlanOptions
from curate.studies.plan import plan_from_models
from curate.training import RunOptions, train
from curate.training.group import Group
from curate.training.schedule import learning_rate
from curate.training.startup import stream_seed
from curate.training.trackers import _regimes
from support.commands import silent
from support.counting import OfRealTensors
from support.rank_runs import five_shards, train_in
from support.ranks import run_ranks
from support.runs import left_by
from support.tiny import cut_after
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

STEPS, EVERY = 8, 3
MOVING = {"policy": "learnability", "online": "scorer", "reference_online": "scorer", "reference_every": EVERY}


def options_of(out, **changes):
    known = dict(dataset="digits", learner="learner", steps=STEPS, batch_size=16, precision="fp32", log_every=1)
    records = dict(checkpoint_every=4, evaluate=False, out=str(out), name="run")
    return RunOptions.of(**{**known, **records, **MOVING, **changes})


def rows_by_step(folder):
    rows = [
        row for file in sorted((folder / "selections").glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    return [[row for row in rows if row["step"] == step] for step in range(1, STEPS + 1)]


def test_it_learns_from_whole_super_batches_and_scores_by_its_present_weights(digits, tmp_path):
    """Beside the same in a plain loop, from what the run recorded of its super-batches."""
    options = options_of(tmp_path, optimizer="sgd", weight_decay=0.0, online_lr=0.03, augment="none", seed=4)
    train(options, config=digits.config, report=silent)
    dataset = digits.dataset()
    images = {(e.shard, e.key): e for shard in list_shards(dataset) for e in read_shard(dataset, shard)}
    spec = find_model("scorer", task=dataset.task, num_classes=dataset.num_classes, config=digits.config)
    model = load_model(spec, seed=stream_seed(4, "reference"))
    momentum = {}
    for step, rows in enumerate(rows_by_step(tmp_path / "run"), 1):
        examples = [images[row["shard"], row["key"]] for row in rows]
        with ThreadPoolExecutor(decode_threads()) as pool:
            pixels = model.normalize(torch.from_numpy(np.stack(decode_all(examples, model.geometry, pool))))
        targets = torch.tensor([e.target for e in examples])
        model.module.eval()
        with torch.no_grad():
            now = cross_entropy(model.module(pixels), targets, reduction="none")
        torch.testing.assert_close(torch.tensor([row["reference_loss"] for row in rows]), now, rtol=1e-3, atol=1e-4)
        assert [row["reference_loss"] for row in rows] != [row["online_loss"] for row in rows]
        assert 16 == sum(row["selected"] for row in rows) < len(rows) == 32
        model.module.train()
        (cross_entropy(model.module(pixels), targets) / EVERY).backward()
        if step % EVERY == 0:
            rate = learning_rate(step - 1, STEPS, 2 * 0.03, round(options.optimization.warmup * STEPS))
            with torch.no_grad():
                for name, p in model.module.named_parameters():
                    # timm's sgd: Nesterov's momentum of 0.9.
                    momentum[name] = p.grad + 0.9 * momentum.get(name, torch.zeros_like(p))
                    p -= rate * (p.grad + 0.9 * momentum[name])
                    p.grad = None
    kept = safetensors.numpy.load_file(tmp_path / "run/checkpoints/reference.safetensors")
    for name, p in model.module.named_parameters():
        np.testing.assert_allclose(kept[name], p.detach().numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"policy": "easy-reference", "online": None}])
def test_every_flop_of_it_is_the_runs_own(digits, tmp_path, changes):
    options = options_of(tmp_path, filter_ratio=0.8, **changes)
    with sdpa_kernel(SDPBackend.MATH), OfRealTensors(display=False) as counter:
        found = train(options, config=digits.config, report=silent)
    a_step = json.loads((tmp_path / "run/manifest.json").read_text())["flops_per_step"]
    lines, regimes = found["ledger"], found["regimes"]
    assert counter.get_total_flops() == STEPS * sum(a_step.values()) == sum(lines.values())
    assert found["ledger_in_run"] == {name: lines[name] for name in ("reference_score", "reference_train")}
    assert lines["reference_train"] > 2 * lines["reference_score"] > 0
    # It serves no other run, so nobody shares its cost.
    assert (
        regimes["foundation"] == regimes["pretrained_reference"] == regimes["nothing_amortised"] == sum(lines.values())
    )
    assert regimes["fully_amortised"] == lines["learner_train"]
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["flops_in_run"] == found["ledger_in_run"] and last["reference_train_loss"] > 0
    assert run_status(str(tmp_path / "run")).spent == sum(lines.values())
    assert _regimes(last)["regimes"] == regimes  # what trackers are told


def test_a_budget_pays_for_it(digits, tmp_path):
    budget = 2e9
    found = train(options_of(tmp_path, steps=None, budget_flops=budget), config=digits.config, report=silent)
    a_step = found["regimes"]["foundation"] / found["steps"]
    assert budget - a_step < found["regimes"]["foundation"] <= budget
    plan = plan_from_models(
        PlanOptions.of(dataset="digits", learner="learner", budget_flops=budget, batch_size=16, **without_policy()),
        digits.config,
    )
    assert plan.steps == found["steps"] and plan.ledger().lines() == found["ledger"]
    assert plan.ledger().regimes() == found["regimes"]
    for regime, (each, once) in {name: plan.extra(name) for name in found["regimes"]}.items():
        assert (plan.step.learner_train + each) * plan.steps + once == pytest.approx(found["regimes"][regime])
    shown = StringIO()
    write_plan(plan.to_dict(), file=shown)
    assert "it trains in this run, and serves no other" in shown.getvalue() and "*" not in shown.getvalue()


def without_policy():
    return {name: value for name, value in MOVING.items() if name != "policy"}


def test_a_run_resumes_in_the_middle_of_its_batch(digits, tmp_path):
    train(options_of(tmp_path / "whole", score_ahead=2), config=digits.config, report=silent)
    with cut_after(5):
        train(options_of(tmp_path / "cut", score_ahead=2), config=digits.config, report=silent)
    train(options_of(tmp_path / "cut", score_ahead=2), config=digits.config, report=silent, resume=True)
    whole = left_by(tmp_path / "whole/run")
    assert set(whole["weights"]) == {f"{name}.safetensors" for name in ("learner", "online", "reference")}
    assert left_by(tmp_path / "cut/run") == whole


def test_both_losses_are_made_of_as_few_pixels(digits, tmp_path):
    train(options_of(tmp_path, steps=3, score_size=6), config=digits.config, report=silent)
    a_step = json.loads((tmp_path / "run/manifest.json").read_text())["flops_per_step"]
    assert a_step["online_score"] == a_step["reference_score"] < 0.25 * a_step["reference_train"]


def test_a_replay_of_it_says_what_its_choices_cost(digits, tmp_path):
    theirs = train(options_of(tmp_path), config=digits.config, report=silent)["ledger"]
    again = {"policy": "uniform", "online": None, "reference_online": None, "reference_every": None}
    replayed = options_of(tmp_path, name="again", replay=str(tmp_path / "run"), **again)
    found = train(replayed, config=digits.config, report=silent)
    assert found["choices"] == sum(theirs.values()) - theirs["learner_train"]
    assert found["regimes"]["pretrained_reference"] == sum(theirs.values())


VIT = """
[models.learner]
architecture = "vit_tiny_patch16_224"
arguments = { img_size = 16, patch_size = 8, embed_dim = 16, depth = 1, num_heads = 2 }
preprocessing = { size = 16 }
"""


def test_ranks_train_it_as_one_process_does(tmp_path):
    """Three ranks do not hold equal parts of the super-batch, and stop in the middle of the reference's batch."""
    models = {"online": "learner", "reference_online": "learner"}
    changes = {**MOVING, **models, "augment": "crop-flip", "checkpoint_every": 4, "steps": STEPS}
    folder = five_shards(tmp_path, VIT, changes)
    run_ranks(3, train_in, folder, False, 5, None, {"name": "parts", **changes})
    train_in(Group(), folder, True, None, None, {"name": "parts", **changes})
    parts, one = (left_by(folder / "runs" / name) for name in ("parts", "one"))
    assert parts["summary"]["ledger"] == one["summary"]["ledger"]
    names = ("step", "shard", "key", "selected")
    assert [[row[n] for n in names] for row in parts["selections"]] == [
        [row[n] for n in names] for row in one["selections"]
    ]
    for name, content in one["weights"].items():
        ours = safetensors.numpy.load(parts["weights"][name])
        for key, value in safetensors.numpy.load(content).items():
            np.testing.assert_allclose(ours[key], value, rtol=1e-3, atol=1e-4, err_msg=f"{name} {key}")


def test_the_usual_batch_is_ten_of_the_learners():
    assert [usual_reference_every(32, B) for B in (32, 64, 160, 320, 640, 10_000)] == [10, 5, 2, 1, 1, 1]
    assert options_of("runs", reference_every=None).reference_every == 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reference_scores": "scores"}, "--reference-scores and --reference-online are both given"),
        ({"reference": "runs/ref"}, "--reference and --reference-online are both given"),
        ({"policy": "uniform"}, "policy 'uniform' needs no reference; leave --reference-online out"),
        ({"policy": "hard-learner"}, "policy 'hard-learner' needs no reference"),
        ({"policy": "filter"}, "filters the data set before the run"),
        ({"policy": "jest"}, "compares stored embeddings"),
        ({"reference_every": 0}, "--reference-every is 0, expected at least 1"),
        ({"reference_lr": -1.0}, "--reference-lr is -1, expected 0 or more"),
        (
            {"reference_online": None, "reference_scores": "scores"},
            "--reference-every is for a reference that trains in",
        ),
        ({"policy": "uniform", "online": None, "replay": "runs/a"}, "leave --reference-online out"),
        ({"distill": 0.5}, "--distill learns from stored logits"),
    ],
)
def test_what_does_not_go_together_is_one_line(changes, told):
    with pytest.raises(SpecError, match=told):
        options_of("runs", **changes)


def test_two_models_that_see_images_otherwise_are_told(digits, tmp_path):
    said = []
    entry = {**digits.config.models["scorer"], "preprocessing": {"size": 6}}
    config = replace(digits.config, models={**digits.config.models, "small": entry})
    train(options_of(tmp_path, reference_online="small", steps=3), config=config, report=said.append)
    assert any("the reference and 'scorer' see images otherwise (size 6 and 8)" in line for line in said)
    assert any("a step after every 3 super-batches, on 96 examples, with a peak rate of 0.004" in line for line in said)


def test_a_reference_that_would_never_learn_is_refused(digits, tmp_path):
    with pytest.raises(SpecError, match=r"after every 100 super-batches .* lower --reference-every"):
        train(options_of(tmp_path, reference_every=100), config=digits.config, report=silent)
    assert not (tmp_path / "run/metrics.jsonl").exists()
