"""What ranks do in tests. It stands here because a new process can import it by name."""

import os
import signal

import torch
from curate.errors import ShardError


def rows_of(rank):
    """As many rows as the rank's number, so that rank 0 has none."""
    return torch.arange(rank * 6, dtype=torch.float32).reshape(rank, 2, 3) + 100 * rank


def everything(group):
    gathered = group.gather(rows_of(group.rank))
    parts = [torch.full((1 + group.rank + to, 2), 10 * group.rank + to, dtype=torch.int16) for to in range(group.size)]
    parts[-1] = parts[-1][:0]
    received = group.exchange(parts)
    tensors = [torch.full((3,), float(group.rank)), torch.tensor(group.rank)]
    group.broadcast(tensors)
    return {
        "gathered": [part.numpy() for part in gathered],
        "received": [part.numpy() for part in received],
        "shared": group.share({"rank": group.rank, "key": "é" * group.rank}),
        "first": group.first(lambda: f"made by {group.rank}"),
        "sum": group.sum(torch.tensor([1.0, group.rank])).tolist(),
        "broadcast": [tensor.tolist() for tensor in tensors],
    }


def fails_on(group, bad):
    with group.together():
        if group.rank in bad:
            raise ShardError(f"shard '{group.rank}.tar' is cut") if group.rank else OSError(28, "No space left")


def dies(group):
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.gather(torch.ones(2))
