"""`Starts`: how a recipe's gangs have started, and when to give up that they will: without Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from time import monotonic

from pipeline.recipe import Recipe

MAX_FAILED_STARTS = 5


class Starts:
    """What became of the tries to start gangs; a room is the `max_tokens` that some share."""

    def __init__(self, recipe: Recipe) -> None:
        """Begin without any try."""
        self.broken: str | None = None
        """Why no gang can be built, where none can, until they are tried anew."""
        self.placeless = set[int | None]()
        """Rooms of which a gang found no place while others were at work."""
        self.failed = Counter[str]()
        """How often each gang has failed to start, in a row."""
        self._recipe = recipe
        self._rooms = {
            f"{shape.name}-{number}": shape.max_tokens
            for shape in recipe.gangs
            for number in range(shape.count)
        }
        self._given_up: dict[int | None, tuple[str, float]] = {}
        """Rooms that no gang can be built for: why, and until when nobody tries."""
        self._has_loaded = False
        """Whether any gang ever had the model."""
        self._unusable = set[str]()
        """Gangs that couldn't load it."""

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
        self._has_loaded = True
        self.placeless.discard(room)
        return room in self._given_up

    def is_unusable(self, name: str, wanted: Set[str]) -> bool:
        """Note that a gang can't load the model; return whether none of those wanted can.

        One node may lack what the others have.
        """
        self._unusable.add(name)
        return not self._has_loaded and wanted <= self._unusable

    def is_hopeless(self, room: int | None, wanted: Set[str]) -> bool:
        """Return whether each gang of a room that is wanted has failed to start too often."""
        return all(
            self.failed[name] >= MAX_FAILED_STARTS for name in wanted if self._rooms[name] == room
        )

    def give_up(self, room: int | None, reason: str) -> None:
        """Note that no gang of a room can be built; the pool is broken once no room is left."""
        self._given_up[room] = reason, monotonic() + self._recipe.pool.start_timeout_s
        if self._given_up.keys() >= self.rooms:
            self.broken = reason

    def find_given_up(self, room: int | None) -> tuple[str, bool]:
        """Return why a room was given up, if it was, and whether it is time to try it again."""
        why, until = self._given_up.get(room, ("", 0.0))
        return why, bool(why) and monotonic() > until
