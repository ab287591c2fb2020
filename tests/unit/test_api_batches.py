"""The routes of files and batches over a desk that is made up: limits, and how a batch is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from openai.types import Batch
from starlette.testclient import TestClient

from cluster.answers import BatchState, Refusal
from jobs.api.batches import describe_batch
from jobs.api.endpoint import Desk, Endpoint
from jobs.api.keys import ApiKeys
from jobs.api.routes import make_app
from jobs.recipes import find_recipe
from pipeline.batches import (
    BatchEnd,
    BatchFault,
    BatchJob,
    BatchLimits,
    Cancellation,
    new_batch_id,
)
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from pipeline.uploads import FOLDER, FileRecord, new_file_id

FILE = FileRecord(id=new_file_id(), owner="", filename="a", size_bytes=2, purpose="batch")
ASKED = {"input_file_id": FILE.id, "endpoint": "/v1/videos", "completion_window": "24h"}
MAX_BYTES = 1 << 10


class FullDesk:
    """Takes nothing in, or everything."""

    def __init__(self, *, is_full: bool = True, purpose: Any = "batch") -> None:
        self.files = self.batches = self
        self.is_full, self.purpose = is_full, purpose

    async def find(self, owner: str, file_id: str) -> FileRecord:
        return FILE.model_copy(update={"purpose": self.purpose})

    async def add(self, record: FileRecord) -> FileRecord | Refusal:
        return Refusal("files", 60) if self.is_full else record

    async def create(self, job: BatchJob) -> Refusal | None:
        return Refusal("batches", 60) if self.is_full else None


def connect(output: Path, desk: FullDesk) -> TestClient:
    keys = ApiKeys.read(None, "", insecure=True)
    limits = BatchLimits(max_file_bytes=MAX_BYTES)
    ledger = Ledger(ObjectStore(output))
    at = Endpoint(cast(Desk, desk), find_recipe(), "0" * 64, ledger, keys, limits=limits)
    return TestClient(make_app(at))


def upload(client: TestClient, content: bytes, name: str = "a.jsonl") -> Any:
    return client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "batch"})


def test_a_limit_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    client = connect(tmp_path, FullDesk())
    for answer, code in (
        (upload(client, b"{}"), "too_many_files"),
        (client.post("/v1/batches", json=ASKED), "too_many_batches"),
    ):
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "60"
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", code)
    assert not list(ObjectStore(tmp_path).list(FOLDER))


@pytest.mark.parametrize("size", [MAX_BYTES + 1, 1 << 20], ids=["a byte", "far"])
def test_an_upload_that_is_too_large_is_not_kept(tmp_path: Path, size: int) -> None:
    client = connect(tmp_path, FullDesk(is_full=False))
    assert upload(client, b"x" * MAX_BYTES).status_code == 200
    kept = list(ObjectStore(tmp_path).list(FOLDER))
    answer = upload(client, b"x" * size)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert list(ObjectStore(tmp_path).list(FOLDER)) == kept


@pytest.mark.parametrize(
    ("given", "told"),
    [("../../etc/passwd", "passwd"), ("C:\\ads\\a.jsonl", "a.jsonl"), ("/", "file"),
     ("x" * 999, "x" * 255), ("größe.jsonl", "größe.jsonl")],
)  # fmt: skip
def test_a_files_name_is_its_last_part(tmp_path: Path, given: str, told: str) -> None:
    answer = upload(connect(tmp_path, FullDesk(is_full=False)), b"{}", given)
    assert answer.json()["filename"] == told


def test_a_batch_is_made_of_an_upload_that_is_there(tmp_path: Path) -> None:
    answers = connect(tmp_path, FullDesk(purpose="batch_output")).post("/v1/batches", json=ASKED)
    assert (answers.status_code, answers.json()["error"]["param"]) == (400, "input_file_id")
    deleted = connect(tmp_path, FullDesk(is_full=False)).post("/v1/batches", json=ASKED)
    assert (deleted.status_code, deleted.json()["error"]["code"]) == (404, "file_not_found")


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled"])
def test_a_batch_is_told_as_the_official_client_reads_it(status: Any) -> None:
    job = BatchJob(
        id=new_batch_id(),
        owner="me",
        input_file_id=FILE.id,
        endpoint="/v1/videos",
        completion_window="24h",
    )
    at = datetime.now(UTC)
    later = [at + timedelta(seconds=n) for n in range(4)]
    end = BatchEnd(
        status=status,
        faults=(BatchFault(code="empty_file", message="no lines"),) if status == "failed" else (),
        validated_at=later[1],
        finalizing_at=later[2],
        ended_at=later[3],
        output_file_id=FILE.id,
    )
    off = Cancellation(cancelling_at=at) if status == "cancelled" else None
    told = describe_batch(BatchState(job, status, 3, 2, 1, off, end=end)).model_dump(mode="json")
    batch = Batch.model_validate(told)
    assert told.keys() <= Batch.model_fields.keys()
    assert (batch.id, batch.object, batch.status) == (job.id, "batch", status)
    ends = {name: told[f"{name}_at"] for name in ("completed", "failed", "expired", "cancelled")}
    assert ends == {**dict.fromkeys(ends), status: int(later[3].timestamp())}
    assert batch.in_progress_at == int(later[1].timestamp())
    assert batch.cancelling_at == (int(at.timestamp()) if off else None)
    assert batch.errors is None or batch.errors.data[0].code == "empty_file"  # type: ignore[index]
    assert bool(batch.errors) == (status == "failed")
    assert batch.metadata is None
