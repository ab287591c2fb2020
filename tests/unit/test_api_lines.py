"""A batch's lines: what they mean, what is wrong with them, and how they are answered."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from jobs.api.job import JobReader
from jobs.api.lines import MAX_CUSTOM_ID_CHARS, MAX_FAULTS, MAX_LINE_BYTES, Lines
from jobs.recipes import find_recipe
from pipeline.batches import BatchFault, BatchJob, BatchPlan, name_video, new_batch_id
from pipeline.inbox import VideoEnd
from pipeline.inputs import Inputs
from pipeline.store import ObjectStore
from pipeline.uploads import new_file_id
from tests.support.online import make_lines

READER = JobReader(find_recipe(), "0" * 64, Inputs(ObjectStore("memory://lines")), ("sora-2",))
LINES = Lines(READER)
BATCH = BatchJob(
    id=new_batch_id(),
    owner="me",
    input_file_id=new_file_id(),
    endpoint="/v1/videos",
    completion_window="24h",
)
BALL = {"prompt": "a ball"}


def read(content: bytes, max_lines: int = 10) -> Any:
    return LINES.read(BATCH, content.split(b"\n"), max_lines)


def line(**changes: Any) -> bytes:
    whole = {"custom_id": "a", "method": "POST", "url": "/v1/videos", "body": BALL, **changes}
    return json.dumps({name: value for name, value in whole.items() if value != ...}).encode()


def test_a_line_is_a_job_whose_id_is_always_the_same() -> None:
    content = make_lines({**BALL, "seed": 7, "metadata": {"a": "b"}, "model": "sora-2"}, BALL)
    plan = read(content)
    assert isinstance(plan, BatchPlan)
    jobs = [each.job for each in plan.lines]
    assert [job and job.id for job in jobs] == [name_video(BATCH.id, n) for n in (1, 2)]
    first = jobs[0]
    assert first
    assert (first.owner, first.batch_id, first.created_at) == ("me", BATCH.id, BATCH.created_at)
    assert (first.request.seed, first.metadata, first.model) == (7, {"a": "b"}, "sora-2")
    again = pickle.loads(pickle.dumps(LINES)).read(BATCH, content.split(b"\n"), 10)
    assert again.lines == plan.lines
    other = BATCH.model_copy(update={"id": new_batch_id()})
    ids = {each.job and each.job.id for each in LINES.read(other, content.split(b"\n"), 10).lines}  # type: ignore[union-attr]
    assert ids.isdisjoint(job and job.id for job in jobs)


def test_blank_lines_and_other_line_ends_are_passed_over() -> None:
    content = b"\xef\xbb\xbf" + line() + b"\r\n\n  \n" + line(custom_id="b") + b"\n"
    assert [(each.number, each.custom_id) for each in read(content).lines] == [(1, "a"), (4, "b")]


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"", "empty_file", None),
        (b" \n\n", "empty_file", None),
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b'{"custom_id": "\\ud800"}', "invalid_json_line", None),
        (b"[" * 9999, "invalid_json_line", None),
        (line(body={"prompt": "x" * MAX_LINE_BYTES}), "line_too_long", None),
        (line(custom_id=...), "missing_required_parameter", "custom_id"),
        (line(custom_id=3), "invalid_custom_id", "custom_id"),
        (line(custom_id=""), "invalid_custom_id", "custom_id"),
        (line(custom_id="x" * (MAX_CUSTOM_ID_CHARS + 1)), "invalid_custom_id", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/images"), "invalid_url", "url"),
        (line(body=...), "missing_required_parameter", "body"),
        (line(body="a ball"), "invalid_body", "body"),
        (line() + b"\n" + line(), "duplicate_custom_id", "custom_id"),
        (make_lines(*(BALL for _ in range(11))), "too_many_lines", None),
    ],
)
def test_what_is_wrong_with_a_lines_form_fails_the_batch(
    content: bytes, code: str, param: str | None
) -> None:
    (fault,) = read(content)
    assert isinstance(fault, BatchFault)
    assert (fault.code, fault.param) == (code, param)
    number = {"duplicate_custom_id": 2, "too_many_lines": 11, "empty_file": None}.get(code, 1)
    assert fault.line == number
    assert len(fault.message) < 200


def test_all_faults_are_told_up_to_a_limit() -> None:
    assert [each.line for each in read(b"{\n" + line() + b"\n{\n")] == [1, 3]
    assert len(read(b"{\n" * (MAX_FAULTS + 9))) == MAX_FAULTS


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({}, 400, "prompt", "invalid_value"),
        ({**BALL, "size": "1x1"}, 400, "size", "invalid_value"),
        ({**BALL, "promt": 1}, 400, "promt", "unknown_parameter"),
        ({**BALL, "metadata": {"a": 1}}, 400, "metadata", "invalid_value"),
        ({**BALL, "model": "sora-3"}, 404, "model", "model_not_found"),
        ({**BALL, "input_reference": {}}, 400, "input_reference", "invalid_value"),
    ],
)
def test_what_is_wrong_with_a_body_is_that_lines_answer_alone(
    body: dict[str, Any], status: int, param: str, code: str
) -> None:
    good, bad = read(make_lines(BALL, body)).lines
    assert good.job
    assert bad.job is None
    answer = json.loads(LINES.write(BATCH, bad, VideoEnd(status="failed")))
    assert answer["response"]["status_code"] == status
    error = answer["response"]["body"]["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert answer["error"] is None


def test_answers_are_those_of_openais() -> None:
    (planned,) = read(line(custom_id="größe")).lines
    end = VideoEnd(status="completed")
    written = LINES.write(BATCH, planned, end)
    assert written.endswith(b"}\n")
    assert written.count(b"\n") == 1
    assert written == LINES.write(BATCH, planned, end)
    answer = json.loads(written)
    assert answer.keys() == {"id", "custom_id", "response", "error"}
    assert answer["custom_id"] == "größe"
    assert answer["id"].startswith("batch_req_")
    assert answer["response"].keys() == {"status_code", "request_id", "body"}
    video = answer["response"]["body"]
    assert (video["id"], video["object"], video["status"]) == (
        planned.job.id, "video", "completed"
    )  # fmt: skip
    failed = VideoEnd(status="failed", code="rendering_failed", message="no")
    video = json.loads(LINES.write(BATCH, planned, failed))["response"]["body"]
    assert (video["status"], video["error"]) == (
        "failed", {"code": "rendering_failed", "message": "no"}
    )  # fmt: skip
    left = VideoEnd(status="failed", code="batch_expired", message="late")
    answer = json.loads(LINES.write(BATCH, planned, left))
    assert answer["response"] is None
    assert answer["error"] == {"code": "batch_expired", "message": "late"}
