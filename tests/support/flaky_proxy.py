"""An HTTP proxy in front of a server that passes everything through and fails on command."""

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@dataclass
class _Failure:
    """One kind of failure still to come: ``status`` 0 = cut the connection."""

    pattern: re.Pattern[str]
    status: int
    times: int
    share: float


class FlakyProxy:
    """Orders to the proxy, and what passed through it.

    Attributes:
        address: ``host:port`` to connect to.
        requests: every request so far as ``"METHOD path"``, range included (``"GET /b/k 0-99"``).
        failures: those of them that were made to fail.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: list[str] = []
        self.failures: list[str] = []
        self._pending: list[_Failure] = []
        self._lock = threading.Lock()

    def answer(self, status: int, times: int = 1, matching: str = "") -> None:
        """The next ``times`` requests that match the pattern are answered with an error status.

        They do not reach the server.
        """
        self._add(_Failure(re.compile(matching), status, times, 0.0))

    def cut(self, times: int = 1, matching: str = "^GET", share: float = 0.5) -> None:
        """The next ``times`` answers to matching requests break off after a share of their body."""
        self._add(_Failure(re.compile(matching), 0, times, share))

    def behave(self) -> None:
        """Forgets all orders."""
        with self._lock:
            self._pending.clear()

    def take(self, request: str) -> _Failure | None:
        """Notes a request; the failure it shall meet, if any."""
        with self._lock:
            self.requests.append(request)
            for failure in self._pending:
                if failure.times > 0 and failure.pattern.search(request):
                    failure.times -= 1
                    self.failures.append(request)
                    return failure
        return None

    def _add(self, failure: _Failure) -> None:
        with self._lock:
            self._pending.append(failure)


@contextmanager
def flaky_proxy(target: str) -> Iterator[FlakyProxy]:
    """Runs a proxy on a free loopback port in front of ``host:port``."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.target = target
    server.proxy = FlakyProxy(f"127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    target: str
    proxy: FlakyProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_any(self) -> None:
        ranged = self.headers.get("Range", "").removeprefix("bytes=")
        failure = self.server.proxy.take(f"{self.command} {self.path} {ranged}".rstrip())
        body = self._body()
        if failure is not None and failure.status:
            self.send_response(failure.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = HTTPConnection(self.server.target, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length", "expect"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            self._pass_on(connection.getresponse(), failure)
        finally:
            connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _pass_on(self, answer: HTTPResponse, failure: _Failure | None) -> None:
        content = answer.read()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if failure is None:
            self.wfile.write(content)
            return
        self.wfile.write(content[: int(len(content) * failure.share)])
        self.wfile.flush()
        # Closed with time 0 to linger, a socket is reset: the reader sees a dropped connection.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass
