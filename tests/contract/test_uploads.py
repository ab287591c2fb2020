"""Callers' files are whole or not there, on every store."""

from __future__ import annotations

import pytest

from pipeline.errors import LeaseLostError
from pipeline.lease import Lease
from pipeline.places import CHUNK_BYTES
from pipeline.store import ObjectStore
from pipeline.uploads import FOLDER, FileRecord, Uploads, new_file_id


def make_record(size_bytes: int = 2) -> FileRecord:
    return FileRecord(
        id=new_file_id(), owner="me", filename="a", size_bytes=size_bytes, purpose="batch"
    )


@pytest.fixture
def uploads(store: ObjectStore) -> Uploads:
    return Uploads(store, Lease.acquire(store, 60).epoch)


def test_a_content_is_a_file_once_it_has_a_record(uploads: Uploads) -> None:
    records = sorted((make_record() for _ in range(3)), key=lambda record: record.id)
    for record in records:
        uploads.write(record.id, b"{}")
    assert uploads.load() == []
    assert len(list(uploads.list_cut_off())) == 3
    for record in records[1:]:
        uploads.keep(record)
    assert uploads.load() == records[1:]
    assert [records[0].id in key for key in uploads.list_cut_off()] == [True]
    assert b"".join(uploads.read(records[1].id)) == b"{}"


def test_what_was_deleted_is_gone(uploads: Uploads) -> None:
    record = make_record()
    uploads.write(record.id, b"{}")
    uploads.keep(record)
    for _ in range(2):
        uploads.forget(record.id)
    assert list(uploads.store.list(FOLDER)) == []
    with pytest.raises(FileNotFoundError):
        list(uploads.read(record.id))


def test_who_was_taken_over_keeps_no_file(store: ObjectStore) -> None:
    lease = Lease.acquire(store, 60)
    old = Uploads(store, lease.epoch)
    lease.release()
    Lease.acquire(store, 60)
    with pytest.raises(LeaseLostError):
        old.keep(make_record())


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\n\nb", [b"a", b"", b"b"]),
        (b"0123456789\n" * 2, [b"0123456789"] * 2),
        (b"a\n0123456789+\nb", [b"a", b"0123456789+"]),  # longer than a line may be: the last one
    ],
)
def test_lines(store: ObjectStore, content: bytes, lines: list[bytes]) -> None:
    file_id = new_file_id()
    uploads = Uploads(store)
    uploads.write(file_id, content)
    assert list(uploads.read_lines(file_id, 10)) == lines


def test_lines_over_chunks(store: ObjectStore) -> None:
    file_id, line = new_file_id(), b"x" * ((1 << 20) - 3)
    uploads = Uploads(store)
    uploads.write(file_id, (line + b"\n") * 17)
    assert 16 * len(line) < 2 * CHUNK_BYTES
    assert list(uploads.read_lines(file_id, 1 << 20)) == [line] * 17
    (first,) = uploads.read_lines(file_id, 1 << 10)
    assert len(first) > 1 << 10
