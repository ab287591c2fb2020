"""A proxy before an S3 server that fails as networks and storages do."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = (
    "throttled",
    "internal error",
    "cut before it arrives",
    "reply lost",
    "internal error after it was done",
    "delivered twice",
    "reply cut in half",
    "not there yet",
)
_HOP = {"connection", "transfer-encoding", "keep-alive"}


def _refuse(code: str) -> bytes:
    return (
        f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>fault</Message></Error>".encode()
    )


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to `endpoint`, but for those that `choose` names a fault for."""

    daemon_threads = True

    def __init__(
        self,
        endpoint: str,
        choose: Callable[[str, str], str | None],
        listen: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        super().__init__(listen, _Handler)
        parts = urlsplit(endpoint)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.choose = choose
        self.struck = Counter[str]()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"

    def close(self) -> None:
        """Answer nothing more; may be called twice."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on a proxy that cuts replies; that is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None: ...

    def _handle(self) -> None:
        body = self._read_body()
        with self.server.lock:
            fault = self.server.choose(self.command, self.path)
            if fault:
                self.server.struck[fault] += 1
        match fault:
            case None:
                self._reply(*self._forward(body))
            case "throttled":
                self._reply(503, {}, _refuse("SlowDown"))
            case "internal error":
                self._reply(500, {}, _refuse("InternalError"))
            case "cut before it arrives":
                self._cut()
            case "reply lost":
                self._forward(body)
                self._cut()
            case "internal error after it was done":
                self._forward(body)
                self._reply(500, {}, _refuse("InternalError"))
            case "delivered twice":
                self._forward(body)
                self._reply(*self._forward(body))
            case "reply cut in half":
                status, headers, content = self._forward(body)
                self._reply(status, headers, content, upto=len(content) // 2)
            case _:
                self._reply(404, {}, _refuse("NoSuchKey"))

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _handle  # noqa: N815 - http.server's names

    def _read_body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in {*_HOP, "expect"}}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        reply = connection.getresponse()
        content = reply.read()
        kept = {k: v for k, v in reply.getheaders() if k.lower() not in _HOP}
        connection.close()
        return reply.status, kept, content

    def _reply(
        self, status: int, headers: dict[str, str], content: bytes, upto: int | None = None
    ) -> None:
        self.send_response_only(status)
        lengths = (
            {} if self.command == "HEAD" and headers else {"Content-Length": str(len(content))}
        )
        kept = {k: v for k, v in headers.items() if k.lower() != "content-length" or not lengths}
        for name, value in {**kept, **lengths}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:upto])
        if upto is not None:
            self._cut()

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True


@contextmanager
def serve_faults(
    endpoint: str,
    choose: Callable[[str, str], str | None],
    listen: tuple[str, int] = ("127.0.0.1", 0),
) -> Iterator[FaultyProxy]:
    """Run a proxy before `endpoint`."""
    proxy = FaultyProxy(endpoint, choose, listen)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
