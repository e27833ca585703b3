"""Patterns of shards to files: braces, wildcards, folders of shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from unicodedata import normalize

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from ..errors import ReadError, ShardError, SpecError
from .hidden import is_hidden
from .notices import counted, say_once
from .storage import (
    Entry,
    exists,
    full_url,
    glob,
    is_folder,
    list_below,
    list_entries,
    list_names,
    size_of,
    without_query,
)

SHARD_ENDINGS = {"webdataset": (".tar.gz", ".tgz", ".tar"), "parquet": (".parquet", ".pq")}
# Web servers have no listings to rely on. In a folder of a store so many named files are found by listing it.
WEB, LISTED_FROM = ("http://", "https://"), 16
# What is left out, in words that follow a number.
HIDDEN, READ_ALREADY = "hidden or system file", "link to a folder that is read already"
NO_FILE = "pipe or device"


def is_shard(name: str, format: str) -> bool:
    """Whether a path, or a URL without its query, ends as a shard of this format does, in small or capital letters."""
    return name.lower().endswith(SHARD_ENDINGS[format])


def expand_braces(dataset: str, pattern: str) -> list[str]:
    """Raises SpecError where they are unbalanced."""
    if "{" in pattern and "://" not in pattern and os.path.lexists(pattern):  # a file's own name
        return [pattern]
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError:
        raise SpecError(f"data set '{dataset}': unbalanced braces in '{pattern}'") from None


def has_wildcard(pattern: str) -> bool:
    if pattern.startswith(WEB):
        pattern = pattern.split("?")[0]  # a query
    return any(mark in pattern for mark in "*?[")


def expand(dataset: str, pattern: str, format: str) -> list[tuple[str, int]]:
    """(url, size) of every file that a pattern names, in order.

    Raises ShardError where it names none or where one is missing; SpecError; StorageError where the storage fails.
    """
    urls = expand_braces(dataset, pattern)
    found: list[tuple[str, int]] = []
    plain: list[str] = []
    for url in urls:
        if (has_wildcard(url) and not _is_file(url)) or is_shards_folder(url, format):
            found += _named_files(dataset, plain)
            plain = []
            matches = matching(url, dataset) if has_wildcard(url) else in_folder(url, dataset, format)
            if not matches:
                spelled = other_spelling(_folders_of(url))
                raise ShardError(
                    f"data set '{dataset}': no shard matches '{url}'{spelled or '; check the path and its quoting'}"
                )
            found += [(match, int(entry["size"] or 0)) for match, entry in matches.items()]
        else:
            plain.append(url)
    return found + _named_files(dataset, plain)


def other_spelling(path: str) -> str:
    """The end of an error about a local path that is not there: that a name in it is there with accents as characters of
    their own (NFD, as macOS writes them) or without (NFC). Both look the same. Else empty."""
    if "://" in path:
        return ""
    above = ""
    for name in os.path.abspath(path).split("/")[1:]:
        if not os.path.lexists(f"{above}/{name}"):
            found = next((n for n in list_names(above or "/") if normalize("NFC", n) == normalize("NFC", name)), None)
            return f"; '{found}' is there in another Unicode spelling: type that one, or rename it" if found else ""
        above += f"/{name}"
    return ""


def _folders_of(pattern: str) -> str:
    """The folders of a pattern before its first wildcard."""
    return "/".join(takewhile(lambda part: not has_wildcard(part), pattern.split("/")))


def _is_file(url: str) -> bool:
    """Whether brackets are part of a file's own name."""
    return "[" in url and exists(url)


def matching(pattern: str, dataset: str) -> dict[str, Entry]:
    """What a pattern with wildcards matches, but for folders and hidden files, which are passed over as a shell does."""
    parts = full_url(pattern).split("/")
    fixed = next(i for i, part in enumerate(parts) if has_wildcard(part))
    found = {url: entry for url, entry in glob(pattern).items() if entry.get("type") != "directory"}
    if not any(part.startswith(".") for part in parts[fixed:]):  # a pattern that asks for hidden files gets them
        hidden = {url for url in found if is_hidden("/".join(url.split("/")[fixed:]))}
        say_left_out(dataset, pattern, [HIDDEN] * len(hidden), min(hidden, default=""))
        found = {url: entry for url, entry in found.items() if url not in hidden}
    return found


