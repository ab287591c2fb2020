"""Which clip next: a pure queue, without Ray and without a clock of its own."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
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
    """An API key's digest; owners of online clips take turns."""
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

    @property
    def owner(self) -> str:
        """Who takes turns with the others of its class: an API key, or a batch's output."""
        return self.turn.owner if self.turn else self.key.output

    @property
    def rank(self) -> int:
        """Which of its owner's clips it is, the lowest first."""
        return -self.turn.priority if self.turn else -self.request.work


_Line = tuple[int | None, Urgency]
"""Clips of a class that wait for gangs of one room."""


@dataclass
class Schedule:
    """The waiting clips, by class, in turns of their owners: a batch's longest work first.

    Clips for gangs of different room wait apart. Longest first keeps the tail short: the last gangs
    to finish are then on short clips. Turns are those of fair queueing with a clip as the unit: an
    owner's next clip comes after one of each other owner who waits (Demers, Keshav and Shenker,
    SIGCOMM 1989).
    """

    _turns: dict[_Line, list[tuple[int, int, str]]] = field(
        default_factory=dict[_Line, list[tuple[int, int, str]]]
    )
    """Heaps: a turn, when it was asked for, whose it is."""
    _clips: dict[tuple[_Line, str], list[tuple[int, int, Task]]] = field(
        default_factory=dict[tuple[_Line, str], list[tuple[int, int, Task]]]
    )
    """Heaps, of each owner: as many clips as turns, or fewer."""
    _arrivals: int = 0
    _now: Counter[_Line] = field(default_factory=Counter[_Line])
    """The last turn that was taken."""
    _last: dict[tuple[_Line, str], int] = field(default_factory=dict[tuple[_Line, str], int])
    """Each owner's last turn of those that were asked for."""

    def __len__(self) -> int:
        """Return how many clips wait."""
        return sum(map(len, self._clips.values()))

    def has(self, room: int | None, urgency: Urgency) -> bool:
        """Return whether a clip of a class waits for gangs of this room, or did lately."""
        return bool(self._turns.get((room, urgency)))

    def add(self, task: Task) -> None:
        """Let a clip wait its turn."""
        self._arrivals += 1
        line = task.room, task.urgency
        whose = line, task.owner
        turn = self._last[whose] = max(self._now[line], self._last.get(whose, -1) + 1)
        heapq.heappush(self._turns.setdefault(line, []), (turn, self._arrivals, task.owner))
        clips = self._clips.setdefault(whose, [])
        heapq.heappush(clips, (task.rank, self._arrivals, task))

    def take(
        self,
        room: int | None = None,
        classes: tuple[Urgency, ...] = tuple(Urgency),
        is_wanted: Callable[[Task], bool] = lambda _: True,
    ) -> Task | None:
        """Return the clip that is next for gangs of this room, and take it out; None if none.

        `classes` are those to take from, the first choice first. A clip that isn't wanted any more
        costs its owner no turn.
        """
        for urgency in classes:
            line = room, urgency
            turns = self._turns.get(line, [])
            while turns:
                turn, _, owner = heapq.heappop(turns)
                task = self._take_from((line, owner), is_wanted)
                if not turns:
                    self._last = {key: last for key, last in self._last.items() if key[0] != line}
                if task:
                    self._now[line] = turn
                    return task
        return None

    def _take_from(
        self, whose: tuple[_Line, str], is_wanted: Callable[[Task], bool]
    ) -> Task | None:
        """Return an owner's next clip that is wanted, and take out those before it."""
        clips = self._clips.get(whose, [])
        found: Task | None = None
        while clips and found is None:
            *_, task = heapq.heappop(clips)
            found = task if is_wanted(task) else None
        if not clips:
            self._clips.pop(whose, None)
        return found
