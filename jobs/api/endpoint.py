"""`Endpoint`: what the routes stand on, and what several of them do."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol, cast

from cluster.answers import BatchState, Refusal, VideoState
from jobs.api.body import RemixBody, check_names
from jobs.api.call import Call
from jobs.api.content import missed_if_gone
from jobs.api.job import JobReader
from jobs.api.keys import ApiKeys
from jobs.api.openings import SourceVideo, read_sent_video
from jobs.api.wire import ApiError, invalid_value
from pipeline.batches import BatchJob, BatchLimits
from pipeline.inbox import VideoJob, new_video_id
from pipeline.inputs import Inputs
from pipeline.ledger import Ledger
from pipeline.recipe import Recipe
from pipeline.uploads import FileRecord

BODIES_AT_ONCE, BODIES_WAITING = 16, 128
"""Of one owner. The bodies of those that wait are held, too: by the proxy."""
BODIES_RETRY_S = 5
"""Of one owner's calls: they are in memory while they are received."""


class FileDesk(Protocol):
    """What is needed of a `cluster.files.Files`."""

    async def add(self, record: FileRecord) -> FileRecord | Refusal: ...  # noqa: D102
    async def find(self, owner: str, file_id: str) -> FileRecord | None: ...  # noqa: D102
    async def list(  # noqa: D102
        self, owner: str, after: str | None, limit: int, purpose: str | None, *, newest_first: bool
    ) -> tuple[list[FileRecord], bool] | None: ...
    async def delete(self, owner: str, file_id: str) -> bool: ...  # noqa: D102


class BatchDesk(Protocol):
    """What is needed of a `cluster.batches.Batches`."""

    async def create(self, job: BatchJob) -> BatchState | Refusal | None: ...  # noqa: D102
    async def find_repeated(  # noqa: D102
        self, owner: str, idempotency_key: str
    ) -> BatchState | None: ...
    async def find(self, owner: str, batch_id: str) -> BatchState | None: ...  # noqa: D102
    async def list(  # noqa: D102
        self, owner: str, after: str | None, limit: int
    ) -> tuple[list[BatchState], bool] | None: ...
    async def cancel(self, owner: str, batch_id: str) -> BatchState | None: ...  # noqa: D102


class Desk(Protocol):
    """What is needed of a `cluster.dispatch.Dispatcher`."""

    @property
    def files(self) -> FileDesk: ...  # noqa: D102
    @property
    def batches(self) -> BatchDesk: ...  # noqa: D102
    async def submit(self, job: VideoJob) -> VideoState | Refusal: ...  # noqa: D102
    async def find_repeated(  # noqa: D102
        self, owner: str, idempotency_key: str
    ) -> VideoState | None: ...
    async def find_refusal(  # noqa: D102
        self, owner: str, idempotency_key: str | None
    ) -> Refusal | None: ...
    async def find(self, owner: str, video_id: str) -> VideoState | None: ...  # noqa: D102
    async def list(  # noqa: D102
        self, owner: str, after: str | None, limit: int, *, newest_first: bool
    ) -> tuple[list[VideoState], bool] | None: ...
    async def delete(self, owner: str, video_id: str) -> bool: ...  # noqa: D102
    async def is_ready(self) -> bool: ...  # noqa: D102
    async def read_metrics(self) -> bytes: ...  # noqa: D102


class Places:
    """One owner's places for calls that have bodies, and for some more that wait for one."""

    def __init__(self) -> None:
        """Have room."""
        self._room = asyncio.Semaphore(BODIES_AT_ONCE)
        self._calls = 0

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """Hold a place, once there is one.

        Raises:
            ApiError: too many wait.
        """
        if self._calls >= BODIES_AT_ONCE + BODIES_WAITING:
            raise too_many(Refusal("bodies", BODIES_RETRY_S))
        self._calls += 1
        try:
            async with self._room:
                yield
        finally:
            self._calls -= 1


