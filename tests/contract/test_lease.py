"""One run at a time writes an output, on every store; a run that was taken over knows it."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from pydantic import ValidationError

from pipeline.errors import LeaseLostError, UnseenOutputError
from pipeline.lease import FOLDER, Lease, LeaseHeldError, LeaseRecord, check_epoch, read_lease
from pipeline.store import ObjectStore
from tests.support.command import wait_until
from tests.support.outputs import lose_replies

LIMIT_S = 0.8
LONG_S = 60.0
ELSEWHERE = {"host": "render-7", "machine": "another boot/1", "pid": 1}
WAIT_S = 30.0


def put_foreign(store: ObjectStore, epoch: int = 1, **fields: object) -> LeaseRecord:
    """Let a process on another machine hold the lease."""
    record = LeaseRecord.model_validate({"limit_s": LIMIT_S, **ELSEWHERE, "epoch": epoch, **fields})
    store.put(f"{FOLDER}/{epoch:08d}.json", record.model_dump_json().encode())
    return record


@contextmanager
def kept(lease: Lease, lost: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    with lease.kept(lost):
        yield


def test_epochs_go_up_and_only_the_newest_is_kept(store: ObjectStore) -> None:
    assert read_lease(store) is None
    for epoch in (1, 2, 3):
        lease = Lease.acquire(store, LONG_S)
        assert lease.epoch == epoch
        assert list(store.list(FOLDER)) == [f"{FOLDER}/{epoch:08d}.json"]
        lease.release()
    held = read_lease(store)
    assert held is not None
    assert held.released


@pytest.mark.parametrize("limit_s", [math.inf, math.nan, 0.0])
def test_a_limit_that_is_no_time_takes_no_lease(store: ObjectStore, limit_s: float) -> None:
    with pytest.raises(ValidationError, match="limit_s"):
        Lease.acquire(store, limit_s)
    assert read_lease(store) is None


def test_a_run_that_lives_is_left_alone_and_named(store: ObjectStore) -> None:
    lease = Lease.acquire(store, LIMIT_S)
    said: list[str] = []
    with kept(lease), pytest.raises(LeaseHeldError) as refused:
        Lease.acquire(store, LIMIT_S, say=said.append)
    record = read_lease(store)
    assert record is not None
    for words in (record.host, str(record.pid), f"{record.since:%Y-%m-%d %H:%M}", "--wait"):
        assert words in str(refused.value)
    (note,) = said
    assert f"up to {LIMIT_S:.0f} s" in note
    assert record.host in said[0]


def test_who_waits_comes_after_the_other_has_ended(store: ObjectStore) -> None:
    first = Lease.acquire(store, LIMIT_S)
    said: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        with kept(first):
            waiting = threads.submit(Lease.acquire, store, LIMIT_S, wait=True, say=said.append)
            wait_until(lambda: _signs(store) >= 3, WAIT_S, "three signs of life")
            assert not waiting.done()
        assert waiting.result(WAIT_S).epoch == 2
    (note,) = said
    assert "waiting for its end" in note
    assert "up to" not in note  # it waits as long as the other lives


def test_a_holder_without_signs_of_life_is_taken_over_after_its_limit(store: ObjectStore) -> None:
    put_foreign(store, epoch=7)
    lease = Lease.acquire(store, LONG_S)
    assert lease.epoch == 8


def test_a_holder_elsewhere_that_was_seen_long_ago_gets_its_whole_limit(store: ObjectStore) -> None:
    """Its clock may be wrong: only signs count."""
    record = put_foreign(store, limit_s=LONG_S, seen_at="2020-01-01T00:00:00Z")
    with ThreadPoolExecutor(1) as threads:
        taking = threads.submit(Lease.acquire, store, LONG_S)
        with pytest.raises(TimeoutError):
            taking.result(1.5)
        released = record.model_copy(update={"released": True})
        store.put(f"{FOLDER}/{1:08d}.json", released.model_dump_json().encode())
        assert taking.result(WAIT_S).epoch == 2


def test_a_holder_whose_process_is_gone_from_this_machine_is_taken_over_at_once(
    store: ObjectStore,
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record = LeaseRecord(epoch=1, limit_s=LONG_S, pid=gone.pid)
    assert record.machine
    store.create(f"{FOLDER}/{1:08d}.json", record.model_dump_json().encode())
    assert Lease.acquire(store, LONG_S).epoch == 2


def test_of_many_that_take_over_one_wins(store: ObjectStore) -> None:
    put_foreign(store, released=True)
    barrier = threading.Barrier(8)

    def take(_: int) -> Lease | None:
        barrier.wait(WAIT_S)
        try:
            lease = Lease.acquire(store, LIMIT_S)
        except LeaseHeldError:
            return None
        with kept(lease):
            ended.wait(WAIT_S)
        return lease

    ended = threading.Event()
    with ThreadPoolExecutor(8) as threads:
        taking = [threads.submit(take, number) for number in range(8)]
        refused = lambda: sum(each.done() for each in taking) == 7  # noqa: E731
        try:
            wait_until(refused, WAIT_S, "seven refusals")
        finally:
            ended.set()
        leases = [each.result(WAIT_S) for each in taking]
    (lease,) = [each for each in leases if each]
    assert lease.epoch == 2


def test_a_lost_reply_to_the_taking_is_a_win(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_replies(monkeypatch)
    assert Lease.acquire(store, LONG_S).epoch == 1


def test_who_was_taken_over_knows_it(store: ObjectStore) -> None:
    """As a process that was stopped, or a machine that slept: its next sign comes too late."""
    old = Lease.acquire(store, LONG_S)
    old.check()
    new = put_foreign(store, epoch=2)
    for knows in (old.check, old.renew, lambda: check_epoch(store, old.epoch)):
        with pytest.raises(LeaseLostError, match="render-7"):
            knows()
    old.release()
    assert read_lease(store) == new, "a lost lease is left to who has it"


@pytest.mark.parametrize("other", [0, 1], ids=["none", "a lower one"])
def test_who_does_not_find_the_lease_knows_it(store: ObjectStore, other: int) -> None:
    """As on a node with a folder of its own in the output's place, or once it is removed."""
    put_foreign(store, released=True)
    lease = Lease.acquire(store, LONG_S)
    store.delete(f"{FOLDER}/{lease.epoch:08d}.json")
    if other:
        put_foreign(store, other)
    before = list(store.list())
    for knows in (lease.check, lease.renew, lambda: check_epoch(store, lease.epoch)):
        with pytest.raises(UnseenOutputError, match=f"{socket.gethostname()} doesn't see.*mounts"):
            knows()
    lease.release()
    assert list(store.list()) == before, "nothing is written there"


def test_a_listing_that_misses_the_lease_is_not_believed(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a name leaves a folder for a moment while its file is replaced."""
    lease = Lease.acquire(store, LONG_S)
    monkeypatch.setattr(ObjectStore, "list", lambda *_: iter(()))
    lease.renew()


def test_the_loss_of_a_kept_lease_is_told_once(store: ObjectStore) -> None:
    told: list[str] = []
    with kept(Lease.acquire(store, LIMIT_S), told.append):
        put_foreign(store, epoch=2)
        wait_until(lambda: told, WAIT_S, "word of the loss")
    assert len(told) == 1
    assert "render-7" in told[0]


def test_signs_of_life_go_on_after_one_that_failed(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failures = ObjectStore.put, [OSError("throttled")]

    def put_at_last(self: ObjectStore, key: str, data: bytes) -> None:
        if failures:
            raise failures.pop()
        put(self, key, data)

    lease = Lease.acquire(store, LIMIT_S)
    monkeypatch.setattr(ObjectStore, "put", put_at_last)
    with kept(lease):
        wait_until(lambda: _signs(store) >= 2, WAIT_S, "signs of life")
    assert not failures


def _signs(store: ObjectStore) -> int:
    held = read_lease(store)
    return held.signs if held else 0
