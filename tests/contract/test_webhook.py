"""How a video ended is told to a server, signed, until it has heard: by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import openai
import pytest
from aiohttp import web

from cluster.webhook import LONGEST, Webhook, WebhookTarget
from pipeline.errors import LeaseLostError, UsageError
from pipeline.inbox import VideoEnd, new_video_id
from pipeline.lease import Lease
from pipeline.outbox import FOLDER, Outbox, WebhookEvent
from pipeline.store import ObjectStore
from tests.support.online import WEBHOOK_SECRET as SECRET

SOON = (0.02, 0.02, 0.02)
HEARD_S = 10.0
COMPLETED = VideoEnd(status="completed")
FAILED = VideoEnd(status="failed", code="rendering_failed", message="no")


@dataclass
class Listener:
    """A user's server, which answers with one status after another, the last one for ever."""

    statuses: list[int]
    url: str = ""
    heard: list[tuple[bytes, dict[str, str]]] = field(
        default_factory=list[tuple[bytes, dict[str, str]]]
    )

    async def answer(self, request: web.Request) -> web.Response:
        self.heard.append((await request.read(), dict(request.headers)))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers={"location": self.url})

    def read(self) -> list[Any]:
        """Return every call as the official client reads it; raises where a signature is wrong."""
        client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
        return [client.webhooks.unwrap(body, headers) for body, headers in self.heard]


@asynccontextmanager
async def listening(*statuses: int) -> AsyncGenerator[Listener]:
    listener = Listener(list(statuses))
    app = web.Application()
    app.router.add_post("/hook", listener.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    listener.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield listener
    await runner.cleanup()


@asynccontextmanager
async def telling(
    listener: Listener, outbox: Outbox, delays_s: tuple[float, ...] = SOON
) -> AsyncGenerator[Webhook]:
    webhook = Webhook(WebhookTarget(listener.url, SECRET), outbox, delays_s)
    yield webhook
    await webhook.close()


def is_empty(outbox: Outbox) -> bool:
    return not any(outbox.store.list(FOLDER))


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HEARD_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def outbox(store: ObjectStore) -> Outbox:
    return Outbox(store, Lease.acquire(store, 60).epoch)


def test_events_are_signed_and_gone_once_they_are_heard(outbox: Outbox) -> None:
    ends = [(new_video_id(), COMPLETED), (new_video_id(), FAILED)]
    events = [WebhookEvent.of_end(*each) for each in ends]

    async def run() -> list[Any]:
        async with listening(200) as listener, telling(listener, outbox) as webhook:
            for event in events:
                await webhook.keep(event)
            assert outbox.load() == sorted(events, key=lambda event: event.id)
            for event in events:
                webhook.tell(event)
            await wait_until(lambda: is_empty(outbox))
            return listener.read()

    heard = {each.data.id: each for each in asyncio.run(run())}
    assert [heard[video_id].type for video_id, _ in ends] == ["video.completed", "video.failed"]
    assert [heard[video_id].id for video_id, _ in ends] == [event.id for event in events]
    assert heard[ends[0][0]].created_at == int(COMPLETED.ended_at.timestamp())


@pytest.mark.parametrize(
    ("statuses", "calls"),
    [
        ((500, 302, 404, 204), 4),
        ((410,), 1),  # the specification's word for: never again
        ((503,), 1 + len(SOON)),  # then it is given up
    ],
)
def test_it_is_told_again_until_it_is_heard_or_given_up(
    outbox: Outbox, statuses: tuple[int, ...], calls: int
) -> None:
    event = WebhookEvent.of_end(new_video_id(), COMPLETED)

    async def run() -> Listener:
        async with listening(*statuses) as listener, telling(listener, outbox) as webhook:
            await webhook.keep(event)
            webhook.tell(event)
            await wait_until(lambda: is_empty(outbox))
            return listener

    listener = asyncio.run(run())
    assert len(listener.heard) == calls
    assert {each.id for each in listener.read()} == {event.id}


def test_what_is_not_told_yet_outlives_the_process(outbox: Outbox) -> None:
    event = WebhookEvent.of_end(new_video_id(), COMPLETED)

    async def run() -> None:
        async with listening(500) as deaf, telling(deaf, outbox, (60.0,)) as webhook:
            await webhook.keep(event)
            webhook.tell(event)
            await wait_until(lambda: bool(deaf.heard))
        assert outbox.load() == [event]
        async with listening(200) as listener, telling(listener, outbox) as webhook:
            for each in outbox.load():
                webhook.tell(each)
            await wait_until(lambda: is_empty(outbox))
            assert [each.id for each in listener.read()] == [event.id]

    asyncio.run(run())


def test_nobody_there_and_old_news(outbox: Outbox) -> None:
    end = VideoEnd(status="completed", ended_at=datetime.now(UTC) - LONGEST - timedelta(hours=1))
    event = WebhookEvent.of_end(new_video_id(), end)

    async def run() -> None:
        async with listening(200) as gone:
            pass
        async with telling(gone, outbox, (60.0,)) as webhook:
            await webhook.keep(event)
            webhook.tell(event)
            await wait_until(lambda: is_empty(outbox))

    asyncio.run(run())


def test_who_was_taken_over_keeps_nothing(store: ObjectStore) -> None:
    lease = Lease.acquire(store, 60)
    old = Outbox(store, lease.epoch)
    lease.release()
    Lease.acquire(store, 60)
    with pytest.raises(LeaseLostError):
        old.keep(WebhookEvent.of_end(new_video_id(), COMPLETED))


def test_the_body_is_the_events() -> None:
    event = WebhookEvent.of_end(new_video_id(), COMPLETED)
    body = json.loads(event.to_body())
    assert body.keys() == {"id", "object", "created_at", "type", "data"}
    assert body["data"] == {"id": event.video_id}


@pytest.mark.parametrize(
    ("url", "secret", "said"),
    [
        ("ftp://example.com", SECRET, "--webhook ftp://example.com"),
        ("hook", SECRET, "--webhook hook"),
        ("http://[::1/hook", SECRET, "got no http:// or"),
        ("http://example.com:99999/hook", SECRET, "got no http:// or"),
        ("https://example.com/hook", "", "RUSHES_WEBHOOK_SECRET"),
        ("https://example.com/hook", "whsec_!", "RUSHES_WEBHOOK_SECRET"),
        ("https://example.com/hook", "whsec_c2hvcnQ=", "24 bytes or more"),
    ],
)
def test_a_wrong_url_or_secret_is_said_at_once(url: str, secret: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        WebhookTarget(url, secret)
    assert secret not in str(refused.value) or not secret
