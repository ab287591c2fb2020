"""`Uploads`: the files of the online endpoint's callers, and those that it makes for them.

    files/<ab>/<id>.jsonl   the content, first
    files/<ab>/<id>.json    the record, last: only with it is there a file

`ab` is an id's last two digits. A content without a record is an upload that was cut off, or a
deletion: nobody can ask for it, and `rushes clean` removes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.documents import Document, new_id, read_document
from pipeline.lease import check_epoch
from pipeline.places import CHUNK_BYTES, map_threads
from pipeline.store import ObjectStore

FOLDER = "files"
FILE_ID = r"file-[0-9a-f]{44}"
FileId = Annotated[str, Field(pattern=rf"^{FILE_ID}$")]


class FileRecord(Document):
    """What a file is, beside its content."""

    id: FileId
    owner: str
    """Whose it is: the digest of an API key; empty where the endpoint asks for none."""
    filename: str
    size_bytes: int
    purpose: Literal["batch", "batch_output"]
    """Uploaded for a batch, or made by one."""
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


def new_file_id() -> str:
    """Return an id that sorts by time, to the millisecond, and can't be guessed."""
    return new_id("file-")


class Uploads:
    """The files of one output. Safe in threads; can be pickled."""

    def __init__(self, store: ObjectStore, epoch: int | None = None) -> None:
        """Touch nothing yet; with `epoch`, no record is kept once another run has taken over."""
        self.store = store
        self._epoch = epoch

    def write(self, file_id: str, content: bytes | Path) -> None:
        """Write a file's content, whole or not at all; it is no file before `keep`."""
        self.store.put(_key(file_id, "jsonl"), content)

    def keep(self, record: FileRecord) -> None:
        """Make a content that is written a file.

        Raises:
            LeaseLostError: another run has taken over.
        """
        if self._epoch is not None:
            check_epoch(self.store, self._epoch)
        self.store.put(_key(record.id, "json"), record.model_dump_json().encode())

    def forget(self, file_id: str) -> None:
        """Remove a file, or a content that never became one."""
        self.store.delete(_key(file_id, "json"))
        self.store.delete(_key(file_id, "jsonl"))

    def read(self, file_id: str) -> Iterator[bytes]:
        """Yield a file's content in chunks.

        Raises:
            FileNotFoundError: there is none.
        """
        key = _key(file_id, "jsonl")
        size_bytes = self.store.size(key)
        for start in range(0, size_bytes, CHUNK_BYTES):
            yield self.store.read(key, start, min(start + CHUNK_BYTES, size_bytes))

    def read_lines(self, file_id: str, max_bytes: int) -> Iterator[bytes]:
        """Yield a file's lines without their ends.

        One of more than `max_bytes` is yielded in part, by more than that, and is the last.

        Raises:
            FileNotFoundError: there is no such file.
        """
        rest = b""
        for chunk in self.read(file_id):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in (*lines, rest) if len(rest) > max_bytes else lines:
                yield line
                if len(line) > max_bytes:
                    return
        if rest:
            yield rest

    def load(self) -> list[FileRecord]:
        """Return every file, the oldest first."""
        keys = sorted(key for key, match in self._find() if match["kind"] == "json")
        read = partial(read_document, self.store, FileRecord)
        records = map_threads(read, keys, self.store.concurrency)
        return sorted(records, key=lambda record: record.id)

    def list_cut_off(self) -> Iterator[str]:
        """Yield the keys of contents that are no files: waste, while nobody uploads."""
        found = list(self._find())
        kept = {match["id"] for _, match in found if match["kind"] == "json"}
        yield from (key for key, match in found if match["id"] not in kept)

    def _find(self) -> Iterator[tuple[str, re.Match[str]]]:
        for key in self.store.list_shards(FOLDER):
            if match := _KEY.fullmatch(key):
                yield key, match


_KEY = re.compile(rf"{FOLDER}/../(?P<id>{FILE_ID})\.(?P<kind>jsonl?)")


def _key(file_id: str, kind: str) -> str:
    return f"{FOLDER}/{file_id[-2:]}/{file_id}.{kind}"
