"""The ledger keeps its word on every store: one commit a clip, whole files, one state a row."""

from __future__ import annotations

import json
import pickle
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import ledger as ledger_module
from pipeline.documents import Commit, OutputIdentity, new_attempt
from pipeline.errors import LeaseLostError, OutputMismatchError, UsageError
from pipeline.inbox import Inbox
from pipeline.lease import Lease, read_lease
from pipeline.ledger import SUCCESS_KEY, Ledger, UploadError
from pipeline.manifest import check_tables, write_manifest, write_success
from pipeline.runs import read_runs
from pipeline.store import ObjectStore
from pipeline.uploads import Uploads
from tests.support.outputs import IDENTITY, A, B, C, D, draft, failure, lose_replies, plan_rows


@pytest.fixture
def ledger(store: ObjectStore) -> Ledger:
    ledger = Ledger(store)
    ledger.open_output(IDENTITY)
    return ledger


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    video, poster = tmp_path / "one.mp4", tmp_path / "one.jpg"
    video.write_bytes(b"video" * 1000)
    poster.write_bytes(b"poster")
    return video, poster


def test_commit_then_read_back(ledger: Ledger, files: tuple[Path, Path]) -> None:
    each = draft(A)
    commit = ledger.commit_clip(each, *files)
    assert ledger.committed_ids() == {A}
    assert list(ledger.read_commits()) == [commit]
    assert ledger.read_commit(A) == commit
    assert commit.request == each.request
    assert commit.video.key == f"clips/{A[:2]}/{A}/{each.attempt}.mp4"
    assert ledger.store.read(commit.video.key) == files[0].read_bytes()
    assert ledger.store.checksum(commit.poster.key) == (
        commit.poster.sha256,
        commit.poster.size_bytes,
    )
    assert set(commit.timings) == {"encode", "denoise", "develop", "upload"}
    assert commit.committed_at.tzinfo is not None


