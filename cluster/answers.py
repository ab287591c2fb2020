"""What the pool and the dispatcher answer: what became of a clip, and how it goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from pipeline.batches import BatchEnd, BatchJob, Cancellation
from pipeline.inbox import VideoEnd, VideoJob


class NoGangError(Exception):
    """No gang that is large enough for a clip can be built now; others can."""


class PutOffError(Exception):
    """Gangs that are large enough find no place now, while others are at work: ask again later."""


class PoolBrokenError(Exception):
    """No gang can be built, or the run has left: it can't go on, and no clip is to blame."""


class UnusableModelError(PoolBrokenError):
    """The checkpoint can't be loaded, by any gang: who calls again is to mend the call first."""


class PoolClosedError(Exception):
    """The pool's last tenant has left, and it ends: the next one makes another."""


class ClipKey(NamedTuple):
    """A clip of one output: another output's is another clip, though they may be alike."""

    output: str
    clip_id: str


class Spent(NamedTuple):
    """What a clip's denoising took, on all gangs that brought it there, as far as it was saved."""

    denoise_s: float
    device_seconds: float
    """Seconds times ranks."""
    layout: str
    """The gang's; of several, where it went on on gangs of others, all in turn."""


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
class ClipProgress:
    """How far a clip is that a gang has."""

    step: int
    num_steps: int
    step_s: float
    """What a step of it takes, in seconds; 0 before the first."""

    @property
    def left_s(self) -> float:
        """What its denoising will still take, in seconds."""
        return (self.num_steps - self.step) * self.step_s


@dataclass(frozen=True)
class PoolProgress:
    """The pool at a glance, as one of its tenants sees it.

    Every count is of this tenant's run and this pool's process alone.
    """

    waiting: int
    running: int
    steps_done: int
    gangs_ready: int
    """Of the pool, whoever they work for."""
    gangs_asleep: int
    """That are not there as no clip waits for them."""
    gangs: int
    rebuilds: int
    """Gangs that were lost meanwhile."""
    broken: str | None
    """Why no gang can be built, when none can."""
    device_seconds: float = 0.0
    """For how long gangs were held for it, weights' loading included, times their ranks.

    Of those that came up. A gang that works for nobody is held for every tenant.
    """
    clips: dict[str, ClipProgress] = field(default_factory=dict[str, ClipProgress])
    """Its clips that gangs have, by id."""
    warnings: tuple[str, ...] = ()
    """What went wrong and was got over, the last few; `warned` counts all."""
    warned: int = 0

    def new_warnings(self, warned: int) -> tuple[str, ...]:
        """Return those since there were `warned`; a pool that began anew counts from 0."""
        new = self.warned - (warned if warned <= self.warned else 0)
        return self.warnings[-new:] if new else ()


@dataclass(frozen=True)
class VideoState:
    """How a video goes that the online endpoint has accepted."""

    job: VideoJob
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    """Per cent, by denoising steps."""
    left_s: float | None
    """What its denoising will still take, in seconds, where a gang has it."""
    end: VideoEnd | None = None
    wait_s: float = 0.0
    """After how many seconds a gang may have it, where it is queued: no more than a forecast."""


@dataclass(frozen=True)
class BatchState:
    """How a batch goes that the online endpoint has accepted."""

    job: BatchJob
    status: Literal[
        "validating", "in_progress", "finalizing", "cancelling",
        "completed", "failed", "expired", "cancelled",
    ]  # fmt: skip
    total: int
    """Lines; 0 before they are read."""
    completed: int
    failed: int
    cancellation: Cancellation | None = None
    validated_at: datetime | None = None
    finalizing_at: datetime | None = None
    end: BatchEnd | None = None


@dataclass(frozen=True)
class Refusal:
    """What was not taken in, as its owner has reached a limit."""

    limit: Literal["queue", "rate", "bodies", "files", "batches"]
    """Videos under way, or asked for in a minute; calls that wait to be read; files uploaded;
    batches under way."""
    retry_after_s: int
    """When it is worth to ask again, in seconds; for the rate: when there will be room."""
