"""Functions run by several processes at a time that form a group, on the CPU with gloo."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

# The server imports these once and is forked for every rank: safe, and a hundred times faster than spawning.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["curate.training.run", "torch.distributed", "support.ranks"])
SECONDS = 120


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(group, *arguments)` on `size` ranks: what each returned, or the exception that it raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = CONTEXT.SimpleQueue()
    ranks = [
        CONTEXT.Process(target=_rank, args=(rank, size, port, results, function, arguments), daemon=True)
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(SECONDS)
    alive = [process for process in ranks if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive, f"{len(alive)} of {size} ranks still ran after {SECONDS} s"
    found: dict[int, Any] = {}
    while not results.empty():
        rank, value = results.get()
        found[rank] = value
    return [found.get(rank) for rank in range(size)]


def _rank(
    rank: int, size: int, port: int, results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch
    from curate.training.group import Group

    torch.set_num_threads(1)
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    group = Group.from_env()
    try:
        value = function(group, *arguments)
    except Exception as e:
        e.add_note("".join(traceback.format_exception(e)))
        value = e
    results.put((rank, value))
    group.close()
