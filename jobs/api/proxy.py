"""What Serve's own proxy answers where no replica does, in the wire's form.

While the endpoint starts, the proxy listens before it knows of any route: it would answer 404,
which to a caller means that an accepted video is lost. Where a replica dies it answers nothing, and
its server makes a 500 of that. Nor does it hold back what it is sent: it takes in the whole of a
body, however large, that waits for a replica to read it.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.api.body import MAX_BODY_BYTES
from jobs.api.errors import answer_unavailable
from jobs.api.files import FORM_BYTES
from pipeline.batches import BatchLimits

IMPORT_PATH = "jobs.api.proxy:make_middlewares"
"""What `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` is to be for a proxy to use it."""
_SERVES_OWN = "/-/"
_REQUEST_ID = "x-request-id"
_MOST_BYTES = {"/v1/files": BatchLimits().max_file_bytes + FORM_BYTES}
"""Of bodies that may be larger than others."""


def make_middlewares() -> list[Middleware]:
    """Return what the proxy is wrapped in."""
    return [Middleware(ProxyErrors)]


class ProxyErrors:
    """An ASGI application around the proxy's: the endpoint itself answers every error by JSON."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call; an error that isn't the endpoint's becomes a 503 with `Retry-After`.

        Of a body no more is taken in than the endpoint reads before it refuses it.
        """
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN):
            await self._app(scope, receive, send)
            return
        is_begun = is_refused = False
        left_bytes = _MOST_BYTES.get(scope["path"], MAX_BODY_BYTES)
        answered = asyncio.Event()

        async def receive_some() -> Message:
            nonlocal left_bytes
            if left_bytes < 0:  # the endpoint has as much as it needs to refuse it
                await answered.wait()
                return {"type": "http.disconnect"}
            message = await receive()
            left_bytes -= len(message.get("body", b""))
            return message

        async def send_on(message: Message) -> None:
            nonlocal is_begun, is_refused
            if message["type"] == "http.response.start":
                is_refused = _is_proxys(message)
                is_begun = not is_refused
            if not is_refused:
                await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                answered.set()

        await self._app(scope, receive_some, send_on)
        if not is_begun:  # or there was no answer at all: the replica died
            known = Headers(scope=scope).get(_REQUEST_ID)  # Serve's proxy has put it there
            await answer_unavailable({_REQUEST_ID: known} if known else None)(scope, receive, send)


def _is_proxys(start: Message) -> bool:
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] >= HTTPStatus.BAD_REQUEST and not kind.startswith("application/json")
