"""`Lines`: the lines of a batch's file, as OpenAI's Batch API has them, and those of its answers.

In: `{"custom_id", "method": "POST", "url": "/v1/videos", "body"}`. What is wrong with a line's form
fails the batch before anything is made; what is wrong with a `body` is that line's answer alone, by
the words that the call would have had. Out: `{"id", "custom_id", "response", "error"}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from pydantic_core import from_json

from cluster.answers import VideoState
from cluster.batches import UNFINISHED
from jobs.api.job import JobReader
from jobs.api.wire import ApiError, ErrorAnswer, describe_video
from pipeline.batches import BatchFault, BatchJob, BatchPlan, PlannedLine, name_video
from pipeline.documents import derive_id
from pipeline.inbox import VideoEnd

ENDPOINT = "/v1/videos"
MAX_LINE_BYTES = 1 << 20
MAX_CUSTOM_ID_CHARS = 512
MAX_FAULTS = 100
"""Told of one file."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class _LineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


@dataclass(frozen=True)
class Lines:
    """Reads lines as calls for one model's videos; can be pickled."""

    reader: JobReader
    max_bytes: int = MAX_LINE_BYTES

    def read(
        self, batch: BatchJob, lines: Iterable[bytes], max_lines: int
    ) -> BatchPlan | tuple[BatchFault, ...]:
        """Return a file's lines as they are understood, or why it is no batch's file.

        Blank lines are passed over.
        """
        planned: list[PlannedLine] = []
        faults: list[BatchFault] = []
        numbers: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if not text.strip():
                continue
            try:
                custom_id, body = self._read_form(text)
                first = numbers.setdefault(custom_id, number)
                if first != number:
                    said = f"custom_id {custom_id[:64]!r} is that of line {first}, too"
                    raise _LineError("duplicate_custom_id", said, "custom_id")
            except _LineError as error:
                fault = BatchFault(
                    code=error.code, message=str(error), line=number, param=error.param
                )
                faults.append(fault)
                if len(faults) == MAX_FAULTS:
                    break
                continue
            if len(numbers) > max_lines:
                said = f"the file has more than {max_lines} lines; make several batches of it"
                return (BatchFault(code="too_many_lines", message=said, line=number),)
            if not faults:
                planned.append(self._plan(batch, number, custom_id, body))
        if not planned and not faults:
            return (BatchFault(code="empty_file", message="the file has no lines"),)
        return tuple(faults) or BatchPlan(lines=tuple(planned))

    def write(self, batch: BatchJob, line: PlannedLine, end: VideoEnd) -> bytes:
        """Return a line's answer, as a line with its end."""
        response = error = None
        if end.code in UNFINISHED:
            error = {"code": end.code, "message": end.message}
        elif line.job:
            progress = 100 if end.status == "completed" else 0
            state = VideoState(line.job, end.status, progress, None, end)
            response = (200, describe_video(state).model_dump(mode="json"))
        else:
            response = (line.status_code, line.error)
        number = str(line.number)
        answer = {
            "id": derive_id("batch_req_", batch.id, number),
            "custom_id": line.custom_id,
            "response": response
            and {
                "status_code": response[0],
                "request_id": derive_id("req_", batch.id, number),
                "body": response[1],
            },
            "error": error,
        }
        return json.dumps(answer, ensure_ascii=False).encode() + b"\n"

    def _read_form(self, text: bytes) -> tuple[str, dict[str, Any]]:
        """Return a line's custom_id and body; raises _LineError."""
        if len(text) > self.max_bytes:
            raise _LineError("line_too_long", f"the line has more than {self.max_bytes} bytes")
        try:
            found = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise _LineError("invalid_json_line", f"the line is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise _LineError("invalid_json_line", "the line is no JSON object")
        line = cast(dict[str, Any], found)
        for name in ("custom_id", "method", "url", "body"):
            if line.get(name) is None:
                raise _LineError("missing_required_parameter", f"{name} is missing", name)
        custom_id, body = line["custom_id"], line["body"]
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
            said = f"custom_id: expected text of 1 to {MAX_CUSTOM_ID_CHARS} characters"
            raise _LineError("invalid_custom_id", said, "custom_id")
        if line["method"] != "POST":
            said = f"method: got {str(line['method'])[:64]!r}, expected 'POST'"
            raise _LineError("invalid_method", said, "method")
        if line["url"] != ENDPOINT:
            said = f"url: got {str(line['url'])[:64]!r}, expected the batch's, {ENDPOINT!r}"
            raise _LineError("invalid_url", said, "url")
        if not isinstance(body, dict):
            raise _LineError("invalid_body", "body: expected an object", "body")
        return custom_id, cast(dict[str, Any], body)

    def _plan(
        self, batch: BatchJob, number: int, custom_id: str, body: dict[str, Any]
    ) -> PlannedLine:
        try:
            job = self.reader.read(
                body,
                id=name_video(batch.id, number),
                owner=batch.owner,
                batch_id=batch.id,
                created_at=batch.created_at,
            )
        except ApiError as error:
            answer = ErrorAnswer(error=error.body).model_dump()
            status = int(error.status)
            return PlannedLine(number=number, custom_id=custom_id, status_code=status, error=answer)
        return PlannedLine(number=number, custom_id=custom_id, job=job)
