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
    room: int | None = None
    """The `max_tokens` of the gangs that take it."""


@dataclass
class Schedule:
    """The waiting clips: by class, then longest work first, then in order of arrival.

    Clips for gangs of different room wait apart. Longest first keeps the tail short: the last gangs
    to finish are then on short clips.
    """

    _heaps: dict[int | None, list[tuple[int, int, int, Task]]] = field(
        default_factory=dict[int | None, list[tuple[int, int, int, Task]]]
    )
    _arrivals: int = 0

    def __len__(self) -> int:
        """Return how many clips wait."""
        return sum(map(len, self._heaps.values()))

    def add(self, task: Task) -> None:
        """Let a clip wait its turn."""
        self._arrivals += 1
        rank = (int(task.urgency), -task.request.work, self._arrivals)
        heapq.heappush(self._heaps.setdefault(task.room, []), (*rank, task))

    def take(self, room: int | None = None) -> Task | None:
        """Return the clip that is next for gangs of this room, and take it out; None if none."""
        heap = self._heaps.get(room)
        return heapq.heappop(heap)[-1] if heap else None
