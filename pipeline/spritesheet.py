"""Sprite sheets: a video's frames in one row, to scrub over."""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import io

import av
from PIL import Image

TILES = 10
TILE_HEIGHT = 90
QUALITY = 85


def make_sprite_sheet(video: bytes) -> bytes:
    """Return a JPEG of up to ten frames of an MP4, evenly spaced, side by side.

    Raises:
        ValueError: the video has no frames.
    """
    with av.open(io.BytesIO(video), "r") as container:
        stream = container.streams.video[0]
        count = stream.frames
        tiles_wanted = min(TILES, count)
        wanted = {number * count // tiles_wanted for number in range(tiles_wanted)}
        tiles = [
            frame.to_image() for number, frame in enumerate(container.decode(stream))
            if number in wanted
        ]  # fmt: skip
    if not tiles:
        raise ValueError("a video without frames")
    width = max(1, round(tiles[0].width * TILE_HEIGHT / tiles[0].height))
    sheet = Image.new("RGB", (width * len(tiles), TILE_HEIGHT))
    for number, tile in enumerate(tiles):
        sheet.paste(tile.resize((width, TILE_HEIGHT)), (number * width, 0))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