def test_lost_reply_is_a_win(
    ledger: Ledger, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_replies(monkeypatch)
    each = draft(A)
    commit = ledger.commit_clip(each, *files)
    assert commit.attempt == each.attempt
    assert ledger.store.exists(commit.video.key)
    assert ledger.store.exists(commit.poster.key)
    assert ledger.commit_clip(each, *files) == commit, "calling again changes nothing"


def test_loser_of_a_race_removes_its_files(ledger: Ledger, files: tuple[Path, Path]) -> None:
    winner = ledger.commit_clip(draft(A), *files)
    assert ledger.commit_clip(draft(A), *files) == winner
    kept = sorted(ledger.store.list("clips"))
    assert kept == sorted([winner.video.key, winner.poster.key])


def test_writers_race_on_one_clip(ledger: Ledger, files: tuple[Path, Path]) -> None:
    barrier = threading.Barrier(8)

    def commit(_: int) -> Commit:
        each = draft(A)
        barrier.wait(60)
        return ledger.commit_clip(each, *files)

    with ThreadPoolExecutor(8) as threads:
        commits = list(threads.map(commit, range(8)))
    assert {each.attempt for each in commits} == {ledger.read_commit(A).attempt}
    assert len(list(ledger.store.list("clips"))) == 2
    assert len(list(ledger.store.list("commits"))) == 1


@pytest.mark.parametrize("damage", ["truncated", "changed", "lost"])
@pytest.mark.parametrize("times", [1, 99])
def test_bad_upload_is_never_committed(
    ledger: Ledger,
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    times: int,
) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_DELAY_S", 0.0)
    put, left = ObjectStore.put, [times]

    def put_badly(self: ObjectStore, key: str, data: bytes | Path) -> None:
        if left[0] == 0 or not isinstance(data, Path):
            put(self, key, data)
            return
        left[0] -= 1
        content = data.read_bytes()
        if damage != "lost":
            put(self, key, content[:-1] + (b"" if damage == "truncated" else b"?"))

    monkeypatch.setattr(ObjectStore, "put", put_badly)
    if times == 1:
        commit = ledger.commit_clip(draft(A), *files)
        assert ledger.store.read(commit.video.key) == files[0].read_bytes()
    else:
        with pytest.raises(UploadError, match="render the clip again"):
            ledger.commit_clip(draft(A), *files)
        assert ledger.committed_ids() == set()


def test_resume_set(ledger: Ledger, files: tuple[Path, Path]) -> None:
    for clip_id in (A, B):
        ledger.commit_clip(draft(clip_id), *files)
    ledger.store.put("commits/zz/notes.json", b"{}")
    again = pickle.loads(pickle.dumps(ledger))
    assert again.committed_ids() == {A, B}
    assert {commit.clip_id for commit in again.read_commits([A])} == {A}
    with pytest.raises(FileNotFoundError, match=C):
        again.read_commit(C)


def test_output_is_opened_again_and_loses_a_stale_success_with_new_rows(ledger: Ledger) -> None:
    ledger.store.put(SUCCESS_KEY, b"")
    found = ledger.open_output(IDENTITY.model_copy(update={"recipe": "other", "versions": {}}))
    assert found.recipe == "tiny-cpu"
    assert found == ledger.read_output()
    assert ledger.store.exists(SUCCESS_KEY), "another run may be writing; this one hasn't begun"
    ledger.save_rows("ads", plan_rows((A, None)))
    assert not ledger.store.exists(SUCCESS_KEY)


def test_other_model_or_finish_is_refused(ledger: Ledger) -> None:
    ledger.store.put(SUCCESS_KEY, b"")
    other = IDENTITY.model_copy(update={"model_fingerprint": "e" * 64})
    with pytest.raises(OutputMismatchError, match=f"{'f' * 64}.*{'e' * 64}.*another --output"):
        ledger.open_output(other)
    finish = IDENTITY.model_copy(update={"finish": {"codec": "h264", "crf": 23, "sign": True}})
    with pytest.raises(
        OutputMismatchError, match=r"finish\.crf is 18, .* 23; finish\.sign is None"
    ):
        ledger.open_output(finish)
    with pytest.raises(OutputMismatchError, match="format"):
        ledger.open_output(IDENTITY.model_copy(update={"format": 2}))
    assert ledger.store.exists(SUCCESS_KEY), "nothing was touched"


OTHER = IDENTITY.model_copy(update={"model_fingerprint": "e" * 64})


def test_an_output_without_a_clip_is_claimed_by_who_holds_its_lease(ledger: Ledger) -> None:
    """As where the first call named a model that couldn't be loaded."""
    ledger.save_rows("wrong", plan_rows((A, None)))
    ledger.store.put("index.html", b"a page")
    assert not ledger.check_output(OTHER)
    assert ledger.open_output(OTHER, may_claim=True).model_fingerprint == "f" * 64
    lease = Lease.acquire(ledger.store, 60.0)
    mine = Ledger(ledger.store, lease.epoch)
    mine.claim(OTHER)
    assert mine.read_output() == OTHER
    assert mine.list_tables("rows") == []
    assert mine.check_output(OTHER)
    mine.save_rows("right", plan_rows((B, None)))
    mine.claim(OTHER)
    assert mine.list_tables("rows") == ["rows/right.parquet"]
    lease.release()
    Lease.acquire(ledger.store, 60.0)
    with pytest.raises(LeaseLostError):
        mine.claim(IDENTITY)
    assert mine.read_output() == OTHER


@pytest.mark.parametrize(
    "came",
    [
        f"commits/{A[:2]}/{A}.json",
        f"failures/{A[:2]}/{A}/{'0' * 8}.json",
        f"checkpoints/{A[:2]}/{A}/{'0' * 8}.json",
        f"videos/00/video_{'0' * 44}.json",
        "notes.txt",
    ],
)
def test_an_output_of_which_something_has_come_is_claimed_by_nobody(
    ledger: Ledger, came: str
) -> None:
    ledger.save_rows("ads", plan_rows((A, None)))
    ledger.store.put(came, b"")
    claims: list[Callable[[OutputIdentity], Any]] = [
        ledger.check_output, partial(ledger.open_output, may_claim=True), ledger.claim,
    ]  # fmt: skip
    for claim in claims:
        with pytest.raises(OutputMismatchError, match="another --output"):
            claim(OTHER)
    with pytest.raises(OutputMismatchError, match="format"):
        ledger.claim(IDENTITY.model_copy(update={"format": 2}))
    assert ledger.read_output() == IDENTITY
    assert ledger.list_tables("rows")


def test_two_runs_open_one_output_at_once(store: ObjectStore) -> None:
    others = [IDENTITY.model_copy(update={"model_fingerprint": each * 64}) for each in "1234"]
    barrier = threading.Barrier(4)

    def open_output(identity: OutputIdentity) -> bool:
        barrier.wait(60)
        try:
            Ledger(store).open_output(identity)
        except UsageError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(open_output, others))
    assert sum(opened) == 1
    assert Ledger(store).read_output() == others[opened.index(True)]


