"""The routes of the online endpoint."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response

from jobs.api import batches, files
from jobs.api.body import ExtensionBody, RemixBody, VideoBody, read_body
from jobs.api.call import Call
from jobs.api.content import Variant, missed_if_gone, read_content
from jobs.api.depends import At, IdempotencyKey, Owner, Receiving
from jobs.api.endpoint import Endpoint, unknown_video
from jobs.api.errors import RETRY_AFTER_S, handle_errors
from jobs.api.head import HeadAsGet
from jobs.api.models import Model, ModelList, describe_model
from jobs.api.openapi import describe_app, document_body, document_errors
from jobs.api.page import make_page_routes
from jobs.api.wire import (
    ApiError,
    DeletedVideo,
    ErrorAnswer,
    Video,
    VideoPage,
    describe_video,
    find_poll_ms,
)

MAX_PAGE = 100
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format (prometheus.io/docs/instrumenting/exposition_formats)."""


def make_app(endpoint: Endpoint) -> FastAPI:
    """Return the application that answers for an endpoint."""
    app = FastAPI(title="Rushes", summary="Videos from prompts.", docs_url=None, redoc_url=None)
    app.state.endpoint = endpoint
    for router in (_routes, files.routes, batches.routes):
        app.include_router(router)
    app.include_router(make_page_routes(asks_key=not endpoint.keys.insecure))
    app.add_middleware(HeadAsGet)
    handle_errors(app)
    app.openapi = partial(describe_app, app)
    return app


_routes = APIRouter()


@_routes.post(
    "/v1/videos",
    openapi_extra=document_body(VideoBody, "input_reference"),
    responses=document_errors(400, 401, 403, 404, 408, 413, 422, 429),
)
async def create_video(
    request: Request, at: At, owner: Receiving, idempotency_key: IdempotencyKey
) -> Video:
    """Ask for a video."""
    fields = await read_body(request)
    call = Call.read(owner, idempotency_key, request.url.path, fields)
    return describe_video(await at.take(call, fields))


@_routes.get("/v1/videos", responses=document_errors(400, 401, 404))
async def list_videos(
    at: At,
    owner: Owner,
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=MAX_PAGE)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoPage:
    """List your videos, by the time they were asked for; a batch's are in its output alone.

    `after` may be the id of one that is deleted meanwhile.
    """
    page = await at.desk.list(owner, after, limit, newest_first=order == "desc")
    if page is None:
        raise unknown_video(after or "", "after")
    states, has_more = page
    data = [describe_video(each) for each in states]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return VideoPage(data=data, first_id=first, last_id=last, has_more=has_more)


@_routes.get("/v1/videos/models", responses=document_errors(401))
async def describe_models(at: At, owner: Owner) -> dict[str, Any]:
    """Tell what the model can do: sizes, frames, defaults."""
    recipe = at.recipe
    described = {
        **describe_model(recipe.name, recipe, at.created).model_dump(),
        "object": "video.model",
        "description": recipe.description,
        "aliases": at.aliases,
        "defaults": recipe.request.model_dump(),
    }
    return {"object": "list", "data": [described]}


@_routes.get("/v1/videos/{video_id}", responses=document_errors(400, 401, 404))
async def retrieve_video(video_id: str, at: At, owner: Owner, response: Response) -> Video:
    """Tell how a video goes; `openai-poll-after-ms` says when to ask again."""
    state = await at.find(owner, video_id)
    if not state.end:
        response.headers["openai-poll-after-ms"] = str(find_poll_ms(state))
    return describe_video(state)


@_routes.delete("/v1/videos/{video_id}", responses=document_errors(400, 401, 403, 404, 409))
async def delete_video(video_id: str, at: At, owner: Owner) -> DeletedVideo:
    """Delete a video; one that is under way is given up. One of a batch stays until that ends."""
    batch_id = (await at.find(owner, video_id)).job.batch_id
    batch = await at.desk.batches.find(owner, batch_id) if batch_id else None
    if batch and not batch.end:
        raise ApiError(
            HTTPStatus.CONFLICT,
            f"the video is a line of {batch_id}, which is {batch.status}; cancel that",
            code="video_in_batch",
        )
    if not await at.desk.delete(owner, video_id):
        raise unknown_video(video_id)
    return DeletedVideo(id=video_id)


