import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.fields import MAX_JSON_BYTES, json_field, split_field
from curate.datasets.readers import Example, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table
from curate.datasets.targets import hash_target
from curate.errors import ExampleError, SpecError
from support.tars import write_tar


def test_the_colon_parts_member_and_field():
    assert split_field("json:caption") == ("json", "caption")
    assert split_field("meta.json:a.b:c") == ("meta.json", "a.b:c")
    assert split_field("txt") == ("txt", "")


@pytest.mark.parametrize(
    ("content", "path", "value"),
    [
        ({"caption": "a dog"}, "caption", b"a dog"),
        ({"caption": ["first", "second"]}, "caption", b"first"),
        ({"caption": None}, "caption", None),
        ({"caption": []}, "caption", None),
        ({"a": {"b": {"c": "deep"}}}, "a.b.c", b"deep"),
        ({"a.b": "a dot in the name", "a": {"b": "nested"}}, "a.b", b"a dot in the name"),
        ({"a.b": {"c": "both"}}, "a.b.c", b"both"),
        ({"a": "text"}, "a.b", None),
        (["no object"], "caption", None),
    ],
)
def test_a_caption_is_found_at_its_path(content, path, value):
    assert json_field(json.dumps(content).encode(), f"json:{path}", is_label=False) == value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"en": "a"}, "json:x is an object, expected text"),
        (3, "is a number"),
        (True, "is a boolean"),
        ([1], "is a number"),
        ("\ud800", "holds what is no text"),
    ],
)
def test_what_is_no_caption_is_refused_by_its_kind(value, told):
    with pytest.raises(ExampleError, match=told):
        json_field(json.dumps({"x": value}).encode(), "json:x", is_label=False)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"x": ' + b"[" * 100_000, b'{"x": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_is_refused(content):
    with pytest.raises(ExampleError, match="json is not valid JSON"):
        json_field(content, "json:x", is_label=True)


def test_json_is_not_read_without_end():
    with pytest.raises(ExampleError, match="at most 16,777,216 are read"):
        json_field(b" " * (MAX_JSON_BYTES + 1), "json:x", is_label=False)


def read(folder, *examples, **table):
    members = [m for i, e in enumerate(examples) for m in ((f"{i}.png", b"1"), (f"{i}.json", json.dumps(e).encode()))]
    spec = spec_from_table("d", {"train": str(write_tar(folder / "0.tar", members)), **table})
    return [r for s in list_shards(spec) for r in read_shard(spec, s)]


def test_captions_and_labels_come_out_of_the_json_members_of_tars(tmp_path):
    (one, none) = read(tmp_path, {"caption": " a dog "}, {"words": "x"}, text="json:caption")
    assert (one.target, one.target_hash) == ("a dog", hash_target(b" a dog "))
    assert none.reason == "no caption (json:caption)"
    records = read(
        tmp_path,
        *({"label": v} for v in (1, "dog", 1.0, True, None, [1], 1.5)),
        label=".JSON:label",
        classes=["cat", "dog"],
    )
    assert [r.target if isinstance(r, Example) else r.reason for r in records] == [
        *[1, 1, 1, 1],
        "no label (json:label)",
        "json:label is a list, expected a number or a text",
        "label '1.5' is not a whole number that a class can have",
    ]


def test_captions_come_out_of_json_files_beside_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "a.json").write_text('{"caption": "a dog"}')
    spec = spec_from_table("d", {"train": str(tmp_path), "text": "json:caption"})
    assert [r.target for s in list_shards(spec) for r in read_shard(spec, s)] == ["a dog"]


def test_the_captions_after_the_first_are_kept_for_evaluation_alone(tmp_path):
    (one, two) = read(tmp_path, {"said": [" a dog ", "a cat", 3, None, " "]}, {"said": ["alone"]}, text="json:said")
    assert (one.target, one.target_hash, one.more_captions) == ("a dog", hash_target(b" a dog "), ("a cat",))
    assert (two.target, two.more_captions) == ("alone", ())
    column = pa.array([["a dog", "a cat"], None, []], pa.list_(pa.string()))
    pq.write_table(pa.table({"image": [b"1"] * 3, "text": column}), tmp_path / "0.parquet")
    spec = spec_from_table("d", {"train": str(tmp_path / "0.parquet"), "text": "text"})
    (one, *none) = (r for s in list_shards(spec) for r in read_shard(spec, s))
    assert (one.target, one.more_captions) == ("a dog", ("a cat",))
    assert {failure.reason for failure in none} == {"no caption (text)"}


def test_a_text_may_have_a_caption_on_each_line(tmp_path):
    texts = (b"a dog\n\n a cat \r\nboth\n", b"alone", b"\n \n")
    path = write_tar(
        tmp_path / "0.tar", [m for i, t in enumerate(texts) for m in ((f"{i}.png", b"1"), (f"{i}.txt", t))]
    )
    known = {"train": str(path), "text": "txt"}
    spec = spec_from_table("d", {**known, "captions": "lines"})
    (one, two, none) = (r for s in list_shards(spec) for r in read_shard(spec, s))
    assert (one.target, one.target_hash, one.more_captions) == ("a dog", hash_target(b"a dog"), ("a cat", "both"))
    assert (two.target, two.more_captions, none.reason) == ("alone", (), "txt is empty")
    plain = spec_from_table("d", known)
    (whole, *_) = (r for s in list_shards(plain) for r in read_shard(plain, s))
    assert whole.target == "a dog\n\n a cat \r\nboth" and not whole.more_captions
    # An example is another one then, and its score table too. What is not set is in no manifest and no fingerprint.
    assert spec.fingerprint != plain.fingerprint and "captions" not in plain.to_dict()
    assert type(spec).from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("entry", "told"),
    [({"text": "txt", "captions": "rows"}, "expected 'lines'"), ({"captions": "lines"}, "is not read")],
)
def test_what_captions_cannot_be_is_refused(entry, told):
    with pytest.raises(SpecError, match=told):
        spec_from_table("d", {"train": "0.tar", **entry})
