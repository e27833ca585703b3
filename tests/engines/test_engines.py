"""The real command on real engines, each table compared row by row with the default local runner's.

`make test-engines` sets up what they need and runs this. An engine that is not there fails its tests.
"""

import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import CommandResult, read_tar, replace_member, reshard, start_curate, write_tar
from curate.datasets.spec import add_dataset
from curate.scoring.table import open_scores

COMMAND_SECONDS = 900  # for a machine that is busy with something else; alone a command takes about ten
pytestmark = [pytest.mark.engines, pytest.mark.timeout(4 * COMMAND_SECONDS)]

SHARDS = 24
BAD_PICTURES = (3, 9, 17)  # the shards whose first picture is no picture
LOSS_TOLERANCE = 1e-6
FLOAT16_TOLERANCE = 1e-3
SETUP = Path(__file__).parent
CACHE = SETUP.parent.parent / ".cache/engines"
BEAM = importlib.metadata.version("apache-beam")
DASK = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"


def made_by(script: str, path: Path) -> Path:
    assert path.exists(), f"{path} is missing: make test-engines runs {SETUP / script}, which says why"
    return path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def service(*arguments: object, folder: Path, port: int | None = None) -> Iterator[None]:
    """A Python module as a process group in a folder of its own, until its port answers; ended afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    # Beam's worker pool starts whatever `python` is first on PATH.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    log = folder.with_suffix(".log")
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
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
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def prism(stack: ExitStack, folder: Path) -> list[str]:
    binary = made_by("setup_prism.sh", CACHE / f"prism-{BEAM}")
    return ["--runner=PrismRunner", f"--prism_location={binary}"]


def prism_with_workers_apart(stack: ExitStack, folder: Path) -> list[str]:
    options = prism(stack, folder)
    port = free_port()
    pool = ("apache_beam.runners.worker.worker_pool_main", f"--service_port={port}")
    stack.enter_context(service(*pool, folder=folder / "pool", port=port))
    return [*options, "--environment_type=EXTERNAL", f"--environment_config=localhost:{port}"]


def python_job_server(stack: ExitStack, folder: Path) -> list[str]:
    port = free_port()
    server = ("apache_beam.runners.portability.local_job_service_main", "--port", port)
    stack.enter_context(service(*server, folder=folder / "server", port=port))
    return ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}", "--environment_type=LOOPBACK"]


def flink(stack: ExitStack, folder: Path) -> list[str]:
    jar = made_by("setup_flink.sh", CACHE / f"flink-job-server-{BEAM}.jar")
    return ["--runner=FlinkRunner", "--flink_master=[local]", f"--flink_job_server_jar={jar}", "--parallelism=2"]


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
    "dask": dask,
    "dask-cluster": dask_cluster,
}
WITHOUT_METRICS = {"dask", "dask-cluster"}


@dataclass(frozen=True)
class Engine:
    """An engine that is up, and the Beam options that name it."""

    name: str
    options: list[str]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, tmp_path_factory) -> Iterator[Engine]:
    with ExitStack() as stack:
        yield Engine(request.param, ENGINES[request.param](stack, tmp_path_factory.mktemp("engine")))


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

    def table(self, result: CommandResult) -> Path:
        assert result.code == 0, result.err
        return self.folder / result.out.strip()


@pytest.fixture(scope="module")
def digit_shards(digits, tmp_path_factory) -> Work:
    """900 digits in many shards, three of them with a bad picture."""
    folder = tmp_path_factory.mktemp("digit-shards")
    reshard(sorted((digits.root / "data/digits/train").glob("*.tar")), folder / "shards", SHARDS)
    for shard in BAD_PICTURES:
        path = folder / f"shards/{shard:05d}.tar"
        first = next(name for name, _ in read_tar(path) if name.endswith(".png"))
        replace_member(path, {first: b"no picture"})
    toml = folder / "curate.toml"
    add_dataset(toml, "many", {"train": f"shards/{{00000..{SHARDS - 1:05d}}}.tar", "image": "png", "classes": 10})
    return Work(folder, ("--dataset", "many", "--reference", digits.reference))


@pytest.fixture(scope="module")
def pair_shards(pairs) -> Work:
    return Work(pairs.root, ("--dataset", "pairs", "--reference", "clip", "--embeddings"))


@pytest.fixture(scope="module")
def local_digits(digit_shards) -> Path:
    return digit_shards.table(digit_shards.score(out="local"))


@pytest.fixture(scope="module")
def local_pairs(pair_shards) -> Path:
    return pair_shards.table(pair_shards.score(out="local"))


def failures(folder: Path) -> list[dict]:
    return [row for path in sorted((folder / "_failures").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def without_addresses(rows: list[dict]) -> list[dict]:
    """Failures whose reasons name no object's place in memory, which differs from process to process."""
    return [{**row, "reason": row["reason"].split(" at 0x")[0]} for row in rows]


