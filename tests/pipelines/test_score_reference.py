import errno
import io
import json
import os
import random
import signal
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from curate.datasets import list_shards, read_shard
from curate.datasets.spec import add_dataset, find_dataset, load_config
from curate.datasets.targets import hash_target
from curate.errors import CurateError, ShardError, TableError
from curate.pipelines import job
from curate.pipelines.score_reference import score_reference
from curate.scoring.loading import load_model
from curate.scoring.tables.lookup import open_scores
from curate.scoring.tables.write import note_error
from PIL import Image
from support.commands import silent, start_curate
from support.folders import tree
from support.tables import rows, score_files
from support.tars import read_tar, replace_member, reshard

# Of the real command, on a machine whose cores others use.
KILLED_SECONDS = 180

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def slow(digits):
    """Every example's row computed the plain way: PIL, one picture at a time, float64, log-softmax by hand."""
    spec = digits.dataset()
    model = load_model(digits.options("unused").reference, trained=True)
    network = model.module.double().eval()
    found = []
    with torch.no_grad():
        for shard in list_shards(spec):
            for row, example in enumerate(read_shard(spec, shard)):
                with Image.open(io.BytesIO(example.image)) as image:
                    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
                mean, std = (np.array(v) for v in (model.preprocessing.mean, model.preprocessing.std))
                logits = network(torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None])[0].numpy()
                loss = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[example.target]
                found.append((shard.name, row, example.key, example.target, int(logits.argmax()), loss))
    return found


