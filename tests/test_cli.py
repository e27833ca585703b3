"""The command line: which options each command has, what its help says, and a policy of the user's own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from curate.cli import cli
from curate.command import reference_page
from curate.scoring.policies import POLICIES
from curate.training.options import RunOptions
from support.commands import curate

COMMANDS = {name: c for name, c in typer.main.get_command(cli).commands.items() if not c.hidden}
SELECTION = """
--online --reference-scores --reference --filter-ratio --temperature --score-scale --sampler --chunks --joint-loss
--score-size --score-patch-dropout --on-missing
"""
TRAINING = """
--batch-size --optimizer --lr --online-lr --weight-decay --warmup --label-smoothing --augment --precision --compile
--no-compile --micro-batch --max-failures --lanes --host-bytes --cache-bytes --log-every --selections-every
--checkpoint-every
"""
# Scripts spell these; none may be lost.
OPTIONS = {
    "prepare": "name --data --config --force --no-force",
    "score-reference": """
        --dataset --reference --out --score-size --score-patch-dropout --embeddings --no-embeddings --batch-size
        --precision --max-failures --follow --every --config beam_options
    """,
    "status": "what --all --format --config",
    "train": f"""
        --dataset --train-data --learner --seed --policy {SELECTION} --budget-flops --examples --steps
        --train-num-samples --epochs --charge-reference --no-charge-reference {TRAINING} --evaluate --no-evaluate --out
        --name --resume --no-resume --config
    """,
    "plan": f"""
        --ratio --learner --dataset --budget-flops --reference-steps --data-size --runs --expected-saving --probe
        --seeds --jobs --out --format --config {SELECTION} {TRAINING}
    """,
    "compare": f"""
        --dataset --learner --budget-flops --policies --budgets --ladder --seeds --search-lr --jobs --out --config
        {SELECTION} {TRAINING}
    """,
    "evaluate": "model --dataset --precision --config",
    "sql": "query --scores --runs --format --output --config",
    "export": """
        target --dataset --format --sql --keep --by --order --per --scores --online --run --runs --uid --shard-size --config
    """,
    "doctor": "--dataset --scores --shards --format --config",
    "demo": "--folder",
}


def spellings(command):
    return {spelling for p in COMMANDS[command].params for spelling in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("command", OPTIONS)
def test_no_option_is_lost(command):
    assert set(OPTIONS[command].split()) - spellings(command) == set()


def test_a_comparison_does_not_offer_what_it_sets_itself():
    for option in ("policy", "seed", "examples", "steps", "charge-reference", "name", "evaluate", "resume", "replay"):
        assert f"--{option}" in spellings("train")
        assert f"--{option}" not in spellings("compare")


def test_plan_and_compare_pass_the_options_of_train_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ("--dataset", "D", "--learner", "L", "--budget-flops", "1TF", "--augment", "rotate")
    for command in ("plan", "compare"):
        assert curate(command, *models).error == "--augment is 'rotate', expected none, flip or crop-flip"
    defaults = {p.name: p.default for p in COMMANDS["compare"].params}
    assert (defaults["selections_every"], defaults["label_smoothing"]) == (5, 0.0)


@pytest.mark.parametrize("command", OPTIONS)
def test_the_help_has_an_example_of_options_that_are_there(command):
    help = COMMANDS[command].help
    assert help.count("Example: ") == 1
    words = shlex.split(help.partition("Example: ")[2])
    assert words[:2] == ["curate", command]
    assert {word for word in words if word.startswith("--")} <= spellings(command)
    required = {p.opts[0] for p in COMMANDS[command].params if p.required and p.opts[0].startswith("--")}
    assert required <= set(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_loses_nothing_at_80_columns(command, monkeypatch):
    """Every spelling, value and default, and every sentence, whatever lines they stand in."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = curate(command, "--help")
    assert shown.code == 0 and "…" not in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    words = " ".join(shown.out.split())
    for paragraph in COMMANDS[command].help.split("\n\n"):
        assert " ".join(paragraph.split()) in words
    for parameter in COMMANDS[command].params:
        assert parameter.help and parameter.help.rstrip().endswith("."), parameter.name
        for spelled in (*parameter.opts, *parameter.secondary_opts):
            if spelled.startswith("-"):
                assert spelled in words.replace(",", " ").split()
        if parameter.metavar and not parameter.multiple:
            assert parameter.metavar in words, parameter.name
        assert " ".join(parameter.help.split()) in words, parameter.name
        if parameter.show_default and parameter.default not in (None, False, "") and not parameter.required:
            default = parameter.opts[0].removeprefix("--") if parameter.default is True else parameter.default
            assert f"[default: {default}]" in words, parameter.name
        panel = getattr(parameter, "rich_help_panel", None)
        assert panel is None or f"{panel}:" in shown.out.splitlines()


