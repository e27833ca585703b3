"""The processes of one run. The only module that imports torch.distributed."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..errors import CurateError, RankError, SpecError, StoppedError, first_line

T = TypeVar("T")
# How many minutes a rank waits for the others, and their number where it is not set: at the start one may load models and check
# a table.
TIME_OUT, MINUTES = "CURATE_TIMEOUT_MINUTES", "5"
# In what torch says where a collective fails.
CONNECTION = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed out|processgroup", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """`size` processes (ranks) that work on one run together; this one is number `rank`. `handle` is torch.distributed's of a
    part of them, None of all.

    Every method but `is_first` is a collective: all ranks call it in the same order, or it times out. A group of one
    process needs no torch.distributed: its methods return what they are given.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    handle: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def from_env(cls, environment: dict[str, str] | None = None) -> Group:
        """The group that torchrun's or srun's variables describe; a group of one without them.

        Starts torch.distributed (nccl for GPUs, gloo for what lies on the CPU) unless it runs already, which must then be
        with both; takes the GPU of this process's local rank. Ranks wait $CURATE_TIMEOUT_MINUTES (5) for each other. Raises
        SpecError where the variables are incomplete or make no sense.
        """
        environment = dict(os.environ) if environment is None else environment
        found = _read(environment)
        if found.size == 1:
            return found
        if not dist.is_available():
            raise SpecError(f"{found.size} processes were started, but this torch is built without torch.distributed")
        time_out = time_out_of(environment)
        if torch.cuda.is_available():
            torch.cuda.set_device(found.local_rank % torch.cuda.device_count())
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            try:
                store = _store_of_restart(found, environment, time_out)
                dist.init_process_group(backend, store=store, rank=found.rank, world_size=found.size, timeout=time_out)
            except (ValueError, RuntimeError) as e:
                raise SpecError(
                    f"{found.size} processes cannot find each other ({first_line(e, 120)}); start them with torchrun, or set "
                    "MASTER_ADDR and MASTER_PORT to the first one's"
                ) from e
        return found

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def close(self) -> None:
        """Leave torch.distributed."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def part(self, members: Sequence[int]) -> Group:
        """The group of these ranks of all, in this order; a group of one on a rank that is none of them. A collective of all."""
        handle = None
        if len(members) > 1:
            with self._talking():
                handle = dist.new_group(list(members), timeout=time_out_of(dict(os.environ)))
        if self.rank not in members:
            return Group(local_rank=self.local_rank)
        return Group(list(members).index(self.rank), len(members), self.local_rank, handle)

    def gather(self, rows: torch.Tensor, lengths: Sequence[int] | None = None) -> list[torch.Tensor]:
        """Every rank's `rows`, tensors [n_r, ...] of one type and width, in the order of ranks; n_r may differ. Ranks that know
        all `lengths` n_r need not be told them."""
        if self.size == 1:
            return [rows]
        with self._talking():
            if lengths is None:
                counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(self.size)]
                dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device), group=self.handle)
                lengths = [int(n) for n in counts]
            padded = rows.new_zeros(max(lengths), *rows.shape[1:])
            padded[: len(rows)] = rows
            parts = [torch.empty_like(padded) for _ in lengths]
            dist.all_gather(parts, padded, group=self.handle)
        return [part[:n] for part, n in zip(parts, lengths, strict=True)]

    def exchange(self, parts: Sequence[torch.Tensor], counts: Sequence[int]) -> list[torch.Tensor]:
        """Send the rows `parts[r]`, [n, ...], to rank r; returns what each rank sent to this one: of rank r `counts[r]` rows. n
        may be 0."""
        if self.size == 1:
            return list(parts)
        row = parts[0]
        width = math.prod(row.shape[1:]) * row.element_size()
        with self._talking():
            buffer = torch.empty(sum(counts) * width, dtype=torch.uint8, device=row.device)
            content = torch.cat([_bytes_of(part) for part in parts])
            widths = [n * width for n in counts], [len(part) * width for part in parts]
            dist.all_to_all_single(buffer, content, *widths, group=self.handle)
        shape = row.shape[1:]
        return [
            part.view(row.dtype).view(n, *shape) if n else row.new_empty(0, *shape)
            for n, part in zip(counts, buffer.split([n * width for n in counts]), strict=True)
        ]

    def share(self, value: T) -> list[T]:
        """Every rank's value, any small object that can be pickled, in the order of ranks."""
        if self.size == 1:
            return [value]
        return [_unpickled(part) for part in self.gather(_pickled(value))]

    def first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, given to all. Its error is raised on all ranks."""
        made: T | None = None
        with self.together():
            made = make() if self.is_first else None
        return self.share(made)[0]  # type: ignore[return-value]

    def refuse_differences(self, settings: dict[str, Any]) -> None:
        """Raises SpecError on all ranks where one has other settings than rank 0. A collective."""
        first, *others = self.share(settings)
        for rank, other in enumerate(others, 1):
            for name, value in first.items():
                if other[name] != value:
                    raise SpecError(
                        f"rank {rank} has {name} {other[name]}, rank 0 has {value}; start all with the same"
                    )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block on all ranks; where it raises on one of them, all raise the error of the first such rank.

        The block may hold no collective. The other ranks' copies of the error say from which rank they came.
        """
        error: BaseException | None = None
        try:
            yield
        except (Exception, StoppedError) as e:
            error = e
        self.agree(error)

    def agree(self, error: BaseException | None = None, *numbers: int) -> list[int]:
        """Raise on all ranks what one of them met; else return the greatest of each of the numbers over all ranks.

        Each rank raises its own error as it is. Where several met one, the first such rank is who reports it.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return list(numbers)
        with self._talking():
            met = torch.tensor([self.size if error is None else self.rank, *(-number for number in numbers)])
            dist.all_reduce(met, dist.ReduceOp.MIN, group=self.handle)
        first, *greatest = met.tolist()
        if first == self.size:
            return [-number for number in greatest]
        told = self.share(_told(error))
        if error is not None:
            raise _reported_by(None if first == self.rank else first, error)
        kind, name, text, signal = told[first] or ("", "", "", 0)
        raise _like(kind, name, text, signal, first)

    def alike(self, error: BaseException) -> BaseException:
        """An error that all ranks meet at once, without a collective: rank 0 reports it."""
        return error if self.is_first else _reported_by(0, error)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of tensors of one shape."""
        total = values.clone()
        if self.size > 1:
            with self._talking():
                dist.all_reduce(total, group=self.handle)
        return total

    def broadcast(self, tensors: Sequence[torch.Tensor], source: int = 0) -> None:
        """Overwrite the tensors with those of rank `source`."""
        if self.size == 1:
            return
        alike: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for tensor in tensors:
            alike.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        with self._talking(), torch.no_grad():
            for some in alike.values():
                together = torch.cat([tensor.reshape(-1) for tensor in some])
                dist.broadcast(together, group=self.handle, group_src=source)
                for tensor, values in zip(some, together.split([t.numel() for t in some]), strict=True):
                    tensor.copy_(values.view_as(tensor))

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:
            lost = RankError(
                f"rank {self.rank} of {self.size} lost the others ({first_line(e, 120)}); the first error of another rank says "
                "why; start all ranks again from the last saved state"
            )
            raise self.alike(lost) from e

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Round passes that average gradients over the ranks. Raises RankError where these are gone; other errors pass."""
        try:
            yield
        except RuntimeError as e:
            if self.size == 1 or not CONNECTION.search(str(e)):
                raise
            with self._talking():
                raise

    def divide(self, module: torch.nn.Module, *, some_unused: bool = False) -> torch.nn.Module:
        """The module in DistributedDataParallel, which averages the ranks' gradients; as it is in a group of one. A
        collective: all ranks begin with rank 0's weights.

        Buffers are not kept alike (see `broadcast`). `some_unused` says that some parameters never have a gradient.
        """
        if self.size == 1:
            return module
        # Its advice on the layout of convolutions of 1 x 1, whose gradients are right.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        known = inspect.signature(DistributedDataParallel).parameters
        still = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        settings: dict[str, Any] = {still: False}
        with self._talking():
            return DistributedDataParallel(
                module,
                process_group=self.handle,
                gradient_as_bucket_view=True,
                find_unused_parameters=some_unused,
                **settings,
            )


def attempt(work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What a piece of work gives, or the error that it raises: for `Group.agree`."""
    try:
        return work(), None
    except (Exception, StoppedError) as e:
        return None, e


