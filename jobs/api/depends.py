"""What routes of the API are given: the endpoint, who calls, and which call this is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPBearer

from jobs.api.endpoint import Endpoint
from jobs.api.origin import check_origin

MAX_IDEMPOTENCY_CHARS = 255


def _get_endpoint(request: Request) -> Endpoint:
    return request.app.state.endpoint


_bearer = HTTPBearer(auto_error=False, description="An API key; none under --insecure.")
"""For /openapi.json: `ApiKeys` reads the header itself."""


def _identify(request: Request, _: Annotated[object, Depends(_bearer)]) -> str:
    keys = _get_endpoint(request).keys
    if keys.insecure:
        check_origin(request.method, request.headers)
    return keys.identify(request.headers.get("authorization"))


def _read_idempotency_key(
    idempotency_key: Annotated[str | None, Header(max_length=MAX_IDEMPOTENCY_CHARS)] = None,
) -> str | None:
    return idempotency_key


async def _hold_place(
    request: Request, owner: Annotated[str, Depends(_identify)]
) -> AsyncGenerator[str]:
    async with _get_endpoint(request).places[owner].hold():
        yield owner


At = Annotated[Endpoint, Depends(_get_endpoint)]
Owner = Annotated[str, Depends(_identify)]
Receiving = Annotated[str, Depends(_hold_place)]
"""Who calls, for a call that has a body: of one caller's, few are received at once, and not very
many more may wait."""
IdempotencyKey = Annotated[str | None, Depends(_read_idempotency_key)]
"""A call that has the key of one that was accepted is that one."""
