"""The online endpoint by the official client: every method."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from PIL import Image

from jobs.cli import ExitCode
from jobs.recipes import find_recipe
from pipeline.checkpoints import FOLDER as CHECKPOINTS
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.model import fingerprint_model, resolve_checkpoint
from pipeline.probe import probe, read_frames
from pipeline.store import ObjectStore
from tests.support.command import wait_until
from tests.support.online import (
    BUSY,
    CLIP_S,
    LONG,
    MAX_PER_MINUTE,
    MAX_QUEUED,
    MINE,
    OTHERS,
    PROMPT,
    Server,
)

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def video(server: Server) -> Any:
    """A video that is completed; what is seen of it on the way is checked."""
    with server.client() as client:
        made = client.videos.create(prompt=PROMPT, seconds="2", size="64x64", model="sora-2",
                                    extra_body={"seed": 7, "metadata": {"campaign": "spring"}})  # type: ignore[arg-type]  # fmt: skip
        assert (made.status, made.progress, made.seconds, made.size) == ("queued", 0, "2", "64x64")
        assert made.model == "sora-2"
        assert made.model_extra == {"metadata": {"campaign": "spring"}}
        seen: list[tuple[str, int]] = []
        while True:
            answer = client.videos.with_raw_response.retrieve(made.id)
            now = answer.parse()
            seen.append((now.status, now.progress))
            if now.status not in ("queued", "in_progress"):
                break
            assert 250 <= int(answer.headers["openai-poll-after-ms"]) <= 10_000
            time.sleep(0.1)
    assert now.status == "completed", now
    assert now.completed_at
    assert now.completed_at >= now.created_at
    steps = [progress for status, progress in seen if status == "in_progress"]
    assert steps == sorted(steps)
    return now


def test_progress_is_by_steps(client: OpenAI) -> None:
    """By a clip of many steps: one of few may be made within two looks at it."""
    video = client.videos.create(prompt="many steps", extra_body=LONG)
    steps: list[int] = []
    while video.status in ("queued", "in_progress"):
        steps.append(video.progress)
        time.sleep(0.1)
        video = client.videos.retrieve(video.id)
    assert video.status == "completed", video
    assert steps == sorted(steps)
    assert len(set(steps)) > 4


def test_the_video_is_what_was_asked_for(client: OpenAI, video: Any, tmp_path: Path) -> None:
    file = tmp_path / "video.mp4"
    client.videos.download_content(video.id).write_to_file(file)
    seen = probe(file)
    assert (seen.width, seen.height, seen.num_frames, float(seen.fps)) == (64, 64, 17, 8.0)
    sizes = {"thumbnail": (64, 64), "spritesheet": (900, 90)}
    for variant, size in sizes.items():
        content = client.videos.download_content(video.id, variant=variant)  # type: ignore[arg-type]
        assert content.response.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(content.read())).size == size


def test_a_player_may_ask_for_ranges(server: Server, client: OpenAI, video: Any) -> None:
    whole = client.videos.download_content(video.id).read()
    headers = {"Authorization": f"Bearer {MINE}", "Range": "bytes=100-199"}
    url = f"{server.url}/videos/{video.id}/content"
    part = httpx2.get(url, headers=headers)
    assert part.status_code == 206
    assert part.content == whole[100:200]
    head = httpx2.head(url, headers=headers)
    assert (head.status_code, head.headers["accept-ranges"]) == (200, "bytes")
    assert int(head.headers["content-length"]) == len(whole)
    assert not head.content


def test_it_is_the_clip_that_a_batch_renders(server: Server, video: Any, tmp_path: Path) -> None:
    commit = server.read_commit(PROMPT)
    recipe = find_recipe()
    fingerprint = fingerprint_model(recipe.model, resolve_checkpoint(recipe.model))
    runner = LocalRunner(recipe, fingerprint, Ledger(ObjectStore(tmp_path)))
    other = runner.render(commit.clip_id, commit.request)
    assert isinstance(other, Commit)
    assert other.video.sha256 == commit.video.sha256
    here = read_frames(str(tmp_path / other.video.key))
    assert (here == read_frames(str(server.output / commit.video.key))).all()


def test_who_asks_again_is_answered_at_once(server: Server, client: OpenAI, video: Any) -> None:
    before = server.count_attempts()
    began = time.monotonic()
    again = client.videos.create_and_poll(
        prompt=f" {PROMPT} ", seconds="2", size="64x64", extra_body={"seed": "7"},
        poll_interval_ms=50,
    )  # fmt: skip
    assert again.status == "completed"
    assert again.id != video.id
    assert time.monotonic() - began < 5
    assert server.count_attempts() == before


def test_a_list_is_in_pages(server: Server, client: OpenAI, video: Any) -> None:
    everything = list(client.videos.list(limit=1))
    assert video.id in [each.id for each in everything]
    times = [each.created_at for each in everything]
    assert times == sorted(times, reverse=True)
    oldest = client.videos.list(limit=1, order="asc")
    assert [each.id for each in oldest.data] == [everything[-1].id]
    with server.client(OTHERS) as others:
        assert list(others.videos.list()) == []


def test_what_is_listed_may_be_deleted_from_page_to_page(client: OpenAI, video: Any) -> None:
    sent: dict[str, Any] = {"prompt": PROMPT, "extra_body": {"seed": 7}}
    mine = {client.videos.create(**sent).id for _ in range(5)}
    for each in client.videos.list(limit=2):
        if each.id in mine:
            client.videos.delete(each.id)
    assert mine.isdisjoint(each.id for each in client.videos.list())


def test_a_remix_has_another_prompt_and_all_else_the_same(
    server: Server, client: OpenAI, video: Any
) -> None:
    remix = client.videos.remix(video.id, prompt="a green ring grows")
    assert (remix.remixed_from_video_id, remix.seconds, remix.size) == (video.id, "2", "64x64")
    assert client.videos.poll(remix.id, poll_interval_ms=100).status == "completed"
    request = server.read_commit("a green ring grows").request
    assert request == server.read_commit(PROMPT).request.model_copy(
        update={"prompt": "a green ring grows"}
    )


def test_a_prompt_that_the_model_would_read_in_part_fails_with_the_place(client: OpenAI) -> None:
    end = client.videos.create_and_poll(prompt="빨간 병이 돌아요 " * 90, poll_interval_ms=100)
    assert end.status == "failed"
    assert end.error
    assert end.error.code == "prompt_too_long"
    assert re.search(
        r"of which the model reads 512, up to …'.*병.*'; shorten it", end.error.message
    )


def test_a_deleted_video_is_given_up(server: Server, client: OpenAI, video: Any) -> None:
    slow = [client.videos.create(prompt=f"slow {n}", extra_body=LONG) for n in range(3)]
    wait_until(lambda: client.videos.retrieve(slow[0].id).progress > 5, CLIP_S, "steps")
    for each in slow:
        deleted = client.videos.delete(each.id)
        assert (deleted.id, deleted.deleted) == (each.id, True)
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(each.id)
    began = time.monotonic()
    quick = client.videos.create_and_poll(prompt="quick", extra_body={"num_inference_steps": 1})
    assert quick.status == "completed"
    assert time.monotonic() - began < 20, "the gangs are free at once"
    prompts = {each.request.prompt for each in Ledger(ObjectStore(server.output)).read_commits()}
    assert not prompts & {"slow 0", "slow 1", "slow 2"}
    saved = server.output / CHECKPOINTS
    wait_until(lambda: not list(saved.rglob("*.json")), CLIP_S, "no saves left")


def test_it_is_ready_and_says_so_to_anybody(server: Server, video: Any) -> None:
    answer = httpx2.get(f"http://127.0.0.1:{server.port}/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_prometheus_is_told_how_it_does(server: Server, video: Any) -> None:
    url = f"http://127.0.0.1:{server.port}/metrics"
    assert httpx2.get(url).status_code == 401
    headers = {"Authorization": f"Bearer {MINE}"}

    def read() -> str:
        answer = httpx2.get(url, headers=headers)
        if answer.status_code == 503:
            return ""  # nothing is exported yet
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return answer.text

    ended = re.compile(r'^ray_rushes_video_seconds_count\{.*how="completed".*\} ([1-9]\d*)', re.M)
    wait_until(lambda: ended.search(read()), CLIP_S, "the video is counted")
    assert "ray_rushes_gangs{" in read()


def test_the_webhook_is_told(server: Server, video: Any) -> None:
    wait_until(lambda: video.id in server.listener.read(), CLIP_S, "the webhook told of it")
    assert server.listener.read()[video.id] == "video.completed"


def test_a_key_that_has_too_many_under_way_is_told_to_wait(server: Server, video: Any) -> None:
    with server.client(OTHERS) as others:
        slow = [
            others.videos.create(prompt=f"queued {n}", extra_body=LONG) for n in range(MAX_QUEUED)
        ]
        ids = [each.id for each in slow]
        last = others.videos.with_raw_response.retrieve(ids[-1])
        assert last.parse().status == "queued"
        assert int(last.headers["openai-poll-after-ms"]) > 2000, "it may ask later than others"
        with pytest.raises(openai.RateLimitError) as refused:
            others.videos.create(prompt="one too many")
        assert refused.value.code == "too_many_videos"
        assert int(refused.value.response.headers["retry-after"]) > 0
        with server.client() as client:
            assert client.videos.create(prompt=PROMPT, extra_body={"seed": 7}).status == "queued"
        for each in ids:
            others.videos.delete(each)
        others.videos.delete(others.videos.create(prompt="there is room again").id)


def test_a_key_that_asks_too_often_is_told_when_to_ask_again(server: Server, video: Any) -> None:
    sent: dict[str, Any] = {"prompt": PROMPT, "extra_body": {"seed": 7}}
    once = {"Idempotency-Key": "once"}
    began = time.monotonic()
    with server.client(BUSY) as busy:
        first = busy.videos.create(**sent, extra_headers=once)
        assert busy.videos.create(**sent, extra_headers=once).id == first.id
        for _ in range(MAX_PER_MINUTE - 1):
            busy.videos.delete(busy.videos.create(**sent).id)
        with pytest.raises(openai.RateLimitError) as refused:
            busy.videos.create(**sent)
        since_s = time.monotonic() - began
        assert refused.value.code == "rate_limit_exceeded"
        assert refused.value.type == "rate_limit_error"
        assert "as one key may in a minute" in refused.value.message
        wait_s = int(refused.value.response.headers["retry-after"])
        assert 60 - since_s <= wait_s <= 60
        assert busy.videos.create(**sent, extra_headers=once).id == first.id
        with server.client() as client:
            client.videos.delete(client.videos.create(**sent).id)
        busy.videos.delete(first.id)


def test_keys_take_turns(server: Server, client: OpenAI, video: Any) -> None:
    flood = [client.videos.create(prompt=f"flood {n}", extra_body=LONG).id for n in range(12)]
    with server.client(OTHERS) as others:
        assert others.videos.create_and_poll(prompt="in turn").status == "completed"
    waiting = [each for each in flood if client.videos.retrieve(each).status == "queued"]
    for each in flood:
        client.videos.delete(each)
    assert len(waiting) > 6, "it was not behind all of them"


def test_nobody_sees_what_is_anothers(server: Server, video: Any) -> None:
    with server.client(OTHERS) as others:
        calls: list[Callable[[], Any]] = [
            lambda: others.videos.retrieve(video.id),
            lambda: others.videos.delete(video.id),
            lambda: others.videos.download_content(video.id),
            lambda: others.videos.remix(video.id, prompt="mine"),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError) as refused:
                call()
            assert refused.value.code == "video_not_found"
        listed = {each.id for each in others.videos.list(after=video.id)}
        with server.client() as mine:
            assert listed.isdisjoint(each.id for each in mine.videos.list())
        with pytest.raises(openai.NotFoundError):
            others.videos.list(after="no id")
    with server.client("no-key") as nobody, pytest.raises(openai.AuthenticationError) as refused:
        nobody.videos.list()
    assert refused.value.code == "invalid_api_key"


def test_models(client: OpenAI, server: Server) -> None:
    assert [each.id for each in client.models.list()] == ["tiny-cpu", "sora-2"]
    assert client.models.retrieve("sora-2").owned_by == "rushes"
    headers = {"Authorization": f"Bearer {MINE}"}
    (told,) = httpx2.get(f"{server.url}/videos/models", headers=headers).json()["data"]
    assert told["limits"]["size_multiple"] == 16
    assert told["defaults"]["width"] == 64


def test_a_wrong_call_is_told_what_is_wrong(server: Server, client: OpenAI, video: Any) -> None:
    create: Any = client.videos.create
    with pytest.raises(openai.BadRequestError) as size:
        create(prompt=PROMPT, size="1280x720")
    assert (size.value.param, size.value.code) == ("size", "invalid_value")
    with pytest.raises(openai.NotFoundError) as model:
        create(prompt=PROMPT, model="sora-3")
    assert model.value.code == "model_not_found"
    assert "'tiny-cpu' or 'sora-2'" in model.value.message
    with pytest.raises(openai.BadRequestError) as image:
        create(prompt=PROMPT, input_reference=("a.png", b"\x89PNG", "image/png"))
    assert (image.value.param, image.value.code) == ("input_reference", "invalid_value")
    with pytest.raises(openai.BadRequestError) as edit:
        client.videos.edit(prompt=PROMPT, video=b"mp4")
    assert edit.value.code == "unsupported"
    headers = {"Authorization": f"Bearer {MINE}"}
    odd: list[tuple[str, dict[str, Any], int]] = [
        ("POST /videos", {"json": ["no object"]}, 400),
        ("POST /videos", {"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ("POST /videos", {"content": b"x", "headers": {"content-type": "text/plain"}}, 400),
        ("POST /videos", {"content": b"x" * (17 << 20),
                          "headers": {"content-type": "application/json"}}, 413),
        ("POST /videos", {"json": {"prompt": PROMPT, "metadata": "x"}}, 400),
        ("GET /videos?limit=1000", {}, 400),
        ("GET /videos/nothing", {}, 404),
        ("GET /nowhere", {}, 404),
        ("PATCH /videos", {}, 405),
        (f"GET /videos/{video.id}/content?variant=gif", {}, 400),
    ]  # fmt: skip
    for call, sent, status in odd:
        verb, path = call.split()
        sent = {**sent, "headers": {**headers, **sent.get("headers", {})}}
        answer = httpx2.request(verb, f"{server.url}{path}", **sent)
        assert answer.status_code == status, (call, answer.text)
        error = answer.json()["error"]
        assert error["message"]
        assert error["type"] == "invalid_request_error"
        assert "Traceback" not in answer.text
        assert str(server.folder) not in answer.text


def test_json_does_as_well_as_multipart(server: Server, video: Any) -> None:
    sent = {"prompt": PROMPT, "seconds": 2, "size": "64x64", "seed": 7}
    headers = {"Authorization": f"Bearer {MINE}"}
    answer = httpx2.post(f"{server.url}/videos", json=sent, headers=headers)
    assert answer.status_code == 200
    with server.client() as client:
        assert client.videos.poll(answer.json()["id"], poll_interval_ms=50).status == "completed"


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_a_port_that_is_taken_is_told_of(
    tmp_path: Path, host: str, family: socket.AddressFamily
) -> None:
    try:
        taking = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with taking as taken:
        port = taken.getsockname()[1]
        call = [sys.executable, "-m", "jobs.cli", "serve", "-o", str(tmp_path / "o"),
                "--host", host, "--port", str(port), "--insecure"]  # fmt: skip
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE
    assert f"--port {port}: can't be listened on (Address already in use" in done.stderr
