"""Reading a tar: consecutive members of one key are an example, by webdataset's own rule."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import ExampleError, ShardError, printable
from .fields import MAX_JSON_BYTES, json_field, split_field
from .hidden import is_hidden_member
from .notices import say_once
from .shards import Shard
from .spec import DatasetSpec
from .storage import Reader, open_read, without_query
from .tar_headers import CUT, MAX_RATIO, Header, TarStream, headers
from .targets import MAX_TARGET_BYTES

# key, the image's bytes, the target's stored bytes (an error concerns this example alone), the meanings of its numbers, and
# the image's place in the file, as `Example` has it.
Record = tuple[str, bytes | ExampleError | None, bytes | ExampleError | None, tuple[str, ...], tuple[int, int] | None]

# More than an uncompressed image of as many pixels as decoding.py takes.
MAX_IMAGE_BYTES = 512 << 20
DEREFERENCE = "tar --dereference --hard-dereference"
# Small files may unpack to anything.
FREE_BYTES = 1 << 30
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


def open_shard(shard: Shard, *, whole: bool = False) -> Reader:
    """As `open_read` does, but raises ShardError where the file does not exist."""
    try:
        return open_read(shard.url, whole=whole)
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
    with open_shard(shard, whole=True) as file:
        # tarfile's own decompressor takes a truncated file for a normal end; gzip's does not.
        is_packed = without_query(shard.url).lower().endswith("gz")
        limit = max(FREE_BYTES, MAX_RATIO * shard.size) if is_packed else None
        stream = TarStream(gzip.GzipFile(fileobj=file) if is_packed else file, shard.url, limit)
        try:
            for member in headers(stream):
                name = member.name
                if member.is_sparse:  # a few bytes can declare a terabyte of zeros
                    raise ShardError(f"{shard.url}: '{name}' is a sparse file; pack it without --sparse")
                if member.is_folder or METADATA.match(name):
                    continue
                if is_hidden_member(name):
                    passed_over.add(HIDDEN, name)
                    continue
                member_key, ending = base_plus_ext(name if name.isascii() else printable(name))
                if member_key is None:
                    passed_over.add(NAMELESS, name)
                    continue
                key, ending = member_key, ending.lower()
                most = wanted(key, ending)
                if most or member.is_file:
                    content = _content(stream, member, *most) if most else None
                    yield Member(key, ending, name, content, None if is_packed else (member.first, member.size))
        except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
            if key is None:
                _check_name(shard, is_packed)
            where = "at its beginning" if key is None else f"after key '{key}'"
            raise ShardError(f"{shard.url}: the tar is cut or damaged {where} ({e}); fetch it again") from None


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


def _content(stream: TarStream, member: Header, most: int, stage: str) -> bytes | ExampleError:
    if not member.is_file:
        return ExampleError(stage, f"{member.name} is a link, which is not followed; pack it with {DEREFERENCE}")
    if member.size > most:
        return ExampleError(stage, f"{member.name} has {member.size:,} bytes, at most {most:,} are read")
    content = stream.read(member.size)
    if len(content) < member.size:
        raise tarfile.ReadError(CUT)
    return content


def _inner(content: bytes, spec: DatasetSpec) -> bytes | ExampleError | None:
    try:
        return json_field(content, spec.target_field, is_label=spec.target.has_classes)
    except ExampleError as e:
        return e
