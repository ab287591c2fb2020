"""The routes over a desk that has one video, under way, and takes any other in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from cluster.answers import VideoState
from jobs.api.endpoint import Desk, Endpoint
from jobs.api.keys import ApiKeys
from jobs.api.routes import make_app
from jobs.recipes import find_recipe
from pipeline.inbox import VideoJob, new_video_id
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.outputs import A, draft

VIDEO = VideoJob(
    id=new_video_id(), owner="", clip_id=A, request=draft(A).request, model="a-name-that-it-had",
    seconds="2", size="64x64",
)  # fmt: skip


class OneVideo:
    async def find(self, owner: str, video_id: str) -> VideoState:
        return VideoState(VIDEO, "in_progress", 50, 1.0)

    async def submit(self, job: VideoJob) -> VideoState:
        return VideoState(job, "queued", 0, None)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    keys, ledger = ApiKeys.read(None, "", insecure=True), Ledger(ObjectStore(tmp_path))
    at = Endpoint(cast(Desk, OneVideo()), find_recipe(), "0" * 64, ledger, keys)
    return TestClient(make_app(at))


def test_a_video_can_be_remixed_once_its_alias_is_gone(client: TestClient) -> None:
    assert client.get(f"/v1/videos/{VIDEO.id}").json()["model"] == VIDEO.model
    answer = client.post(f"/v1/videos/{VIDEO.id}/remix", json={"prompt": "a green ring"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["model"], answer.json()["prompt"]) == ("tiny-cpu", "a green ring")
