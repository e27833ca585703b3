import json
from dataclasses import replace
from pathlib import Path

import pytest
from curate.datasets.spec import (
    Config,
    DatasetSpec,
    add_dataset,
    add_model,
    find_dataset,
    guess_format,
    load_config,
    spec_from_path,
    spec_from_table,
)
from curate.errors import SpecError


def entry(**table):
    return spec_from_table("cats", {"train": "cats.tar", **table})


def test_the_nearest_toml_at_or_above_the_working_folder_is_taken(tmp_path, monkeypatch):
    below = tmp_path / "a" / "b" / "c"
    below.mkdir(parents=True)
    (tmp_path / "curate.toml").write_text('[datasets.far]\ntrain = "x.tar"\n')
    (tmp_path / "a" / "curate.toml").write_text('[datasets.near]\ntrain = "x.tar"\n')
    monkeypatch.chdir(below)
    config = load_config()
    assert config.path == tmp_path / "a" / "curate.toml"
    assert set(config.datasets) == {"near"}


def test_relative_paths_count_from_the_toml_not_from_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "curate.toml").write_text(
        '[datasets.cats]\ntrain = ["data/{0..3}.tar", "/abs/x.tar", "s3://bucket/x.tar"]\n'
        'test = "t.tar"\nanalysis = "truth.parquet"\n'
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = find_dataset("cats")
    assert spec.train == (f"{tmp_path}/data/{{0..3}}.tar", "/abs/x.tar", "s3://bucket/x.tar")
    assert spec.test == (f"{tmp_path}/t.tar",)
    assert spec.analysis == f"{tmp_path}/truth.parquet"


def test_without_a_toml_the_config_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("curate.datasets.config.CONFIG_NAME", "no-such-name.toml")
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config(None, {}, {})


def test_an_unknown_setting_names_itself_and_the_known_ones():
    with pytest.raises(SpecError, match=r"'cats': unknown setting lable; known are .*label") as caught:
        entry(lable="cls")
    assert "rows_per_shard" in str(caught.value)


def test_an_unknown_data_set_names_the_known_ones_and_the_file(tmp_path):
    path = tmp_path / "curate.toml"
    path.write_text('[datasets.cats]\ntrain = "c.tar"\n[datasets.dogs]\ntrain = "d.tar"\n')
    with pytest.raises(SpecError, match=r"unknown data set 'birds'.*knows cats, dogs") as caught:
        find_dataset("birds", load_config(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"task": "detection"}, "task is 'detection', expected one of classification, image-text"),
        ({"format": "lmdb"}, "format is 'lmdb', expected one of webdataset, parquet, folder"),
        ({"train": []}, "no train shards"),
        ({"rows_per_shard": 0}, "rows_per_shard is 0, expected at least 1"),
        ({"templates": ["a picture"]}, "needs a {}"),
        ({"train": 3}, "train is 3, expected a string or a list of strings"),
        ({"image": ["png", 1]}, "image is .*, expected a string or a list of strings"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_its_value(table, told):
    with pytest.raises(SpecError, match=told.replace("{}", r"\{\}")) as caught:
        entry(**table)
    assert "'cats'" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"), [("rows_per_shard", "many"), ("label", 3), ("text", ["a", "b"]), ("key", 1), ("classes", 2.5)]
)
def test_a_setting_of_another_type_is_a_spec_error_not_a_crash(setting, value):
    with pytest.raises(SpecError, match=setting):
        entry(**{setting: value})


def test_classes_may_be_a_number():
    assert entry(classes=3).classes == ("0", "1", "2")
    assert entry(classes=3).num_classes == 3
    assert entry(classes=["cat", "dog"]).classes == ("cat", "dog")


def test_two_colons_join_patterns_and_fsspec_chains_stay_whole(tmp_path):
    split = spec_from_table("x", {"train": "a/{0..1}.tar::b/2.tar"}, base=tmp_path)
    assert split.train == (f"{tmp_path}/a/{{0..1}}.tar", f"{tmp_path}/b/2.tar")
    urls = spec_from_table("x", {"train": "s3://b/0.tar::s3://c/1.tar"}, base=tmp_path)
    assert urls.train == ("s3://b/0.tar", "s3://c/1.tar")
    chained = spec_from_table("x", {"train": "simplecache::s3://b/0.tar"}, base=tmp_path)
    assert chained.train == ("simplecache::s3://b/0.tar",)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/{00..99}.tar", "webdataset"),
        ("a.tar.gz", "webdataset"),
        ("https://x/a.tar?sig=1", "webdataset"),
        ("a/*.parquet", "parquet"),
        ("a.pq", "parquet"),
        ("pictures/", "folder"),
        ("pictures", "folder"),
    ],
)
def test_the_format_follows_from_the_ending(pattern, expected):
    assert guess_format(pattern) == expected


