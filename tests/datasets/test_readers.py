import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.readers import Example, Failure, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_table
from curate.datasets.targets import hash_target
from curate.errors import ShardError
from support.readers import CLASSES, read, read_members, reasons


def test_every_bad_example_has_its_row_key_stage_and_reason(tmp_path):
    records = read_members(
        tmp_path,
        ("good.png", b"1"),
        ("good.cls", b"1"),
        ("blind.cls", b"1"),
        ("empty.png", b""),
        ("empty.cls", b"1"),
        ("nolabel.png", b"1"),
        ("void.png", b"1"),
        ("void.cls", b" \n"),
        ("latin.png", b"1"),
        ("latin.cls", b"\xe9t\xe9"),
        ("far.png", b"1"),
        ("far.cls", b"3"),
        ("minus.png", b"1"),
        ("minus.cls", b"-1"),
        ("word.png", b"1"),
        ("word.cls", b"horse"),
        ("last.png", b"1"),
        ("last.cls", b"2\n"),
        image="png",
    )
    assert reasons(records) == [
        (1, "blind", "read", "no image (png)"),
        (2, "empty", "read", "image is empty"),
        (3, "nolabel", "target", "no label (cls)"),
        (4, "void", "target", "cls is empty"),
        (5, "latin", "target", "cls is not UTF-8"),
        (6, "far", "target", "label 3 is outside the 3 classes"),
        (7, "minus", "target", "label -1 is outside the 3 classes"),
        (8, "word", "target", "label 'horse' is neither a number nor one of the classes"),
    ]
    kept = [r for r in records if isinstance(r, Example)]
    assert [(e.row, e.key, e.target) for e in kept] == [(0, "good", 1), (9, "last", 2)]
    assert len(kept) + len(reasons(records)) == 10


def test_a_label_may_be_a_classes_name(tmp_path):
    records = read_members(tmp_path, ("a.png", b"1"), ("a.cls", b"dog"), ("b.png", b"1"), ("b.cls", b"1"))
    assert [r.target for r in records] == [1, 1]
    # The hash is of the bytes as stored: a relabelling from "1" to "dog" is seen.
    assert records[0].target_hash == hash_target(b"dog") != records[1].target_hash == hash_target(b"1")


def test_captions_keep_their_words_and_lose_outer_blanks(tmp_path):
    (record,) = read_members(tmp_path, ("a.png", b"1"), ("a.txt", " ein süßer  Hund\n".encode()), text="txt")
    assert record.target == "ein süßer  Hund"
    (bad,) = read_members(tmp_path, ("a.png", b"1"), ("a.cls", b"1"), text="txt")
    assert (bad.stage, bad.reason) == ("target", "no caption (txt)")


def write_parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_parquet_reads_plain_bytes_and_hugging_faces_image_struct(tmp_path):
    structs = [
        {"bytes": b"1", "path": "x.png"},
        {"bytes": None, "path": "gone.png"},
        None,
        {"bytes": b"4", "path": None},
    ]
    path = write_parquet(tmp_path / "p.parquet", {"image": structs, "label": [0, 1, 1, 2]})
    records = read(path)
    assert [(r.row, r.key, r.image, r.target) for r in records if isinstance(r, Example)] == [
        (0, "0", b"1", 0),
        (3, "3", b"4", 2),
    ]
    assert reasons(records) == [(1, "1", "read", "no image (image)"), (2, "2", "read", "no image (image)")]
    plain = write_parquet(tmp_path / "q.parquet", {"jpg": [b"1"], "kind": ["dog"], "uid": ["u-1"]})
    (record,) = read(plain, image="jpg", label="kind", key="uid")
    assert (record.key, record.image, record.target) == ("u-1", b"1", 1)


def test_parquet_counts_bad_rows_too(tmp_path):
    columns = {"image": [b"1", b"", b"3", b"4"], "text": ["a", "b", None, "d"]}
    records = read(write_parquet(tmp_path / "p.parquet", columns), text="text")
    assert reasons(records) == [(1, "1", "read", "image is empty"), (2, "2", "target", "no caption (text)")]
    assert [(r.row, r.target) for r in records if isinstance(r, Example)] == [(0, "a"), (3, "d")]


def test_a_parquet_file_without_rows_reads_as_nothing(tmp_path):
    columns = {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}
    assert read(write_parquet(tmp_path / "p.parquet", columns)) == []


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", {"picture": [b"1"], "label": [0]})
    with pytest.raises(ShardError, match=r"no column for image .*it has picture, label; set it in .*datasets.d"):
        read(path)
    with pytest.raises(ShardError, match=r"no column for label/text .*looked for species"):
        read(path, image="picture", label="species")
    with pytest.raises(ShardError, match=r"no column for key .*looked for uid"):
        read(path, image="picture", key="uid")


def test_a_text_column_that_is_not_utf_8_is_refused(tmp_path):
    label = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers())
    path = write_parquet(tmp_path / "p.parquet", {"image": [b"1"], "label": label})
    with pytest.raises(ShardError, match="not a readable Parquet file"):
        read(path)


def test_a_key_column_that_repeats_or_is_null_is_refused(tmp_path):
    columns = {"image": [b"1", b"2"], "label": [0, 0]}
    with pytest.raises(ShardError, match="key 'u' occurs twice"):
        read(write_parquet(tmp_path / "p.parquet", {**columns, "uid": ["u", "u"]}), key="uid")


def test_a_parquet_file_cut_after_it_was_listed_is_refused(tmp_path):
    path = write_parquet(tmp_path / "p.parquet", {"image": [bytes([i]) * 99 for i in range(200)], "label": [1] * 200})
    spec = spec_from_table("d", {"train": str(path), "classes": CLASSES})
    (shard,) = list_shards(spec)
    whole = path.read_bytes()
    for cut in (0, 3, 1000, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match=r"p\.parquet: not a readable Parquet file"):
            list(read_shard(spec, shard))
    path.unlink()
    with pytest.raises(ShardError, match="no such file"):
        list(read_shard(spec, shard))
    middle = bytearray(whole)
    middle[100:400] = b"\xff" * 300
    path.write_bytes(middle)
    with pytest.raises(ShardError, match="not a readable Parquet file"):
        list(read_shard(spec, shard))


def test_a_folders_class_is_its_first_folder(tmp_path):
    for name in ("cat/1.png", "dog/deep/2.png", "10/3.png", "4.png", "horse/5.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    records = {r.key: r for r in read(tmp_path)}
    assert {k: r.target for k, r in records.items() if isinstance(r, Example)} == {
        "cat/1.png": 0,
        "dog/deep/2.png": 1,
        "10/3.png": 2,  # a folder named "10" is the class of that name
    }
    assert {k: r.reason for k, r in records.items() if isinstance(r, Failure)} == {
        "4.png": "no label: the image is in no folder of a class",
        "horse/5.png": "label 'horse' is neither a number nor one of the classes",
    }


def test_a_folders_captions_lie_beside_its_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "b.png").write_bytes(b"x")
    records = {r.key: r for r in read(tmp_path, text="txt", task="image-text")}
    assert records["a.png"].target == "a cat"
    assert records["b.png"].reason == "no caption (txt)"
