"""Functions run by several processes at a time that form a group, on the CPU with gloo."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

from support.commands import free_port

# The server imports these once and is forked for every rank: safe, and a hundred times faster than spawning.
CONTEXT = multiprocessing.get_context("forkserver")
# An optimizer imports torch._dynamo, which takes seconds.
CONTEXT.set_forkserver_preload(["curate.training.run", "torch.distributed", "torch._dynamo", "support.ranks"])
SECONDS = 120


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, minutes: float = 5) -> list[Any]:
    """`function(group, *arguments)` on `size` ranks, which wait so many minutes for each other: what each returned, or raised;
    None if it was killed."""
    port = free_port()
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        CONTEXT.Process(
            target=_rank, args=(rank, size, port, minutes, pipes[rank][1], function, arguments), daemon=True
        )
        for rank in range(size)
    ]
    for process, (_, sending) in zip(ranks, pipes, strict=True):
        process.start()
        sending.close()
    found = []
    for process, (receiving, _) in zip(ranks, pipes, strict=True):
        assert receiving.poll(SECONDS), f"a rank of {size} still ran after {SECONDS} s"
        try:
            found.append(pickle.loads(receiving.recv_bytes()))
        except EOFError:  # it was killed
            found.append(None)
        process.join()
    return found


def _rank(
    rank: int,
    size: int,
    port: int,
    minutes: float,
    result: Any,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    from curate.training.group import Group

    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["CURATE_TIMEOUT_MINUTES"] = str(minutes)
    group = Group.from_env()
    try:
        value = function(group, *arguments)
    except Exception as e:
        e.add_note("".join(traceback.format_exception(e)))
        value = e
    result.send_bytes(pickle.dumps(value))  # by copy: a tensor's memory may not outlive its process
    group.close()
