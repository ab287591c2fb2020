"""`Admission`: so many clips are in the stages at once; the others wait for their turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from cluster.answers import ClipKey
from cluster.schedule import Schedule, Task, Turn
from pipeline.request import RenderRequest


class Admission:
    """Lives on one event loop."""

    def __init__(self, room: int) -> None:
        """Let in up to `room` at once."""
        self._free = room
        self._schedule = Schedule()
        self._waiting: dict[Task, asyncio.Future[None]] = {}
        self._arrivals = 0

    @asynccontextmanager
    async def enter(self, request: RenderRequest, turn: Turn) -> AsyncGenerator[None]:
        """Hold a place from when it is this clip's turn."""
        if self._free:
            self._free -= 1
        else:
            self._arrivals += 1
            task = Task(ClipKey("", str(self._arrivals)), request, turn)
            self._waiting[task] = let_in = asyncio.get_running_loop().create_future()
            self._schedule.add(task)
            try:
                await let_in
            except asyncio.CancelledError:
                if not let_in.cancelled():  # it was let in at that moment
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while task := self._schedule.take():
            let_in = self._waiting.pop(task)
            if not let_in.done():  # else it waits no more
                let_in.set_result(None)
                return
        self._free += 1