@dataclass(frozen=True)
class Endpoint:
    """One model behind one desk."""

    desk: Desk
    recipe: Recipe
    renderer: str
    """The digest that clip ids are made with."""
    ledger: Ledger
    """Where finished clips are read."""
    keys: ApiKeys
    aliases: tuple[str, ...] = ()
    """Other names by which programs ask for the recipe's model."""
    limits: BatchLimits = field(default_factory=BatchLimits)
    created: int = field(default_factory=lambda: int(time.time()))
    places: defaultdict[str, Places] = field(default_factory=lambda: defaultdict(Places))
    """Of each owner, for calls that have bodies."""
    decoding: defaultdict[str, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )
    """Held while an owner's image or video is decoded: of one's, however many they send, one at a
    time. The threads for it are few, and everybody's."""

    @property
    def reader(self) -> JobReader:
        """What reads calls for videos."""
        return JobReader(self.recipe, self.renderer, Inputs(self.ledger.store), self.aliases)

    async def take(self, call: Call, fields: Mapping[str, Any]) -> VideoState:
        """Take a call for a video in.

        Raises:
            ApiError: it asks for what the model can't do, or its owner has reached a limit; or its
                idempotency key stands for another call.
        """
        return await self._find_repeated(call) or await self._take(call, fields)

    async def remix(self, call: Call, fields: Mapping[str, Any], video_id: str) -> VideoState:
        """Take a call for a video in that is another with a prompt of its own.

        Raises:
            ApiError: as for `take`; or there is no such video.
        """
        check_names(fields, tuple(RemixBody.model_fields))
        if repeated := await self._find_repeated(call):  # also once the other is deleted
            return repeated
        before = (await self.find(call.owner, video_id)).job
        kept = before.request.model_dump(exclude={"prompt", "width", "height", "opening"})
        # A name that it was asked for by may be none any more; an output is one model's throughout.
        model = before.model if before.model in self.reader.models else self.recipe.name
        asked = {**kept, "size": before.size, "model": model, **fields}
        return await self._take(call, asked, before)

    async def extend(self, call: Call, fields: Mapping[str, Any]) -> VideoState:
        """Take a call for a video in that goes on from another.

        Raises:
            ApiError: as for `take`; or there is no such video, or it isn't completed.
        """
        if repeated := await self._find_repeated(call):  # also once the other is deleted
            return repeated
        self.reader.openings.check_support("video", frames=2)  # before a video is decoded
        await self._check_limits(call)
        video = await self._find_source(call.owner, fields.get("video"))
        read = partial(self.reader.read_extension, fields, video)
        return await self._submit(call, await self._read(read, call))

    async def _find_repeated(self, call: Call) -> VideoState | None:
        if not call.idempotency_key:
            return None
        state = await self.desk.find_repeated(call.owner, call.idempotency_key)
        if state:
            call.check(state.job)
        return state

    async def _take(
        self, call: Call, fields: Mapping[str, Any], source: VideoJob | None = None
    ) -> VideoState:
        read = partial(self.reader.read, fields, source)
        has_image = fields.get("input_reference") not in (None, "")
        async with self.decoding[call.owner] if has_image else nullcontext():
            if has_image:
                await self._check_limits(call)
            job = await self._read(read, call)
        return await self._submit(call, job)

    async def _find_source(self, owner: str, video: Any) -> SourceVideo:
        if isinstance(video, bytes):
            async with self.decoding[owner]:
                return await asyncio.to_thread(read_sent_video, video)
        # Forms have an id by itself: the official client can't send the object that it documents.
        video_id = cast(Any, video).get("id") if isinstance(video, Mapping) else video
        if not isinstance(video_id, str):
            raise invalid_value("video", "expected the id of a completed video, or an MP4")
        job = (await self.find_completed(owner, video_id, "video")).job
        with missed_if_gone():
            commit = await asyncio.to_thread(self.ledger.read_commit, job.clip_id)
            content = await asyncio.to_thread(self.ledger.store.read, commit.video.key)
        size = commit.width, commit.height
        return SourceVideo(content, *size, commit.num_frames, job.request.fps, job.request)

    async def _check_limits(self, call: Call) -> None:
        """Refuse a call before what it begins with is decoded, and kept in the output."""
        if refusal := await self.desk.find_refusal(call.owner, call.idempotency_key):
            raise too_many(refusal)

    async def _read(self, read: Callable[..., VideoJob], call: Call) -> VideoJob:
        return await asyncio.to_thread(read, id=new_video_id(), **asdict(call))

    async def _submit(self, call: Call, job: VideoJob) -> VideoState:
        state = await self.desk.submit(job)
        if isinstance(state, Refusal):
            raise too_many(state)
        call.check(state.job)
        return state

    async def find(self, owner: str, video_id: str, param: str = "video_id") -> VideoState:
        """Return how an owner's video goes.

        Raises:
            ApiError: they have none of that id.
        """
        state = await self.desk.find(owner, video_id)
        if state is None:
            raise unknown_video(video_id, param)
        return state

    async def find_completed(
        self, owner: str, video_id: str, param: str = "video_id"
    ) -> VideoState:
        """Return how an owner's completed video is.

        Raises:
            ApiError: they have none of that id, or it isn't completed.
        """
        state = await self.find(owner, video_id, param)
        if state.status != "completed":
            raise ApiError(
                HTTPStatus.CONFLICT,
                f"the video is {state.status}, there is nothing to read",
                code="video_not_ready",
            )
        return state


def unknown_video(video_id: str, param: str = "video_id") -> ApiError:
    """Return the error for an id that is none of its caller's videos'."""
    return ApiError(
        HTTPStatus.NOT_FOUND,
        f"{param}: you have no video {video_id[:80]!r}",
        param=param,
        code="video_not_found",
    )


def too_many(refusal: Refusal) -> ApiError:
    """Return the error for what its owner has reached a limit of."""
    code, message = {
        "queue": (
            "too_many_videos",
            "you have as many videos under way as one key may have; wait for one, or delete it",
        ),
        "rate": (
            "rate_limit_exceeded",
            "you have asked for as many videos as one key may in a minute; "
            f"ask again in {refusal.retry_after_s} s",
        ),
        "files": ("too_many_files", "you have as many files as one key may have; delete some"),
        "bodies": (
            "too_many_calls",
            "you have as many calls under way as one key may have; wait for some of them",
        ),
        "batches": (
            "too_many_batches",
            "you have as many batches under way as one key may have; wait for one, or cancel it",
        ),
    }[refusal.limit]
    error = ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, code=code)
    error.headers["retry-after"] = str(refusal.retry_after_s)
    return error
