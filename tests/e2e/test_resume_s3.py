"""A run into S3 that is killed goes on from what the bucket holds, and renders nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import ExitCode
from pipeline.checkpoints import Checkpoints
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.probe import read_frames
from pipeline.store import ObjectStore
from tests.support.command import (
    ONE_GANG,
    end_process,
    find_children,
    rushes,
    start_rushes,
    wait_until,
    write_table,
)
from tests.support.s3 import BUCKET

pytestmark = pytest.mark.timeout(600)

NUM_CLIPS = 3
NUM_FRAMES = 17
OUTPUT = f"s3://{BUCKET}/resumed/out"
RUN_S = 300.0
RECIPE = ("request.num_inference_steps=48", "checkpoint.every_s=0.2", "lease.limit_s=20")
CALL = ("render", "ads.parquet", "-o", OUTPUT, *ONE_GANG, *(f"--set={each}" for each in RECIPE))


def read_commits(ledger: Ledger) -> dict[str, Commit]:
    return {each.clip_id: each for each in ledger.read_commits()}


def test_a_killed_run_goes_on_from_the_bucket(s3_server: str, tmp_path: Path) -> None:
    write_table(tmp_path / "ads.parquet", prompt=[f"ball number {n}" for n in range(NUM_CLIPS)])
    ledger = Ledger(ObjectStore(OUTPUT))
    saves = Checkpoints(ledger.store, "")
    with start_rushes(*CALL, cwd=tmp_path) as run:

        def has_begun_another() -> bool:
            assert run.poll() is None, run.communicate()
            committed = ledger.committed_ids()
            return bool(committed) and bool(saves.clip_ids() - committed)

        wait_until(has_begun_another, RUN_S, "a commit, and a save of another clip")
        started = find_children(run.pid)
        run.kill()
        for each in started:
            end_process(each)
    before = read_commits(ledger)
    assert 0 < len(before) < NUM_CLIPS
    assert saves.clip_ids() - before.keys()

    again = rushes(*CALL, cwd=tmp_path)
    assert again.returncode == ExitCode.OK, again.stderr
    left = NUM_CLIPS - len(before)
    assert f"{len(before)} done before, {left} to render" in again.stdout
    after = read_commits(ledger)
    assert len(after) == NUM_CLIPS
    assert {clip_id: after[clip_id] for clip_id in before} == before
    assert saves.clip_ids() == set()
    assert ledger.store.exists("_SUCCESS")
    for commit in after.values():
        video = tmp_path / "video.mp4"
        video.write_bytes(ledger.store.read(commit.video.key))
        assert len(read_frames(video)) == NUM_FRAMES
        assert ledger.store.checksum(commit.video.key)[0] == commit.video.sha256
