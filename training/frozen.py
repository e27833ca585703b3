"""What a run begins with is frozen in its manifest.json. A resume, and a comparison that holds the run, compare it.

Refused are other shards (their list, and their content where it is known), other models (settings, preprocessing, the
weights that they start from), another score table, other steps, another cost of a step, another precision and other
resolved settings. Said, and not refused, are other versions of libraries and other hardware: they may change the last
bits. What an older manifest does not hold is not compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from .. import __version__
from ..datasets.batches import map_in_threads
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..datasets.storage import read_bytes, version_of
from ..errors import StorageError
from ..scoring.models import Model
from ..scoring.tables.counts import all_counts
from ..scoring.tables.lookup import ScoreTable
from .mixture import Mix

# Data sets up to this size are read once more to know their content; larger ones are known by their files' versions.
CONTENT_BYTES = 1 << 28
# Asking a store for the versions of more files than these would take as long as reading some of them.
MOST_VERSIONS = 2_000
# The losses of a table up to this size are part of its digest.
MOST_LOSSES = 1_000_000
READERS = 16

# A cause comes before what follows from it: the first difference is the one that is told.
REFUSED = ("models", "flops_per_step", "began", "dataset", "score_table", "precision")
SAID = ("versions", "hardware")
# Of these, a setting that is missing on one side is a difference; elsewhere an older version did not know it.
WHOLE = ("arguments", "open_clip_config", "coarse")
DIGITS = 16
# The shards of the data set that is mixed in.
MIXED = "mixed in"
MIXED_TABLE = f"{MIXED} table"
SPLITS = ("train", "test", MIXED)


def shards_of(shards: Sequence[Shard]) -> dict[str, Any]:
    """What is known of a split: its shards, a digest of their list, and one of their content or of their files' versions."""
    members = [member for shard in shards for member in shard.members]
    folder = os.path.commonprefix(members)  # noqa: RUF071 - of URLs too; left out, as the folder may be moved
    listed = [
        (s.name, s.size, s.bytes, s.row_groups, [member.removeprefix(folder) for member in s.members]) for s in shards
    ]
    content, versions, written = _versions(shards)
    return {
        "shards": len(shards),
        "bytes": sum(s.bytes for s in shards),
        "list": _digest(listed),
        "content": content,
        "versions": versions,
        "written": written,
    }


def _versions(shards: Sequence[Shard]) -> tuple[str | None, str | None, str | None]:
    """(digest of the content, digest of the store's versions, digest of the times of writing), None where not known."""
    urls = sorted({url for shard in shards for url in shard.members or (shard.url,)})
    if sum(shard.bytes for shard in shards) > CONTENT_BYTES:
        if len(urls) > MOST_VERSIONS:
            return None, None, None
        found = _ask(version_of, urls)
        tags, times = ([pair[i] for pair in found or ()] for i in (0, 1))
        return None, _digest(tags) if tags and all(tags) else None, _digest(times) if times and all(times) else None
    contents = _ask(lambda url: hashlib.sha256(read_bytes(url)).hexdigest(), urls)
    return None if contents is None else _digest(contents), None, None


def _ask(what: Any, urls: Sequence[str]) -> list[Any] | None:
    """None where a file does not answer: whether it can be read is for others to say."""
    try:
        return map_in_threads(what, urls, READERS)
    except (StorageError, FileNotFoundError):
        return None


def versions() -> dict[str, str]:
    """Of this package and what the weights of a run depend on."""
    return {
        "curate": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "open_clip": version("open_clip_torch"),
    }


def dataset_of(dataset: DatasetSpec, shards: Sequence[Shard]) -> dict[str, Any]:
    """A data set's settings."""
    return {**dataset.to_dict(), "fingerprint": dataset.fingerprint, "shards": len(shards)}


def models_of(models: Mapping[str, Model]) -> dict[str, Any]:
    """Models as they are built again from a run's folder: all but their weights."""
    return {
        name: {**m.spec.to_dict(), "weights": "", "preprocessing": m.preprocessing.to_dict()}
        for name, m in models.items()
    }


def weights_of(model: Model) -> str:
    """A digest of the weights that a model begins with; empty where they are drawn from the seed."""
    return model.fingerprint()[:DIGITS] if model.spec.weights else ""


