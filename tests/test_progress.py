"""Bars on a terminal, lines elsewhere, nothing for short work."""

from __future__ import annotations

import io
import re
import sys
from itertools import pairwise

import pytest
from curate import progress
from curate.progress import Progress, Screen, working
from curate.units import counted, format_duration, took


@pytest.fixture
def clock(monkeypatch):
    """Time as the test sets it."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    return Clock


def told_in(clock, seconds, lines, report=None):
    """Progress over so many seconds at an even pace, once a second."""
    with Progress(report or lines.append, "work", seconds) as shown:
        for second in range(1, seconds + 1):
            clock.now += 1
            shown.update(second, lambda second=second: f"{second} done")


def test_what_takes_less_than_five_seconds_prints_nothing(clock):
    lines = []
    told_in(clock, 4, lines)
    assert lines == []
    assert took(4.9) == "" and took(5) == " (5 s)"


def test_lines_come_at_growing_intervals_and_at_most_one_a_minute(clock):
    lines = []
    told_in(clock, 3600, lines)
    at = [int(re.search(r"(\d+) done", line)[1]) for line in lines]
    assert at[:3] == [5, 10, 15]
    pauses = [b - a for a, b in pairwise(at)]
    assert pauses == sorted(pauses) and max(pauses) <= 61
    assert len(lines) < 70
    assert lines[0] == "work: 5 done, 60 min left"


def test_time_left_counts_from_where_a_resumed_run_began(clock):
    lines = []
    with Progress(lines.append, "run", 100, first=90) as shown:
        clock.now += 20
        shown.update(92, lambda: "92")
    assert lines == ["run: 92, 80 s left"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (12_000, "3 h 20 min")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(monkeypatch, term):
    for name, value in {"TERM": term, "COLUMNS": "100", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    return terminal


def test_a_terminal_gets_a_bar_and_lines_above_it_and_a_log_its_lines(monkeypatch, clock):
    terminal = on_terminal(monkeypatch, "xterm")
    noted = []

    class Log(Screen):
        def note(self, line):
            noted.append(line)

    report = Log()
    with Progress(report, "work", 100) as shown:
        clock.now += 2  # at this pace it takes long, so it is shown before five seconds
        shown.update(2, lambda: "2 done")
        report("a line")
        clock.now += 10
        shown.update(12, lambda: "12 done")
    text = terminal.getvalue()
    assert "work" in text and "2 done, 98 s left" in text and "a line\n" in text
    assert "\x1b[38" not in text and "\x1b[3" not in text, "NO_COLOR"
    assert noted == ["work: 12 done, 88 s left"]
    assert sys.stderr is terminal


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_draws_nothing_gets_lines(monkeypatch, clock, term):
    terminal = on_terminal(monkeypatch, term)
    told_in(clock, 6, [], Screen())
    assert terminal.getvalue() == "work: 5 done\n"


def test_a_report_that_nobody_can_read_ends_no_work(monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    Screen()("a line")
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    Screen()("a line")


def test_work_that_cannot_say_how_far_it_is(monkeypatch):
    monkeypatch.setattr(progress, "NOT_WORTH_SAYING", 0.05)
    monkeypatch.setattr(progress, "TICK", 0.01)
    lines = []
    with pytest.raises(KeyError), working(lines.append, "fetching"):
        progress.time.sleep(0.2)
        raise KeyError
    assert lines and all(re.fullmatch(r"fetching: \d+ s so far", line) for line in lines)


@pytest.mark.parametrize(("count", "text"), [(0, "0 shards"), (1, "1 shard"), (1200, "1,200 shards")])
def test_a_count_has_its_noun_in_the_right_number(count, text):
    assert counted(count, "shard") == text
