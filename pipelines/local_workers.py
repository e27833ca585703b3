"""Worker processes of this machine. If one dies or fails, the job ends within seconds.

Beam's own handler waits forever for a worker that was killed. After an error of one worker it lets the others finish
their share, which may take days, before it raises the error.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

import grpc
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    ControlConnection,
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.portability.local_job_service import BeamFnLoggingServicer
from apache_beam.utils import thread_pool_executor
from google.protobuf import json_format, text_format

from ..errors import StoppedError, WorkerError

_WORKER_ERROR = f"{WorkerError.__module__}.{WorkerError.__name__}"  # as tracebacks name it

# As in Beam's own servers: pings keep a worker's idle connections alive, and by default gRPC refuses so many of them.
ANY_PINGS = (("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0))
SECONDS_TO_END = 10.0
# Tells a worker process which of this machine's workers it is, for its GPU.
WORKER_NUMBER = "CURATE_WORKER_NUMBER"
_NUMBERS = itertools.count()


def worker_number() -> int | None:
    """Which of the job's workers this process is, from 0; None in a process that another engine started."""
    number = os.environ.get(WORKER_NUMBER, "")
    return int(number) if number.isdecimal() else None


class _Connection(ControlConnection):
    """The requests to one worker. Once the job has failed, every request fails, also those that are waiting."""

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__()
        self.worker = worker
        self.error = ""

    def push(self, request: Any) -> Any:
        future = super().push(request)
        if future is not None and self.error:
            self._answer(future)
        return future

    def fail(self) -> None:
        for future in list(self._futures_by_id.values()):
            self._answer(future)

    def _answer(self, future: Any) -> None:
        """Answer as the worker would: code that waits for its data checks for an answer, not for `abort`."""
        future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=future.instruction_id, error=self.error))

    def waiting(self) -> bool:
        return bool(self._futures_by_id)

    def _read(self) -> None:
        with suppress(grpc.RpcError):  # the worker ended: the thread that waits for its process reports it
            for response in self._input:
                self._futures_by_id.pop(response.instruction_id).set(response)
                if response.error:
                    self.worker.end_job(response.error)


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class LocalWorker(GrpcWorkerHandler):
    """Starts one worker process and watches it."""

    def __init__(self, command: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self._command = shlex.split(command.decode())
        self._number = next(_NUMBERS)
        self._closing = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connections = self.control_handler._connections_by_worker_id
        self._connections[self.worker_id] = self.control_conn = _Connection(self)
        self._read_data = self.data_conn._read_inputs
        self.data_conn._read_inputs = self._read_data_until_gone

    def start_worker(self) -> None:
        self._log_server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=ANY_PINGS)
        log_port = self._log_server.add_insecure_port("localhost:0")
        beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(BeamFnLoggingServicer(), self._log_server)
        self._log_server.start()
        environment = {
            "WORKER_ID": self.worker_id,
            WORKER_NUMBER: str(self._number),
            "CONTROL_API_SERVICE_DESCRIPTOR": _descriptor(self.control_address),
            "LOGGING_API_SERVICE_DESCRIPTOR": _descriptor(f"localhost:{log_port}"),
            "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
        }
        # Nothing is written to its standard input. When it closes, the worker knows that this process ended.
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, env={**os.environ, **environment})
        self._process = process
        self._watcher = threading.Thread(target=self._watch, args=(process,), name=self.worker_id, daemon=True)
        self._watcher.start()

    def _read_data_until_gone(self, elements: Any) -> None:
        with suppress(grpc.RpcError):
            self._read_data(elements)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self._log_server.stop(0)
        if not self._closing:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self.end_job(
                f"{_WORKER_ERROR}: worker process {process.pid} {how} (out of memory?); "
                "the shards that it finished are kept, run again to resume"
            )

    def end_job(self, error: str) -> None:
        """Fail every request of the job, and end its workers. The first error is kept."""
        crew = list(self._connections.values())
        for connection in crew:
            connection.error = connection.error or error
        for connection in crew:
            connection.fail()
            connection.worker.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        self._closing = True
        interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt | StoppedError)
        if interrupted or self.control_conn.waiting():  # also one that still starts, and waits for nothing yet
            self.kill()
        self.control_conn.close()
        with suppress(grpc.RpcError):
            self.data_conn.close()
        self.stop_worker()

    def stop_worker(self) -> None:
        """Kill workers that do not end. All of their work is committed by now."""
        self._watcher.join(SECONDS_TO_END)
        self.kill()
        self._watcher.join()


def _descriptor(address: str) -> str:
    return str(text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=address)))
