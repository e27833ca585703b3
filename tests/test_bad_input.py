"""What goes wrong in real life, through the command line: one line that names it, exit code 1, nothing half-done left."""

import fcntl
import json
import os
import shutil
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from curate.datasets.targets import hash_target
from curate.scoring.tables.lookup import open_scores
from curate.scoring.tables.write import writing
from support.commands import curate, start_curate
from support.folders import tree
from support.prepared import IN_MEMORY
from support.tables import failures, rows
from support.tars import read_tar, replace_member, write_tar


class Work:
    """A copy of the prepared digits, their reference and its table, to be spoilt."""

    def __init__(self, root):
        self.root = root
        self.toml = root / "curate.toml"
        self.shards = sorted((root / "data/digits/train").glob("*.tar"))
        self.reference = root / "runs/ref"
        (self.table,) = (root / "scores").glob("*/*")
        self.out = root / "new-scores"
        self.runs = root / "new-runs"

    def score(self, *options, dataset="digits", reference=None, out=None):
        return curate(
            *("score-reference", "--config", self.toml, "--dataset", dataset, "--out", out or self.out),
            *("--reference", reference or self.reference, "--precision", "fp32", *options, "--", *IN_MEMORY),
        )

    def train(self, *options, dataset="digits", learner="learner", scores=None, out=None):
        return curate(
            *("train", "--config", self.toml, "--dataset", dataset, "--learner", learner, "--online", "scorer"),
            *("--policy", "learnability", "--reference-scores", scores or self.table, "--out", out or self.runs),
            *("--name", "run", "--batch-size", 16, "--precision", "fp32", "--no-evaluate"),
            *(
                options
                if any(str(o).startswith(("--steps", "--budget")) for o in options)
                else (*options, "--steps", 2)
            ),
        )

    def no_run(self):
        """No folder that the next attempt would trip over."""
        return not self.runs.exists() or not list(self.runs.iterdir())

    def other_reference(self, change):
        """A run folder whose learner's weights were changed tensor by tensor."""
        folder = self.root / "runs/other"
        shutil.copytree(self.reference, folder)
        file = folder / "checkpoints/learner.safetensors"
        weights = safetensors.torch.load_file(file)
        changed = {k: change(v) if v.is_floating_point() else v for k, v in weights.items()}
        safetensors.torch.save_file(changed, file)
        return folder

    def add_to_toml(self, text):
        with self.toml.open("a") as file:
            file.write("\n" + text)


@pytest.fixture
def work(digits, tmp_path):
    shutil.copytree(digits.root, tmp_path / "work")
    return Work(tmp_path / "work")


def refused(result, *names):
    """The one error line, which must hold every one of `names`."""
    assert result.code == 1, result
    assert not result.out
    for name in names:
        assert str(name) in result.error, result.error
    return result.error


def leftovers(folder):
    return [name for name in tree(folder) if "partial" in name or "writable" in name]


def test_the_undisturbed_commands_work(work):
    """Otherwise the refusals below would prove nothing."""
    scored = work.score()
    assert (scored.code, scored.out.strip()) == (0, str(next(work.out.glob("*/*"))))
    assert rows(work.out) == rows(work.table)
    trained = work.train("--reference", work.reference)
    assert (trained.code, trained.out.strip()) == (0, str(work.runs / "run"))
    assert (work.runs / "run/summary.json").exists()


