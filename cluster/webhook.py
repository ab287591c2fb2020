"""`Webhook`: tells one server how videos and batches end, signed, until it has heard, for days.

By the Standard Webhooks specification, 1.0.0 (https://www.standardwebhooks.com), as OpenAI's own
are: the official client's `webhooks.unwrap` verifies them.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from urllib.parse import urlsplit

import aiohttp
import standardwebhooks

from pipeline.errors import UsageError
from pipeline.outbox import Outbox, WebhookEvent

TIMEOUT_S = 15.0
AT_ONCE = 16
MINUTE, HOUR = 60.0, 3600.0
DELAYS_S = (
    5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR,
)  # fmt: skip
"""Before each try after the first: the specification's schedule."""
LONGEST = timedelta(days=3)
"""What is older is not told any more: an endpoint that was away starts the schedule anew."""
MIN_SECRET_BYTES = 24
"""The specification's."""

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class WebhookTarget:
    """Who is told, and the secret that both sides know."""

    url: str
    secret: str = field(repr=False)
    """`whsec_` and base64, as the specification has it."""

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            UsageError: no such URL, or no such secret.
        """
        try:
            url = urlsplit(self.url)
            is_one = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:  # no address, or no port
            is_one = False
        if not is_one:
            raise UsageError(f"--webhook {self.url}: got no http:// or https:// URL")
        try:
            secret = base64.b64decode(self.secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            secret = b""
        if len(secret) < MIN_SECRET_BYTES:
            raise UsageError(
                "RUSHES_WEBHOOK_SECRET: got no secret to sign webhooks by; expected whsec_ and "
                f"base64 of {MIN_SECRET_BYTES} bytes or more, as of: "
                'echo "whsec_$(openssl rand -base64 24)"'
            )


class Webhook:
    """Lives on one event loop; `close` it."""

    def __init__(
        self, target: WebhookTarget, outbox: Outbox, delays_s: tuple[float, ...] = DELAYS_S
    ) -> None:
        """Tell nobody yet."""
        self._target = target
        self._outbox = outbox
        self._delays_s = delays_s
        self._signer = standardwebhooks.Webhook(target.secret)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(TIMEOUT_S), trust_env=True
        )
        self._room = asyncio.Semaphore(AT_ONCE)
        self._tasks = set[asyncio.Task[None]]()

    async def load(self) -> list[WebhookEvent]:
        """Return what was kept, here or by an endpoint before, and not told yet."""
        return await asyncio.to_thread(self._outbox.load)

    async def keep(self, event: WebhookEvent) -> None:
        """Have an event in the store, before what it tells of is.

        Raises:
            OSError: the storage is away.
            LeaseLostError: another run has taken over.
        """
        await asyncio.to_thread(self._outbox.keep, event)

    def tell(self, event: WebhookEvent) -> None:
        """Begin to tell of an event that is kept."""
        task = asyncio.create_task(self._see_through(event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop; what is not told yet is told by the next endpoint on this output."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _see_through(self, event: WebhookEvent) -> None:
        for delay_s in (*self._delays_s, None):
            async with self._room:
                wrong = await self._post(event)
            if not wrong:
                break
            if delay_s is None or datetime.now(UTC) - event.created_at > LONGEST:
                _log.warning("%s: the webhook is not told of it: %s", event.subject, wrong)
                break
            await asyncio.sleep(delay_s)
        try:
            await asyncio.to_thread(self._outbox.remove, event)
        except OSError as error:
            _log.warning("%s: told once more after a restart: %s", event.subject, error)

    async def _post(self, event: WebhookEvent) -> str:
        """Return what keeps the other side from having heard; nothing if it has."""
        body, now = event.to_body(), datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "user-agent": "rushes",
            "webhook-id": event.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(event.id, now, body),
        }
        try:
            async with self._session.post(
                self._target.url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                heard = answer.status // 100 == 2 or answer.status == HTTPStatus.GONE
                return "" if heard else f"it answers {answer.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
