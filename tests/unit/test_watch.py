"""`rushes status --watch` and `--json`: what is shown as an output's rows come to their ends."""

from __future__ import annotations

import io
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import boto3
import pytest
from moto.server import ThreadedMotoServer
from rich.console import Console
from typer.testing import CliRunner

from jobs.cli import ExitCode, app
from jobs.watch import watch_output
from pipeline.lease import Lease
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.outputs import IDENTITY, A, B, C, failure, plan_rows
from tests.support.reported import write_commit

CLIPS = (A, B, C)
PatchSleep = Callable[..., list[float]]


@pytest.fixture
def ledger() -> Ledger:
    """An output with three rows, none of which has its end."""
    ledger = Ledger(ObjectStore(f"memory://{uuid.uuid4().hex}"))
    ledger.open_output(IDENTITY)
    ledger.save_rows("ads", plan_rows(*((clip_id, None) for clip_id in CLIPS)))
    return ledger


@pytest.fixture
def slept(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between looks; in every second one, a clip comes to its end."""
    pauses: list[float] = []

    def end_a_clip(pause_s: float) -> None:
        pauses.append(pause_s)
        place, odd = divmod(len(pauses), 2)
        if odd:
            return
        if CLIPS[place - 1] == B:
            ledger.record_failure(failure(B))
        else:
            write_commit(ledger.store, CLIPS[place - 1], 1)

    monkeypatch.setattr("jobs.watch.time.sleep", end_a_clip)
    return pauses


@pytest.fixture
def patch_sleep(monkeypatch: pytest.MonkeyPatch) -> PatchSleep:
    """Have something happen in each pause of a watch, and return the pauses."""

    def patch(*happenings: Callable[[], object]) -> list[float]:
        pauses: list[float] = []

        def sleep(pause_s: float) -> None:
            pauses.append(pause_s)
            happenings[len(pauses) - 1]()

        clock = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
        monkeypatch.setattr("jobs.watch.time", clock)
        return pauses

    return patch


class Bucket:
    """A bucket on a server that stops and starts; what is in it stays."""

    name = "watched"

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    bucket = Bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket.start()
    boto3.client("s3").create_bucket(Bucket=bucket.name)
    yield bucket
    bucket.stop()


def call(*args: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["status", *args])
    return result.exit_code, result.stdout.splitlines()


def test_a_line_whenever_the_counts_change(ledger: Ledger, slept: list[float]) -> None:
    code, lines = call(ledger.store.uri, "--watch", "--every", "7")
    assert code == ExitCode.OK
    assert lines == [
        "3 rows: 0 committed, 0 failed, 0 rejected, 3 remaining",
        "3 rows: 1 committed, 0 failed, 0 rejected, 2 remaining",
        "3 rows: 1 committed, 1 failed, 0 rejected, 1 remaining",
        "3 rows: 2 committed, 1 failed, 0 rejected, 0 remaining",
    ]
    assert slept == [7.0] * 6


def test_json_is_the_counts_one_line_each(ledger: Ledger, slept: list[float]) -> None:
    code, lines = call(ledger.store.uri, "--json")
    assert (code, len(lines)) == (ExitCode.OK, 1)
    assert json.loads(lines[0]) == ledger.status().model_dump(mode="json")
    code, lines = call(ledger.store.uri, "--json", "--watch")
    assert [json.loads(line)["remaining"] for line in lines] == [3, 2, 1, 0]


def test_a_terminal_shows_pace_and_time_left(ledger: Ledger, slept: list[float]) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    watch_output(ledger, console, 2.0, pytest.fail, as_json=False)
    shown = text.getvalue()
    assert "rows an hour" in shown
    assert "ETA" in shown
    assert shown.rindex("2 rows") > shown.rindex("rows an hour"), "the last look is without a pace"


def test_a_look_waits_as_long_as_the_last_one_took(
    ledger: Ledger, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.monotonic()

    def advance() -> Iterator[float]:
        now = clock
        while True:
            yield now  # before a look, and after it
            now += 5.0

    ticks = advance()
    monkeypatch.setattr("jobs.watch.time.monotonic", lambda: next(ticks))
    watch_output(ledger, Console(file=io.StringIO()), 2.0, pytest.fail, as_json=False)
    assert slept == [5.0] * 6


def test_names_with_colons_are_no_emoji(ledger: Ledger, slept: list[float]) -> None:
    source = "s3://ads/:100:/night.parquet"
    ledger.save_rows("ads", plan_rows((A, None)), source)
    _, lines = call(ledger.store.uri, "--json", "--watch")
    assert {json.loads(line)["tables"][0]["source"] for line in lines} == {source}


def test_an_interrupt_ends_it(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(pause_s: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.watch.time.sleep", interrupt)
    code, lines = call(ledger.store.uri, "--watch")
    assert (code, len(lines)) == (ExitCode.INTERRUPTED, 1)


def test_a_run_that_writes_is_waited_for_though_no_row_remains(
    ledger: Ledger, patch_sleep: PatchSleep
) -> None:
    """It may have rows that it hasn't saved yet, or try again what has failed."""
    write_commit(ledger.store, A, 1)
    ledger.save_rows("ads", plan_rows((A, None)))
    lease = Lease.acquire(ledger.store, 60.0)

    def finish() -> None:
        write_commit(ledger.store, B, 1)
        lease.release()

    patch_sleep(
        lambda: None, lambda: ledger.save_rows("ads", plan_rows((A, None), (B, None))), finish
    )
    code, lines = call(ledger.store.uri, "--watch")
    assert code == ExitCode.OK
    assert [line.split()[-2] for line in lines] == ["0", "1", "0"]


def test_a_run_that_gives_no_sign_of_life_is_not_waited_for(
    ledger: Ledger, patch_sleep: PatchSleep
) -> None:
    write_commit(ledger.store, A, 1)
    ledger.save_rows("ads", plan_rows((A, None)))
    lease = Lease.acquire(ledger.store, 0.2)  # and never renews it
    slept = patch_sleep(*[lambda: time.sleep(0.05)] * 40)
    code, lines = call(ledger.store.uri, "--watch")
    assert (code, len(lines)) == (ExitCode.OK, 1)
    assert len(slept) >= 3
    lease.release()


def test_an_output_and_its_rows_may_come_after_the_watch(patch_sleep: PatchSleep) -> None:
    ledger = Ledger(ObjectStore(f"memory://{uuid.uuid4().hex}"))

    def finish() -> None:
        ledger.save_rows("ads", plan_rows((A, None)))
        write_commit(ledger.store, A, 1)

    patch_sleep(lambda: None, lambda: ledger.open_output(IDENTITY), finish)
    result = CliRunner().invoke(app, ["status", ledger.store.uri, "--watch"])
    assert result.exit_code == ExitCode.OK
    assert result.stdout.splitlines() == [
        "0 rows: 0 committed, 0 failed, 0 rejected, 0 remaining",
        "1 rows: 1 committed, 0 failed, 0 rejected, 0 remaining",
    ]
    assert len(result.stderr.splitlines()) == 1, "it is said once"


def test_a_storage_that_goes_away_is_waited_for(bucket: Bucket, patch_sleep: PatchSleep) -> None:
    ledger = Ledger(ObjectStore(f"s3://{bucket.name}/{uuid.uuid4().hex}"))
    ledger.open_output(IDENTITY)
    ledger.save_rows("ads", plan_rows((A, None)))
    write_commit(ledger.store, A, 1)
    done = ledger.status()
    ledger.save_rows("ads", plan_rows((A, None), (B, None)))

    def come_back() -> None:
        bucket.start()
        ledger.save_rows("ads", plan_rows((A, None)))

    slept = patch_sleep(bucket.stop, lambda: None, come_back)
    result = CliRunner().invoke(app, ["status", ledger.store.uri, "--watch", "--json"])
    assert result.exit_code == ExitCode.OK, result.output
    first, last = result.stdout.splitlines()
    assert json.loads(first)["remaining"] == 1
    assert json.loads(last) == done.model_dump(mode="json")
    assert len(result.stderr.splitlines()) == 1, "it is said once"
    assert slept[1:] == [1.0, 2.0], "at pauses"


def test_a_terminal_shows_that_the_storage_is_away(bucket: Bucket, patch_sleep: PatchSleep) -> None:
    ledger = Ledger(ObjectStore(f"s3://{bucket.name}/{uuid.uuid4().hex}"))
    ledger.open_output(IDENTITY)
    ledger.save_rows("ads", plan_rows((A, None)))
    text = io.StringIO()

    def come_back() -> None:
        bucket.start()
        ledger.record_failure(failure(A))

    patch_sleep(bucket.stop, come_back)
    console = Console(file=text, force_terminal=True, width=120)
    watch_output(ledger, console, 2.0, pytest.fail, as_json=False)
    shown = text.getvalue()
    assert shown.index("storage away since") < shown.rindex("failed")


def test_a_storage_that_never_answered_ends_it(bucket: Bucket, patch_sleep: PatchSleep) -> None:
    bucket.stop()
    patch_sleep()
    assert call(f"s3://{bucket.name}/out", "--watch") == (ExitCode.USAGE, [])
