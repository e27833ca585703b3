"""Comparisons of real runs on digits: what runs, what is reused, and that a point is just what `curate train` makes."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from curate.datasets.readers import read_shard
from curate.datasets.shards import is_held_out, list_shards
from curate.datasets.spec import load_config
from curate.errors import CurateError, RunError, SpecError
from curate.scoring import Policy
from curate.studies import comparison
from curate.studies.comparison import compare_runs, planned, shares_of, visible_gpus
from curate.studies.options import CompareOptions
from curate.training import RunOptions, train
from safetensors.torch import load_file
from support.commands import curate, silent, start_curate

POINTS = {
    *(f"uniform-{x}x-seed{s}" for x in ("0.5", "1", "2") for s in (0, 1)),
    *(f"learnability-{x}x-seed{s}" for x in ("0.5", "1") for s in (0, 1)),
}


@pytest.fixture
def options(digits, tmp_path):
    base = RunOptions.of(
        dataset="digits",
        learner="learner",
        online="scorer",
        reference_scores=digits.scores,
        budget_flops=2e9,
        batch_size=16,
        precision="fp32",
    )
    return CompareOptions(
        base=base,
        policies=("uniform", "learnability"),
        budgets=(0.5, 1.0),
        ladder=(2.0,),
        seeds=2,
        out=str(tmp_path / "comparison"),
    )


def run_here(todo, jobs, config, quality, report, launcher=None):
    """Runs in this process: starting others takes longer than these runs."""
    for run in todo:
        train(run, config=config, resume=True, report=silent)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(comparison, "run_all", run_here)


def stamps(options):
    return {path.parent.name: path.stat().st_mtime_ns for path in options.runs.glob("*/summary.json")}


def test_every_point_is_run_once_reused_and_extended(options, digits, in_process):
    one = replace(options, seeds=1)
    compared = compare_runs(one, config=digits.config, report=silent)
    before = stamps(options)
    assert set(compared.runs) == set(before) == {name for name in POINTS if name.endswith("seed0")}
    lines = []
    compare_runs(one, config=digits.config, report=lines.append)
    assert stamps(options) == before
    assert "5 runs, 5 of them finished before" in lines[0]
    more = replace(options, policies=("uniform", "learnability", "easy-reference"))
    compared = compare_runs(more, config=digits.config, report=silent)
    after = stamps(options)
    assert {name: after[name] for name in before} == before
    assert set(after) == set(compared.runs) > POINTS and len(after) == 2 * 7


def test_a_point_is_the_run_that_train_makes(options, digits, tmp_path):
    options = replace(options, ladder=(), policies=("uniform", "learnability"), budgets=(1.0,))
    compare_runs(replace(options, jobs=2), config=digits.config, report=silent)
    for point in planned(options, dict.fromkeys(options.multiples, 2e-3)):
        if point.records.name in ("learnability-1x-seed1", "uniform-1x-seed0"):
            summary = train(point.but(out=str(tmp_path / "alone")), config=digits.config, report=silent)
            beside = json.loads((options.runs / point.records.name / "summary.json").read_text())
            assert beside["policy"] == point.selection.policy
            assert beside["quality"] == summary["quality"]
            assert beside["ledger"] == summary["ledger"]
            assert beside["ledger"]["learner_train"] <= point.budget.budget_flops
            weights = [
                load_file(folder / point.records.name / "checkpoints/learner.safetensors")
                for folder in (options.runs, tmp_path / "alone")
            ]
            assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_policy_of_your_own_has_its_points(options):
    mine = Policy("mine", lambda known: known.reference_B, reference="loss")
    points = planned(replace(options, policies=("uniform", mine), seeds=1), dict.fromkeys(options.multiples, 1e-3))
    assert {p.records.name for p in points if p.selection.policy is mine} == {"mine-0.5x-seed0", "mine-1x-seed0"}


def test_the_search_gives_every_policy_uniforms_best_rate(options, digits, in_process):
    searched = replace(options, search_lr=(1e-6, 1e-2), seeds=1)
    told = []
    compared = compare_runs(searched, config=digits.config, report=told.append)
    tried = dict(compared.search[1.0])
    assert tried[1e-2] > tried[1e-6]
    assert set(compared.learning_rates.values()) == {1e-2}
    configs = [json.loads((searched.runs / name / "config.json").read_text()) for name in compared.runs]
    assert {config["lr"] for config in configs} == {1e-2}
    by_hand = json.loads((Path(searched.out) / "search/1x-lr0.01/summary.json").read_text())
    assert by_hand["policy"] == "uniform"
    assert by_hand["quality"]["top1"] == tried[1e-2]
    # A tenth of train, and none of the test split's 597 examples.
    assert compared.searched_on == "10 % of train, held out by a hash of the key"
    train = [e for shard in list_shards(digits.dataset()) for e in read_shard(digits.dataset(), shard)]
    held_out = [e for e in train if is_held_out(e.shard, e.key, 0.1)]
    assert by_hand["quality"]["test_examples"] == len(held_out) != 597
    assert "measured on 10 % of train" in told[0]


def test_what_is_held_out_is_not_trained_on(digits):
    spec = replace(digits.dataset(), hold_out=0.1)
    parts = {
        split: {(e.shard, e.key) for shard in list_shards(spec, split) for e in read_shard(spec, shard)}
        for split in ("train", "test")
    }
    whole = {(e.shard, e.key) for s in list_shards(digits.dataset()) for e in read_shard(digits.dataset(), s)}
    assert not parts["train"] & parts["test"]
    assert parts["train"] | parts["test"] == whole
    assert 0.05 < len(parts["test"]) / len(whole) < 0.15


def test_the_rate_is_searched_on_a_validation_split_at_every_budget(options, digits, in_process):
    entry = {**digits.config.datasets["digits"], "validation": digits.config.datasets["digits-curated"]["train"]}
    config = replace(digits.config, datasets={**digits.config.datasets, "digits": entry})
    searched = replace(options, search_lr=(1e-3, 1e-2), seeds=1, tune_every_rung=True, policies=("uniform",))
    compared = compare_runs(searched, config=config, report=silent)
    assert list(compared.search) == [0.5, 1.0, 2.0]
    assert compared.searched_on == "the validation split"
    for multiple, tried in compared.search.items():
        best = max(tried, key=lambda pair: pair[1])[0]
        assert compared.learning_rates[multiple] == best
        run = json.loads((searched.runs / f"uniform-{multiple:g}x-seed0/config.json").read_text())
        assert run["lr"] == best
    there = [
        e
        for s in list_shards(digits.dataset("digits-curated"))
        for e in read_shard(digits.dataset("digits-curated"), s)
    ]
    by_hand = json.loads((Path(searched.out) / "search/2x-lr0.01/summary.json").read_text())
    assert by_hand["quality"]["test_examples"] == len(there)


def test_what_the_headline_is_read_at_stays(options, digits, in_process):
    both = replace(options, policies=("uniform", "easy-reference", "learnability"), seeds=1, budgets=(1.0,), ladder=())
    assert compare_runs(both, config=digits.config, report=silent).headline_policy == "easy-reference"
    again = compare_runs(
        replace(both, policies=("uniform", "learnability", "easy-reference")), config=digits.config, report=silent
    )
    assert again.headline_policy == "easy-reference", "another order is no other choice"
    for change, told in (
        ({"headline_policy": "learnability"}, "headline_policy = easy-reference, now learnability"),
        ({"policies": ("uniform", "learnability")}, "headline_policy = easy-reference, which --policies does not name"),
        ({"budgets": (0.5, 1.0), "headline_budget": 0.5}, r"headline_budget = 1\.0, now 0\.5"),
    ):
        with pytest.raises(RunError, match=told):
            compare_runs(replace(both, **change), config=digits.config, report=silent)


def test_another_comparison_is_refused_in_the_same_folder(options, digits, in_process):
    options = replace(options, seeds=1, budgets=(1.0,), ladder=())
    compare_runs(options, config=digits.config, report=silent)
    changed = replace(options, base=options.base.but(filter_ratio=0.75))
    with pytest.raises(RunError, match=r"was made with filter_ratio = 0\.5, now 0\.75; use another --out"):
        compare_runs(changed, config=digits.config, report=silent)
    Path(options.out, "settings.json").write_text("{")
    with pytest.raises(RunError, match=r"settings\.json: cannot be read"):
        compare_runs(options, config=digits.config, report=silent)


@pytest.fixture
def finished(options, digits, tmp_path):
    """A curate.toml of its own, a comparison of two points that uses it, and its runs."""
    toml = tmp_path / "curate.toml"
    toml.write_text(digits.toml.read_text().replace('"data/', f'"{digits.root}/data/'))
    small = replace(options, policies=("uniform",), budgets=(1.0,), ladder=(2.0,), seeds=1)
    for point in planned(small, dict.fromkeys(small.multiples, 2e-3)):
        train(point, config=load_config(toml), report=silent)
    return toml, small


def test_finished_runs_of_other_models_data_or_scores_are_refused(finished, digits, tmp_path):
    toml, options = finished
    text, before = toml.read_text(), stamps(options)
    toml.write_text(text.replace("channels = [16, 32]", "channels = [4, 8]"))
    told = r"uniform-1x-seed0: was made with model learner\.arguments\.channels = \[16, 32\], now \[4, 8\]; use another --out"
    with pytest.raises(RunError, match=told):
        compare_runs(replace(options, seeds=2), config=load_config(toml), report=silent)
    shards = digits.root / "data/digits/train"
    shutil.copytree(shards, tmp_path / "train")
    (tmp_path / "train/00005.tar").unlink()
    toml.write_text(text.replace(f"{shards}/{{00000..00005}}", f"{tmp_path}/train/{{00000..00004}}"))
    with pytest.raises(RunError, match=r"was made with train shards: 6 of [\d,]+ bytes \(list \w+\), now 5 of"):
        compare_runs(options, config=load_config(toml), report=silent)
    toml.write_text(text)
    config = options.runs / "uniform-1x-seed0/config.json"
    whole = config.read_text()
    config.write_text(json.dumps({**json.loads(whole), "weight_decay": 0.1}))
    with pytest.raises(RunError, match=r"was started with weight_decay = 0\.1, now 0\.05"):
        compare_runs(options, config=load_config(toml), report=silent)
    config.write_text(whole)
    manifest = options.runs / "uniform-1x-seed0/manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "versions": {**content["versions"], "torch": "1.2.3"}}))
    bf16 = replace(options, base=options.base.but(precision="bf16"))
    with pytest.raises(RunError, match=r"was started with precision = fp32, now bf16"):
        compare_runs(bf16, config=load_config(toml), report=silent)
    lines = []
    compare_runs(options, config=load_config(toml), report=lines.append)
    assert any("some finished runs were made with torch 1.2.3, now" in line for line in lines)
    assert stamps(options) == before


def test_runs_of_two_machines_with_other_precisions_are_not_mixed(finished, monkeypatch):
    """Nobody named a precision: each machine takes what it is best at."""
    toml, options = finished
    for name in ("uniform-1x-seed0", "uniform-2x-seed0"):
        path = options.runs / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "precision": None}))
    options = replace(options, base=options.base.but(precision=None))
    monkeypatch.setattr("curate.studies.finished.best_precision", lambda device: "bf16")
    with pytest.raises(RunError, match=r"was made with precision = fp32, now bf16; use another --out"):
        compare_runs(options, config=load_config(toml), report=silent)


def test_a_run_that_was_not_evaluated_is_not_finished(finished, monkeypatch):
    toml, options = finished
    path = options.runs / "uniform-1x-seed0/summary.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "quality": {}, "not_evaluated": "interrupted"}))
    todo = []
    monkeypatch.setattr(comparison, "run_all", lambda runs, *rest: todo.extend(runs))
    compare_runs(options, config=load_config(toml), report=silent)
    assert [run.records.name for run in todo] == ["uniform-1x-seed0"]
    assert train(todo[0], config=load_config(toml), resume=True, report=silent)["quality"] == whole["quality"]


def test_a_run_that_fails_is_told_and_the_finished_ones_stay(options, digits):
    options = replace(options, seeds=1, policies=("uniform", "easy-reference"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "run_all", run_here)
        compare_runs(replace(options, policies=("uniform",)), config=digits.config, report=silent)
    broken = options.runs / "uniform-1x-seed0"
    (broken / "summary.json").unlink()
    (broken / "config.json").write_text("not json")
    with pytest.raises(CurateError, match=r"uniform-1x-seed0/config\.json: cannot be read"):
        compare_runs(options, config=digits.config, report=silent)
    assert {"uniform-0.5x-seed0", "uniform-2x-seed0"} <= set(stamps(options))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"policies": ("learnability",)}, "must name uniform"),
        ({"policies": ("uniform", "uniform")}, "names one twice"),
        ({"policies": ("uniform", "best")}, "unknown policy 'best'"),
        ({"budgets": (0.5,)}, "must name 1x"),
        ({"ladder": (-1.0,)}, "above 0"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"jobs": 0}, "--jobs is 0"),
        ({"headline_budget": 2.0}, "--headline-budget is 2x, expected one of --budgets"),
        ({"headline_policy": "uniform"}, "--headline-policy is 'uniform', expected one of --policies"),
        ({"tune_every_rung": True}, "--tune-every-rung needs --search-lr"),
        ({"launcher": "torchrun", "policies": ("uniform", "auto")}, "'auto' probes in one process"),
        ({"launcher": " "}, "--launcher is ' ', expected a command"),
        ({"launcher": "torchrun '"}, "--launcher is 'torchrun '', expected a command"),
    ],
)
def test_options_that_cannot_be_used(options, changes, told):
    with pytest.raises(SpecError, match=told):
        replace(options, **changes)


def test_one_option_says_the_learning_rate(options):
    with pytest.raises(SpecError, match="--lr and --search-lr both say the learning rate; leave one of them out"):
        replace(options, search_lr=(1e-3,), base=options.base.but(lr=1e-2))


def test_killed_in_the_middle_the_same_command_goes_on(digits, tmp_path):
    out = tmp_path / "killed"
    command = (
        *("compare", "--config", digits.toml, "--dataset", "digits", "--learner", "learner", "--online", "scorer"),
        *("--reference-scores", digits.scores, "--budget-flops", "4e9", "--batch-size", 16, "--seeds", 1),
        *("--budgets", "1x", "--ladder", "2x,4x", "--out", out),
    )
    process = start_curate(*command)
    deadline = time.monotonic() + 180
    while not list(out.glob("runs/*/summary.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert workers
    assert not psutil.wait_procs(workers, timeout=120)[1], "runs end with the comparison that started them"
    finished = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    assert finished
    done = curate(*command)
    assert done.code == 0, done.err
    content = json.loads((out / "comparison.json").read_text())
    assert [len(content["curves"][policy]) for policy in ("uniform", "learnability")] == [3, 1]
    after = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    assert {name: after[name] for name in finished} == finished
    assert len(after) == 4


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ([-15, -9], "was killed (out of memory?)"),
        ([-11, -15], "was ended by SIGSEGV"),
        ([-15, -15], "was ended by SIGTERM"),
        ([None, 3], "ended with code 3"),
        ([0, None], "ended with code 0"),
    ],
)
def test_how_a_process_died_is_what_its_exit_code_says(codes, told):
    processes = {i: SimpleNamespace(exitcode=code) for i, code in enumerate(codes)}
    assert comparison._death(SimpleNamespace(_processes=processes)) == told


@pytest.mark.parametrize(
    ("visible", "count", "gpus"),
    [
        (None, 0, []),
        (None, 3, ["0", "1", "2"]),
        ("2,5", 2, ["2", "5"]),
        ("GPU-8a1, GPU-9b2", 2, ["GPU-8a1", "GPU-9b2"]),
        ("", 0, []),
    ],
)
def test_the_gpus_that_runs_are_dealt_to_are_those_the_user_left(visible, count, gpus):
    assert visible_gpus(visible, count) == gpus


def test_the_processes_of_a_pool_share_cores_and_gpus(monkeypatch):
    assert shares_of(2, [0, 1, 2], []) == [([0, 2], None), ([1], None)]
    assert shares_of(3, [5], ["4", "7"]) == [([5], "4"), ([5], "7"), ([5], "4")]
    several = [gpus for _, gpus in shares_of(3, [0], list("01234567"), several=True)]
    assert several == ["0,1", "2,3,4", "5,6,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(comparison, "_end_with_parent", lambda parent: None)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, share: None, raising=False)
    shares = queue.Queue()
    shares.put(([0], "7"))
    comparison._keep_to(shares, torch.get_num_threads())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
