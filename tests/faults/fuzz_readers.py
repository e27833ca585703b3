"""Coverage-guided fuzzing of the shard readers: `python tests/faults/fuzz_readers.py [libFuzzer's options]`.

Any bytes at all must read as examples and failures, or be refused by a CurateError. Everything else is a bug.
"""

import gzip
import io
import random
import sys
import tarfile
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "tarfile",
        "gzip",
        "curate.datasets.readers",
        "curate.datasets.tars",
        "curate.datasets.tar_headers",
        "webdataset.tariterators",
    ]
):
    import gzip
    import tarfile

    from curate.datasets.readers import Example, read_shard

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from curate.datasets.shards import Shard
from curate.datasets.spec import spec_from_table
from curate.errors import CurateError
from fsspec.implementations.memory import MemoryFile

ENDINGS = (".tar", ".tar.gz", ".parquet")  # by the first byte of an input
MEMORY = fsspec.filesystem("memory")
READ_AS = [
    (
        spec_from_table("d", {"train": f"memory://fuzz/0{ending}", "image": ["png", "image"], "classes": 10}),
        Shard(name="0", url=f"memory://fuzz/0{ending}", size=0, bytes=0),
    )
    for ending in ENDINGS
]


def one_input(data: bytes) -> None:
    if not data:
        return
    spec, shard = READ_AS[data[0] % len(ENDINGS)]
    MEMORY.store[shard.url.removeprefix("memory:/")] = MemoryFile(MEMORY, shard.url, data[1:])
    try:
        keys = set()
        for row, record in enumerate(read_shard(spec, shard)):
            assert record.row == row
            assert record.key not in keys
            keys.add(record.key)
            # What a table must be able to store.
            record.key.encode()
            assert record.image if isinstance(record, Example) else record.reason.encode()
    except CurateError as e:
        assert "\n" not in str(e), "an error is one line"
        str(e).encode()


def mend_checksums(data: bytearray) -> None:
    """Without this, almost every mutation of a tar ends at the first header's checksum."""
    for at in range(1, len(data) - 511, 512):
        header = data[at : at + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            data[at + 148 : at + 156] = f"{sum(header):06o}\0 ".encode()


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    chance = random.Random(seed)
    plain = bytearray(data)
    if data and ENDINGS[data[0] % 3] == ".tar" and chance.random() < 0.5 and len(data) > 513:
        # Aim at a header: names, sizes, types and what extended headers say.
        at = 1 + 512 * chance.randrange((len(data) - 1) // 512)
        for _ in range(chance.randint(1, 4)):
            plain[min(at + chance.randrange(512), len(plain) - 1)] = chance.choice(
                (0, 0x20, 0x30, 0x80, 0xFF, 0x78, 0x4C, 0x53)
            )
    else:
        plain = bytearray(atheris.Mutate(data, max_size))
    if plain and ENDINGS[plain[0] % 3] == ".tar" and chance.random() < 0.9:
        mend_checksums(plain)
    return bytes(plain)


def seeds() -> list[bytes]:
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
            for name, content in (
                ("a.png", b"picture"),
                ("a.cls", b"1"),
                ("ordner/ä-" + "x" * 90 + ".png", b""),
                ("c.cls", b"x"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if kind == tarfile.PAX_FORMAT:
                    info.pax_headers = {"comment": "words", "mtime": "1.5"}
                tar.addfile(info, io.BytesIO(content))
        found += [b"\0" + buffer.getvalue(), b"\1" + gzip.compress(buffer.getvalue())]
    for columns in (
        {"image": [b"1", None, b""], "label": [0, 11, None]},
        {"image": [{"bytes": b"1", "path": "x"}, None], "label": ["1", "x"]},
        {"picture": [1.5], "label": [None]},
    ):
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        found.append(b"\2" + buffer.getvalue())
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        for i, content in enumerate(seeds()):
            Path(corpus, str(i)).write_bytes(content)
            one_input(content)
        atheris.Setup([*sys.argv, "-max_len=32768", "-timeout=20", corpus], one_input, custom_mutator=mutate)
        atheris.Fuzz()
