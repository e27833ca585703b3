"""Actors on a real Ray. What happens when they are killed is in tests/faults/test_actors.py."""

import json

import pytest
from curate.errors import ActorError
from curate.training import actors, train
from support.commands import silent
from support.crew import options_of


def test_a_run_with_two_actors(digits, tmp_path):
    said = []
    summary = train(options_of(digits, tmp_path, steps=6), config=digits.config, report=said.append)
    assert summary["steps"] == 6 and summary["examples_scored"] >= 6 * 32
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["score_age"] <= 6
    assert any("curate actor --join" in line for line in said)


def test_no_cluster_to_join():
    with pytest.raises(ActorError, match=r"nobody answers at 127.0.0.1:1 "):
        actors.join("127.0.0.1:1", None, 1, silent)
