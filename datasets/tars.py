"""Reading a tar: consecutive members of one key are an example, by webdataset's own rule."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from ..errors import ExampleError, ShardError, printable
from .fields import MAX_JSON_BYTES, json_field, split_field
from .hidden import is_hidden_member
from .notices import say_once
from .shards import Shard
from .spec import DatasetSpec
from .storage import Reader, open_read, without_query
from .targets import MAX_TARGET_BYTES

# key, the image's bytes, the target's stored bytes (an error concerns this example alone), the meanings of its numbers, and
# the image's place in the file, as `Example` has it.
Record = tuple[str, bytes | ExampleError | None, bytes | ExampleError | None, tuple[str, ...], tuple[int, int] | None]

TAR_END_BYTES = 1024
# More than an uncompressed image of as many pixels as decoding.py takes.
MAX_IMAGE_BYTES = 512 << 20
MAX_HEADER_BYTES = 1 << 20
DEREFERENCE = "tar --dereference --hard-dereference"
EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# A compressed tar may unpack to so many times its size: images hardly shrink, and a bomb is a thousand times larger.
MAX_RATIO, FREE_BYTES = 100, 1 << 30
# How files begin that are easily taken for a tar.
GZIP = "gzip"
PACKED = {
    b"\x1f\x8b": GZIP,
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PK\x03\x04": "a zip file",
}
# Members in such a folder are webdataset's own metadata. Its reader skips them too.
METADATA = re.compile(r"__[^/]*__($|/)")


def open_shard(shard: Shard) -> Reader:
    """Raises ShardError where the file does not exist."""
    try:
        return open_read(shard.url)
    except FileNotFoundError:
        raise ShardError(f"{shard.url}: no such file") from None


class Member(NamedTuple):
    """One file of a tar. `key` is its example's, `ending` what follows the key in `name`, in lower case. `content` is None
    where it was not wanted, and an error where it is too large. `place` is where it begins in the tar and its bytes, None in
    a compressed tar."""

    key: str
    ending: str
    name: str
    content: bytes | ExampleError | None
    place: tuple[int, int] | None


Wanted = Callable[[str, str], tuple[int, str] | None]
"""Of a key and an ending: how many bytes of the member are read at most, and the stage of an error where it has more. None
where the member is not read."""


HIDDEN, NAMELESS = "hidden or system members", "members without an ending"


@dataclass
class PassedOver:
    """How many members were passed over, by kind, and the first one's name."""

    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        self.first = self.first or name


def tar_members(shard: Shard, wanted: Wanted, passed_over: PassedOver | None = None) -> Iterator[Member]:
    """Stream the members that belong to an example, in order, by webdataset's own key rule: the stem ends at the first dot
    of the base name. Memory is bounded by one member. The content of a wanted member that is a link is an error.

    Raises ShardError for a tar that is cut, damaged or a decompression bomb.
    """
    from webdataset.tariterators import base_plus_ext  # imports torch, which code that only reads specs does not need

    key: str | None = None
    passed_over = passed_over if passed_over is not None else PassedOver()
    with open_shard(shard) as file:
        # tarfile's own decompressor takes a truncated file for a normal end; gzip's does not.
        is_packed = without_query(shard.url).lower().endswith("gz")
        limit = max(FREE_BYTES, MAX_RATIO * shard.size) if is_packed else None
        tail = _Tail(gzip.GzipFile(fileobj=file) if is_packed else file, shard.url, limit)
        try:
            with tarfile.open(fileobj=cast(Any, tail), mode="r|", tarinfo=_Header) as tar:
                for member in tar:
                    cast(Any, tar).members = []  # tarfile keeps every member: memory would grow with the shard
                    if member.issparse():  # a few bytes can declare a terabyte of zeros
                        raise ShardError(f"{shard.url}: '{member.name}' is a sparse file; pack it without --sparse")
                    if member.isdir() or METADATA.match(member.name):
                        continue
                    if is_hidden_member(member.name):
                        passed_over.add(HIDDEN, member.name)
                        continue
                    member_key, ending = base_plus_ext(printable(member.name))
                    if member_key is None:
                        passed_over.add(NAMELESS, member.name)
                        continue
                    key, ending = member_key, ending.lower()
                    most = wanted(member_key, ending)
                    if most or member.isreg():
                        content = _content(tar, member, *most) if most else None
                        place = None if is_packed else (member.offset_data, member.size)
                        yield Member(member_key, ending, member.name, content, place)
            while tail.read(1 << 20):
                pass
            # tarfile takes a missing end mark, or a damaged header anywhere, for a normal end.
            if not TAR_END_BYTES <= tail.size - tar.offset <= tail.zeros:
                raise tarfile.ReadError("no end-of-archive mark where the members end")
        except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
            if key is None:
                _check_name(shard, is_packed)
            raise ShardError(
                f"{shard.url}: the tar is cut or damaged after key '{key}' ({e}); fetch it again"
            ) from None