def test_without_a_command_the_help_names_all_of_them(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = curate()
    assert (shown.code, shown.out) == (2, curate("--help").out)
    words = " ".join(shown.out.split())
    for name, command in COMMANDS.items():
        assert f"{name} {' '.join(command.help.partition(chr(10) * 2)[0].split())}" in words


def test_the_shell_completes_commands_and_options(monkeypatch):
    monkeypatch.setenv("_CURATE_COMPLETE", "complete_bash")
    for typed, found in (("curate tr", "train"), ("curate train --filter-r", "--filter-ratio")):
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
        done = curate()
        assert (done.code, done.out.split()) == (0, [found])


def test_the_help_explains_every_policy_by_its_row():
    for command, option in (("train", "policy"), ("compare", "policies")):
        (parameter,) = [p for p in COMMANDS[command].params if p.name == option]
        for policy in POLICIES.values():
            assert f"{policy.name}: {policy.help}." in parameter.help


def test_the_reference_page_is_up_to_date():
    page = Path(__file__).parent.parent / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == reference_page(cli), "run make docs"


def test_text_becomes_what_the_option_holds(digits, tmp_path):
    done = curate(
        *("train", "--config", digits.toml, "--dataset", "digits", "--learner", "learner", "--out", tmp_path),
        *("--train-num-samples", 32, "--epochs", 2, "--batch-size", 16, "--max-failures", "2%", "--lanes", 2),
        *("--host-bytes", "3MiB", "--cache-bytes", 0, "--no-compile", "--augment", "flip", "--no-evaluate"),
        *("--precision", "fp32"),
    )
    assert done.code == 0, done.err
    config = json.loads(Path(done.out.strip(), "config.json").read_text())
    held = {"examples": 64, "max_failures": 0.02, "host_bytes": 3 << 20, "cache_bytes": 0, "compile": False, "lanes": 2}
    assert {name: config[name] for name in held} == held
    assert RunOptions.from_dict(config).optimization.augment == "flip"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--steps", 2, "--score-scale", 0), "--score-scale is 0"),
        (("--steps", 2, "--host-bytes", "much"), "--host-bytes is 'much', expected a number of bytes"),
        (("--train-num-samples", 5, "--epochs", 0), "--epochs is 0, expected at least 1"),
        (("--steps", 2, "--replay", ""), "--replay is empty; give a value, or leave it out"),
        (("--steps", 2, "--dataset", ""), "--dataset is empty; give a value"),
        (("--steps", 2, "--reference-scores", ""), "--reference-scores is empty; give a value, or leave it out"),
    ],
)
def test_text_that_cannot_be_read(digits, options, told):
    assert told in curate("train", "--config", digits.toml, "--dataset", "digits", "--learner", "L", *options).error


MINE = """
from curate.scoring import Policy


def hardest(known):
    return known.reference_B


HARDEST = Policy("hardest", hardest, reference="loss", help="what the reference finds hard")
NUMBER = 3
"""


