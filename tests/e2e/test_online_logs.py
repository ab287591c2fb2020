"""The endpoint's log: what an operator finds there of a call, a video, a clip and the gangs."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.command import end_process, find_children, find_name, wait_until
from tests.support.online import CLIP_S, PROMPT, READY_S, Server

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
TOO_LONG = "빨간 병이 돌아요 " * 91


def find_ranks(server: Server) -> set[psutil.Process]:
    children = find_children(server.process.pid)
    return {each for each in children if find_name(each).startswith("ray::RankWorker")}


def test_a_calls_lines_lead_to_why_its_video_failed(server: Server) -> None:
    with server.client() as client:
        answer = client.videos.with_raw_response.create(prompt=TOO_LONG)
        video = client.videos.poll(answer.parse().id, poll_interval_ms=100)
    assert video.status == "failed"

    def find(**fields: Any) -> list[dict[str, Any]]:
        return [line for line in server.read_log() if fields.items() <= line.items()]

    call = answer.headers["x-request-id"]
    accepted, ended = wait_until(
        lambda: len(lines := find(video_id=video.id)) > 1 and lines, CLIP_S, "the video's lines"
    )
    assert {accepted["request_id"], ended["request_id"]} == {call}
    assert accepted["clip_id"] == ended["clip_id"]
    (failure,) = Ledger(ObjectStore(server.output)).latest_failures({accepted["clip_id"]})
    (why,) = find(clip_id=failure.clip_id, levelname="ERROR")
    assert (why["stage"], why["reason"], why["attempts"]) == ("encode", failure.reason, 1)
    assert why["request_id"] == call


def test_a_gang_that_is_lost_is_told_of(server: Server) -> None:
    with server.client() as client:  # the gangs are up
        client.videos.create_and_poll(prompt=PROMPT, poll_interval_ms=100)

    def count() -> int:
        return sum(line["message"].startswith("gang lost: ") for line in server.read_log())

    before, told = find_ranks(server), count()
    end_process(next(iter(before)))
    wait_until(lambda: count() > told, CLIP_S, "a line of the lost gang")
    wait_until(lambda: len(find_ranks(server)) == len(before), READY_S, "the gang made anew")
