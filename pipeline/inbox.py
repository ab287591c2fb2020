"""`Inbox`: what the online endpoint has accepted, in the store before it is acknowledged.

    videos/<ab>/<id>.json       create-only: who asked for which clip
    videos/<ab>/<id>.end.json   how it ended; not there while it is under way

The clip itself is the ledger's, named by the request's own identity: who asks for the same clip
gets the same files. `ab` is an id's last two digits. A deleted video's document goes first: an end
without one is passed over.
"""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from pipeline.documents import BatchId, ClipId, Document, new_id, read_document
from pipeline.lease import check_epoch
from pipeline.places import AlreadyExistsError, map_threads
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

FOLDER = "videos"
VIDEO_ID = r"video_[0-9a-f]{44}"
VideoId = Annotated[str, Field(pattern=rf"^{VIDEO_ID}$")]


class VideoJob(Document):
    """A request that was accepted."""

    id: VideoId
    owner: str
    """Whose it is: the digest of an API key; empty where the endpoint asks for none."""
    clip_id: ClipId
    request: RenderRequest
    model: str
    """As it was asked for."""
    seconds: str
    size: str
    remixed_from: str | None = None
    batch_id: BatchId | None = None
    """The batch that it is a line of: it is not urgent, and counts towards no limit of calls."""
    priority: int = 0
    """Of its owner's videos that wait, the higher goes first."""
    idempotency_key: str | None = None
    idempotency_fingerprint: str | None = None
    """Of what the call said that had the key."""
    metadata: dict[str, str] = Field(default_factory=dict)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class VideoEnd(Document):
    """How a job ended."""

    status: Literal["completed", "failed"]
    code: str | None = None
    message: str | None = None
    ended_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


def new_video_id() -> str:
    """Return an id that sorts by time, to the millisecond, and can't be guessed."""
    return new_id("video_")


class Inbox:
    """The accepted jobs of one output. Safe in threads; can be pickled."""

    def __init__(self, store: ObjectStore, epoch: int) -> None:
        """Touch nothing yet; nothing is written once another run has taken over."""
        self.store = store
        self._epoch = epoch

    def accept(self, job: VideoJob) -> None:
        """Keep a job; it is in the store when this returns.

        Raises:
            LeaseLostError: another run has taken over.
        """
        check_epoch(self.store, self._epoch)
        with contextlib.suppress(AlreadyExistsError):  # a lost reply: nobody else has this id
            self.store.create(_key(job.id), job.model_dump_json().encode())

    def end(self, video_id: str, end: VideoEnd) -> None:
        """Keep how a job ended.

        Raises:
            LeaseLostError: another run has taken over.
        """
        check_epoch(self.store, self._epoch)
        self.store.put(_key(video_id, ".end"), end.model_dump_json().encode())

    def forget(self, video_id: str) -> None:
        """Remove a job and its end; its clip stays, as others may have asked for it.

        Raises:
            LeaseLostError: another run has taken over.
        """
        check_epoch(self.store, self._epoch)
        self.store.delete(_key(video_id))
        self.store.delete(_key(video_id, ".end"))

    def load(self) -> list[tuple[VideoJob, VideoEnd | None]]:
        """Return every job with its end, the oldest first."""
        found = [match for key in self.store.list_shards(FOLDER) if (match := _KEY.fullmatch(key))]
        ended = {match["id"] for match in found if match["end"]}
        ids = sorted(match["id"] for match in found if not match["end"])

        def read(video_id: str) -> tuple[VideoJob, VideoEnd | None]:
            job = read_document(self.store, VideoJob, _key(video_id))
            if video_id not in ended:
                return job, None
            return job, read_document(self.store, VideoEnd, _key(video_id, ".end"))

        return list(map_threads(read, ids, self.store.concurrency))


_KEY = re.compile(rf"{FOLDER}/../(?P<id>{VIDEO_ID})(?P<end>\.end)?\.json")


def _key(video_id: str, suffix: str = "") -> str:
    return f"{FOLDER}/{video_id[-2:]}/{video_id}{suffix}.json"
