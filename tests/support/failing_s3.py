"""An S3 server that fails: a proxy before the real one of moto, and a storage that meets every failure."""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, SubTreeFileSystem

from trainable.storage import Storage


class FailingProxy(ThreadingHTTPServer):
    """Passes requests on, but the first `failures` of every key.

    Args:
        target: host and port of the server behind.
        failures: of every key; -1 for all of them.
        drop: closes the connection without an answer, instead of answering with `status`.
    """

    def __init__(self, target: str, failures: int, *, drop: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.failures, self.drop = target, failures, drop
        self.status = 500
        self.failed: Counter[str] = Counter()
        """Requests that failed, by key."""

    def refuses(self, key: str) -> bool:
        """Whether this request for a key fails."""
        if self.failures < 0 or self.failed[key] < self.failures:
            self.failed[key] += 1
            return True
        return False

    def storage(self, name: str) -> Storage:
        """A results root behind the proxy, whose client does not try again by itself."""
        address = f"127.0.0.1:{self.server_port}"
        storage = Storage(f"s3://results/{name}?scheme=http&endpoint_override={address}")
        once = AwsStandardS3RetryStrategy(max_attempts=1)
        client = S3FileSystem(endpoint_override=address, scheme="http", region="us-east-1", retry_strategy=once)
        storage.fs = SubTreeFileSystem(f"results/{name}", client)
        return storage


_HOP = ("transfer-encoding", "content-length", "connection", "expect")
"""Headers of one connection, not of the message."""


class _Handler(BaseHTTPRequestHandler):
    server: FailingProxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self._body()
        if self.server.refuses(self.path.partition("?")[0]):
            if self.server.drop:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.send_response(self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        behind = http.client.HTTPConnection(self.server.target)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        behind.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = behind.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        behind.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing."""


@contextmanager
def failing_s3(s3_uri: str, failures: int, *, drop: bool = False) -> Iterator[FailingProxy]:
    """A proxy before the server of the fixture `s3_uri`."""
    proxy = FailingProxy(s3_uri.rpartition("=")[2], failures, drop=drop)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