def _check_name(shard: Shard, is_packed: bool) -> None:
    """Raises ShardError where a file that is no tar is what another ending stands for."""
    with open_shard(shard) as file:
        head = file.read(max(map(len, PACKED)))
    found = next((what for begins, what in PACKED.items() if head.startswith(begins)), "")
    if found == GZIP and not is_packed:
        raise ShardError(f"{shard.url}: is compressed with {GZIP}, which its name does not say; name it .tar.gz")
    if found and found != GZIP:
        raise ShardError(f"{shard.url}: is {found}, no tar that is read here; pack it as .tar or .tar.gz")
    if is_packed and found != GZIP and head:
        raise ShardError(f"{shard.url}: is not compressed with {GZIP}, as its name says; if it is a tar, name it .tar")


def read_tar(spec: DatasetSpec, shard: Shard) -> Iterator[Record]:
    """Group consecutive members of one key. Raises ShardError as `tar_members` does, and for a member that is there twice."""
    wanted_target, inner = split_field(spec.target_field)

    def wanted(_: str, ending: str) -> tuple[int, str] | None:
        if ending == wanted_target:
            return MAX_JSON_BYTES if inner else MAX_TARGET_BYTES, "target"
        return (MAX_IMAGE_BYTES, "read") if ending in spec.image else None

    key: str | None = None
    image: bytes | ExampleError | None = None
    target: bytes | ExampleError | None = None
    place: tuple[int, int] | None = None
    endings: set[str] = set()
    passed_over = PassedOver()
    for member in tar_members(shard, wanted, passed_over):
        if member.key != key:
            if key is not None:
                yield key, image, target, (), place
            key, image, target, place, endings = member.key, None, None, None, set()
        if member.ending in endings:
            raise ShardError(f"{shard.url}: '{member.name}' occurs twice; a key has one of each ending")
        endings.add(member.ending)
        if member.ending == wanted_target:
            target = _inner(member.content, spec) if inner and isinstance(member.content, bytes) else member.content
        elif member.ending in spec.image and image is None:
            image, place = member.content, member.place
        elif member.ending in spec.image:
            say_once(
                ("two images", spec.name, spec.train),
                f"data set '{spec.name}': key '{key}' has more than one image in {shard.url}, and '{member.name}' is not "
                f"read; name the ending to read: image = in [datasets.{spec.name}]",
            )
    if key is not None:
        yield key, image, target, (), place
    if passed_over.counts:
        kinds = " and ".join(f"{count:,} {kind}" for kind, count in sorted(passed_over.counts.items()))
        say_once(
            ("passed over", spec.name, spec.train),
            f"data set '{spec.name}': {kinds} are passed over in {shard.url}, first '{passed_over.first}'; the same holds "
            "for other shards",
        )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int, stage: str) -> bytes | ExampleError:
    if not member.isreg():
        return ExampleError(stage, f"{member.name} is a link, which is not followed; pack it with {DEREFERENCE}")
    if member.size > most:
        return ExampleError(stage, f"{member.name} has {member.size:,} bytes, at most {most:,} are read")
    file = tar.extractfile(member)
    return file.read() if file is not None else b""


def _inner(content: bytes, spec: DatasetSpec) -> bytes | ExampleError | None:
    try:
        return json_field(content, spec.target_field, is_label=spec.target.has_classes)
    except ExampleError as e:
        return e


class _Header(tarfile.TarInfo):
    """A header whose extensions (long names, attributes), which tarfile reads into memory, are not too large."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in EXTENSIONS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes, at most {MAX_HEADER_BYTES:,} are read")
        return super()._proc_member(tar)  # type: ignore[misc]


class _Tail:
    """Forwards reads, and counts the bytes and the zeros at their end. Raises ShardError past `limit` bytes."""

    def __init__(self, file: Any, url: str, limit: int | None) -> None:
        self._file, self._url, self._limit = file, url, limit
        self.size = self.zeros = 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        zeros = len(data) - len(data.rstrip(b"\0"))
        self.zeros = zeros + (self.zeros if zeros == len(data) else 0)
        self.size += len(data)
        if self._limit is not None and self.size > self._limit:
            raise ShardError(
                f"{self._url}: unpacks to more than {self._limit:,} bytes, {MAX_RATIO} times its size; a decompression bomb"
            )
        return data
