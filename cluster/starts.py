"""`Starts`: how a recipe's gangs have started, and when to give up that they will: no Ray here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from time import monotonic
from typing import Literal

from cluster.answers import PoolBrokenError
from pipeline.recipe import Recipe

MAX_FAILED_STARTS = 5

Lack = Literal["model", "place", ""]
"""For want of what a gang failed to start; nothing if for another reason."""


class Starts:
    """What became of the tries to start gangs; a room is the `max_tokens` that some share."""

    def __init__(self, recipe: Recipe) -> None:
        """Begin without any try."""
        self.broken: PoolBrokenError | None = None
        """Why no gang can be built, where none can, until they are tried anew."""
        self.placeless = set[int | None]()
        """Rooms of which a gang found no place while others were at work."""
        self.failed = Counter[str]()
        """How often each gang has failed to start, in a row."""
        self._recipe = recipe
        shapes = {
            f"{shape.name}-{number}": shape
            for shape in recipe.gangs
            for number in range(shape.count)
        }
        self._rooms = {name: shape.max_tokens for name, shape in shapes.items()}
        self._shapes = {name: shape.name for name, shape in shapes.items()}
        self._given_up: dict[int | None, tuple[str, float]] = {}
        """Rooms that no gang can be built for: why, and until when nobody tries."""
        self._has_loaded = False
        """Whether any gang ever had the model."""
        self._unusable = Counter[str]()
        """How often gangs couldn't load it."""
        self._failing: dict[str, Lack] = {}
        """Gangs whose last try failed, and for want of what."""

    @property
    def rooms(self) -> Set[int | None]:
        """Those of the recipe."""
        return set(self._rooms.values())

    @property
    def is_one_given_up(self) -> bool:
        """Whether any room is."""
        return bool(self._given_up)

    def count_gangs(self, room: int | None) -> int:
        """Return how many gangs a room is to have at most."""
        return sum(each == room for each in self._rooms.values())

    def clear(self) -> None:
        """Forget what was given up."""
        self.broken = None
        self._given_up.clear()
        self._unusable.clear()

    def succeed(self, name: str) -> bool:
        """Note that a gang has started; return whether its room was given up."""
        room = self._rooms[name]
        self.failed[name] = 0
        self._failing.pop(name, None)
        self._unusable.pop(name, None)
        self._has_loaded = True
        self.placeless.discard(room)
        return room in self._given_up

    def fail(self, name: str, *, counts: bool, lacks: Lack) -> None:
        """Note that a gang has failed to start; without `counts` it may as often as it likes."""
        self._failing[name] = lacks
        self._unusable[name] += lacks == "model"
        self.failed[name] += counts

    def count_takers(self, starting: Set[str], name: str) -> int:
        """Return how many of the gangs that are starting are to take what this one would.

        One that can't load the model doesn't count: another node may have it. Nor does one that
        fails for gangs of another shape, which may have a place where its own has none.
        """
        return sum(
            self._rooms[each] == self._rooms[name]
            and not self._unusable[each]
            and not (each in self._failing and self._shapes[each] != self._shapes[name])
            for each in starting
        )

    def is_unusable(self, asleep: Set[str]) -> bool:
        """Return whether none of the gangs can load the model.

        One node may lack what the others have: all that are awake and had a place have tried, and
        the others are taken to fail as they do once there were as many tries as gangs, or
        `MAX_FAILED_STARTS`.
        """
        tries = min(len(self._rooms), MAX_FAILED_STARTS)
        placeless = {name for name, lack in self._failing.items() if lack == "place"}
        placed = self._rooms.keys() - asleep - placeless
        have_tried = all(self._unusable[name] for name in placed)
        return not self._has_loaded and have_tried and self._unusable.total() >= tries

    def is_hopeless(self, room: int | None, asleep: Set[str]) -> bool:
        """Return whether no gang of a room is to be expected.

        So it is where all gangs that are awake of each shape have failed to start too often; those
        asleep are taken to fare as others of their shape, of which one has tried.
        """
        have_failed = {name for name, times in self.failed.items() if times >= MAX_FAILED_STARTS}
        of_room = {name for name, each in self._rooms.items() if each == room}
        tried = {self._shapes[name] for name in of_room & have_failed}
        return of_room - asleep <= have_failed and tried == {self._shapes[name] for name in of_room}

    def give_up(self, room: int | None, reason: str) -> None:
        """Note that no gang of a room can be built; the pool is broken once no room is left."""
        self._given_up[room] = reason, monotonic() + self._recipe.pool.start_timeout_s
        if self._given_up.keys() >= self.rooms:
            self.broken = PoolBrokenError(reason)

    def find_given_up(self, room: int | None) -> tuple[str, bool]:
        """Return why a room was given up, if it was, and whether it is time to try it again."""
        why, until = self._given_up.get(room, ("", 0.0))
        return why, bool(why) and monotonic() > until
