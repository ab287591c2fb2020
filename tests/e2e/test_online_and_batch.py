"""A batch on the endpoint's cluster renders on the endpoint's gangs, which stay when it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import ExitCode
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import find_children, find_name, start_rushes, wait_until, write_table
from tests.support.online import CLIP_S, SHARED, Server

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
NUM_CLIPS = 3


def find_ranks(server: Server) -> set[int]:
    children = find_children(server.process.pid)
    return {each.pid for each in children if find_name(each).startswith("ray::RankWorker")}


def test_they_share_gangs_and_a_video_does_not_wait_for_the_batch(
    server: Server, tmp_path: Path
) -> None:
    client = server.client()
    before = find_ranks(server)
    prompts = [f"a blue square, {number}" for number in range(NUM_CLIPS)]
    write_table(tmp_path / "ads.parquet", prompt=prompts, num_inference_steps=[100] * NUM_CLIPS)
    call = ("render", "ads.parquet", "-o", "out", "--address", server.cluster)
    ledger = Ledger(ObjectStore(tmp_path / "out"))
    with start_rushes(*call, *SHARED, cwd=tmp_path, RAY_AUTH_MODE="token") as batch:

        def is_under_way() -> bool:
            assert batch.poll() is None, batch.communicate()
            return len(list((tmp_path / "out" / "checkpoints").rglob("*.json"))) >= len(before)

        wait_until(is_under_way, CLIP_S, "every gang at work on the batch")
        quick = {"num_inference_steps": "3"}
        video = client.videos.create_and_poll(
            prompt="at once", extra_body=quick, poll_interval_ms=100
        )
        assert video.status == "completed"
        assert len(ledger.committed_ids()) < NUM_CLIPS
        assert find_ranks(server) == before
        stdout, stderr = batch.communicate(timeout=CLIP_S)
    assert batch.returncode == ExitCode.OK, (stdout, stderr)
    assert [each.attempts for each in ledger.read_commits()] == [1] * NUM_CLIPS
    after = client.videos.create_and_poll(prompt="after", extra_body=quick, poll_interval_ms=100)
    assert after.status == "completed"
    assert find_ranks(server) == before, "the endpoint kept its gangs"


def test_an_endpoint_is_replaced_by_no_other(server: Server, tmp_path: Path) -> None:
    call = ("serve", "-o", "other", "--insecure", "--address", server.cluster, *SHARED)
    for port, said in (
        (server.port + 1, f"listens on --host 127.0.0.1 --port {server.port} already"),
        (server.port, f"has an endpoint already, for {server.output}"),
    ):
        with start_rushes(
            *call, "--port", str(port), cwd=tmp_path, RAY_AUTH_MODE="token"
        ) as second:
            _, stderr = second.communicate(timeout=CLIP_S)
        assert second.returncode == ExitCode.USAGE
        assert said in stderr
    answer = server.client().models.with_raw_response.list()
    assert answer.parse().data
    assert answer.headers["x-request-id"]
