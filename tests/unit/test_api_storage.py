"""What the endpoint answers where its storage has lost something, or is away."""

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
from pipeline.inbox import VideoJob
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.outputs import A, draft

VIDEO = f"video_{'0' * 44}"


class OldDesk:
    """Knows one video, which is completed."""

    async def find(self, owner: str, video_id: str) -> VideoState:
        job = VideoJob(
            id=VIDEO,
            owner=owner,
            clip_id=A,
            request=draft(A).request,
            model="tiny-cpu",
            seconds="0.625",
            size="64x64",
        )
        return VideoState(job, "completed", 100, None)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    keys = ApiKeys.read(None, "", insecure=True)
    desk = cast(Desk, OldDesk())
    ledger = Ledger(ObjectStore(tmp_path))
    return TestClient(make_app(Endpoint(desk, find_recipe(), "0" * 64, ledger, keys)))


def ask(client: TestClient, variant: str = "video") -> Any:
    return client.get(f"/v1/videos/{VIDEO}/content?variant={variant}")


@pytest.mark.parametrize("variant", ["video", "thumbnail", "spritesheet"])
def test_what_is_gone_is_told_as_gone(client: TestClient, variant: str) -> None:
    answer = ask(client, variant)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "content_missing"
    assert "storage" in error["message"]


def test_a_storage_that_is_away_is_worth_another_try(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "commits" / A[:2] / f"{A}.json").mkdir(parents=True)  # what can't be read
    answer = ask(client)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["error"]["code"] == "unavailable"
