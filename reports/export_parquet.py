"""Parquet with images: for Hugging Face's `datasets`, and the rows of a data set in Parquet as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..datasets.columns import key_text
from ..datasets.readers import Example, Failure, read_shard
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..datasets.storage import open_read
from ..datasets.tars import open_shard
from ..datasets.writing import whole_file
from ..errors import ShardError
from .export_folders import Part
from .export_picks import check_found
from .export_tars import image_ending

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Rows are written to the disk when so many, or so many bytes of images, are in memory.
GROUP_ROWS, GROUP_BYTES = 1000, 64 << 20


def write_huggingface(url: str, spec: DatasetSpec, parts: Sequence[Part]) -> None:
    """One Parquet file that `datasets.load_dataset` reads: image {bytes, path}, the label or caption, shard, key, and the
    query's other columns of simple types. Features are in the schema's metadata, as that library writes them."""
    target = spec.target.fields["parquet"]
    extra = [f for f in parts[0][1].schema if f.name not in ("image", target, "shard", "key") and _value(f.type)]
    kind = pa.int64() if spec.target.has_classes else pa.string()
    fields = [("image", IMAGE), (target, kind), ("shard", pa.string()), ("key", pa.string())]
    schema = pa.schema([*(pa.field(*f) for f in fields), *(f.with_nullable(True) for f in extra)])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": _features(schema, spec, target)}})})
    with whole_file(url) as partial, pq.ParquetWriter(partial, schema) as writer:
        held: list[dict[str, Any]] = []
        for row in _rows(spec, parts, target, [f.name for f in extra]):
            held.append(row)
            if len(held) == GROUP_ROWS or sum(len(r["image"]["bytes"]) for r in held) > GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(held, schema))
                held = []
        if held:
            writer.write_table(pa.Table.from_pylist(held, schema))


def _rows(spec: DatasetSpec, parts: Sequence[Part], target: str, extra: Sequence[str]) -> Iterator[dict[str, Any]]:
    for shard, table in parts:
        place = {key: i for i, key in enumerate(table["key"].to_pylist())}
        others = {name: table[name].to_pylist() for name in extra}
        found, bad = set[str](), ""
        for example in read_shard(spec, shard):
            if example.key not in place:
                continue
            if isinstance(example, Failure):
                bad = bad or f"{example.stage}: {example.reason}"
                continue
            found.add(example.key)
            values = {name: column[place[example.key]] for name, column in others.items()}
            yield {"image": _image(example), target: example.target, "shard": shard.name, "key": example.key, **values}
        check_found(shard, set(place), found, bad)


def _image(example: Example) -> dict[str, Any]:
    name = example.key.rsplit("/", 1)[-1]
    ending = image_ending(example.image)
    return {"bytes": example.image, "path": name if name.endswith(f".{ending}") else f"{name}.{ending}"}


def _features(schema: pa.Schema, spec: DatasetSpec, target: str) -> dict[str, Mapping[str, Any]]:
    features: dict[str, Mapping[str, Any]] = {
        field.name: {"dtype": _value(field.type), "_type": "Value"} for field in schema if field.name != "image"
    }
    if spec.target.has_classes and spec.classes:
        features[target] = {"names": list(spec.classes), "_type": "ClassLabel"}
    return {"image": {"_type": "Image"}, **features}


def _value(kind: pa.DataType) -> str:
    """The name that the library gives a simple type; empty for any other."""
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_string(kind):
        return str(kind)
    return {"float": "float32", "double": "float64"}.get(str(kind), "")


def write_source_rows(url: str, spec: DatasetSpec, parts: Sequence[Part]) -> None:
    """The chosen rows of Parquet shards, with all their columns and the source's own schema."""
    with open_read(parts[0][0].url) as file:
        schema = pq.read_schema(file)
    with whole_file(url) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for shard, table in parts:
            wanted, found = set(table["key"].to_pylist()), set[str]()
            for keys, batch in _batches(spec, shard):
                mask = [key in wanted for key in keys]
                found.update(key for key, kept in zip(keys, mask, strict=True) if kept)
                if batch.schema != schema:
                    raise ShardError(
                        f"{shard.url}: its columns are not those of {parts[0][0].url}; export without --shard-size"
                    )
                writer.write_table(pa.Table.from_batches([batch]).filter(pa.array(mask)))
            check_found(shard, wanted, found)


def _batches(spec: DatasetSpec, shard: Shard) -> Iterator[tuple[list[str], pa.RecordBatch]]:
    """Every batch of a shard, and the key of each row, as the reader makes it."""
    try:
        with open_shard(shard) as file:
            parquet = pq.ParquetFile(file)
            first, last = shard.row_groups or (0, parquet.num_row_groups)
            row = sum(parquet.metadata.row_group(g).num_rows for g in range(first))
            for batch in parquet.iter_batches(batch_size=GROUP_ROWS, row_groups=list(range(first, last))):
                keys = [str(row + i) for i in range(batch.num_rows)]
                if spec.key:
                    values = batch[spec.key].to_pylist()
                    keys = [key_text(value, shard.url, spec.key, row + i) for i, value in enumerate(values)]
                yield keys, batch
                row += batch.num_rows
    except (pa.ArrowException, OSError, KeyError) as e:
        raise ShardError(f"{shard.url}: not a readable Parquet file: {e}") from None
