"""Errors as the wire has them, with nothing of what is inside."""

# pyright: reportUnusedFunction=false

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from jobs.api.wire import ApiError, ErrorBody

RETRY_AFTER_S = 2
_log = logging.getLogger("ray.serve")


class UnavailableError(Exception):
    """The desk gives no answer at the moment."""


def handle_errors(app: FastAPI) -> None:
    """Have every error answered in the wire's form, with nothing of what is inside."""

    @app.exception_handler(ApiError)
    async def answer(_: Request, error: ApiError) -> JSONResponse:
        return _answer(error.status, error.body, error.headers)

    @app.exception_handler(HTTPException)
    async def answer_http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        body = ErrorBody(message=message, type="invalid_request_error")
        return _answer(error.status_code, body, dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1])
        return _answer(
            HTTPStatus.BAD_REQUEST,
            ErrorBody(
                message=f"{param}: {first['msg']}",
                type="invalid_request_error",
                param=param,
                code="invalid_value",
            ),
        )

    @app.exception_handler(UnavailableError)
    async def answer_desk_away(_: Request, __: UnavailableError) -> JSONResponse:
        return answer_unavailable()

    @app.exception_handler(OSError)
    async def answer_storage_away(request: Request, error: OSError) -> JSONResponse:
        asked = f"{request.method} {request.url.path}"
        _log.warning("the storage gives no answer: %s", asked, exc_info=error)
        return answer_unavailable()

    @app.exception_handler(Exception)
    async def answer_broken(_: Request, __: Exception) -> JSONResponse:
        message = "the endpoint failed on this call; its log says why"
        return _answer(
            HTTPStatus.INTERNAL_SERVER_ERROR, ErrorBody(message=message, type="server_error")
        )


def answer_unavailable(headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer to a call that nobody can answer at the moment, with further headers."""
    message = "the endpoint is starting or ending, or its storage is away; what was accepted is "
    message += "kept; try again"
    return _answer(
        HTTPStatus.SERVICE_UNAVAILABLE,
        ErrorBody(message=message, type="server_error", code="unavailable"),
        {"retry-after": str(RETRY_AFTER_S), **(headers or {})},
    )


def _answer(status: int, body: ErrorBody, headers: dict[str, str] | None = None) -> JSONResponse:
    # What a caller sent may be no text, and is quoted.
    said = {
        name: value and value.encode(errors="replace").decode()
        for name, value in body.model_dump().items()
    }
    return JSONResponse({"error": said}, status, headers)
