"""The body of a call that asks for a video: multipart or JSON, as a row of a prompt table."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from jobs.api.wire import ApiError, invalid_value
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest
from pipeline.table import RowError, read_request

MAX_BODY_BYTES = 16 << 20
BODY_TIMEOUT_S = 120.0
MAX_FIELDS = 64
ENDING_BYTES = 256
"""A form's last boundary is in them: it has up to 70 characters (RFC 2046, 5.1.1)."""
MAX_METADATA = 16
MAX_METADATA_CHARS = 512
SETTINGS = (
    "negative_prompt", "seed", "num_frames", "fps", "num_inference_steps", "guidance_scale",
)  # fmt: skip
FIELDS = (
    "prompt", "input_reference", "model", "seconds", "size", "priority", "metadata", *SETTINGS,
)  # fmt: skip
FILES = ("input_reference", "video")
MAX_PRIORITY = 9
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
_NESTED = re.compile(r"(metadata|input_reference|video)\[([^\]]+)\]")
_PARAMS = {"width": "size", "height": "size", "width, height": "size"}


class Body(BaseModel):
    """What a call may say, and nothing else."""

    model_config = ConfigDict(extra="forbid")


class ImageReference(Body):
    """An image, within the call."""

    image_url: str
    """A `data:` URL; images aren't fetched."""


class VideoReference(Body):
    """A completed video of yours."""

    id: str


class VideoBody(Body):
    """What a call may say; what it doesn't, or says empty, comes from the recipe. Numbers may be
    text.
    """

    prompt: str
    input_reference: ImageReference | None = None
    """The video's first frame; in a form it may be a file. See the model's `max_seen_frames`."""
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


class RemixBody(Body):
    """What a call for a remix says; all else stays as in the video."""

    prompt: str


class ExtensionBody(Body):
    """What a call for an extension may say; what it doesn't is as in the video."""

    prompt: str
    seconds: str | float
    """Of what is new."""
    video: VideoReference | str
    """Its id will do, too; and in a form, an MP4."""
    negative_prompt: str | None = None
    seed: int | str | None = None
    num_inference_steps: int | str | None = None
    guidance_scale: float | str | None = None
    priority: int | str | None = None
    metadata: dict[str, str] | None = None


@asynccontextmanager
async def limit_time(limit_s: float) -> AsyncGenerator[None]:
    """Give a body so long to come.

    Raises:
        ApiError: it took longer.
    """
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as error:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body took more than {limit_s:g} s to come",
            code="body_too_slow",
        ) from error


async def read_body(request: Request) -> dict[str, Any]:
    """Return the fields of a body.

    Raises:
        ApiError: it is too large or too slow, or neither multipart nor a JSON object.
    """
    async with limit_time(BODY_TIMEOUT_S):
        return await _read_fields(request)