def is_shards_folder(url: str, format: str) -> bool:
    """Whether a path without a wildcard is a folder of shards."""
    return not is_shard(without_query(url), format) and not has_wildcard(url) and is_folder(url)


def in_folder(folder: str, dataset: str, format: str) -> dict[str, Entry]:
    """The shards below a folder. Names with a leading `_` are what engines write beside them."""
    links: list[str] = []
    found, left_out = {}, []
    for key, (url, entry) in list_below(folder, links).items():
        if is_hidden(key) or any(part.startswith("_") for part in key.split("/")):
            left_out.append(HIDDEN)
        elif is_shard(key, format):
            found[url] = entry
        else:
            left_out.append(ending_word(key))
    say_left_out(dataset, folder, [*left_out, *[READ_ALREADY] * len(links)])
    return found


def say_left_out(dataset: str, where: str, kinds: Sequence[str], first: str = "") -> None:
    """Count what is passed over, and say it once."""
    if kinds:
        example = f"; first '{first}'" if first else ""
        say_once((dataset, where), f"data set '{dataset}': passed over in {where}: {counted(kinds)}{example}")


def ending_word(key: str) -> str:
    """`.heic`, or what a file without an ending is called."""
    stem, dot, ending = key.rsplit("/", 1)[-1].rpartition(".")
    return f".{ending.lower()[:12]}" if dot and stem else "without an ending"


def _named_files(dataset: str, urls: Sequence[str]) -> list[tuple[str, int]]:
    listed = _listed(urls)

    def size(url: str) -> int | None:
        try:
            return listed[full_url(url)] if listed and full_url(url) in listed else size_of(url)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(size, urls)) if any("://" in u for u in urls) else [size(u) for u in urls]
    missing = [url for url, n in zip(urls, sizes, strict=True) if n is None]
    if missing:
        what = "no shard matches" if len(missing) == len(urls) else f"{len(missing)} of {len(urls)} shards are missing,"
        spelled = other_spelling(missing[0]) or "; check the path or its range"
        raise ShardError(f"data set '{dataset}': {what} {missing[0]}{spelled}")
    return [(url, n) for url, n in zip(urls, sizes, strict=True) if n is not None]


def _listed(urls: Sequence[str]) -> dict[str, int]:
    """Sizes, by full URL, of what stores list in the folders of which many files are named: one request for a thousand of
    them, in place of one for each."""
    folders = Counter(url.rpartition("/")[0] for url in urls if "://" in url and not url.startswith(WEB))
    found: dict[str, int] = {}
    for folder, named in folders.items():
        if named >= LISTED_FROM:
            with suppress(ReadError):  # a store may let files be read that it does not let be listed
                entries = list_entries(folder).items()
                found |= {
                    u: int(e["size"]) for u, e in entries if e.get("type") == "file" and e.get("size") is not None
                }
    return found


def format_of_folder(folder: str, images: Sequence[str]) -> str:
    """The format of what is in a folder: images, or shards where there is no image. `folder` where it is not known."""
    found = ""
    for name in _names_below(folder):
        if name.rsplit(".", 1)[-1].lower() in images:
            return "folder"
        if not name.startswith(("_", ".", "metadata.")):
            found = found or next((format for format in SHARD_ENDINGS if is_shard(name, format)), "")
    return found or "folder"


def _names_below(folder: str, depth: int = 4) -> Iterator[str]:
    """Base names of files. On object stores only the first folder of each level is looked into."""
    if "://" not in folder:
        for _, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            yield from sorted(names)
        return
    entries = list_entries(folder) if depth else {}
    yield from (url.rsplit("/", 1)[-1] for url, entry in entries.items() if entry["type"] != "directory")
    inner = [url.rstrip("/") for url, entry in entries.items() if entry["type"] == "directory"]
    visible = [url for url in inner if not is_hidden(url.rsplit("/", 1)[-1])]
    if visible:
        yield from _names_below(visible[0], depth - 1)
