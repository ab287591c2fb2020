"""Images and videos as callers send them, good and bad."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from pipeline.probe import Frames
from pipeline.recipe import FinishSpec
from pipeline.video import VideoWriter


def make_image(width: int = 64, height: int = 64, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image whose left half is red and whose right half is blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def make_frames(num_frames: int = 9, width: int = 64, height: int = 64) -> Frames:
    """Return frames that get brighter from one to the next."""
    levels = np.linspace(40, 200, num_frames).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def make_video(folder: Path, num_frames: int = 9, **size: int) -> bytes:
    """Return `make_frames` as an MP4 of 8 frames a second."""
    frames = make_frames(num_frames, **size)
    path = folder / "video.mp4"
    with VideoWriter(path, frames.shape[2], frames.shape[1], 8, FinishSpec(crf=4)) as writer:
        writer.write(frames)
    return path.read_bytes()


def encode_video(codec: str, container: str, num_frames: int = 3) -> bytes:
    """Return gray frames in another codec or container than ours."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for _ in range(num_frames):
            gray = np.full((64, 64, 3), 128, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def read_image(content: bytes) -> Frames:
    """Return an image's pixels, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.uint8)
