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
class Turn:
    """Whose turn a clip takes that somebody waits for."""

    owner: str = ""
    """Owners of online clips take turns."""
    priority: int = 0
    """Of one owner's clips that wait, the higher goes first."""


@dataclass(frozen=True)
class Task:
    """A clip that waits for a gang."""

    key: ClipKey
    request: RenderRequest
    turn: Turn | None = None
    """None: it is a batch's."""
    room: int | None = None
    """The `max_tokens` of the gangs that take it."""

    @property
    def urgency(self) -> Urgency:
        """Its class."""
        return Urgency.ONLINE if self.turn else Urgency.BATCH


_Heap = list[tuple[int, int, Task]]
_Turns = list[tuple[int, int, str]]


@dataclass
class Schedule:
    """The waiting clips, by class: batch longest work first, online in turns of its owners.

    Clips for gangs of different room wait apart. Longest first keeps the tail short: the last gangs
    to finish are then on short clips. Turns are those of fair queueing with a clip as the unit: an
    owner's next clip comes after one of each other owner who waits (Demers, Keshav and Shenker,
    SIGCOMM 1989); which of theirs it is, their priorities say.
    """

    _batch: dict[int | None, _Heap] = field(default_factory=dict[int | None, _Heap])
    _turns: dict[int | None, _Turns] = field(default_factory=dict[int | None, _Turns])
    _online: dict[tuple[int | None, str], _Heap] = field(
        default_factory=dict[tuple[int | None, str], _Heap]
    )
    _arrivals: int = 0
    _turn: int = 0
    _last_turns: dict[str, int] = field(default_factory=dict[str, int])

    def __len__(self) -> int:
        """Return how many clips wait."""
        return sum(map(self.count, self._batch.keys() | self._turns.keys()))

    def count(self, room: int | None) -> int:
        """Return how many clips wait for gangs of this room."""
        return len(self._batch.get(room, ())) + len(self._turns.get(room, ()))

    def has(self, room: int | None, urgency: Urgency) -> bool:
        """Return whether a clip of a class waits for gangs of this room."""
        waiting = self._turns if urgency is Urgency.ONLINE else self._batch
        return bool(waiting.get(room))

    def add(self, task: Task) -> None:
        """Let a clip wait its turn."""
        self._arrivals += 1
        if task.turn is None:
            heap = self._batch.setdefault(task.room, [])
            heapq.heappush(heap, (-task.request.work, self._arrivals, task))
            return
        owner = task.turn.owner
        turn = self._last_turns[owner] = max(self._turn, self._last_turns.get(owner, -1) + 1)
        heapq.heappush(self._turns.setdefault(task.room, []), (turn, self._arrivals, owner))
        heap = self._online.setdefault((task.room, owner), [])
        heapq.heappush(heap, (-task.turn.priority, self._arrivals, task))

    def take(
        self, room: int | None = None, classes: tuple[Urgency, ...] = tuple(Urgency)
    ) -> Task | None:
        """Return the clip that is next for gangs of this room, and take it out; None if none.

        `classes` are those to take from, the first choice first.
        """
        for urgency in classes:
            if self.has(room, urgency):
                if urgency is Urgency.BATCH:
                    return heapq.heappop(self._batch[room])[-1]
                return self._take_turn(room)
        return None

    def _take_turn(self, room: int | None) -> Task:
        self._turn, _, owner = heapq.heappop(self._turns[room])
        task = heapq.heappop(self._online[room, owner])[-1]
        if not any(self._turns.values()):
            self._last_turns.clear()
        return task
