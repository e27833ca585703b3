"""A small collection as img2dataset leaves it: captioned digits in tars with .json members, Parquet next to each, a table."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from curate.datasets.preparers.writer import encode_png
from curate.datasets.shards import Shard
from curate.datasets.spec import DatasetSpec, add_dataset, find_dataset, load_config
from curate.datasets.targets import hash_target
from curate.scoring.models import ModelSpec
from curate.scoring.tables.schema import score_schema
from curate.scoring.tables.write import commit_shard, write_manifest
from curate.scoring.tasks import find_task
from sklearn.datasets import load_digits

from support.tars import write_tar

NAMES = "zero one two three four five six seven eight nine".split()
SHARDS, PER_SHARD = 3, 20


@dataclass(frozen=True)
class One:
    """An example: where it is, what the tar holds of it, and its scores by the reference and by an online model."""

    shard: str
    row: int
    key: str
    uid: str
    caption: str
    members: list[tuple[str, bytes]]
    loss: float
    online_loss: float


@dataclass(frozen=True)
class Collection:
    """`curate.toml`, tars, and a score table; `online` is a second table of the same data."""

    root: Path
    examples: list[One]
    scores: str
    online: str

    @property
    def toml(self) -> Path:
        return self.root / "curate.toml"

    def spec(self, name: str = "pairs") -> DatasetSpec:
        return find_dataset(name, load_config(self.toml))


def make_collection(root: Path) -> Collection:
    source, generator = load_digits(), np.random.default_rng(0)
    examples = []
    for number in range(SHARDS * PER_SHARD):
        shard, row = f"{number // PER_SHARD:05d}", number % PER_SHARD
        key, caption = f"{shard}{row:04d}", f"the digit {NAMES[source.target[number]]}"
        uid = hashlib.md5(key.encode()).hexdigest()
        grey = np.rint(source.images[number] * 255 / 16).astype(np.uint8)
        about = json.dumps({"uid": uid, "key": key, "caption": caption}, indent=4).encode()
        contents = {"png": encode_png(grey), "txt": caption.encode(), "json": about}
        members = [(f"{key}.{ending}", content) for ending, content in contents.items()]
        loss, online = np.float32(generator.normal(size=2)).tolist()
        examples.append(One(shard, row, key, uid, caption, members, loss, online))
    for shard in {one.shard for one in examples}:
        own = [one for one in examples if one.shard == shard]
        write_tar(root / "data" / f"{shard}.tar", [member for one in own for member in one.members])
        pq.write_table(_metadata(own), root / "data" / f"{shard}.parquet")
    add_dataset(root / "curate.toml", "pairs", {"train": f"data/{{00000..{SHARDS - 1:05d}}}.tar", "text": "txt"})
    spec = find_dataset("pairs", load_config(root / "curate.toml"))
    scores, online = (str(root / name) for name in ("scores", "online"))
    write_table(scores, spec, examples, [one.loss for one in examples])
    write_table(online, spec, examples, [one.online_loss for one in examples])
    return Collection(root, examples, scores, online)


def _metadata(own: list[One]) -> pa.Table:
    """One row for each URL, as img2dataset writes them; the last one could not be fetched."""
    rows = [
        {
            "url": f"http://x/{i}",
            "key": one.key,
            "status": "success",
            "caption": one.caption,
            "uid": one.uid,
            "width": 8 + i,
        }
        for i, one in enumerate(own)
    ]
    failed = {"url": "http://x/failed", "key": f"{own[0].shard}9999", "status": "failed_to_download"}
    return pa.Table.from_pylist([*rows, failed])


def write_table(root: str, spec: DatasetSpec, examples: list[One], losses: list[float]) -> str:
    """A complete score table of these examples, without a model."""
    folder = f"{root}/dataset={spec.name}/reference=clip-0123abcd"
    fingerprint = "0123abcd" * 8
    for name in sorted({one.shard for one in examples}):
        own = [(one, loss) for one, loss in zip(examples, losses, strict=True) if one.shard == name]
        columns = {
            "shard": [name] * len(own),
            "row": [one.row for one, _ in own],
            "key": [one.key for one, _ in own],
            "target_hash": [hash_target(one.caption.encode()) for one, _ in own],
            "loss": [loss for _, loss in own],
            "similarity": [-loss for _, loss in own],
        }
        schema = score_schema(find_task("image-text"))
        table = pa.Table.from_pydict({field: columns[field] for field in schema.names}, schema=schema)
        shard = Shard(name=name, url=name, size=1, bytes=1)
        commit_shard(folder, shard, table, [], {"reference_fingerprint": fingerprint})
    model = ModelSpec(name="clip", task=spec.task, architecture="clip", weights="/nowhere/clip.safetensors").to_dict()
    reference = {"name": "clip", "fingerprint": fingerprint, "model": model}
    write_manifest(
        folder,
        {
            "dataset": spec.name,
            "dataset_fingerprint": spec.fingerprint,
            "task": spec.task,
            "reference": reference,
            "embeddings": False,
        },
    )
    return folder
