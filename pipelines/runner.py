"""Which Beam engine runs a pipeline."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from ..datasets.batches import decode_threads
from ..errors import SpecError
from . import local_workers  # noqa: F401 - replaces Beam's own handler of worker processes

PRISM = "PrismRunner"
# They end an unbounded source at once, or cannot run one.
BOUNDED = ("FnApiRunner", "BundleBasedDirectRunner", "DaskRunner")


def runner_of(arguments: Sequence[str], elements: int, *, follow: bool = False) -> tuple[Any, PipelineOptions]:
    """The runner and Beam's options for these command-line arguments.

    If they name no runner: Beam's FnApiRunner on this machine with one worker process per GPU, or per core where
    there is no GPU, which is `--runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=CORES`. A bare
    DirectRunner may be another engine, which Beam downloads. FnApiRunner cannot `follow`: then the default is Beam's
    Prism, which its DirectRunner uses too for a job without an end.

    Raises SpecError for a runner that cannot follow.
    """
    options = PipelineOptions([*arguments, "--streaming"] if follow else list(arguments))
    direct = options.view_as(DirectOptions)
    named = {argument.split("=")[0] for argument in arguments}
    runner = options.view_as(StandardOptions).runner
    if follow and runner and runner.rsplit(".", 1)[-1] in BOUNDED:
        raise SpecError(f"--runner={runner} cannot follow a data set; leave it out, or use PrismRunner or FlinkRunner")
    if follow and (not runner or runner == "DirectRunner"):
        options.view_as(StandardOptions).runner = PRISM
        return None, options
    if runner:
        if runner.endswith("DaskRunner") and not named & {"--dask_npartitions", "--dask_partition_size"}:
            # Beam puts 128 elements in one Dask task, so that one worker would score 128 shards in a row.
            options = PipelineOptions([*arguments, "--dask_partition_size=1"])
        return None, options
    if "--direct_num_workers" not in named:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        direct.direct_num_workers = workers_by_default(gpus, decode_threads(), elements)
    if "--direct_running_mode" in named:
        return FnApiRunner(), options
    workers = SubprocessSDKEnvironment.from_command_string(shlex.join(worker_command()))
    return FnApiRunner(default_environment=workers), options


def workers_by_default(gpus: int, cores: int, shards: int) -> int:
    """A process for each GPU, else for each core; none of them without a shard."""
    return min(gpus or cores, max(1, shards))


def worker_command() -> list[str]:
    """Starts a worker process that imports nothing from the working folder: a random.py there is not the library's.

    The folder that this package is in comes last, for a package that is not installed.
    """
    package, _, _ = __package__.partition(".")
    root = str(Path(sys.modules[package].__path__[0]).parent)
    code = (
        f"import sys; sys.path.append({root!r}); import runpy; runpy.run_module(sys.argv.pop(), None, '__main__', True)"
    )
    return [sys.executable, "-P", "-c", code, f"{__package__}.worker"]


def release(result: Any) -> None:
    """Close Dask's client in this process, which Beam's Dask runner never does.

    Otherwise the interpreter's exit can wait for a minute on a busy machine, and print a traceback after the last line.
    """
    client = getattr(result, "client", None)
    if client is not None:
        with suppress(TimeoutError):
            client.close()
