"""Copies to a GPU that do not wait for the work there: from pinned memory, and of what comes next on a stream of its own."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from typing import Any, Protocol

import torch

# cudaHostRegisterPortable: pinned for every GPU of this process.
PORTABLE = 1


class Pinned:
    """Pins memory that torch did not allocate, such as what other processes write to (see `datasets.slabs.Pinning`).

    Torch's own pinned memory is not used again before a copy out of it is done. Of this memory torch knows nothing, so
    `mark` is an event behind what the device's present stream was given, and `hold` keeps what other streams copy from.
    """

    def __init__(self, device: int) -> None:
        self._device = device

    def pin(self, address: int, size: int) -> bool:
        # A new thread's device is the first one, where a context of this process would take memory.
        with torch.cuda.device(self._device):
            if int(torch.cuda.cudart().cudaHostRegister(address, size, PORTABLE)) == 0:
                return True
            with suppress(RuntimeError):  # else the next kernel would be said to have failed
                torch.zeros(1, device="cuda")
            return False

    def unpin(self, address: int) -> None:
        with torch.cuda.device(self._device):
            torch.cuda.cudart().cudaHostUnregister(address)

    def mark(self) -> Any:
        return torch.cuda.current_stream(self._device).record_event()


_held: deque[tuple[torch.Tensor, Any]] = deque()
_lock = threading.Lock()


def hold(tensor: torch.Tensor, event: Any) -> None:
    """Keep a tensor until the event has come."""
    with _lock:
        while _held and _held[0][1].query():
            _held.popleft()
        _held.append((tensor, event))


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, through pinned memory where it is a GPU, so that the copy does not wait for the work there."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=True)
    if not tensor.is_pinned():
        tensor = tensor.pin_memory()
    moved = tensor.to(device, non_blocking=True)
    hold(tensor, torch.cuda.current_stream(device).record_event())
    return moved


class Batch(Protocol):
    """A super-batch or what was chosen of one."""

    def to(self, device: torch.device) -> Any: ...

    def tensors(self) -> list[torch.Tensor]: ...


class Copies:
    """Copies batches to a GPU on a stream of its own: the next one while the device works on the present one."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._begun: tuple[Batch, Batch, torch.cuda.Event] | None = None

    def begin(self, batch: Batch) -> None:
        """Begin to copy what will be asked for next. It is copied when the copies before it are done, whatever else the
        device has to do."""
        if self._begun is None or self._begun[0] is not batch:
            with torch.cuda.stream(self._stream):
                self._begun = batch, batch.to(self._device), self._stream.record_event()

    def arrived(self, batch: Batch) -> Any:
        """The same batch on the device. What the present stream is given from now on waits for it, not the caller."""
        self.begin(batch)
        assert self._begun is not None
        (_, moved, done), self._begun = self._begun, None
        present = torch.cuda.current_stream(self._device)
        present.wait_event(done)
        for tensor in moved.tensors():  # else its memory would be used again when the copies, not the work, are done
            tensor.record_stream(present)
        return moved
