"""What a report says, as it stands in `report.json`. Times are UTC; device time is in seconds.

A clip's device-seconds are its denoising's: seconds times ranks. A clip that several rows share is
counted once, with the first of them.
"""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field

from pipeline.documents import Document, OutputStatus
from pipeline.runs import RunEnd


class Work(Document):
    """What some clips are, and what they took."""

    clips: int = 0
    video_s: float = 0.0
    """Playing time."""
    device_seconds: float = 0.0
    cost: float | None = None
    """Of the device-seconds; only where a price was given."""


class Problem(Document):
    """One reason for which rows failed or were rejected."""

    stage: str | None
    """Where clips failed; None of rows that were rejected."""
    reason: str
    """The first row's, in full: reasons that differ in numbers and quoted words alone are one."""
    rows: int
    ids: tuple[str, ...]
    """The first few rows'."""


class LabelValue(Work):
    """The rows that have one value of a label."""

    value: str | None
    rows: int
    committed: int
    failed: int
    rejected: int
    remaining: int


class Breakdown(Document):
    """All rows, by the values of one label: most device time first."""

    label: str
    values: tuple[LabelValue, ...]


class StageTimes(Document):
    """Seconds that a stage took for a committed clip, on the gang or worker that ended it."""

    stage: str
    clips: int
    median_s: float
    p95_s: float
    total_s: float


class ClipNumbers(Document):
    """One committed clip that stands out."""

    id: str
    """Its first row's."""
    clip_id: str
    video: str
    """Its key in the output."""
    denoise_s: float
    device_seconds: float
    attempts: int
    """Over all runs, those that failed included."""


class RunSummary(Document):
    """One run, and what the output holds of its time."""

    epoch: int
    host: str
    pid: int
    rushes: str
    recipe: str
    started_at: datetime
    ended_at: datetime | None
    ended: RunEnd | None
    """How; None where it died without a word, or still writes."""
    writing: bool
    """Whether it holds the output's lease now."""
    reason: str
    clips: int
    """How many there were to render when it began."""
    committed: int
    """Clips whose commit is of its time, by their own clock."""
    gangs_lost: int
    device_seconds: float
    """For how long its gangs were held, times their ranks."""
    clip_device_seconds: float
    """What the denoising of its committed clips took; what earlier runs had saved is part of it."""


class DeviceUse(Document):
    """How much of the time that gangs were held for is in committed clips."""

    runs: int
    """Those that told what they held: all but those that died as they began."""
    used: float
    """Device-seconds that these runs' gangs were held for, weights' loading included."""
    ideal: float
    """Device-seconds that the denoising of these runs' committed clips took."""
    ratio: float | None
    """`ideal` over `used`."""
    cost: float | None
    """Of what was used."""


class Report(Document):
    """An output at one moment."""

    output: str
    model: str
    recipe: str
    made_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    rows: OutputStatus
    work: Work
    """All committed clips that rows ask for."""
    first_commit_at: datetime | None
    last_commit_at: datetime | None
    price: float | None
    """Money for a device-hour."""
    currency: str
    failures: tuple[Problem, ...]
    rejects: tuple[Problem, ...]
    labels: tuple[Breakdown, ...]
    stages: tuple[StageTimes, ...]
    slowest: tuple[ClipNumbers, ...]
    """Most device-seconds first."""
    num_retried: int
    """Committed clips that took more than one attempt."""
    retried: tuple[ClipNumbers, ...]
    """Those of them with the most attempts."""
    runs: tuple[RunSummary, ...]
    use: DeviceUse | None
    """None where no run has ended with a word."""
