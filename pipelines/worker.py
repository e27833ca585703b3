"""Beam's own worker process, `python -m curate.pipelines.worker`: this package's quiet logging comes before Beam's."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any


def _end_with_the_driver() -> None:
    """A driver that is killed closes this process's standard input; Beam alone would finish the shard at hand first."""
    while os.read(0, 1):
        pass
    os._exit(1)


class _WithoutUsersErrors:
    """Standard error, less the tracebacks that Beam prints of errors which the driver tells in one line."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return len(text) if "curate.errors." in text else int(self._stream.write(text))


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    sys.stderr = _WithoutUsersErrors(sys.stderr)  # type: ignore[assignment]

    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
