import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table
from curate.datasets.targets import hash_target
from curate.errors import ShardError


def read(folder, columns, schema=None, **table):
    path = folder / "d.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    count = max(len(column) for column in columns.values())
    columns = columns if "image" in columns else {"image": pa.array([b"1"] * count), **columns}
    made = pa.table(columns)
    pq.write_table(made.replace_schema_metadata(schema) if schema else made, path)
    spec = spec_from_table("d", {"train": str(path), **table})
    return [r for shard in list_shards(spec) for r in read_shard(spec, shard)]


def targets(records):
    return [r.target if isinstance(r, Example) else r.reason for r in records]


CAPTIONS = {
    "string": (pa.array(["a dog", None]), "no caption (text)"),
    "large_string": (pa.array(["a dog", ""], pa.large_string()), "text is empty"),
    "string_view": (pa.array(["a dog", " "], pa.string_view()), "text is empty"),
    "binary": (pa.array([b"a dog", b"\xff"]), "text is not UTF-8"),
    "large_binary": (pa.array([b"a dog", None], pa.large_binary()), "no caption (text)"),
    "dictionary": (pa.array(["a dog", None]).dictionary_encode(), "no caption (text)"),
    "list": (pa.array([["a dog", "a dog runs"], []]), "no caption (text)"),
    "large_list": (pa.array([["a dog"], [None, "b"]], pa.large_list(pa.string())), "no caption (text)"),
    "list of binary": (pa.array([[b"a dog", b"b"], None]), "no caption (text)"),
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_a_caption_is_read_as_text_of_a_list_the_first(tmp_path, kind):
    column, reason = CAPTIONS[kind]
    records = read(tmp_path, {"text": column}, text="text")
    assert targets(records) == ["a dog", reason]
    assert records[0].target_hash == hash_target(b"a dog")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"en": "a dog"}]),
        pa.array([1.5]),
        pa.array([3]),
        pa.array([True]),
        pa.array([[1, 2]]),
        pa.array([[["a"]]]),
        pa.array([datetime.datetime(2020, 1, 1)]),
        pa.array([[("en", "a dog")]], pa.map_(pa.string(), pa.string())),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_that_holds_no_captions_is_one_error_with_its_type(tmp_path, column):
    with pytest.raises(ShardError) as caught:
        read(tmp_path, {"text": column}, text="text")
    found = pq.read_schema(tmp_path / "d.parquet").field("text").type
    told = f"column 'text' is {found}, expected text or a list of texts"
    assert f"{tmp_path}/d.parquet: " in str(caught.value)
    assert " ".join(told.split()) in " ".join(str(caught.value).split())
    assert "[datasets.d]" in str(caught.value)


