"""`Queue`: the jobs of all tenants, of which the pool puts in and gangs take the next."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container

from cluster import metrics
from cluster.answers import ClipKey, PutOffError
from cluster.job import Job
from cluster.schedule import Schedule, Task, Urgency
from cluster.tenants import Tenant


class Queue:
    """Jobs by their clips, whether they wait or gangs have them, from `add` to `remove`.

    One that was removed while it waited is never taken.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._jobs: dict[ClipKey, Job] = {}
        self._schedule = Schedule()
        self._added = asyncio.Condition()
        self._takers = Counter[int | None]()  # that wait, by their room
        self._waiting = defaultdict[int | None, set[ClipKey]](set)  # by their room

    def find(self, key: ClipKey) -> Job | None:
        """Return a clip's job, if there is one."""
        return self._jobs.get(key)

    def find_all(self, tenant: Tenant) -> list[Job]:
        """Return a tenant's jobs."""
        return [job for job in self._jobs.values() if job.tenant is tenant]

    def add(self, job: Job) -> None:
        """Take a job in; it doesn't wait for a gang yet."""
        self._jobs[job.task.key] = job

    def remove(self, job: Job) -> None:
        """Let a job go; its clip may be asked for anew."""
        if self._is_in(job.task):
            del self._jobs[job.task.key]
            self._waiting[job.task.room].discard(job.task.key)

    async def put(self, job: Job) -> None:
        """Let a job wait its turn for a gang; one that was removed meanwhile doesn't."""
        async with self._added:
            if not self._is_in(job.task):
                return
            self._schedule.add(job.task)
            self._waiting[job.task.room].add(job.task.key)
            self._added.notify_all()  # one of them has the room for it

    async def take(
        self,
        room: int | None,
        classes: Callable[[], tuple[Urgency, ...]],
        patience_s: float,
    ) -> Job | None:
        """Return the next job for a gang of this room; None where none came within its patience.

        `classes` is asked whenever there may be one.
        """
        until = asyncio.get_running_loop().time() + patience_s
        is_over = False
        async with self._added:
            while True:
                if job := self.take_waiting(room, classes()):
                    return job
                if is_over:
                    return None
                self._takers[room] += 1
                try:
                    async with asyncio.timeout_at(until):
                        await self._added.wait()
                except TimeoutError:
                    is_over = True
                finally:
                    self._takers[room] -= 1

    def take_waiting(self, room: int | None, classes: tuple[Urgency, ...]) -> Job | None:
        """Return the job that is next for gangs of this room; None where none waits."""
        task = self._schedule.take(room, classes, self._is_in)
        if task is None:
            return None
        self._waiting[room].discard(task.key)
        return self._jobs[task.key]

    def has(self, room: int | None, urgency: Urgency) -> bool:
        """Return whether a job of a class waits for gangs of this room."""
        return self._schedule.has(room, urgency)

    async def wait_for_more(self, room: int | None, than: Callable[[], int]) -> None:
        """Return once more jobs wait for gangs of this room than those that wait for one take."""

        def is_more() -> bool:
            return len(self._waiting[room]) - self._takers[room] > than()

        async with self._added:
            await self._added.wait_for(is_more)

    async def look_again(self) -> None:
        """Have those who wait for more jobs than others take ask anew how many these are."""
        async with self._added:
            self._added.notify_all()

    def give_up(self, error: Exception, rooms: Container[int | None]) -> None:
        """Raise at whoever awaits any of the jobs for gangs of these rooms."""
        for job in self._jobs.values():
            if job.task.room in rooms:
                job.give_up(error)

    def put_off(self, room: int | None, keep: int) -> None:
        """Raise at whoever awaits a job for gangs of this room, but at the patient and a few.

        `keep` is how many others may wait on.
        """
        waiting = (self._jobs[key] for key in self._waiting[room])
        impatient = [job for job in waiting if not job.is_patient]
        for job in sorted(impatient, key=lambda job: job.since)[keep:]:
            job.give_up(PutOffError(f"{job.task.key.clip_id}: its gangs find no place"))

    def is_one_made(self) -> bool:
        """Return whether any gang has a job."""
        return not all(job.off_gang.is_set() for job in self._jobs.values())

    def measure(self) -> None:
        """Tell how many jobs wait, for how long, and how many run."""
        now = time.monotonic()
        for urgency in Urgency:
            jobs = [job for job in self._jobs.values() if job.task.urgency is urgency]
            waits = [now - job.since for job in jobs if job.off_gang.is_set()]
            metrics.measure_clips(urgency, waits, len(jobs) - len(waits))

    def _is_in(self, task: Task) -> bool:
        """Return whether a task's job is here still, and not its clip's next."""
        job = self._jobs.get(task.key)
        return job is not None and job.task is task
