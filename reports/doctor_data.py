"""A data set: can its shards be listed, read and decoded, and do captions fit the text model?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from statistics import median
from typing import Literal

from ..datasets.batches import decode_all, decode_threads
from ..datasets.decoding import Geometry
from ..datasets.fields import split_field
from ..datasets.readers import Example, Failure, read_shard
from ..datasets.shards import Shard, Split, list_shards
from ..datasets.spec import DatasetSpec
from ..datasets.tars import tar_members
from ..errors import CurateError
from ..units import counted, format_bytes
from .doctor_findings import Finding

# Of each sampled shard. A thousand examples take about a second.
MAX_EXAMPLES = 1000
MAX_MEMBERS = 5000
MAX_DECODED = 256
GEOMETRY = Geometry(size=224)
# `--max-failures` of score-reference and train.
ALLOWED = 0.01
CLIP_CONTEXT = 77


def look_at_data(spec: DatasetSpec, shards: int) -> list[Finding]:
    """Findings on every source (a pattern of `train` or `test`); of each, some shards are read."""
    sources: list[tuple[Split, str]] = [("train", p) for p in spec.train] + [("test", p) for p in spec.test]
    return [finding for split, pattern in sources for finding in _source(spec, split, pattern, shards)]


def _source(spec: DatasetSpec, split: Split, pattern: str, count: int) -> Iterator[Finding]:
    about = f"data set {spec.name}: {split} = {pattern}"
    check = f"ls -l {pattern}" if "://" not in pattern else "curate doctor --dataset " + spec.name
    alone = replace(spec, train=(pattern,), test=())
    try:
        shards = list_shards(alone)
    except CurateError as e:
        yield Finding(about, "act", str(e), check)
        return
    sizes = [shard.bytes for shard in shards]
    spread = f"; a shard has {_size(min(sizes))} to {_size(max(sizes))}, median {_size(median(sizes))}"
    yield Finding(
        about,
        "ok",
        f"{counted(len(shards), 'shard')}, {_size(sum(sizes))}" + (spread if len(shards) > 1 else ""),
    )
    step = max(1, (len(shards) - 1) // max(1, count - 1))
    sampled = shards[::step][:count] if count > 1 else shards[:1]
    records: list[Example | Failure] = []
    for shard in sampled:
        try:
            records += islice(read_shard(alone, shard), MAX_EXAMPLES)
        except CurateError as e:
            is_tar = spec.format == "webdataset" and "://" not in shard.url
            yield Finding(about, "act", str(e), f"tar tvf {shard.url} | tail" if is_tar else check)
    yield from _endings(alone, sampled[0], about)
    yield from _examples(spec, records, about, len(sampled))


def _endings(spec: DatasetSpec, shard: Shard, about: str) -> Iterator[Finding]:
    """What the tar's members end in, where the ones that the data set names are not there."""
    if spec.format != "webdataset":
        return
    try:
        found = Counter(member.ending for member in islice(tar_members(shard, lambda *_: None), MAX_MEMBERS))
    except CurateError:  # told where the shard was read
        return
    shown = ", ".join(f".{name} {count:,}" for name, count in found.most_common(8)) or "nothing"
    ending, _ = split_field(spec.target_field)
    missing = [f".{ending} ({spec.target.word})"] if ending not in found else []
    if not set(spec.image) & set(found):
        missing.append("an image (" + ", ".join(spec.image) + ")")
    if missing:
        line = f'{spec.target.setting} = "..."   # in [datasets.{spec.name}] of curate.toml'
        yield Finding(
            about, "act", f"no member of '{shard.name}' is {' or '.join(missing)}; its members: {shown}", line
        )
    else:
        yield Finding(about, "ok", f"members of '{shard.name}': {shown}")


def _examples(spec: DatasetSpec, records: Sequence[Example | Failure], about: str, shards: int) -> Iterator[Finding]:
    failures = [r for r in records if isinstance(r, Failure)]
    examples = [r for r in records if isinstance(r, Example)]
    keys = f", keys such as '{examples[0].key}'" if examples else ""
    some = examples[:: max(1, len(examples) // MAX_DECODED)][:MAX_DECODED]
    threads = decode_threads()
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        decoded = decode_all(some, GEOMETRY, pool)
    seconds = time.perf_counter() - started
    undecoded = [one for one in decoded if isinstance(one, Failure)]
    # Only some were decoded, so their share of bad ones stands for all that were read.
    bad = len(failures) + len(undecoded) / max(1, len(some)) * len(examples)
    share = bad / len(records) if records else 0.0
    level: Literal["ok", "note", "act"] = "act" if share > ALLOWED or not records else "note" if bad else "ok"
    reasons = Counter(f"{f.stage}: {f.reason}" for f in (*failures, *undecoded))
    why = "; " + "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3)) if reasons else ""
    first = next(iter((*failures, *undecoded)), None)
    where = f" (first: shard '{first.shard}', key '{first.key}')" if first else ""
    allowed = min(100, max(2, round(200 * share)))
    line = f"curate score-reference --dataset {spec.name} --max-failures {allowed}% --reference ..."
    yield Finding(
        about,
        level,
        f"{counted(len(records), 'example')} of {counted(shards, 'shard')} read{keys}; {100 * share:.2f} % bad{why}{where}",
        line if level == "act" else "",
    )
    if some and seconds > 0:
        yield Finding(
            about,
            "ok",
            f"decoding to {GEOMETRY.size} pixels a side: {len(some) / seconds:,.0f} images/s in {counted(threads, 'thread')}",
        )
    captions = [example.target for example in examples if isinstance(example.target, str)]
    if captions:
        yield _lengths(captions, about)


def _lengths(captions: Sequence[str], about: str) -> Finding:
    """Tokens of captions by CLIP's own tokenizer, against its context."""
    from open_clip.tokenizer import SimpleTokenizer

    encode = SimpleTokenizer().encode
    lengths = sorted(len(encode(caption)) + 2 for caption in captions)  # with its start and its end
    long = sum(length > CLIP_CONTEXT for length in lengths)
    spread = f"captions have {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}"
    if not long:
        return Finding(about, "ok", f"{spread}; CLIP's context is {CLIP_CONTEXT}")
    cut = f"{long / len(lengths):.1%} are longer than CLIP's context, {CLIP_CONTEXT}, and are cut"
    return Finding(about, "note", f"{spread}; {cut}")


def _size(count: float) -> str:
    """Bytes in the largest unit that fits."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return format_bytes(round(count)) + " bytes"
