"""What a scoring actor does: it reads the rows of a lease, decodes them small and scores them by the weights that it is
given. It knows nothing of Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..datasets.batches import decode_all
from ..datasets.readers import Failure
from ..datasets.shards import Shard
from ..datasets.spec import DatasetSpec
from ..scoring.forward import score_batch
from ..scoring.models import Model
from ..scoring.settings import OnMissing, Precision
from ..scoring.tables.lookup import ScoreTable
from .exchange import Found
from .loading import LoadedShard, Row, ShardLoader, UnreadableError
from .views import stacked


@dataclass(frozen=True)
class Item:
    """What the learner needs to read an example of a shard that it has not in memory: all but the image."""

    key: str
    target: int | str
    place: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """All that a scorer needs, to be sent to it. `table` is a score table's folder and manifest, None without one."""

    dataset: DatasetSpec
    shards: Sequence[Shard]
    table: tuple[str, dict[str, Any]] | None
    on_missing: OnMissing
    model: Model
    precision: Precision
    micro_batch: int
    host_bytes: int


class LeaseScorer:
    """Scores leases on a device, with so many threads that decode. It keeps shards in memory as far as `host_bytes` go."""

    def __init__(self, job: ScoringJob, device: torch.device, threads: int) -> None:
        self.job, self.device, self.threads = job, device, threads
        self.model = job.model.to(device)
        self.version = -1
        self._loader = ShardLoader(
            job.dataset,
            job.shards,
            None if job.table is None else ScoreTable(*job.table),
            embeddings=False,
            on_missing=job.on_missing,
            cache_bytes=0,
            image_bytes=0,
            host_bytes=job.host_bytes,
        )
        self._held: dict[int, LoadedShard] = {}  # the one used last is the last
        self._decoders = ThreadPoolExecutor(threads)

    def load(self, version: int, weights: Mapping[str, np.ndarray]) -> None:
        """From now on score by these weights."""
        self.model.module.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        self.version = version

    def score(self, shard: int, rows: np.ndarray) -> Found:
        """Both losses of these rows of a shard. Raises the shard's own error where it cannot be read."""
        loaded = self._load(shard)
        wanted = set(rows.tolist())
        usable = [row for row in loaded.rows if row.example.row in wanted]
        failures = [failure for failure in loaded.failures if failure.row in wanted]
        left_out = Counter(reason for row, reason in loaded.left_out if row in wanted)
        geometry = self.model.geometry
        seen = decode_all([row.example for row in usable], geometry, self._decoders, self.threads)
        failures += [one for one in seen if isinstance(one, Failure)]
        both = [(row, one) for row, one in zip(usable, seen, strict=True) if not isinstance(one, Failure)]
        kept = [row for row, _ in both]
        loss = self._losses(kept, [one for _, one in both]) if kept else np.empty(0, dtype=np.float32)
        return Found(
            rows=np.array([row.example.row for row in kept], dtype=np.int64),
            online_loss=loss,
            reference_loss=np.array([row.reference_loss for row in kept], dtype=np.float32),
            items=[Item(row.example.key, row.example.target, row.example.place) for row in kept],
            version=self.version,
            failures=failures,
            left_out=left_out,
        )

    def _losses(self, rows: Sequence[Row], seen: Sequence[Any]) -> np.ndarray:
        """The model's, float32 [n]."""
        scored = score_batch(
            self.model,
            stacked(seen, self.model.geometry).to(self.device),
            self.model.targets([row.example.target for row in rows]).to(self.device),
            precision=self.job.precision,
            micro_batch=self.job.micro_batch,
        )
        loss: np.ndarray = scored.loss.float().cpu().numpy()
        return loss

    def _load(self, shard: int) -> LoadedShard:
        if shard not in self._held:
            try:
                found = self._loader.load(shard)
            except UnreadableError as e:
                raise e.error from e
            if self._loader.keeps_all:
                return found
            self._held[shard] = found
            held = sum(self.job.shards[one].bytes for one in self._held)
            for oldest in list(self._held)[:-1]:
                if held <= self.job.host_bytes:
                    break
                held -= self.job.shards[oldest].bytes
                del self._held[oldest]
        else:
            self._held[shard] = self._held.pop(shard)
        return self._held[shard]
