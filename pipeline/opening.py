"""What becomes of the frames that a clip begins with, on both sides of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from pipeline.probe import Frames
from pipeline.request import RenderRequest

CONDITIONS = ("video", "mask")
"""The block inputs by which a model is given frames, as VACE names them."""
_GRAY, _BLACK, _WHITE = 128, 0, 255


def make_conditions(request: RenderRequest, frames: Iterable[Frames]) -> dict[str, Any]:
    """Return the block inputs by which a model sees an opening's last frames; none without one.

    `frames` are all of the opening's: uint8 RGB, (n, height, width, 3) each. `video` has the frames
    that are seen and is gray after them, `mask` is black where they are kept and white where the
    model draws; `request.num_frames` images each.

    Raises:
        ValueError: the frames are of another size or number than the request says.

    Source: VACE (arXiv:2503.07598), section 3.2, as diffusers' `WanVACEPipeline` takes it.
    """
    if not request.opening:
        return {}
    seen = deque[Frames](maxlen=request.opening.seen_frames)
    count = 0
    for frame in _check_frames(request, frames):
        seen.append(frame)
        count += 1
    if count != request.opening.num_frames:
        raise ValueError(f"opening: {count} frames, expected {request.opening.num_frames}")
    missing = request.num_frames - len(seen)
    if missing < 0:
        raise ValueError(f"num_frames: {request.num_frames}, expected {len(seen)} at least")
    size = request.width, request.height
    blank = Image.new("RGB", size, (_GRAY,) * 3)
    return {
        "video": [*(Image.fromarray(frame) for frame in seen), *[blank] * missing],
        "mask": [
            *[Image.new("RGB", size, (_BLACK,) * 3)] * len(seen),
            *[Image.new("RGB", size, (_WHITE,) * 3)] * missing,
        ],
    }


def begin_with(
    request: RenderRequest, frames: Iterable[Frames], made: Iterable[Frames]
) -> Iterator[Frames]:
    """Yield a clip's frames, in chunks: the opening's as they are, then those that were made.

    `made` starts with the model's own version of the frames that it saw, which are passed over.
    """
    if not request.opening:
        yield from made
        return
    for frame in _check_frames(request, frames):
        yield frame[None]
    unwanted = request.opening.seen_frames
    for chunk in made:
        yield chunk[unwanted:]
        unwanted = max(unwanted - len(chunk), 0)


def _check_frames(request: RenderRequest, frames: Iterable[Frames]) -> Iterator[Frames]:
    """Yield each frame, (height, width, 3)."""
    expected = (request.height, request.width, 3)
    for chunk in frames:
        if chunk.dtype != np.uint8 or chunk.shape[1:] != expected:
            raise ValueError(f"opening: {chunk.dtype} {chunk.shape[1:]}, expected uint8 {expected}")
        yield from chunk
