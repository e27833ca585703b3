"""Files in folders."""

from pathlib import Path


def touch(folder: Path, *names: str, size: int = 3) -> None:
    """Files of so many bytes, with the folders above them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its content; locks aside."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
