"""Everything that is measured, each named once; dashboards and alerts name nothing else.

Ray exports these for Prometheus on every node's metrics port (8080 under KubeRay), `ray_` in front
of the name and, for a counter, `_total` after it; `read_exported` reads them there. Where nobody
collects, as in a batch's local cluster, they cost nothing.
"""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast
from urllib.request import urlopen

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from cluster.schedule import Task, Urgency
from pipeline import bucket

EXPORTER_TIMEOUT_S = 10.0
MEASURE_S = 5.0
"""How often gauges are set, changed or not. A report of Ray's, every 10 s if not told otherwise,
has what was set since the last one; what two of them don't have is exported no more."""
_PARTS = (1.0, 1.6, 2.5, 4.0, 6.3)
"""Bounds of a histogram in each power of ten: a median between two is known to a quarter or so."""
_SECONDS = [float(f"{part}e{power}") for power in range(-1, 5) for part in _PARTS]
_STEP_SECONDS = [float(f"{part}e{power}") for power in range(-2, 3) for part in _PARTS]

# The pool's: what waits, what is made, and on what. A clip is in it once it is encoded, and of a
# caller's clips a few are at once: what callers wait for is the endpoint's, below.
CLIPS = Gauge("rushes_clips", "Clips in the pool: waiting, running.", ("state", "urgency"))
OLDEST_WAIT = Gauge(
    "rushes_oldest_wait_seconds", "How long the oldest clip has waited for a gang.", ("urgency",)
)
GANGS = Gauge("rushes_gangs", "Gangs: ready, starting, asleep.", ("state",))
GANG_REBUILDS = Counter("rushes_gang_rebuilds", "Gangs that were lost, and built again.")
DEVICES = Gauge("rushes_devices", "Devices that gangs hold, idle ones too.")
DEVICE_SECONDS = Counter(
    "rushes_device_seconds", "Seconds that gangs were held for, times their ranks."
)
STEPS = Counter("rushes_steps", "Denoising steps.", ("urgency",))
STEP_SECONDS = Histogram(
    "rushes_step_seconds",
    "A denoising step of a clip, by its size and its gang's layout.",
    _STEP_SECONDS,
    ("size", "layout"),
)
CHECKPOINT_BYTES = Counter("rushes_checkpoint_bytes", "Saved of unfinished clips.", ("kind",))

# Of whoever asks for clips, a run's driver or the endpoint. The stages' own processes come and go,
# and with them what they counted since their last report.
CLIPS_ENDED = Counter("rushes_clips_ended", "Clips that were committed or have failed.", ("how",))

# The stages'.
STAGE_SECONDS = Histogram(
    "rushes_stage_seconds", "What a stage took for a committed clip.", _SECONDS, ("stage",)
)

STORE_RETRIES = Counter("rushes_store_retries", "Calls to S3 that were made again.")
bucket.on_retry = STORE_RETRIES.inc

# A run's, from its driver. Several may be under way, each of another output.
RUN_CLIPS = Gauge(
    "rushes_run_clips",
    "Clips of the run: committed, failed, remaining.",
    ("output", "state"),
)
RUN_LEFT = Gauge(
    "rushes_run_left_seconds",
    "What the run will still take, at its pace of ten minutes.",
    ("output",),
)
RUN_TOLD = Gauge(
    "rushes_run_told_timestamp_seconds",
    "When the run last told of itself, in seconds since 1970.",
    ("output",),
)

# The endpoint's.
VIDEOS = Gauge("rushes_videos", "Videos under way for callers: queued, in_progress.", ("state",))
OLDEST_VIDEO = Gauge(
    "rushes_oldest_video_seconds", "How long ago the oldest of them was accepted.", ("state",)
)
VIDEO_SECONDS = Histogram(
    "rushes_video_seconds", "From a video's acceptance to its end.", _SECONDS, ("how",)
)

ALL: tuple[Counter | Gauge | Histogram, ...] = (
    CLIPS, OLDEST_WAIT, GANGS, GANG_REBUILDS, DEVICES, DEVICE_SECONDS, STEPS, STEP_SECONDS,
    CHECKPOINT_BYTES, CLIPS_ENDED, STAGE_SECONDS, STORE_RETRIES, RUN_CLIPS, RUN_LEFT,
    RUN_TOLD, VIDEOS, OLDEST_VIDEO, VIDEO_SECONDS,
)  # fmt: skip
"""The table."""


def count_steps(task: Task, layout: str, made: int, step_s: float) -> None:
    """Count steps of a clip, each of which took so many seconds."""
    if made:
        request = task.request
        size = f"{request.width}x{request.height}x{request.num_frames}"
        STEPS.inc(made, {"urgency": task.urgency.name.lower()})
        STEP_SECONDS.observe(step_s, {"size": size, "layout": layout})


def count_end(*, is_committed: bool) -> None:
    """Count a clip that has come to its end."""
    CLIPS_ENDED.inc(tags={"how": "committed" if is_committed else "failed"})


def measure_stages(timings: Mapping[str, float]) -> None:
    """Tell how long a committed clip took, in seconds by stage."""
    for stage, seconds in timings.items():
        STAGE_SECONDS.observe(seconds, {"stage": stage})


def measure_clips(urgency: Urgency, waits: Sequence[float], running: int) -> None:
    """Tell how many clips of a class wait, for how many seconds each, and how many run."""
    tag = {"urgency": urgency.name.lower()}
    CLIPS.set(len(waits), {"state": "waiting", **tag})
    CLIPS.set(running, {"state": "running", **tag})
    OLDEST_WAIT.set(max(waits, default=0.0), tag)


def measure_videos(accepted: Iterable[tuple[str, datetime]]) -> None:
    """Tell how many videos are under way, given each one's state and when it was accepted."""
    now, ages = datetime.now(UTC), {"queued": list[float](), "in_progress": list[float]()}
    for state, at in accepted:
        ages[state].append((now - at).total_seconds())
    for state, seconds in ages.items():
        VIDEOS.set(len(seconds), {"state": state})
        OLDEST_VIDEO.set(max(seconds, default=0.0), {"state": state})


def measure_run(output: str, counts: Mapping[str, int], left_s: float | None) -> None:
    """Tell how many of a run's clips are in each state, and how long the rest takes, if known."""
    tag = {"output": output}
    for state, number in counts.items():
        RUN_CLIPS.set(number, {"state": state, **tag})
    if left_s is not None:
        RUN_LEFT.set(left_s, tag)
    RUN_TOLD.set(time.time(), tag)


async def read_exported() -> bytes:
    """Return what this node exports, in Prometheus' text format: all that runs on it.

    Raises:
        OSError: nothing is exported here, or not yet.
    """
    here = cast(Any, ray).get_runtime_context().get_node_id()
    (port,) = (
        node["MetricsExportPort"] for node in cast(Any, ray).nodes() if node["NodeID"] == here
    )

    def read() -> bytes:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=EXPORTER_TIMEOUT_S) as answer:
            return answer.read()

    return await asyncio.to_thread(read)