async def _read_fields(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().casefold()
    try:
        if kind == "multipart/form-data":
            return await _read_form(request)
        if kind in ("application/json", "application/x-www-form-urlencoded"):
            content = b"".join([chunk async for chunk in limit_body(request, MAX_BODY_BYTES)])
            if kind != "application/json":
                return _read_pairs(content)
            fields = from_json(content)
            if isinstance(fields, dict):
                return cast(dict[str, Any], fields)
            kind = "other JSON"
    except (ValueError, RecursionError, MultiPartException, KeyError) as error:
        raise invalid_body(kind, error) from error
    raise ApiError(
        HTTPStatus.BAD_REQUEST,
        f"expected a body of multipart/form-data or a JSON object, got {kind or 'no type'}",
        code="invalid_body",
    )


def invalid_body(kind: str, error: Exception) -> ApiError:
    """Return the error for a body that is not of the kind that its Content-Type says."""
    why = str(error).partition("\n")[0][:200]
    message = f"the body is not what its Content-Type says, {kind}: {why}"
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_body")


async def _read_form(request: Request) -> dict[str, Any]:
    """Return the fields of multipart/form-data."""
    content_type = request.headers["content-type"]
    body = _Ending(limit_body(request, MAX_BODY_BYTES))
    parser = MultiPartParser(
        # What is no UTF-8 Starlette takes for Latin-1: to be told of it, have all read as that.
        Headers({"content-type": f"{content_type}; charset=latin-1"}),
        body.read(),
        max_fields=MAX_FIELDS,
        max_files=1,
        max_part_size=MAX_BODY_BYTES,
    )
    form = await parser.parse()
    try:
        body.check(content_type)
        items = list[tuple[str, str | bytes]]()
        for latin, value in form.multi_items():
            name = _from_latin(latin)
            if isinstance(value, str):
                items.append((name, _from_latin(value)))
            elif name in FILES:
                items.append((name, await value.read()))
            else:
                raise invalid_value(name, "got a file, expected text")
    finally:
        await form.close()
    return _gather(items)


def _from_latin(text: str) -> str:
    return text.encode("latin-1").decode()


def _read_pairs(content: bytes) -> dict[str, Any]:
    """Return the fields of application/x-www-form-urlencoded."""
    return _gather(
        parse_qsl(
            content.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    )


def _gather(items: Iterable[tuple[str, str | bytes]]) -> dict[str, Any]:
    """Return a form's fields, those of `metadata[a]` and `metadata[b]` as one."""
    fields: dict[str, Any] = {}
    for name, value in items:
        match = _NESTED.fullmatch(name)
        place, key = (fields.setdefault(match[1], {}), match[2]) if match else (fields, name)
        if not isinstance(place, dict) or key in place:
            raise ApiError(HTTPStatus.BAD_REQUEST, f"{name} is given twice", param=name)
        place[key] = value
    return fields


class _Ending:
    """Passes a body on and keeps its last bytes."""

    def __init__(self, chunks: AsyncGenerator[bytes]) -> None:
        self._chunks = chunks
        self._last = b""

    async def read(self) -> AsyncGenerator[bytes]:
        async for chunk in self._chunks:
            self._last = (self._last + chunk)[-ENDING_BYTES:]
            yield chunk

    def check(self, content_type: str) -> None:
        """Check that a form came whole; of one that is cut off the parser drops the last part."""
        _, options = parse_options_header(content_type)
        if b"--" + options[b"boundary"] + b"--" not in self._last:
            raise ValueError("it ends before its last boundary")


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

    What its clip begins with is not read here.

    Raises:
        ApiError: a field is unknown, or has a value that the model can't do.
    """
    check_names(fields, FIELDS)
    values = {name: fields[name] for name in ("prompt", "seconds", *SETTINGS) if name in fields}
    if fields.get("size") not in (None, ""):
        match = _SIZE.fullmatch(str(fields["size"]))
        if not match:
            raise invalid_value("size", f"got {str(fields['size'])[:40]!r}, expected WIDTHxHEIGHT")
        values |= {"width": int(match[1]), "height": int(match[2])}
    try:
        return read_request(values, recipe)
    except RowError as error:
        first = error.problems[0]
        param = _PARAMS.get(first.column, first.column)
        raise ApiError(
            HTTPStatus.BAD_REQUEST, str(error), param=param, code="invalid_value"
        ) from error


def check_names(fields: Mapping[str, Any], known: Sequence[str]) -> None:
    """Check that a call has no other fields.

    Raises:
        ApiError: it has one; the nearest that is known is named.
    """
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name[:64], known, n=1)  # it indexes all of a name
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"unknown parameter {name[:64]!r}; {hint}",
                param=name[:64],
                code="unknown_parameter",
            )


def parse_priority(fields: Mapping[str, Any]) -> int:
    """Return a call's priority, 0 if it has none.

    Raises:
        ApiError: it is no whole number from 0 to 9.
    """
    value: Any = fields.get("priority")
    if value in (None, ""):
        return 0
    if str(value) in map(str, range(MAX_PRIORITY + 1)):
        return int(value)
    raise invalid_value("priority", f"got {str(value)[:40]!r}, expected 0 to {MAX_PRIORITY}")


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
    raise invalid_value(
        "metadata",
        f"expected up to {MAX_METADATA} pairs of text, "
        f"each of up to {MAX_METADATA_CHARS} characters",
    )
