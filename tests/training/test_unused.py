"""Options that change nothing under the run's policy are said, and those that need another option are refused."""

from __future__ import annotations

import pytest
from curate.errors import SpecError
from curate.training.options import RunOptions
from curate.training.unused import unused, unused_by_all
from support.commands import curate
from support.tiny import go, shard, write_toml

TABLE = {"reference_scores": "T"}
MODELS = {**TABLE, "online": "O"}
DRAWN = {"temperature": 0.5, "score_scale": 2.0, "sampler": "topk"}


def run(policy="uniform", **given):
    return RunOptions.of(**{"dataset": "D", "learner": "L", "steps": 3, "policy": policy, **given})


@pytest.mark.parametrize(
    ("given", "without_effect"),
    [
        (run(), []),
        (run(**MODELS, online_lr=0.1, filter_ratio=0.8), ["online", "online_lr", "reference_scores", "filter_ratio"]),
        (run("learnability", **MODELS, online_lr=0.1, filter_ratio=0.8, micro_batch=8, reference="R"), []),
        (run("infobatch", **MODELS, filter_ratio=0.3), ["online", "reference_scores"]),
        (run("infobatch", temperature=0.5, micro_batch=8), ["temperature", "micro_batch"]),
        (run("rho", **MODELS), ["online"]),
        (run("jest", **MODELS, chunks=4, temperature=0.5), []),
        (run("hard-learner", **MODELS, trust_table=True), ["reference_scores", "trust_table"]),
        (run("easy-reference", **MODELS, score_precision="bf16"), ["online", "score_precision"]),
        (run("easy-reference", **TABLE, score_precision="bf16", on_missing="score"), []),
        (run("hard-learner", online="O", keep=0.3, keep_by="class", chunks=4), ["keep", "keep_by", "chunks"]),
        (run("hard-learner", online="O", **DRAWN), ["temperature", "score_scale"]),
        (run("hard-learner", online="O", **{**DRAWN, "sampler": "softmax"}), []),
        (run("filter", **TABLE, **DRAWN, keep=0.3), ["sampler", "temperature", "score_scale"]),
        (run("filter", **TABLE, prior_scores="P", selections_every=5), ["prior_scores", "selections_every"]),
        (run(**TABLE, mix="d:25%", mix_scores="M"), ["reference_scores", "mix_scores"]),
        (run(**TABLE, distill=0.5, distill_temperature=2.0, reference="R"), []),
        (run("learnability", online="O", reference_online="R", on_missing="skip"), ["on_missing"]),
        (run(replay="runs/x", **TABLE, temperature=0.5, filter_ratio=0.8), ["temperature"]),
        (
            RunOptions.of(dataset="D", learner="L", budget_flops=1e9, charge_reference=True, **TABLE),
            ["reference_scores", "charge_reference"],
        ),
    ],
)
def test_what_a_policy_has_no_use_for(given, without_effect):
    assert unused(given) == without_effect


def test_a_comparison_names_only_what_none_of_its_policies_uses():
    given = dict(**MODELS, keep=0.3, filter_ratio=0.8)
    assert unused_by_all(run(policy, **given) for policy in ("uniform", "learnability")) == ["keep"]
    assert unused_by_all(run(policy, **given) for policy in ("uniform", "learnability", "filter")) == []


def test_a_run_says_it_once(tmp_path):
    shard(tmp_path / "a.tar", range(64))
    write_toml(tmp_path)
    told = []
    go(tmp_path, steps=1, report=told.append, online="learner", temperature=0.5, evaluate=True, evaluate_every=1)
    assert [line for line in told if "of no effect" in line] == [
        "--online, --temperature: of no effect with policy 'uniform'",
        "--evaluate-every: of no effect, since data set 'd' has no test split",
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"distill_temperature": 2.0}, "--distill-temperature is for the reference's probabilities; give --distill"),
        ({"charge_reference": True}, "--charge-reference is about --budget-flops"),
    ],
)
def test_an_option_that_needs_another_is_refused_without_it(given, told):
    with pytest.raises(SpecError, match=told):
        run(**given)


def test_epochs_are_of_a_number_of_examples():
    done = curate("train", "--dataset", "D", "--learner", "L", "--steps", 3, "--epochs", 2)
    assert done.error.startswith("--epochs counts epochs of --train-num-samples; give that too")
