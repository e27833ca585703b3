"""The members of a tar as they are, with webdataset's own key rule, for copying examples without decoding them."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple, cast

from ..errors import ShardError, printable
from .readers import METADATA, TAR_END_BYTES, _member_bytes, _open, _Tail
from .shards import Shard


class Member(NamedTuple):
    """One file of a tar. `key` is its example's, `ending` what follows the key in `name`, in lower case."""

    key: str
    ending: str
    name: str
    content: bytes


def tar_members(shard: Shard, keys: Collection[str] | None, endings: Collection[str] = ()) -> Iterator[Member]:
    """Stream the members of these examples (None: of all), in the tar's order; only those with one of the endings where
    some are given.

    Memory is bounded by one member. Raises ShardError for a cut or damaged tar, StorageError where the storage fails.
    What was yielded before is valid, but the caller must not keep it as a whole shard.
    """
    from webdataset.tariterators import base_plus_ext  # imports torch, which code that only reads specs does not need

    key = ""
    with _open(shard) as file:
        tail = _Tail(gzip.GzipFile(fileobj=file) if shard.url.split("?")[0].endswith("gz") else file)
        try:
            with tarfile.open(fileobj=cast(Any, tail), mode="r|") as tar:
                for member in tar:
                    cast(Any, tar).members = []  # tarfile keeps every member: memory would grow with the shard
                    if member.issparse():
                        raise ShardError(f"{shard.url}: '{member.name}' is a sparse file; pack it without --sparse")
                    found, ending = base_plus_ext(printable(member.name))
                    if not member.isreg() or found is None or METADATA.match(member.name):
                        continue
                    key, ending = found, ending.lower()
                    if (keys is None or key in keys) and (not endings or ending in endings):
                        yield Member(key, ending, member.name, _member_bytes(tar, member))
            while tail.read(1 << 20):
                pass
            if not TAR_END_BYTES <= tail.size - tar.offset <= tail.zeros:
                raise tarfile.ReadError("no end-of-archive mark where the members end")
        except (tarfile.TarError, EOFError, OSError, zlib.error) as e:
            raise ShardError(
                f"{shard.url}: the tar is cut or damaged after key '{key}' ({e}); fetch it again"
            ) from None
