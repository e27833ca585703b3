"""A run that is replayed trains another learner on the same examples: nothing is scored, and nothing else is taken."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from curate.datasets.spec import load_config
from curate.errors import RunError, SpecError
from curate.training import RunOptions, train
from support.commands import curate, silent
from support.tiny import cut_after

STEPS = 12


@pytest.fixture(scope="module")
def out(digits, tmp_path_factory):
    """A folder with `chosen`, a run whose online model sees images otherwise than its learner."""
    folder = tmp_path_factory.mktemp("replay")
    models = digits.toml.read_text() + (
        '\n[models.small]\narchitecture = "small_resnet"\narguments = { channels = [8, 8], layers = [0] }\n'
        "preprocessing = { size = 6 }\n"
    )
    (folder / "curate.toml").write_text(models.replace('"data', f'"{digits.root}/data'))
    selecting = dict(policy="learnability", online="small", reference_scores=str(digits.table), filter_ratio=0.75)
    go(folder, "chosen", seed=3, batch_size=16, **selecting)
    return folder


def go(folder, name, resume=False, **changes):
    known = dict(dataset="digits", learner="learner", steps=STEPS, precision="fp32", evaluate=False, log_every=1)
    options = RunOptions.of(**{**known, "out": str(folder), "name": name, "checkpoint_every": 4, **changes})
    return train(options, config=load_config(folder / "curate.toml"), resume=resume, report=silent)


def weights(folder, name):
    return (folder / name / "checkpoints/learner.safetensors").read_bytes()


def rows_of(folder, name):
    files = sorted((folder / name / "selections").glob("*.parquet"))
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    return [{k: v for k, v in row.items() if k != "score"} for row in rows]


def test_the_weights_are_those_of_the_run_that_chose(digits, out):
    summary = go(out, "same", seed=3, replay=str(out / "chosen"))
    assert weights(out, "same") == weights(out, "chosen")
    assert rows_of(out, "same") == rows_of(out, "chosen")
    theirs = json.loads((out / "chosen/summary.json").read_text())
    ours = summary["ledger"]
    assert ours == {**theirs["ledger"], "online_score": 0.0, "online_train": 0.0}
    assert summary["regimes"]["foundation"] == summary["regimes"]["fully_amortised"] == ours["learner_train"]
    for regime in ("pretrained_reference", "nothing_amortised"):
        assert summary["regimes"][regime] == pytest.approx(theirs["regimes"][regime], rel=1e-12)
    assert summary["choices"] == theirs["ledger"]["online_score"] + theirs["ledger"]["online_train"]


def test_another_learner_with_another_seed_trains_on_the_same_examples(out):
    go(out, "other", seed=8, learner="scorer", replay=str(out / "chosen"), steps=5)
    rows = [row for row in rows_of(out, "chosen") if row["step"] <= 5]
    assert rows_of(out, "other") == rows
    assert weights(out, "other") != weights(out, "chosen")


def test_a_replay_resumes_and_can_itself_be_replayed(out):
    with cut_after(7):
        go(out, "again", seed=3, replay=str(out / "chosen"))
    go(out, "again", seed=3, replay=str(out / "chosen"), resume=True)
    assert weights(out, "again") == weights(out, "chosen")
    summary = go(out, "twice", seed=3, replay=str(out / "again"))
    assert weights(out, "twice") == weights(out, "chosen")
    assert summary["choices"] == json.loads((out / "again/summary.json").read_text())["choices"] > 0


def test_a_table_that_the_run_did_not_read_is_not_read_now(digits, out):
    given = dict(policy="hard-learner", online="small", reference_scores=str(digits.table), host_bytes=1)
    go(out, "unread", batch_size=16, steps=3, **given)
    summary = go(out, "unread-again", replay=str(out / "unread"), steps=3)
    assert rows_of(out, "unread-again") == rows_of(out, "unread")
    assert summary["ledger"]["reference_score"] == 0


def test_a_budget_buys_no_more_steps_than_were_recorded(out):
    summary = go(out, "rich", steps=None, budget_flops=1e15, replay=str(out / "chosen"))
    assert summary["steps"] == STEPS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(steps=STEPS + 1), "13 steps are asked for, .*recorded 12"),
        (
            dict(dataset="digits-curated"),
            "--dataset is digits-curated, but .*chosen was trained on digits, .*leave it out",
        ),
        (dict(batch_size=32), "--batch-size is 32, but .*chosen was made with 16"),
        (dict(policy="rho", reference_scores="scores"), "leave --policy rho out"),
        (dict(online="small"), "leave --online small out"),
    ],
)
def test_what_does_not_fit_the_recorded_run_is_refused(out, changes, said):
    with pytest.raises(SpecError, match=said):
        go(out, "no", replay=str(out / "chosen"), **changes)
    assert not (out / "no").exists()


def test_the_command_takes_the_data_set_from_the_run(out):
    given = (
        "--config",
        out / "curate.toml",
        "--learner",
        "learner",
        "--out",
        out,
        "--no-evaluate",
        "--precision",
        "fp32",
    )
    done = curate("train", "--replay", out / "chosen", "--steps", 2, "--name", "short", *given)
    assert done.code == 0, done.err
    assert json.loads((out / "short/config.json").read_text())["dataset"] == "digits"
    assert rows_of(out, "short") == [row for row in rows_of(out, "chosen") if row["step"] <= 2]
    assert (
        curate("train", "--steps", 2, *given).error
        == "train needs a data set; give --dataset, a name in curate.toml or shards"
    )


def test_a_run_whose_choices_are_not_all_there_is_refused(digits, out):
    with pytest.raises(RunError, match="is no run's folder"):
        go(out, "no", replay=str(out))
    go(out, "drawn")
    with pytest.raises(RunError, match=r"recorded no selections .policy uniform"):
        go(out, "no", replay=str(out / "drawn"))
    selecting = dict(policy="easy-reference", reference_scores=str(digits.table))
    go(out, "sparse", selections_every=5, **selecting)
    with pytest.raises(RunError, match=r"recorded every 5th step.*--selections-every 1"):
        go(out, "no", replay=str(out / "sparse"))


def test_other_examples_than_were_recorded_are_an_error(out):
    shutil.copytree(out / "chosen", out / "edited", dirs_exist_ok=True)
    config = json.loads((out / "edited/config.json").read_text())
    (out / "edited/config.json").write_text(json.dumps({**config, "seed": 4}))
    with pytest.raises(RunError, match=r"at step 1 it drew shard .* now it is shard"):
        go(out, "no", replay=str(out / "edited"))
