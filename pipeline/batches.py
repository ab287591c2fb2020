"""`BatchStore`: the batches of videos that the online endpoint has accepted, and how they go.

    batches/<ab>/<id>.json          create-only: who asked for which file's lines
    batches/<ab>/<id>.cancel.json   that it is to be called off
    batches/<ab>/<id>.plan.json     its lines as they were read: validation is over
    batches/<ab>/<id>.end.json      how it ended; not there while it is under way

`ab` is an id's last two digits. A plan is what is left to go by once the file is deleted: each
line's job, or why it is none. The jobs themselves and their ends are the inbox's; a job's id is
made of its batch's and its line's, so that a line that is taken up again is the same video.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from pydantic import Field

from pipeline.documents import BATCH_ID, BatchId, Document, derive_id, new_id, read_document
from pipeline.inbox import VideoJob
from pipeline.lease import check_epoch
from pipeline.places import AlreadyExistsError, map_threads
from pipeline.store import ObjectStore
from pipeline.uploads import FileId

FOLDER = "batches"
WINDOW = timedelta(hours=24)


@dataclass(frozen=True)
class BatchLimits:
    """How much one key may ask for by batches."""

    max_file_bytes: int = 100 << 20
    max_files: int = 1000
    """Files that it may have uploaded and not deleted."""
    max_lines: int = 10_000
    """Of a batch."""
    max_batches: int = 10
    """Under way at once."""


class BatchJob(Document):
    """A batch that was accepted."""

    id: BatchId
    owner: str
    input_file_id: FileId
    endpoint: str
    completion_window: str
    idempotency_key: str | None = None
    idempotency_fingerprint: str | None = None
    """Of what the call said that had the key."""
    metadata: dict[str, str] = Field(default_factory=dict)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def expires_at(self) -> datetime:
        """When what is unfinished is given up."""
        return self.created_at + WINDOW


class PlannedLine(Document):
    """A line of the batch's file: a video, or what a call for it would have been answered."""

    number: int
    """Its number in the file, from 1."""
    custom_id: str
    job: VideoJob | None = None
    status_code: int = 200
    error: dict[str, Any] | None = None
    """The error's body where there is no job."""


class BatchPlan(Document):
    """Every line of a batch, in order."""

    lines: tuple[PlannedLine, ...]
    validated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class BatchFault(Document):
    """Why a batch's file is none of a batch's."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchEnd(Document):
    """How a batch ended."""

    status: Literal["completed", "failed", "expired", "cancelled"]
    faults: tuple[BatchFault, ...] = ()
    total: int = 0
    completed: int = 0
    failed: int = 0
    """Lines that were no request, or whose video failed."""
    output_file_id: FileId | None = None
    error_file_id: FileId | None = None
    validated_at: datetime | None = None
    finalizing_at: datetime | None = None
    ended_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Cancellation(Document):
    """That a batch is to be called off."""

    cancelling_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class StoredBatch:
    """A batch as far as it has come."""

    job: BatchJob
    plan: BatchPlan | None = None
    """None before validation is over, and where the batch has ended."""
    cancellation: Cancellation | None = None
    end: BatchEnd | None = None


def new_batch_id() -> str:
    """Return an id that sorts by time, to the millisecond, and can't be guessed."""
    return new_id("batch_")


def name_video(batch_id: str, line: int) -> str:
    """Return the id of the video that a line of a batch is, always the same."""
    return derive_id("video_", batch_id, str(line))


_D = TypeVar("_D", bound=Document)


class BatchStore:
    """The accepted batches of one output. Safe in threads; can be pickled.

    Every method that writes raises LeaseLostError once another run has taken over.
    """

    def __init__(self, store: ObjectStore, epoch: int) -> None:
        """Touch nothing yet."""
        self.store = store
        self._epoch = epoch

    def accept(self, job: BatchJob) -> None:
        """Keep a batch; it is in the store when this returns."""
        check_epoch(self.store, self._epoch)
        with contextlib.suppress(AlreadyExistsError):  # a lost reply: nobody else has this id
            self.store.create(_key(job.id), job.model_dump_json().encode())

    def cancel(self, batch_id: str, cancellation: Cancellation) -> None:
        """Keep that a batch is to be called off."""
        self._put(batch_id, "cancel", cancellation)

    def plan(self, batch_id: str, plan: BatchPlan) -> None:
        """Keep a batch's lines: its file is not needed any more."""
        self._put(batch_id, "plan", plan)

    def end(self, batch_id: str, end: BatchEnd) -> None:
        """Keep how a batch ended; its plan is of no more use."""
        self._put(batch_id, "end", end)
        self.store.delete(_key(batch_id, "plan"))

    def load(self) -> list[StoredBatch]:
        """Return every batch, the oldest first."""
        found = [match for key in self.store.list_shards(FOLDER) if (match := _KEY.fullmatch(key))]
        parts = {(match["id"], match["part"] or "") for match in found}

        def read(batch_id: str) -> StoredBatch:
            job = self._read(BatchJob, batch_id)
            cancellation = end = plan = None
            if (batch_id, "cancel") in parts:
                cancellation = self._read(Cancellation, batch_id, "cancel")
            if (batch_id, "end") in parts:
                end = self._read(BatchEnd, batch_id, "end")
            elif (batch_id, "plan") in parts:
                plan = self._read(BatchPlan, batch_id, "plan")
            return StoredBatch(job, plan, cancellation, end)

        ids = sorted(batch_id for batch_id, part in parts if not part)
        return list(map_threads(read, ids, self.store.concurrency))

    def _put(self, batch_id: str, part: str, document: Document) -> None:
        check_epoch(self.store, self._epoch)
        self.store.put(_key(batch_id, part), document.model_dump_json().encode())

    def _read(self, kind: type[_D], batch_id: str, part: str = "") -> _D:
        return read_document(self.store, kind, _key(batch_id, part))


_KEY = re.compile(rf"{FOLDER}/../(?P<id>{BATCH_ID})(?:\.(?P<part>cancel|plan|end))?\.json")


def _key(batch_id: str, part: str = "") -> str:
    return f"{FOLDER}/{batch_id[-2:]}/{batch_id}{part and '.' + part}.json"
