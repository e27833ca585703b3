"""How a command begins and ends: threads, streams, signals, and what becomes of an error."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer

from . import threads
from .datasets.notices import in_one_line
from .errors import CurateError, SpecError, StoppedError, printable, without_secrets
from .streams import end_within, file_of, flush_or_drop, nobody_reads, settle
from .training.signals import SIGNALS, handled_by
from .training.started import several_started
from .units import Report

INTERRUPTED = 130
# What DuckDB makes of Ctrl-C while it works in the main thread.
DUCKDB_INTERRUPTED = "Query interrupted"
# Exit codes from here on: a signal ended the command.
STOPPED = 128


def run_command(cli: Callable[..., Any], report: Report) -> None:
    """Run the command that sys.argv names, and exit with its code.

    A CurateError is one line and exit code 1, what click refuses one line and exit code 2. Anything else is a bug and keeps
    its traceback.
    """
    threads.settle()
    settle()
    in_one_line()
    code = 0
    try:
        with handled_by(_end):
            _check_folder()
            code = _code_of(cli, report)
        sys.stdout.flush()
    except CurateError as e:
        if e.reported_by is None:
            report(f"curate: {e}")
        code = 1
    except BrokenPipeError:
        if not nobody_reads(sys.stdout) and not nobody_reads(sys.stderr):
            raise  # another pipe, of a process that died
        code = 0  # `| head` has seen enough
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        report(f"curate: {e.filename or 'a file'}: the disk is full; free space, then run the same command again")
        code = 1
    except StoppedError as e:
        if e.reported_by is None:
            report(f"curate: {e}; run the same command again to resume (train: add --resume)")
        code = e.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except RuntimeError as e:
        if str(e) != DUCKDB_INTERRUPTED:
            raise
        code = INTERRUPTED
    if code == INTERRUPTED:
        report("curate: interrupted; run the same command again to resume (train: add --resume)")
    flush_or_drop()
    if code:
        sys.exit(code)


def run_process(app: Callable[[], None]) -> None:
    """Run a command as all that this process does. Interrupted, it ends soon, even where a thread waits for storage, and
    takes no notice of a second Ctrl-C. After `skip_teardown` it also does not take apart what it imported."""
    try:
        app()
    except KeyboardInterrupt:  # the second one, while the first one ended the command
        _end_soon(INTERRUPTED)
        sys.exit(INTERRUPTED)
    except SystemExit as e:
        if isinstance(e.code, int) and e.code >= STOPPED:
            _end_soon(e.code)
        raise


def _check_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise SpecError("the working folder was deleted; change to a folder that is there") from None


def _end_soon(code: int) -> None:
    for number in (signal.SIGINT, *SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    _interrupted.append(code)
    end_within(0.3, code)


_interrupted: list[int] = []


def skip_teardown() -> None:
    """An interrupted process ends once all that libraries registered for their end is done: to take the modules of torch
    and Beam apart would take seconds on a busy machine. Call it before they are imported."""

    def end() -> None:
        if _interrupted:
            flush_or_drop()
            os._exit(_interrupted[0])

    atexit.register(end)  # the first to be registered is the last to be called


def _code_of(cli: Callable[..., Any], report: Report) -> int:
    """The command's exit code."""
    streams, written_to = (sys.stdout, sys.stderr), file_of(sys.stdout)
    try:
        return cli(prog_name="curate", standalone_mode=False) or 0
    except SystemExit as e:
        # So do typer and rich end at a broken pipe. They put other streams, or nothing, in place of those that nobody reads.
        sys.stdout, sys.stderr = streams
        if e.code == 1 and (file_of(sys.stdout) != written_to or any(map(nobody_reads, streams))):
            return 0
        if isinstance(e.__context__, BrokenPipeError):
            raise e.__context__ from None
        if isinstance(e.code, str):  # a module that the user named ended the program
            print(e.code, file=sys.stderr)
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except Exception as e:
        if not hasattr(e, "exit_code") or not hasattr(e, "format_message"):
            raise
        report(f"curate: {_of_usage(e)}")
        return int(e.exit_code)


def _of_usage(error: Any) -> str:
    """The line for what click refused: an unknown option or command, or a value that is no number."""
    context, found = getattr(error, "ctx", None), " ".join(error.format_message().split()).rstrip(".")
    told = f"'{context.command_path} --help'" if context else "--help"
    # A query that begins with a comment, for one.
    words = "; put -- before what begins so and is no option" if " " in getattr(error, "option_name", "") else ""
    return printable(without_secrets(f"{found}{words}; {told} lists what there is"))


def _end(number: int, frame: Any) -> None:
    raise StoppedError(number)


def alone(command: str) -> None:
    """Raises SpecError where torchrun or srun started several processes, which would all do the same."""
    if several_started():
        raise SpecError(
            f"{command} runs in one process, and several were started; start it without torchrun or srun -n"
        )
