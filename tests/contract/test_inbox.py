"""What the online endpoint has accepted is in the store, on every store."""

from __future__ import annotations

import pytest

from pipeline.errors import LeaseLostError
from pipeline.inbox import FOLDER, Inbox, VideoEnd, VideoJob, new_video_id
from pipeline.lease import Lease
from pipeline.store import ObjectStore
from tests.support.outputs import A, draft


def make_job(owner: str = "me") -> VideoJob:
    return VideoJob(
        id=new_video_id(),
        owner=owner,
        clip_id=A,
        request=draft(A).request,
        model="tiny-cpu",
        seconds="2",
        size="64x64",
        metadata={"campaign": "spring"},
    )


@pytest.fixture
def inbox(store: ObjectStore) -> Inbox:
    return Inbox(store, Lease.acquire(store, 60).epoch)


def test_what_was_accepted_is_there_with_its_end(inbox: Inbox) -> None:
    first, second = make_job(), make_job("another")
    end = VideoEnd(status="failed", code="rendering_failed", message="no")
    inbox.accept(first)
    inbox.accept(second)
    inbox.accept(first)  # as after a lost reply
    inbox.end(second.id, end)
    assert sorted(inbox.load(), key=lambda each: each[0].owner) == [(second, end), (first, None)]


def test_jobs_come_in_the_order_of_their_ids(inbox: Inbox) -> None:
    jobs = [make_job() for _ in range(20)]
    for job in jobs:
        inbox.accept(job)
    assert [job.id for job, _ in inbox.load()] == sorted(job.id for job in jobs)


def test_what_was_deleted_is_gone(inbox: Inbox) -> None:
    kept, gone = make_job(), make_job()
    for job in (kept, gone):
        inbox.accept(job)
        inbox.end(job.id, VideoEnd(status="completed"))
    inbox.forget(gone.id)
    inbox.forget(gone.id)
    assert [job for job, _ in inbox.load()] == [kept]
    assert len(list(inbox.store.list(FOLDER))) == 2


def test_an_end_without_its_job_is_passed_over(inbox: Inbox) -> None:
    """As where a deletion was cut off."""
    inbox.end(new_video_id(), VideoEnd(status="completed"))
    assert inbox.load() == []


def test_who_was_taken_over_accepts_and_removes_nothing(store: ObjectStore) -> None:
    lease = Lease.acquire(store, 60)
    old = Inbox(store, lease.epoch)
    kept = make_job()
    old.accept(kept)
    lease.release()
    Lease.acquire(store, 60)
    with pytest.raises(LeaseLostError):
        old.accept(make_job())
    with pytest.raises(LeaseLostError):
        old.forget(kept.id)
    assert old.load() == [(kept, None)]


def test_ids_sort_by_time_and_differ() -> None:
    ids = [new_video_id() for _ in range(1000)]
    assert len(set(ids)) == len(ids)
    assert [each[:18] for each in ids] == sorted(each[:18] for each in ids)
