"""Beam's own worker process, `python -m curate.pipelines.worker`: this package's quiet logging comes before Beam's."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
