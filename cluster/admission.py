"""`Admission`: so many of an owner's clips are in the stages; the others wait, by priority."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Admission:
    """Lives on one event loop."""

    def __init__(self, room: int) -> None:
        """Let in up to `room` at once."""
        self._free = room
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        """A heap: the highest priority first, and of one priority who came first."""
        self._arrivals = 0

    @asynccontextmanager
    async def enter(self, priority: int) -> AsyncGenerator[None]:
        """Hold a place, from when there is one and nobody of a higher priority waits for it."""
        if self._free:
            self._free -= 1
        else:
            self._arrivals += 1
            let_in = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (-priority, self._arrivals, let_in))
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
        while self._waiting:
            *_, let_in = heapq.heappop(self._waiting)
            if not let_in.done():  # else it waits no more
                let_in.set_result(None)
                return
        self._free += 1
