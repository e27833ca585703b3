"""Beam's own worker process, `python -m curate.pipelines.worker`: this package's quiet logging comes before Beam's."""

from __future__ import annotations

import os
import sys
import threading


def _end_with_the_driver() -> None:
    """A driver that is killed closes this process's standard input; Beam alone would finish the shard at hand first."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_driver, daemon=True).start()

    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
