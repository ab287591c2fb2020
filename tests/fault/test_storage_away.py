"""A storage that throttles, errs or gives no answer as a call begins: asked again, for a while."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from click.testing import Result
from fsspec.config import conf as fsspec_conf
from s3fs import S3FileSystem
from typer.testing import CliRunner

from jobs.cli import ExitCode, app
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import write_table
from tests.support.faulty_s3 import FaultyProxy, serve_faults
from tests.support.outputs import IDENTITY
from tests.support.s3 import BUCKET

PASSING = ("throttled", "internal error", "cut before it arrives")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait before it asks again."""
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_, **__: 0.01)
    monkeypatch.setattr("pipeline.bucket.REACH_PAUSE_S", 0.01)


@pytest.fixture
def output(s3_server: str) -> str:
    """An output without a table."""
    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    Ledger(ObjectStore(uri)).open_output(IDENTITY)
    return uri


def status(output: str) -> Result:
    return CliRunner().invoke(app, ["status", output])


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """Let no test have a table's client of another's, with its endpoint."""
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("call", ["status s3://rushes/out", "plan s3://rushes/ads.parquet"])
@pytest.mark.usefixtures("fresh_clients", "s3_server")
def test_an_endpoint_that_never_answers_is_asked_for_a_while(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.bucket.REACH_S", 0.2)
    monkeypatch.setitem(fsspec_conf, "s3", {"config_kwargs": {"read_timeout": 0.05}})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        told = CliRunner().invoke(app, call.split())
    assert told.exit_code == ExitCode.BROKEN
    (line,) = told.stderr.splitlines()
    assert line.startswith(f"rushes: {call.split()[1]}: can't be read: the storage throttles or ")
    assert "Read timeout" in line


@pytest.mark.parametrize("fault", PASSING)
def test_trouble_that_passes_is_waited_for(
    fault: str, s3_server: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count()
    with serve_faults(s3_server, lambda *_: fault if next(asked) < 12 else None) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        told = status(output)
        assert proxy.struck[fault] == 12
    assert (told.exit_code, told.stderr) == (ExitCode.OK, "")


@pytest.mark.parametrize("fault", PASSING)
def test_trouble_that_stays_ends_the_call_for_it_to_be_made_again(
    fault: str, s3_server: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.bucket.REACH_S", 0.2)
    with serve_faults(s3_server, lambda *_: fault) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        told = status(output)
    assert told.exit_code == ExitCode.BROKEN
    (line,) = told.stderr.splitlines()
    assert line.startswith(f"rushes: {output}: can't be read: the storage throttles or gives no ")
    assert "run it again later" in line


def test_an_endpoint_that_refuses_connections_is_asked_no_longer(
    s3_server: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.bucket.REACH_S", float("inf"))
    closed = FaultyProxy(s3_server, lambda *_: None)
    closed.server_close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed.url)
    told = status(output)
    assert told.exit_code == ExitCode.USAGE
    assert "Could not connect" in told.stderr
    assert "; check the endpoint and the network" in told.stderr


@pytest.mark.parametrize("allowed", [2, 6, 10, 14])
@pytest.mark.parametrize("command", ["render", "report"])
def test_a_storage_that_goes_away_in_a_call_ends_it_with_a_line(
    s3_server: str,
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    allowed: int,
) -> None:
    monkeypatch.setattr("pipeline.bucket.REACH_S", 0.2)
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball"])
    call = {"render": ["render", table, "-o", output], "report": ["report", output]}[command]
    asked = count()
    faults = lambda *_: "throttled" if next(asked) >= allowed else None  # noqa: E731
    with serve_faults(s3_server, faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        told = CliRunner().invoke(app, call)
    assert told.exit_code == ExitCode.BROKEN
    (line,) = told.stderr.splitlines()
    assert line.startswith("rushes: ")
