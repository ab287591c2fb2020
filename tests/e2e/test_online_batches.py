"""Files and batches of the online endpoint by the official client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.support.command import wait_until
from tests.support.online import (
    CLIP_S,
    ENDED,
    MINE,
    OTHERS,
    PROMPT,
    Server,
    create_batch,
    make_lines,
    read_answers,
)

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
QUICK, SLOW = {"num_inference_steps": 2}, {"num_inference_steps": 50}


def wait_for_end(client: OpenAI, batch_id: str) -> Any:
    """Return a batch once it has ended."""
    ended = lambda: client.batches.retrieve(batch_id).status in ENDED  # noqa: E731
    wait_until(ended, CLIP_S, "the batch's end")
    return client.batches.retrieve(batch_id)


def test_a_file_is_kept_listed_read_and_deleted(server: Server, client: OpenAI) -> None:
    content = make_lines({"prompt": PROMPT})
    made = [
        client.files.create(file=(f"a/{n}.jsonl", content + b" " * n), purpose="batch")
        for n in range(3)
    ]
    assert [(each.filename, each.bytes, each.purpose, each.status) for each in made] == [
        (f"{n}.jsonl", len(content) + n, "batch", "processed") for n in range(3)
    ]
    assert client.files.retrieve(made[1].id) == made[1]
    assert client.files.content(made[2].id).read() == content + b"  "
    ids = [each.id for each in made]
    assert [each.id for each in client.files.list(limit=1, order="asc") if each.id in ids] == ids
    assert [each.id for each in client.files.list(limit=2, purpose="batch").data] == ids[:0:-1]
    assert not client.files.list(purpose="assistants").data
    after = client.files.list(after=ids[1], order="asc")
    assert [each.id for each in after.data] == ids[2:]
    for file_id in ids:
        deleted = client.files.delete(file_id)
        assert (deleted.id, deleted.deleted, deleted.object) == (file_id, True, "file")
        with pytest.raises(openai.NotFoundError):
            client.files.content(file_id)
    assert not list((server.output / "files").rglob("*.json*"))


def test_a_batch_is_rendered_and_answered_line_by_line(server: Server, client: OpenAI) -> None:
    bodies: list[Any] = [
        {"prompt": "a blue ring grows", **QUICK, "metadata": {"campaign": "spring"}},
        {"prompt": "too large", "size": "1280x720"},
        {"prompt": "a blue ring grows", "num_inference_steps": "2", "model": "sora-2"},
        {"prompt": "another's model", "model": "sora-3"},
    ]
    batch, file_id = create_batch(client, *bodies, metadata={"night": "1"})
    assert (batch.object, batch.endpoint, batch.completion_window) == (
        "batch", "/v1/videos", "24h"
    )  # fmt: skip
    assert (batch.input_file_id, batch.metadata, batch.errors) == (file_id, {"night": "1"}, None)
    assert batch.expires_at == batch.created_at + 24 * 3600
    done = wait_for_end(client, batch.id)
    assert done.status == "completed", done
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 2)
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert times == sorted(times)
    assert done.errors is done.failed_at is done.expired_at is done.cancelled_at is None
    client.files.delete(file_id)
    answers = read_answers(client, done.output_file_id)
    assert [each["custom_id"] for each in answers] == ["line 0", "line 2"]
    videos = [each["response"]["body"] for each in answers]
    for answer, video in zip(answers, videos, strict=True):
        assert answer.keys() == {"id", "custom_id", "response", "error"}
        assert answer["response"].keys() == {"status_code", "request_id", "body"}
        assert (answer["response"]["status_code"], answer["error"]) == (200, None)
        assert (video["object"], video["status"], video["progress"]) == ("video", "completed", 100)
        assert client.videos.retrieve(video["id"]).to_dict() == video
        assert client.videos.download_content(video["id"]).read()[4:8] == b"ftyp"
    assert [each["model"] for each in videos] == ["tiny-cpu", "sora-2"]
    assert videos[0]["metadata"] == {"campaign": "spring"}
    assert videos[0]["id"] != videos[1]["id"]
    assert server.read_commit("a blue ring grows"), "one clip, made once"
    wrong = read_answers(client, done.error_file_id)
    assert [each["custom_id"] for each in wrong] == ["line 1", "line 3"]
    for answer, body in zip(wrong, (bodies[1], bodies[3]), strict=True):
        call = httpx2.post(
            f"{server.url}/videos", json=body, headers={"Authorization": f"Bearer {MINE}"}
        )
        assert answer["response"]["status_code"] == call.status_code
        assert answer["response"]["body"] == call.json()
    listed = {each.id for each in client.videos.list(limit=100)}
    assert not listed & {each["id"] for each in videos}, "the page is not flooded"
    wait_until(lambda: batch.id in server.listener.read(), CLIP_S, "the webhook told of it")
    assert server.listener.read()[batch.id] == "batch.completed"
    assert not server.listener.read().keys() & {each["id"] for each in videos}
    assert client.batches.list(limit=1).data[0] == done
    for video in videos:
        client.videos.delete(video["id"])
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(video["id"])


def test_who_waits_goes_before_a_batch_which_can_be_called_off(
    server: Server, client: OpenAI
) -> None:
    batch, _ = create_batch(client, *({"prompt": f"in turn {n}", **SLOW} for n in range(8)))
    at_least_one = lambda: client.batches.retrieve(batch.id).request_counts.completed > 0  # type: ignore[union-attr] # noqa: E731
    wait_until(at_least_one, CLIP_S, "a line")
    video = client.videos.create_and_poll(prompt="in turn 7", extra_body=SLOW, poll_interval_ms=100)
    assert video.status == "completed"
    counts = client.batches.retrieve(batch.id).request_counts
    assert counts
    assert counts.completed < 7, "it went before them"
    off = client.batches.cancel(batch.id)
    assert off.status in ("cancelling", "cancelled")
    assert off.cancelling_at
    done = wait_for_end(client, batch.id)
    assert (done.status, done.completed_at) == ("cancelled", None)
    assert done.cancelled_at >= done.cancelling_at
    good, bad = (read_answers(client, each) for each in (done.output_file_id, done.error_file_id))
    assert sorted(each["custom_id"] for each in good + bad) == [f"line {n}" for n in range(8)]
    assert "line 7" in [each["custom_id"] for each in good], "the clip that was waited for"
    assert {each["error"]["code"] for each in bad} == {"batch_cancelled"}
    assert {each["response"] for each in bad} == {None}
    assert done.request_counts.completed == len(good)
    assert done.request_counts.failed == 0
    assert client.batches.cancel(batch.id) == done
    wait_until(lambda: batch.id in server.listener.read(), CLIP_S, "the webhook told of it")
    assert server.listener.read()[batch.id] == "batch.cancelled"


def test_a_file_that_is_none_of_a_batchs_fails_it_before_anything_is_made(client: OpenAI) -> None:
    lines = make_lines({"prompt": PROMPT}, {"prompt": PROMPT})
    lines = lines.replace(b"line 1", b"line 0") + b'{"custom_id": 1\n'
    file = client.files.create(file=lines, purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/videos", completion_window="24h"
    )
    done = wait_for_end(client, batch.id)
    assert done.status == "failed"
    assert done.failed_at
    assert [(each.code, each.line, each.param) for each in done.errors.data] == [
        ("duplicate_custom_id", 2, "custom_id"), ("invalid_json_line", 3, None)
    ]  # fmt: skip
    assert done.output_file_id is done.error_file_id is None
    assert done.request_counts.total == 0
    with pytest.raises(openai.ConflictError) as refused:
        client.batches.cancel(batch.id)
    assert refused.value.code == "batch_not_cancellable"


def test_nobody_sees_what_is_anothers(server: Server, client: OpenAI) -> None:
    batch, file_id = create_batch(client, {"prompt": PROMPT, "size": "1x1"})
    wait_for_end(client, batch.id)
    with server.client(OTHERS) as others:
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("file_not_found", lambda: others.files.retrieve(file_id)),
            ("file_not_found", lambda: others.files.content(file_id)),
            ("file_not_found", lambda: others.files.delete(file_id)),
            ("file_not_found", lambda: others.batches.create(
                input_file_id=file_id, endpoint="/v1/videos", completion_window="24h")),
            ("batch_not_found", lambda: others.batches.retrieve(batch.id)),
            ("batch_not_found", lambda: others.batches.cancel(batch.id)),
        ]  # fmt: skip
        for code, call in calls:
            with pytest.raises(openai.NotFoundError) as refused:
                call()
            assert refused.value.code == code
        assert not [*others.files.list(), *others.files.list(after=file_id)]
        assert not [*others.batches.list(), *others.batches.list(after=batch.id)]


def test_a_wrong_call_is_told_what_is_wrong(server: Server, client: OpenAI) -> None:
    file = client.files.create(file=make_lines({"prompt": PROMPT}), purpose="batch")
    asked = {"input_file_id": file.id, "endpoint": "/v1/videos", "completion_window": "24h"}
    upload = {"file": ("a.jsonl", b"{}")}
    odd: list[tuple[str, dict[str, Any], int, str | None]] = [
        ("files", {"files": upload, "data": {"purpose": "vision"}}, 400, "purpose"),
        ("files", {"files": upload}, 400, "purpose"),
        ("files", {"data": {"purpose": "batch", "file": "x"}}, 400, None),
        ("files", {"files": upload, "data": {"purpose": "batch", "expires_after[seconds]": "9"}},
         400, "expires_after[seconds]"),
        ("files", {"files": {"file": ("a", b"x" * (105 << 20))}, "data": {"purpose": "batch"}},
         413, None),
        ("files", {"json": {"purpose": "batch"}}, 400, None),
        ("batches", {"json": {**asked, "endpoint": "/v1/responses"}}, 400, "endpoint"),
        ("batches", {"json": {**asked, "completion_window": "1h"}}, 400, "completion_window"),
        ("batches", {"json": {**asked, "input_file_id": 3}}, 400, "input_file_id"),
        ("batches", {"json": {**asked, "input_file_id": "file-3"}}, 404, "input_file_id"),
        ("batches", {"json": {**asked, "metadata": {"a": "x" * 513}}}, 400, "metadata"),
        ("batches", {"json": {**asked, "metadata": {str(n): "" for n in range(17)}}},
         400, "metadata"),
        ("batches", {"json": {**asked, "output_expires_after": {}}}, 400, "output_expires_after"),
        ("batches", {"content": b'{"metadata": {"a": "\\ud800"}}',
                     "headers": {"content-type": "application/json"}}, 400, None),
    ]  # fmt: skip
    for path, sent, status, param in odd:
        headers = {"Authorization": f"Bearer {MINE}", **sent.pop("headers", {})}
        answer = httpx2.post(f"{server.url}/{path}", headers=headers, timeout=60, **sent)
        assert answer.status_code == status, (path, sent.keys(), answer.text)
        error = answer.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error"), error
        assert str(server.folder) not in json.dumps(error)
    client.files.delete(file.id)
