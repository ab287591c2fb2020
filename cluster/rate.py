"""`RateLimit`: how often each of many may do something, over a sliding window of time."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable

WINDOW_S = 60.0


class RateLimit:
    """Lets each owner through `limit` times in any `window_s` seconds. Not safe in threads."""

    def __init__(
        self,
        limit: int,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know of nobody yet; `clock` tells seconds, and never goes back.

        Raises:
            ValueError: the limit lets nobody through.
        """
        if limit < 1:
            raise ValueError(f"limit: got {limit}, expected 1 or more")
        self._limit, self._window_s, self._clock = limit, window_s, clock
        self._passed = defaultdict[str, deque[float]](deque)
        """When each owner was let through, the oldest first, within the window."""

    def take(self, owner: str) -> float:
        """Let an owner through: 0. Or don't, which counts for nothing: the seconds to wait."""
        wait_s = self.find_wait(owner)
        if not wait_s:
            self._passed[owner].append(self._clock())
        return wait_s

    def find_wait(self, owner: str) -> float:
        """Return for how many seconds an owner would have to wait, 0 if for none."""
        now, passed = self._clock(), self._passed[owner]
        while passed and now - passed[0] >= self._window_s:
            passed.popleft()
        return self._window_s - (now - passed[0]) if len(passed) >= self._limit else 0.0
