"""`Door`: lets calls in until it is shut, and tells when those that are in are through.

Ray Serve cancels a call, and those that it has made, once an HTTP client has gone away. What writes
to the store and then remembers that it did must not be cut off between the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class DoorShutError(Exception):
    """No more calls are taken: another takes them, or will."""


class Door:
    """Lives on one event loop. Open, until it is shut for good."""

    def __init__(self) -> None:
        """Be open, with nobody in."""
        self._is_shut = False
        self._inside = set[asyncio.Task[Any]]()

    def check(self) -> None:
        """Check that it is open.

        Raises:
            DoorShutError: it isn't.
        """
        if self._is_shut:
            raise DoorShutError("it ends, and takes no more calls")

    async def let_in(
        self, call: Callable[..., Coroutine[Any, Any, _T]], *args: Any, **kwargs: Any
    ) -> _T:
        """Return what a call returns; it goes through to its end, whoever has asked for it.

        Raises:
            DoorShutError: it was not begun.
        """
        self.check()
        task = asyncio.create_task(call(*args, **kwargs))
        self._inside.add(task)
        task.add_done_callback(self._inside.discard)
        return await asyncio.shield(task)

    async def shut(self) -> None:
        """Let nobody in any more; return once those that are in are through."""
        self._is_shut = True
        if self._inside:
            await asyncio.wait(self._inside)
