import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.spec import (
    Config,
    DatasetSpec,
    find_dataset,
    guess_format,
    load_config,
    spec_from_path,
    spec_from_table,
)
from curate.errors import SpecError
from support.tars import write_tar


def entry(**table):
    return spec_from_table("cats", {"train": "cats.tar", **table})


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
        ({"format": "folder", "rows_per_shard": 0}, "rows_per_shard is 0, expected at least 1"),
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


def test_a_path_to_labels_without_captions_is_classes(tmp_path):
    def task(name):
        return spec_from_path(str(tmp_path / name)).task

    write_tar(tmp_path / "labels.tar", [("a.b/0.PNG", b""), ("a.b/0.cls", b"1")])
    write_tar(tmp_path / "both.tar", [("0.png", b""), ("0.cls", b"1"), ("0.txt", b"one")])
    write_tar(tmp_path / "images.tar", [("0.png", b"")])
    (tmp_path / "empty.tar").write_bytes(b"")
    assert [task(n) for n in ("labels.tar", "both.tar", "images.tar", "empty.tar", "missing.tar")] == [
        "classification",
        *["image-text"] * 4,
    ]
    (tmp_path / "folder").mkdir()
    (tmp_path / "labels.tar").rename(tmp_path / "folder/1.tar")
    assert task("folder") == task("folder/{1..2}.tar") == task("fold*/*.tar") == "classification"
    for name, columns in (("p", ["image", "label"]), ("q", ["image", "label", "text"])):
        pq.write_table(pa.table({column: ["x"] for column in columns}), tmp_path / f"{name}.parquet")
    assert (task("p.parquet"), task("q.parquet")) == ("classification", "image-text")


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


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"lable": "cls"}, r"unknown setting lable; .*; did you mean 'label'\?"),
        ({"Train": "x"}, r"unknown setting Train; .*; did you mean 'train'\?"),
        ({"train": {"a": "b"}}, "train is .*, expected a string or a list of strings"),
        ({"rows_per_shard": True}, "rows_per_shard is True, expected a whole number"),
        ({"rows_per_shard": 1.5}, "rows_per_shard is 1.5, expected a whole number"),
        ({"classes": True}, "classes is true, expected names"),
        ({"classes": 0}, "classes is 0, expected names"),
        ({"classes": -3}, "classes is -3, expected names"),
        ({"classes": [1, 2]}, "classes is .*, expected a string or a list"),
        ({"task": "clasification"}, r"task is 'clasification', .*; did you mean 'classification'\?"),
        ({"format": "parqet"}, r"format is 'parqet', .*; did you mean 'parquet'\?"),
        ({"key": "uid"}, "key names a column of Parquet files, and this is webdataset; drop it"),
        (
            {"rows_per_shard": 7},
            "rows_per_shard divides Parquet files and image folders, and this is webdataset; drop it",
        ),
        ({"format": "folder", "label": "cls"}, "label is not read: .* the first folder of its path"),
        (
            {"train": "pipe:aws s3 cp s3://b/0.tar -"},
            "pipe: runs a command, which is not supported; give the URL itself",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_what_to_do(table, told):
    with pytest.raises(SpecError, match=told) as caught:
        entry(**table)
    assert str(caught.value).startswith("data set 'cats'")


def test_an_unknown_data_set_comes_with_the_nearest_one(tmp_path):
    path = tmp_path / "curate.toml"
    path.write_text('[datasets.digits]\ntrain = "c.tar"\n')
    with pytest.raises(SpecError, match=r"did you mean 'digits'\?"):
        find_dataset("digit", load_config(path))


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".x", "a[1]", "a*", "a?", "50%", "a#b", "a\nb", " a", "a ", "", "a\\b", "a{b}", "\udcff"]
)
def test_a_name_that_could_not_be_found_again_is_refused_at_once(name):
    with pytest.raises(SpecError, match="a name is a folder's in the score table"):
        spec_from_table(name, {"train": "x.tar"})


@pytest.mark.parametrize("name", ["cats", "my cats", "cats-1.2_b", "größe", "a=b", "_a", "a+b", "猫"])
def test_other_names_are_taken(name):
    assert spec_from_table(name, {"train": "x.tar"}).name == name


