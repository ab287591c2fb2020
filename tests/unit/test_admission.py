"""Who waits before the stages is let in by priority, and a place that is free is never lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from cluster.admission import Admission


class Visit:
    """A clip's stay, from when it asks to be let in."""

    def __init__(self, admission: Admission, priority: int, name: str, order: list[str]) -> None:
        self._admission, self._priority, self._name, self._order = admission, priority, name, order
        self.over = asyncio.Event()
        self.task = asyncio.create_task(self._stay())

    async def _stay(self) -> None:
        async with self._admission.enter(self._priority):
            self._order.append(self._name)
            await self.over.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_higher_priority_goes_first_and_of_one_priority_who_came_first() -> None:
    async def run() -> None:
        admission, order = Admission(1), list[str]()
        visits = {
            name: Visit(admission, priority, name, order)
            for name, priority in (("in", 0), ("a", 0), ("b", 0), ("high", 9), ("c", 3), ("d", 0))
        }
        for count in range(1, len(visits) + 1):
            await settle()
            assert len(order) == count, "one at a time"
            visits[order[-1]].over.set()
        await asyncio.gather(*(visit.task for visit in visits.values()))
        assert order == ["in", "high", "c", "a", "b", "d"]

    asyncio.run(run())


def test_whoever_goes_away_takes_no_place_along() -> None:
    async def run() -> None:
        admission, order = Admission(2), list[str]()
        visits = [Visit(admission, 0, str(number), order) for number in range(6)]
        await settle()
        assert order == ["0", "1"]
        visits[2].task.cancel()  # waits
        visits[0].task.cancel()  # is in
        await settle()
        assert order == ["0", "1", "3"]
        visits[1].over.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        visits[4].task.cancel()  # is just let in
        await settle()
        assert order[3:] in (["5"], ["4", "5"])
        visits[3].over.set()
        visits[5].over.set()
        await asyncio.wait([visit.task for visit in visits])
        late = [Visit(admission, 0, name, order) for name in ("7", "8", "9")]
        await settle()
        assert order[-2:] == ["7", "8"], "both places are there still"
        for visit in late:
            visit.over.set()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*(visit.task for visit in late))

    asyncio.run(run())
