"""Scoring ahead: a super-batch is scored some steps before its turn, in a thread of its own, while the learner trains.

The weights that score it are a copy of the scorer's, made between two steps. So the choice differs from that of Algorithm 1
(it is made by losses of older weights), but never from one run to the next, and a resumed run continues with the losses
that its checkpoint has.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from ..scoring.losses import Losses, Pairs
from .batch import SuperBatch


@dataclass
class Scored:
    """A super-batch and where the stream stood behind it. Its losses are `known`, or `found` gives them."""

    batch: SuperBatch
    state: dict[str, Any]
    found: Callable[[], Losses] | None = None
    known: Losses | None = None

    def losses(self) -> Losses:
        """Waited for. A collective where ranks divide the super-batch, the first time."""
        if self.known is None:
            assert self.found is not None
            self.known = self.found()
        return self.known


class ScoringThread:
    """Scores one super-batch at a time beside the main thread; on a GPU in a stream of its own."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        self._pool: ThreadPoolExecutor | None = None
        device = None if device is None else torch.device(device)
        self._stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None
        self._last: Future[Any] | None = None

    def wait(self) -> None:
        """Until what was begun last is done. On a GPU what the caller's stream is given from now on waits for it."""
        if self._last is not None and self._last.exception() is None and self._stream is not None:
            _, done = self._last.result()
            torch.cuda.current_stream(self._stream.device).wait_event(done)

    def begin(self, score: Callable[[], Losses]) -> Callable[[], Losses]:
        """Begin to score by weights that nobody changes meanwhile. Returns what waits for the losses."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="score ahead")
        if self._stream is None:
            self._last = self._pool.submit(score)
            return self._last.result
        stream, ready = self._stream, torch.cuda.current_stream(self._stream.device).record_event()

        def on_stream() -> tuple[Losses, Any]:
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                return score(), stream.record_event()

        begun = self._last = self._pool.submit(on_stream)

        def found() -> Losses:
            losses: Losses
            losses, done = begun.result()
            present = torch.cuda.current_stream(stream.device)
            present.wait_event(done)
            for tensor in tensors_in(losses):
                if tensor.is_cuda:  # else the side stream may take its memory again while this one reads it
                    tensor.record_stream(present)
            return losses

        return found

    def close(self) -> None:
        """Begin nothing more, until somebody does. What was begun is not waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
            self._pool = None


class Copy:
    """A copy of a module that is brought up to date between steps, so that another thread can read it during them."""

    def __init__(self, module: nn.Module) -> None:
        self._original = module
        self.module = copy.deepcopy(module).requires_grad_(False)

    def update(self) -> None:
        pairs = zip(tensors_of(self.module), tensors_of(self._original), strict=True)
        with torch.no_grad():
            for mine, now in pairs:
                mine.copy_(now, non_blocking=True)


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Its weights and buffers."""
    return [*module.parameters(), *module.buffers()]


def aged(known: Losses, steps: int, B: int) -> Losses:
    """The same losses, each computed so many steps ago."""
    if not steps:
        return known
    device = known.online_B.device if known.online_B is not None else None
    return replace(known, age_B=torch.full((B,), steps, dtype=torch.int64, device=device))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a dataclass, and of those in it."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def losses_to_dict(known: Losses) -> dict[str, Any]:
    """As a checkpoint holds them: tensors on the CPU."""

    def host(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: host(one) for name, one in value.items()}
        return value.detach().cpu() if isinstance(value, torch.Tensor) else value

    found: dict[str, Any] = host(asdict(known))
    return found


def losses_from_dict(found: dict[str, Any], device: torch.device | str | None) -> Losses:
    """The opposite of `losses_to_dict`."""

    def here(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) and device is not None else value

    values: dict[str, Any] = {
        name: Pairs(**{field: here(one) for field, one in value.items()}) if isinstance(value, dict) else here(value)
        for name, value in found.items()
    }
    return Losses(**values)
