"""`Chunks`: a clip's steps, given to a gang in chunks; the next before the one before has ended.

A call takes milliseconds on its way to the ranks. So shortly before a chunk ends, its driver says
whether more steps come next: then the ranks are given them already, and go on without a pause.
Whatever else is due waits for the end of the chunk. Where a step takes long, a pause is nothing
beside it, and one that runs over would bring another before anything else: none is given ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from cluster.answers import ClipKey
from cluster.gang import Gang, GangDiedError
from cluster.rank import Progress

LEAD_S = 0.02
"""How long before a chunk's end the next is given: some times what a call takes."""
LONG = 2.0
"""A chunk that takes so many times as long as it should is one long step."""


@dataclass
class Chunks:
    """One clip's, on one gang; closed if left."""

    gang: Gang
    key: ClipKey
    now: Progress
    """How far the clip is."""
    chunk_s: float
    """How long a chunk takes, about."""
    bound: Callable[[float], float]
    """Of what should take so many seconds: after how many it counts as hung."""
    first_bound_s: float
    """For the first step."""
    step_s: float = 0.0
    """What a step took in the last chunk; 0 before the first."""
    _ahead: tuple[asyncio.Task[Progress], int] | None = None

    @property
    def are_ahead(self) -> bool:
        """Whether the gang has more steps to make already."""
        return self._ahead is not None

    async def make_next(self, may_go_on: Callable[[], bool]) -> int:
        """Await the next chunk; return how many steps were made.

        `may_go_on` is asked, shortly before it ends, whether more steps come next.

        Raises:
            GangDiedError: the gang is lost.
            ClipError: the model refused the clip.
        """
        timeout_s = None if self._ahead is None else self.timeout_s  # its time begins only now
        (running, steps), self._ahead = self._ahead or self._give(self.timeout_s), None
        before = self.now.step
        try:
            if self._is_short(steps) and before + steps < self.now.num_steps:
                await asyncio.wait({running}, timeout=self.step_s * steps - LEAD_S)
                if may_go_on():
                    self._ahead = self._give(2 * self.timeout_s)  # it waits for this one first
            async with asyncio.timeout(timeout_s):
                self.now = await running
        except TimeoutError as error:
            raise GangDiedError(f"{self.gang.name}: no steps within {timeout_s:.0f} s") from error
        except BaseException:
            running.cancel()
            raise
        made = self.now.step - before
        if made:
            self.step_s = self.now.seconds / made
        return made

    def close(self) -> None:
        """Await nothing more."""
        if self._ahead:
            self._ahead[0].cancel()
            self._ahead[0].add_done_callback(_pass_over)

    @property
    def timeout_s(self) -> float:
        """How long a chunk may take."""
        return self.bound(self.step_s * self._count()) if self.step_s else self.first_bound_s

    def _is_short(self, steps: int) -> bool:
        return 0 < self.step_s * steps <= LONG * self.chunk_s

    def _count(self) -> int:
        return max(1, round(self.chunk_s / max(self.step_s, 1e-6))) if self.step_s else 1

    def _give(self, timeout_s: float) -> tuple[asyncio.Task[Progress], int]:
        steps = self._count()
        return asyncio.create_task(self.gang.advance(self.key, steps, timeout_s)), steps


def _pass_over(call: asyncio.Task[Progress]) -> None:
    """Take what a call has raised: the one before it has raised, too, and is heard."""
    if not call.cancelled():
        call.exception()