def assert_same_table(found: Path, wanted: Path, examples: int) -> None:
    assert {p.name for p in found.glob("*.parquet")} == {p.name for p in wanted.glob("*.parquet")}
    rows, expected = (open_scores(str(folder)).read().to_pylist() for folder in (found, wanted))
    assert len(rows) == len(expected) == examples
    close = {"loss": LOSS_TOLERANCE, "similarity": LOSS_TOLERANCE}
    close |= {"image_embedding": FLOAT16_TOLERANCE, "text_embedding": FLOAT16_TOLERANCE}
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            same = pytest.approx(other[name], rel=0, abs=close[name]) if name in close else other[name]
            assert value == same, (name, row["shard"], row["key"])
    assert without_addresses(failures(found)) == without_addresses(failures(wanted))


def test_the_table_is_the_local_runners_and_again_there_is_nothing_to_do(engine, digit_shards, local_digits):
    result = digit_shards.score(engine.options, out=engine.name)
    folder = digit_shards.table(result)
    assert f"{900 - len(BAD_PICTURES)} examples scored, {len(BAD_PICTURES)} failed, {SHARDS} shards" in result.err
    assert [f["shard"] for f in failures(local_digits)] == [f"{i:05d}" for i in BAD_PICTURES]
    assert_same_table(folder, local_digits, 900 - len(BAD_PICTURES))
    # Seconds by stage come from the engine's metrics; one that keeps none says so.
    assert ("this Beam runner gives no metrics" in result.err) == (engine.name in WITHOUT_METRICS)
    assert ("; over all workers: " in result.err) == (engine.name not in WITHOUT_METRICS)

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    again = digit_shards.score(engine.options, out=engine.name)
    assert again.code == 0, again.err
    assert f"{SHARDS} shards done, 0 to do" in again.err
    assert f"{SHARDS} shards (0 now)" in again.err
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")} == before


def test_image_text_with_embeddings(engine, pair_shards, local_pairs):
    folder = pair_shards.table(pair_shards.score(engine.options, out=engine.name))
    assert_same_table(folder, local_pairs, 60)


def test_a_shard_that_cannot_be_read_is_one_line_and_the_others_are_scored(engine, digit_shards, local_digits):
    path = digit_shards.folder / "shards/00012.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-11_000])
    try:
        result = digit_shards.score(engine.options, out=f"{engine.name}-cut")
    finally:
        path.write_bytes(whole)
    assert result.code == 1
    assert "00012.tar: the tar is cut or damaged" in result.error
    assert f"the other {SHARDS - 1} shards are scored, run again to go on" in result.error
    folder = digit_shards.table(digit_shards.score(engine.options, out=f"{engine.name}-cut"))
    assert_same_table(folder, local_digits, 900 - len(BAD_PICTURES))


def test_a_workers_error_reaches_the_user_as_its_one_line(engine, digit_shards, tmp_path):
    """More failures than allowed end the job on the worker, as soon as it has read enough examples to judge."""
    members = [m for i in range(SHARDS) for m in read_tar(digit_shards.folder / f"shards/{i:05d}.tar")]
    bad = [(name, b"no picture" if name.endswith(".png") else content) for name, content in members]
    for i in range(2):
        twice = [(f"again-{name}", content) for name, content in bad]
        write_tar(tmp_path / f"shards/{i:05d}.tar", [*bad, *twice])
    add_dataset(tmp_path / "curate.toml", "bad", {"train": "shards/{00000..00001}.tar", "image": "png", "classes": 10})
    result = Work(tmp_path, ("--dataset", "bad", *digit_shards.options[2:])).score(engine.options)
    assert result.code == 1
    # Beam prints the worker's traceback too, before or after.
    (line,) = [line for line in result.err.splitlines() if line.startswith("curate: ")]
    assert re.match(r"curate: 1,800 of 1,800 examples failed \(100\.0%, allowed 1\.0%\); see why in ", line), line
    assert "not a readable image" in line


def test_both_workers_of_a_dask_cluster_score_shards(digit_shards, tmp_path):
    from distributed import Client

    with ExitStack() as stack:
        options = dask_cluster(stack, tmp_path)
        with Client(options[1].split("=")[1]) as client:
            client.wait_for_workers(2, timeout=COMMAND_SECONDS)
            digit_shards.table(digit_shards.score(options, out="both"))
            loaded = client.run(lambda: "curate.pipelines.score_shard" in sys.modules)
    assert list(loaded.values()) == [True, True]
