"""What a round of `benchmarks.online_chaos` asks for, and what it kills when: a seed's, always."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.api.job import JobReader
from jobs.recipes import find_recipe
from pipeline.documents import Commit
from pipeline.identity import digest_renderer
from pipeline.inbox import new_video_id
from pipeline.inputs import Inputs
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.model import fingerprint_model, resolve_checkpoint
from pipeline.store import ObjectStore
from tests.support.online import BUSY, MINE, OTHERS

PARTS = {
    "dispatcher": "ray::ServeReplica:rushes:Dispatcher",
    "ingress": "ray::ServeReplica:rushes:Ingress",
    "encode": "ray::ServeReplica:rushes:Encode",
    "publish": "ray::ServeReplica:rushes:Publish",
    "controller": "ray::ServeController",
    "proxy": "ray::ProxyActor",
    "pool": "ray::GangPool",
    "rank": "ray::RankWorker",
}
"""What Ray starts anew, by what its process calls itself."""
WHOLES = ("raylet", "gcs_server", "driver", "cluster")
"""After which the command is called again: a cluster without its raylet or GCS ends by itself, as
does one without its driver; `cluster` is every process at once, as where a machine's power goes."""
PARTS_A_ROUND = 3
CALLS_A_PHASE = 5
BATCH_LINES = 4
SHAPES = (
    {"size": "32x32", "num_frames": "5", "num_inference_steps": "4"},
    {"size": "64x64", "num_frames": "17", "num_inference_steps": "40"},
    {"size": "64x32", "num_frames": "9", "num_inference_steps": "16"},
    {"size": "64x64", "num_frames": "17", "num_inference_steps": "80"},
    {"size": "48x48", "num_frames": "13", "num_inference_steps": "24"},
)
CLIPS = 15


@dataclass(frozen=True)
class VideoCall:
    """A call for a video, repeated until it is answered."""

    number: int
    after_s: float
    """Since the phase's begin."""
    key: str
    clip: int
    is_idempotent: bool
    """It has an `Idempotency-Key`: it is one video, however often it is made."""
    asks_again: bool = False
    """Once it is answered it is made once more."""
    delete_after_s: float | None = None
    """When the video is deleted, since it was accepted."""


@dataclass(frozen=True)
class BatchCall:
    """A file of calls with a wrong one last, and a batch of it."""

    number: int
    after_s: float
    key: str
    clips: tuple[int, ...]
    deletes_file: bool
    """Once the lines are read."""


@dataclass(frozen=True)
class Phase:
    """Calls, and what is killed while they are made and answered."""

    calls: tuple[VideoCall | BatchCall, ...]
    kill: str
    kill_after_s: float


def make_plan(
    dice: random.Random,
    kills: Sequence[str] = (),
    clips: int = CLIPS,
    calls_a_phase: int = CALLS_A_PHASE,
) -> list[Phase]:
    """Return a round: a phase for each kill, which the dice choose if none are named."""
    if not kills:
        chosen = [*dice.sample(sorted(PARTS), PARTS_A_ROUND), dice.choice(WHOLES)]
        dice.shuffle(chosen)
        kills = chosen
    with_batch = dice.randrange(len(kills))
    phases: list[Phase] = []
    for number, kill in enumerate(kills):
        first = number * (calls_a_phase + 1)
        calls = [_make_video(dice, first + n, clips) for n in range(calls_a_phase)]
        if number == with_batch:
            calls.append(_make_batch(dice, first + calls_a_phase, clips))
        phases.append(Phase(tuple(calls), kill, dice.uniform(0.5, 6.0)))
    return phases


def _make_video(dice: random.Random, number: int, clips: int) -> VideoCall:
    is_deleted = dice.random() < 0.2
    is_idempotent = is_deleted or dice.random() < 0.7
    return VideoCall(
        number,
        dice.uniform(0.0, 5.0),
        dice.choice((MINE, OTHERS, BUSY)),
        dice.randrange(clips),
        is_idempotent,
        is_idempotent and not is_deleted and dice.random() < 0.5,
        dice.uniform(0.0, 4.0) if is_deleted else None,
    )


def _make_batch(dice: random.Random, number: int, clips: int) -> BatchCall:
    lines = tuple(dice.randrange(clips) for _ in range(BATCH_LINES))
    key = dice.choice((MINE, OTHERS, BUSY))
    return BatchCall(number, dice.uniform(0.0, 1.0), key, lines, dice.random() < 0.5)


def make_body(clip: int) -> dict[str, Any]:
    """Return what is asked for: the same clip for the same number."""
    return {"prompt": f"a red ball moving left, take {clip}", **SHAPES[clip % len(SHAPES)]}


@dataclass(frozen=True)
class Undisturbed:
    """A clip as it is where nothing is killed."""

    clip_id: str
    sha256: str
    """Of its MP4."""


def render_undisturbed(folder: Path, clips: int = CLIPS) -> list[Undisturbed]:
    """Return every clip by its number, rendered in this process or there from before."""
    recipe = find_recipe()
    fingerprint = fingerprint_model(recipe.model, resolve_checkpoint(recipe.model))
    ledger = Ledger(ObjectStore(folder))
    renderer = digest_renderer(fingerprint, recipe.finish)
    reader = JobReader(recipe, renderer, Inputs(ledger.store))
    runner = LocalRunner(recipe, fingerprint, ledger)
    made: list[Undisturbed] = []
    for number in range(clips):
        job = reader.read(make_body(number), id=new_video_id(), owner="")
        try:
            commit = ledger.read_commit(job.clip_id)
        except FileNotFoundError:
            commit = runner.render(job.clip_id, job.request)
        assert isinstance(commit, Commit), commit
        made.append(Undisturbed(job.clip_id, commit.video.sha256))
    return made
