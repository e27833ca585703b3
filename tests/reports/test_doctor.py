"""What `curate doctor` finds on this machine, in stores, in data sets and in tables, and what it says to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from curate.datasets.spec import add_dataset, load_config
from curate.errors import StorageError
from curate.pipelines.score_reference import score_reference
from curate.reports import doctor, doctor_machine, doctor_stores
from curate.reports.doctor_machine import bf16_speed, look_at_machine, memory_limit
from curate.scoring.loading import find_model
from curate.training import train
from support.collection import make_collection
from support.commands import curate, silent
from support.tars import read_tar, replace_member, write_tar


@pytest.fixture(autouse=True)
def no_machine(monkeypatch):
    """What the machine that runs the tests lacks is no fault of the data."""
    monkeypatch.setattr(doctor, "look_at_machine", lambda scores: [])


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture
def made(collection, tmp_path):
    """A copy, to damage: `curate.toml`, data/, scores/."""
    for name in ("data", "scores"):
        shutil.copytree(collection.root / name, tmp_path / name)
    shutil.copy(collection.toml, tmp_path / "curate.toml")
    return tmp_path


def examine(folder: Path, *options, scores=None):
    """The exit code and (level, what was found, what to type) of every finding."""
    done = curate(
        *("doctor", "--config", folder / "curate.toml", "--scores", scores or folder / "scores", "--format", "json"),
        *options,
    )
    return done.code, [(one["level"], one["found"], one["do"]) for one in json.loads(done.out)]


def acts(found):
    return [(text, line) for level, text, line in found if level == "act"]


def test_a_data_set_that_is_well(collection):
    code, found = examine(collection.root)
    assert code == 1, "the tars of this fixture have another size than its table says"
    told = "\n".join(text for _, text, _ in found)
    assert "3 shards," in told
    assert "members of '00000': .png 20, .txt 20, .json 20" in told
    assert "60 examples of 3 shards read, keys such as '000000000'; 0.00 % bad" in told
    assert "captions have 5 to 5 tokens, median 5; CLIP's context is 77" in told
    assert "covers 3 of 3 shards, 60 examples, 0 failed" in told
    assert "its reference, clip, is no model of yours here; runs cannot check its losses" in told
    assert [text for text, _ in acts(found)] == ["3 shards have another size than when they were scored, first '00000'"]


def test_the_real_table_of_the_digits_needs_nothing(digits):
    code, found = examine(digits.root, "--dataset", "digits", scores=digits.scores)
    assert code == 0, acts(found)
    assert any(
        text.startswith("its reference") and text.endswith("is here, with the same weights") for _, text, _ in found
    )


def test_long_captions_are_told(made):
    replace_member(made / "data" / "00001.tar", {"000010000.txt": b"seven " * 90})
    _, found = examine(made)
    (told,) = [text for _, text, _ in found if "captions have" in text]
    assert told == "captions have 5 to 92 tokens, median 5; 1.7% are longer than CLIP's context, 77, and are cut"


def test_bad_examples_are_counted_by_their_reason(made):
    replace_member(made / "data" / "00002.tar", {"000020004.txt": b"", "000020005.png": b"no image"})
    code, found = examine(made)
    ((text, line),) = [one for one in acts(found) if "bad" in one[0]]
    assert code == 1
    assert "60 examples of 3 shards read, keys such as '000000000'; 3.3" in text
    assert "1 x target: txt is empty" in text and "1 x decode: not a readable image" in text
    assert "(first: shard '00002', key '000020004')" in text
    assert line == "curate score-reference --dataset pairs --max-failures 7% --reference ..."


def test_members_that_are_not_there_are_named(made):
    add_dataset(made / "curate.toml", "pairs", {"train": "data/{00000..00002}.tar", "text": "caption"})
    _, found = examine(made)
    text, line = acts(found)[0]
    assert text == "no member of '00000' is .caption (caption); its members: .png 20, .txt 20, .json 20"
    assert line == 'text = "..."   # in [datasets.pairs] of curate.toml'


def test_shards_that_cannot_be_listed_or_read(made):
    tar = made / "data" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    _, found = examine(made)
    assert "the tar is cut or damaged after key" in acts(found)[0][0]
    assert acts(found)[0][1] == f"tar tvf {tar} | tail"
    tar.unlink()
    code, found = examine(made)
    assert code == 1
    assert "1 of 3 shards are missing" in acts(found)[0][0]


def test_every_source_is_looked_at(made):
    one = [("x.png", b"no image"), ("x.txt", b"a caption")]
    write_tar(made / "more" / "a.tar", one)
    entry = {"train": "data/{00000..00002}.tar::more/a.tar", "test": "more/a.tar", "text": "txt"}
    add_dataset(made / "curate.toml", "pairs", entry)
    _, found = examine(made)
    assert [text[:36] for text, _ in acts(found) if "bad" in text] == ["1 example of 1 shard read, keys such"] * 2


def test_a_table_that_is_not_complete(made):
    (folder,) = (made / "scores" / "dataset=pairs").iterdir()
    (folder / "00001.parquet").unlink()
    _, found = examine(made)
    line = f"curate score-reference --dataset pairs --out {made}/scores --reference clip"
    assert ("covers 2 of 3 shards, 40 examples, 0 failed; first missing: '00001'", line) in acts(found)
    shutil.rmtree(made / "scores")
    assert ("note", f"none in {made}/scores", line.replace(" clip", " MODEL")) in examine(made)[1]


def test_a_table_of_other_fields_and_a_reference_that_changed(digits, tmp_path):
    shutil.copytree(digits.scores, tmp_path / "scores")
    (manifest,) = (tmp_path / "scores").rglob("_manifest.json")
    content = json.loads(manifest.read_text())
    content["reference"]["fingerprint"] = "0" * 64
    manifest.write_text(json.dumps(content))
    _, found = examine(digits.root, "--dataset", "digits", scores=tmp_path / "scores")
    assert acts(found)[0][0].endswith(f"it was 00000000, and is {digits.table.name[-8:]}")
    manifest.write_text(json.dumps({**content, "dataset_fingerprint": "0" * 16}))
    _, found = examine(digits.root, "--dataset", "digits", scores=tmp_path / "scores")
    assert "made with other fields or classes than curate.toml has now" in acts(found)[0][0]
    line = f"curate score-reference --dataset digits --out NEW --reference {content['reference']['name']}"
    assert acts(found)[0][1] == line


@pytest.mark.parametrize("weights", ["stranger.safetensors", "published"])
def test_what_a_strangers_table_says_of_its_model_is_not_built(digits, tmp_path, monkeypatch, weights):
    """Nor are its weights opened: they may be at any address, and its arguments may make anything."""
    shutil.copytree(digits.scores, tmp_path / "scores")
    (manifest,) = (tmp_path / "scores").rglob("_manifest.json")
    content = json.loads(manifest.read_text())
    model = content["reference"]["model"]
    if weights != "published":
        shutil.copy(model["weights"], tmp_path / weights)
        weights = str(tmp_path / weights)
    content["reference"].update(name="stranger", model={**model, "name": "stranger", "weights": weights})
    manifest.write_text(json.dumps(content))
    built = []
    monkeypatch.setattr("curate.scoring.loading.load_model", lambda spec, **_: built.append(spec))
    found = doctor.diagnose(load_config(digits.toml), ["digits"], str(tmp_path / "scores"), 1, silent)
    assert [one.level for one in found if one.found.startswith("its reference, stranger, is no model of yours")] == [
        "note"
    ]
    assert not built


def test_a_reference_that_knows_half_of_the_classes(digits, tmp_path):
    toml = tmp_path / "curate.toml"
    shutil.copytree(digits.root / "data", tmp_path / "data")
    shutil.copy(digits.toml, toml)
    members = [m for path in sorted((tmp_path / "data/digits/curated").glob("*.tar")) for m in read_tar(path)]
    known = {name.split(".")[0] for name, content in members if name.endswith(".cls") and int(content) < 5}
    write_tar(tmp_path / "half.tar", [m for m in members if m[0].split(".")[0] in known])
    add_dataset(toml, "half", {**load_config(toml).datasets["digits-curated"], "train": "half.tar"})
    config = load_config(toml)
    changes = {"policy": "uniform", "learner": "scorer", "online": None, "reference_scores": None, "batch_size": 64}
    told = {}
    for dataset in ("half", "digits-curated"):
        train(
            digits.run_options(tmp_path, **changes, dataset=dataset, name=dataset, steps=150, lr=1e-2),
            config=config,
            report=silent,
        )
        found = find_model(str(tmp_path / dataset), task="classification", num_classes=10, config=config)
        score_reference(digits.options(tmp_path / "scores" / dataset, reference=found), silent)
        _, lines = examine(digits.root, "--dataset", "digits", scores=tmp_path / "scores" / dataset)
        told[dataset] = [text for level, text, _ in lines if level == "note" and "hardly ever" in text]
    (text,) = told["half"]
    assert "hardly ever predicts 5 of 10 classes (five, six, seven, eight, nine)" in text
    assert told["digits-curated"] == []
    (table,) = (tmp_path / "scores" / "half").glob("dataset=digits/*")
    for path in table.glob("*.parquet"):
        path.unlink()  # nothing is scored yet
    _, lines = examine(digits.root, "--dataset", "digits", scores=tmp_path / "scores" / "half")
    assert any("covers 0 of 6 shards" in text for _, text, _ in lines)


def test_stores_are_listed(made):
    add_dataset(made / "curate.toml", "far", {"train": "nowhere://bucket/x/{00..09}.tar", "text": "txt"})
    add_dataset(made / "curate.toml", "empty", {"train": "memory://doctor/x/*.tar", "text": "txt"})
    code, found = examine(made)
    assert code == 1
    text, line = acts(found)[0]
    assert text.startswith("nowhere://bucket/x: cannot open this kind of URL")
    assert line.startswith("python -c") and "nowhere://bucket/x" in line
    assert any(level == "note" and "memory://doctor/x: 0 entries" in told for level, told, _ in found)


def test_a_store_whose_package_is_not_installed(made, monkeypatch):
    def no_package(folder):
        raise StorageError(f"{folder}: cannot open this kind of URL: Install s3fs") from ImportError("s3fs")

    monkeypatch.setattr(doctor_stores, "list_entries", no_package)
    monkeypatch.setattr(doctor_stores, "is_local", lambda folder: False)
    found = doctor_stores.look_at_stores([], "s3://bucket/scores")
    assert [(one.level, one.do) for one in found] == [("act", "python -m pip install 'curate[s3]'")]


def test_an_entry_that_cannot_be_used_hides_no_other(made):
    with open(made / "curate.toml", "a") as file:
        file.write('[datasets.bad]\ntrain = "x.tar"\ntask = "other"\n')
    code, found = examine(made)
    assert code == 1
    assert "task is 'other'" in acts(found)[0][0]
    assert any("60 examples of 3 shards read" in text for _, text, _ in found)


def test_what_is_printed_for_people(made):
    done = curate("doctor", "--config", made / "curate.toml", "--scores", made / "scores")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0] == f"data set pairs: train = {made}/data/{{00000..00002}}.tar"
    place = next(i for i, line in enumerate(lines) if "act" in line)
    assert lines[place + 1].strip().startswith("curate score-reference")
    assert lines[-1] == "1 to do: the lines below 'act'"


def test_the_machine_is_measured(tmp_path):
    found = look_at_machine(str(tmp_path))
    told = "\n".join(one.found for one in found)
    for word in (
        f"torch {torch.__version__}".split("+")[0],
        "times as fast as fp32",
        "cores may be used",
        "GiB are free",
    ):
        assert word in told
    assert 0 < bf16_speed(torch.device("cpu")) < 100


def test_a_package_that_is_missing_or_too_old(monkeypatch):
    monkeypatch.setattr(doctor_machine, "requires", lambda name: ["timm>=99.1", "torch>=1"])
    found = [one for one in doctor_machine._versions() if one.level == "act"]
    assert [one.do for one in found] == ["python -m pip install 'timm>=99.1'"]


def test_precision_is_advised_where_the_default_is_slower():
    assert doctor_machine._precision("fp32", 0.5).level == "ok"
    assert doctor_machine._precision("bf16", 0.5).do == "curate score-reference --precision fp32 ..."
    assert doctor_machine._precision("fp32", 3.0).do == "curate score-reference --precision bf16 ..."


def test_limits_of_a_container(tmp_path, monkeypatch):
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    assert memory_limit(tmp_path) == 1 << 30
    older = tmp_path / "older"
    (older / "memory").mkdir(parents=True)
    (older / "memory" / "memory.limit_in_bytes").write_text(f"{(1 << 63) - 4096}\n")
    assert memory_limit(older) is None
    monkeypatch.setattr(doctor_machine, "cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    (found,) = doctor_machine._threads()
    assert (found.level, found.do) == ("act", "export OMP_NUM_THREADS=2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (found,) = doctor_machine._threads()
    assert found.level == "ok"


def test_a_shard_that_is_no_longer_there_is_not_counted(made, tmp_path):
    add_dataset(made / "curate.toml", "pairs", {"train": "data/{00000..00001}.tar", "text": "txt"})
    _, found = examine(made)
    assert ("ok", "covers 2 of 2 shards, 40 examples, 0 failed", "") in found
    told = curate(
        *("export", tmp_path / "x.txt", "--config", made / "curate.toml", "--dataset", "pairs"),
        *("--scores", made / "scores", "--keep", "100%", "--by", "loss"),
    )
    assert told.code == 1 and "data set 'pairs' has no shard '00002', which was scored; restore it" in told.error
    assert list(tmp_path.glob("x.txt*")) == []
