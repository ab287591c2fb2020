"""The routes of `/v1/batches` (platform.openai.com/docs/api-reference/batch)."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from cluster.answers import BatchState, Refusal
from jobs.api.body import Body, parse_metadata, read_body
from jobs.api.call import Call
from jobs.api.depends import At, IdempotencyKey, Owner, Receiving
from jobs.api.endpoint import too_many
from jobs.api.files import unknown_file
from jobs.api.lines import ENDPOINT
from jobs.api.openapi import document_body, document_errors
from jobs.api.wire import ApiError, invalid_value
from pipeline.batches import BatchJob, new_batch_id

MAX_PAGE = 100
FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata")


class BatchBody(Body):
    """What a call for a batch may say."""

    input_file_id: str
    endpoint: Literal["/v1/videos"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None
    """Up to 16 pairs of your own; they are handed back."""


class BatchError(BaseModel):
    """What is wrong with a batch's file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(BaseModel):
    """All that is wrong with a batch's file, or the first of it."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """How many lines have ended how; `total` is 0 until they are read."""

    total: int
    completed: int
    failed: int


class Batch(BaseModel):
    """A batch; times are Unix timestamps, in seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    """Why the batch failed: then none of its lines was begun."""
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "in_progress", "finalizing", "cancelling",
        "completed", "failed", "expired", "cancelled",
    ]  # fmt: skip
    output_file_id: str | None = None
    """The answers of lines whose video is completed."""
    error_file_id: str | None = None
    """The answers of all other lines."""
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None


class BatchPage(BaseModel):
    """A page of a list; `after=last_id` asks for the next."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


routes = APIRouter()


@routes.post(
    "/v1/batches",
    openapi_extra=document_body(BatchBody),
    responses=document_errors(400, 401, 403, 404, 408, 413, 422, 429),
)
async def create_batch(
    request: Request, at: At, owner: Receiving, idempotency_key: IdempotencyKey
) -> Batch:
    """Have every line of a file rendered, within 24 hours, when nobody is in more of a hurry."""
    fields = await read_body(request)
    for name in fields:
        if name not in FIELDS:
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"unknown parameter {name[:64]!r}; known are {', '.join(FIELDS)}",
                param=name[:64],
                code="unknown_parameter",
            )
    for name, expected in (("endpoint", ENDPOINT), ("completion_window", "24h")):
        if fields.get(name) != expected:
            got = repr(str(fields[name])[:64]) if name in fields else "nothing"
            raise invalid_value(name, f"got {got}, expected {expected!r}")
    file_id = fields.get("input_file_id")
    if not isinstance(file_id, str):
        raise invalid_value("input_file_id", "expected the id of an uploaded file")
    metadata = parse_metadata(fields)
    call = Call.read(owner, idempotency_key, request.url.path, fields)
    if call.idempotency_key:
        repeated = await at.desk.batches.find_repeated(owner, call.idempotency_key)
        if repeated:  # also once the file is deleted
            call.check(repeated.job)
            return describe_batch(repeated)
    record = await at.desk.files.find(owner, file_id)
    if record is None:
        raise unknown_file(file_id, "input_file_id")
    if record.purpose != "batch":
        raise invalid_value(
            "input_file_id", f"the file is of purpose {record.purpose!r}, not 'batch'"
        )
    job = BatchJob(
        id=new_batch_id(),
        input_file_id=file_id,
        endpoint=ENDPOINT,
        completion_window="24h",
        metadata=metadata,
        **asdict(call),
    )
    answer = await at.desk.batches.create(job)
    if isinstance(answer, Refusal):
        raise too_many(answer)
    if answer is None:
        raise unknown_file(file_id, "input_file_id")
    call.check(answer.job)
    return describe_batch(answer)


@routes.get("/v1/batches", responses=document_errors(400, 401, 404))
async def list_batches(
    at: At,
    owner: Owner,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
) -> BatchPage:
    """List your batches, the newest first."""
    page = await at.desk.batches.list(owner, after, limit)
    if page is None:
        raise _unknown_batch(after or "", "after")
    data = [describe_batch(each) for each in page[0]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return BatchPage(data=data, first_id=first, last_id=last, has_more=page[1])


_ITS_OUTPUT = {
    "operationId": "download_file_v1_files__file_id__content_get",
    "parameters": {"file_id": "$response.body#/output_file_id"},
}


@routes.get(
    "/v1/batches/{batch_id}",
    responses={
        **document_errors(400, 401, 404),
        200: {"links": {"output": _ITS_OUTPUT}},
    },
)
async def retrieve_batch(batch_id: str, at: At, owner: Owner) -> Batch:
    """Tell how a batch goes."""
    state = await at.desk.batches.find(owner, batch_id)
    if state is None:
        raise _unknown_batch(batch_id)
    return describe_batch(state)


@routes.post("/v1/batches/{batch_id}/cancel", responses=document_errors(400, 401, 403, 404, 409))
async def cancel_batch(batch_id: str, at: At, owner: Owner) -> Batch:
    """Call a batch off: what is done is in its output, what is under way is given up."""
    state = await at.desk.batches.cancel(owner, batch_id)
    if state is None:
        raise _unknown_batch(batch_id)
    if state.status not in ("cancelling", "cancelled"):
        raise ApiError(
            HTTPStatus.CONFLICT,
            f"the batch is {state.status}, there is nothing to cancel",
            code="batch_not_cancellable",
        )
    return describe_batch(state)


def describe_batch(state: BatchState) -> Batch:
    """Return a batch as the wire has it."""
    job, end = state.job, state.end
    ended: dict[str, Any] = {}
    errors = None
    if end:
        ended = {f"{end.status}_at": _stamp(end.ended_at)}
        faults = [BatchError(**dict(fault)) for fault in end.faults]
        errors = BatchErrors(data=faults) if faults else None
    return Batch(
        id=job.id,
        endpoint=job.endpoint,
        errors=errors,
        input_file_id=job.input_file_id,
        completion_window=job.completion_window,
        status=state.status,
        output_file_id=end and end.output_file_id,
        error_file_id=end and end.error_file_id,
        created_at=int(job.created_at.timestamp()),
        in_progress_at=_stamp(end.validated_at if end else state.validated_at),
        expires_at=int(job.expires_at.timestamp()),
        finalizing_at=_stamp(end.finalizing_at if end else state.finalizing_at),
        cancelling_at=_stamp(state.cancellation and state.cancellation.cancelling_at),
        request_counts=RequestCounts(
            total=state.total, completed=state.completed, failed=state.failed
        ),
        metadata=job.metadata or None,
        **ended,
    )


def _stamp(at: datetime | None) -> int | None:
    return int(at.timestamp()) if at else None


def _unknown_batch(batch_id: str, param: str = "batch_id") -> ApiError:
    return ApiError(
        HTTPStatus.NOT_FOUND,
        f"{param}: you have no batch {batch_id[:80]!r}",
        param=param,
        code="batch_not_found",
    )
