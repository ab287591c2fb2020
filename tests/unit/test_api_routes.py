"""The routes over a desk that is made up, for what a real one seldom says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from cluster.answers import Refusal
from jobs.api import body, endpoint
from jobs.api.endpoint import BODIES_AT_ONCE, Desk, Endpoint
from jobs.api.keys import ApiKeys
from jobs.api.routes import make_app
from jobs.recipes import find_recipe
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore


class FullDesk:
    """Takes nothing in."""

    def __init__(self, refusal: Refusal | None = None) -> None:
        self.refusal = refusal

    async def submit(self, job: Any) -> Refusal | None:
        return self.refusal

    async def is_ready(self) -> bool:
        return self.refusal is None


def connect(output: Path, keys: ApiKeys, desk: FullDesk | None = None) -> TestClient:
    return TestClient(make_app(make_endpoint(output, keys, desk)))


def make_endpoint(output: Path, keys: ApiKeys, desk: FullDesk | None = None) -> Endpoint:
    ledger = Ledger(ObjectStore(output))
    return Endpoint(cast(Desk, desk or FullDesk()), find_recipe(), "0" * 64, ledger, keys)


@pytest.mark.parametrize(
    ("refusal", "code", "said"),
    [
        (Refusal("queue", 10), "too_many_videos", "wait for one, or delete it"),
        (Refusal("rate", 17), "rate_limit_exceeded", "ask again in 17 s"),
    ],
)
def test_a_limit_is_told_with_the_time_to_wait(
    tmp_path: Path, refusal: Refusal, code: str, said: str
) -> None:
    client = connect(tmp_path, ApiKeys.read(None, "", insecure=True), FullDesk(refusal))
    answer = client.post("/v1/videos", json={"prompt": "a ball"})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == str(refusal.retry_after_s)
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", code)
    assert said in error["message"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")],
)
def test_the_page_is_for_anybody_and_may_do_little(tmp_path: Path, path: str, kind: str) -> None:
    answer = connect(tmp_path, ApiKeys.read(None, "my-key")).get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
    policy = dict(each.strip().split(" ", 1) for each in
                  answer.headers["content-security-policy"].split(";"))  # fmt: skip
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "blob: data:",
        "media-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_has_nothing_inline_and_asks_for_a_key_where_there_are_keys(
    tmp_path: Path,
) -> None:
    asking = connect(tmp_path, ApiKeys.read(None, "my-key")).get("/").text
    open_to_all = connect(tmp_path, ApiKeys.read(None, "", insecure=True)).get("/").text
    assert "data-asks-key" in asking
    assert "data-asks-key" not in open_to_all
    assert asking.replace(" data-asks-key", "") == open_to_all
    assert not re.search(r'<style|<script(?! type="module" src=)|\sstyle=|\son\w+=', asking)
    assert "my-key" not in asking


def test_the_page_is_no_part_of_the_api_that_is_documented(tmp_path: Path) -> None:
    documented = connect(tmp_path, ApiKeys.read(None, "my-key")).get("/openapi.json").json()
    assert [path for path in documented["paths"] if not path.startswith("/v1/")] == [
        "/readyz",
        "/metrics",
        "/healthz",
    ]


def test_a_model_that_takes_no_videos_decodes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "read_sent_video", pytest.fail)
    keys = ApiKeys.read(None, "", insecure=True)
    recipe = find_recipe(overrides=["limits.max_seen_frames=0"])
    at = replace(make_endpoint(tmp_path, keys), recipe=recipe)
    sent = {"files": {"video": ("a.mp4", b"MP4")}, "data": {"prompt": "a ball", "seconds": "1"}}
    answer = TestClient(make_app(at)).post("/v1/videos/extensions", **cast(Any, sent))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported"


class SlowCalls:
    """Calls for videos whose bodies come once they are let."""

    def __init__(self, app: FastAPI, key: str) -> None:
        self._app = app
        self.begun = 0
        self.let = asyncio.Event()
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._scope = {
            "type": "http", "method": "POST", "path": "/v1/videos", "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip

    async def call(self) -> int:
        """Return the status."""
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            self.begun += 1
            await self.let.wait()
            return {"type": "http.request", "body": b'{"prompt": "a ball"}'}

        async def send(message: MutableMapping[str, Any]) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        await self._app(dict(self._scope), receive, send)
        return statuses[0]


def test_of_one_keys_bodies_few_are_received_at_once(tmp_path: Path) -> None:
    keys = ApiKeys.read(None, "my-key,their-key")
    app = make_app(make_endpoint(tmp_path, keys, FullDesk(Refusal("queue", 10))))

    async def run() -> None:
        mine, theirs = SlowCalls(app, "my-key"), SlowCalls(app, "their-key")
        calls = [asyncio.create_task(mine.call()) for _ in range(BODIES_AT_ONCE + 5)]
        calls.append(asyncio.create_task(theirs.call()))
        async with asyncio.timeout(30):
            while mine.begun < BODIES_AT_ONCE or not theirs.begun:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # for one too many
        assert (mine.begun, theirs.begun) == (BODIES_AT_ONCE, 1)
        mine.let.set()
        theirs.let.set()
        assert await asyncio.gather(*calls) == [429] * len(calls)

    asyncio.run(run())


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.1)
    app = make_app(make_endpoint(tmp_path, ApiKeys.read(None, "my-key")))
    assert asyncio.run(SlowCalls(app, "my-key").call()) == 408


def test_it_is_ready_once_a_model_is_loaded(tmp_path: Path) -> None:
    keys = ApiKeys.read(None, "a-key", insecure=False)
    assert connect(tmp_path, keys).get("/readyz").json() == {"status": "ready"}
    answer = connect(tmp_path, keys, FullDesk(Refusal("queue", 10))).get("/readyz")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "not_ready"
