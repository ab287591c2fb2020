"""The routes over a desk that is made up, for what a real one seldom says."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import tracemalloc
from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path
from threading import Semaphore
from typing import Any, cast
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from cluster.answers import Refusal
from jobs.api import body, endpoint, openings
from jobs.api.call import Call
from jobs.api.endpoint import BODIES_AT_ONCE, BODIES_WAITING, Desk, Endpoint
from jobs.api.keys import ApiKeys
from jobs.api.models import find_sizes
from jobs.api.routes import make_app
from jobs.api.wire import ApiError
from jobs.recipes import find_recipe, list_recipes
from pipeline.ledger import Ledger
from pipeline.recipe import Recipe
from pipeline.store import ObjectStore
from pipeline.untrusted import UntrustedError


class FullDesk:
    """Takes nothing in."""

    def __init__(self, refusal: Refusal | None = None) -> None:
        self.refusal = refusal
        self.prompts = list[str]()

    async def submit(self, job: Any) -> Refusal | None:
        self.prompts.append(job.request.prompt)
        return self.refusal

    async def find_refusal(self, owner: str, idempotency_key: str | None) -> Refusal | None:
        return None

    async def find_repeated(self, owner: str, idempotency_key: str) -> None:
        return None

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


def test_what_is_documented_is_what_is_answered(tmp_path: Path) -> None:
    documented = connect(tmp_path, ApiKeys.read(None, "my-key")).get("/openapi.json").json()
    (scheme,) = documented["components"]["securitySchemes"].items()
    assert (scheme[1]["type"], scheme[1]["scheme"]) == ("http", "bearer")
    for path, operations in documented["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            is_open = path in ("/readyz", "/healthz")
            assert operation.get("security") == (None if is_open else [{scheme[0]: []}]), path
            assert ("401" in answers) is not is_open, path
            assert "Retry-After" in answers["503"]["headers"]
            is_made = "200" in answers
            assert is_made is not ("/edits" in path or "/characters" in path), path
            for status in answers.keys() - {"200", "206", "304"}:
                schema = answers[status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}, (path, status)
    body = documented["paths"]["/v1/batches"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert body["application/json"]["schema"]["additionalProperties"] is False


def test_an_error_has_the_headers_that_it_is_to_have(tmp_path: Path) -> None:
    client = connect(tmp_path, ApiKeys.read(None, "my-key"))
    refused = client.get("/v1/videos")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    wrong = client.put("/healthz")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")
    assert wrong.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/videos/models"])
def test_a_models_sizes_durations_and_limits_are_told(tmp_path: Path, path: str) -> None:
    client = connect(tmp_path, ApiKeys.read(None, "", insecure=True))
    (model,) = client.get(path).json()["data"]
    assert model["sizes"] == ["64x64", "80x48", "48x80"]
    assert model["seconds"] == {"min": 0.625, "max": 10.125, "default": 2.125}
    assert model["limits"]["max_pixels"] == 36864


@pytest.mark.parametrize("recipe", [find_recipe(name) for name in list_recipes()])
def test_sizes_that_are_told_of_are_taken(recipe: Recipe) -> None:
    sizes = find_sizes(recipe)
    assert len(sizes) >= 3
    for size in sizes:
        assert body.parse_request({"prompt": "a ball", "size": size}, recipe)


FORM = "multipart/form-data; boundary=B"
PROMPT = b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na ball\r\n'
SEED = b'--B\r\nContent-Disposition: form-data; name="seed"\r\n\r\n1'
PAIRS = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("kind", "sent", "said"),
    [
        (FORM, PROMPT + SEED, "ends before its last boundary"),
        (FORM, PROMPT + SEED + b"\r\n--B", "ends before its last boundary"),
        ("multipart/form-data", PROMPT + b"--B--", "Missing boundary"),
        (FORM, PROMPT.replace(b'"prompt"', b'"prompt"; filename="a"') + b"--B--", "got a file"),
        (FORM, PROMPT.replace(b"a ball", b"St\xfcck") + b"--B--", "can't decode byte"),
        (FORM, PROMPT.replace(b"prompt", b"\xff") + b"--B--", "can't decode byte"),
        (PAIRS, b"prompt=St\xfcck", "can't decode byte"),
        (PAIRS, b"prompt=%ff", "can't decode byte"),
        (PAIRS, b"&".join([b"a=b"] * 65), "Max number of fields exceeded"),
        ("application/json", b'{"prompt": "\\ud800"}', "unexpected end of hex escape"),
        ("application/json", b"", "EOF while parsing"),
        ("application/json", b'{"prompt": "a ball"} {}', "trailing characters at line 1 column 22"),
        ("application/json", b'["a ball"]', "got other JSON"),
        ("text/plain", b"a ball", "got text/plain"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_whole_or_no_text_is_refused(
    tmp_path: Path, kind: str, sent: bytes, said: str
) -> None:
    client = connect(tmp_path, ApiKeys.read(None, "", insecure=True))
    answer = client.post("/v1/videos", content=sent, headers={"content-type": kind})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] in ("invalid_body", "invalid_value")


@pytest.mark.parametrize(
    ("verb", "path", "what"),
    [
        ("POST", "/v1/videos/edits", "edits"),
        ("POST", "/v1/videos/characters", "characters"),
        ("GET", "/v1/videos/characters/char_1", "characters"),
    ],
)
def test_what_no_model_does_is_said_to_be_unsupported(
    tmp_path: Path, verb: str, path: str, what: str
) -> None:
    client = connect(tmp_path, ApiKeys.read(None, "", insecure=True))
    answer = client.request(verb, path)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unsupported"
    assert f"makes no {what};" in answer.json()["error"]["message"]


def test_a_name_of_any_length_costs_little(tmp_path: Path) -> None:
    client = connect(tmp_path, ApiKeys.read(None, "", insecure=True))
    tracemalloc.start()
    try:
        answer = client.post("/v1/videos", json={"a" * (4 << 20): 1})
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answer.json()["error"]["code"] == "unknown_parameter"
    assert most < 64 << 20  # of each character of a name to compare, difflib makes an entry


KOREAN = "빨간 병"


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (FORM, PROMPT.replace(b"a ball", KOREAN.encode()) + b"--B--\r\n"),
        (FORM + "; charset=utf-8",
         PROMPT.replace(b'"prompt"', b"prompt").replace(b"a ball", KOREAN.encode()) + b"--B--"),
        (PAIRS, f"prompt={KOREAN}".encode()),
        (PAIRS, urlencode({"prompt": KOREAN, "negative_prompt": ""}).encode()),
        ("application/json; charset=utf-8", json.dumps({"prompt": KOREAN}).encode()),
    ],
)  # fmt: skip
def test_text_is_utf_8_however_it_is_sent(tmp_path: Path, kind: str, sent: bytes) -> None:
    desk = FullDesk(Refusal("queue", 1))
    client = connect(tmp_path, ApiKeys.read(None, "", insecure=True), desk)
    answer = client.post("/v1/videos", content=sent, headers={"content-type": kind})
    assert answer.status_code == 429, answer.text
    assert desk.prompts == [KOREAN]


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/models/none", "/healthz"])
def test_head_is_get_without_a_body(tmp_path: Path, path: str) -> None:
    client = connect(tmp_path, ApiKeys.read(None, "", insecure=True))
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.headers) == (whole.status_code, whole.headers)
    assert whole.content
    assert not head.content


def test_a_file_with_a_field_that_is_no_text_is_refused(tmp_path: Path) -> None:
    client = connect(tmp_path, ApiKeys.read(None, "", insecure=True))
    file = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n'
    purpose = PROMPT.replace(b"prompt", b"purpose").replace(b"a ball", b"batch")
    odd = PROMPT.replace(b"prompt", b"\\ud800")
    sent = file + purpose + odd + b"--B--"
    kind = FORM + "; charset=unicode_escape"
    answer = client.post("/v1/files", content=sent, headers={"content-type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "unknown_parameter"


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


def test_of_one_keys_bodies_few_are_received_at_once_and_not_many_wait(tmp_path: Path) -> None:
    keys = ApiKeys.read(None, "my-key,their-key")
    app = make_app(make_endpoint(tmp_path, keys, FullDesk(Refusal("queue", 10))))

    async def run() -> None:
        mine, theirs = SlowCalls(app, "my-key"), SlowCalls(app, "their-key")
        many = BODIES_AT_ONCE + BODIES_WAITING
        calls = [asyncio.create_task(mine.call()) for _ in range(many)]
        calls.append(asyncio.create_task(theirs.call()))
        async with asyncio.timeout(30):
            while mine.begun < BODIES_AT_ONCE or not theirs.begun:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # for one too many
        assert (mine.begun, theirs.begun) == (BODIES_AT_ONCE, 1)
        assert await mine.call() == 429, "one more doesn't wait"
        mine.let.set()
        theirs.let.set()
        assert await asyncio.gather(*calls) == [429] * len(calls)
        assert mine.begun == many, "a full queue refuses only what is read"

    asyncio.run(run())


def test_one_keys_images_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that another's needn't wait for all of them."""
    begun, let, images = Semaphore(0), threading.Event(), list[bytes]()

    def decode(sent: bytes, *_: int) -> bytes:
        images.append(sent)
        begun.release()
        assert let.wait(30)
        return b"PNG"

    monkeypatch.setattr(openings, "remake_image", decode)
    keys = ApiKeys.read(None, "my-key,their-key")
    at = make_endpoint(tmp_path, keys, FullDesk(Refusal("queue", 10)))

    async def run() -> None:
        owners = ["mine"] * 5 + ["theirs"]
        fields = {"prompt": "a ball"}
        calls = [
            asyncio.create_task(at.take(Call(each), {**fields, "input_reference": each.encode()}))
            for each in owners
        ]
        for _ in range(2):
            assert await asyncio.to_thread(begun.acquire, timeout=30)
        await asyncio.sleep(0.1)  # for one too many
        assert sorted(images) == [b"mine", b"theirs"]
        let.set()
        refused = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in refused] == [ApiError] * 6
        assert len(images) == 6

    asyncio.run(run())


