"""Stored logits, from the score table to the loss that the learner trains on."""

import copy
import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from curate.datasets import Geometry
from curate.errors import SpecError, TableError
from curate.pipelines.score_reference import score_reference
from curate.scoring import open_scores
from curate.scoring.loading import find_model, load_model
from curate.scoring.losses import distillation
from curate.scoring.tables.schema import vector_column
from curate.training import RunOptions, train
from curate.training.superbatch import SuperBatches
from curate.training.trainee import Taught, Trainee
from support.commands import silent

VIEWS = {"learner": Geometry(size=8)}


@pytest.fixture(scope="module")
def with_logits(digits, tmp_path_factory):
    """The digits' scores, made again with logits, in this process."""
    here = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
    options = digits.options(tmp_path_factory.mktemp("logits"), logits=True, runner_options=here)
    return open_scores(score_reference(options, silent).folder)


def options_of(table, out, name="run", **changes):
    known = dict(dataset="digits", learner="learner", steps=2, batch_size=16, precision="fp32", out=str(out), name=name)
    return RunOptions.of(**{**known, "evaluate": False, "reference_scores": table and table.folder, **changes})


def test_the_loss_is_that_of_the_formula():
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 5, 3))
    for temperature in (1.0, 4.0):
        soft = np.exp(teacher / temperature) / np.exp(teacher / temperature).sum(1, keepdims=True)
        log = student / temperature - np.log(np.exp(student / temperature).sum(1, keepdims=True))
        wanted = temperature**2 * -(soft * log).sum(1).mean()
        found = distillation(torch.tensor(student), torch.tensor(teacher), temperature)
        assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_stored_logits_give_the_stored_losses_and_batches_have_their_own(digits, with_logits):
    assert with_logits.logit_width == 10
    for name in with_logits.shard_names():
        scores = with_logits.shard(name, logits=True)
        logits = torch.from_numpy(scores.logits.astype(np.float32))
        again = torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(scores.label.astype(np.int64)), reduction="none"
        )
        assert again.numpy() == pytest.approx(scores.loss, abs=0.02)
    batches = SuperBatches(digits.dataset(), 32, views=VIEWS, scores=with_logits, logits=True)
    for batch in islice(batches, 2):
        taken = batch.take(torch.tensor([3, 30]))
        assert torch.equal(taken.reference_logits, batch.reference_logits[[3, 30]])
        for row, (shard, key) in enumerate(zip(batch.shards, batch.keys, strict=True)):
            scores = with_logits.shard(shard, logits=True)
            assert torch.equal(batch.reference_logits[row], torch.from_numpy(scores.logits[scores.places[key]]))
    batches.close()


def test_what_float16_cannot_hold_is_its_largest_number():
    assert vector_column(torch.tensor([[1e6, -1e6, 1.5]])).to_pylist() == [[65504.0, -65504.0, 1.5]]


def test_an_older_table_has_no_logits_and_the_way_out_is_said(digits, with_logits, tmp_path):
    older = open_scores(digits.scores)
    assert "logits" not in older.manifest
    with pytest.raises(TableError, match="holds no logits; run score-reference with --logits into a new --out"):
        train(options_of(older, tmp_path, distill=0.5), config=digits.config, report=silent)
    with pytest.raises(TableError, match="has logits and was asked for without"):
        score_reference(digits.options(str(with_logits.folder).split("/dataset=")[0]), silent)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_has_the_gradients_of_both_losses(digits, accumulate):
    model = load_model(find_model("learner", task="classification", num_classes=10, config=digits.config), seed=1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (12, 8, 8, 3), dtype=torch.uint8, generator=generator)
    labels, teacher = torch.arange(12) % 10, torch.randn(12, 10, generator=generator).half()
    for norm in (part for part in model.module.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.momentum = 0.0
    expected = copy.deepcopy(model.module).train()
    trainee = Trainee(
        model, lr=0.1, optimizer="sgd", weight_decay=0, accumulate=accumulate, distill=0.7, distill_temperature=2.0,
        device=torch.device("cpu"),
    )  # fmt: skip
    loss = trainee.step(pixels, Taught(labels, teacher))
    parts = [slice(12 * i // accumulate, 12 * (i + 1) // accumulate) for i in range(accumulate)]
    total = torch.zeros(())
    for part in parts:
        logits = expected(model.normalize(pixels[part]))
        soft = (teacher[part].float() / 2).softmax(-1)
        both = 0.3 * torch.nn.functional.cross_entropy(logits, labels[part])
        both = both - 0.7 * 4 * (soft * (logits / 2).log_softmax(-1)).sum(-1).mean()
        total = total + both * len(labels[part]) / 12
    assert float(loss) == pytest.approx(total.item(), rel=1e-5)
    total.backward()
    gradients = dict(expected.named_parameters())
    step = gradients["head.weight"].grad
    before = gradients["head.weight"].detach()
    assert step is not None
    moved = before - model.module.head.weight.detach()
    assert torch.nn.functional.cosine_similarity(moved.flatten(), step.flatten(), dim=0) > 0.999


def test_a_run_learns_from_the_table_under_any_policy_and_its_ledger_counts_the_reference(
    digits, with_logits, tmp_path
):
    plain = train(options_of(None, tmp_path, "plain"), config=digits.config, report=silent)
    taught = train(options_of(with_logits, tmp_path, "taught", distill=0.5), config=digits.config, report=silent)
    assert taught["ledger"]["reference_score"] > 0 == plain["ledger"]["reference_score"]
    assert taught["ledger"]["learner_train"] == plain["ledger"]["learner_train"]
    assert taught["regimes"]["nothing_amortised"] > taught["regimes"]["foundation"]
    first = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("plain", "taught")
    ]
    assert first[0]["loss"] != first[1]["loss"]
    chosen = dict(policy="learnability", online="scorer", distill=1.0, distill_temperature=2.0)
    summary = train(options_of(with_logits, tmp_path, "chosen", **chosen), config=digits.config, report=silent)
    assert summary["ledger"]["online_score"] > 0


def test_what_cannot_be_distilled_is_refused(digits, with_logits, tmp_path):
    with pytest.raises(SpecError, match="give --reference-scores TABLE, made with --logits"):
        options_of(None, tmp_path, distill=0.5)
    with pytest.raises(SpecError, match="--distill is 2, expected 0 to 1"):
        options_of(with_logits, tmp_path, distill=2.0)
    with pytest.raises(SpecError, match="--distill-temperature is 0"):
        options_of(with_logits, tmp_path, distill=0.5, distill_temperature=0.0)
    with pytest.raises(SpecError, match="use skip"):
        options_of(with_logits, tmp_path, distill=0.5, on_missing="score")
    with pytest.raises(SpecError, match="has captions: use --embeddings"):
        digits.options(tmp_path, logits=True, dataset=replace(digits.dataset(), task="image-text", text="txt"))
    with pytest.raises(SpecError, match="give scores= too"):
        SuperBatches(digits.dataset(), 30, views=VIEWS, logits=True)
    with pytest.raises(SpecError, match="distillation needs stored logits"):
        Taught.of(next(iter(SuperBatches(digits.dataset(), 30, views=VIEWS))), "learner")