def test_the_table_equals_a_slow_plain_computation(digits, slow):
    stored = [row for path in sorted(digits.table.glob("*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]
    assert len(stored) == len(slow) == 900
    for row, (shard, position, key, label, predicted, loss) in zip(stored, slow, strict=True):
        assert (row["shard"], row["row"], row["key"], row["label"]) == (shard, position, key, label)
        assert row["predicted"] == predicted
        assert row["loss"] == pytest.approx(loss, abs=TOLERANCE)
        assert row["target_hash"] == hash_target(str(label).encode())
    assert np.mean([row["predicted"] == row["label"] for row in stored]) > 0.15  # chance is 0.1: it did learn


def test_duckdb_reads_the_partitions_without_us(digits):
    found = duckdb.sql(
        f"SELECT dataset, reference, count(*), count(DISTINCT (shard, key)), sum(loss) "
        f"FROM read_parquet('{digits.scores}/*/*/*.parquet', hive_partitioning = true) GROUP BY ALL"
    ).fetchall()
    losses = [row["loss"] for row in rows(digits.table)]
    ((dataset, reference, count, distinct, total),) = found
    assert (dataset, f"reference={reference}") == ("digits", digits.table.name)
    assert count == distinct == 900
    assert total == pytest.approx(sum(losses))


def test_the_manifest_holds_what_a_run_must_check(digits):
    table = open_scores(str(digits.table))
    model = load_model(digits.options("unused").reference)
    assert table.reference_fingerprint == model.fingerprint()
    assert digits.table.name == f"reference=ref-{model.fingerprint()[:8]}"
    assert table.manifest["dataset_fingerprint"] == digits.dataset().fingerprint
    assert table.manifest["counts"] == {"shards": 6, "examples": 900, "failures": 0}
    flops = table.manifest["flops"]
    assert flops["reference_score"] == 900 * flops["forward_per_example"] > 0
    trained = json.loads(Path(digits.reference, "summary.json").read_text())
    assert trained["regimes"]["nothing_amortised"] > 0


def test_again_does_nothing_and_only_what_is_missing_is_made(digits, tmp_path):
    first = score_reference(digits.options(tmp_path), silent)
    assert (first.scored_now, first.examples, first.shards) == (6, 900, 6)
    before = score_files(first.folder)
    again = score_reference(digits.options(tmp_path), silent)
    assert (again.scored_now, again.examples, again.folder) == (0, 900, first.folder)
    assert score_files(first.folder) == before
    Path(first.folder, "00002.parquet").unlink()
    third = score_reference(digits.options(tmp_path), silent)
    after = score_files(first.folder)
    assert third.scored_now == 1
    assert after["00002.parquet"][2] == before["00002.parquet"][2]
    assert {n: f for n, f in after.items() if n != "00002.parquet"} == {
        n: f for n, f in before.items() if n != "00002.parquet"
    }


def test_beams_default_of_several_processes_gives_the_same_bytes(digits, tmp_path, monkeypatch):
    """Also where somebody's own files are called as the library's: no worker imports them."""
    for name in ("random", "types", "select", "string", "json", "torch/__init__", "apache_beam/__init__"):
        path = tmp_path / "somewhere" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('somebody's own file ran')")
    monkeypatch.chdir(tmp_path / "somewhere")
    summary = score_reference(digits.options(tmp_path, runner_options=("--direct_num_workers=2",)), silent)
    assert summary.examples == 900
    ours, theirs = score_files(digits.table), score_files(summary.folder)
    assert {n: f[2] for n, f in ours.items()} == {n: f[2] for n, f in theirs.items()}


def test_scoring_in_this_process_leaves_torchs_threads_as_they_were(digits, tmp_path):
    assert torch.get_num_threads() == 1
    score_reference(digits.options(tmp_path), silent)
    assert torch.get_num_threads() == 1


def test_the_batch_size_does_not_change_what_is_said(digits, tmp_path):
    summary = score_reference(digits.options(tmp_path, batch_size=7), silent)
    ours, theirs = rows(digits.table), rows(summary.folder)
    assert [(r["key"], r["predicted"]) for r in ours] == [(r["key"], r["predicted"]) for r in theirs]
    np.testing.assert_allclose([r["loss"] for r in ours], [r["loss"] for r in theirs], atol=TOLERANCE)


def test_a_table_may_lie_on_any_file_system(digits):
    root = "memory://score-test/scores"
    summary = score_reference(digits.options(root), silent)
    assert summary.folder.startswith(f"{root}/dataset=digits/reference=ref-")
    assert rows(summary.folder) == rows(digits.table)
    assert rows(root) == rows(digits.table)
    assert score_reference(digits.options(root), silent).scored_now == 0


def test_embeddings_are_the_modules_own_in_float16(pairs, tmp_path):
    summary = score_reference(pairs.options(tmp_path, embeddings=True), silent)
    table = open_scores(summary.folder).read()
    for name in ("image_embedding", "text_embedding"):
        kind = table.schema.field(name).type
        assert (kind.list_size, kind.value_type) == (16, pa.float16())
    options = pairs.options(tmp_path)
    model = load_model(options.reference, trained=True)
    stored = table.to_pylist()
    position = 0
    for shard in list_shards(options.dataset):
        for example in read_shard(options.dataset, shard):
            with Image.open(io.BytesIO(example.image)) as image:
                assert image.size == (32, 48)  # so that a wrong crop would show
                middle = image.convert("RGB").crop((0, 8, 32, 40))
            pixels = torch.from_numpy(np.asarray(middle).copy())[None]
            with torch.no_grad():
                image_D = model.module.encode_image(model.normalize(pixels), normalize=True)[0].double().numpy()
                text_D = model.module.encode_text(model.tokenize([example.target]), normalize=True)[0].double().numpy()
            row = stored[position]
            assert (row["shard"], row["key"]) == (shard.name, example.key)
            np.testing.assert_allclose(row["image_embedding"], image_D, atol=1e-3)
            np.testing.assert_allclose(row["text_embedding"], text_D, atol=1e-3)
            assert row["similarity"] == pytest.approx(image_D @ text_D, abs=TOLERANCE)
            assert row["loss"] == -row["similarity"]
            assert row["target_hash"] == hash_target(pairs.captions[example.key].encode())
            position += 1
    assert position == 60
    assert open_scores(summary.folder).manifest["scale"] == pytest.approx(
        float(model.module.logit_scale.detach().exp())
    )
    read = open_scores(summary.folder).shard("00001", embeddings=True)
    assert read.image_embedding.shape == (20, 16)
    assert read.image_embedding.dtype == np.float16
    assert read.image_embedding.tolist() == [r["image_embedding"] for r in stored[20:40]]


def test_embeddings_are_not_asked_of_a_table_without_them(pairs, tmp_path):
    score_reference(pairs.options(tmp_path), silent)
    with pytest.raises(TableError, match="has no embeddings and was asked for with"):
        score_reference(pairs.options(tmp_path, embeddings=True), silent)


def small_shards(digits, folder, count=60):
    """The training digits in many small shards, with their own curate.toml: (toml, scoring options)."""
    reshard(sorted((digits.root / "data/digits/train").glob("*.tar")), folder / "shards", count)
    toml = folder / "curate.toml"
    toml.write_text((digits.toml).read_text())
    add_dataset(toml, "small", {"train": f"shards/{{00000..{count - 1:05d}}}.tar", "image": "png", "classes": 10})
    spec = find_dataset("small", load_config(toml))
    return toml, lambda out, **changes: digits.options(out, dataset=spec, **changes)


def test_failures_are_counted_and_kept_apart(digits, tmp_path):
    _, options = small_shards(digits, tmp_path, count=10)
    for i, (ending, content) in enumerate((("png", b"x"), ("png", b""), ("cls", None))):
        path = tmp_path / f"shards/0000{i}.tar"
        key = read_tar(path)[0][0].split(".")[0]
        replace_member(path, {f"{key}.{ending}": content})
    summary = score_reference(options(tmp_path / "scores"), silent)
    assert (summary.examples, summary.failures) == (897, 3)
    found = [
        r
        for p in sorted(Path(summary.folder, "_failures").glob("*.parquet"))
        for r in pq.ParquetFile(p).read().to_pylist()
    ]
    assert [(f["shard"], f["row"], f["stage"]) for f in found] == [
        ("00000", 0, "decode"),
        ("00001", 0, "read"),
        ("00002", 0, "target"),
    ]
    table = rows(summary.folder)
    assert len(table) == 897
    # A bad example keeps its row: the next one is row 1.
    assert [r["row"] for r in table if r["shard"] == "00000"] == list(range(1, 90))
    assert open_scores(summary.folder).check() == (897, 3)


def test_a_shard_that_fails_midway_leaves_nothing_of_itself(digits, tmp_path):
    _, options = small_shards(digits, tmp_path, count=6)
    path = tmp_path / "shards/00003.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-11_000])
    with pytest.raises(ShardError, match="the other 5 shards are scored"):
        score_reference(options(tmp_path / "scores"), silent)
    (folder,) = (tmp_path / "scores").glob("*/*")
    assert "00003.parquet" not in tree(folder)
    path.write_bytes(whole)
    assert score_reference(options(tmp_path / "scores"), silent).examples == 900


def test_what_an_earlier_attempt_noted_of_a_shard_that_is_done_is_cleared(digits, tmp_path):
    """Killed between the two files of a shard, or after its scores, a job leaves word of what is no longer so."""
    _, options = small_shards(digits, tmp_path, count=6)
    path = tmp_path / "shards/00003.tar"
    whole = path.read_bytes()
    replace_member(path, {read_tar(path)[0][0]: b"no picture"})
    first = score_reference(options(tmp_path / "scores"), silent)
    folder = Path(first.folder)
    assert (first.failures, tree(folder)["_failures/00003.parquet"][:4]) == (1, b"PAR1")
    (folder / "00003.parquet").unlink()
    path.write_bytes(whole)
    (shard,) = [s for s in list_shards(options("").dataset) if s.name == "00000"]
    note_error(str(folder), shard, "cut")
    again = score_reference(options(tmp_path / "scores"), silent)
    assert (again.examples, again.failures, again.scored_now) == (900, 0, 1)
    assert sorted(name for name in tree(folder) if "/" in name) == ["_counts/counts.parquet"]


def test_a_runner_that_loses_a_shard_is_found_out(digits, tmp_path, monkeypatch):
    process = job.ScoreShard.process
    monkeypatch.setattr(
        job.ScoreShard, "process", lambda self, shard: (shard.name != "00003" and process(self, shard)) or None
    )
    with pytest.raises(TableError, match="1 of 6 shards are missing, such as '00003', although every worker succeeded"):
        score_reference(digits.options(tmp_path), silent)
    monkeypatch.undo()
    assert score_reference(digits.options(tmp_path), silent).examples == 900


def test_a_full_disk_at_the_rename_leaves_no_half_file(digits, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if str(target).endswith("00003.parquet"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TableError, match=r"00003\.parquet: cannot be written \(No space left on device\)"):
        score_reference(digits.options(tmp_path), silent)
    (folder,) = tmp_path.glob("*/*")
    assert "00003.parquet" not in tree(folder)
    assert not [name for name in tree(folder) if "partial" in name]
    monkeypatch.setattr(os, "replace", replace)
    assert score_reference(digits.options(tmp_path), silent).examples == 900
    assert rows(folder) == rows(digits.table)


def test_a_worker_that_dies_of_a_bug_keeps_what_is_committed(digits, tmp_path, monkeypatch):
    real, seen = job.StartedShard.finish, []

    def sometimes(started):
        seen.append(started)
        if len(seen) > 3:
            raise RuntimeError("a bug of the pipeline's own")
        return real(started)

    monkeypatch.setattr(job.StartedShard, "finish", sometimes)
    with pytest.raises(Exception, match="a bug of the pipeline's own") as caught:
        score_reference(digits.options(tmp_path), silent)
    assert not isinstance(caught.value, CurateError)
    (folder,) = tmp_path.glob("*/*")
    committed = score_files(folder)
    assert len(committed) == 3
    monkeypatch.setattr(job.StartedShard, "finish", real)
    assert score_reference(digits.options(tmp_path), silent).scored_now == 3
    after = score_files(folder)
    assert {n: after[n] for n in committed} == committed
    assert rows(folder) == rows(digits.table)


@pytest.mark.timeout(3 * KILLED_SECONDS)
def test_a_job_killed_with_9_goes_on_to_the_table_of_an_undisturbed_one(digits, tmp_path):
    toml, options = small_shards(digits, tmp_path)
    undisturbed = score_reference(options(tmp_path / "undisturbed"), silent)
    seed = int.from_bytes(os.urandom(4), "little")
    wanted = random.Random(seed).randint(1, 40)
    command = ["score-reference", "--config", toml, "--dataset", "small", "--reference", digits.reference]
    command += ["--out", tmp_path / "killed", "--precision", "fp32"]
    process = start_curate(*command)
    folder = tmp_path / "killed/dataset=small" / Path(undisturbed.folder).name
    deadline = time.monotonic() + KILLED_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if folder.exists() and len(list(folder.glob("*.parquet"))) >= wanted:
            break
        time.sleep(0.004)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    committed = score_files(folder)
    told = f"seed {seed}: killed with {len(committed)} shards committed, {wanted} wanted"
    assert wanted <= len(committed) < 60, told
    # What lies there is whole, and whoever reads it now reads no half-written file.
    assert {p.removesuffix(".parquet") for p in committed} == open_scores(str(folder)).shard_names(), told
    open_scores(str(folder)).check()
    (folder / ".00059.parquet.deadbeef.partial").write_bytes(b"half of a score file")
    process = start_curate(*command)
    assert process.wait(timeout=KILLED_SECONDS) == 0, told
    after = score_files(folder)
    assert {n: after[n] for n in committed} == committed, told
    assert len(after) == 60
    assert rows(folder) == rows(undisturbed.folder), told
