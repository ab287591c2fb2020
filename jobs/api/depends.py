"""What routes of the API are given: the endpoint, who calls, and which call this is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Header, Request

from jobs.api.endpoint import Endpoint
from jobs.api.wire import ApiError

MAX_IDEMPOTENCY_CHARS = 255


def _get_endpoint(request: Request) -> Endpoint:
    return request.app.state.endpoint


def _identify(request: Request) -> str:
    return _get_endpoint(request).keys.identify(request.headers.get("authorization"))


def _check_idempotency_key(idempotency_key: Annotated[str | None, Header()] = None) -> str | None:
    if idempotency_key and len(idempotency_key) > MAX_IDEMPOTENCY_CHARS:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"Idempotency-Key: got {len(idempotency_key)} characters, "
            f"expected up to {MAX_IDEMPOTENCY_CHARS}",
            code="invalid_value",
        )
    return idempotency_key


async def _hold_place(
    request: Request, owner: Annotated[str, Depends(_identify)]
) -> AsyncGenerator[str]:
    async with _get_endpoint(request).places[owner]:
        yield owner


At = Annotated[Endpoint, Depends(_get_endpoint)]
Owner = Annotated[str, Depends(_identify)]
Receiving = Annotated[str, Depends(_hold_place)]
"""Who calls, for a call that has a body: of one caller's, few are received at once."""
IdempotencyKey = Annotated[str | None, Depends(_check_idempotency_key)]
"""A call that has the key of one that was accepted is that one."""
