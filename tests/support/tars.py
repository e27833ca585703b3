"""Tars: written, read, dealt anew, with other members."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A tar of these (name, content), in this order, repeated names and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read_tar(path: Path) -> list[tuple[str, bytes]]:
    """(name, content) of every member, in order."""
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def reshard(source: Iterable[Path], folder: Path, shards: int) -> list[Path]:
    """The same examples (two members each) dealt over many small tars, in order."""
    members = [member for path in source for member in read_tar(path)]
    per_shard = 2 * -(-len(members) // 2 // shards)
    return [
        write_tar(folder / f"{i:05d}.tar", members[i * per_shard : (i + 1) * per_shard])
        for i in range(-(-len(members) // per_shard))
    ]


def replace_member(path: Path, replacements: Mapping[str, bytes | None]) -> None:
    """Give members of a tar other bytes (None leaves one out)."""
    names = [name for name, _ in read_tar(path)]
    assert set(replacements) <= set(names), f"{sorted(replacements)} not all in {names[:4]}..."
    members = [(name, replacements.get(name, content)) for name, content in read_tar(path)]
    write_tar(path, [(name, content) for name, content in members if content is not None])