def test_foreign_folder_is_refused(store: ObjectStore) -> None:
    store.put(".gitkeep", b"")
    store.put("photos/mine.jpg", b"x")
    with pytest.raises(UsageError, match=r"photos/mine\.jpg"):
        Ledger(store).open_output(IDENTITY)
    assert sorted(store.list()) == [".gitkeep", "photos/mine.jpg"]
    store.delete("photos/mine.jpg")
    Ledger(store).open_output(IDENTITY)


def test_damaged_documents_are_named(ledger: Ledger) -> None:
    Lease.acquire(ledger.store, 60.0).release()
    reads: dict[str, Callable[[], Any]] = {
        f"commits/{A[:2]}/{A}.json": lambda: ledger.read_commit(A),
        "runs/00000001.json": lambda: read_runs(ledger.store),
        "lease/00000001.json": lambda: read_lease(ledger.store),
        f"videos/00/video_{'0' * 44}.json": lambda: Inbox(ledger.store, 1).load(),
        f"files/00/file-{'0' * 44}.json": lambda: Uploads(ledger.store, 1).load(),
    }
    damages = {b'{"epoch":': "Invalid JSON", b"{}": r"\w+: Field required"}
    for (key, read), (content, says) in product(reads.items(), damages.items()):
        ledger.store.put(key, content)
        with pytest.raises(UsageError, match=f"{key} is not what rushes writes there: {says}"):
            read()
        ledger.store.delete(key)


def test_failures_keep_their_history_and_a_commit_outweighs_them(
    ledger: Ledger, files: tuple[Path, Path]
) -> None:
    ledger.record_failure(failure(A, "first"))
    last = failure(A, "second")
    ledger.record_failure(last)
    ledger.record_failure(failure(B))
    assert ledger.failed_ids() == {A, B}
    assert {each.clip_id: each.reason for each in ledger.latest_failures()} == {
        A: "second",
        B: "out of memory",
    }
    assert list(ledger.latest_failures({A})) == [last]
    ledger.save_rows("ads", plan_rows((A, None), (B, None)))
    assert ledger.status().failed == 2
    ledger.commit_clip(draft(A), *files)
    status = ledger.status()
    assert (status.committed, status.failed) == (1, 1)


def test_every_row_is_in_one_state(ledger: Ledger, files: tuple[Path, Path]) -> None:
    bad = (None, "width: got 65")
    rows = plan_rows((A, None), (A, None), (B, None), (C, None), bad, bad, bad)
    ledger.save_rows("ads", rows, "s3://ads/tonight.csv")
    ledger.save_rows("more", plan_rows((A, None), (D, None)))
    ledger.commit_clip(draft(A), *files)
    ledger.record_failure(failure(B))
    status = ledger.status()
    assert status.model_dump() == {
        "rows": 9,
        "committed": 3,
        "failed": 1,
        "rejected": 3,
        "remaining": 2,
        "clips": 4,
        "clips_committed": 1,
        "tables": (
            {
                "name": "ads",
                "source": "s3://ads/tonight.csv",
                "rows": 7,
                "committed": 2,
                "failed": 1,
                "rejected": 3,
                "remaining": 1,
            },
            {
                "name": "more",
                "source": None,
                "rows": 2,
                "committed": 1,
                "failed": 0,
                "rejected": 0,
                "remaining": 1,
            },
        ),
    }
    assert write_manifest(ledger) == status
    write_success(ledger, status)
    assert not ledger.store.exists(SUCCESS_KEY)
    for clip_id in (C, D):
        ledger.commit_clip(draft(clip_id), *files)
    status = write_manifest(ledger)
    write_success(ledger, status)
    assert status == ledger.status()
    assert json.loads(ledger.store.read(SUCCESS_KEY))["failed"] == 1
    assert sorted(ledger.store.list("manifest")) == [
        "manifest/ads.parquet",
        "manifest/more.parquet",
    ]


