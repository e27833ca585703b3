"""What is copied from stays until the copy is done. The copies themselves need a GPU: test_on_gpu.py."""

from types import SimpleNamespace

import torch
from curate.training import copies


def test_what_is_copied_from_is_held_until_then(monkeypatch):
    held = copies.deque()
    monkeypatch.setattr(copies, "_held", held)
    events = [SimpleNamespace(done=False) for _ in range(4)]
    for event in events:
        event.query = lambda e=event: e.done
        copies.hold(torch.zeros(1), event)
    assert len(held) == 4
    events[0].done = events[1].done = True
    copies.hold(torch.zeros(1), events[3])
    assert [event for _, event in held] == [events[2], events[3], events[3]]


def test_on_a_cpu_nothing_is_copied():
    tensor = torch.zeros(3)
    assert copies.to_device(tensor, torch.device("cpu")) is tensor
    assert not copies._held
