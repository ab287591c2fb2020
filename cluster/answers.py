"""What the pool answers: what became of a clip, and how it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rendered:
    """What became of a clip in the pool: latents, or a reason why there are none."""

    latents: list[Any]
    """One reference to packed `Latents`; empty when the clip failed."""
    reasons: tuple[str, ...]
    """Why each attempt failed, the first one first."""
    gang: str
    layout: str
    attempts: int
    denoise_s: float
    device_seconds: float


@dataclass(frozen=True)
class PoolProgress:
    """The pool at a glance."""

    waiting: int
    running: int
    steps_done: int
    gangs_ready: int
    gangs: int
    rebuilds: int
    broken: str | None
    """Why no gang can be built, when none can."""
    warnings: tuple[str, ...] = ()
    """What went wrong and was got over, the last few; `warned` counts all."""
    warned: int = 0
