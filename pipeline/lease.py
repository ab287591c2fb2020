"""`Lease`: one run at a time writes an output, and a run that was taken over knows it.

    lease/<epoch>.json      the newest is the lease; who holds it, since when, signs of life

To take the lease is to create the next epoch's object, which one of any number of runs can do.
Its holder writes it anew as a sign of life. A lease is dead when it was released, when its process
is gone from this machine, or when a whole time limit passed without a new sign; the time is that
of whoever waits, so clocks that differ don't matter. The newest epoch is never deleted: a holder
that was asleep while another took over finds a higher one than its own, and a process on a node
that has a folder of its own in the output's place doesn't find it at all.

After Gray and Cheriton, "Leases" (SOSP 1989); the epoch is what is often called a fencing token.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.documents import Document, read_document
from pipeline.errors import LeaseLostError, UnseenOutputError, UsageError
from pipeline.places import AlreadyExistsError
from pipeline.store import ObjectStore

FOLDER = "lease"
SIGNS_IN_LIMIT = 4
_EPOCH = re.compile(rf"{FOLDER}/\d{{8}}\.json")
_KERNEL = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")


class LeaseRecord(Document):
    """What is known of an epoch's holder."""

    epoch: int
    holder: str = Field(default_factory=lambda: secrets.token_hex(8))
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    machine: str = Field(default_factory=lambda: _describe_machine())
    """Where `pid` means this process and no other; empty where that can't be told."""
    limit_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    signs: int = 0
    released: bool = False
    since: datetime = Field(default_factory=lambda: datetime.now(UTC))
    seen_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def __str__(self) -> str:
        """Say who holds the lease, and since when."""
        return (
            f"process {self.pid} on {self.host}, since {self.since:%Y-%m-%d %H:%M:%S} UTC, "
            f"last sign of life {self.seen_at:%H:%M:%S}"
        )

    def is_over(self) -> bool:
        """Return whether the holder released it, or is known to be gone from this machine."""
        if self.released or not self.machine or self.machine != _describe_machine():
            return self.released
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


class LeaseHeldError(UsageError):
    """Another run writes this output, and lives."""


class Lease:
    """A lease that this process holds; made by `Lease.acquire`."""

    def __init__(self, store: ObjectStore, record: LeaseRecord) -> None:
        """Hold what `acquire` created."""
        self._store = store
        self._record = record
        self._lock = threading.Lock()

    @property
    def epoch(self) -> int:
        """The number that every higher one outranks."""
        return self._record.epoch

    @classmethod
    def acquire(
        cls,
        store: ObjectStore,
        limit_s: float,
        *,
        wait: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> Lease:
        """Take the lease of an output; where it is held, watch whether its holder lives.

        A holder that gives a sign of life is left alone: with `wait` until it has ended, else by
        an error. One that gives none for its time limit is taken over. `say` is told of a wait.

        Raises:
            LeaseHeldError: another run holds it.
        """
        seen: LeaseRecord | None = None
        since, said = 0.0, False
        while True:
            held = read_lease(store)
            dead = held and seen and _same(held, seen) and time.monotonic() - since > held.limit_s
            if held is None or held.is_over() or dead:
                lease = cls._create(store, (held.epoch if held else 0) + 1, limit_s)
                if lease:
                    return lease
                continue
            if seen is None or not _same(held, seen):
                if seen is not None and not wait:
                    raise LeaseHeldError(
                        f"{store.uri} is being written by another run: {held}; wait for its end "
                        "(--wait), stop it, or choose another --output"
                    )
                seen, since = held, time.monotonic()
            if not said:
                said = True
                until = (
                    f"waiting for its end, or {held.limit_s:.0f} s without a sign of life"
                    if wait
                    else f"watching for a sign of life, up to {held.limit_s:.0f} s"
                )
                say(f"another run has not given {store.uri} back: {held}; {until}")
            time.sleep(min(1.0, held.limit_s / SIGNS_IN_LIMIT / 4))

    @classmethod
    def _create(cls, store: ObjectStore, epoch: int, limit_s: float) -> Lease | None:
        """Return the lease of a new epoch; None where another run was first."""
        record = LeaseRecord(epoch=epoch, limit_s=limit_s)
        try:
            store.create(_key(epoch), record.model_dump_json().encode())
        except AlreadyExistsError:
            held = read_lease(store)
            if held is None or held.holder != record.holder:  # else a lost reply: it is ours
                return None
        for key in _list_epochs(store):
            if key < _key(epoch):
                store.delete(key)
        return cls(store, record)

    def check(self) -> None:
        """Check that nobody has taken over.

        Raises:
            LeaseLostError: somebody has.
        """
        check_epoch(self._store, self.epoch)

    def renew(self) -> None:
        """Give a sign of life.

        Raises:
            LeaseLostError: another run has taken over.
        """
        self._write(released=False)

    def release(self) -> None:
        """Give the lease back; one that was lost is left to who has it."""
        with contextlib.suppress(LeaseLostError):
            self._write(released=True)

    def _write(self, *, released: bool) -> None:
        with self._lock:
            self.check()
            changes = {
                "signs": self._record.signs + 1,
                "released": self._record.released or released,
                "seen_at": datetime.now(UTC),
            }
            self._record = self._record.model_copy(update=changes)
            self._store.put(_key(self.epoch), self._record.model_dump_json().encode())

    @contextlib.contextmanager
    def kept(self, lost: Callable[[str], None]) -> Generator[None]:
        """Give signs of life from a thread until the end of the block, then release the lease.

        `lost` is called from that thread, once, when another run has taken over.
        """
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(self._record.limit_s / SIGNS_IN_LIMIT):
                try:
                    self.renew()
                except LeaseLostError as error:
                    lost(str(error))
                    return
                except OSError:
                    continue  # the next sign may get through; commits check for themselves

        keeper = threading.Thread(target=keep, name="lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join(self._record.limit_s)
            self.release()


def read_lease(store: ObjectStore) -> LeaseRecord | None:
    """Return the newest lease of an output, held or released; None where there never was one."""
    while newest := max(_list_epochs(store), default=None):
        with contextlib.suppress(FileNotFoundError):  # a higher one has come meanwhile
            return read_document(store, LeaseRecord, newest)
    return None


def check_epoch(store: ObjectStore, epoch: int) -> None:
    """Check that `epoch` is still the newest lease of an output, as this node sees it.

    Raises:
        LeaseLostError: there is a higher one.
        UnseenOutputError: it isn't there.
    """
    own, newest = _key(epoch), max(_list_epochs(store), default="")
    if newest > own:
        raise LeaseLostError(
            f"{store.uri} was taken over by another run: {read_lease(store)}; "
            f"this one (epoch {epoch}) commits nothing more"
        )
    # Some filesystems' listings miss a file that is put in its own place meanwhile, as signs are.
    if newest < own and not store.exists(own):
        raise UnseenOutputError.told(f"node {socket.gethostname()}", store.locate(own))


def _same(one: LeaseRecord, other: LeaseRecord) -> bool:
    return (one.holder, one.signs) == (other.holder, other.signs)


def _list_epochs(store: ObjectStore) -> list[str]:
    """Return the keys of all leases, and of nothing else that somebody has left there."""
    return [key for key in store.list(FOLDER) if _EPOCH.fullmatch(key)]


def _key(epoch: int) -> str:
    return f"{FOLDER}/{epoch:08d}.json"


def _describe_machine() -> str:
    """Return this boot of this machine and this table of processes; empty where there is none."""
    try:
        return f"{_KERNEL.read_text().strip()}/{_PROCESSES.stat().st_ino}"
    except OSError:
        return ""
