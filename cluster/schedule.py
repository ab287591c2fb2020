"""Which clip next: a pure queue, without Ray and without a clock of its own."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import IntEnum

from pipeline.request import RenderRequest


class Urgency(IntEnum):
    """A clip's class; the lower goes first."""

    ONLINE = 0
    BATCH = 1


@dataclass(frozen=True)
class Task:
    """A clip that waits for a gang."""

    key: str
    request: RenderRequest
    urgency: Urgency = Urgency.BATCH
    attempts: int = 0
    """Gangs that it has lost so far."""


@dataclass
class Schedule:
    """The waiting clips: by class, then longest work first, then in order of arrival.

    Longest first keeps the tail short: the last gangs to finish are then on short clips.
    """

    _heap: list[tuple[int, int, int, Task]] = field(
        default_factory=list[tuple[int, int, int, Task]]
    )
    _arrivals: int = 0

    def __len__(self) -> int:
        """Return how many clips wait."""
        return len(self._heap)

    def add(self, task: Task) -> None:
        """Let a clip wait its turn."""
        self._arrivals += 1
        rank = (int(task.urgency), -task.request.work, self._arrivals)
        heapq.heappush(self._heap, (*rank, task))

    def take(self) -> Task | None:
        """Return the clip that is next, and take it out; None when none waits."""
        return heapq.heappop(self._heap)[-1] if self._heap else None
