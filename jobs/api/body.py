"""The body of a call that asks for a video: multipart or JSON, as a row of a prompt table."""

from __future__ import annotations

import difflib
import re
from collections.abc import AsyncGenerator, Mapping
from http import HTTPStatus
from typing import Any, cast

from fastapi import Request
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from jobs.api.wire import ApiError
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest
from pipeline.table import RowError, read_request

MAX_BODY_BYTES = 16 << 20
MAX_TEXT_BYTES = 1 << 20
MAX_FIELDS = 64
MAX_METADATA = 16
MAX_METADATA_CHARS = 512
SETTINGS = (
    "negative_prompt", "seed", "num_frames", "fps", "num_inference_steps", "guidance_scale",
)  # fmt: skip
FIELDS = ("prompt", "model", "seconds", "size", "priority", "metadata", *SETTINGS)
MAX_PRIORITY = 9
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
_METADATA = re.compile(r"metadata\[([^\]]+)\]")
_PARAMS = {"width": "size", "height": "size", "width, height": "size"}


class VideoBody(BaseModel):
    """What a call may say; what it doesn't comes from the recipe. Numbers may be text."""

    prompt: str
    model: str | None = None
    seconds: str | float | None = None
    size: str | None = None
    """WIDTHxHEIGHT, in pixels."""
    negative_prompt: str | None = None
    seed: int | str | None = None
    num_frames: int | str | None = None
    fps: float | str | None = None
    num_inference_steps: int | str | None = None
    guidance_scale: float | str | None = None
    priority: int | str | None = None
    """0 to 9, 0 if not given: of your videos that wait, the higher goes first."""
    metadata: dict[str, str] | None = None
    """Up to 16 pairs of your own; they are handed back."""


async def read_body(request: Request) -> dict[str, Any]:
    """Return the fields of a body.

    Raises:
        ApiError: it is too large, or neither multipart nor a JSON object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().casefold()
    try:
        if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
            return await _read_form(request, multipart=kind.startswith("multipart"))
        if kind == "application/json":
            content = b"".join([chunk async for chunk in limit_body(request, MAX_BODY_BYTES)])
            fields = from_json(content)
            if isinstance(fields, dict):
                return cast(dict[str, Any], fields)
    except (ValueError, RecursionError, MultiPartException, KeyError) as error:
        said = "not what its Content-Type says"
        raise ApiError(HTTPStatus.BAD_REQUEST, f"the body is {said}: {kind}") from error
    raise ApiError(
        HTTPStatus.BAD_REQUEST,
        f"expected a body of multipart/form-data or a JSON object, got {kind or 'no type'}",
    )


async def _read_form(request: Request, *, multipart: bool) -> dict[str, Any]:
    stream = limit_body(request, MAX_BODY_BYTES)
    if multipart:
        parser = MultiPartParser(
            request.headers,
            stream,
            max_fields=MAX_FIELDS,
            max_files=1,
            max_part_size=MAX_TEXT_BYTES,
        )
    else:
        parser = FormParser(request.headers, stream)
    form = await parser.parse()
    fields: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise ApiError(HTTPStatus.BAD_REQUEST, f"{name} is given twice", param=name)
        if match := _METADATA.fullmatch(name):
            metadata[match[1]] = str(value)
        else:
            fields[name] = value
    return {**fields, "metadata": metadata} if metadata else fields


async def limit_body(request: Request, max_bytes: int) -> AsyncGenerator[bytes]:
    """Yield a body as it comes.

    Raises:
        ApiError: it is too large.
    """
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes > max_bytes:
            raise ApiError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has more than {max_bytes} bytes",
                code="body_too_large",
            )
        yield chunk


def parse_request(fields: Mapping[str, Any], recipe: Recipe) -> RenderRequest:
    """Return the request that a call's fields ask for, read as a table's row would be.

    Raises:
        ApiError: a field is unknown, or has a value that the model can't do.
    """
    if "input_reference" in fields:
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"{recipe.name} renders from text alone; leave input_reference out",
            param="input_reference",
            code="unsupported",
        )
    for name in fields:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FIELDS)}"
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"unknown parameter {name[:64]!r}; {hint}",
                param=name[:64],
                code="unknown_parameter",
            )
    values = {name: fields[name] for name in ("prompt", "seconds", *SETTINGS) if name in fields}
    if fields.get("size") is not None:
        match = _SIZE.fullmatch(str(fields["size"]))
        if not match:
            raise _invalid("size", f"size: got {str(fields['size'])[:40]!r}, expected WIDTHxHEIGHT")
        values |= {"width": int(match[1]), "height": int(match[2])}
    try:
        return read_request(values, recipe)
    except RowError as error:
        first = error.problems[0]
        raise _invalid(_PARAMS.get(first.column, first.column), str(error)) from error


def parse_priority(fields: Mapping[str, Any]) -> int:
    """Return a call's priority, 0 if it has none.

    Raises:
        ApiError: it is no whole number from 0 to 9.
    """
    value: Any = fields.get("priority")
    if value is None:
        return 0
    if str(value) in map(str, range(MAX_PRIORITY + 1)):
        return int(value)
    raise _invalid("priority", f"priority: got {str(value)[:40]!r}, expected 0 to {MAX_PRIORITY}")


def parse_metadata(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return a call's own pairs.

    Raises:
        ApiError: they aren't text, or too many or too long.
    """
    pairs: Any = fields.get("metadata") or {}
    if isinstance(pairs, dict):
        items = list(cast(dict[Any, Any], pairs).items())
        texts = [text for pair in items for text in pair]
        if len(items) <= MAX_METADATA and all(
            isinstance(text, str) and len(text) <= MAX_METADATA_CHARS for text in texts
        ):
            return dict(items)
    raise _invalid(
        "metadata",
        f"metadata: expected up to {MAX_METADATA} pairs of text, "
        f"each of up to {MAX_METADATA_CHARS} characters",
    )


def _invalid(param: str, message: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code="invalid_value")