class BusyDesk(FullDesk):
    """Says so before it is asked for anything."""

    async def find_refusal(self, owner: str, idempotency_key: str | None) -> Refusal | None:
        return None if idempotency_key else self.refusal


@pytest.mark.parametrize(
    ("path", "file", "fields"),
    [
        ("/v1/videos", "input_reference", {}),
        ("/v1/videos/extensions", "video", {"seconds": "1"}),
    ],
)
def test_of_a_call_that_is_refused_nothing_is_decoded_or_kept(
    tmp_path: Path, path: str, file: str, fields: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []

    def decode(sent: bytes, *_: int) -> bytes:
        decoded.append(sent)
        raise UntrustedError("no")

    monkeypatch.setattr(openings, "remake_image", decode)
    monkeypatch.setattr(openings, "remake_video", decode)
    keys = ApiKeys.read(None, "", insecure=True)
    client = connect(tmp_path, keys, BusyDesk(Refusal("rate", 17)))
    sent = {"files": {file: ("a", b"sent")}, "data": {"prompt": "a ball", **fields}}
    answer = client.post(path, **cast(Any, sent))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "17")
    assert (decoded, list(tmp_path.iterdir())) == ([], [])
    again = client.post(path, **cast(Any, sent), headers={"Idempotency-Key": "known"})
    assert (again.status_code, decoded) == (400, [b"sent"])


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