def bare(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside DistributedDataParallel, also where that is compiled; any other module as it is."""
    inner = getattr(module, "_orig_mod", module)
    return inner.module if isinstance(inner, DistributedDataParallel) else module


def unshared(module: Any) -> AbstractContextManager[None]:
    """Within, backward passes add gradients on this rank alone. The next one after it averages the sum over ranks."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def _read(environment: dict[str, str]) -> Group:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        # Only a step that srun started has a process number; a batch script or a shell inside an allocation has none.
        if "SLURM_PROCID" not in environment or environment.get("SLURM_NTASKS", "1") == "1":
            return Group()
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    try:
        rank, size = int(environment[names[0]]), int(environment[names[1]])
        local_rank = int(environment.get(names[2], rank))
    except (KeyError, ValueError) as e:
        raise SpecError(
            f"the variables {' and '.join(names[:2])} say how many processes there are, and one is wrong ({e}); start with "
            "torchrun or srun, or unset them"
        ) from None
    if not 0 <= rank < size:
        raise SpecError(f"{names[0]} is {rank} and {names[1]} is {size}; expected a rank from 0 to {size - 1}")
    if "SLURM_PROCID" in names and "MASTER_ADDR" not in environment:
        if environment.get("SLURM_NNODES", "1") != "1":
            raise SpecError(
                "several nodes need MASTER_ADDR, the first node's name: export MASTER_ADDR=$(scontrol show hostnames "
                '"$SLURM_JOB_NODELIST" | head -n 1)'
            )
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        os.environ.setdefault("MASTER_PORT", str(20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 10_000))
    return Group(rank, size, local_rank)


def _store_of_restart(group: Group, environment: dict[str, str], time_out: timedelta) -> Any:
    """Where ranks that torchrun starts again find each other; None for a first start.

    torchrun's own store outlives them. It still has the addresses of those that were killed, to which the new ones would
    connect for ever (github.com/pytorch/pytorch/issues/135712), unless they write to a part of it of their own.
    """
    restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    stores: Any = dist  # which torch does not declare to have them
    shared = stores.TCPStore(address, port, group.size, is_master=False, timeout=time_out)
    return stores.PrefixStore(f"restart {restart}", shared)


def time_out_of(environment: dict[str, str]) -> timedelta:
    given = environment.get(TIME_OUT) or MINUTES
    try:
        found = timedelta(minutes=float(given))
    except (ValueError, OverflowError):
        found = timedelta(0)
    if found <= timedelta(0):
        raise SpecError(f"{TIME_OUT} is '{given}', expected a number of minutes above 0, such as {MINUTES}")
    return found


def _bytes_of(rows: torch.Tensor) -> torch.Tensor:
    return rows.contiguous().view(-1).view(torch.uint8) if len(rows) else rows.new_empty(0, dtype=torch.uint8)


def _pickled(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _unpickled(content: torch.Tensor) -> Any:
    return pickle.loads(content.numpy().tobytes())


def _told(error: BaseException | None) -> tuple[str, str, str, int] | None:
    """What others need to raise the same."""
    if error is None:
        return None
    kind = type(error)
    if isinstance(error, StoppedError):
        return kind.__module__, kind.__name__, error.message, error.signal
    return kind.__module__, kind.__name__, str(error), 0


def _like(module: str, name: str, text: str, signal: int, rank: int) -> BaseException:
    """Another rank's error, of the same kind where it is one of ours."""
    kind = getattr(importlib.import_module(module), name, None) if module.endswith(".errors") else None
    error: Any
    if kind is StoppedError:
        error = StoppedError(signal, text)
    elif isinstance(kind, type) and issubclass(kind, CurateError):
        error = CurateError.__new__(kind)
        CurateError.__init__(error, text)
    else:
        error = RankError(f"rank {rank}: {name}: {text}")
    error.rank = rank
    return _reported_by(rank, error)


def _reported_by(rank: int | None, error: BaseException) -> BaseException:
    if isinstance(error, CurateError | StoppedError):
        error.reported_by = rank
    return error
