"""`Pace`: how fast a run or an output comes to its end, and how long that will take."""

from __future__ import annotations

from collections import deque

WINDOW_S = 600.0
"""The rate is that of so long: it follows gangs that come and go."""


class Pace:
    """Of what is looked at again and again: rows, or denoising steps."""

    rate = 0.0
    """How much was done in a second, in the last while; 0 where nothing was."""
    left_s: float | None = None
    """How long the rest will take at that rate, in seconds; None where nothing moves."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._looks = deque[tuple[float, int]]()
        self._total = 0

    def look(self, now: float, done: int, left: int, total: int = 0) -> None:
        """Take what is done and what is left at a moment, in seconds.

        Less done than before, or another `total`, is another count, which begins anew.
        """
        if self._looks and (done < self._looks[-1][1] or total != self._total):
            self._looks.clear()
        self._total = total
        self._looks.append((now, done))
        while len(self._looks) > 2 and self._looks[1][0] < now - WINDOW_S:
            self._looks.popleft()
        began, before = self._looks[0]
        self.rate = (done - before) / (now - began) if now > began else 0.0
        self.left_s = left / self.rate if self.rate else None
