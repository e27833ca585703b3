"""What the engine tests share: engines that are started for them, and the real command."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from support.commands import CommandResult, free_port, start_curate

COMMAND_SECONDS = 900  # for a machine that is busy with something else; alone a command takes about ten
SHARDS = 24
BAD_PICTURES = (3, 9, 17)  # the shards whose first picture is no picture
SETUP = Path(__file__).parent
CACHE = SETUP.parent.parent / ".cache/engines"
BEAM = importlib.metadata.version("apache-beam")
# What Flink's own scripts open to it on Java 17.
OPENED = ("java.lang", "java.lang.reflect", "java.net", "java.nio", "java.text", "java.time", "java.util")
DASK = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"


def made_by(script: str, path: Path) -> Path:
    assert path.exists(), f"{path} is missing: make test-engines runs {SETUP / script}, which says why"
    return path


@contextmanager
def service(
    *arguments: object, folder: Path, port: int | None = None, program: tuple[str, ...] = (sys.executable, "-m")
) -> Iterator[subprocess.Popen]:
    """A Python module as a process group in a folder of its own, until its port answers; ended afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    # Beam's worker pool starts whatever `python` is first on PATH.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    log = folder.with_suffix(".log")
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*program, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + COMMAND_SECONDS
        while port is not None:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def worker_pool(stack: ExitStack, folder: Path) -> list[str]:
    """Beam's own pool: workers in processes of their own, started when an engine asks for them."""
    port = free_port()
    pool = ("apache_beam.runners.worker.worker_pool_main", f"--service_port={port}")
    stack.enter_context(service(*pool, folder=folder / "pool", port=port))
    return ["--environment_type=EXTERNAL", f"--environment_config=localhost:{port}"]


def prism(stack: ExitStack, folder: Path) -> list[str]:
    binary = made_by("setup_prism.sh", CACHE / f"prism-{BEAM}")
    return ["--runner=PrismRunner", f"--prism_location={binary}"]


def prism_with_workers_apart(stack: ExitStack, folder: Path) -> list[str]:
    return [*prism(stack, folder), *worker_pool(stack, folder)]


def python_job_server(stack: ExitStack, folder: Path) -> list[str]:
    port = free_port()
    server = ("apache_beam.runners.portability.local_job_service_main", "--port", port)
    stack.enter_context(service(*server, folder=folder / "server", port=port))
    return ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}", "--environment_type=LOOPBACK"]


def flink_jar() -> Path:
    return made_by("setup_flink.sh", CACHE / f"flink-job-server-{BEAM}.jar")


def flink_options(master: str) -> list[str]:
    return [
        "--runner=FlinkRunner",
        f"--flink_master={master}",
        f"--flink_job_server_jar={flink_jar()}",
        "--parallelism=2",
    ]


def flink(stack: ExitStack, folder: Path) -> list[str]:
    return flink_options("[local]")


@dataclass(frozen=True)
class FlinkCluster:
    """A job manager and two task managers of two slots each, every one a process; and the Beam options that name it."""

    options: list[str]
    task_managers: list[subprocess.Popen]


