"""Errors of Serve's proxy in the wire's form; everything else as it was."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from ray.serve._private.http_util import (
    _apply_middlewares,  # pyright: ignore[reportPrivateUsage]
)
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from jobs.api.proxy import ProxyErrors, make_middlewares

NO_ROUTE = "Path '/v1/videos/video_1' not found. Ping http://.../-/routes for available routes."


async def answer(request: Request) -> Response:
    kind, status = request.path_params["kind"], int(request.path_params["status"])
    if kind == "json":
        return JSONResponse({"error": {"code": "video_not_found"}}, status)
    return PlainTextResponse(NO_ROUTE, status)


@pytest.fixture
def client() -> TestClient:
    paths = ("/-/{kind}/{status}", "/{kind}/{status}")
    routes = [Route(path, answer) for path in paths]
    return TestClient(Starlette(routes=routes, middleware=make_middlewares()))


@pytest.mark.parametrize("status", [404, 408, 500, 503])
def test_an_error_of_the_proxys_own_is_told_as_unavailable(client: TestClient, status: int) -> None:
    told = client.get(f"/text/{status}")
    assert told.status_code == 503
    assert int(told.headers["retry-after"]) > 0
    assert told.json()["error"]["code"] == "unavailable"
    assert NO_ROUTE not in told.text


@pytest.mark.parametrize(("kind", "status"), [("json", 404), ("json", 500), ("text", 200)])
def test_what_the_endpoint_answers_stays(client: TestClient, kind: str, status: int) -> None:
    told = client.get(f"/{kind}/{status}")
    assert told.status_code == status
    assert ("video_not_found" if kind == "json" else NO_ROUTE) in told.text


def test_serves_own_health_stays(client: TestClient) -> None:
    assert client.get("/-/text/503").text == NO_ROUTE


def test_such_a_call_has_its_requests_id_too() -> None:
    """Wrapped as Serve wraps its proxy: what gives calls their ids is innermost."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        known.append(Headers(scope=scope)["x-request-id"])
        await PlainTextResponse(NO_ROUTE, 404)(scope, receive, send)

    known: list[str] = []
    told = TestClient(_apply_middlewares(refuse, cast(Any, make_middlewares()))).get("/v1/videos")
    assert told.status_code == 503
    assert [told.headers["x-request-id"]] == known


def test_where_a_replica_dies_the_call_is_answered_too() -> None:
    async def say_nothing(scope: Scope, receive: Receive, send: Send) -> None: ...

    told = TestClient(ProxyErrors(say_nothing)).get("/v1/videos")
    assert told.status_code == 503
    assert told.json()["error"]["code"] == "unavailable"


@pytest.mark.parametrize(("path", "most"), [("/v1/videos", 16 << 20), ("/v1/files", 100 << 20)])
def test_of_a_body_no_more_is_taken_in_than_is_read(path: str, most: int) -> None:
    """Serve's proxy takes in all that there is while its replica, here, reads nothing."""
    chunk = bytes(1 << 20)
    sent: list[Message] = []
    taken = 0

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        async def take_in() -> None:
            nonlocal taken
            while (message := await receive())["type"] != "http.disconnect":
                taken += len(message["body"])

        taking = asyncio.create_task(take_in())
        for _ in range(500):
            await asyncio.sleep(0)
        await JSONResponse({}, 413)(scope, receive, send)
        await taking

    async def receive() -> Message:
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(asyncio.wait_for(ProxyErrors(proxy)(scope, receive, send), 30))
    assert most < taken <= most + 2 * len(chunk)
    assert sent[0]["status"] == 413
