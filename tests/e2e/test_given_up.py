"""Clips that failed before: tried again up to `max_attempts` over all runs, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.cli import ExitCode
from jobs.plan import plan_call
from jobs.recipes import find_recipe
from pipeline.documents import describe_failure
from pipeline.lease import Lease, read_lease
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import rushes, write_table

CLIPS = 2


@pytest.fixture
def output(tmp_path: Path) -> Ledger:
    """An output whose two clips have failed: twice each, over two runs."""
    table = write_table(tmp_path / "ads.parquet", prompt=["a red ball", "a blue ring"])
    call = plan_call([table], find_recipe())
    ledger = Ledger(ObjectStore(tmp_path / "out"))
    ledger.open_output(call.identity)
    for planned in call.plan.tables:
        ledger.save_rows(planned.name, planned.rows, planned.uri)
    for clip_id in call.plan.clip_ids:
        for _ in range(2):
            ledger.record_failure(describe_failure(clip_id, "denoise", "out of memory"))
    return ledger


def test_attempts_count_over_all_runs(output: Ledger) -> None:
    ids = output.failed_ids()
    assert output.count_attempts(ids) == dict.fromkeys(ids, 2)
    one = sorted(ids)[0]
    output.record_failure(describe_failure(one, "denoise", "lost", ("a", "b"), attempts=3))
    assert output.count_attempts({one}) == {one: 5}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--no-retry-failed",), "2 clips that failed before are not tried again"),
        (("--set", "pool.max_attempts=2"), "have failed 2 times; to try once more: --set pool.max"),
    ],
)
def test_what_is_given_up_is_said_and_counted_and_starts_nothing(
    output: Ledger, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = rushes("render", "ads.parquet", "-o", "out", *options, cwd=tmp_path)
    assert done.returncode == ExitCode.INCOMPLETE, done.stderr
    assert said in done.stdout
    assert "failed     2 rows" in done.stdout
    assert "Nothing to do" not in done.stdout
    assert "loading models" not in done.stdout
    held = read_lease(output.store)
    assert held is not None
    assert held.released


def test_an_output_that_another_run_writes_is_refused(output: Ledger, tmp_path: Path) -> None:
    """The other run is this process: it lives, and gives signs of life."""
    with Lease.acquire(output.store, 1.0).kept(pytest.fail):
        done = rushes("render", "ads.parquet", "-o", "out", cwd=tmp_path)
        status = rushes("status", "out", cwd=tmp_path)
    assert f"writing    process {os.getpid()} on " in status.stdout
    assert "writing" not in rushes("status", "out", cwd=tmp_path).stdout
    assert done.returncode == ExitCode.USAGE
    assert "is being written by another run: process" in done.stderr
    assert "--wait" in done.stderr