def start_flink_cluster(stack: ExitStack, folder: Path) -> FlinkCluster:
    """A standalone Flink out of the job server's jar. A lost task manager is missed after five seconds."""
    rest, rpc = free_port(), free_port()
    settings = {
        "jobmanager.rpc.address": "localhost",
        "jobmanager.rpc.port": rpc,
        "rest.port": rest,
        "rest.address": "localhost",
        "jobmanager.memory.process.size": "1g",
        "taskmanager.numberOfTaskSlots": 2,
        "taskmanager.cpu.cores": 2,
        # Flink's own scripts would work these out.
        "taskmanager.memory.framework.heap.size": "128m",
        "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.jvm-metaspace.size": "256m",
        "taskmanager.memory.jvm-overhead.min": "128m",
        "taskmanager.memory.jvm-overhead.max": "128m",
        "taskmanager.memory.task.heap.size": "256m",
        "taskmanager.memory.task.off-heap.size": "0",
        "taskmanager.memory.network.min": "64m",
        "taskmanager.memory.network.max": "64m",
        "taskmanager.memory.managed.size": "64m",
        "heartbeat.timeout": 5000,
        "heartbeat.interval": 1000,
        "cluster.evenly-spread-out-slots": "true",
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": 10,
        "restart-strategy.fixed-delay.delay": "1s",
    }
    configuration = folder / "conf"
    configuration.mkdir()
    (configuration / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    java = (
        "java",
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED),
        "-Xmx768m",
        "-cp",
        str(flink_jar()),
    )
    runtime = "org.apache.flink.runtime"
    manager = (f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint", "--configDir", configuration)
    stack.enter_context(service(*manager, folder=folder / "job-manager", port=rest, program=java))
    tasks = (f"{runtime}.taskexecutor.TaskManagerRunner", "--configDir", configuration)
    task_managers = [
        stack.enter_context(service(*tasks, folder=folder / name, program=java)) for name in ("tasks-1", "tasks-2")
    ]
    wait_for_slots(rest, 4, task_managers)
    return FlinkCluster([*flink_options(f"localhost:{rest}"), *worker_pool(stack, folder)], task_managers)


def wait_for_slots(rest: int, slots: int, task_managers: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + COMMAND_SECONDS
    found = 0
    while found < slots and time.monotonic() < deadline:
        with suppress(OSError), urlopen(f"http://localhost:{rest}/overview") as answer:
            found = json.load(answer)["slots-total"]
        assert [p.poll() for p in task_managers] == [None, None], "a task manager ended; see its log"
        time.sleep(0.2)
    assert found == slots


def flink_cluster(stack: ExitStack, folder: Path) -> list[str]:
    return start_flink_cluster(stack, folder).options


def dask(stack: ExitStack, folder: Path) -> list[str]:
    return [DASK]


def dask_cluster(stack: ExitStack, folder: Path) -> list[str]:
    port = free_port()
    scheduler = ("dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
    stack.enter_context(service(*scheduler, folder=folder / "scheduler", port=port))
    worker = ("dask", "worker", f"tcp://127.0.0.1:{port}", "--nthreads", 1, "--no-nanny", "--no-dashboard")
    for name in ("worker-1", "worker-2"):
        stack.enter_context(service(*worker, folder=folder / name))
    return [DASK, f"--dask_client_address=tcp://127.0.0.1:{port}"]


ENGINES: dict[str, Callable[[ExitStack, Path], list[str]]] = {
    "prism": prism,
    "prism-workers-apart": prism_with_workers_apart,
    "python-job-server": python_job_server,
    "flink": flink,
    "flink-cluster": flink_cluster,
    "dask": dask,
    "dask-cluster": dask_cluster,
}
WITHOUT_METRICS = {"dask", "dask-cluster"}
LOSING_METRICS = {"flink-cluster"}  # now and then, some or all of them
TRYING_AGAIN = {"flink-cluster"}  # a job that failed, until it ends


@dataclass(frozen=True)
class Engine:
    """An engine that is up, and the Beam options that name it."""

    name: str
    options: list[str]


@dataclass(frozen=True)
class Work:
    """A folder with a `curate.toml` and what to score there: the command's own options."""

    folder: Path
    options: tuple[str, ...]

    def score(self, beam_options: list[str] | None = None, out: str = "scores") -> CommandResult:
        """`curate score-reference` in a process of its own, standing in the folder, so that --out is relative."""
        command = ("score-reference", *self.options, "--precision", "fp32", "--out", out)
        beam = ("--", *beam_options) if beam_options else ()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.folder}
        process = start_curate(*command, *beam, **pipes)
        try:
            output, errors = process.communicate(timeout=COMMAND_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return CommandResult(process.returncode, output, errors)

    def start(self, beam_options: list[str], *more: str, out: str, log: Path) -> subprocess.Popen[str]:
        """The same, its error output in a file, and not waited for."""
        command = ("score-reference", *self.options, "--precision", "fp32", "--out", out, *more, "--", *beam_options)
        with log.open("w") as file:
            return start_curate(*command, cwd=self.folder, stderr=file)

    def table(self, result: CommandResult) -> Path:
        assert result.code == 0, result.err
        return self.folder / result.out.strip()
