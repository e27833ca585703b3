"""2,000 real pictures damaged at random: everything is kept or is in a table of its own with a reason."""

import gzip
import io
import json
import random
import struct
import tarfile
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curate.datasets.spec import add_dataset
from curate.datasets.targets import hash_target
from curate.scoring.tables.lookup import open_scores
from PIL import Image
from sklearn.datasets import load_digits
from support.commands import curate
from support.prepared import IN_MEMORY
from support.tables import LOSS, failures

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]
SEED = 1912
PER_SHARD = 20
KEYS = (
    "ключ/😀{}",
    "a b/ü{}",
    "ע{}ב",
    "e\u0301{}",
    "line\nbreak{}",
    "-{}",
    "..{}",
    "quote'\"{}",
    "x" * 120 + "{}",
    "\udcff{}",
)


def pictures():
    """(picture, label) of 2,000 examples: PNG and JPEG in turn, at several sizes."""
    digits = load_digits()
    for i in range(2000):
        grey = np.rint(digits.images[i % 1797] * 255 / 16).astype(np.uint8).repeat(1 + i % 4, 0).repeat(1 + i % 4, 1)
        buffer = io.BytesIO()
        Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2)).save(buffer, "PNG" if i % 2 else "JPEG")
        yield buffer.getvalue(), str(digits.target[i % 1797]).encode()