LABELS = {
    "uint8": pa.array([2, 0], pa.uint8()),
    "double": pa.array([2.0, 0.0]),
    "half": pa.array(np.array([2.0, 0.0], np.float16)),
    "decimal": pa.array([decimal.Decimal("2.00"), decimal.Decimal("0.00")]),
    "binary": pa.array([b"2", b"cat"]),
    "dictionary of strings": pa.array(["bird", "cat"]).dictionary_encode(),
    "dictionary of numbers": pa.array([2, 0]).dictionary_encode(),
    "string_view": pa.array(["bird", "0"], pa.string_view()),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_many_types_are_understood(tmp_path, kind):
    assert targets(read(tmp_path, {"label": LABELS[kind]}, classes=["cat", "dog", "bird"])) == [2, 0]


def test_booleans_are_labels_and_a_float_that_is_not_whole_is_a_failure(tmp_path):
    assert targets(read(tmp_path, {"label": pa.array([True, False])}, classes=["no", "yes"])) == [1, 0]
    assert targets(read(tmp_path, {"label": pa.array([1.5, float("nan"), 1.0])}, classes=["no", "yes"])) == [
        "label '1.5' is not a whole number that a class can have",
        "label 'nan' is not a whole number that a class can have",
        1,
    ]


@pytest.mark.parametrize(
    ("columns", "told", "table"),
    [
        ({"label": pa.array([[1]])}, "column 'label' is list<.*>, expected text, whole numbers or booleans", {}),
        ({"label": pa.array([{"a": 1}])}, "column 'label' is struct<a: int64>", {}),
        ({"label": pa.array([datetime.date(2020, 1, 1)])}, "column 'label' is date32", {}),
        ({"image": pa.array(["a.png"]), "label": [0]}, "column 'image' is string, expected the encoded images", {}),
        ({"image": pa.array([[1, 2]], pa.list_(pa.uint8())), "label": [0]}, "column 'image' is list<", {}),
        ({"image": pa.array([{"path": "a.png"}]), "label": [0]}, "column 'image' is struct<path", {}),
        (
            {"label": [0], "id": pa.array([1.5])},
            "column 'id' is double, expected text or whole numbers; set key",
            {"key": "id"},
        ),
        ({"label": [0], "id": pa.array([["a"]])}, "column 'id' is list<", {"key": "id"}),
        ({"label": pa.nulls(1)}, "column 'label' is null in every file", {}),
        ({"image": pa.nulls(1), "label": [0]}, "column 'image' is null in every file", {}),
    ],
)
def test_a_column_of_another_type_is_one_error_when_the_shards_are_listed(tmp_path, columns, told, table):
    with pytest.raises(ShardError, match=told):
        read(tmp_path, columns, **table)


def test_a_file_without_any_value_among_others_is_no_error(tmp_path):
    for name, text in (("0", pa.nulls(1)), ("1", pa.array(["a dog"]))):
        pq.write_table(pa.table({"image": [b"1"], "text": text}), tmp_path / f"{name}.parquet")
    spec = spec_from_table("d", {"train": f"{tmp_path}/*.parquet", "text": "text"})
    assert targets(r for s in list_shards(spec) for r in read_shard(spec, s)) == ["no caption (text)", "a dog"]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    made = pa.Table.from_arrays([pa.array([b"1"]), pa.array([0]), pa.array([1])], names=["image", "label", "label"])
    pq.write_table(made, tmp_path / "d.parquet")
    spec = spec_from_table("d", {"train": f"{tmp_path}/d.parquet"})
    with pytest.raises(ShardError, match="column 'label' is there twice"):
        list_shards(spec)


def test_keys_are_text_numbers_or_bytes_and_never_missing(tmp_path):
    def keys(column):
        return [r.key for r in read(tmp_path, {"label": [0] * len(column), "id": column}, key="id")]

    assert keys(pa.array([b"a", b"\xff\x00"])) == ["a", "ff00"]
    assert keys(pa.array([2**64 - 1], pa.uint64())) == [str(2**64 - 1)]
    assert keys(pa.array(["x"]).dictionary_encode()) == ["x"]
    with pytest.raises(ShardError, match="row 1 has no key in column 'id'"):
        keys(pa.array(["a", None]))


def test_images_of_every_binary_type_are_read(tmp_path):
    for type in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)):
        (record,) = read(tmp_path, {"image": pa.array([b"abc"], type), "label": [0]})
        assert record.image == b"abc"


def test_a_field_of_a_struct_or_of_json_is_a_target(tmp_path):
    struct = pa.array([{"en": {"short": "a dog"}, "n": 1}, {"en": None, "n": 0}])
    assert targets(read(tmp_path, {"meta": struct}, text="meta:en.short")) == ["a dog", "no caption (meta:en.short)"]
    assert targets(read(tmp_path, {"meta": struct}, label="meta:n")) == [1, 0]
    texts = pa.array(['{"caption": ["a dog", "b"]}', '{"caption": 3}', "{", None])
    assert targets(read(tmp_path, {"meta": texts}, text="meta:caption")) == [
        "a dog",
        "meta:caption is a number, expected text or a list of texts",
        "meta is not valid JSON",
        "no caption (meta:caption)",
    ]
    with pytest.raises(ShardError, match="column 'meta' is struct<"):
        read(tmp_path, {"meta": struct}, text="meta:de")


def test_a_label_may_be_in_the_files_path(tmp_path):
    assert targets(read(tmp_path / "label=big%20cat", {"id": [1, 2]}, classes=["dog", "big cat"])) == [1, 1]
    null = read(tmp_path / "label=__HIVE_DEFAULT_PARTITION__", {"id": [1]}, classes=["dog"])
    assert targets(null) == ["no label (label)"]
    # A column of the file comes first.
    assert targets(read(tmp_path / "label=dog", {"label": ["cat"]}, classes=["dog", "cat"])) == [1]


def hugging_face(**names):
    features = {column: {"names": list(found), "_type": "ClassLabel"} for column, found in names.items()}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def test_the_classes_of_hugging_faces_metadata(tmp_path):
    columns, about = {"label": [0, 2, -1]}, hugging_face(label=("dog", "cat", "1"))
    records = read(tmp_path, columns, about)
    assert targets(records) == [0, 2, "label -1 is outside the 3 names in the file's metadata"]
    assert records[0].target_hash == hash_target(b"0")
    spec = spec_from_table("d", {"train": f"{tmp_path}/d.parquet"})
    assert spec.classes == ("dog", "cat", "1")
    # The numbers are what is stored, so that a table made without the names still fits.
    assert spec.fingerprint == spec_from_table("d", {"train": "nowhere.parquet"}).fingerprint
    assert targets(read(tmp_path, columns, about, classes=["cat", "1", "dog"]))[:2] == [2, 1]
    assert targets(read(tmp_path, columns, {"huggingface": "{"}, classes=["a", "b", "c"]))[:2] == [0, 2]