def test_a_path_stands_in_for_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tars = spec_from_path("some/align-{000..009}.tar")
    assert (tars.name, tars.task, tars.text) == ("align", "image-text", "txt")
    assert tars.train == (f"{tmp_path}/some/align-{{000..009}}.tar",)
    assert spec_from_path("s3://bucket/pets/{0..3}.tar").name == "pets"
    assert (spec_from_path("pets/").name, spec_from_path("pets/").task) == ("pets", "classification")
    (tmp_path / "pets").mkdir()
    assert find_dataset("pets", Config(None, {}, {})).format == "folder"


@pytest.mark.parametrize(
    "spec",
    [
        entry(classes=["a", "b"], label="cls"),
        spec_from_table("p", {"train": ["p.parquet", "q.parquet"], "text": "caption", "key": "uid"}),
        spec_from_path("pictures"),
    ],
)
def test_to_dict_and_back_through_json_is_the_same_spec(spec):
    again = DatasetSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.fingerprint == spec.fingerprint


def test_the_fingerprint_follows_the_meaning():
    base = entry(classes=["a", "b"])
    for change in (
        {"label": "label"},
        {"image": ("jpg",)},
        {"classes": ("b", "a")},
        {"task": "image-text", "text": "txt"},
        {"format": "parquet"},
        {"key": "uid"},
    ):
        assert replace(base, **change).fingerprint != base.fingerprint, change


def test_the_fingerprint_does_not_follow_the_place():
    base = entry(classes=["a", "b"])
    for change in (
        {"name": "moved"},
        {"train": ("s3://bucket/{0..9}.tar",)},
        {"test": ("t.tar",)},
        {"description": "words"},
        {"analysis": "truth.parquet"},
        {"rows_per_shard": 7},  # a tar is one shard whatever this says
    ):
        assert replace(base, **change).fingerprint == base.fingerprint, change


def test_rows_per_shard_is_part_of_a_parquet_examples_identity():
    spec = spec_from_table("p", {"train": "p.parquet"})
    assert replace(spec, rows_per_shard=7).fingerprint != spec.fingerprint


def test_adding_an_entry_keeps_comments_and_everything_else(tmp_path):
    path = tmp_path / "curate.toml"
    path.write_text(
        '# my data\n[datasets.cats]  # the good ones\ntrain = "c.tar"\n\n[models.small]\narchitecture = "resnet18"\n'
    )
    add_dataset(path, "dogs", {"train": "d.tar", "classes": ("a", "b")})
    add_model(path, "large", {"architecture": "resnet50"})
    text = path.read_text()
    assert "# my data" in text
    assert "# the good ones" in text
    config = load_config(path)
    assert set(config.datasets) == {"cats", "dogs"}
    assert set(config.models) == {"small", "large"}
    assert find_dataset("dogs", config).classes == ("a", "b")
    add_dataset(path, "dogs", {"train": "new.tar"})
    assert load_config(path).datasets["dogs"] == {"train": "new.tar"}
    assert path.read_text().count("[datasets.dogs]") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["curate.toml"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'[datasets.cats]\ntrain = "c.t', "not valid TOML"),
        (b"\xff\xfe[datasets]", "not valid TOML"),
        (b'datasets = "cats"\n', r"\[datasets\] must hold tables"),
        (b"[models]\nsmall = 3\n", r"\[models\] must hold tables"),
    ],
)
def test_a_toml_that_cannot_be_used_is_named(tmp_path, content, told):
    path = tmp_path / "curate.toml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=told) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_toml_that_was_named_and_is_not_there():
    with pytest.raises(SpecError, match=r"nowhere\.toml: no such file"):
        load_config(Path("nowhere.toml"))


def test_an_entry_is_never_added_to_a_broken_toml(tmp_path):
    path = tmp_path / "curate.toml"
    path.write_text('[datasets.cats]\ntrain = "c.t')
    with pytest.raises(SpecError, match="not valid TOML"):
        add_dataset(path, "dogs", {"train": "d.tar"})
    assert path.read_text() == '[datasets.cats]\ntrain = "c.t'