def with_huge_size(image):
    """The same picture, its header declaring 60,000 x 60,000 pixels."""
    data = bytearray(image)
    if data[:4] == b"\x89PNG":
        data[16:24] = struct.pack(">II", 60_000, 60_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def mutate(chance, key, members):
    """One example's members, damaged in one of many ways (or not at all), and the way's name."""
    (image_name, image), (label_name, label) = members
    way = chance.choice(
        ["whole"] * 6 + "flipped cut empty huge noise renamed bare-name no-image no-label bad-label key".split()
    )
    if way == "flipped":
        data = bytearray(image)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        image = bytes(data)
    elif way == "cut":
        image = image[: chance.randrange(1, len(image))]
    elif way == "empty":
        image = b""
    elif way == "huge":
        image = with_huge_size(image)
    elif way == "noise":
        image = chance.randbytes(chance.randrange(1, 300))
    elif way == "renamed":
        image_name = f"{key}.{chance.choice(['pgn', 'txt', 'png.bak', 'exe', 'GIF'])}"
    elif way == "bare-name":
        label_name = key  # no ending: no member of the example any more
    elif way == "no-image":
        return way, [(label_name, label)]
    elif way == "no-label":
        return way, [(image_name, image)]
    elif way == "bad-label":
        label = chance.choice([b"", b" ", b"10", b"-1", b"horse", b"\xff\xfe", b"1.5", b"9" * 5000, "٣٣".encode()])
    elif way == "key":
        name = chance.choice(KEYS).format(key)
        image_name, label_name = f"{name}.{image_name.rsplit('.', 1)[1]}", f"{name}.cls"
    return way, [(image_name, image), (label_name, label)]


def tar_bytes(members, kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def damage_tar(chance, data):
    """A whole tar, cut or with a damaged header, and the damage's name."""
    way = chance.choice(["whole"] * 5 + ["cut", "header", "zeroed", "end"])
    data = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        starts = [member.offset for member in tar]
    start = chance.choice(starts)
    if way == "cut":
        return way, bytes(data[: chance.randrange(1, starts[-1])])
    if way == "header":
        for _ in range(chance.randint(1, 20)):
            data[start + chance.randrange(345)] ^= 1 << chance.randrange(8)
    elif way == "zeroed":
        data[start : start + 512] = bytes(512)
    elif way == "end":
        return way, bytes(data[: -chance.choice([10240, 5000, 1024])].rstrip(b"\0"))
    return way, bytes(data)


def plain_count(path):
    """How many examples a tar holds, counted with tarfile alone; None where tarfile itself cannot read it whole."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    keys, count, end = None, 0, 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=False) as tar:
            for member in tar:
                end = member.offset_data + 512 * -(-member.size // 512)
                folder, _, name = member.name.rpartition("/")
                stem, dot, _ = name.partition(".")
                if member.isreg() and dot and stem:
                    count += (folder, stem) != keys
                    keys = (folder, stem)
    except tarfile.TarError:
        return None
    return count if end + 1024 <= len(data) and not any(data[end:]) else None


def score(root, dataset, reference, *more):
    return curate(
        *("score-reference", "--config", root / "curate.toml", "--dataset", dataset, "--reference", reference),
        *("--out", root / "scores", "--precision", "fp32", "--max-failures", "100%", *more, "--", *IN_MEMORY),
    )


def by_shard(folder):
    """Shard to its rows in the score table and in the failures table, and shard to the error that was noted."""
    kept, failed = defaultdict(dict), defaultdict(dict)
    for row in open_scores(str(folder)).read().to_pylist():
        kept[row["shard"]][row["row"]] = row
    for row in failures(folder):
        assert row["row"] not in failed[row["shard"]]
        failed[row["shard"]][row["row"]] = row
    noted = {p.stem: json.loads(p.read_text())["error"] for p in Path(folder, "_errors").glob("*.json")}
    return kept, failed, noted


def test_2000_damaged_examples_in_tars(digits, tmp_path):
    chance, ways, shard_ways, expected = random.Random(SEED), Counter(), {}, {}
    (tmp_path / "shards").mkdir()
    (tmp_path / "whole").mkdir()
    (tmp_path / "curate.toml").write_text(digits.toml.read_text())
    examples = list(pictures())
    for shard in range(len(examples) // PER_SHARD):
        members, whole = [], []
        for i in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            image, label = examples[i]
            key = f"{i:04d}"
            clean = [(f"{key}.{'png' if i % 2 else 'jpg'}", image), (f"{key}.cls", label)]
            way, damaged = mutate(chance, key, clean)
            ways[way] += 1
            members += damaged
            whole += clean
            expected[f"{shard:05d}", key] = way
        kind = chance.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
        shard_ways[f"{shard:05d}"], data = damage_tar(chance, tar_bytes(members, kind))
        ending = ".tar.gz" if shard % 5 == 0 else ".tar"
        (tmp_path / f"shards/{shard:05d}{ending}").write_bytes(gzip.compress(data) if ending == ".tar.gz" else data)
        (tmp_path / f"whole/{shard:05d}.tar").write_bytes(tar_bytes(whole, kind))
    for name, train in (("bad", ["shards/*.tar", "shards/*.tar.gz"]), ("good", ["whole/*.tar"])):
        add_dataset(tmp_path / "curate.toml", name, {"train": train, "image": ["png", "jpg"], "classes": 10})
    result = score(tmp_path, "bad", digits.reference)
    assert score(tmp_path, "good", digits.reference).code == 0
    assert "Traceback" not in result.err
    (bad,) = (tmp_path / "scores/dataset=bad").iterdir()
    (good,) = (tmp_path / "scores/dataset=good").iterdir()
    truth = {(r["shard"], r["key"]): r for r in open_scores(str(good)).read().to_pylist()}
    kept, failed, noted = by_shard(bad)
    assert (result.code, bool(noted)) == (1, True)
    assert "run again to resume" in result.error
    totals = Counter()
    for path in sorted((tmp_path / "shards").iterdir()):
        name = path.name.split(".")[0]
        count, told = plain_count(path), f"seed {SEED}, {path.name} ({shard_ways[name]}): {noted.get(name)}"
        if name in noted:
            assert shard_ways[name] != "whole", told
            assert not kept[name], told
            assert noted[name].isprintable(), told
            totals["unreadable shards"] += 1
            continue
        rows = sorted([*kept[name], *failed[name]])
        assert count is not None, f"read although tarfile alone cannot: {told}"
        assert rows == list(range(count)), told
        totals.update(read=count, kept=len(kept[name]), failed=len(failed[name]))
        for row in failed[name].values():
            assert row["reason"], told
            assert row["stage"] in ("read", "decode", "target"), told
        keys = {row["key"]: row for row in kept[name].values()}
        for (shard, key), way in expected.items():
            if shard == name and way == "whole":
                assert keys[key]["loss"] == pytest.approx(truth[shard, key]["loss"], abs=LOSS), told
                assert keys[key]["target_hash"] == truth[shard, key]["target_hash"], told
    assert totals["kept"] + totals["failed"] == totals["read"]
    assert totals["kept"] > 300
    assert totals["failed"] > 300
    assert set(shard_ways) == {*kept, *failed, *noted}
    assert json.loads((bad / "_manifest.json").read_text())["counts"]["examples"] == totals["kept"]
    print(f"{dict(totals)}; examples: {dict(ways)}; shards: {dict(Counter(shard_ways.values()))}")
    print(
        Counter(row["reason"].split(":")[0][:40] for rows in failed.values() for row in rows.values()).most_common(12)
    )


# Ways in which a file is seen to be unfit when it is listed.
UNFIT = ("cut", "no-label", "no-image", "numbers")


def test_damaged_parquet(digits, tmp_path):
    """Null and missing columns, wrong types, flipped bytes: 400 examples in 40 files."""
    chance, ways, counts = random.Random(SEED), {}, {}
    (tmp_path / "curate.toml").write_text(digits.toml.read_text())
    (tmp_path / "p").mkdir()
    examples = list(pictures())[:400]
    for file in range(40):
        part = examples[file * 10 : file * 10 + 10]
        images = [{"bytes": chance.choice([image] * 4 + [b"", image[:50], None]), "path": "x"} for image, _ in part]
        labels = [chance.choice([label.decode()] * 4 + ["", "horse", None]) for _, label in part]
        columns = {"image": images, "label": labels, "uid": [f"{file}-{i}-ключ" for i in range(10)]}
        way = chance.choice("whole whole nulls no-label no-image numbers flipped cut latin-1 twice".split())
        if way == "nulls":
            columns["image"] = pa.nulls(10, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        elif way == "no-label":
            del columns["label"]
        elif way == "no-image":
            columns["picture"] = columns.pop("image")
        elif way == "numbers":
            columns["image"] = list(range(10))
        elif way == "latin-1":
            buffers = pa.array([b"\xff\xe9"] * 10, pa.binary()).buffers()
            columns["label"] = pa.Array.from_buffers(pa.string(), 10, buffers)
        elif way == "twice":
            columns["uid"] = ["same"] * 10
        path = tmp_path / f"p/{file:05d}.parquet"
        pq.write_table(pa.table(columns), path)
        data = bytearray(path.read_bytes())
        if way == "flipped":  # in the pages: a file whose footer is damaged cannot even be listed
            for _ in range(20):
                data[chance.randrange(4, len(data) // 2)] ^= 0x10
        ways[f"{file:05d}"], counts[f"{file:05d}"] = way, 10
        path.write_bytes(data)
    add_dataset(tmp_path / "curate.toml", "bad", {"train": "p/*.parquet", "key": "uid", "classes": 10})
    first = {way: name for name, way in reversed(ways.items())}
    unfit = {path: path.read_bytes() for path in sorted((tmp_path / "p").iterdir()) if ways[path.stem] in UNFIT}
    for path in unfit:
        path.unlink()
    for way in UNFIT:
        path = tmp_path / f"p/{first[way]}.parquet"
        whole = unfit[path]
        path.write_bytes(whole[: len(whole) // 2] if way == "cut" else whole)
        result = score(tmp_path, "bad", digits.reference)
        assert (result.code, path.name in result.error) == (1, True), result.err  # before anything starts, by its name
        path.unlink()
    ways = {name: way for name, way in ways.items() if way not in UNFIT}
    result = score(tmp_path, "bad", digits.reference)
    assert (result.code, "Traceback" in result.err) == (1, False), result.err
    kept, failed, noted = by_shard(next((tmp_path / "scores/dataset=bad").iterdir()))
    for name, way in ways.items():
        told = f"seed {SEED}, {name} ({way}): {noted.get(name)}"
        if name in noted:
            assert way in ("flipped", "latin-1", "twice"), told
            assert not kept[name], told
            continue
        assert way != "twice", told
        assert sorted([*kept[name], *failed[name]]) == list(range(counts[name])), told
        assert all(row["reason"] for row in failed[name].values()), told
        for row in kept[name].values():
            label = examples[int(name) * 10 + row["row"]][1]
            if way == "whole":
                assert row["target_hash"] == hash_target(label), told
    print(dict(Counter(ways.values())), len(noted), "files refused,", sum(map(len, failed.values())), "examples failed")
