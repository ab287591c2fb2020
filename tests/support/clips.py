"""Moving pictures, a tone, and files made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.probe import AudioFormat
from pipeline.recipe import FinishSpec
from pipeline.video import VideoWriter

FAST = FinishSpec(preset="veryfast")


def moving_frames(num_frames: int, height: int = 48, width: int = 64, start: int = 0):
    """A moving gradient: every frame differs."""
    y, x, k = np.ogrid[:height, :width, start : start + num_frames]
    planes = [(x * 3 + k * 4 + 0 * y), (y * 2 + k + 0 * x), (x + y + k * 7)]
    return np.stack([p % 256 for p in planes], -1).transpose(2, 0, 1, 3).astype(np.uint8)


def tone(seconds: float, audio: AudioFormat, hz: float = 440.0):
    time = np.arange(round(seconds * audio.sample_rate)) / audio.sample_rate
    wave = (0.5 * np.sin(2 * np.pi * hz * time)).astype(np.float32)
    return np.repeat(wave[None], audio.channels, 0)


def write_clip(path: Path, frames, fps: float = 24, finish: FinishSpec = FAST) -> Path:
    with VideoWriter(path, frames.shape[2], frames.shape[1], fps, finish) as writer:
        writer.write(frames)
    return path
