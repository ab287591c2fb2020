"""`Fleet`: a recipe's gangs: made, woken, given clips, lost and built again.

A gang that isn't kept (`min_count`) sleeps until more clips wait than others are about to take.
One that is lost, or whose node is about to end, is made anew; its clip goes back to the queue. One
that makes a batch's clip gives way to an urgent one after every chunk of steps, and then owes batch
its share of the time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from cluster import metrics
from cluster.answers import NoGangError, PoolBrokenError, UnusableModelError
from cluster.drive import STORE_TIMEOUT_S, Drive, Halt, HaltedError
from cluster.gang import (
    ClipError,
    DivergedError,
    Gang,
    GangDiedError,
    NoPlaceError,
    remove_gangs,
)
from cluster.job import Job
from cluster.leaving import LEAVING_POLL_S, find_leaving_nodes
from cluster.queue import Queue
from cluster.schedule import Task, Urgency
from cluster.starts import Lack, Starts
from cluster.tenants import Meter
from pipeline.recipe import GangShape, Recipe

RESTART_PAUSE_S = 1.0
PING_S = 5.0
"""How often a gang without a clip is asked whether it lives."""


class _BystanderError(GangDiedError):
    """A gang was lost, and not by the clip that it has: before that, or by one it gave way to."""


class Fleet:
    """Takes jobs from a queue, and answers them; `start` it, `close` it at last."""

    def __init__(
        self, recipe: Recipe, name: str, queue: Queue, warn: Callable[[str], None]
    ) -> None:
        """Make no gang yet; `warn` is told of what went wrong and was got over.

        Gangs that go by `name` are those of one that has died, and are ended.
        """
        self.meter = Meter()
        """Whose the gangs' time is."""
        self.rebuilds = 0
        """How many gangs were lost."""
        self._starts = Starts(recipe)
        self._recipe = recipe
        self._name = name
        self._queue = queue
        self._warn = warn
        self._counted = 0.0  # device-seconds, by `measure`
        self._gangs: dict[str, Gang] = {}
        self._servers: dict[str, asyncio.Task[None]] = {}
        self._starting = set[str]()
        self._asleep = set[str]()
        self._leaving = set[Gang]()
        self._owed: dict[str, float] = {}  # until when batch has a gang to itself
        remove_gangs(name)
        self._watcher = asyncio.create_task(self._watch_nodes())

    @property
    def is_started(self) -> bool:
        """Whether gangs were ever to be made."""
        return bool(self._servers)

    @property
    def gangs(self) -> int:
        """How many there are to be; those that were given up are not."""
        return sum(not server.done() for server in self._servers.values())

    @property
    def gangs_ready(self) -> int:
        """How many have their model loaded."""
        return len(self._gangs)

    @property
    def gangs_asleep(self) -> int:
        """How many aren't there as no clip waits for them."""
        return len(self._asleep)

    @property
    def broken(self) -> PoolBrokenError | None:
        """Why no gang can be built, where none can, until it is started again."""
        return self._starts.broken

    def start(self) -> None:
        """Make the gangs that nobody makes: all, or anew those that were given up."""
        self._starts.clear()
        for shape in self._recipe.gangs:
            for number in range(shape.count):
                name = f"{shape.name}-{number}"
                if name not in self._servers or self._servers[name].done():
                    self._starts.failed[name] = 0
                    serving = self._serve(name, shape, is_kept=shape.is_kept(number))
                    self._servers[name] = asyncio.create_task(serving)

    def start_anew(self) -> None:
        """Try again what was given up, if anything was."""
        if self.broken or self._starts.is_one_given_up:
            self.start()

    def find_refusal(self, room: int | None) -> str:
        """Return why a clip gets no gang of this room; nothing if it may get one.

        A room that was given up is tried again for clips that come once `start_timeout_s` is over.
        """
        why, is_over = self._starts.find_given_up(room)
        if is_over:
            self.start()
            return ""
        return why

    def put_off(self, room: int | None) -> None:
        """Where no gang of a room finds a place, let no more clips wait than there are to be gangs.

        The others are answered: they would keep clips from being asked for whose gangs are at work.
        """
        is_there = any(gang.shape.max_tokens == room for gang in self._gangs.values())
        if room in self._starts.placeless and not is_there and self._queue.is_one_made():
            self._queue.put_off(room, keep=self._starts.count_gangs(room))

    async def close(self) -> None:
        """End all gangs."""
        self._watcher.cancel()
        for server in self._servers.values():
            server.cancel()
        await asyncio.gather(*self._servers.values(), return_exceptions=True)

    def measure(self) -> None:
        """Tell how many gangs are ready, asleep and starting, what they hold and held."""
        starting = self.gangs - self.gangs_ready - self.gangs_asleep
        metrics.GANGS.set(self.gangs_ready, {"state": "ready"})
        metrics.GANGS.set(self.gangs_asleep, {"state": "asleep"})
        metrics.GANGS.set(starting, {"state": "starting"})
        metrics.DEVICES.set(self.meter.devices)
        if (held := self.meter.total) > self._counted:
            metrics.DEVICE_SECONDS.inc(held - self._counted)
            self._counted = held

    async def _serve(self, name: str, shape: GangShape, *, is_kept: bool) -> None:
        """Keep one gang alive and give it clips, for as long as the pool lives.

        One that isn't kept is there while there are clips for it.
        """
        starts, room = self._starts, shape.max_tokens
        patience_s = None if is_kept else self._recipe.pool.idle_s
        while True:
            if not is_kept:
                await self._sleep(name, room)
            self._starting.add(name)
            try:
                gang = await Gang.create(name, self._name, shape, self._recipe)
            except Exception as error:  # noqa: BLE001 - whatever stops a gang, another try follows
                # Others' work goes on meanwhile: so does the wait for a place.
                lacks_place = isinstance(error, NoPlaceError)
                is_patient = lacks_place and self._queue.is_one_made()
                unusable = error if isinstance(error, UnusableModelError) else None
                lacks: Lack = "model" if unusable else "place" if lacks_place else ""
                starts.fail(name, counts=not is_patient, lacks=lacks)
                if is_patient:
                    starts.placeless.add(room)
                    self.put_off(room)
                if unusable and starts.is_unusable(self._asleep):
                    starts.broken = unusable
                    self._queue.give_up(unusable, starts.rooms)
                    return
                if starts.is_hopeless(room, self._asleep):
                    self._give_up(room, f"no gang like {name} can be started: {error}")
                    return
                await self._queue.look_again()
                self._warn(f"gang {name} could not be started: {error}")
                await asyncio.sleep(RESTART_PAUSE_S * max(1, starts.failed[name]))
                continue
            finally:
                self._starting.discard(name)
            if starts.succeed(name):
                self.start()
            await self._feed(gang, patience_s)

    async def _feed(self, gang: Gang, patience_s: float | None) -> None:
        """Give a gang clips until it is lost, leaves its node, or loses its patience; end it."""
        self._gangs[gang.name] = gang
        self.meter.hold(gang.name, gang.shape.layout.ranks, gang.held_since)
        try:
            while job := await self._take(gang, patience_s):
                await self._run(gang, job)
        except HaltedError:
            self._warn(f"gang {gang.name} leaves its node, which is about to end")
        except Exception as error:  # noqa: BLE001 - GangDiedError, and what nobody thought of
            self.rebuilds += 1
            metrics.GANG_REBUILDS.inc()
            self._warn(f"gang lost: {error}")
        finally:
            del self._gangs[gang.name]
            self.meter.free(gang.name)
            self._leaving.discard(gang)
            gang.kill()

    async def _take(self, gang: Gang, patience_s: float | None) -> Job | None:
        """Return a gang's next job; see meanwhile, now and then, that the gang lives.

        None where none came within its patience.

        Raises:
            GangDiedError: it doesn't.
            HaltedError: its node is about to end.
        """
        room, until = gang.shape.max_tokens, time.monotonic() + (patience_s or math.inf)
        while True:
            wait_s = min(PING_S, until - time.monotonic())
            job = await self._queue.take(room, lambda: self._classes(gang), wait_s)
            if job or time.monotonic() >= until:
                return job
            if gang in self._leaving:
                raise HaltedError
            await gang.ping()

    async def _sleep(self, name: str, room: int | None) -> None:
        """Return once more clips wait than gangs are about to take one."""
        self._asleep.add(name)
        try:
            await self._queue.wait_for_more(
                room, lambda: self._starts.count_takers(self._starting, name)
            )
        finally:
            self._asleep.discard(name)

    def _give_up(self, room: int | None, reason: str) -> None:
        """Fail the clips that no gang can be built for; all of them: the pool is broken."""
        self._starts.give_up(room, reason)
        if self.broken:
            self._queue.give_up(self.broken, self._starts.rooms)
        else:
            self._warn(f"clips of their size are given up: {reason}")
            self._queue.give_up(NoGangError(reason), (room,))

    async def _run(self, gang: Gang, job: Job) -> None:
        """Render one clip on `gang`; raises GangDiedError once the clip is safe elsewhere."""
        job.off_gang.clear()
        began = time.monotonic()
        before = self.meter.work(gang.name, job.tenant.output)
        try:
            if gang in self._leaving:
                raise HaltedError
            await self._check_alive(gang)
            job.drive = Drive(
                self._recipe,
                gang,
                job.task,
                job.tenant,
                job.conditioning,
                lambda: self._find_halt(gang, job),
                lambda: self._find_urgent(gang, job.task),
            )
            job.succeed(gang, await job.drive.run())
        except ClipError as error:
            try:
                if isinstance(error, DivergedError):  # before anybody asks for it again
                    await gang.settle(STORE_TIMEOUT_S)
                    await job.tenant.discard(job.task.key.clip_id)
            finally:
                job.fail(str(error), len(job.losses) + 1, gang)
        except HaltedError:
            if not job.over:
                await self._queue.put(job)
            if gang in self._leaving:
                with suppress(GangDiedError):  # a save may be under way, of one that gave way
                    await gang.settle(STORE_TIMEOUT_S)
                raise
            await gang.drop(job.task.key, self._recipe.pool.step_timeout_min_s)
            await gang.settle(STORE_TIMEOUT_S)
        except _BystanderError:
            await self._queue.put(job)
            raise
        except GangDiedError as error:
            await self._retry(gang, job, str(error))
            raise
        except Exception as error:
            await self._retry(gang, job, f"{type(error).__name__}: {error}")
            raise GangDiedError(f"{gang.name}: {error}") from error
        finally:
            job.drive = None
            job.off_gang.set()
            if job.task.urgency is Urgency.ONLINE:
                share, now = self._recipe.pool.online_share, time.monotonic()
                self._owed[gang.name] = now + (now - began) * (1 - share) / share
            self.meter.work(gang.name, before)
            if job.over == "cancelled":
                await job.tenant.discard(job.task.key.clip_id)

    async def _check_alive(self, gang: Gang) -> None:
        try:
            await gang.ping()
        except GangDiedError as error:  # before the clip came
            raise _BystanderError(str(error)) from error

    async def _retry(self, gang: Gang, job: Job, reason: str) -> None:
        if job.over:  # the loss would be told of its clip's next asking
            return
        lost = job.lose(reason)
        if lost < self._recipe.pool.max_attempts:
            await self._queue.put(job)
        else:
            job.fail(f"lost {lost} gangs", lost, gang)

    def _find_halt(self, gang: Gang, job: Job) -> Halt:
        if job.over == "cancelled":
            return "drop"
        return "save" if job.over or gang in self._leaving else ""

    def _is_owed(self, gang: Gang) -> bool:
        return self._owed.get(gang.name, 0.0) > time.monotonic()

    def _classes(self, gang: Gang) -> tuple[Urgency, ...]:
        """Return whose clips a gang takes, the first choice first."""
        return tuple(reversed(Urgency)) if self._is_owed(gang) else tuple(Urgency)

    def _find_urgent(self, gang: Gang, task: Task) -> Callable[[], Awaitable[None]] | None:
        """Return what to do before a gang goes on with a clip; None where nothing is urgent."""
        if (
            task.urgency is Urgency.ONLINE
            or self._is_owed(gang)
            or not self._queue.has(task.room, Urgency.ONLINE)
        ):
            return None
        return partial(self._run_urgent, gang)

    async def _run_urgent(self, gang: Gang) -> None:
        """Render the next urgent clip on a gang, which then owes batch its share of the time."""
        job = self._queue.take_waiting(gang.shape.max_tokens, (Urgency.ONLINE,))
        if job is None:
            return
        try:
            await self._run(gang, job)
            await gang.ping()  # a rank may have ended with it, though the clip is made
        except GangDiedError as error:
            raise _BystanderError(str(error)) from error

    async def _watch_nodes(self) -> None:
        """Have gangs leave nodes that are about to end: preempted, or scaled down."""
        while True:
            await asyncio.sleep(LEAVING_POLL_S)
            try:
                leaving = await asyncio.to_thread(find_leaving_nodes)
                for gang in list(self._gangs.values()) if leaving else ():
                    if leaving & await asyncio.to_thread(gang.nodes):
                        self._leaving.add(gang)
            except Exception as error:  # noqa: BLE001 - a look that fails is taken again
                self._warn(f"Ray's nodes can't be looked at: {error}")
