"""What is left out of a data set is counted and said once, and nothing else is left out."""

import os
import shutil
import warnings

import fsspec
import pytest
from curate.datasets import notices
from curate.datasets.inference import class_folders
from curate.datasets.landed import landed_files
from curate.datasets.notices import shared_by_processes
from curate.datasets.readers import Example, Failure, read_shard
from curate.datasets.shards import list_shards
from curate.datasets.spec import spec_from_path, spec_from_table
from curate.errors import CurateWarning, ReadError, ShardError
from support.folders import touch
from support.tars import write_tar


def keys(spec):
    return sorted(r.key for shard in list_shards(spec) for r in read_shard(spec, shard))


def folder(root, **table):
    return spec_from_table("d", {"train": str(root), **table})


def said(do):
    """What `do` returns, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = do()
    return found, [str(w.message) for w in caught if issubclass(w.category, CurateWarning)]


def test_linked_folders_and_files_are_read(tmp_path):
    touch(tmp_path, "photos/cat/a.png", "elsewhere/dogs/b.png", "elsewhere/more/c.png", "d.png")
    os.symlink("../elsewhere/dogs", tmp_path / "photos/dog")
    os.symlink(tmp_path / "elsewhere/more", tmp_path / "photos/cat/more")
    os.symlink("../../d.png", tmp_path / "photos/cat/d.png")
    spec = folder(tmp_path / "photos")
    assert spec.classes == class_folders(str(tmp_path / "photos")) == ("cat", "dog")
    found, warned = said(lambda: keys(spec))
    assert found == ["cat/a.png", "cat/d.png", "cat/more/c.png", "dog/b.png"]
    assert warned == []
    os.symlink("photos", tmp_path / "link")
    assert keys(folder(tmp_path / "link")) == found


def test_a_link_to_what_is_read_already_doubles_nothing_and_ends(tmp_path):
    touch(tmp_path, "photos/cat/a.png", "photos/dog/b.png", "out/x/c.png", "beside.png")
    os.symlink("..", tmp_path / "photos/cat/loop")
    os.symlink("../..", tmp_path / "photos/dog/above")
    os.symlink("cat", tmp_path / "photos/aaa")  # sorts before the folder itself
    os.symlink("../out", tmp_path / "photos/one")
    os.symlink("../out/x", tmp_path / "photos/two")
    os.symlink("../../photos/cat", tmp_path / "out/x/back")
    found, warned = said(lambda: keys(folder(tmp_path / "photos", classes=["cat", "dog", "one"])))
    assert found == ["cat/a.png", "dog/b.png", "one/x/c.png"]
    (line,) = warned
    assert f"passed over in {tmp_path}/photos: 5 link to a folder that is read already" in line
    assert said(lambda: keys(folder(tmp_path / "photos", classes=["cat", "dog", "one"]))) == (found, [])


def test_a_link_to_nothing_is_a_failure_of_its_example(tmp_path):
    touch(tmp_path, "cat/a.png")
    os.symlink("gone.png", tmp_path / "cat/b.png")
    spec = folder(tmp_path)
    (shard,) = list_shards(spec)
    assert [getattr(r, "reason", None) for r in read_shard(spec, shard)][1].startswith("no image")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path):
    touch(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "dog").chmod(0)
    with pytest.raises(ReadError):
        list_shards(folder(tmp_path))


@pytest.mark.parametrize("ending", ["JPG", "jfif", "jpe", "Tif", "pgm", "avif", "jp2", "apng", "dib"])
def test_every_ending_of_the_formats_that_are_read_is_an_image(tmp_path, ending):
    touch(tmp_path, f"f/cat/a.{ending}")
    assert keys(folder(tmp_path / "f")) == [f"cat/a.{ending}"]
    path = write_tar(tmp_path / "0.tar", [(f"a.{ending}", b"1"), ("a.cls", b"0")])
    spec = spec_from_table("d", {"train": str(path)})
    (record,) = [r for s in list_shards(spec) for r in read_shard(spec, s)]
    assert isinstance(record, Example)


def test_endings_that_are_added_do_not_change_a_fingerprint():
    old = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "tif", "tiff")
    given = spec_from_table("d", {"train": "x.tar", "image": list(old)})
    assert given.fingerprint == spec_from_table("d", {"train": "x.tar"}).fingerprint


@pytest.mark.parametrize("root", ["", "memory://passed-over"])
def test_hidden_files_and_copies_are_counted_and_said_once(tmp_path, root):
    files = ["cat/a.png", "cat/.hidden.png", ".git/x.png", "cat/.ipynb_checkpoints/a.png", "__MACOSX/cat/._a.png"]
    touch(tmp_path, *files, "cat/@eaDir/a.png", "cat/Thumbs.db", "cat/b.heic", "cat/c.HEIC", "cat/notes")
    if root:
        fsspec.filesystem("memory").put(f"{tmp_path}/", "/passed-over/", recursive=True)
    root = root or str(tmp_path)
    found, warned = said(lambda: keys(folder(root)))
    assert found == ["cat/a.png"]
    assert folder(root).classes == ("cat",)
    (line,) = warned
    assert f"passed over in {root}: 5 hidden or system file, 2 .heic, 1 .db, 1 without an ending" in line
    assert said(lambda: keys(folder(root))) == (found, [])


def test_captions_beside_the_images_are_not_passed_over(tmp_path):
    for name, text in (("a.png", ""), ("a.txt", "a dog"), ("b.png", ""), ("b.TXT", "a cat"), ("a.json", "{}")):
        (tmp_path / name).write_text(text or "x")
    spec = folder(tmp_path, text="txt")
    records, warned = said(lambda: [r for s in list_shards(spec) for r in read_shard(spec, s)])
    assert [r.target for r in records] == ["a dog", "a cat"]
    assert len(warned) == 1 and "1 .json" in warned[0]


def macs(path, *extra):
    return write_tar(path, [*extra, ("d/._k.png", b"\0\5"), ("d/k.png", b"1"), ("d/._k.cls", b"\0"), ("d/k.cls", b"3")])


def test_hidden_members_of_tars_are_passed_over_and_said_once(tmp_path):
    extra = [("d/.DS_Store", b"x"), ("__MACOSX/d/._k.png", b"x"), ("d/.ipynb_checkpoints/a-checkpoint.png", b"x")]
    macs(tmp_path / "0.tar", *extra)
    macs(tmp_path / "1.tar")
    spec = spec_from_table("d", {"train": f"{tmp_path}/*.tar"})
    found, warned = said(lambda: keys(spec))
    assert found == ["d/k", "d/k"]
    (line,) = warned
    assert f"5 hidden or system members are passed over in {tmp_path}/0.tar, first 'd/.DS_Store'" in line


def test_a_tar_of_a_hidden_folder_is_read(tmp_path):
    path = write_tar(tmp_path / "0.tar", [("./.data/k.png", b"1"), ("./.data/k.cls", b"3")])
    assert keys(spec_from_table("d", {"train": str(path)})) == ["./.data/k"]


def test_hidden_shards_are_passed_over_by_patterns_and_refused_by_name(tmp_path):
    write_tar(tmp_path / "s/0.tar", [("k.png", b"1"), ("k.cls", b"3")])
    touch(tmp_path, "s/._0.tar", "s/.git/1.tar", "__MACOSX/2.tar")
    for pattern in ("s/*.tar", "**/*.tar"):
        spec = spec_from_table("d", {"train": pattern}, base=tmp_path)
        found, warned = said(lambda spec=spec: [s.name for s in list_shards(spec)])
        assert found == ["0"]
        assert len(warned) == 1 and "passed over" in warned[0]
        assert [f.shard.name for f in landed_files(spec)] == ["0"]
    for named in ("s/._0.tar", "s/.*.tar"):
        with pytest.raises(ShardError, match="the shard's name starts with a dot; rename the file"):
            list_shards(spec_from_table("d", {"train": named}, base=tmp_path))


def test_patterns_see_through_linked_folders(tmp_path):
    touch(tmp_path, "elsewhere/a/0.tar", "data/b/1.tar")
    os.symlink("../elsewhere/a", tmp_path / "data/a")
    spec = spec_from_table("d", {"train": "data/*/*.tar"}, base=tmp_path)
    assert [s.name for s in list_shards(spec)] == ["0", "1"]


def test_names_that_are_not_utf_8_are_spelt_out(tmp_path):
    os.makedirs(tmp_path / "photos/cat")
    (tmp_path / "photos/cat/a.png").write_bytes(b"1")
    with open(os.fsencode(tmp_path) + b"/photos/cat/caf\xe9.png", "wb") as file:
        file.write(b"2")
    spec = folder(tmp_path / "photos")
    found = {r.key: r.image for s in list_shards(spec) for r in read_shard(spec, s)}
    assert found == {"cat/a.png": b"1", "cat/caf\\udce9.png": b"2"}
    write_tar(tmp_path / "x.tar", [("k.png", b"1"), ("k.cls", b"3")])
    os.makedirs(tmp_path / "s")
    os.rename(os.fsencode(tmp_path) + b"/x.tar", os.fsencode(tmp_path) + b"/s/caf\xe9.tar")
    spec = spec_from_table("d", {"train": f"{tmp_path}/s/*.tar"})
    assert [s.name for s in list_shards(spec)] == ["caf\\udce9"]
    assert keys(spec) == ["k"]


@pytest.mark.parametrize("name", ["a[1]", "a b", "50%", "#1", "wh?t", "st*r", "{x}", "a::b", "~x"])
def test_shards_and_folders_of_any_name_are_found(tmp_path, name):
    write_tar(tmp_path / name / f"{name}.tar", [("k.png", b"1"), ("k.cls", b"3")])
    touch(tmp_path, f"{name}/photos/cat/a.png", f"{name}/photos/cat/{name}.png")
    base = tmp_path / name
    spec = spec_from_table("d", {"train": "*.tar"}, base=base)
    if "{" not in name and "::" not in name:
        assert [(s.name, s.url) for s in list_shards(spec)] == [(name, f"{base}/{name}.tar")]
        assert keys(spec) == ["k"]
    if name in ("a[1]", "a b", "50%", "#1", "{x}"):
        assert [s.name for s in list_shards(spec_from_table("d", {"train": f"{name}.tar"}, base=base))] == [name]
    if "::" not in name:
        photos = folder(base / "photos")
        assert photos.classes == ("cat",)
        assert keys(photos) == sorted(["cat/a.png", f"cat/{name}.png"])


def test_a_shards_name_with_a_line_break_is_refused(tmp_path):
    touch(tmp_path, "a\nb.tar")
    with pytest.raises(ShardError, match="has a character that cannot be printed; rename the file"):
        list_shards(spec_from_table("d", {"train": f"{tmp_path}/*.tar"}))


def test_a_path_whose_name_no_data_set_may_have_gets_another(tmp_path):
    assert spec_from_path(f"{tmp_path}/a[1]%.tar").name == "a-1"


def test_members_without_an_ending_are_counted_and_said(tmp_path):
    path = write_tar(
        tmp_path / "0.tar", [("0001", b"1"), ("README", b"x"), ("._k", b"x"), ("k.png", b"1"), ("k.cls", b"3")]
    )
    found, warned = said(lambda: keys(spec_from_table("d", {"train": str(path)})))
    assert found == ["k"]
    (line,) = warned
    assert f"1 hidden or system members and 2 members without an ending are passed over in {path}, first '0001'" in line


def test_of_two_images_of_a_key_the_one_that_is_not_read_is_said(tmp_path):
    path = write_tar(tmp_path / "0.tar", [("k.jpg", b"1"), ("k.png", b"2"), ("k.cls", b"3"), ("k.seg.png", b"4")])
    spec = spec_from_table("d", {"train": str(path)})
    found, warned = said(lambda: [r.image for s in list_shards(spec) for r in read_shard(spec, s)])
    assert found == [b"1"]
    (line,) = warned
    assert "key 'k' has more than one image" in line and "'k.png' is not read; name the ending to read: image =" in line
    assert said(lambda: keys(spec_from_table("e", {"train": str(path), "image": "png"}))) == (["k"], [])


def test_processes_of_one_command_say_it_once(monkeypatch):
    about = ("said by processes", 1)
    with shared_by_processes():
        lines = []
        for _ in range(2):  # as in another process, which has said nothing
            monkeypatch.setattr(notices, "_said", set())
            lines += said(lambda: notices.say_once(about, "two hidden members"))[1]
        assert lines == ["two hidden members"]
        assert said(lambda: notices.say_once("another", "x"))[1] == ["x"]
        shutil.rmtree(os.environ[notices.SHARED])
        assert said(lambda: notices.say_once("a third", "y"))[1] == ["y"]
    assert notices.SHARED not in os.environ


def test_a_pipe_is_no_image_and_nobody_waits_for_it(tmp_path):
    touch(tmp_path, "photos/cat/a.png")
    os.mkfifo(tmp_path / "photos/cat/b.png")
    found, (line,) = said(lambda: keys(folder(tmp_path / "photos")))
    assert found == ["cat/a.png"]
    assert f"passed over in {tmp_path}/photos: 1 pipe or device; first 'cat/b.png'" in line


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_a_shard_that_is_a_pipe_is_refused(tmp_path, ending):
    os.mkfifo(tmp_path / f"a.{ending}")
    with pytest.raises(ReadError, match=f"a.{ending}: is a pipe or a device; name a file"):
        keys(spec_from_table("d", {"train": str(tmp_path / f"*.{ending}"), "task": "classification", "classes": 2}))


def test_an_image_that_is_gone_and_one_without_a_class_say_so(tmp_path):
    touch(tmp_path, "photos/cat/a.png", "photos/b.png")
    os.symlink("nothing.png", tmp_path / "photos/cat/c.png")
    spec = folder(tmp_path / "photos")
    failed = {r.key: r.reason for shard in list_shards(spec) for r in read_shard(spec, shard) if isinstance(r, Failure)}
    assert failed["cat/c.png"] == "no image: the file was deleted, or is a link that leads to nothing"
    assert failed["b.png"] == "no label: the image is in no folder of a class"
