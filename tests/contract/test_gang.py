"""Two ranks as one gang: what one of them does alone."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayTaskError

from cluster import gang as gang_module
from cluster.answers import ClipKey, Spent
from cluster.chunks import Chunks
from cluster.gang import ClipError, Gang, GangDiedError
from jobs.recipes import find_recipe
from pipeline.checkpoints import Checkpoints
from pipeline.encode import Encoder
from pipeline.graph import Graph
from pipeline.identity import digest
from pipeline.model import resolve_checkpoint
from pipeline.recipe import GangShape
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore
from tests.support.leaks import check_leaks
from tests.support.ranks import count_threads

RECIPE = find_recipe()
PAIR = GangShape(name="pair", tensor=2, threads=1)
START_S, STEP_S = 120.0, 60.0
SPENT = Spent(0.0, 0.0, "tensor=2")
REQUEST = RenderRequest(
    prompt="a red ball",
    negative_prompt="",
    width=64,
    height=64,
    num_frames=5,
    fps=8.0,
    seed=7,
    num_inference_steps=4,
    guidance_scale=4.0,
)


@pytest.mark.usefixtures("ray_cluster")
def test_a_clip_that_one_rank_alone_refuses_costs_the_gang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank waits for it within a step. A clip that both refuse costs itself alone."""
    monkeypatch.setattr(gang_module, "CHECK_TIMEOUT_S", 5.0)
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    asyncio.run(refuse_alone(Encoder(graph).encode(REQUEST).to_bytes()))
    check_leaks()


@pytest.mark.usefixtures("ray_cluster")
def test_steps_given_ahead_make_the_same_clip_and_a_refusal_among_them_costs_it_alone() -> None:
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    asyncio.run(give_ahead(Encoder(graph).encode(REQUEST).to_bytes()))
    check_leaks()


async def give_ahead(conditioning: bytes) -> None:
    request = REQUEST.model_copy(update={"num_inference_steps": 40})
    gang = await Gang.create("pair-0", "test-gang", PAIR, RECIPE)
    saves = Checkpoints(ObjectStore("memory://given-ahead"), "f" * 64)

    async def begin(name: str, chunk_s: float) -> Chunks:
        key = ClipKey("memory://given-ahead", digest(name))
        now = await gang.start(key, request, ray.put(conditioning), None, START_S)
        return Chunks(gang, key, now, chunk_s, lambda _: STEP_S, START_S)

    async def finish(chunks: Chunks) -> bytes:
        latents, wrong = await gang.finish(chunks.key, saves, SPENT, STEP_S, STEP_S)
        assert not wrong
        return ray.get(latents)

    try:
        ahead, were_ahead = await begin("ahead", 0.1), 0
        while not ahead.now.done:
            await ahead.make_next(lambda: True)
            were_ahead += ahead.are_ahead
        assert were_ahead > 1
        made = await finish(ahead)
        refused = await begin("refused", 0.1)
        while not refused.are_ahead:
            await refused.make_next(lambda: True)
        dropping = [
            ray.get_actor(f"{gang.title}/{rank}").drop.remote(refused.key) for rank in (0, 1)
        ]
        with pytest.raises(ClipError, match="KeyError"):
            await make_all(refused)
        refused.close()
        await asyncio.gather(*dropping)
        whole = await begin("whole", 1e9)
        while not whole.now.done:
            await whole.make_next(lambda: False)
        assert await finish(whole) == made
    finally:
        gang.kill()


async def make_all(chunks: Chunks) -> None:
    while not chunks.now.done:
        await chunks.make_next(lambda: True)


async def refuse_alone(conditioning: bytes) -> None:
    gang = await Gang.create("pair-0", "test-gang", PAIR, RECIPE)
    try:
        threads = [ray.get_actor(f"{gang.title}/{rank}").__ray_call__ for rank in (0, 1)]
        counts = await asyncio.gather(*(each.remote(count_threads) for each in threads))
        assert counts == [PAIR.threads] * 2
        key = ClipKey("memory://out", "a")
        with pytest.raises(ClipError, match="KeyError"):
            await gang.advance(key, 1, STEP_S)
        await gang.start(key, REQUEST, ray.put(conditioning), None, START_S)
        assert (await gang.advance(key, 1, START_S)).step == 1
        await ray.get_actor(f"{gang.title}/1").drop.remote(key)
        told = "pair-0: advance: KeyError: .*; then pair-0: drop: no answer within 5 s"
        with pytest.raises(GangDiedError, match=told):
            await gang.advance(key, 1, STEP_S)
    finally:
        gang.kill()


