"""When a gang is given the next chunk of a clip's steps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.answers import ClipKey
from cluster.chunks import Chunks
from cluster.gang import Gang, GangDiedError
from cluster.rank import Progress
from jobs.recipes import find_recipe

STEP_S, CHUNK_S, NUM_STEPS = 0.01, 0.02, 9
KEY = ClipKey("memory://out", "a")
NO_GROUP: Any = None


class HeldGang(Gang):
    """A gang of no ranks, whose chunks end one after another, each when it is let."""

    def __init__(self) -> None:
        super().__init__("single-0", "single-0", find_recipe().gangs[0], NO_GROUP)
        self.given: list[tuple[int, float]] = []
        """The steps of each chunk, and how long it may take."""
        self.made = 0
        self.under_way: list[asyncio.Future[None]] = []

    async def advance(self, key: ClipKey, max_steps: int, timeout_s: float) -> Progress:
        """Make the steps once the chunk is let end."""
        self.given.append((max_steps, timeout_s))
        end = asyncio.get_running_loop().create_future()
        self.under_way.append(end)
        await end
        self.made = min(NUM_STEPS, self.made + max_steps)
        return Progress(self.made, NUM_STEPS, STEP_S * max_steps)

    async def has(self, number: int) -> None:
        """Return once so many chunks are under way."""
        async with asyncio.timeout(60):
            while len(self.under_way) < number:
                await asyncio.sleep(0)

    async def end_first(self) -> None:
        """Let the first chunk end that is under way."""
        await self.has(1)
        self.under_way.pop(0).set_result(None)


def run(story: Callable[[HeldGang, Chunks], Awaitable[None]]) -> HeldGang:
    async def main() -> HeldGang:
        gang = HeldGang()
        start = Progress(0, NUM_STEPS, 0.0)
        chunks = Chunks(gang, KEY, start, CHUNK_S, lambda seconds: 100 * seconds, 60.0)
        await story(gang, chunks)
        return gang

    return asyncio.run(main())


async def make_next(gang: HeldGang, chunks: Chunks, *, may_go_on: bool) -> int:
    making = asyncio.create_task(chunks.make_next(lambda: may_go_on))
    await gang.end_first()
    return await making


def test_more_steps_are_given_before_the_last_have_ended() -> None:
    async def story(gang: HeldGang, chunks: Chunks) -> None:
        assert await make_next(gang, chunks, may_go_on=True) == 1
        assert not chunks.are_ahead, "nobody knows yet how long it takes"
        second = asyncio.create_task(chunks.make_next(lambda: True))
        await gang.has(2)
        assert not second.done()
        await gang.end_first()
        assert await second == 2
        assert chunks.are_ahead
        while not chunks.now.done:
            await make_next(gang, chunks, may_go_on=True)
        assert not chunks.are_ahead

    given = run(story).given
    assert [steps for steps, _ in given] == [1, 2, 2, 2, 2], "none beyond the last"
    assert [limit for _, limit in given][:3] == [60.0, 2.0, 4.0], "the third waits for the second"


def test_a_long_step_is_given_when_the_last_has_ended() -> None:
    """It may run over, and whoever waits for the gang would wait for another."""

    async def story(gang: HeldGang, chunks: Chunks) -> None:
        chunks.chunk_s = STEP_S / 3
        for _ in range(3):
            await make_next(gang, chunks, may_go_on=True)
            assert not chunks.are_ahead

    assert [steps for steps, _ in run(story).given] == [1, 1, 1]


def test_steps_that_were_given_ahead_have_their_time_from_their_turn() -> None:
    async def story(gang: HeldGang, chunks: Chunks) -> None:
        await make_next(gang, chunks, may_go_on=True)
        await make_next(gang, chunks, may_go_on=True)
        assert chunks.are_ahead
        chunks.bound = lambda _: 0.01
        with pytest.raises(GangDiedError, match="no steps within 0 s"):
            await chunks.make_next(lambda: False)

    run(story)


def test_what_else_is_due_has_the_gang_to_itself() -> None:
    async def story(gang: HeldGang, chunks: Chunks) -> None:
        for made in (1, 2, 2):
            assert await make_next(gang, chunks, may_go_on=False) == made
            assert not chunks.are_ahead
            assert not gang.under_way

    assert len(run(story).given) == 3


def test_a_lost_gang_is_asked_nothing_more() -> None:
    async def story(gang: HeldGang, chunks: Chunks) -> None:
        await make_next(gang, chunks, may_go_on=True)
        making = asyncio.create_task(chunks.make_next(lambda: True))
        await gang.has(2)
        running, ahead = gang.under_way
        running.set_exception(GangDiedError("killed"))
        with pytest.raises(GangDiedError, match="killed"):
            await making
        chunks.close()
        await asyncio.sleep(0)
        assert ahead.cancelled()

    run(story)
