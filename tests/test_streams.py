"""Closed streams, pipes that nobody reads, encodings without our signs, and Ctrl-C."""

from __future__ import annotations

import builtins
import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from curate import entry
from curate.__main__ import main as program_main
from curate.streams import nobody_reads, settle
from support.commands import curate

LONG = "SELECT count(*) FROM range(200000) a, range(2000000) b WHERE a.range + b.range = 7"


def run(script, **settings):
    """A shell line in which CURATE is the command: light commands start in a second."""
    line = script.replace("CURATE", f"{sys.executable} -m curate")
    environment = {**os.environ, **settings}
    done = subprocess.run(["bash", "-c", line], capture_output=True, env=environment, timeout=120)
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done.stderr.decode()
    return done


@pytest.mark.parametrize("format", ["csv", "json", "table", "parquet"])
def test_head_is_success(format):
    done = run(f"CURATE sql 'SELECT unnest(range(300000)) AS a' --format {format} | head -c 5; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.endswith(b"0\n"), done.stdout


def test_head_of_a_help_is_success():
    assert run("CURATE compare --help | head -1 > /dev/null; echo ${PIPESTATUS[0]}").stdout == b"0\n"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("CURATE sql 'SELECT 1' >&- 2>&- <&-", 0),
        ("CURATE --help >&-", 0),
        ("CURATE sql SELEC 2>&-", 1),
        ("CURATE sql 'SELECT 1' > /dev/full", 1),
        ("CURATE sql --nonsense 2> /dev/full", 2),
    ],
)
def test_closed_and_full_streams_are_no_traceback(line, code):
    assert run(line).returncode == code


def test_an_encoding_that_lacks_our_signs():
    assert "score-reference" in run("CURATE --help", PYTHONIOENCODING="ascii").stdout.decode("ascii")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    before, sys.stdout = sys.stdout, stream
    try:
        settle()
        print("… ≤ \N{MINUS SIGN}9 é \udcff", flush=True)
    finally:
        sys.stdout = before
    assert stream.buffer.getvalue() == b"... <= -9 \\xe9 \\udcff\n"


def test_a_pipe_says_when_nobody_reads_it():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        assert not nobody_reads(stream)
        os.close(reader)
        assert nobody_reads(stream)
    assert not nobody_reads(io.StringIO())


def test_ctrl_c_ends_a_query_with_its_line():
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    done = curate("sql", LONG)
    assert time.monotonic() - started < 60  # the query itself takes many minutes
    assert done.code == 130
    assert done.error.startswith("interrupted; run the same command again")


def test_ctrl_c_while_duckdb_works_in_the_main_thread_is_no_traceback(monkeypatch):
    def in_the_main_thread(connection, sql):
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return connection.execute(sql).fetchall()  # DuckDB may look at signals only at the end of the query

    monkeypatch.setattr("curate.reports.query", in_the_main_thread)
    done = curate("sql", "SELECT count(*) FROM range(100000) a, range(10000) b WHERE a.range + b.range = 7")
    assert done.code == 130
    assert done.error.startswith("interrupted; run the same command again")


@pytest.fixture
def signals():
    """They stand at the end as they stood."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, old in zip(numbers, before, strict=True):
        signal.signal(number, old)


@pytest.mark.parametrize(("code", "ends"), [(130, [130]), (143, [143]), (1, []), (0, [])])
def test_an_interrupted_process_ends_even_where_a_thread_hangs(monkeypatch, signals, code, ends):
    ended = []
    monkeypatch.setattr(entry, "end_within", lambda seconds, code: ended.append(code))
    with pytest.raises(SystemExit):
        entry.run_process(lambda: sys.exit(code))
    assert ended == ends


def test_a_second_ctrl_c_is_no_traceback(monkeypatch, signals):
    def app():
        try:
            raise KeyboardInterrupt
        finally:
            signal.raise_signal(signal.SIGINT)

    ended = []
    monkeypatch.setattr(entry, "end_within", lambda seconds, code: ended.append(code))
    with pytest.raises(SystemExit) as caught:
        entry.run_process(app)
    assert (caught.value.code, ended) == (130, [130])
    signal.raise_signal(signal.SIGINT)  # the third one, while the process ends


@pytest.mark.parametrize(("code", "printed"), [(130, "registered\n"), (1, "registered\ntaken apart\n")])
def test_an_interrupted_process_does_not_take_apart_what_it_imported(code, printed):
    program = f"""
import atexit, sys
from curate import entry
from curate.__main__ import main as program_main
class Large:
    def __del__(self): print("taken apart", flush=True)
entry.skip_teardown()
large = Large()
atexit.register(print, "registered")
entry.run_process(lambda: sys.exit({code}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, printed, "")


def test_ctrl_c_during_the_imports_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("builtins.__import__", interrupted_at("cli"))
    with pytest.raises(SystemExit) as caught:
        program_main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "curate: interrupted\n"


def interrupted_at(name, original=builtins.__import__):
    """Python's import, which is interrupted at a module of this name."""

    def load(module, *given):
        if module == name:
            raise KeyboardInterrupt
        return original(module, *given)

    return load


def test_a_broken_pipe_of_another_process_is_no_success(monkeypatch):
    def broken(*given, **options):
        raise BrokenPipeError(32, "a worker's pipe")

    monkeypatch.setattr("curate.reports.write", broken)
    with pytest.raises(BrokenPipeError):
        curate("sql", "SELECT 1")
