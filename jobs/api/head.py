"""HEAD, answered as GET without its body (RFC 9110, 9.3.2), nor a part of it (14.2)."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadAsGet:
    """An ASGI application around another, whose routes know of GET alone.

    The server that sends an answer leaves the body of one to HEAD out by itself.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, HEAD as GET."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            headers = [each for each in scope["headers"] if each[0] != b"range"]
            scope = {**scope, "method": "GET", "headers": headers}
        await self._app(scope, receive, send)
