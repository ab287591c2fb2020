"""What a finished video file is: its sizes and rates, and the check of it before it's committed.

A probe decodes every frame, so a file that passes plays to its end.
"""

# PyAV's own hints are partial.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""RGB, (n, height, width, 3)."""

AAC_FRAME = 1024
"""Samples in one AAC frame: sound can't end more exactly than this."""
AAC_RATES = frozenset(
    {7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000}
)
_NTSC_BASES = (24, 30, 48, 60, 120)
SCALING = (
    Interpolation.BICUBIC
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)
"""How colours are converted, both ways: every chroma sample from all its pixels, and the same
numbers whatever the CPU's instructions."""


class ProbeError(Exception):
    """A video file isn't what it must be: what, got, expected."""


@dataclass(frozen=True)
class AudioFormat:
    """What `write_audio` takes: samples a second, and one (mono) or two (stereo) channels."""

    sample_rate: int
    channels: int

    def __post_init__(self) -> None:
        """Raise ValueError for what AAC can't hold."""
        if self.sample_rate not in AAC_RATES:
            raise ValueError(f"audio: {self.sample_rate} Hz; AAC takes {sorted(AAC_RATES)}")
        if self.channels not in (1, 2):
            raise ValueError(f"audio: {self.channels} channels; expected 1 or 2")


@dataclass(frozen=True)
class Probe:
    """What a video file holds, by decoding every frame of it."""

    width: int
    height: int
    num_frames: int
    fps: Fraction
    duration_s: float
    codec: str
    pix_fmt: str
    has_audio: bool
    audio_duration_s: float
    faststart: bool


def frame_rate(fps: float) -> Fraction:
    """Return the exact rate that a rounded one stands for: 29.97 is 30000/1001.

    Raises:
        ValueError: not a finite rate of at least 1/1000 of a frame a second.
    """
    if not isfinite(fps) or fps < 0.001:
        raise ValueError(f"fps: {fps}; expected a finite rate of at least 0.001")
    for base in _NTSC_BASES:
        exact = Fraction(base * 1000, 1001)
        if abs(fps - exact) < 0.005:
            return exact
    return Fraction(fps).limit_denominator(1001)


def encoded_size(width: int, height: int) -> tuple[int, int]:
    """Return the size that a clip of this size has in its file.

    yuv420p can neither code nor crop to an odd size (chroma is stored for two by two pixels), so
    an odd edge is repeated once and the file is one pixel larger there.
    """
    return width + width % 2, height + height % 2


def probe(path: str | Path) -> Probe:
    """Decode all of a video file and say what it holds.

    Raises:
        ProbeError: no video, damaged or cut short, or frames not evenly spaced from zero.
    """
    path = Path(path)
    try:
        return _probe(path)
    except (FFmpegError, OSError) as error:
        raise ProbeError(f"{path.name}: not a readable video: {error}") from error


def _probe(path: Path) -> Probe:
    with av.open(path, options={"err_detect": "explode"}) as source:
        if not source.streams.video:
            raise ProbeError(f"{path.name}: no video stream")
        video = source.streams.video[0]
        sound = source.streams.audio[0] if source.streams.audio else None
        context = video.codec_context
        context.options = {"err_detect": "explode"}
        times: list[Fraction] = []
        num_samples = 0
        for frame in source.decode([video] if sound is None else [video, sound]):
            if isinstance(frame, av.AudioFrame):
                num_samples += frame.samples
            elif isinstance(frame, av.VideoFrame):
                times.append((frame.pts or 0) * (frame.time_base or Fraction(0)))
        if not times or len(times) != video.frames:
            raise ProbeError(
                f"{path.name}: {len(times)} frames decoded; its index says {video.frames}"
            )
        fps = Fraction(video.average_rate or 0)
        uneven = next((k for k, time in enumerate(times) if time * fps != k), None)
        if uneven is not None:
            raise ProbeError(
                f"{path.name}: frame {uneven} is at {float(times[uneven]):.6f} s; expected "
                f"{uneven} / {fps} s"
            )
        return Probe(
            width=context.width,
            height=context.height,
            num_frames=len(times),
            fps=fps,
            duration_s=float(len(times) / fps),
            codec=context.name,
            pix_fmt=context.pix_fmt or "",
            has_audio=sound is not None,
            audio_duration_s=num_samples / sound.rate if sound is not None else 0.0,
            faststart=_is_faststart(path),
        )


def check_probe(
    probe: Probe,
    width: int,
    height: int,
    num_frames: int,
    fps: float,
    audio: AudioFormat | None = None,
) -> None:
    """Compare a file with the clip it must be; the size is the clip's, before `encoded_size`.

    Raises:
        ProbeError: everything that differs, each with got and expected.
    """
    rate = frame_rate(fps)
    expected = {
        "size": encoded_size(width, height),
        "num_frames": num_frames,
        "fps": rate,
        "codec": "h264",
        "pix_fmt": "yuv420p",
        "has_audio": audio is not None,
        "faststart": True,
    }
    got = {"size": (probe.width, probe.height)}
    wrong = [
        f"{key}: got {got.get(key, getattr(probe, key, None))}, expected {value}"
        for key, value in expected.items()
        if got.get(key, getattr(probe, key, None)) != value
    ]
    if audio is not None and probe.has_audio:
        seconds = float(num_frames / rate)
        if abs(probe.audio_duration_s - seconds) > AAC_FRAME / audio.sample_rate:
            wrong.append(f"audio: got {probe.audio_duration_s:.3f} s, expected {seconds:.3f} s")
    if wrong:
        raise ProbeError("the finished video is not the clip asked for: " + "; ".join(wrong))


def _is_faststart(path: Path) -> bool:
    """Say whether the index (`moov`) comes before the media (`mdat`)."""
    with path.open("rb") as file:
        while len(header := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", header)
            if kind in (b"moov", b"mdat"):
                return kind == b"moov"
            if size == 1:  # a 64-bit size follows
                size = struct.unpack(">Q", file.read(8))[0] - 8
            file.seek(max(size - 8, 0), 1)
    return False


def read_frames(path: str | Path) -> Frames:
    """Return all frames of a video of ours, as RGB: for tests and for small clips."""
    return np.concatenate(list(decode_frames(path)))


def decode_frames(file: str | Path | BinaryIO) -> Iterator[Frames]:
    """Yield the frames of a video of ours, as RGB, one at a time."""
    reformatter = VideoReformatter()
    with av.open(file, "r") as source:
        for frame in source.decode(video=0):
            rgb = reformatter.reformat(
                frame,
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
                interpolation=SCALING,
                threads=1,
            )
            yield np.asarray(rgb.to_ndarray(), np.uint8)[None]
