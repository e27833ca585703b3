"""Beam's worker process, `python -m curate.pipelines.worker`, with this package's quiet logging set up first."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any


def _end_with_the_driver() -> None:
    """Exit when standard input closes: then the driver was killed. Beam alone would first finish the current shard."""
    while os.read(0, 1):
        pass
    os._exit(1)


class _WithoutUsersErrors:
    """Standard error without Beam's tracebacks of errors that the driver reports in one line."""

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

    from ..datasets.notices import in_one_line

    in_one_line()

    sdk_worker_main.main(sys.argv)
