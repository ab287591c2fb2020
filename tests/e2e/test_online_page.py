"""The endpoint's page in a real browser, against a real endpoint, by the keyboard."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import uvicorn

from cluster.answers import Refusal, VideoState
from jobs.api.endpoint import Endpoint
from jobs.api.keys import ApiKeys
from jobs.api.routes import make_app
from jobs.recipes import find_recipe
from pipeline.inbox import VideoJob, new_video_id
from pipeline.ledger import Ledger
from pipeline.probe import read_frames
from pipeline.store import ObjectStore
from tests.support.accessible import check_accessible
from tests.support.media import make_image
from tests.support.online import CLIP_S, LONG, MINE, OTHERS, PROMPT, Server
from tests.support.outputs import A, draft

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
HOSTILE = '<img src=x onerror="window.hacked=1"></h3><script>window.hacked=2</script>'
CLIP_MS = 1000 * CLIP_S
WATCH = """
new MutationObserver(() => {
  const bar = document.querySelector("#videos progress");
  if (bar) (window.seen ??= new Set()).add(bar.value);
}).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
"""


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(60_000)
    yield context
    context.close()


@pytest.fixture
def tidy(server: Server) -> Iterator[None]:
    """No video is there, before and after: other tests of this server leave and count theirs."""
    delete_all(server)
    yield
    delete_all(server)


def delete_all(server: Server) -> None:
    for key in (MINE, OTHERS):
        with server.client(key) as client:
            for video in list(client.videos.list()):
                client.videos.delete(video.id)


@pytest.fixture
def page(context: Any, server: Server, tidy: None) -> Iterator[Any]:
    """The page before a key is given. Its console may tell of calls that failed, and of no more."""
    page = context.new_page()
    troubles: list[str] = []
    requests: list[str] = []
    page.on("console", lambda said: troubles.append(said.text) if said.type != "log" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(server.url.removesuffix("v1"))
    yield page
    calls = re.compile(r"Failed to load resource: (.* status of 40[014] |net::ERR_FAILED)")
    assert [each for each in troubles if not calls.match(each)] == []
    assert not [url for url in requests if MINE in url or OTHERS in url]
    here = (f"http://127.0.0.1:{server.port}/", f"blob:http://127.0.0.1:{server.port}/", "data:")
    assert all(url.startswith(here) for url in requests), requests


def enter(page: Any, key: str = OTHERS) -> None:
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Ask for a video").wait_for()


def test_a_video_by_the_keyboard_alone(page: Any) -> None:
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("wrong-key")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("no API key of this endpoint").wait_for()
    assert page.get_by_role("heading", name="Ask for a video").count() == 0
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type(OTHERS)
    page.keyboard.press("Enter")
    page.get_by_text("tiny-cpu: The embedded model").wait_for()
    assert page.get_by_role("alert").text_content() == ""
    page.get_by_text("None yet.").wait_for()
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.evaluate(WATCH)

    page.keyboard.type(f"{PROMPT}, slowly")
    page.keyboard.press("Tab")
    page.keyboard.type("80")  # what is there is selected
    for _ in range(4):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    page.get_by_label("Steps").fill("60")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Ask for it"
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("Your video is in the queue.").wait_for()
    card = page.get_by_role("listitem")
    assert card.get_by_role("heading").inner_text() == f"{PROMPT}, slowly"
    page.get_by_text("Rendering").wait_for()
    page.get_by_role("status").get_by_text("Completed: a red ball").wait_for(timeout=CLIP_MS)
    assert len(page.evaluate("[...window.seen]")) > 2, "progress moves"
    assert page.locator("#tally").inner_text() == "1 completed"

    check_accessible(page)
    play = page.get_by_role("button", name="Play: a red ball")
    play.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("video:focus")
    video = page.locator("video")
    page.wait_for_selector("#videos li.playing")
    size = "v => new Promise(done => v.readyState ? done([v.videoWidth, v.videoHeight, v.duration])"
    size += " : v.onloadedmetadata = () => done([v.videoWidth, v.videoHeight, v.duration]))"
    assert video.evaluate(size) == [80, 64, 17 / 8]
    assert page.get_by_role("link", name="Save the file").get_attribute("download")

    page.get_by_role("button", name="Delete: a red ball").focus()
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("The video is deleted.").wait_for()
    assert page.get_by_role("listitem").count() == 0
    assert page.evaluate("document.activeElement.id") == "videos-title"


def test_an_image_is_the_first_frame(page: Any, server: Server) -> None:
    enter(page)
    page.get_by_label("Prompt", exact=True).fill("a photo comes to life")
    image = {"name": "photo.png", "mimeType": "image/png", "buffer": make_image(96, 64)}
    page.get_by_label("First frame").set_input_files(image)
    page.keyboard.press("Control+Enter")
    page.get_by_role("status").get_by_text("Completed: a photo").wait_for(timeout=CLIP_MS)
    commit = server.read_commit("a photo comes to life")
    (first, *_) = read_frames(server.output / commit.video.key).astype(int)
    assert np.abs(first[32, 4] - (200, 0, 0)).max() < 40
    assert np.abs(first[32, 60] - (0, 0, 200)).max() < 40
    page.get_by_label("First frame").set_input_files(
        {"name": "photo.gif", "mimeType": "image/gif", "buffer": b"GIF89a"}
    )
    page.get_by_role("button", name="Ask for it").click()
    page.get_by_role("alert").get_by_text("PNG, JPEG, WEBP").wait_for()


def test_hostile_words_are_only_words(page: Any, server: Server) -> None:
    enter(page)
    page.get_by_label("Prompt", exact=True).fill(HOSTILE)
    page.keyboard.press("Control+Enter")
    page.get_by_role("status").get_by_text("Completed: <img").wait_for(timeout=CLIP_MS)
    assert page.get_by_role("listitem").get_by_role("heading").text_content() == HOSTILE
    page.wait_for_selector(".screen img")  # its still
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script").count() == 1
    assert page.evaluate("window.hacked") is None
    with server.client(OTHERS) as client:
        assert [each.prompt for each in client.videos.list()] == [HOSTILE]


def test_what_the_endpoint_refuses_is_told_in_its_words(page: Any) -> None:
    enter(page)
    page.get_by_label("Prompt", exact=True).fill("wide")
    page.get_by_label("Width").fill("256")
    page.get_by_label("Height").fill("256")
    with page.expect_response("**/v1/videos") as answer:
        page.keyboard.press("Enter")
    said = answer.value.json()["error"]["message"]
    page.get_by_role("alert").get_by_text(said).wait_for()
    assert page.get_by_role("listitem").count() == 0


def test_the_queue_is_shown_and_what_waits_can_be_called_off(page: Any, server: Server) -> None:
    with server.client(MINE) as client:
        ids = [client.videos.create(prompt=f"called off {n}", extra_body=LONG).id for n in range(4)]
        enter(page, MINE)
        page.locator("#tally").get_by_text("queued").wait_for()
        shown = page.get_by_role("listitem").get_by_role("heading").all_inner_texts()
        assert shown == [f"called off {n}" for n in (3, 2, 1, 0)]
        assert page.get_by_role("progressbar", name="Progress: called off 3").count() == 1
        page.get_by_role("button", name="Cancel: called off 3").click()
        page.get_by_role("status").get_by_text("The video is deleted.").wait_for()
        assert page.evaluate("document.activeElement.ariaLabel") == "Cancel: called off 2"
        assert ids[3] not in [each.id for each in client.videos.list()]
        client.videos.delete(ids[2])
        page.get_by_role("heading", name="called off 2").wait_for(state="detached")
        late = client.videos.create(prompt="from elsewhere", extra_body=LONG)
        page.get_by_role("heading", name="from elsewhere").wait_for()
        client.videos.delete(late.id)


def test_the_key_stays_in_the_tab_until_it_is_forgotten(page: Any, context: Any) -> None:
    enter(page)
    page.reload()
    page.get_by_role("heading", name="Ask for a video").wait_for()
    stored = "[JSON.stringify(localStorage), document.cookie, location.href].join()"
    assert OTHERS not in page.evaluate(stored)
    other = context.new_page()
    other.goto(page.url)
    other.get_by_label("API key").wait_for()
    page.get_by_role("button", name="Forget the key").click()
    page.get_by_role("status").get_by_text("The key is forgotten.").wait_for()
    page.reload()
    page.get_by_label("API key").wait_for()
    assert page.evaluate("sessionStorage.length") == 0


def test_everything_has_a_name_and_fits_a_narrow_window(page: Any) -> None:
    page.set_viewport_size({"width": 640, "height": 450})  # a window of 1280 by 900, at 200 %
    check_accessible(page)
    enter(page)
    page.get_by_text("More settings").click()
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        check_accessible(page)
    for width in (640, 320):
        page.set_viewport_size({"width": width, "height": 450})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_call_whose_answer_was_lost_is_made_again_as_the_same(page: Any, server: Server) -> None:
    enter(page)
    lost: list[str] = []

    def lose(route: Any) -> None:
        if route.request.method == "POST" and not lost:
            lost.append(route.fetch().json()["id"])
            route.abort()
        else:
            route.continue_()

    page.route("**/v1/videos", lose)
    page.get_by_label("Prompt", exact=True).fill("once")
    page.keyboard.press("Control+Enter")
    page.get_by_role("alert").get_by_text("The endpoint gives no answer.").wait_for()
    page.keyboard.press("Control+Enter")
    page.get_by_role("status").get_by_text("Completed: once").wait_for(timeout=CLIP_MS)
    assert page.get_by_role("alert").text_content() == ""
    with server.client(OTHERS) as client:
        assert [each.id for each in client.videos.list()] == lost


class EmptyDesk:
    """Has no videos, and takes none."""

    async def list(self, *_: Any, **__: Any) -> tuple[list[Any], bool]:
        return [], False

    async def find_refusal(self, *_: Any) -> Refusal:
        return Refusal("queue", 10)

    submit = find_refusal


class WaitingDesk(EmptyDesk):
    """Has one video, which waits."""

    state = VideoState(
        VideoJob(id=new_video_id(), owner="", clip_id=A, request=draft(A).request, model="tiny-cpu",
                 seconds="2", size="64x64"),
        "queued", 0, None, wait_s=8.0,
    )  # fmt: skip

    async def list(self, *_: Any, **__: Any) -> tuple[list[Any], bool]:
        return [self.state], False

    async def find(self, *_: Any) -> VideoState:
        return self.state


@pytest.fixture
def desk() -> EmptyDesk:
    return EmptyDesk()


@pytest.fixture
def keyless(tmp_path: Path, desk: EmptyDesk) -> Iterator[str]:
    """An endpoint's page that asks for no key."""
    keys = ApiKeys.read(None, "", insecure=True)
    at = Endpoint(cast(Any, desk), find_recipe(), "0" * 64, Ledger(ObjectStore(tmp_path)), keys)
    served = uvicorn.Server(uvicorn.Config(make_app(at), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=served.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            served.should_exit = True
            thread.join()


def test_nobody_is_asked_for_a_key_where_there_are_none(context: Any, keyless: str) -> None:
    page = context.new_page()
    page.goto(keyless)
    page.get_by_text("None yet.").wait_for()
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert not page.get_by_label("API key").is_visible()
    assert not page.get_by_role("button", name="Forget the key").is_visible()


def test_a_page_that_comes_before_its_endpoint_opens_later(context: Any, keyless: str) -> None:
    page = context.new_page()
    page.clock.install()
    said = {"error": {"message": "the endpoint is starting anew"}}

    def fail(route: Any) -> None:
        route.fulfill(status=503, json=said)

    page.route("**/v1/**", fail)
    page.goto(keyless)
    alert = page.get_by_role("alert")
    alert.get_by_text("the endpoint is starting anew").wait_for()
    page.unroute("**/v1/**")
    page.clock.run_for(6000)
    page.get_by_text("None yet.").wait_for()
    assert alert.text_content() == ""


@pytest.mark.parametrize("desk", [WaitingDesk()])
def test_what_waits_is_looked_at_when_its_turn_may_come(
    context: Any, keyless: str, desk: WaitingDesk
) -> None:
    page = context.new_page()
    page.clock.install()
    with page.expect_response("**/v1/videos/video_*") as first:
        page.goto(keyless)
        page.get_by_text("Queued", exact=True).wait_for()
        page.clock.run_for(500)
    assert first.value.headers["openai-poll-after-ms"] == "8000"
    first.value.finished()
    desk.state = replace(desk.state, status="in_progress", progress=50)
    page.clock.run_for(7000)
    assert page.get_by_text("Queued", exact=True).count() == 1
    page.clock.run_for(1500)
    page.get_by_text("Rendering, 50 %").wait_for()


def test_where_there_are_none_its_own_page_may_ask_and_no_other(context: Any, keyless: str) -> None:
    page = context.new_page()
    page.goto(keyless)
    send = "async () => (await fetch('v1/videos', {method: 'POST', body: new FormData()})).status"
    assert page.evaluate(send) == 400  # a prompt is needed: the call was read
    page.goto("about:blank")
    page.set_content(
        f'<form method="post" enctype="multipart/form-data" action="{keyless}v1/videos">'
        '<input name="prompt" value="a red ball"><button>Win a prize</button></form>'
    )
    with page.expect_navigation() as answered:
        page.get_by_role("button").click()
    assert answered.value.status == 403
    assert "another site" in page.content()