@_routes.get(
    "/v1/videos/{video_id}/content",
    response_class=Response,
    responses={
        **document_errors(400, 401, 404, 409, 416),
        200: {"content": {"video/mp4": {}, "image/jpeg": {}}},
        206: {"content": {"video/mp4": {}}},
        304: {"description": "Not Modified"},
    },
)
async def download_content(
    video_id: str, at: At, owner: Owner, request: Request, variant: Variant = "video"
) -> Response:
    """Download a completed video, or its `thumbnail` or `spritesheet`."""
    state = await at.find_completed(owner, video_id)
    asked = dict(request.headers)
    with missed_if_gone():
        commit = await asyncio.to_thread(at.ledger.read_commit, state.job.clip_id)
        async with at.decoding[owner] if variant == "spritesheet" else nullcontext():
            return await asyncio.to_thread(read_content, at.ledger.store, commit, variant, asked)


@_routes.post(
    "/v1/videos/{video_id}/remix",
    openapi_extra=document_body(RemixBody),
    responses=document_errors(400, 401, 403, 404, 408, 413, 422, 429),
)
async def remix_video(
    video_id: str, request: Request, at: At, owner: Receiving, idempotency_key: IdempotencyKey
) -> Video:
    """Ask for a video again with another prompt: its size, length, seed and settings stay."""
    fields = await read_body(request)
    call = Call.read(owner, idempotency_key, request.url.path, fields)
    return describe_video(await at.remix(call, fields, video_id))


@_routes.post(
    "/v1/videos/extensions",
    openapi_extra=document_body(ExtensionBody, "video"),
    responses=document_errors(400, 401, 403, 404, 408, 409, 413, 422, 429),
)
async def extend_video(
    request: Request, at: At, owner: Receiving, idempotency_key: IdempotencyKey
) -> Video:
    """Ask for a video that is a completed one and goes on from it, for so many seconds more."""
    fields = await read_body(request)
    call = Call.read(owner, idempotency_key, request.url.path, fields)
    return describe_video(await at.extend(call, fields))


@_routes.post("/v1/videos/edits", status_code=400, responses=document_errors(401, 403))
@_routes.post("/v1/videos/characters", status_code=400, responses=document_errors(401, 403))
async def refuse_unsupported(request: Request, at: At, owner: Owner) -> ErrorAnswer:
    """Refuse what no model here does."""
    raise _unsupported(at, request.url.path.rpartition("/")[2])


@_routes.get(
    "/v1/videos/characters/{character_id}", status_code=400, responses=document_errors(401)
)
async def refuse_character(character_id: str, at: At, owner: Owner) -> ErrorAnswer:
    """Refuse what no model here has."""
    raise _unsupported(at, "characters")


def _unsupported(at: Endpoint, what: str) -> ApiError:
    return ApiError(
        HTTPStatus.BAD_REQUEST,
        f"{at.recipe.name} makes no {what}; it makes videos from text, and from an image or a "
        "video where its max_seen_frames says so",
        code="unsupported",
    )


@_routes.get("/v1/models", responses=document_errors(401))
async def list_models(at: At, owner: Owner) -> ModelList:
    """List the models that can be asked for."""
    names = at.reader.models
    return ModelList(data=[describe_model(name, at.recipe, at.created) for name in names])


@_routes.get("/v1/models/{model}", responses=document_errors(401, 404))
async def retrieve_model(model: str, at: At, owner: Owner) -> Model:
    """Tell of one model."""
    return describe_model(at.reader.check_model(model), at.recipe, at.created)


@_routes.get("/readyz", responses=document_errors())
async def check_readiness(at: At) -> dict[str, str]:
    """Say that a model is loaded; until then, 503. Videos are taken in before, and wait."""
    if not await at.desk.is_ready():
        error = ApiError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "models are being loaded; what is asked for meanwhile waits",
            code="not_ready",
        )
        error.headers["retry-after"] = str(RETRY_AFTER_S)
        raise error
    return {"status": "ready"}


@_routes.get(
    "/metrics",
    response_class=Response,
    responses={**document_errors(401), 200: {"content": {METRICS_TYPE: {}}}},
)
async def export_metrics(at: At, owner: Owner) -> Response:
    """Tell Prometheus how the machine that answers does: gangs, clips, stages, videos, Ray."""
    return Response(await at.desk.read_metrics(), media_type=METRICS_TYPE)


@_routes.get("/healthz", responses=document_errors())
async def check_health() -> dict[str, str]:
    """Say that the endpoint listens."""
    return {"status": "ok"}
