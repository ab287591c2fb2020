"""The endpoint as Serve's config files ask for it."""

import socket
import threading
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer
from pydantic import ValidationError

from jobs import application
from jobs.application import EndpointConfig, build_endpoint
from pipeline.errors import UsageError
from pipeline.store import ObjectStore


def test_a_variable_that_is_not_set_is_no_folder_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(UsageError, match=r"\$NOT_SET/online"):
        build_endpoint(EndpointConfig(output="$NOT_SET/online", insecure=True))
    assert not any(tmp_path.iterdir())


def test_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    build_endpoint(EndpointConfig(output="$HERE/online", insecure=True))
    assert (tmp_path / "online" / "run.json").exists()


@pytest.mark.parametrize("limit", ["max_queued", "max_per_minute"])
def test_a_limit_that_lets_nobody_in_is_refused(limit: str) -> None:
    with pytest.raises(ValidationError, match=limit):
        EndpointConfig.model_validate({"output": "out", "insecure": True, limit: 0})


def test_a_webhook_needs_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUSHES_WEBHOOK_SECRET", raising=False)
    config = EndpointConfig(
        output=str(tmp_path / "online"), insecure=True, webhook="https://example.com/hook"
    )
    with pytest.raises(UsageError, match="RUSHES_WEBHOOK_SECRET"):
        build_endpoint(config)
    assert not any(tmp_path.iterdir())
    monkeypatch.setenv("RUSHES_WEBHOOK_SECRET", "whsec_cnVzaGVzIHdlYmhvb2sgc2VjcmV0IG9mIHRlc3Rz")
    assert build_endpoint(config)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """Where an S3 server is looked for, and nobody listens."""
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        found = each.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{found}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return found


def test_storage_and_its_bucket_may_come_after_the_endpoint(port: int) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    config = EndpointConfig(output="s3://late/online", insecure=True)
    building = threading.Thread(target=build_endpoint, args=(config,))
    building.start()
    building.join(2)
    assert building.is_alive()
    server.start()
    try:
        building.join(2)
        assert building.is_alive()
        boto3.client("s3").create_bucket(Bucket="late")
        building.join(120)
        assert not building.is_alive()
        assert ObjectStore("s3://late/online").exists("run.json")
    finally:
        server.stop()


def test_storage_that_never_comes_is_an_error(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "STORE_WAIT_S", 1.5)
    with pytest.raises(UsageError, match="s3://never/online: can't be written"):
        build_endpoint(EndpointConfig(output="s3://never/online", insecure=True))


def test_a_folder_that_cant_be_written_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "online").write_text("a file")
    with pytest.raises(UsageError, match="a file is where a folder is needed"):
        build_endpoint(EndpointConfig(output=str(tmp_path / "online"), insecure=True))
