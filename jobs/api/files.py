"""The routes of `/v1/files` (platform.openai.com/docs/api-reference/files)."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import StreamingResponse

from cluster.answers import Refusal
from jobs.api.body import invalid_body, limit_body, limit_time
from jobs.api.depends import At, Owner, Receiving
from jobs.api.endpoint import Endpoint, too_many
from jobs.api.openapi import document_errors
from jobs.api.wire import ApiError, invalid_value
from pipeline.places import CHUNK_BYTES
from pipeline.uploads import FileRecord, Uploads, new_file_id

MAX_PAGE = 10_000
UPLOAD_TIMEOUT_S = 900.0
MAX_FIELDS = 8
MAX_NAME_CHARS = 255
FORM_BYTES = 64 << 10
"""What a form may have beside the file."""
Purpose = Literal["batch", "batch_output"]


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    """Always null: files are kept until they are deleted."""
    filename: str
    purpose: Purpose
    """Of an upload: `batch`. A batch's answers are of `batch_output`."""
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class FilePage(BaseModel):
    """A page of a list; `after=last_id` asks for the next."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


routes = APIRouter()
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                    },
                }
            }
        },
    }
}


_IN_A_BATCH = {
    "operationId": "create_batch_v1_batches_post",
    "requestBody": {
        "input_file_id": "$response.body#/id",
        "endpoint": "/v1/videos",
        "completion_window": "24h",
    },
}


@routes.post(
    "/v1/files",
    openapi_extra=_UPLOAD,
    responses={
        **document_errors(400, 401, 403, 408, 413, 429),
        200: {"links": {"batch": _IN_A_BATCH}},
    },
)
async def upload_file(request: Request, at: At, owner: Receiving) -> FileObject:
    """Upload a file of requests for a batch: a JSON object on each line."""
    uploads = Uploads(at.ledger.store)
    async with _read_upload(request, at.limits.max_file_bytes) as upload:
        record = FileRecord(
            id=new_file_id(),
            owner=owner,
            filename=_clean_name(upload.filename),
            size_bytes=upload.size or 0,
            purpose="batch",
        )
        await asyncio.to_thread(_store, upload, uploads, record.id)
    answer = await at.desk.files.add(record)
    if isinstance(answer, Refusal):
        await asyncio.to_thread(uploads.forget, record.id)
        raise too_many(answer)
    return _describe(answer)


@routes.get("/v1/files", responses=document_errors(400, 401, 404))
async def list_files(
    at: At,
    owner: Owner,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> FilePage:
    """List your files, by the time they were made."""
    page = await at.desk.files.list(owner, after, limit, purpose, newest_first=order == "desc")
    if page is None:
        raise unknown_file(after or "", "after")
    data = [_describe(each) for each in page[0]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return FilePage(data=data, first_id=first, last_id=last, has_more=page[1])


@routes.get("/v1/files/{file_id}", responses=document_errors(400, 401, 404))
async def retrieve_file(file_id: str, at: At, owner: Owner) -> FileObject:
    """Tell of a file."""
    return _describe(await _find(at, owner, file_id))


@routes.get(
    "/v1/files/{file_id}/content",
    response_class=Response,
    responses={
        **document_errors(400, 401, 404),
        200: {"content": {"application/octet-stream": {}}},
    },
)
async def download_file(file_id: str, at: At, owner: Owner) -> Response:
    """Download a file."""
    record = await _find(at, owner, file_id)
    return StreamingResponse(
        Uploads(at.ledger.store).read(file_id),
        media_type="application/octet-stream",
        headers={
            "content-length": str(record.size_bytes),
            "content-disposition": "attachment",
            "x-content-type-options": "nosniff",
        },
    )


@routes.delete("/v1/files/{file_id}", responses=document_errors(400, 401, 403, 404))
async def delete_file(file_id: str, at: At, owner: Owner) -> DeletedFile:
    """Delete a file; a batch whose lines are read already does not need it any more."""
    if not await at.desk.files.delete(owner, file_id):
        raise unknown_file(file_id)
    return DeletedFile(id=file_id)


def unknown_file(file_id: str, param: str = "file_id") -> ApiError:
    """Return the error for an id that is none of its caller's files'."""
    return ApiError(
        HTTPStatus.NOT_FOUND,
        f"{param}: you have no file {file_id[:80]!r}",
        param=param,
        code="file_not_found",
    )


async def _find(at: Endpoint, owner: str, file_id: str) -> FileRecord:
    record = await at.desk.files.find(owner, file_id)
    if record is None:
        raise unknown_file(file_id)
    return record


def _describe(record: FileRecord) -> FileObject:
    return FileObject(
        id=record.id,
        bytes=record.size_bytes,
        created_at=int(record.created_at.timestamp()),
        filename=record.filename,
        purpose=record.purpose,
    )


@asynccontextmanager
async def _read_upload(request: Request, max_bytes: int) -> AsyncGenerator[UploadFile]:
    """Yield the file of a form, beyond a mebibyte in a temporary file.

    Raises:
        ApiError: the form is too large, no form, or has not what it needs.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().casefold()
    if kind != "multipart/form-data":
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            f"expected a body of multipart/form-data, got {kind or 'no type'}",
        )
    parser = MultiPartParser(
        request.headers,
        limit_body(request, max_bytes + FORM_BYTES),
        max_fields=MAX_FIELDS,
        max_files=1,
        max_part_size=FORM_BYTES,
    )
    try:
        async with limit_time(UPLOAD_TIMEOUT_S):
            form = await parser.parse()
    except (MultiPartException, ValueError, KeyError) as error:
        raise invalid_body("multipart/form-data", error) from error
    async with _closing(form):
        yield _check_form(dict(form.multi_items()), max_bytes)


@asynccontextmanager
async def _closing(form: FormData) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await form.close()


def _check_form(fields: Mapping[str, Any], max_bytes: int) -> UploadFile:
    upload, purpose = fields.get("file"), fields.get("purpose")
    if not isinstance(upload, UploadFile):
        raise invalid_value("file", "expected a file")
    if purpose != "batch":
        raise invalid_value("purpose", f"got {str(purpose)[:64]!r}, expected 'batch'")
    for name in fields:
        if name not in ("file", "purpose"):
            raise ApiError(
                HTTPStatus.BAD_REQUEST,
                f"unknown parameter {name[:64]!r}; files are kept until they are deleted",
                param=name[:64],
                code="unknown_parameter",
            )
    if (upload.size or 0) > max_bytes:
        raise ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"file: got {upload.size} bytes, expected up to {max_bytes}",
            param="file",
            code="body_too_large",
        )
    return upload


def _clean_name(name: str | None) -> str:
    """Return the last part of a file's name, as text that can be written."""
    last = PurePosixPath((name or "").replace("\\", "/")).name[:MAX_NAME_CHARS]
    return last.encode(errors="replace").decode() or "file"


def _store(upload: UploadFile, uploads: Uploads, file_id: str) -> None:
    if (upload.size or 0) <= CHUNK_BYTES:
        uploads.write(file_id, upload.file.read())
        return
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as copy:
        shutil.copyfileobj(upload.file, copy, CHUNK_BYTES)
        copy.flush()
        uploads.write(file_id, Path(copy.name))
