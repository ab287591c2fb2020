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


@pytest.mark.parametrize("kind", ["data", "json"])
@pytest.mark.parametrize(
    "name",
    ["model", "seconds", "size", "seed", "priority", "metadata", "fps", "num_frames",
     "num_inference_steps", "guidance_scale", "negative_prompt", "input_reference"],
)  # fmt: skip
def test_a_field_that_is_empty_is_one_that_is_not_given(
    client: TestClient, kind: str, name: str
) -> None:
    sent: Any = {kind: {"prompt": "a ball", name: ""}}
    answer = client.post("/v1/videos", **sent)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "tiny-cpu"
    assert answer.json()["size"] == "64x64"


def test_a_call_that_comes_to_the_same_is_not_tried_again_by_the_official_client(
    client: TestClient,
) -> None:
    refused = client.get(f"/v1/videos/{VIDEO.id}/content")
    assert refused.status_code == 409
    assert refused.headers["x-should-retry"] == "false"
