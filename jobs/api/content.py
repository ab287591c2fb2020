"""The bytes of a finished video: whole or in ranges, its thumbnail, its sprite sheet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Literal

from starlette.responses import Response, StreamingResponse

from jobs.api.wire import ApiError
from pipeline.documents import Commit
from pipeline.places import CHUNK_BYTES
from pipeline.spritesheet import make_sprite_sheet
from pipeline.store import ObjectStore

Variant = Literal["video", "thumbnail", "spritesheet"]
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII | re.IGNORECASE)


def read_content(
    store: ObjectStore,
    commit: Commit,
    variant: Variant,
    asked_range: str | None,
    if_range: str | None = None,
) -> Response:
    """Return the answer to a download; a single range of the video is honoured (RFC 9110, 14.2).

    With `if_range` it is where that is the video's entity tag (13.1.5).

    Raises:
        ApiError: the range begins beyond the end.
    """
    if variant == "spritesheet":
        sheet = make_sprite_sheet(store.read(commit.video.key))
        return Response(sheet, media_type="image/jpeg")
    if variant == "thumbnail":
        return Response(store.read(commit.poster.key), media_type="image/jpeg")
    size_bytes = commit.video.size_bytes
    tag = f'"{commit.video.sha256}"'
    if if_range not in (None, tag):
        asked_range = None
    start, end = _find_range(asked_range, size_bytes)
    headers = {
        "accept-ranges": "bytes",
        "content-length": str(end - start),
        "etag": tag,
    }
    status = HTTPStatus.OK
    if (start, end) != (0, size_bytes):
        status = HTTPStatus.PARTIAL_CONTENT
        headers["content-range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    chunks = _read(store, commit.video.key, start, end)
    return StreamingResponse(chunks, status, headers, media_type="video/mp4")


def _read(store: ObjectStore, key: str, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, CHUNK_BYTES):
        yield store.read(key, at, min(at + CHUNK_BYTES, end))


def _find_range(asked: str | None, size_bytes: int) -> tuple[int, int]:
    """Return the bytes to send, first and one beyond the last; all where none are asked for."""
    match = _RANGE.fullmatch((asked or "").strip())
    if not match or not any(match.groups()):  # none, several, or another unit: to be passed over
        return 0, size_bytes
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
