"""The wire types of OpenAI's Videos API (platform.openai.com/docs/api-reference/videos)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel

from cluster.answers import VideoState

MIN_POLL_MS, MAX_POLL_MS, UNKNOWN_POLL_MS = 250, 10_000, 1000


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class Video(BaseModel):
    """A video job."""

    id: str
    object: Literal["video"] = "video"
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    """Always null: videos are kept until they are deleted."""
    model: str
    prompt: str
    progress: int
    """Per cent of the denoising steps."""
    remixed_from_video_id: str | None = None
    seconds: str
    size: str
    """WIDTHxHEIGHT, in pixels."""
    status: Literal["queued", "in_progress", "completed", "failed"]
    error: VideoError | None = None
    metadata: dict[str, str] = {}


class VideoPage(BaseModel):
    """A page of a list; `after=last_id` asks for the next."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class ErrorBody(BaseModel):
    """What is wrong with a call."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every answer that isn't a success."""

    error: ErrorBody


class ApiError(Exception):
    """A call that can't be answered as it was made."""

    def __init__(
        self, status: HTTPStatus, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        """Hold what the caller is told."""
        super().__init__(message)
        self.status = status
        self.headers: dict[str, str] = {}
        if status == HTTPStatus.CONFLICT:  # which the official client would try again, for nothing
            self.headers["x-should-retry"] = "false"
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _KINDS.get(status)
        self.body = ErrorBody(
            message=message, type=kind or "invalid_request_error", param=param, code=code
        )


def invalid_value(param: str, message: str) -> ApiError:
    """Return the error for a parameter whose value is wrong: what was got, what is expected."""
    return ApiError(
        HTTPStatus.BAD_REQUEST, f"{param}: {message}", param=param, code="invalid_value"
    )


_KINDS = {HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error"}


def describe_video(state: VideoState) -> Video:
    """Return a video as the wire has it."""
    job, end = state.job, state.end
    error = None
    if end and end.status == "failed":
        error = VideoError(code=end.code or "server_error", message=end.message or "")
    completed = end and end.status == "completed"
    return Video(
        id=job.id,
        created_at=int(job.created_at.timestamp()),
        completed_at=int(end.ended_at.timestamp()) if end and completed else None,
        model=job.model,
        prompt=job.request.prompt,
        progress=state.progress,
        remixed_from_video_id=job.remixed_from,
        seconds=job.seconds,
        size=job.size,
        status=state.status,
        error=error,
        metadata=job.metadata,
    )


def find_poll_ms(state: VideoState) -> int:
    """Return after how many milliseconds it is worth to look again.

    That is when it should be done; of one that is queued, when a gang should have it.
    """
    if state.left_s is None:
        return min(max(round(1000 * state.wait_s), UNKNOWN_POLL_MS), MAX_POLL_MS)
    return min(max(round(1000 * state.left_s), MIN_POLL_MS), MAX_POLL_MS)