def table_of(table: ScoreTable, shards: Sequence[Shard]) -> dict[str, Any]:
    """What is known of the part of a score table that holds these shards."""
    counts = all_counts(table.folder)
    held = {name: counts[name] for name in sorted({shard.name for shard in shards} & set(counts))}
    examples = sum(c.examples for c in held.values())
    losses = None
    if examples <= MOST_LOSSES:
        losses = _digest([hashlib.sha256(table.shard(name).loss.tobytes()).hexdigest() for name in held])
    about = ("precision", "scale", "bias", "loss", "embeddings")
    return {
        "reference": table.reference_fingerprint[:DIGITS],
        **{name: table.manifest.get(name) for name in about},
        **({"logits": True} if table.manifest.get("logits") else {}),
        "coarse": table.manifest["reference"]["model"].get("coarse", {}),
        "shards": len(held),
        "examples": examples,
        "rows": _digest([(name, c.examples, c.failures, c.shard_size) for name, c in held.items()]),
        "losses": losses,
    }


def mix_of(mix: Mix) -> dict[str, Any]:
    """What is known of the data set that is mixed in, and of its score table."""
    shards = mix.shards or ()
    table = {MIXED_TABLE: table_of(mix.scores, shards)} if isinstance(mix.scores, ScoreTable) else {}
    return {MIXED: shards_of(shards), **table}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogateescape")).hexdigest()[:DIGITS]


def refused(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a run cannot go on with, each with both values. The arguments are manifests; `now` may hold parts alone."""
    found = []
    for path, then, today in _differences(before, _plain(now), REFUSED):
        group, name = path[-2:] if len(path) > 1 else ("", path[-1])
        if group in SPLITS:
            splits = [m["began"][group] for m in (before, now)]
            both = [_split_told(split, name) for split in splits]
            as_many = all(splits[0][size] == splits[1][size] for size in ("shards", "bytes"))
            found.append(f"{group} shards: {both[0]}, now {both[1]}{_meaning(name) if as_many else ''}")
        else:
            found.append(f"{_told(path)} = {_short(then)}, now {_short(today)}{_meaning(name)}")
    return list(dict.fromkeys(found))


def said(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences that a resumed run's log names."""
    found = [
        f"{path[-1]} {_short(then)}, now {_short(today)}"
        for path, then, today in _differences(before, _plain(now), SAID)
    ]
    for split in SPLITS:
        then, today = ((m.get("began") or {}).get(split) or {} for m in (before, now))
        if then.get("written") and today.get("written") and then["written"] != today["written"]:
            found.append(f"{split} shards of the same names and sizes, written at another time")
    return found


def _plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(manifest))
    return plain


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], parts: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    for part in parts:
        yield from _differ((part,), before.get(part), now.get(part), whole=False)


# Where something is, and what it is called; and what no message needs.
IGNORED = {"name", "folder", "train", "test", "description", "analysis", "weights"}


def _differ(path: tuple[str, ...], a: Any, b: Any, *, whole: bool) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            known = whole or (key in a and key in b)
            if not known or key == "written" or (key in IGNORED and path[0] != "began" and not whole):
                continue
            yield from _differ((*path, key), a.get(key), b.get(key), whole=whole or key in WHOLE)
    elif a != b and (whole or (a is not None and b is not None)):
        yield path, a, b


def _split_told(split: Mapping[str, Any], what: str) -> str:
    if what in ("content", "versions"):
        return f"{what} {split[what]}"
    return f"{split['shards']:,} of {split['bytes']:,} bytes (list {split['list']})"


NAMES = {
    ("began", "steps"): "steps",
    ("began", "weights"): "weights of",
    ("began", "score_table"): "score table:",
    ("began", "settings"): "",
    ("score_table", "reference"): "score table: reference",
    ("flops_per_step",): "FLOPs of a step:",
    ("models",): "model",
    ("dataset",): "data set:",
}

# What another digest means, by its name.
MEANINGS = {
    "list": "other names, or other sizes of the same sum",
    "content": "names and sizes are the same, what the files hold is not",
    "versions": "names and sizes are the same, but files were written again",
    "rows": "other counts of examples, or other sizes of shards",
    "losses": "other losses of the same examples",
    "selections": "its records were written again",
}


def _meaning(name: str) -> str:
    return f": {MEANINGS[name]}" if name in MEANINGS else ""


def _told(path: tuple[str, ...]) -> str:
    for length in (2, 1):
        if path[:length] in NAMES:
            return " ".join(filter(None, [NAMES[path[:length]], ".".join(path[length:])]))
    return ".".join(path)


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value or "drawn from the seed"
    return text if len(text) <= 100 else f"{text[:97]}..."
