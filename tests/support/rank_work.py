"""What ranks do in tests. It stands here because a new process can import it by name."""

import os
import signal
import time
import zlib
from itertools import islice

import torch
from curate.datasets import Geometry
from curate.errors import ShardError
from curate.scoring.joint import select_jointly
from curate.scoring.losses import Pairs
from curate.scoring.selector import Selector
from curate.studies.launched import run_launched
from curate.training import loading
from curate.training.sub import SubBatches
from curate.training.superbatch import SuperBatches
from torch.nn.functional import normalize


def rows_of(rank):
    """As many rows as the rank's number, so that rank 0 has none."""
    return torch.arange(rank * 6, dtype=torch.float32).reshape(rank, 2, 3) + 100 * rank


def everything(group):
    gathered = group.gather(rows_of(group.rank))
    parts = [torch.full((1 + group.rank + to, 2), 10 * group.rank + to, dtype=torch.int16) for to in range(group.size)]
    parts[-1] = parts[-1][:0]
    sent = [0 if group.rank == group.size - 1 else 1 + source + group.rank for source in range(group.size)]
    received = group.exchange(parts, sent)
    tensors = [torch.full((3,), float(group.rank)), torch.tensor(group.rank)]
    group.broadcast(tensors)
    last = torch.tensor([group.rank])
    group.broadcast([last], source=group.size - 1)
    part = group.part(range(1, group.size))
    return {
        "gathered": [part.numpy() for part in gathered],
        "received": [part.numpy() for part in received],
        "shared": group.share({"rank": group.rank, "key": "é" * group.rank}),
        "first": group.first(lambda: f"made by {group.rank}"),
        "sum": group.sum(torch.tensor([1.0, group.rank])).tolist(),
        "broadcast": [tensor.tolist() for tensor in tensors],
        "of the last": last.tolist(),
        "part": (part.rank, part.size, int(part.sum(torch.tensor(group.rank)))),
    }


def fails_on(group, bad):
    with group.together():
        if group.rank in bad:
            raise ShardError(f"shard '{group.rank}.tar' is cut") if group.rank else OSError(28, "No space left")


def dies(group):
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.gather(torch.ones(2))


def hangs_on_1(group, spec):
    """Rank 1's store answers four seconds late."""
    if group.rank == 1:
        read = loading.read_shard

        def late(*how):
            time.sleep(4)
            yield from read(*how)

        loading.read_shard = late
    choose(group, spec, 2, None, {})


class KeyScorer:
    """Losses that follow from an example's name alone, so that they are the same wherever it is scored."""

    def score(self, batch):
        losses = [zlib.crc32(f"{s}/{k}".encode()) / 2**32 for s, k in zip(batch.shards, batch.keys, strict=True)]
        return torch.tensor(losses, dtype=torch.float32)


def run_what_is_launched(group, file):
    run_launched(file)


def choose_jointly(group):
    """What a joint policy chooses of 500 pairs, by (loss, sampler, which models): (index, its pairs' own scores)."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.randint(400, (500,), generator=generator)  # some captions are identical, across the ranks' rows
    online, reference = (
        Pairs(*(normalize(torch.randn(500, 24, generator=generator), dim=-1) for _ in range(2)), scale, -2.0, groups)
        for scale in (9.0, 14.0)
    )
    found = {}
    for loss in ("sigmoid", "softmax"):
        for sampler in ("softmax", "topk"):
            for which, pairs in {"both": (online, reference), "one": (None, reference)}.items():
                chance = torch.Generator().manual_seed(7)
                choice = select_jointly(
                    *pairs, 120, loss=loss, n_chunks=5, sampler=sampler, generator=chance, ranks=group
                )
                found[loss, sampler, which] = choice.index.tolist(), choice.score.tolist()
    return found


def choose(group, spec, steps, state, options):
    """Steps of a stream of sub-batches that score by `KeyScorer`: what this rank was given, and the state after them."""
    options = {"size": 60, "b": 21, "policy": "hard-learner", "selector_seed": 3, "late": False, **options}
    size, b, policy, seed, late = (options.pop(name) for name in ("size", "b", "policy", "selector_seed", "late"))
    local, sampler = options.pop("local", False), options.pop("sampler", "softmax")
    if seed == "rank":
        seed = group.rank
    batches = SuperBatches(spec, size, views={"image": Geometry(size=8)}, group=group, **options)
    scorer = KeyScorer()
    if late:
        scorer.views = ()
    subs = SubBatches(batches, Selector(policy, b, seed=seed, sampler=sampler), scorer=scorer, local=local)
    if state is not None:
        subs.load_state_dict(state)
    found = []
    for sub in islice(subs, steps):
        drawn = sub.drawn
        found.append(
            {
                "drawn": list(zip(*drawn.whole_names(), strict=True)),
                "held": list(zip(drawn.shards, drawn.keys, strict=True)),
                "trained": list(zip(sub.shards, sub.keys, strict=True)),
                "labels": sub.targets.tolist(),
                "pixels": sub.views["image"].numpy(),
                "index": sub.selection.index.tolist(),
                "positions": sub.positions.tolist(),
                "weight": sub.weight,
                "moved": sub.moved,
            }
        )
    state = subs.state_dict()
    subs.close()
    return found, state