@pytest.mark.usefixtures("ray_cluster")
def test_a_clip_that_is_made_outlives_a_rank_whose_end_is_told() -> None:
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    asyncio.run(lose_a_rank(Encoder(graph).encode(REQUEST).to_bytes()))
    check_leaks()


async def lose_a_rank(conditioning: bytes) -> None:
    gang = await Gang.create("pair-0", "test-gang", PAIR, RECIPE)
    saves = Checkpoints(ObjectStore("memory://outlived"), "f" * 64)
    try:
        key = ClipKey("memory://outlived", digest("a"))
        await gang.start(key, REQUEST, ray.put(conditioning), None, START_S)
        while not (await gang.advance(key, 1, START_S)).done:
            pass
        second = ray.get_actor(f"{gang.title}/1")
        pid = await second.__ray_call__.remote(lambda _: os.getpid())
        os.kill(pid, signal.SIGKILL)
        latents, wrong = await gang.finish(key, saves, SPENT, 10 * STEP_S, STEP_S)
        assert ray.get(latents)
        assert "pair-0: drop: " in wrong
        lost = await find_loss(gang, "ActorDiedError")
        assert re.search(rf"ping: ActorDiedError: .*\(pid {pid}, ip ", lost)
    finally:
        gang.kill()


async def find_loss(gang: Gang, kind: str) -> str:
    """Return what is told of a gang's loss, once it is of a kind: Ray hears of an end by and by."""
    async with asyncio.timeout(START_S):
        while True:
            with pytest.raises(GangDiedError) as lost:
                await gang.ping()
            if kind in str(lost.value):
                return str(lost.value)


def test_a_wait_can_be_called_off_in_the_moment_that_its_answer_comes() -> None:
    async def main() -> None:
        answer = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(gang_module._wait(answer, 30.0, "a ping"))
        await asyncio.sleep(0.01)
        answer.set_result(True)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


@pytest.mark.usefixtures("ray_cluster")
def test_a_rank_that_waited_in_vain_has_answered() -> None:
    def wait_in_vain() -> None:
        raise TimeoutError("a lock is held by another")

    task: Any = ray.remote(wait_in_vain)
    with pytest.raises(RayTaskError, match="a lock is held by another"):
        asyncio.run(gang_module._wait(task.remote(), START_S, "a call"))


@pytest.mark.usefixtures("ray_cluster")
def test_a_gang_whose_ranks_lost_each_other_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their devices work on: else each clip in turn would be blamed."""
    monkeypatch.setattr(gang_module, "CHECK_TIMEOUT_S", 30.0)
    graph = Graph(RECIPE.model, resolve_checkpoint(RECIPE.model))
    asyncio.run(part(Encoder(graph).encode(REQUEST).to_bytes()))
    check_leaks()


async def part(conditioning: bytes) -> None:
    gang = await Gang.create("pair-0", "test-gang", PAIR, RECIPE)
    try:
        threads = [ray.get_actor(f"{gang.title}/{rank}").__ray_call__ for rank in (0, 1)]
        counts = await asyncio.gather(*(each.remote(count_threads) for each in threads))
        assert counts == [PAIR.threads] * 2
        key = ClipKey("memory://out", "a")
        await gang.start(key, REQUEST, ray.put(conditioning), None, START_S)
        await cut_connections(gang)
        with pytest.raises(GangDiedError, match="pair-0: device: "):
            await gang.advance(key, 1, STEP_S)
    finally:
        gang.kill()


async def cut_connections(gang: Gang) -> None:
    """End what the ranks of a pair exchange tensors by; Ray's connections stay."""

    def list_ports(_: object) -> set[int]:
        return {each.getsockname()[1] for each in sockets()}

    def cut(_: object, ports: set[int]) -> None:
        for each in sockets():
            try:
                peer = each.getpeername()
            except OSError:  # it only listens
                continue
            if peer[1] in ports:
                each.shutdown(socket.SHUT_RDWR)

    def sockets() -> list[socket.socket]:
        """Copies of this process's sockets over TCP."""
        files = (each for each in Path("/proc/self/fd").iterdir() if each.is_socket())
        every = [socket.socket(fileno=os.dup(int(each.name))) for each in files]
        return [each for each in every if each.family in (socket.AF_INET, socket.AF_INET6)]

    first, second = (ray.get_actor(f"{gang.title}/{number}") for number in range(2))
    ports = await first.__ray_call__.remote(list_ports)
    await second.__ray_call__.remote(cut, ports)
