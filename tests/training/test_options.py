"""The options of a run: what each concern refuses, and what becomes of a config.json."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from curate.errors import SpecError
from curate.options import options_of
from curate.scoring import Policy
from curate.scoring.tasks import TASKS
from curate.training.options import RunOptions

# What 0.1.0 wrote for these options.
BEFORE = """
{"dataset": "digits", "learner": "learner", "policy": "learnability", "online": "scorer", "reference_scores": "scores",
 "reference": null, "budget_flops": null, "examples": null, "steps": 3, "charge_reference": false, "batch_size": 16,
 "filter_ratio": 0.5, "temperature": 1.0, "score_scale": null, "sampler": "softmax", "chunks": 16, "joint_loss": null,
 "score_size": null, "score_patch_dropout": null, "optimizer": "adamw", "lr": null, "online_lr": null,
 "weight_decay": 0.05, "warmup": 0.05, "label_smoothing": 0.0, "augment": null, "precision": null, "compile": null,
 "seed": 0, "on_missing": "error", "max_failures": 0.01, "micro_batch": 2048, "log_every": 20, "selections_every": 1,
 "checkpoint_every": null, "evaluate": true, "cache_bytes": 2147483648, "shuffle_bytes": 500000, "out": "runs",
 "name": null}
"""
SINCE = """
keep keep_by replay distill distill_temperature layer_decay beta1 beta2 eps clip_grad ema ema_warmup accumulate
score_ahead selection sync_bn fsdp grad_checkpointing keep_every evaluate_every score_precision report_to
mix mix_last mix_scores gce prior_scores cooldown decode_processes follow reference_online reference_every reference_lr
actors scorers refresh refresh_scores max_age samples_per_insert pool_size deterministic
""".split()
NOW = dict(dataset="digits", learner="learner", online="scorer", reference_scores="scores", steps=3, batch_size=16)


def uniform(**changes):
    return RunOptions.of(**{"dataset": "D", "learner": "L", "steps": 3, **changes})


def test_the_config_of_an_earlier_version_reads():
    options = RunOptions.from_dict(json.loads(BEFORE))
    assert options == RunOptions.of(**NOW, policy="learnability", host_bytes=500_000, selections_every=1)
    assert set(json.loads(BEFORE)) - set(options.to_dict()) == {"shuffle_bytes"}
    since = {"host_bytes", "lanes", "max_bad_shards", "trust_table", *SINCE}
    assert set(options.to_dict()) - set(json.loads(BEFORE)) == since
    assert options.changed_since(json.loads(BEFORE), ()) == []
    changed = options.but(host_bytes=7).changed_since(json.loads(BEFORE), ())
    assert changed == ["host_bytes = 500000, now 7"]


def test_a_policy_of_your_own_is_written_by_its_name():
    mine = Policy("mine", lambda known: known.online_B, online="model")
    options = uniform(policy=mine, online="scorer")
    assert options.selection.chosen_policy is mine
    assert json.loads(json.dumps(options.to_dict()))["policy"] == "mine"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"score_scale": 0.0}, "--score-scale is 0, expected a number above 0"),
        ({"score_scale": -1.0}, "--score-scale is -1"),
        ({"score_scale": float("nan")}, "--score-scale is nan"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"temperature": float("inf")}, "--temperature is inf"),
        ({"score_scale": float("inf")}, "--score-scale is inf"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"seed": -1}, "--seed is -1, expected 0 or more, below 2^63"),
        ({"seed": 1 << 63}, "--seed is 9223372036854775808, expected 0 or more"),
        ({"filter_ratio": 1.5}, "--filter-ratio is 1.5, expected the share dropped"),
        ({"steps": None}, "exactly one of --budget-flops, --examples and --steps"),
        ({"examples": 5}, "exactly one of --budget-flops, --examples and --steps"),
        ({"policy": "learnability"}, "policy 'learnability' scores with an online model; give --online"),
        ({"policy": "easy-reference"}, "needs a score table"),
        ({"lanes": 0}, "--lanes is 0, expected at least 1"),
        ({"host_bytes": 0}, "--host-bytes is 0"),
        ({"cache_bytes": -1}, "--cache-bytes is -1"),
        ({"max_failures": 1.5}, "--max-failures is 1.5, expected 0 to 1"),
        ({"max_bad_shards": -1}, "--max-bad-shards is -1, expected at least 0"),
        ({"out": "s3://bucket/runs"}, "--out is 's3://bucket/runs', a URL; it must be a folder of this machine"),
        ({"out": "file:///tmp/runs"}, "a URL"),
        ({"name": "a/b"}, "--name is 'a/b', expected the name of one folder"),
        ({"name": ".."}, "--name is '..'"),
        ({"name": "a\nb"}, r"--name is 'a\nb', expected at most 255 bytes and no character that cannot be printed"),
        ({"name": "\udcff"}, r"--name is '\udcff', expected at most 255 bytes"),
        ({"name": "ü" * 128}, "expected at most 255 bytes"),
        ({"policy": ":NAME"}, "unknown policy ':NAME'"),
        ({"policy": ".module:NAME"}, "unknown policy '.module:NAME'"),
        ({"selections_every": 0}, "--selections-every is 0"),
        ({"accumulate": 0}, "--accumulate is 0, expected at least 1"),
        ({"accumulate": 9, "batch_size": 8}, "--accumulate is 9, expected at most --batch-size, 8"),
        ({"beta1": 1.0}, "--beta1 is 1, expected from 0 to below 1"),
        ({"beta2": float("nan")}, "--beta2 is nan"),
        ({"eps": 0.0}, "--eps is 0, expected a number above 0"),
        ({"clip_grad": -1.0}, "--clip-grad is -1, expected a number above 0"),
        ({"layer_decay": 1.5}, "--layer-decay is 1.5, expected 0 to 1"),
        ({"ema": 1.0}, "--ema is 1, expected from 0 to below 1"),
        (
            {"warmup": 0.4, "cooldown": 0.7},
            "--warmup is 0.4 and --cooldown 0.7, expected shares of the steps of 1 together",
        ),
        ({"cooldown": 1.5}, "--cooldown is 1.5, expected 0 to 1"),
        ({"ema_warmup": True}, "--ema-warmup is for a moving average; give --ema DECAY too"),
        ({"on_missing": "ask"}, "--on-missing is 'ask', expected error, score or skip"),
        ({"micro_batches": 3}, "no option 'micro_batches'; the nearest is 'micro_batch'"),
    ],
)
def test_what_cannot_be_is_refused(changes, told):
    with pytest.raises(SpecError) as refused:
        uniform(**changes)
    assert told in str(refused.value)


def test_the_super_batch_is_what_the_filter_ratio_makes_of_the_batch():
    assert uniform(batch_size=10, filter_ratio=0.9).super_batch_size == 10
    chosen = uniform(policy="easy-reference", reference_scores="T", batch_size=10, filter_ratio=0.9)
    assert chosen.super_batch_size == 100


def test_the_help_names_the_learning_rate_of_every_task():
    for task in TASKS.values():
        assert f"{task.lr:g}" in options_of(RunOptions)["lr"].help
        assert task.augment in options_of(RunOptions)["augment"].help


def test_options_need_neither_torch_nor_beam_nor_numpy():
    code = (
        "import sys, curate.training.options, curate.studies.options, curate.pipelines.options\n"
        "print({'torch', 'apache_beam', 'numpy', 'pyarrow', 'fsspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
