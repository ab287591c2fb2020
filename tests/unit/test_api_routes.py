"""The routes over a desk that is made up, for what a real one seldom says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from cluster.answers import Refusal
from jobs.api.endpoint import Desk, Endpoint
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
    ledger = Ledger(ObjectStore(output))
    at = Endpoint(cast(Desk, desk or FullDesk()), find_recipe(), "0" * 64, ledger, keys)
    return TestClient(make_app(at))


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
        "/healthz",
    ]


def test_it_is_ready_once_a_model_is_loaded(tmp_path: Path) -> None:
    keys = ApiKeys.read(None, "a-key", insecure=False)
    assert connect(tmp_path, keys).get("/readyz").json() == {"status": "ready"}
    answer = connect(tmp_path, keys, FullDesk(Refusal("queue", 10))).get("/readyz")
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"] == "not_ready"
