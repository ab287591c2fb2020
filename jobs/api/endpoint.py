"""`Endpoint`: what the routes stand on, and what several of them do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

from cluster.answers import Refusal, VideoState
from jobs.api.body import parse_metadata, parse_request
from jobs.api.keys import ApiKeys
from jobs.api.wire import ApiError
from pipeline.identity import clip_id
from pipeline.inbox import VideoJob, new_video_id
from pipeline.ledger import Ledger
from pipeline.recipe import Recipe

MAX_IDEMPOTENCY_CHARS = 255


class Desk(Protocol):
    """What is needed of a `cluster.dispatch.Dispatcher`."""

    async def submit(self, job: VideoJob) -> VideoState | Refusal: ...  # noqa: D102
    async def find(self, owner: str, video_id: str) -> VideoState | None: ...  # noqa: D102
    async def list(  # noqa: D102
        self, owner: str, after: str | None, limit: int, *, newest_first: bool
    ) -> tuple[list[VideoState], bool] | None: ...
    async def delete(self, owner: str, video_id: str) -> bool: ...  # noqa: D102
    async def is_ready(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Endpoint:
    """One model behind one desk."""

    desk: Desk
    recipe: Recipe
    renderer: str
    """The digest that clip ids are made with."""
    ledger: Ledger
    """Where finished clips are read."""
    keys: ApiKeys
    aliases: tuple[str, ...] = ()
    """Other names by which programs ask for the recipe's model."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def models(self) -> tuple[str, ...]:
        """All names of the model."""
        return (self.recipe.name, *self.aliases)

    def check_model(self, name: Any) -> str:
        """Return the model that is asked for by this name, or by none.

        Raises:
            ApiError: there is no such model.
        """
        if name is not None and name not in self.models:
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"model: got {str(name)[:64]!r}, expected {' or '.join(map(repr, self.models))}",
                param="model",
                code="model_not_found",
            )
        return str(name or self.recipe.name)

    async def take(
        self,
        owner: str,
        fields: Mapping[str, Any],
        idempotency_key: str | None,
        source: VideoJob | None = None,
    ) -> VideoState:
        """Take a call for a video in; `source` is what it is a remix of.

        Raises:
            ApiError: it asks for what the model can't do, or its owner has reached a limit.
        """
        model = self.check_model(fields.get("model"))
        asked = await asyncio.to_thread(parse_request, fields, self.recipe)
        if idempotency_key and len(idempotency_key) > MAX_IDEMPOTENCY_CHARS:
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"Idempotency-Key: got {len(idempotency_key)} characters, "
                f"expected up to {MAX_IDEMPOTENCY_CHARS}",
                code="invalid_value",
            )
        seconds = source.seconds if source else fields.get("seconds")
        job = VideoJob(
            id=new_video_id(),
            owner=owner,
            clip_id=clip_id(asked, self.renderer),
            request=asked,
            model=model,
            seconds=f"{asked.duration_s:g}" if seconds is None else str(seconds),
            size=f"{asked.width}x{asked.height}",
            remixed_from=source.id if source else None,
            idempotency_key=idempotency_key,
            metadata=parse_metadata(fields),
        )
        state = await self.desk.submit(job)
        if isinstance(state, Refusal):
            raise _too_many(state)
        return state

    async def find(self, owner: str, video_id: str) -> VideoState:
        """Return how an owner's video goes.

        Raises:
            ApiError: they have none of that id.
        """
        state = await self.desk.find(owner, video_id)
        if state is None:
            raise unknown_video(video_id)
        return state


def unknown_video(video_id: str, param: str = "video_id") -> ApiError:
    """Return the error for an id that is none of its caller's videos'."""
    return ApiError(
        HTTPStatus.NOT_FOUND,
        f"{param}: you have no video {video_id[:80]!r}",
        param=param,
        code="video_not_found",
    )


def _too_many(refusal: Refusal) -> ApiError:
    if refusal.limit == "queue":
        code = "too_many_videos"
        message = (
            "you have as many videos under way as one key may have; wait for one, or delete it"
        )
    else:
        code = "rate_limit_exceeded"
        message = (
            "you have asked for as many videos as one key may in a minute; "
            f"ask again in {refusal.retry_after_s} s"
        )
    error = ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, code=code)
    error.headers["retry-after"] = str(refusal.retry_after_s)
    return error