def test_an_unknown_data_set_by_the_real_command(work):
    process = start_curate(
        *("train", "--dataset", "cats", "--learner", "learner", "--steps", 1),
        cwd=work.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1
    assert not out
    assert len(err.splitlines()) == 1
    assert err.startswith(f"curate: unknown data set 'cats': {work.toml} knows digits, digits-curated;")
    assert sorted(p.name for p in (work.root / "runs").iterdir()) == ["ref"]


def test_an_unknown_data_set(work):
    refused(work.score(dataset="cats"), "'cats'", work.toml, "digits-curated")
    refused(work.train(dataset="cats"), "'cats'", work.toml, "digits-curated")
    assert not work.out.exists()
    assert work.no_run()


def test_an_unknown_model_comes_with_its_neighbours(work):
    refused(work.score(reference="resnet18x"), "'resnet18x'", "near it: ", "resnet18")
    refused(work.train(learner="no-such-model"), "'no-such-model'", "[models.no-such-model]")
    refused(work.train("--online", "resnet18.nonsense"), "unknown weights 'nonsense'", "resnet18")
    assert not work.out.exists()
    assert work.no_run()


def test_a_reference_without_trained_weights(work):
    refused(work.score(reference="scorer"), "'scorer' has no trained weights")
    assert not work.out.exists()


def test_a_model_entry_that_cannot_be_built(work):
    work.add_to_toml(
        '[models.broken]\narchitecture = "small_resnet"\narguments = { channels = [8], layers = [1, 2] }\n'
    )
    refused(work.train(learner="broken"), "'broken'", "layers has 2 entries")
    work.add_to_toml('[models.typo]\narchitecure = "small_resnet"\n')
    refused(work.train(learner="typo"), "'typo'", "unknown setting architecure")
    assert work.no_run()


def test_no_shard_matches(work):
    work.add_to_toml('[datasets.gone]\ntrain = "nowhere/{000..009}.tar"\nclasses = 10\n')
    for result in (work.score(dataset="gone"), work.train(dataset="gone")):
        refused(result, "'gone'", "no shard matches", "nowhere/000.tar")
    assert not work.out.exists()
    assert work.no_run()


def test_a_cut_tar_stops_neither_the_other_shards_nor_the_next_attempt(work):
    cut = work.shards[2]
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    refused(work.score(), cut, "cut or damaged", "the other 5 shards are scored", "run again")
    (table,) = work.out.glob("*/*")
    assert sorted(p.stem for p in table.glob("*.parquet")) == ["00000", "00001", "00003", "00004", "00005"]
    before = tree(table)
    refused(work.score(), cut, "cut or damaged")
    cut.write_bytes(whole)
    assert work.score().code == 0
    assert rows(table) == rows(work.table)
    after = tree(table)
    assert {n: c for n, c in after.items() if n in before and n[0] == "0"} == {
        n: c for n, c in before.items() if n[0] == "0"
    }
    assert not [name for name in after if name.startswith("_errors")]
    assert not leftovers(work.out)


def test_training_on_a_cut_tar_names_it(work):
    cut = work.shards[2]
    cut.write_bytes(cut.read_bytes()[:30_000])
    refused(work.train(), cut, "cut or damaged")
    assert work.no_run()
    refused(work.train("--policy", "uniform"), cut, "cut or damaged")


def test_a_key_twice_in_a_shard(work):
    members = read_tar(work.shards[1])
    write_tar(work.shards[1], members + members[:2])
    key = members[0][0].split(".")[0]
    refused(work.score(), work.shards[1], f"key '{key}' occurs twice")
    (table,) = work.out.glob("*/*")
    assert "00001.parquet" not in tree(table)


def png_bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD_EXAMPLES = {
    "undecodable": ("png", b"this is no picture", "decode", "not a readable image"),
    "bomb": ("png", png_bomb(), "decode", "pixels"),
    "empty": ("png", b"", "read", "image is empty"),
    "no picture": ("png", None, "read", "no image (png)"),
    "no label": ("cls", None, "target", "no label (cls)"),
    "label outside": ("cls", b"10", "target", "label 10 is outside the 10 classes"),
    "label no number": ("cls", b"horse", "target", "'horse' is neither a number nor one of the classes"),
    "label in latin-1": ("cls", b"\xe9", "target", "cls is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_EXAMPLES)
def test_one_bad_example_is_told_and_the_job_goes_on(work, name):
    ending, content, stage, reason = BAD_EXAMPLES[name]
    member = read_tar(work.shards[3])[10][0].split(".")[0]
    replace_member(work.shards[3], {f"{member}.{ending}": content})
    result = work.score()
    assert result.code == 0, result
    assert "899 examples scored, 1 failed" in result.err
    (failure,) = failures(work.out)
    assert (failure["shard"], failure["row"], failure["key"]) == ("00003", 5, member)
    assert failure["stage"] == stage
    assert reason in failure["reason"]
    # The images of a shard that was packed again lie elsewhere in it.
    ours, before = (
        [{k: v for k, v in row.items() if k != "offset"} for row in rows(table)] for table in (work.out, work.table)
    )
    assert ours == [row for row in before if row["key"] != member]
    # And training with this table drops it, says so, and does not stop.
    trained = work.train(scores=work.out)
    assert trained.code == 0
    counts = json.loads((work.runs / "run/summary.json").read_text())["counts"]
    assert counts.get("failures", 0) + counts.get("failed_in_scoring", 0) == 1
    told = f" examples are bad and were not used; one of them: shard '00003', key '{member}'" in trained.err
    assert told == bool(counts.get("failures"))


def test_a_missing_caption_is_told_and_the_job_goes_on(pairs, tmp_path):
    shutil.copytree(pairs.root, tmp_path / "work")
    replace_member(tmp_path / "work/data/00001.tar", {"pair-025.txt": None, "pair-026.txt": b"\xff\xfe"})
    command = [
        "score-reference",
        "--config",
        tmp_path / "work/curate.toml",
        "--dataset",
        "pairs",
        "--reference",
        "clip",
    ]
    command += ["--out", tmp_path / "scores", "--precision", "fp32"]
    strict = curate(*command, "--", *IN_MEMORY)
    refused(
        strict,
        "2 of 60 examples failed (3.3%, allowed 1.0%)",
        "_failures",
        "--max-failures",
        "one of them: shard 00001",
    )
    assert curate(*command, "--max-failures", "5%", "--", *IN_MEMORY).code == 0
    assert [(f["key"], f["stage"], f["reason"]) for f in failures(tmp_path / "scores")] == [
        ("pair-025", "target", "no caption (txt)"),
        ("pair-026", "target", "txt is not UTF-8"),
    ]
    assert len(rows(tmp_path / "scores")) == 58


def test_more_failures_than_allowed_end_the_job(work):
    member = read_tar(work.shards[3])[10][0]
    replace_member(work.shards[3], {member: b"x"})
    message = refused(
        work.score("--max-failures", "0.1%"), "1 of 900 examples failed", "allowed 0.1%", "--max-failures"
    )
    folder = Path(message.split("the reasons are in ")[1].split(";")[0])
    assert [p.name for p in folder.iterdir()] == ["00003.parquet"]
    # The threshold is the user's: raised, the same command finds everything done.
    again = work.score("--max-failures", "0.2%")
    assert again.code == 0
    assert "0 to do" in again.err


def test_a_reference_that_says_nan(work):
    nan = work.other_reference(lambda tensor: torch.full_like(tensor, float("nan")))
    refused(work.score(reference=nan), "900 of 900 examples failed")
    found = failures(work.out)
    assert len(found) == 900
    assert {(f["stage"], f["reason"]) for f in found} == {("loss", "the reference's loss is nan")}
    assert rows(work.out) == []
    refused(work.train(scores=work.out), next(work.out.glob("*/*")), "only 0 scored examples")
    assert work.no_run()


@pytest.mark.parametrize("policy", ["learnability", "uniform"])
def test_models_that_diverge_are_told_not_crashed_nor_called_finished(work, policy):
    result = work.train("--policy", policy, "--lr", "1e8", "--warmup", "0", "--steps", "8", "--optimizer", "sgd")
    refused(result, work.runs / "run", "is nan or infinite at step", "lower --lr")
    assert not (work.runs / "run/summary.json").exists()


def test_a_table_of_another_reference(work):
    other = work.other_reference(lambda tensor: tensor + 0.01)
    fingerprint = work.table.name.rsplit("-", 1)[1]
    refused(work.train("--reference", other), work.table, f"was scored by reference {fingerprint}", other)
    assert work.no_run()


def test_a_table_whose_losses_are_not_its_references(work):
    file = work.table / "00000.parquet"
    table = pq.read_table(pa.BufferReader(file.read_bytes()))
    changed = table.set_column(
        table.schema.get_field_index("loss"),
        table.schema.field("loss"),
        pa.array([x + 0.5 for x in table["loss"].to_pylist()], pa.float32()),
    )
    pq.write_table(changed, file)
    refused(work.train(), work.table, "shard '00000', key '", "the table's loss is", "the reference says")
    assert work.no_run()


def test_a_table_of_another_data_set(work):
    refused(work.train(dataset="digits-curated"), work.table, "'digits'", "'digits-curated'")
    work.toml.write_text(work.toml.read_text().replace('"nine"]', '"neun"]', 1))
    refused(work.train(), work.table, "'digits'", "other fields or classes")
    refused(work.score(out=work.root / "scores"), work.table, "'digits'", "other fields or classes")
    assert work.no_run()


def test_changed_labels_are_named_with_both_values(work):
    with tarfile.open(work.shards[4]) as tar:
        member = next(m for m in list(tar)[80:] if m.name.endswith(".cls"))
    key, content = member.name.split(".")[0], bytearray(work.shards[4].read_bytes())
    label = content[member.offset_data : member.offset_data + 1]
    other = str((int(label) + 1) % 10).encode()
    content[member.offset_data : member.offset_data + 1] = other
    work.shards[4].write_bytes(content)  # the same size, one byte changed
    then, now = f"{hash_target(bytes(label)):016x}", f"{hash_target(other):016x}"
    refused(work.train(), "shard '00004'", f"key '{key}'", then, now, "changed since scoring")
    assert work.no_run()


def test_a_shard_that_changed_since_it_was_scored(work):
    write_tar(work.shards[4], read_tar(work.shards[4])[:-20])
    refused(work.score(out=work.root / "scores"), work.table, "'00004'", "was scored at size", "delete 00004.parquet")
    refused(work.train(), "'00004'", "was scored at size")


def test_a_shard_that_is_not_scored(work):
    (work.table / "00002.parquet").unlink()
    refused(work.train(), work.table, "1 of 6 shards are not scored, first '00002'", "--on-missing")
    assert work.no_run()
    assert work.train("--on-missing", "skip").code == 0
    assert json.loads((work.runs / "run/summary.json").read_text())["counts"]["skipped"] == 150


def test_a_table_that_holds_none_of_the_shards(work):
    for shard in work.shards:
        shard.rename(shard.with_name(f"renamed-{shard.name}"))
    work.toml.write_text(work.toml.read_text().replace("train/{00000..00005}", "train/renamed-{00000..00005}"))
    refused(work.train(), work.table, "6 of 6 shards are not scored")
    refused(work.train("--on-missing", "skip"))
    assert work.no_run()


def test_too_few_scored_examples_for_a_super_batch(work):
    refused(work.train("--batch-size", 512), work.table, "only 900 scored examples, a super-batch needs 1,024")
    refused(work.train("--batch-size", 2048, "--policy", "uniform"), "'digits'", "900 usable examples", "2,048")
    assert work.no_run()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--budget-flops", "1MF"), "the budget of 1 MF is smaller than one step"),
        (("--budget-flops", "lots"), "budget 'lots' is not a number of FLOPs"),
        (("--budget-flops", "45MF", "--charge-reference"), "for the reference is smaller than one step"),
        (("--steps", "2", "--policy", "lucky"), "unknown policy 'lucky'; known are uniform"),
        (("--steps", "2", "--examples", "5"), "exactly one of --budget-flops, --examples and --steps"),
        (("--steps", "2", "--train-num-samples", "5"), "exactly one of --budget-flops, --examples and --steps"),
        (("--examples", "5", "--train-num-samples", "5"), "--train-num-samples and --examples are both given"),
        (("--steps", "2", "--score-size", "0"), "--score-size is 0"),
        (("--steps", "0"), "--steps is 0, expected at least 1"),
        (("--steps", "2", "--filter-ratio", "1.0"), "--filter-ratio"),
        (("--steps", "2", "--filter-ratio", "-0.5"), "--filter-ratio"),
        (("--steps", "2", "--temperature", "0"), "--temperature is 0"),
        (("--steps", "2", "--sampler", "best"), "--sampler is 'best'"),
        (("--steps", "2", "--precision", "fp64"), "--precision is 'fp64'"),
        (("--steps", "2", "--max-failures", "nonsense"), "--max-failures is 'nonsense', expected a share"),
        (("--steps", "2", "--max-failures", "nan"), "--max-failures is 'nan', expected a share"),
        (("--steps", "2", "--augment", "rotate"), "--augment is 'rotate'"),
        (("--steps", "2", "--optimizer", "adamx"), "--optimizer is 'adamx'"),
        (("--steps", "2", "--lr", "-1"), "--lr is -1"),
        (("--steps", "2", "--label-smoothing", "2"), "--label-smoothing is 2"),
        (("--steps", "2", "--warmup", "3"), "--warmup is 3"),
        (("--steps", "2", "--batch-size", "0"), "--batch-size is 0, expected at least 1"),
        (("--steps", "2", "--reference-scores", "nowhere"), "nowhere"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_before_anything_is_made(work, options, told):
    refused(work.train(*options), told)
    assert work.no_run()


@pytest.mark.parametrize("share", ["nonsense", "101%", "-1", "", "%", "nan"])
def test_a_share_that_is_none(work, share):
    refused(work.score("--max-failures", share), f"--max-failures is '{share}', expected a share")
    assert not work.out.exists()


def test_an_output_that_cannot_be_written(work):
    # Tests may run as root, whom no permission stops: a file stands where a folder must be.
    blocked = work.root / "blocked"
    blocked.write_text("mine")
    refused(work.score(out=blocked), blocked, "cannot be written", "--out")
    refused(work.score(out=blocked / "below"), blocked, "cannot be written")
    refused(work.train(out=blocked), blocked, "cannot be written", "--out")
    work.runs.mkdir()
    (work.runs / "run").write_text("mine")
    refused(work.train(), work.runs / "run", "cannot be written")
    assert blocked.read_text() == (work.runs / "run").read_text() == "mine"


def test_a_second_job_on_the_same_table(work):
    before = tree(work.table)
    with writing(str(work.table)):
        refused(work.score(out=work.root / "scores"), work.table, f"process {os.getpid()}", "is writing this table")
    assert tree(work.table) == before
    assert work.score(out=work.root / "scores").code == 0


def test_a_second_job_on_the_same_run(work):
    run = work.runs / "run"
    run.mkdir(parents=True)
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(work.train(), run, "another process", "--name")
    assert not (run / "config.json").exists()
    assert work.train().code == 0
    refused(work.train(), run, "this run exists", "--resume", "--name")
    refused(work.train("--resume", "--steps", 3), run, "was started with steps = 2, now 3")
    done = work.train("--resume")
    assert done.code == 0
    assert "already finished" in done.err


def test_a_damaged_score_file(work):
    file = work.table / "00003.parquet"
    whole = file.read_bytes()
    for damage in (b"", whole[:-100], b"PAR1" + b"x" * 500 + b"PAR1", whole[:4]):
        file.write_bytes(damage)
        refused(work.train(), file, "damaged", "delete")
        refused(work.score(out=work.root / "scores"), file, "damaged", "delete")
    file.unlink()
    assert work.score(out=work.root / "scores").code == 0
    assert file.read_bytes() == whole


def test_a_byte_flipped_in_a_score_file_is_never_read_as_a_loss(work):
    file = work.table / "00003.parquet"
    whole, name = file.read_bytes(), "00003"
    truth = open_scores(str(work.table)).shard(name)
    silent = []
    for at in range(4, len(whole) - 8, 37):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        file.write_bytes(damaged)
        try:
            got = open_scores(str(work.table)).shard(name)
        except Exception as e:
            assert type(e).__name__ == "TableError", f"byte {at}: {type(e).__name__}: {e}"
            continue
        if got.keys != truth.keys or (got.loss != truth.loss).any() or (got.target_hash != truth.target_hash).any():
            silent.append(at)
    assert not silent, f"{len(silent)} flipped bytes changed what was read without an error, first at {silent[0]}"


def test_a_score_file_put_in_anothers_place(work):
    shutil.copy(work.table / "00001.parquet", work.table / "00002.parquet")
    refused(work.train(), "00002.parquet", "holds rows of shard '00001'")
    assert work.no_run()


def test_a_damaged_manifest(work):
    (manifest,) = work.table.glob("*manifest.json")
    manifest.write_text(manifest.read_text()[:100])
    refused(work.train(), manifest, "damaged", "restore it", "new --out")
    refused(work.score(out=work.root / "scores"), manifest, "damaged")


@pytest.mark.parametrize("lost", ["dataset", "dataset_fingerprint", "reference", "precision", "flops", "loss"])
def test_a_manifest_that_lacks_something(work, lost):
    (manifest,) = work.table.glob("*manifest.json")
    values = json.loads(manifest.read_text())
    del values[lost]
    manifest.write_text(json.dumps(values))
    results = [curate("inspect", work.table, "--config", work.toml, "--out", work.root / "page"), work.train()]
    told = [result for result in results if result.code]
    assert told  # each is read by one of them
    for result in told:
        assert f"{work.table}/_manifest.json: damaged (it has no {lost})" in result.error


@pytest.mark.parametrize("content", ["[]", "null", "7", '{"format": 1, "reference": {}, "dataset": "digits"}'])
def test_a_manifest_that_is_another_json(work, content):
    (manifest,) = work.table.glob("*manifest.json")
    manifest.write_text(content)
    for result in (work.train(), work.score(out=work.root / "scores"), curate("status", work.table)):
        refused(result, manifest, "damaged")


def test_a_truncated_toml(work):
    work.toml.write_text(work.toml.read_text()[:-5] + '"')
    refused(work.score(), work.toml, "not valid TOML")
    refused(work.train(), work.toml, "not valid TOML")
    assert not work.out.exists()
    assert work.no_run()


def test_a_damaged_run_folder_as_reference(work):
    weights = work.reference / "checkpoints/learner.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused(work.score(), weights, "these weights do not load")
    (work.reference / "manifest.json").write_text("{")
    refused(work.score(), "manifest.json")
    weights.unlink()
    refused(work.score(), work.reference, "finish it with 'curate train ... --resume'")
    assert not work.out.exists()


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_a_damaged_run_folder_is_told_when_it_is_resumed(work, name):
    assert work.train().code == 0
    (work.runs / "run" / name).write_text('{"dataset": ')
    error = work.train("--resume").error
    assert f"run/{name}: cannot be read" in error
    assert "delete the run's folder to start over" in error


def test_a_disk_too_small_for_what_the_run_will_write(work, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    error = work.train().error
    assert "GB for checkpoints, weights and selections, 1e-06 GB are free; free space" in error
    assert work.no_run()
