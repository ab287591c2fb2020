"""`Outbox`: what the online endpoint still has to tell its webhook, in the store until it is heard.

    webhooks/<ab>/<event id>.json       before the end that it tells of; removed once it is told

An event's id is made of its video's or batch's, so that one written twice is one event; `ab` is its
last two digits.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from pipeline.batches import BatchEnd
from pipeline.documents import BatchId, Document, read_document
from pipeline.inbox import VideoEnd, VideoId
from pipeline.lease import check_epoch
from pipeline.places import map_threads
from pipeline.store import ObjectStore

FOLDER = "webhooks"
EVENT_ID = r"evt_[0-9a-f]{44}"


class WebhookEvent(Document):
    """That a video or a batch has ended."""

    id: Annotated[str, Field(pattern=rf"^{EVENT_ID}$")]
    type: Literal[
        "video.completed", "video.failed",
        "batch.completed", "batch.failed", "batch.expired", "batch.cancelled",
    ]  # fmt: skip
    video_id: VideoId | None = None
    batch_id: BatchId | None = None
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of_end(cls, video_id: str, end: VideoEnd) -> WebhookEvent:
        """Return the event of a video's end."""
        return cls(
            id=f"evt_{video_id.removeprefix('video_')}",
            type="video.completed" if end.status == "completed" else "video.failed",
            video_id=video_id,
            created_at=end.ended_at,
        )

    @classmethod
    def of_batch(cls, batch_id: str, end: BatchEnd) -> WebhookEvent:
        """Return the event of a batch's end."""
        return cls(
            id=f"evt_{batch_id.removeprefix('batch_')}",
            type=_BATCH_EVENTS[end.status],
            batch_id=batch_id,
            created_at=end.ended_at,
        )

    @property
    def subject(self) -> str:
        """The id of what has ended."""
        return self.video_id or self.batch_id or ""

    def to_body(self) -> str:
        """Return what is posted: an event of OpenAI's, https://platform.openai.com/docs/webhooks."""
        return json.dumps(
            {
                "id": self.id,
                "object": "event",
                "created_at": int(self.created_at.timestamp()),
                "type": self.type,
                "data": {"id": self.subject},
            }
        )


_BATCH_EVENTS: dict[str, Literal["batch.completed", "batch.failed", "batch.expired",
                                 "batch.cancelled"]] = {
    "completed": "batch.completed",
    "failed": "batch.failed",
    "expired": "batch.expired",
    "cancelled": "batch.cancelled",
}  # fmt: skip


class Outbox:
    """The events of one output that are still to be told. Safe in threads; can be pickled."""

    def __init__(self, store: ObjectStore, epoch: int) -> None:
        """Touch nothing yet; nothing is written once another run has taken over."""
        self.store = store
        self._epoch = epoch

    def keep(self, event: WebhookEvent) -> None:
        """Keep an event until it is told.

        Raises:
            LeaseLostError: another run has taken over.
        """
        check_epoch(self.store, self._epoch)
        self.store.put(_key(event.id), event.model_dump_json().encode())

    def remove(self, event: WebhookEvent) -> None:
        """Forget an event: it was told, or never will be."""
        self.store.delete(_key(event.id))

    def load(self) -> list[WebhookEvent]:
        """Return every event that is kept, the oldest first."""
        keys = sorted(key for key in self.store.list_shards(FOLDER) if _KEY.fullmatch(key))
        read = partial(read_document, self.store, WebhookEvent)
        events = map_threads(read, keys, self.store.concurrency)
        return sorted(events, key=lambda event: event.id)


_KEY = re.compile(rf"{FOLDER}/../{EVENT_ID}\.json")


def _key(event_id: str) -> str:
    return f"{FOLDER}/{event_id[-2:]}/{event_id}.json"
