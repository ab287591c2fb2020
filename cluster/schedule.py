"""Which clip next: a pure queue, without Ray and without a clock of its own."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import IntEnum

from cluster.answers import ClipKey
from pipeline.request import RenderRequest


class Urgency(IntEnum):
    """A clip's class; the lower goes first."""

    ONLINE = 0
    BATCH = 1


@dataclass(frozen=True)
class Task:
    """A clip that waits for a gang."""

    key: ClipKey
    request: RenderRequest
    urgency: Urgency = Urgency.BATCH
    room: int | None = None
    """The `max_tokens` of the gangs that take it."""
    owner: str = ""
    """Whose it is: owners of online clips take turns."""


@dataclass
class Schedule:
    """The waiting clips, by class: batch longest work first, online in turns of its owners.

    Clips for gangs of different room wait apart. Longest first keeps the tail short: the last gangs
    to finish are then on short clips. Turns are those of fair queueing with a clip as the unit: an
    owner's next clip comes after one of each other owner who waits (Demers, Keshav and Shenker,
    SIGCOMM 1989).
    """

    _heaps: dict[tuple[int | None, Urgency], list[tuple[int, int, Task]]] = field(
        default_factory=dict[tuple[int | None, Urgency], list[tuple[int, int, Task]]]
    )
    _arrivals: int = 0
    _turn: int = 0
    _last_turns: dict[str, int] = field(default_factory=dict[str, int])

    def __len__(self) -> int:
        """Return how many clips wait."""
        return sum(map(len, self._heaps.values()))

    def count(self, room: int | None) -> int:
        """Return how many clips wait for gangs of this room."""
        return sum(len(self._heaps.get((room, urgency), ())) for urgency in Urgency)

    def has(self, room: int | None, urgency: Urgency) -> bool:
        """Return whether a clip of a class waits for gangs of this room."""
        return bool(self._heaps.get((room, urgency)))

    def add(self, task: Task) -> None:
        """Let a clip wait its turn."""
        self._arrivals += 1
        rank = -task.request.work
        if task.urgency is Urgency.ONLINE:
            rank = max(self._turn, self._last_turns.get(task.owner, -1) + 1)
            self._last_turns[task.owner] = rank
        heap = self._heaps.setdefault((task.room, task.urgency), [])
        heapq.heappush(heap, (rank, self._arrivals, task))

    def take(
        self, room: int | None = None, classes: tuple[Urgency, ...] = tuple(Urgency)
    ) -> Task | None:
        """Return the clip that is next for gangs of this room, and take it out; None if none.

        `classes` are those to take from, the first choice first.
        """
        for urgency in classes:
            heap = self._heaps.get((room, urgency))
            if heap:
                rank, _, task = heapq.heappop(heap)
                if urgency is Urgency.ONLINE:
                    self._turn = rank
                    if not any(self.has(each, urgency) for each, _ in self._heaps):
                        self._last_turns.clear()
                return task
        return None
