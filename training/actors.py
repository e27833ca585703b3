"""Scoring actors on Ray: the only importer of it. A thin shell round the exchange.

Each scorer is a Ray actor, and a thread of the learner's process gives it its leases and waits for the answers: nothing
polls. Images never pass through Ray, but numbers, keys, targets and weights.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ActorError, CurateError, first_line
from ..threads import cores
from ..units import Report, counted
from .exchange import Exchange, Found, LostScorerError, Work, work
from .group import time_out_of
from .lease_scorer import LeaseScorer, ScoringJob

NAMESPACE = "curate"
# A scorer that was killed, or killed since it hung, begins anew so many times.
RESTARTS = 3
CONNECT_SECONDS, SECONDS_TO_CLOSE = 10, 10
# The least time for a first answer: before it a process starts, imports torch and reads its first shard.
FIRST_SECONDS = 120
DOOR = "door of "


class Scorer:
    """What runs in a scorer's process. What it needs comes with each question, as a list of one reference, and is fetched
    where it is new: also after a restart."""

    def __init__(self, worker: int, threads: int) -> None:
        self._worker, self._threads = worker, threads
        self._scorer: LeaseScorer | None = None

    def ready(self) -> int:
        """The number of its process."""
        return os.getpid()

    def score(self, job: list[Any], shard: int, rows: np.ndarray, version: int, weights: list[Any]) -> Found:
        ray = _ray()
        if self._scorer is None:
            import torch

            from ..scoring.forward import best_device

            torch.set_num_threads(self._threads)
            self._scorer = LeaseScorer(ray.get(job[0]), best_device(self._worker), self._threads)
        if version != self._scorer.version:
            self._scorer.load(version, ray.get(weights[0]))
        return self._scorer.score(shard, rows)


class Door:
    """Where scorers of other machines come in while a run goes on. An actor whose methods wait without polling."""

    def __init__(self) -> None:
        import asyncio

        self._entered: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def enter(self, name: str, scorer: Any) -> None:
        await self._entered.put((name, scorer))

    async def next(self) -> tuple[str, Any]:
        return await self._entered.get()

    async def run(self) -> None:
        """Never returns: it fails where the door is gone, since the run has ended."""
        import asyncio

        await asyncio.Event().wait()


class RayCrew:
    """`count` scorers on this machine, and those that join. Uses the Ray cluster that RAY_ADDRESS names; else it starts one
    here, which ends with the run."""

    def __init__(self, job: ScoringJob, count: int, run: str, report: Report) -> None:
        self.job, self.count, self.run, self.report = job, count, run, report
        self._seconds = time_out_of(dict(os.environ)).total_seconds()
        self._exchange: Exchange | None = None
        self._kept: list[Any] = []
        self._sent: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._was_there = False

    def start(self, exchange: Exchange) -> None:
        """Begin to score. Raises ActorError where Ray is not installed, or does not start."""
        if os.environ.get("RAY_ADDRESS"):
            _use_token()
        ray = _ray()
        self._exchange = exchange
        self._was_there = ray.is_initialized()
        if not self._was_there:
            _connect(os.environ.get("RAY_ADDRESS") or "local")
        try:
            self._sent = [ray.put(self.job)]
        except Exception as e:  # whatever pickling it raises
            raise ActorError(
                f"--actors sends the model that scores to other processes, and this one cannot be sent ({first_line(e, 160)}); "
                "leave --actors out"
            ) from e
        try:
            door = ray.remote(Door).options(name=DOOR + self.run, num_cpus=0, max_concurrency=1000).remote()
        except ValueError as e:
            raise ActorError(
                f"another run of the name '{self.run}' has actors in this Ray cluster; choose another --name"
            ) from e
        self._kept = [door]
        for number, scorer in enumerate(_scorers(self.count, reserved=1)):
            self._add(f"actor {number}", scorer)
        self._begin("door", self._let_in, door)
        address = ray.get_runtime_context().gcs_address
        self.report(
            f"{counted(self.count, 'actor')} on this machine; more: curate actor --join {address} --run {self.run}"
        )

    def payload(self, weights: Mapping[str, np.ndarray]) -> Any:
        return [_ray().put(dict(weights))]

    def close(self) -> None:
        """End the scorers, and Ray where this run started it: after the threads, since Ray ends a process one of whose threads
        asks it for something when it is gone."""
        if self._exchange is None:
            return
        ray, self._exchange = _ray(), None
        for actor in self._kept:
            with suppress(Exception):
                ray.kill(actor)
        for thread in self._threads:
            thread.join(SECONDS_TO_CLOSE)
        self._kept, self._sent, self._threads = [], [], []
        if not self._was_there:
            ray.shutdown()

    def _add(self, name: str, scorer: Any) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        self._kept.append(scorer)
        exchange.join(name)
        self._begin(name, work, exchange, name, _asking(scorer, self._sent, self._seconds))

    def _begin(self, name: str, run: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True, name=name)
        self._threads.append(thread)
        thread.start()

    def _let_in(self, door: Any) -> None:
        """Runs in a thread of its own."""
        ray = _ray()
        while self._exchange is not None:
            try:
                name, scorer = ray.get(door.next.remote())
            except BaseException as e:  # the door is lost or, by a SystemExit, Ray: who scores already may go on
                if self._exchange is not None:
                    self.report(f"no more actors can join ({first_line(e, 160)})")
                return
            self._add(name, scorer)
            self.report(f"{name} joined")


def _asking(scorer: Any, job: list[Any], seconds: float) -> Callable[[Work], Found]:
    """Asks a scorer and waits for its answer. Raises LostScorerError where there is none in time."""
    began = False

    def ask(asked: Work) -> Found:
        nonlocal began
        ray, limit = _ray(), seconds if began else max(seconds, FIRST_SECONDS)
        began = False
        errors = ray.exceptions
        try:
            answer = scorer.score.remote(job, asked.lease.shard, asked.rows, asked.version, asked.weights)
            found: Found = ray.get(answer, timeout=limit)
            began = True
            return found
        except errors.GetTimeoutError:
            with suppress(Exception):
                ray.kill(scorer, no_restart=False)
            raise LostScorerError(f"no answer in {limit:g} seconds", gone=False) from None
        except errors.RayTaskError as e:
            if isinstance(e.cause, CurateError):
                raise e.cause from None
            raise ActorError(f"a scoring actor failed: {type(e.cause).__name__}: {first_line(e.cause, 160)}") from e
        except errors.ActorUnavailableError as e:  # it begins anew
            raise LostScorerError(first_line(e, 160), gone=False) from None
        except (errors.RayError, SystemExit) as e:  # Ray ends a thread so when it is gone itself
            raise LostScorerError(first_line(e, 160), gone=True) from None

    return ask


def join(address: str, run: str | None, count: int, report: Report) -> None:
    """Let `count` scorers of this machine, which is a node of the Ray cluster at `address`, score for a run until it ends.

    Raises ActorError where the cluster cannot be reached, or no such run is there.
    """
    _use_token()
    ray = _ray()
    _connect(address)
    try:
        names = [name.removeprefix(DOOR) for name in ray.util.list_named_actors() if name.startswith(DOOR)]
        if run is None and len(names) == 1:
            run = names[0]
        if run is None or run not in names:
            what = f"run '{run}'" if run else f"{len(names)} runs"
            raise ActorError(
                f"{address}: {what} there; expected --run with one of: {', '.join(sorted(names)) or 'no run scores with actors'}"
            )
        door = ray.get_actor(DOOR + run)
        scorers = list(_scorers(count, reserved=0))
        ray.get([scorer.ready.remote() for scorer in scorers])
        for number, scorer in enumerate(scorers):
            ray.get(door.enter.remote(f"{socket.gethostname()}:{os.getpid()}:{number}", scorer))
        report(f"{counted(count, 'actor')} for {run}")
        ray.get(door.run.remote())
    except ray.exceptions.RayActorError:
        report(f"{run}: has ended")
    finally:
        ray.shutdown()


def _use_token() -> None:
    """Ray starts clusters that ask for a token where one is there; who connects has to be told. Call it before its import."""
    there = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if there or Path("~/.ray/auth_token").expanduser().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _scorers(count: int, reserved: int) -> Iterator[Any]:
    """Scorers on this machine. They share its cores with `reserved` other processes, and its GPUs among themselves."""
    ray = _ray()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    threads = max(1, cores() // (count + reserved))
    environment = {"env_vars": {"OMP_NUM_THREADS": str(threads), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
    for number in range(count):
        options = {"num_cpus": 0, "max_restarts": RESTARTS, "scheduling_strategy": here, "runtime_env": environment}
        yield ray.remote(Scorer).options(**options).remote(number + reserved, threads)


def _connect(address: str) -> None:
    """Raises ActorError where Ray does not start, or does not answer."""
    ray = _ray()
    host, _, port = address.rpartition(":")
    if port.isdigit() and "://" not in address:  # Ray itself would try for minutes
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as e:
            raise ActorError(f"nobody answers at {address} ({e}); give the address of a Ray cluster's head") from None
    try:
        with _own_signals():
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="error",
                **({"include_dashboard": False} if address == "local" else {}),
            )
    except Exception as e:
        raise ActorError(
            f"Ray at '{address}' cannot be used ({first_line(e, 160)}); on each other machine run: ray start --address=ADDRESS"
        ) from e


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; a run has its own use for it."""
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ray() -> Any:
    """Imported late: it takes a second, and is an extra."""
    try:
        found = importlib.import_module("ray")
        importlib.import_module("ray.util.scheduling_strategies")
        importlib.import_module("ray.exceptions")
    except ImportError:
        raise ActorError("actors need Ray; run: pip install 'curate[actors]'") from None
    return found
