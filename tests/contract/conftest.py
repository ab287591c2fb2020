"""The three kinds of storage, each fresh: a folder, memory, a bucket on a local S3 server."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from pipeline.store import ObjectStore
from tests.support.s3 import BUCKET


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "file":
        return ObjectStore(tmp_path / "output")
    if request.param == "memory":
        return ObjectStore(f"memory://{uuid.uuid4().hex}")
    request.getfixturevalue("s3_server")
    return ObjectStore(f"s3://{BUCKET}/{uuid.uuid4().hex}/output")
