"""What every route of the API is given: the endpoint, and who calls."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from jobs.api.endpoint import Endpoint


def _get_endpoint(request: Request) -> Endpoint:
    return request.app.state.endpoint


def _identify(request: Request) -> str:
    return _get_endpoint(request).keys.identify(request.headers.get("authorization"))


At = Annotated[Endpoint, Depends(_get_endpoint)]
Owner = Annotated[str, Depends(_identify)]
