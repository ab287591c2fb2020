"""Who has closed asks no pool for anything more, and is no tenant of any."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.answers import PoolBrokenError, PoolProgress
from cluster.client import PoolClient
from cluster.clip_maker import ClipMaker
from cluster.schedule import Turn
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.outputs import A, draft

WAIT_S = 30
SEEN = PoolProgress(0, 0, 0, 1, 0, 1, 0, None)


class Pool:
    """One that lets its tenant go before it has rendered anything."""

    def __init__(self) -> None:
        self.is_entered = True
        self.is_gone = False
        self.asked = asyncio.Event()

    async def render(self, *_: object, **__: object) -> None:
        self.asked.set()
        while self.is_entered:
            await asyncio.sleep(0)
        raise PoolBrokenError("the run has left the pool")

    async def progress(self) -> PoolProgress:
        if self.is_gone:
            raise PoolBrokenError("the run was let go")
        return SEEN

    async def leave(self) -> None:
        self.is_entered = False


async def encode(row: Any, ledger: Ledger) -> Any:
    return {**row, "payload": b"", "failure": ""}


class Cluster:
    """One that has a pool for whoever comes."""

    def __init__(self, output: Path) -> None:
        self.pools = list[Pool]()
        self.is_asked, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()
        stage = SimpleNamespace(remote=encode)
        self.maker = ClipMaker(self.join, stage, stage, Ledger(ObjectStore(output)), room=1)

    def join(self) -> PoolClient:
        self.is_asked.set()
        assert self.may_answer.wait(WAIT_S)
        self.pools.append(Pool())
        return cast(PoolClient, self.pools[-1])


def test_what_fails_as_the_pool_is_left_enters_none(tmp_path: Path) -> None:
    async def run() -> None:
        cluster = Cluster(tmp_path)
        await cluster.maker.open()
        making = asyncio.create_task(cluster.maker.make(A, draft(A).request, Turn()))
        await cluster.pools[0].asked.wait()
        await cluster.maker.close()
        with pytest.raises(PoolBrokenError):
            await making
        with pytest.raises(PoolBrokenError):
            await cluster.maker.make(A, draft(A).request, Turn())
        assert [pool.is_entered for pool in cluster.pools] == [False]

    asyncio.run(asyncio.wait_for(run(), WAIT_S))


def test_a_pool_that_is_being_entered_is_left_too(tmp_path: Path) -> None:
    async def run() -> None:
        cluster = Cluster(tmp_path)
        await cluster.maker.open()
        cluster.may_answer.clear()
        cluster.is_asked.clear()
        cluster.pools[0].is_gone = True
        assert await asyncio.to_thread(cluster.is_asked.wait, WAIT_S)
        closing = asyncio.create_task(cluster.maker.close())
        await asyncio.sleep(0)
        cluster.may_answer.set()
        await closing
        assert [pool.is_entered for pool in cluster.pools[1:]] == [False]

    asyncio.run(asyncio.wait_for(run(), WAIT_S))
