"""An S3 server on loopback (moto), which refuses requests as S3 does now and then."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
BROKEN = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


class Refusing:
    """A WSGI application that answers every nth request with 503, as S3 does under load; 0 refuses none.

    `lost_answers`: the nth request is done all the same, and only its answer is a 500, so that whoever asked can't
    know. `writes_fail_after`: from so many PUTs on, each of them is a 500.
    """

    def __init__(self, application):
        self.application = application
        self.mend()

    def __call__(self, environ, start_response):
        limit = self.writes_fail_after
        if limit is not None and environ["REQUEST_METHOD"] == "PUT" and next(self.writes) > limit:
            return self.refuse(start_response, "500 Internal Server Error", BROKEN)
        if self.every and next(self.count) % self.every == 0:
            if not self.lost_answers:
                return self.refuse(start_response, "503 Slow Down", SLOW_DOWN)
            for _ in self.application(environ, lambda *answer: lambda data: None):
                pass
            return self.refuse(start_response, "500 Internal Server Error", BROKEN)
        return self.application(environ, start_response)

    def refuse(self, start_response, status, body):
        self.refused += 1
        start_response(status, [("Content-Type", "application/xml")])
        return [body]

    def mend(self) -> None:
        self.every, self.refused, self.lost_answers, self.writes_fail_after = 0, 0, False, None
        self.count, self.writes = itertools.count(1), itertools.count(1)


@contextmanager
def s3_server() -> Iterator[Refusing]:
    """Until the end, fsspec's s3:// is this server, with a bucket named `bucket`; in child processes too."""
    application = Refusing(DomainDispatcherApplication(create_backend_app))
    made = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    before = dict(os.environ)
    # Workers are processes of their own: they find the server where botocore looks for one.
    os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{made.server_port}")
    try:
        fsspec.filesystem("s3").mkdir("bucket")
        yield application
    finally:
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)