def test_classes_come_from_a_file(tmp_path):
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\r\ndog \nhorse\n\n".encode())
    (tmp_path / "classes.json").write_text('["cat", "dog"]')

    def classes(name):
        return spec_from_table("x", {"train": "x.tar", "classes": name}, base=tmp_path).classes

    assert classes("classes.txt") == ("cat", "dog", "horse")
    assert classes("classes.json") == classes(str(tmp_path / "classes.json")) == ("cat", "dog")
    for content, told in (('{"0": "cat"}', "expected a JSON list"), ("[", "not valid JSON"), ("[]", "no name in it")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(SpecError, match=rf"data set 'x': classes = .*bad\.json: {told}"):
            classes("bad.json")
    (tmp_path / "bad.txt").write_text("cat\n\ndog\n")
    with pytest.raises(SpecError, match=r"bad\.txt: line 2 is empty"):
        classes("bad.txt")
    with pytest.raises(SpecError, match=r"classes = .*/none\.txt: no such file"):
        classes("none.txt")


def test_a_tilde_is_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "curate.toml").write_text('[datasets.d]\ntrain = "~/d/{0..1}.tar"\nanalysis = "~/a.parquet"\n')
    spec = find_dataset("d", load_config("~/curate.toml"))
    assert spec.train == (f"{tmp_path}/d/{{0..1}}.tar",)
    assert spec.analysis == f"{tmp_path}/a.parquet"
    assert find_dataset("~/d/0.tar", Config(None, {}, {})).train == (f"{tmp_path}/d/0.tar",)


def test_a_folders_names_are_its_classes_unless_they_are_numbers(tmp_path):
    for name in ("dog/a.png", "cat/a.png", ".git/a.png"):
        (tmp_path / "words" / name).parent.mkdir(parents=True)
        (tmp_path / "words" / name).write_bytes(b"x")
    for name in ("0", "10", "2"):
        (tmp_path / "numbers" / name).mkdir(parents=True)
    assert spec_from_path(str(tmp_path / "words")).classes == ("cat", "dog")
    assert spec_from_path(str(tmp_path / "numbers")).classes == ()
    assert spec_from_table("x", {"train": "words", "text": "txt"}, base=tmp_path).classes == ()
    assert spec_from_table("x", {"train": "words", "classes": ["dog", "cat"]}, base=tmp_path).classes == ("dog", "cat")


@pytest.mark.parametrize(
    ("files", "format"),
    [
        (["a.parquet"], "parquet"),
        (["label=x/part-0.parquet", "_SUCCESS"], "parquet"),
        (["deep/er/0.tar"], "webdataset"),
        (["train/cat/0.png", "metadata.parquet"], "folder"),
        (["a.parquet", "z/0.jpg"], "folder"),
        ([".git/a.parquet"], "folder"),
        (["notes.txt"], "folder"),
    ],
)
def test_a_folder_is_what_it_holds(tmp_path, files, format):
    for name in files:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"")
    assert guess_format(str(tmp_path / "d")) == format


def test_labels_that_are_names_alone_have_another_fingerprint_than_in_older_tables():
    """They were taken for numbers, so that a table of then does not fit."""
    import hashlib

    def older(spec):
        meaning = {"task": spec.task, "format": spec.format, "image": spec.image[:9], "target": spec.target_field}
        meaning |= {"key": "", "classes": spec.classes, "rows_per_shard": 0}
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]

    for classes in (["1", "2"], ["01", "02"]):
        assert entry(classes=classes).fingerprint != older(entry(classes=classes))
    for classes in (3, ["cat", "dog"], ["cat", "2"], ["0", "1"]):
        assert entry(classes=classes).fingerprint == older(entry(classes=classes))
    assert "classes_from" not in entry().to_dict()


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"hold_out": 0.1}, "unknown setting hold_out"),
        ({"train": ""}, "train has an empty text; leave train out"),
        ({"train": ["a.tar", ""]}, "train has an empty text"),
        ({"test": ""}, "test has an empty text"),
        ({"validation": ""}, "validation has an empty text"),
        ({"image": ""}, "image has an empty text"),
        ({"image": []}, "image is '', expected an ending or column, or HOLDER:FIELD"),
        ({"image": "."}, "image is '.', expected an ending or column"),
        ({"label": "json:"}, "label is 'json:', expected an ending or column, or HOLDER:FIELD"),
        ({"label": ":x"}, "label is ':x', expected"),
        ({"text": "json"}, "text is 'json', the whole text of a JSON member; .*: text = \"json:FIELD\""),
        ({"text": ".Meta.JSON"}, "text is '.Meta.JSON', the whole text of a JSON member"),
    ],
)
def test_a_setting_that_would_read_something_else_without_a_word_is_refused(table, told):
    with pytest.raises(SpecError, match=told):
        entry(**table)


def test_a_column_may_be_called_json_and_a_json_label_may_be_a_number():
    assert entry(train="x.parquet", text="json").target_field == "json"
    assert entry(label="json").target_field == "json"