def test_a_policy_of_your_own_from_the_working_folder(digits, tmp_path):
    """Also where a file there has the name of a library's module."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "random.py").write_text("raise RuntimeError('this is not the random that libraries import')")
    command = [
        *(sys.executable, "-m", "curate", "train", "--config", digits.toml, "--dataset", "digits"),
        *("--learner", "learner", "--policy", "mine:HARDEST", "--reference-scores", digits.scores, "--steps", "3"),
        *("--batch-size", "16", "--sampler", "topk", "--precision", "fp32", "--no-evaluate"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "runs/digits-hardest-learner-seed0"
    run = tmp_path / done.stdout.strip()
    assert json.loads((run / "config.json").read_text())["policy"] == "mine:HARDEST"
    assert json.loads((run / "summary.json").read_text())["policy"] == "hardest"
    by_step = {}
    for row in pq.read_table(run / "selections").to_pylist():
        by_step.setdefault(row["step"], []).append((row["reference_loss"], row["selected"]))
    assert len(by_step) == 3
    for found in by_step.values():
        assert len(found) == 32
        chosen = sorted((loss for loss, selected in found if selected), reverse=True)
        assert chosen == sorted((loss for loss, _ in found), reverse=True)[:16]


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("no_such_file:HARDEST", "No module named 'no_such_file'; it is imported from the working folder"),
        ("my_policies:SOFTEST", "has no attribute 'SOFTEST'"),
        ("my_policies:NUMBER", "is int, expected a curate.Policy"),
        ("hardest", "unknown policy 'hardest'; known are uniform"),
    ],
)
def test_a_policy_that_is_not_there(digits, tmp_path, monkeypatch, policy, told):
    (tmp_path / "my_policies.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_policies", raising=False)
    done = curate(
        *("train", "--config", digits.toml, "--dataset", "digits", "--learner", "learner", "--policy", policy),
        *("--reference-scores", digits.scores, "--steps", 2),
    )
    assert done.code == 1
    assert told in done.error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "--dataset", "digits", "--learner", "resnet18", "--budget-flops", "1TF"),
        ("plan", "--ratio", "1/49"),
        ("score-reference", "--dataset", "digits", "--reference", "resnet18"),
    ],
)
def test_what_is_no_run_of_several_processes_is_refused_under_torchrun(monkeypatch, arguments):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = curate(*arguments)
    assert done.code == 1
    assert f"{arguments[0]} runs in one process" in done.error


def test_torchrun_trains_one_run_with_two_ranks(digits, tmp_path):
    given = [
        *("train", "--config", digits.toml, "--dataset", "digits", "--learner", "learner", "--online", "scorer"),
        *("--policy", "learnability", "--reference-scores", digits.scores, "--batch-size", 16, "--precision", "fp32"),
        *("--budget-flops", "3GF", "--log-every", 1, "--out", tmp_path),
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "curate"]
    done = subprocess.run(
        [*torchrun, *map(str, given), "--name", "two"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{tmp_path}/two"]
    assert done.stderr.count(f"{tmp_path}/two: done") == 1
    assert curate(*given, "--name", "one").code == 0
    two, one = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("two", "one"))
    for same in ("steps", "ledger", "outside_the_ledger", "examples_scored", "counts"):
        assert two[same] == one[same]
    line = json.loads((tmp_path / "two/metrics.jsonl").read_text().splitlines()[-1])
    assert line["rows_moved"] >= 0 and line["bytes_moved"] >= line["rows_moved"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ("train --scorers one", 1, "--scorers is 'one', expected a whole number"),
        ("train --steps 1.5", 1, "--steps is '1.5', expected a whole number"),
        ("train --lr 1x", 1, "--lr is '1x', expected a number"),
        ("train --steps", 2, "requires an argument; "),
        ("train --dataset digits", 2, "'--learner'; 'curate train --help' lists what there is"),
        ("doctor --shards few", 2, "'--shards': "),
        ("train --batch-siz 8", 2, "--batch-size"),
        ("status a b", 2, "(b); 'curate status --help' lists what there is"),
        ("score", 2, "No such command 'score'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(arguments, code, told):
    result = curate(*arguments.split())
    assert result.code == code and result.out == ""
    assert result.err.count("\n") == 1 and told in result.error


def test_a_working_folder_that_was_deleted(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in (("sql", "SELECT 1"), ("train", "--dataset", "d", "--learner", "l", "--steps", 1)):
        told = curate(*command)
        assert (told.code, told.error) == (1, "the working folder was deleted; change to a folder that is there")


def test_a_query_that_begins_with_a_comment_is_no_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = curate("sql", "-- one\nSELECT 1 AS n")
    assert told.code == 2 and "; put -- before what begins so and is no option;" in told.error
    assert curate("sql", "--", "-- one\nSELECT 1 AS n").out.split() == ['"n"', "1"]
