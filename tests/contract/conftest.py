"""The three kinds of storage, each fresh: a folder, memory, a bucket on a local S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline.store import ObjectStore

BUCKET = "rushes"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A moto S3 server's endpoint, configured as a user would: AWS environment variables."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield endpoint
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "file":
        return ObjectStore(tmp_path / "output")
    if request.param == "memory":
        return ObjectStore(f"memory://{uuid.uuid4().hex}")
    request.getfixturevalue("s3_server")
    return ObjectStore(f"s3://{BUCKET}/{uuid.uuid4().hex}/output")
