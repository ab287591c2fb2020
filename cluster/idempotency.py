"""`IdempotencyKeys`: calls that repeat one that was accepted, by the key that their caller gave."""

from __future__ import annotations

import asyncio
from collections.abc import Container

WRITING_POLL_S = 0.25


class IdempotencyKeys:
    """Which id each owner's key stands for. Lives on one event loop.

    A key is None for a call that has none, which repeats nothing.
    """

    def __init__(self) -> None:
        """Know of none."""
        self._ids: dict[tuple[str, str], str] = {}

    def remember(self, owner: str, key: str | None, accepted_id: str) -> None:
        """Keep what a key stands for."""
        if key:
            self._ids[owner, key] = accepted_id

    def is_used(self, owner: str, key: str | None) -> bool:
        """Return whether a key stands for something."""
        return bool(key) and (owner, key or "") in self._ids

    def forget(self, owner: str, key: str | None) -> None:
        """Let a key be used anew: its call was refused, or what it made is deleted."""
        self._ids.pop((owner, key or ""), None)

    async def find(self, owner: str, key: str | None, accepted: Container[str]) -> str | None:
        """Return the id that a key stands for, once it is in `accepted`; None: for nothing."""
        while before := self._ids.get((owner, key or "")):
            if before in accepted:
                return before
            await asyncio.sleep(WRITING_POLL_S)  # it is being written, and may fail
        return None

    async def claim(
        self, owner: str, key: str | None, new_id: str, accepted: Container[str]
    ) -> str | None:
        """Return the id that a key stands for already, or None: now it stands for `new_id`.

        Whoever is given None has the id be in `accepted` next, or forgets the key; until then other
        calls with it wait.
        """
        before = await self.find(owner, key, accepted)
        if not before:
            self.remember(owner, key, new_id)
        return before
