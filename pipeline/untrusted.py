"""Images and videos that strangers send, made into files of ours in a process of its own.

What is sent is never kept. A process with little memory, little time, no secrets in its environment
and nothing open decodes it, and what it hands back is encoded anew: a plain PNG of the size that is
asked for, or an MP4. So a file that is a second thing beside an image is an image afterwards, and
one that is made to grow beyond bounds ends that process alone.
"""

# PyAV's own hints are partial.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.probe import Frames
from pipeline.recipe import FinishSpec
from pipeline.video import VideoWriter

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
VIDEO_CODECS = ("h264", "hevc", "vp9", "av1")
MAX_PIXELS = 1 << 25
"""Of an image, or of a video's frame: 33 million."""
MAX_FRAMES = 1200
MAX_MEMORY_BYTES = 2 << 30
MAX_CPU_S = 20
TIMEOUT_S = 60.0
_BAD_INPUT = 3
_KEPT = FinishSpec(crf=10, preset="fast")
COMMAND = (sys.executable, "-P", "-m", "pipeline.untrusted")
"""`-P`: a `pipeline.py` in the folder that this runs in is another's."""
_room = threading.BoundedSemaphore(2)
"""Files that are decoded at once."""


class UntrustedError(ValueError):
    """What was sent is no image or video that we take; the message may be shown to its sender."""


def remake_image(content: bytes, width: int, height: int) -> bytes:
    """Return an image as a PNG of this size, in pixels: scaled to cover it, its middle cut out.

    Transparent parts become white.

    Raises:
        UntrustedError: it is no PNG, JPEG or WebP of one frame, or too large.
    """
    return _decode_apart(content, "image", str(width), str(height))


def remake_video(content: bytes) -> bytes:
    """Return a video as an MP4 without sound, with its frames evenly spaced.

    Raises:
        UntrustedError: it is no MP4 that we can decode, or too large.
    """
    return _decode_apart(content, "video")


def _decode_apart(content: bytes, *args: str) -> bytes:
    env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    try:
        # Its temporary files are in a folder of ours: where it is ended it removes none.
        with _room, tempfile.TemporaryDirectory(prefix="rushes-") as folder:
            done = subprocess.run(
                [*COMMAND, str(MAX_MEMORY_BYTES), *args],
                input=content,
                capture_output=True,
                env={**env, "TMPDIR": folder},
                timeout=TIMEOUT_S,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise UntrustedError(f"it can't be decoded in {TIMEOUT_S:.0f} s") from error
    if done.returncode == 0:
        return done.stdout
    if done.returncode == _BAD_INPUT:
        raise UntrustedError(done.stdout.decode())
    raise UntrustedError("it can't be decoded with the memory and time that one input has")


def _main() -> None:
    """Decode standard input to standard output."""
    memory_bytes, kind, *size = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    content = sys.stdin.buffer.read()
    try:
        made = (
            _remake_image(content, *map(int, size)) if kind == "image" else _remake_video(content)
        )
    except UntrustedError as error:
        sys.stdout.write(str(error))  # standard error has what decoders say, with paths in it
        sys.exit(_BAD_INPUT)
    sys.stdout.buffer.write(made)


def _remake_image(content: bytes, width: int, height: int) -> bytes:
    Image.MAX_IMAGE_PIXELS = None  # ours is the check below, before any pixel is decoded
    said = f"expected an image: {', '.join(IMAGE_FORMATS)}"
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as found:
            if found.width * found.height > MAX_PIXELS:
                raise UntrustedError(
                    f"got {found.width}x{found.height}, expected up to {MAX_PIXELS} pixels"
                )
            # A phone's JPEG may have more pictures behind the first, a smaller one for example.
            if found.format != "MPO" and getattr(found, "n_frames", 1) > 1:
                raise UntrustedError("got an animation, expected one image")
            upright = ImageOps.exif_transpose(found).convert("RGBA")
    except UnidentifiedImageError as error:
        raise UntrustedError(f"{said}; got none of them") from error
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError) as error:
        if isinstance(error, UntrustedError):
            raise
        raise UntrustedError(f"{said}; this one is damaged") from error
    plain = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    fitted = ImageOps.fit(plain.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    fitted.save(made, "PNG")
    return made.getvalue()


def _remake_video(content: bytes) -> bytes:
    try:
        with (
            tempfile.TemporaryDirectory(prefix="rushes-") as folder,
            av.open(io.BytesIO(content), "r", format="mp4") as source,
        ):
            if not source.streams.video:
                raise UntrustedError("the file has no video")
            stream = source.streams.video[0]
            context = stream.codec_context
            if context.name not in VIDEO_CODECS:
                raise UntrustedError(
                    f"got {context.name}, expected one of {', '.join(VIDEO_CODECS)}"
                )
            if not 0 < context.width * context.height <= MAX_PIXELS:
                raise UntrustedError(
                    f"got {context.width}x{context.height}, expected up to {MAX_PIXELS} pixels"
                )
            stream.thread_count = 1
            path = Path(folder) / "video.mp4"
            fps = float(stream.average_rate or 0)
            with VideoWriter(path, context.width, context.height, fps, _KEPT) as writer:
                for frame in _read_frames(source, stream):
                    writer.write(frame)
            return path.read_bytes()
    except UntrustedError:
        raise
    except (FFmpegError, OSError, ValueError) as error:
        raise UntrustedError("expected a video: MP4; this one is damaged, or none") from error


def _read_frames(source: InputContainer, stream: VideoStream) -> Iterator[Frames]:
    for number, frame in enumerate(source.decode(stream)):
        if number == MAX_FRAMES:
            raise UntrustedError(f"the video is too long: expected up to {MAX_FRAMES} frames")
        yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)[None]


if __name__ == "__main__":
    _main()
