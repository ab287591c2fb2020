"""`ClipMaker`: brings the online endpoint's clips through the stages, and says how far they are."""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from itertools import islice
from typing import Any

from ray.exceptions import ActorDiedError, RayError

from cluster.admission import Admission
from cluster.answers import ClipProgress, PoolBrokenError, PoolClosedError, PoolProgress
from cluster.client import HUNG_LOOKS, LOOK_TIMEOUT_S, PoolClient
from cluster.pauses import pauses
from cluster.schedule import Turn
from cluster.stages import denoise
from pipeline.documents import Commit, Failure
from pipeline.inbox import VideoEnd
from pipeline.ledger import Ledger
from pipeline.request import RenderRequest

POLL_S, IDLE_POLL_S = 0.25, 1.0
TRIES, BATCH_TRIES = 5, 20
"""Of what fails beside the clip; a batch has time for more."""
BATCH_ENCODES = 2
"""Clips of batches that are encoded at once: one that is urgent waits for no more than these."""
_LET_GO = (ActorDiedError, PoolBrokenError, PoolClosedError)

_log = logging.getLogger("ray.serve")


class ClipMaker:
    """Lives on one event loop; `open` it first, `close` it at last."""

    def __init__(
        self,
        join: Callable[[], PoolClient],
        encode: Any,
        publish: Any,
        ledger: Ledger,
        room: int,
    ) -> None:
        """Hold the stages' deployments; `join` enters the pool of gangs.

        Of an owner's urgent clips up to `room` are in the stages at once; the others wait before
        them, so that one of a higher priority that comes late has few before it.
        """
        self._join, self._encode, self._publish = join, encode, publish
        self._ledger = ledger
        self._under_way = Counter[str]()  # by clip id: twice for one that is asked for anew
        self._progress: dict[str, ClipProgress] = {}
        self._gangs_up = 0
        self._warned = 0
        self._silent = 0  # looks in a row
        self._admissions = defaultdict[str, Admission](lambda: Admission(room))  # by owner
        self._encodes = asyncio.Semaphore(BATCH_ENCODES)
        self._joining: asyncio.Task[None] | None = None
        self._is_closed = False

    async def open(self) -> None:
        """Enter the pool, which begins to load models."""
        self._pool = await asyncio.to_thread(self._join)
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Have what is under way saved, and leave the pool: for good.

        A pool that is being entered is left, too: its gangs would be held for nobody.
        """
        self._is_closed = True
        self._watcher.cancel()
        if self._joining:
            await asyncio.wait([self._joining])
        with suppress(RayError):
            last: PoolProgress | None = await self._pool.leave()
            if last:
                self._pass_on(last)

    @property
    def gangs_up(self) -> int:
        """How many gangs have their model loaded, or only wait for a clip to load it for."""
        return self._gangs_up

    def progress(self, clip_id: str) -> ClipProgress | None:
        """Return how far a clip is, from when a gang has it until it ends."""
        return self._progress.get(clip_id)

    async def make(self, clip_id: str, request: RenderRequest, turn: Turn | None) -> VideoEnd:
        """Return how a clip ends; what fails beside it is tried again, until this is closed.

        One that takes no `turn` is a batch's: it isn't urgent.
        """
        self._under_way[clip_id] += 1
        try:
            async with self._admit(turn):
                return await self._try(clip_id, request, turn)
        finally:
            self._under_way[clip_id] -= 1
            if not self._under_way[clip_id]:
                del self._under_way[clip_id]
                self._progress.pop(clip_id, None)

    def _admit(self, turn: Turn | None) -> AbstractAsyncContextManager[None]:
        return self._admissions[turn.owner].enter(turn.priority) if turn else nullcontext()

    async def cancel(self, clip_id: str) -> None:
        """Have the pool give a clip up that nobody awaits any more."""
        with suppress(RayError):
            await self._pool.cancel(clip_id)

    async def _try(self, clip_id: str, request: RenderRequest, turn: Turn | None) -> VideoEnd:
        for pause_s in islice(pauses(), TRIES if turn else BATCH_TRIES):
            try:
                outcome = await self._take_through(clip_id, request, turn)
            except Exception as error:  # a stage's process, the pool or the storage
                if self._is_closed:
                    raise
                _log.warning(
                    "clip %s is tried again: %s", clip_id[:16], error, extra={"clip_id": clip_id}
                )
                await asyncio.sleep(pause_s)
                if isinstance(error, _LET_GO):
                    await self._join_again()
            else:
                if isinstance(outcome, Commit):
                    return VideoEnd(status="completed")
                _tell_failure(outcome)
                why = f"the model failed on this request in its {outcome.stage} stage"
                return VideoEnd(
                    status="failed",
                    code=outcome.code or "rendering_failed",
                    message=outcome.reason if outcome.code else why,
                )
        message = "the renderer could not finish this video; ask for it again later"
        return VideoEnd(status="failed", code="server_error", message=message)

    async def _take_through(
        self, clip_id: str, request: RenderRequest, turn: Turn | None
    ) -> Commit | Failure:
        with suppress(FileNotFoundError):
            return await asyncio.to_thread(self._ledger.read_commit, clip_id)
        row = {"clip_id": clip_id, "request": request.model_dump_json()}
        async with nullcontext() if turn else self._encodes:
            row = await self._encode.remote(row, self._ledger)
        row = await denoise(self._pool, row, turn)
        done = await self._publish.remote(row, self._ledger)
        return (Failure if done["failed"] else Commit).model_validate_json(done["outcome"])

    async def _watch(self) -> None:
        """Keep in sight how far the clips are that gangs have, and this tenant in the pool's."""
        looked_at = 0.0
        while True:
            await asyncio.sleep(POLL_S)
            if self._under_way or time.monotonic() - looked_at > IDLE_POLL_S:
                looked_at = time.monotonic()
                await self._look()

    async def _look(self) -> None:
        try:
            now: PoolProgress = await asyncio.wait_for(self._pool.progress(), LOOK_TIMEOUT_S)
        except TimeoutError:
            self._gangs_up = 0
            self._silent += 1
            if self._silent % HUNG_LOOKS == 0:
                _log.warning("the pool hangs: its process is ended and starts anew")
                self._pool.restart()
        except _LET_GO:
            self._gangs_up = 0
            await self._join_again()
        except RayError:  # it is starting anew
            self._gangs_up = 0
        else:
            self._silent = 0
            self._gangs_up = now.gangs_ready + now.gangs_asleep
            self._progress |= {key: at for key, at in now.clips.items() if key in self._under_way}
            self._pass_on(now)

    def _pass_on(self, now: PoolProgress) -> None:
        """Log what the pool has got over since the last look: it writes no log itself."""
        for text in now.new_warnings(self._warned):
            _log.warning(text)
        self._warned = now.warned

    async def _join_again(self) -> None:
        """Enter the pool, or another: it has let this tenant go, or could make no gang."""
        if self._is_closed:
            return
        if self._joining is None or self._joining.done():
            self._joining = asyncio.create_task(self._enter())
        await asyncio.shield(self._joining)

    async def _enter(self) -> None:
        try:
            self._pool = await asyncio.to_thread(self._join)
        except Exception as error:  # noqa: BLE001 - the next look tries again
            _log.warning("the pool can't be joined: %s", error)


def _tell_failure(failure: Failure) -> None:
    """Log why a clip failed: callers are told less, and each video's end is a line of its own."""
    _log.error(
        "clip %s failed in its %s stage: %s", failure.clip_id[:16], failure.stage, failure.reason,
        extra=failure.model_dump(include={"clip_id", "stage", "reason", "attempts"}),
    )  # fmt: skip
