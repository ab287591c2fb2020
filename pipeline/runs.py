"""`RunRecord`: one run that rendered into an output: when, where, and how it ended.

    runs/<epoch>.json       written when the run begins to render, every few seconds, and at its end

The epoch is that of the lease that the run held. A run that found nothing to render has no record;
one that died has a record without an end, with what it had taken by then.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from datetime import UTC, datetime
from importlib import metadata
from typing import Literal

from pydantic import Field

from pipeline.documents import Document, read_document
from pipeline.store import ObjectStore

FOLDER = "runs"
_RECORD = re.compile(rf"{FOLDER}/\d{{8}}\.json")
RunEnd = Literal["done", "SIGTERM", "SIGHUP", "Ctrl-C", "broken"]


class RunRecord(Document):
    """What is known of one run."""

    epoch: int
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    rushes: str = Field(default_factory=lambda: _read_version())
    recipe: str
    clips: int
    """How many there were to render when it began."""
    started_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    ended: RunEnd | None = None
    """How; `done` is that every clip had its turn, though some may have failed."""
    reason: str = ""
    """Why it broke, where it did."""
    committed: int = 0
    failed: int = 0
    gangs_lost: int = 0
    device_seconds: float = 0.0
    """For how long its gangs were held, weights' loading included, times their ranks."""


def put_run(store: ObjectStore, record: RunRecord) -> None:
    """Write a run's record, over what it wrote before."""
    store.put(f"{FOLDER}/{record.epoch:08d}.json", record.model_dump_json(indent=1).encode())


def read_runs(store: ObjectStore) -> list[RunRecord]:
    """Return the records of all runs of an output, the first one first."""
    keys = sorted(key for key in store.list(FOLDER) if _RECORD.fullmatch(key))
    return [read_document(store, RunRecord, key) for key in keys]


def _read_version() -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("rushes")
    return ""