def test_rows_that_come_in_parts_are_counted_and_written_as_one(
    ledger: Ledger, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "PART_ROWS", 2)
    rows = [(A, None), (None, "bad"), (A, None), (B, None), (C, None)]
    ledger.save_rows("ads", plan_rows(*rows))
    ledger.save_rows("none", plan_rows((A, None)).slice(0, 0))
    ledger.commit_clip(draft(A), *files)
    ledger.record_failure(failure(B))
    status = write_manifest(ledger)
    assert status == ledger.status()
    assert (status.committed, status.failed, status.rejected, status.remaining) == (2, 1, 1, 1)
    assert (status.clips, status.clips_committed) == (3, 1)
    assert len(list(ledger.read_parts("manifest/ads.parquet"))) == 3
    manifest = ledger.read_table("manifest/ads.parquet")
    assert manifest["clip_id"].to_pylist() == [clip_id for clip_id, _ in rows]
    assert ledger.read_table("manifest/none.parquet").schema == manifest.schema
    monkeypatch.undo()
    assert ledger.read_table("manifest/ads.parquet") == manifest


def test_rows_saved_again_replace_theirs(ledger: Ledger) -> None:
    bad = plan_rows((None, "prompt: empty"), (A, None))
    ledger.save_rows("ads", bad)
    ((name, (rows,)),) = ledger.load_rows()
    assert name == "ads"
    assert rows.equals(bad)
    assert ledger.store.exists("rejects/ads.parquet")
    ledger.save_rows("ads", plan_rows((A, None), (B, None), (C, None)))
    assert not ledger.store.exists("rejects/ads.parquet")
    assert ledger.status().remaining == 3
    ((_, (some,)),) = ledger.load_rows(["reject", "row"])
    assert some.column_names == ["reject", "row"]
    assert ledger.status().rows == 3


def test_what_others_left_in_an_output_is_passed_over(ledger: Ledger) -> None:
    ledger.save_rows("ads", plan_rows((A, None), (None, "prompt: empty")))
    for folder in ("rows", "manifest", "rejects", "lease", "runs", "commits", "failures"):
        for name in (".DS_Store", "._ads.parquet", "notes.txt", "ads (1).parquet"):
            ledger.store.put(f"{folder}/{name}", b"a desktop's")
    assert write_manifest(ledger) == ledger.status()
    assert ledger.status().rows == 2
    assert ledger.list_tables("manifest") == ["manifest/ads.parquet"]
    assert read_runs(ledger.store) == []
    lease = Lease.acquire(ledger.store, 60.0)
    lease.check()
    lease.release()
    assert lease.epoch == 1


def test_a_damaged_table_is_named_with_what_to_do(ledger: Ledger) -> None:
    key, uri = "rows/ads.parquet", re.escape(ledger.store.uri)
    says = rf"{key} is not what rushes writes there: .*; restore it, or drop the table: "
    says += rf"rushes clean {uri} --table ads --yes$"
    ledger.save_rows("ads", plan_rows((A, None)))
    check_tables(ledger)
    whole = ledger.store.read(key)
    for damaged in (b"", b"junk", b"\xff" * 100, whole[:-1], whole[: len(whole) // 2]):
        ledger.store.put(key, damaged)
        for read in (ledger.status, partial(check_tables, ledger), partial(write_manifest, ledger)):
            with pytest.raises(UsageError, match=says):
                read()
    check_tables(ledger, besides=["ads"])
    ledger.put_table(key, pa.table({"clip_id": [A]}))
    with pytest.raises(UsageError, match=r"it has no column reject"):
        ledger.status()
    with pytest.raises(UsageError, match=r"it has no column row, id, reject, prompt"):
        check_tables(ledger)
    ledger.store.put(key, whole[:4] + b"\xff" * 40 + whole[44:])
    with pytest.raises(UsageError, match=says):
        write_manifest(ledger)


def test_rows_that_nobody_could_account_for_are_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="neither clip_id nor reject"):
        ledger.save_rows("ads", plan_rows((None, None)))
    with pytest.raises(ValueError, match=r"missing.*clip_id"):
        ledger.save_rows("ads", pa.table({"row": [1]}))


def test_labels_that_parquet_cannot_hold_are_named(ledger: Ledger) -> None:
    rows = plan_rows((A, None)).append_column("meta", pa.array([{}], pa.struct([])))
    with pytest.raises(UsageError, match="'meta'"):
        ledger.save_rows("ads", rows)


def test_status_of_no_output(store: ObjectStore) -> None:
    with pytest.raises(UsageError, match="no output of rushes"):
        Ledger(store).status()
    assert list(store.list()) == []


def test_attempts_sort_by_time_and_never_repeat() -> None:
    attempts = [new_attempt() for _ in range(100)]
    assert len(set(attempts)) == 100
    assert [each[:21] for each in attempts] == sorted(each[:21] for each in attempts)
