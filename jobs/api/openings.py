"""What a call gives a clip to begin with: an image, or a video to go on from.

Nothing is fetched: an image is in the call, as a file or a `data:` URL, and so no call makes this
machine look at others, or at its own files.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

from jobs.api.body import SETTINGS, check_names, parse_request
from jobs.api.wire import ApiError, invalid_value
from pipeline.inputs import Inputs
from pipeline.probe import probe
from pipeline.recipe import Recipe
from pipeline.request import Opening, RenderRequest
from pipeline.untrusted import MAX_FRAMES, UntrustedError, remake_image, remake_video

KEPT = tuple(name for name in SETTINGS if name not in ("num_frames", "fps"))
EXTENSION_FIELDS = ("prompt", "seconds", "video", "priority", "metadata", *KEPT)
_DATA_URL = re.compile(
    r"data:image/[a-z0-9+.-]+(?:;[a-z-]+=[^;,]*)*;base64,(?P<data>[a-z0-9+/=\s]*)",
    re.ASCII | re.IGNORECASE,
)
"""RFC 2397, in which a type may have parameters."""


@dataclass(frozen=True)
class SourceVideo:
    """A video to go on from."""

    content: bytes
    """An MP4 of ours."""
    width: int
    height: int
    num_frames: int
    fps: float
    request: RenderRequest | None = None
    """What it was made of, if we made it."""


@dataclass(frozen=True)
class OpeningReader:
    """Reads what clips begin with, and keeps it in an output; can be pickled."""

    recipe: Recipe
    inputs: Inputs

    def add_image(self, request: RenderRequest, reference: Any) -> RenderRequest:
        """Return a request whose first frame is an `input_reference`.

        Raises:
            ApiError: the model takes none, or it is no image.
        """
        self.check_support("input_reference", frames=1)
        sent = _read_reference(reference)
        try:
            image = remake_image(sent, request.width, request.height)
        except UntrustedError as error:
            raise invalid_value("input_reference", str(error)) from error
        opening = Opening(sha256=self.inputs.keep(image), num_frames=1, seen_frames=1)
        return request.model_copy(update={"opening": opening})

    def extend(self, fields: Mapping[str, Any], video: SourceVideo) -> RenderRequest:
        """Return the request of a clip that is a video and goes on from it.

        The model sees as many of the video's last frames as it can and as leave room for new ones.

        Raises:
            ApiError: the model can't, or not for so long, or a field has a value it can't do.
        """
        self.check_support("video", frames=2)
        check_names(fields, EXTENSION_FIELDS)
        limits = self.recipe.limits
        step = limits.frame_multiple
        most = min(limits.max_frames - 1, MAX_FRAMES - video.num_frames) // step * step
        seconds = _read_seconds(fields.get("seconds"), most / video.fps)
        new = min(max(round(seconds * video.fps / step), 1) * step, most)
        seen = min(limits.max_seen_frames, video.num_frames, limits.max_frames - new)
        seen = (seen - 1) // step * step + 1
        kept = video.request.model_dump(include={*KEPT}) if video.request else {}
        asked = {name: fields[name] for name in ("prompt", *KEPT) if fields.get(name) is not None}
        shape = {
            "size": f"{video.width}x{video.height}",
            "fps": video.fps,
            "num_frames": new + seen,
        }
        try:
            request = parse_request({**kept, **shape, **asked}, self.recipe)
        except ApiError as error:
            if error.body.param in shape:  # it is the video's own
                raise invalid_value("video", f"its {error.body.message}") from error
            raise
        opening = Opening(
            sha256=self.inputs.keep(video.content),
            num_frames=video.num_frames,
            seen_frames=seen,
        )
        return request.model_copy(update={"opening": opening})

    def check_support(self, param: str, frames: int) -> None:
        """Check that the model goes on from so many frames at least.

        Raises:
            ApiError: it doesn't.
        """
        takes = self.recipe.limits.max_seen_frames
        if takes < frames:
            from_what = "an image, but no video" if takes else "text alone"
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"{self.recipe.name} renders from {from_what}; leave {param} out",
                param=param,
                code="unsupported",
            )


def read_sent_video(content: bytes) -> SourceVideo:
    """Return a video that a call has in it.

    Raises:
        ApiError: it is none that we can decode.
    """
    try:
        made = remake_video(content)
    except UntrustedError as error:
        raise invalid_value("video", str(error)) from error
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(made)
        file.flush()
        seen = probe(Path(file.name))
    return SourceVideo(made, seen.width, seen.height, seen.num_frames, float(seen.fps))


def _read_reference(reference: Any) -> bytes:
    """Return the bytes of an image as they were sent."""
    if isinstance(reference, bytes):
        return reference
    fields = cast(dict[str, Any], reference if isinstance(reference, dict) else {})
    url = fields.get("image_url")
    if set(fields) != {"image_url"} or not isinstance(url, str):
        said = "expected an image's file, or its image_url, which is a data: URL"
        raise invalid_value("input_reference", said)
    match = _DATA_URL.fullmatch(url)
    if not match:
        said = "expected data:image/...;base64,...: images aren't fetched from anywhere"
        raise invalid_value("input_reference", f"image_url: got {url[:40]!r}, {said}")
    try:
        return base64.b64decode(match["data"])
    except binascii.Error as error:
        raise invalid_value("input_reference", f"image_url: no base64: {error}") from error


def _read_seconds(value: Any, most: float) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if isinstance(value, bool) or not 0 < seconds <= most:  # nor NaN
        shown = "nothing" if value is None else repr(str(value)[:40])
        raise invalid_value("seconds", f"got {shown}, expected up to {most:g} s more of this video")
    return seconds
