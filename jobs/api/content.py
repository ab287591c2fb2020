"""The bytes of a finished video: whole or in ranges, its thumbnail, its sprite sheet."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from itertools import chain
from typing import Literal

from starlette.responses import Response, StreamingResponse

from jobs.api.wire import ApiError
from pipeline.documents import Artifact, Commit
from pipeline.places import CHUNK_BYTES
from pipeline.spritesheet import make_sprite_sheet
from pipeline.store import ObjectStore

Variant = Literal["video", "thumbnail", "spritesheet"]
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII | re.IGNORECASE)


@contextmanager
def missed_if_gone() -> Generator[None]:
    """Tell whoever asks for what a video was made of, where the storage has it no more.

    Raises:
        ApiError: it hasn't.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            "the video was made, but isn't in the endpoint's storage any more; "
            "whoever runs the endpoint may have it again",
            code="content_missing",
        ) from error


def read_content(
    store: ObjectStore, commit: Commit, variant: Variant, asked: Mapping[str, str] | None = None
) -> Response:
    """Return the answer to a download, whose request's headers are `asked`.

    Nothing is sent to whoever has it (RFC 9110, 13.1.2). A single range of the video is honoured
    (14.2); with If-Range where that is the video's entity tag (13.1.5).

    Raises:
        ApiError: the range begins beyond the end.
        FileNotFoundError: the storage has it no more.
    """
    asked = asked or {}
    file = commit.poster if variant == "thumbnail" else commit.video
    tag = f'"{file.sha256}{"-sheet" if variant == "spritesheet" else ""}"'
    if _has(asked.get("if-none-match", ""), tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"etag": tag})
    if variant == "video":
        return _stream(store, file, tag, asked)
    content = store.read(file.key)
    if variant == "spritesheet":
        content = make_sprite_sheet(content)
    return Response(content, headers={"etag": tag}, media_type="image/jpeg")


def _stream(store: ObjectStore, file: Artifact, tag: str, asked: Mapping[str, str]) -> Response:
    size_bytes = file.size_bytes
    wanted = asked.get("range") if asked.get("if-range", tag) == tag else None
    part = _find_range(wanted, size_bytes)
    start, end = part or (0, size_bytes)
    headers = {
        "accept-ranges": "bytes",
        "content-length": str(end - start),
        "etag": tag,
    }
    if part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    status = HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK
    chunks = _read(store, file.key, start, end)
    first = next(chunks)  # once the headers are sent nobody can be told that there is nothing
    return StreamingResponse(chain((first,), chunks), status, headers, media_type="video/mp4")


def _has(tags: str, tag: str) -> bool:
    """Return whether a list of entity tags has this one, in its weak form too."""
    listed = {each.strip().removeprefix("W/") for each in tags.split(",")}
    return tag in listed or "*" in listed


def _read(store: ObjectStore, key: str, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, CHUNK_BYTES):
        yield store.read(key, at, min(at + CHUNK_BYTES, end))


def _find_range(asked: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Return the bytes that are asked for, first and one beyond the last; None where none are."""
    match = _RANGE.fullmatch((asked or "").strip())
    if not match or not any(match.groups()):  # none, several, or another unit: to be passed over
        return None
    first, last = match.groups()
    if not first:
        start, end = max(size_bytes - int(last), 0), size_bytes
    else:
        start, end = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
    if start >= size_bytes or (last and first and int(last) < start):
        error = ApiError(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"range {asked}: the video has {size_bytes} bytes",
            code="invalid_range",
        )
        error.headers["content-range"] = f"bytes */{size_bytes}"
        raise error
    return start, end
