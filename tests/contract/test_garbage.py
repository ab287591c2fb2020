"""`clean` finds what nobody will read, on every store, and never anything else."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from jobs.clean import Kind, clean_output
from jobs.results import write_results
from pipeline.batches import BatchEnd, BatchJob, BatchPlan, BatchStore, PlannedLine, new_batch_id
from pipeline.checkpoints import Checkpoints
from pipeline.errors import UsageError
from pipeline.garbage import find_garbage
from pipeline.inbox import Inbox, VideoEnd, VideoJob, new_video_id
from pipeline.inputs import Inputs
from pipeline.lease import Lease, LeaseHeldError
from pipeline.ledger import Ledger
from pipeline.places import TEMPORARY
from pipeline.request import Opening
from pipeline.store import ObjectStore
from pipeline.uploads import new_file_id
from tests.support.outputs import IDENTITY, A, B, C, D, draft, failure, plan_rows

MODEL = "f" * 64


@pytest.fixture
def output(store: ObjectStore, tmp_path: Path) -> Ledger:
    """A is done by a second attempt, B too and at once, C is unfinished, D no longer asked for."""
    ledger, saved = Ledger(store), Checkpoints(store, MODEL)
    ledger.open_output(IDENTITY)
    ledger.save_rows("ads", plan_rows((A, None), (B, None), (C, None), (None, "no prompt")))
    video, poster = tmp_path / "a.mp4", tmp_path / "a.jpg"
    video.write_bytes(b"video")
    poster.write_bytes(b"poster")
    cut_off = "20260101T000000000000-0123456789abcdef"
    for clip_id in (A, C):
        store.put(f"clips/{clip_id[:2]}/{clip_id}/{cut_off}.mp4", video)
    for clip_id in (A, B):
        ledger.commit_clip(draft(clip_id), video, poster)
    for clip_id in (A, C, D):
        saved.save(clip_id, "snapshot", 3, b"three")
    ledger.record_failure(failure(C))
    store.put("work/20260101T000000000000-0123456789abcdef.parquet", b"work")
    store.put(f"commits/{A[:2]}/{TEMPORARY}cut", b"half")
    for folder in ("notes", "work", "checkpoints", "rows", "clips", "commits"):
        store.put(f"{folder}/mine.txt", b"mine")
        store.put(f"{folder}/.DS_Store", b"a desktop's")
    store.put("runs/00000001.json", b"a run")
    store.put("report.html", b"of the night")
    return ledger


def listed(store: ObjectStore) -> set[str]:
    return {*store.list(), *store.list_unfinished()}


def is_garbage(key: str) -> bool:
    cut_off = re.search(r"/20260101T000000000000-", key)
    spent = key.startswith((f"checkpoints/{A[:2]}/{A}", f"checkpoints/{D[:2]}/{D}"))
    return bool(cut_off) or spent or TEMPORARY in key


def test_what_is_removed_and_what_is_kept(output: Ledger) -> None:
    before = listed(output.store)
    kinds = clean_output(output.store.uri, remove=False, unfinished=False, say=pytest.fail)
    assert listed(output.store) == before, "a listing removes nothing"
    assert [(each.objects, each.goes) for each in kinds] == [
        (2, True), (4, True), (2, False), (0, True), (2, True),
    ]  # fmt: skip
    assert all(each.size_bytes > 0 for each in kinds if each.objects)
    assert clean_output(output.store.uri, remove=True, unfinished=False, say=pytest.fail) == kinds
    after = listed(output.store)
    expected = {key for key in before if not is_garbage(key)}
    assert {key for key in after if not key.startswith("lease/")} == expected
    assert output.committed_ids() == {A, B}
    for commit in output.read_commits():
        assert output.store.checksum(commit.video.key)[0] == commit.video.sha256
    assert not any(
        each.objects
        for each in clean_output(output.store.uri, remove=True, unfinished=False, say=pytest.fail)
        if each.goes
    )


def test_a_table_goes_when_it_is_named_and_its_clips_stay(output: Ledger) -> None:
    store = output.store
    output.save_rows("old", plan_rows((A, None), (D, None), (None, "no prompt")))
    write_results(output)
    with pytest.raises(UsageError, match=r"--table olf: .* has no such table; it has ads, old"):
        clean_output(store.uri, remove=True, unfinished=False, say=pytest.fail, tables=["olf"])
    before = listed(store)
    tables = {f"{folder}/old.parquet" for folder in ("rows", "manifest", "rejects")}
    assert tables < before

    def clean(*, remove: bool) -> list[Kind]:
        return clean_output(
            store.uri, remove=remove, unfinished=False, say=pytest.fail, tables=["old"]
        )

    kinds = clean(remove=False)
    assert listed(store) == before
    assert (kinds[-1].name, kinds[-1].objects, kinds[-1].goes) == ("table old", 3, True)
    assert clean(remove=True) == kinds
    assert not any(key.endswith("/old.parquet") for key in store.list())
    assert output.committed_ids() == {A, B}
    assert output.status().rows == 4
    page = store.read("index.html").decode()
    assert '"num_rows":4' in page
    with pytest.raises(UsageError, match=r"it has ads$"):
        clean(remove=True)


def test_the_last_table_may_go(output: Ledger) -> None:
    clean_output(output.store.uri, remove=True, unfinished=False, say=pytest.fail, tables=["ads"])
    assert output.status().rows == 0
    assert not output.store.exists("_SUCCESS"), "of no row there is nothing to say"
    assert '"num_rows":0' in output.store.read("index.html").decode()


def test_a_damaged_table_goes_when_it_is_named_and_no_saved_work_with_it(output: Ledger) -> None:
    store = output.store
    output.save_rows("old", plan_rows((D, None)))
    store.put("rows/old.parquet", b"junk")
    for tables in ((), ("ads",)):
        with pytest.raises(UsageError, match=r"clean .* --table old --yes$"):
            clean_output(store.uri, remove=True, unfinished=False, say=pytest.fail, tables=tables)
    *_, kind = clean_output(
        store.uri, remove=True, unfinished=False, say=pytest.fail, tables=["old"]
    )
    assert (kind.name, kind.objects) == ("table old", 1)
    assert not store.exists("rows/old.parquet")
    assert Checkpoints(store, MODEL).clip_ids() == {C, D}
    assert output.status().rows == 4


@pytest.mark.parametrize("place", ["night2", "videos", "clips/night2"])
def test_what_is_being_written_to_an_output_below_stays(output: Ledger, place: str) -> None:
    store, below = output.store, ObjectStore(f"{output.store.uri}/{place}")
    Ledger(below).open_output(IDENTITY)
    lease = Lease.acquire(below, 60)
    written = {f"{TEMPORARY}a", f"lease/{TEMPORARY}a", f"clips/{A[:2]}/{A}/{TEMPORARY}a"}
    for key in written:
        below.put(key, b"half")
    left = {f"{key}b" for key in written}
    for key in (*left, f"notes/{TEMPORARY}a"):
        store.put(key, b"half")
    assert left < set(find_garbage(output).leftovers)
    clean_output(store.uri, remove=True, unfinished=False, say=pytest.fail)
    assert set(below.list_unfinished()) == written
    kept = {f"{place}/{key}" for key in written} | {f"notes/{TEMPORARY}a"}
    assert set(store.list_unfinished()) == kept
    lease.release()


def test_unfinished_work_goes_only_when_asked(output: Ledger) -> None:
    clean_output(output.store.uri, remove=True, unfinished=True, say=pytest.fail)
    assert Checkpoints(output.store, MODEL).clip_ids() == set()
    assert not any(
        getattr(find_garbage(output), kind)
        for kind in ("attempts", "checkpoints", "unfinished", "leftovers")
    )


def test_saved_work_of_an_accepted_video_is_kept(output: Ledger) -> None:
    lease = Lease.acquire(output.store, 60)
    inbox = Inbox(output.store, lease.epoch)
    job = make_job("0" * 64).model_copy(update={"clip_id": D})
    inbox.accept(job)
    assert {key.split("/")[2] for key in find_garbage(output).unfinished} == {C, D}
    inbox.end(job.id, VideoEnd(status="failed"))
    assert {key.split("/")[2] for key in find_garbage(output).unfinished} == {C}
    lease.release()


def test_what_a_video_begins_with_goes_with_its_end(output: Ledger) -> None:
    store = output.store
    inputs, lease = Inputs(store), Lease.acquire(store, 60)
    inbox, batches = Inbox(store, lease.epoch), BatchStore(store, lease.epoch)
    waiting, ended, planned, nobodys = (inputs.keep(name) for name in (b"a", b"b", b"c", b"d"))
    inbox.accept(make_job(waiting))
    done = make_job(ended)
    inbox.accept(done)
    inbox.end(done.id, VideoEnd(status="completed"))
    line = PlannedLine(number=1, custom_id="one", job=make_job(planned))
    batch = BatchJob(
        id=new_batch_id(), owner="me", input_file_id=new_file_id(), endpoint="/v1/videos",
        completion_window="24h",
    )  # fmt: skip
    batches.accept(batch)
    batches.plan(batch.id, BatchPlan(lines=(line,)))
    found = find_garbage(output).inputs
    assert {key.rpartition("/")[2] for key in found} == {ended, nobodys}
    batches.end(batch.id, BatchEnd(status="cancelled"))
    lease.release()
    clean_output(store.uri, remove=True, unfinished=False, say=pytest.fail)
    assert [sha256 for _, sha256 in inputs.list()] == [waiting]


def make_job(sha256: str) -> VideoJob:
    opening = Opening(sha256=sha256, num_frames=1, seen_frames=1)
    return VideoJob(
        id=new_video_id(),
        owner="me",
        clip_id=A,
        request=draft(A).request.model_copy(update={"opening": opening}),
        model="tiny-cpu",
        seconds="2",
        size="64x64",
    )


def test_nothing_is_cleaned_while_a_run_writes(output: Ledger) -> None:
    lease = Lease.acquire(output.store, 10.0)
    before = listed(output.store)
    with lease.kept(pytest.fail):
        for remove in (False, True):
            with pytest.raises(LeaseHeldError, match=str(os.getpid())):
                clean_output(output.store.uri, remove=remove, unfinished=True, say=lambda _: None)
    assert listed(output.store) == before
