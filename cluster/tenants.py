"""`Tenant`: a run as the pool knows it, and `Meter`: whose the gangs' time is.

A tenant is one output's run, a batch or an endpoint; several share a pool.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from cluster.pauses import pauses
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Checkpoint
from pipeline.errors import LeaseLostError

WARNINGS_KEPT = 50
LOAD_TRIES, LOAD_TIMEOUT_S = 4, 120.0
STORE_THREADS = 8


@dataclass(frozen=True)
class Told:
    """What a run was last told of its use."""

    steps: int
    device_seconds: float
    rebuilds: int
    """Of the pool, from its beginning."""


class Tenant:
    """One output's run: where it saves, what was made for it, when it was last heard of."""

    def __init__(self, checkpoints: Checkpoints, rebuilds: int) -> None:
        """Touch nothing yet; `rebuilds` is how many gangs the pool has lost before."""
        self.output = checkpoints.store.uri
        self.rebuilds_before = rebuilds
        self.steps = 0
        """Steps made so far, of all its clips."""
        self.told = Told(0, 0.0, rebuilds)
        self._threads = ThreadPoolExecutor(STORE_THREADS)  # its own: its store may hang
        self._begin(checkpoints)

    def _begin(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.warnings = deque[str](maxlen=WARNINGS_KEPT)
        self.warned = 0
        """How many warnings there were; the last are in `warnings`."""
        self.losses: dict[str, tuple[str, ...]] = {}
        """How clips have lost gangs, each time, by their ids."""
        self.seen_at = time.monotonic()
        self._saved = set[str]()
        self._listing: asyncio.Future[set[str]] | None = None

    @property
    def epoch(self) -> int:
        """Its lease's."""
        return self.checkpoints.epoch or 0

    def follow(self, checkpoints: Checkpoints) -> bool:
        """Take a sign of life; of a newer run, which takes this one's place, return True.

        What was made since the older was last told of it counts as the newer's.

        Raises:
            LeaseLostError: it is of an older one.
        """
        epoch = checkpoints.epoch or 0
        if epoch < self.epoch:
            raise LeaseLostError(f"{self.output} was taken over by another run")
        if epoch > self.epoch:
            self._begin(checkpoints)
            self.steps -= self.told.steps
            self.rebuilds_before = self.told.rebuilds
            return True
        self.seen_at = time.monotonic()
        return False

    async def open(self) -> None:
        """Find out, once, which clips something is saved of."""
        if self._listing is None:
            self._listing = asyncio.get_running_loop().run_in_executor(
                self._threads, self.checkpoints.clip_ids
            )
        listing = self._listing
        try:
            self._saved |= await asyncio.shield(listing)
        except OSError:
            if self._listing is listing:
                self._listing = None  # the next may get through
            raise

    def note_save(self, clip_id: str) -> None:
        """Remember that something is, or may be, saved of a clip."""
        self._saved.add(clip_id)

    async def load(self, clip_id: str) -> tuple[Checkpoint, bytes] | None:
        """Return what is saved of a clip; asks the store only where something may be.

        An hour's work may be in it: a store that errs or hangs is asked again.
        """
        if clip_id not in self._saved:
            return None
        wrong = ""
        for pause_s in (*islice(pauses(), LOAD_TRIES - 1), 0.0):
            try:
                loading = asyncio.get_running_loop().run_in_executor(
                    self._threads, self.checkpoints.load, clip_id, self.warn
                )
                return await asyncio.wait_for(loading, LOAD_TIMEOUT_S)
            except OSError as error:  # as is a TimeoutError
                wrong = str(error) or f"no answer within {LOAD_TIMEOUT_S:.0f} s"
                await asyncio.sleep(pause_s)
        self.warn(f"clip {clip_id[:16]} starts anew: {wrong}")
        return None

    async def discard(self, clip_id: str) -> None:
        """Remove what is saved of a clip and of no use to anybody; what can't be, `clean` will."""
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._threads, self.checkpoints.discard, clip_id
            )
        except OSError as error:
            self.warn(f"clip {clip_id[:16]}: what is saved of it is left: {error}")

    def warn(self, text: str) -> None:
        """Keep word of something that went wrong and was got over; of nothing, nothing."""
        if text:
            self.warnings.append(text)
            self.warned += 1


@dataclass
class _Held:
    ranks: int
    tenant: str | None
    since: float


class Meter:
    """Device-seconds by tenant, which only grow.

    A gang's time is its tenant's whose clip it works on; while it works for none it is held for
    all of them, and counts for each.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Hold a clock, in seconds."""
        self.total = 0.0
        """Of all gangs, whoever had them; as of the last call."""
        self._clock = clock
        self._used: dict[str, float] = {}
        self._gangs: dict[str, _Held] = {}

    @property
    def devices(self) -> int:
        """How many are held now."""
        return sum(held.ranks for held in self._gangs.values())

    def enter(self, tenant: str, told: float = 0.0) -> None:
        """Begin to count for a tenant; or anew, but for what it was not told of."""
        self._settle()
        self._used[tenant] = self._used.get(tenant, told) - told

    def leave(self, tenant: str) -> None:
        """Count for a tenant no longer."""
        self._settle()
        self._used.pop(tenant, None)

    def hold(self, gang: str, ranks: int, since: float) -> None:
        """Begin to count a gang, that was held since then."""
        self._gangs[gang] = _Held(ranks, None, since)

    def work(self, gang: str, tenant: str | None) -> str | None:
        """Count a gang for a tenant from now on, or for none; return whose it was."""
        self._settle()
        held = self._gangs[gang]
        before, held.tenant = held.tenant, tenant
        return before

    def free(self, gang: str) -> None:
        """Count a gang no longer."""
        self._settle()
        self._gangs.pop(gang, None)

    def read(self, tenant: str) -> float:
        """Return a tenant's device-seconds so far."""
        self._settle()
        return self._used.get(tenant, 0.0)

    def _settle(self) -> None:
        now = self._clock()
        for held in self._gangs.values():
            seconds, held.since = (now - held.since) * held.ranks, now
            self.total += seconds
            for tenant in self._used if held.tenant is None else (held.tenant,):
                if tenant in self._used:
                    self._used[tenant] += seconds
