"""A run's record: its beginning, its end, and what its gangs took, whatever happens."""

from __future__ import annotations

import uuid

import pytest

from cluster.answers import PoolProgress
from jobs.record import Run
from jobs.run import PoolUse, RunBrokenError
from pipeline.documents import Commit, describe_failure
from pipeline.runs import RunRecord, read_runs
from pipeline.store import ObjectStore
from tests.support.command import wait_until
from tests.support.outputs import A


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(f"memory://{uuid.uuid4().hex}")


def read_only(store: ObjectStore) -> RunRecord:
    (record,) = read_runs(store)
    return record


def progress(rebuilds: int, device_seconds: float) -> PoolProgress:
    return PoolProgress(0, 0, 0, 0, 0, 0, rebuilds, None, device_seconds)


def begin_and_raise(run: Run, epoch: int, error: BaseException) -> None:
    with run.recorded(pytest.fail):
        run.begin(epoch, "tiny-cpu", 3)
        raise error


def test_a_run_is_written_down_when_it_begins_and_when_it_ends(store: ObjectStore) -> None:
    run = Run(store)
    with run.recorded(pytest.fail):
        assert read_runs(store) == []
        run.begin(12, "tiny-cpu", 3)
        assert list(store.list("runs")) == ["runs/00000012.json"]
        begun = read_only(store)
        assert (begun.epoch, begun.recipe, begun.clips) == (12, "tiny-cpu", 3)
        assert begun.rushes
        assert (begun.ended_at, begun.ended) == (None, None)
        run.count(Commit.model_construct())
        run.count(Commit.model_construct())
        run.count(describe_failure(A, "denoise", "out of memory"))
        run.use.count(progress(1, 30.0))
    end = read_only(store)
    assert end == begun.model_copy(
        update={
            "ended_at": end.ended_at,
            "ended": "done",
            "committed": 2,
            "failed": 1,
            "gangs_lost": 1,
            "device_seconds": 30.0,
        }
    )
    assert end.ended_at is not None
    assert end.ended_at >= end.started_at


def test_what_a_run_holds_is_known_though_it_dies(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.record.KEEP_S", 0.01)
    run = Run(store)
    with run.recorded(pytest.fail):
        run.begin(1, "tiny-cpu", 3)
        run.count(Commit.model_construct())
        run.use.count(progress(1, 30.0))
        wait_until(lambda: read_only(store).device_seconds, 30, "what it holds")
        kept = read_only(store)
        assert (kept.ended, kept.device_seconds, kept.committed) == (None, 30.0, 1)
    assert read_only(store).ended == "done"


def test_a_run_without_work_leaves_no_record(store: ObjectStore) -> None:
    with Run(store).recorded(pytest.fail):
        pass
    with pytest.raises(ValueError, match="x"), Run(store).recorded(pytest.fail):
        raise ValueError("x")
    assert read_runs(store) == []


def test_how_a_run_was_stopped(store: ObjectStore) -> None:
    for epoch, by in ((1, "SIGTERM"), (2, "Ctrl-C")):
        run = Run(store)
        with run.recorded(pytest.fail):
            run.begin(epoch, "tiny-cpu", 3)
            run.stopped_by = by
    with pytest.raises(KeyboardInterrupt):
        begin_and_raise(Run(store), 3, KeyboardInterrupt())
    assert [each.ended for each in read_runs(store)] == ["SIGTERM", "Ctrl-C", "Ctrl-C"]


def test_a_broken_run_says_why(store: ObjectStore) -> None:
    with pytest.raises(RunBrokenError):
        begin_and_raise(Run(store), 1, RunBrokenError("the run broke: no space left"))
    record = read_only(store)
    assert (record.ended, record.reason) == ("broken", "no space left")


def test_a_record_that_cannot_be_written_hides_no_error(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: ObjectStore, key: str, data: bytes) -> None:
        raise OSError("the bucket is gone")

    def lose_store() -> None:
        with run.recorded(said.append):
            run.begin(1, "tiny-cpu", 3)
            monkeypatch.setattr(ObjectStore, "put", refuse)
            raise RunBrokenError("no gang can be built")

    said: list[str] = []
    run = Run(store)
    with pytest.raises(RunBrokenError, match="no gang"):
        lose_store()
    assert said == ["how this run ended could not be written down: OSError: the bucket is gone"]
    assert read_only(store).ended is None


def test_what_gangs_took_is_added_up_over_a_pool_that_starts_anew() -> None:
    use = PoolUse()
    for now in (progress(0, 0.0), progress(0, 10.0), progress(1, 12.5)):
        use.count(now)
    assert (use.gangs_lost, use.device_seconds) == (1, 12.5)
    for now in (progress(0, 0.0), progress(0, 4.0), progress(2, 6.0)):  # another process
        use.count(now)
    assert (use.gangs_lost, use.device_seconds) == (3, 18.5)
